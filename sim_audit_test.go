//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"raftkv/internal/audit"
	"raftkv/internal/changelog"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// auditTrail has each life of each node of a simulated cluster write an audit log.
type auditTrail struct {
	mu    sync.Mutex
	logs  []*audit.Log
	paper auditPaper // of all of them
}

func (a *auditTrail) wire(c *simCluster) {
	c.wire = func(s *server) {
		a.mu.Lock()
		defer a.mu.Unlock()
		l, err := audit.Open(config.Config{ID: s.cfg.ID, Doors: config.Doors{AuditLog: "-"}}, &a.paper, zap.NewNop())
		testkit.Must(c.T, err)
		s.api.audit = l
		a.logs = append(a.logs, l)
	}
}

// expired ends the logs, and returns what they say has expired: keys, with the revision.
func (a *auditTrail) expired(t *testing.T) (all []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.logs {
		testkit.Must(t, l.Close())
	}
	for text := range strings.SplitSeq(strings.TrimSpace(a.paper.take()), "\n") {
		var line struct {
			Event    string
			Keys     []string
			Revision uint64
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%v: %q", err, text)
		}
		for _, key := range line.Keys {
			if line.Event == "expire" {
				all = append(all, fmt.Sprint(key, "@", line.Revision))
			}
		}
		if line.Event == "gap" || line.Event == "lost" {
			t.Errorf("%s", text)
		}
	}
	slices.Sort(all)
	return all
}

// Guarantee: while leadership is handed over again and again, each expiry is in the audit logs
// of the nodes, taken together, once.
func TestSimAuditOfExpiries(t *testing.T) {
	trail := &auditTrail{}
	simulateSet(t, 3, trail.wire, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			runLeaseClients(c, false, 20*time.Second)
		}()
		for over := false; !over; {
			select {
			case <-done:
				over = true
			case <-time.After(3 * time.Second):
				c.Nodes[c.Leader()].Life.HandOver()
			}
		}
		time.Sleep(time.Second) // until all have applied it
		// What has expired is the same on all nodes.
		var want []string
		c.Nodes[1].Life.kv.View(func(s *state.State) {
			entries, _ := s.Changes.After(s.Changes.Base(), 1_000_000)
			for _, e := range entries {
				for _, change := range e.Changes {
					if change.Kind == changelog.Expire {
						want = append(want, fmt.Sprint(change.Key, "@", e.Revision))
					}
				}
			}
		})
		slices.Sort(want)
		if got := trail.expired(t); len(got) < 10 || !slices.Equal(got, want) {
			t.Errorf("written are %d\n%v\nwant %d\n%v", len(got), got, len(want), want)
		}
	})
}

// Guarantee: whatever happens to leaders, no expiry is written twice, and most are written.
func TestSimAuditOfExpiriesFaults(t *testing.T) {
	trail := &auditTrail{}
	simulateSet(t, 3, trail.wire, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			runLeaseClients(c, false, 60*time.Second)
		}()
		trouble(c, done)
		time.Sleep(time.Second)
		got := trail.expired(t)
		if unique := slices.Compact(slices.Clone(got)); len(unique) != len(got) || len(got) < 10 {
			t.Errorf("%d are written, %d of them differ: %v", len(got), len(unique), got)
		}
	})
}
