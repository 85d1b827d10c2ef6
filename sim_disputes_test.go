//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"strings"
	"testing"
	"time"
)

// Two histories and no third voter that could tell which one counts: nobody is
// accused, nothing is acknowledged, and both sides say why, in every way they have.
// The third voter settles it. Without this a leader that can commit nothing calls
// itself ready.
func TestSimDisputedHistories(t *testing.T) {
	for name, gone := range map[string]bool{"both stay": false, "the other one goes": true} {
		t.Run(name, func(t *testing.T) { simDispute(t, gone) })
	}
}

// simDispute is such a dispute. If gone, the node that a majority forgot is down again
// when the third voter comes.
func simDispute(t *testing.T, gone bool) {
	const check = "has a history that no other disputes"
	small := func(cfg *config.Config) { cfg.SnapshotCount = 20 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.Doubts = true
		knows, forgot, third := c.forgetful(40)
		c.Put(forgot, "new", c.Value())
		c.Crash(third)
		c.Start(knows)
		// That the other one hears the leader confirms no read, also before it is known
		// what it holds.
		if err := c.Nodes[forgot].Life.reads.Confirm(context.Background()); err == nil {
			t.Error("a read was confirmed by a node that does not share the leader's history")
		}
		for _, id := range []uint64{knows, forgot} {
			c.Await(fmt.Sprintf("node %d to say that its history is disputed", id), func() bool {
				status, body := c.probe(id, "/readyz?verbose")
				return status == http.StatusServiceUnavailable && strings.Contains(body, "FAIL "+check) && strings.Contains(body, "raftkv recover")
			})
		}
		time.Sleep(10 * time.Second)
		for _, id := range []uint64{knows, forgot} {
			srv := c.Nodes[id].Life
			for _, r := range []struct{ method, path string }{
				{http.MethodPut, "k"}, {http.MethodDelete, "v1/kv/new"}, {http.MethodGet, "new"}, {http.MethodGet, "v1/members"},
				{http.MethodGet, "v1/kv"}, {http.MethodGet, "v1/kv?key=new"}, {http.MethodPut, "v1/kv?key=new"},
				{http.MethodGet, "v1/snapshot"}, {http.MethodPost, "v1/leader"}, {http.MethodDelete, "2"},
			} {
				status, body := c.http(id, r.method, r.path)
				if status != http.StatusServiceUnavailable || !strings.Contains(body, "raftkv recover") || !strings.Contains(body, `"not_applied"`) {
					t.Errorf("%s %s on node %d: %d %s", r.method, r.path, id, status, body)
				}
			}
			for _, path := range []string{"base?consistency=stale", "v1/kv?prefix=b&consistency=stale", "v1/kv?consistency=stale&count=true", "v1/kv?key=base&consistency=stale"} {
				if status, body := c.http(id, http.MethodGet, path); status != http.StatusOK {
					t.Errorf("a stale read of %s on node %d: %d %s", path, id, status, body)
				}
			}
			if status, body := c.probe(id, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "raftkv recover") {
				t.Errorf("/readyz of node %d: %d %s", id, status, body)
			}
			if s := srv.status(); !s.Disputed || s.Diverged || srv.kv.Fault() != nil {
				t.Errorf("the status of node %d: %+v", id, s)
			}
		}
		if gone {
			c.Crash(knows)
		}
		c.Start(third)
		c.awaitReady(forgot, third)
		c.Put(forgot, "new", c.Value())
		for _, id := range []uint64{forgot, third} {
			if s := c.Nodes[id].Life.status(); s.Disputed || s.Diverged {
				t.Errorf("node %d, when a majority is with it: %+v", id, s)
			}
		}
		if gone {
			c.Start(knows)
		}
		c.Await("the one that a majority forgot to notice", func() bool { return errors.Is(c.Nodes[knows].Life.kv.Fault(), problem.ErrHistories) })
		if status, body := c.probe(knows, "/readyz?verbose"); c.Nodes[knows].Life.status().Disputed || strings.Contains(body, "too few voters") || !strings.Contains(body, "DELETE /ID") {
			t.Errorf("the one that is out says: %d %s", status, body)
		}
		c.Crash(knows)
		delete(c.Nodes, knows)
	})
}

