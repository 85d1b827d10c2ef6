//go:build unix

package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"raftkv/internal/lease"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// crowd sends a request from many clients at once, some times each, and returns how often
// each status and code came.
func (c *procCluster) crowd(i int, method, path string, body []byte) map[string]int {
	clients, times := testkit.SoakOr(8, 32), testkit.SoakOr(1, 4)
	answers := map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range times {
				r := procDo(c.client, method, c.url(i)+path, body)
				mu.Lock()
				answers[fmt.Sprint(r.status, " ", r.code())]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return answers
}

// wantOnly checks that a crowd got no other answers than these.
func wantOnly(t *testing.T, what string, answers map[string]int, only ...string) {
	t.Helper()
	for answer := range answers {
		if !slices.Contains(only, answer) {
			t.Errorf("%s: %v, want %q", what, answers, only)
			return
		}
	}
}

// Guarantee: requests that are made to be dear, many at once, on a store of a million
// keys, are refused with no more memory than their bodies and a bounded part take, and
// the node answers others meanwhile.
func TestSoakBounds(t *testing.T) {
	besideOthers(t)
	n := testkit.SoakOr(20_000, 1_000_000)
	c := newLargeCluster(t, n)
	c.start()
	c.waitLevel(state.ProgramLevel)
	leader := c.leader()
	const maxValue = 1 << 20 // --max-value-size, as it comes
	// A body and what is made of it take 12 MiB. Garbage may gather up to 60 % of what lives,
	// which is 400 MiB at full size.
	bodies := testkit.SoakOr[int64](150, 32*12+240)
	everything := `{"list":{"prefix":"","limit":1000}}` + strings.Repeat(`,{"list":{"prefix":"","limit":1000}}`, txn.MaxOps-1)
	for _, what := range []struct {
		name, body string
		room       int64 // of memory, MiB
		only       []string
	}{
		{"128 lists of everything", `{"then":[` + everything + `]}`, 100, []string{"413 too_large"}},
		{"brackets", strings.Repeat("[", 4*maxValue), bodies, []string{"400 bad_request", "429 overloaded"}},
		{"braces", strings.Repeat(`{"if":`, 4*maxValue/6), bodies, []string{"400 bad_request", "429 overloaded"}},
		{"a number", `{"if":[{"key":"k","version":` + strings.Repeat("9", 4*maxValue-100) + `}]}`, bodies, []string{"400 bad_request", "429 overloaded"}},
		{"more than a body may have", strings.Repeat("[", 4*maxValue+1), bodies, []string{"413 too_large", "429 overloaded"}},
	} {
		before := c.peakMemory(leader)
		answers := c.crowd(leader, http.MethodPost, "/v1/txn", []byte(what.body))
		wantOnly(t, what.name, answers, what.only...)
		took := (c.peakMemory(leader) - before) >> 20
		t.Logf("%s: %v, %d MiB more than ever", what.name, answers, took)
		if took > what.room {
			t.Errorf("%s took %d MiB", what.name, took)
		}
		c.wantGet(leader, procScaleKey(1), procScaleValue(1))
	}
	c.wantFullLease(leader)
	c.wantDeletedInSteps(leader, n)
}

// wantFullLease fills a lease at node i, checks that it takes no more, and revokes it.
func (c *procCluster) wantFullLease(i int) {
	c.t.Helper()
	r := c.do(http.MethodPost, i, "/v1/leases", []byte(`{"ttl":"1h"}`))
	var l struct{ ID uint64 }
	if err := json.Unmarshal([]byte(r.body), &l); err != nil || r.status != http.StatusCreated {
		c.t.Fatalf("POST /v1/leases: %v (%v)", r, err)
	}
	for first := 0; first < lease.MaxKeys; first += txn.MaxOps {
		var b bytes.Buffer
		for k := first; k < min(first+txn.MaxOps, lease.MaxKeys); k++ {
			fmt.Fprintf(&b, `,{"put":{"key":"leased/%d","value":"","lease":%d}}`, k, l.ID)
		}
		if r := c.do(http.MethodPost, i, "/v1/txn", fmt.Appendf(nil, `{"then":[%s]}`, b.Bytes()[1:])); r.status != http.StatusOK {
			c.t.Fatalf("keys from %d on: %v", first, r)
		}
	}
	path := fmt.Sprintf("/v1/kv/leased/more?lease=%d", l.ID)
	procWantProblem(c.t, "a key too many", c.do(http.MethodPut, i, path, nil), http.StatusConflict, "lease_full")
	revoked := fmt.Sprintf("/v1/leases/%d", l.ID)
	if r := c.do(http.MethodDelete, i, revoked, nil); r.status != http.StatusNoContent {
		c.t.Errorf("DELETE %s: %v", revoked, r)
	}
	if r := c.do(http.MethodGet, i, "/v1/kv?prefix=leased/&count=true", nil); !strings.Contains(r.body, `"count":0`) {
		c.t.Errorf("keys of the revoked lease: %v", r)
	}
}

// wantDeletedInSteps checks that a deletion of too many keys at node i does nothing, and
// deletes them in steps.
func (c *procCluster) wantDeletedInSteps(i, n int) {
	c.t.Helper()
	procWantProblem(c.t, "a deletion of all", c.do(http.MethodDelete, i, "/v1/kv?prefix=scale/", nil), http.StatusRequestEntityTooLarge, "too_large")
	if keys := c.status(i).Keys; keys != n {
		c.t.Errorf("%d keys after a deletion that was refused, want %d", keys, n)
	}
	took, deleted := &latencies{}, 0
	for more := true; more; {
		began := time.Now()
		r := c.do(http.MethodDelete, i, fmt.Sprintf("/v1/kv?prefix=scale/&limit=%d", state.MaxDeleted), nil)
		took.add(time.Since(began))
		var step struct {
			Deleted int
			More    bool
		}
		if err := json.Unmarshal([]byte(r.body), &step); err != nil || r.status != http.StatusOK || step.Deleted > state.MaxDeleted {
			c.t.Fatalf("a step behind %d keys: %v (%v)", deleted, r, err)
		}
		deleted, more = deleted+step.Deleted, step.More
	}
	c.t.Logf("%d keys deleted in %d steps: %v", deleted, len(took.all), took)
	for _, i := range c.ids() {
		procEventually(c.t, procReadyWithin, fmt.Sprintf("all keys are gone at node %d", i), func() error {
			if keys := c.status(i).Keys; keys != 0 || deleted != n {
				return fmt.Errorf("%d were deleted, %d are left", deleted, keys)
			}
			return nil
		})
	}
}
