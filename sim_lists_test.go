//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
)

// A list on any node has every write that was acknowledged on any other before it, and
// none on a node that is cut off; a stale one is given there.
func TestSimListsEverywhere(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		for i := range 30 {
			c.Put(uint64(i%3+1), fmt.Sprintf("jobs/%02d", i), c.Value())
			for _, id := range c.Up() {
				for _, query := range []string{"", "&limit=5000"} {
					status, body := c.http(id, http.MethodGet, "v1/kv?prefix=jobs/"+query)
					var l listed
					if err := json.Unmarshal([]byte(body), &l); err != nil || status != http.StatusOK || len(l.Items) != i+1 {
						t.Fatalf("node %d, %q: %d %d items, want %d, %v", id, query, status, len(l.Items), i+1, err)
					}
				}
			}
		}
		c.Net.Isolate(leader, c.Followers()...)
		if status, body := c.http(leader, http.MethodGet, "v1/kv"); status != http.StatusServiceUnavailable {
			t.Errorf("a list on a node that is cut off: %d %.100s", status, body)
		}
		if status, body := c.http(leader, http.MethodGet, "v1/kv?count=true&consistency=stale"); status != http.StatusOK {
			t.Errorf("a stale one: %d %s", status, body)
		}
		c.Net.Heal()
	})
}