// The mistake is put right while the histories are in dispute, and the leader has
// taken in a write meanwhile: the node comes back with its true directory. Then the
// leader's history is out; it gives leadership up, and the other two go on. Without
// this an out leader and its followers wait for each other for ever.
func TestSimDisputePutRight(t *testing.T) {
	for name, write := range map[string]bool{"nothing was written": false, "a write waits": true} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.Doubts = true
				leader := c.Leader()
				c.named()
				c.Put(leader, "base", c.Value())
				a, b, other := leader, c.Followers()[0], c.Followers()[1]
				old := c.keepCopy(a)
				c.Leader()
				c.Crash(b)
				v := c.Value()
				for range 20 {
					c.Put(a, "first", v)
				}
				c.Crash(other)
				c.Crash(a)
				truth := c.Nodes[a].Dir
				c.Nodes[a].Dir = old
				c.Start(a)
				c.Start(b)
				c.Await("the one that knows nothing to lead", func() bool {
					_, _ = c.Nodes[c.Leader()].Life.members.Transfer(context.Background(), b)
					return c.Leader() == b
				})
				for range 10 {
					c.Put(b, "second", c.Value())
				}
				c.Crash(a)
				c.Start(other)
				for _, id := range []uint64{b, other} {
					c.Await("the dispute", func() bool { return c.Nodes[id].Life.status().Disputed })
				}
				if write { // which came in a moment before the dispute was known
					if res, _ := c.Do(0, b, history.Input{Kind: history.Put, Key: "k", Value: c.Value()}); res.Err == nil {
						t.Error("a write was acknowledged in a dispute")
					}
				}
				c.putBack(a, truth)
				c.Await("the leader to find itself out", func() bool { return errors.Is(c.Nodes[b].Life.kv.Fault(), problem.ErrHistories) })
				began := time.Now()
				c.awaitReady(a, other)
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("the majority goes on after %v", took)
				}
				if res, it := c.Do(0, a, history.Input{Kind: history.Get, Key: "first"}); res.Err != nil || it == nil || string(it.Value) != v {
					t.Errorf("what was acknowledged in the history that counts: %+v, %v", it, res.Err)
				}
				// The second history is given up, and the first was noted beside it; and
				// the node that was put back twice has voted twice in some term.
				c.History = nil
				c.Net.Forget()
				if s := c.Nodes[b].Life.status(); s.Disputed || s.Role == "leader" {
					t.Errorf("the status of the one that is out: %+v", s)
				}
				c.Crash(b)
				delete(c.Nodes, b)
			})
		})
	}
}

// A node that was put back votes a second time in a term, and so two leaders of one
// term make entries of one index, of which one was acknowledged by a node that did not
// hear of it before it ended. Raft takes these for one another; the nodes do not.
// Without this two histories are mixed, and both sides go on to acknowledge.
func TestSimForkInOneTerm(t *testing.T) {
	for name, truth := range map[string]bool{"the first history is put back": true, "the second one stays": false} {
		t.Run(name, func(t *testing.T) {
			tried, same := 0, 0
			for ; same < 3 && tried < 40; tried++ {
				if simFork(t, truth) {
					same++
				}
			}
			if same < 3 {
				t.Errorf("of %d simulations %d had two leaders in one term", tried, same)
			}
		})
	}
}

// simFork is one such fork. It reports whether there were two leaders in one term. The
// first history is that of a and the other node, the second that of a and b; a comes
// back last, with the first one if so wanted.
func simFork(t *testing.T, first bool) (same bool) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		b := c.Leader()
		c.named()
		c.Put(b, "base", c.Value())
		a, other := c.Followers()[0], c.Followers()[1]
		old := c.keepCopy(a)
		c.Await("the same leader", func() bool { return c.Leader() == b })
		c.Crash(b)
		v := c.Value()
		c.Put(c.Leader(), "k", v)
		term := c.Nodes[c.Leader()].Life.status().Term
		c.Crash(other) // before it hears that this is committed
		c.Crash(a)
		truth := c.Nodes[a].Dir
		c.Nodes[a].Dir = old
		c.Start(a)
		c.Start(b)
		for range 4 {
			c.Put(c.Leader(), "k", c.Value())
		}
		same = c.Nodes[b].Life.status().Term == term
		c.Crash(a)
		forked := c.Nodes[a].Dir
		if !same {
			c.Crash(b)
			clear(c.Nodes)
			return
		}
		c.Start(other)
		for _, id := range []uint64{b, other} {
			c.Await("the dispute", func() bool { return c.Nodes[id].Life.status().Disputed })
			if status, body := c.http(id, http.MethodGet, "k"); status != http.StatusServiceUnavailable {
				t.Errorf("a read on node %d in the dispute: %d %s", id, status, body)
			}
		}
		out, with := other, b
		c.Nodes[a].Dir = forked
		if first {
			out, with = b, other
			c.Nodes[a].Dir = truth
		}
		c.Start(a)
		c.Await("one to be out", func() bool { return c.Nodes[out].Life.kv.Fault() != nil })
		c.awaitReady(a, with)
		if res, it := c.Do(0, a, history.Input{Kind: history.Get, Key: "k"}); res.Err != nil || it == nil || (string(it.Value) == v) != first {
			t.Errorf("%+v, %v; the first history counts: %t", it, res.Err, first)
		}
		c.History = nil
		c.Net.Forget()
		c.Crash(out)
		delete(c.Nodes, out)
	})
	return same
}
