//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"raftkv/internal/config"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/state"
	"raftkv/internal/suspect"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// keepCopy stops a node, copies its directory, and starts it again.
func (c *simCluster) keepCopy(id uint64) (dir string) {
	c.t.Helper()
	c.stop(id)
	dir = c.nodes[id].dir + ".copy"
	if err := os.CopyFS(dir, os.DirFS(c.nodes[id].dir)); err != nil {
		c.t.Fatal(err)
	}
	c.start(id)
	return dir
}

// putBack has a node that is down begin its next life on an older copy of its
// directory, as an operator would who restores a machine.
func (c *simCluster) putBack(id uint64, dir string) {
	c.t.Helper()
	if err := os.RemoveAll(c.nodes[id].dir); err != nil {
		c.t.Fatal(err)
	}
	c.nodes[id].dir = dir
	c.start(id)
}

// named waits until batches name the lives that send them.
func (c *simCluster) named() {
	c.await("level 3", func() bool {
		for _, id := range c.up() {
			if c.nodes[id].srv.kv.Status().Level < state.LifeLevel {
				return false
			}
		}
		return true
	})
}

// An acknowledged write is made, also when it went through a node whose directory
// is an older copy: in its lost life it may have sent another batch under every
// number that it gives to one now. Leadership has moved, so that no heartbeat
// tells it of that life.
func TestSimOldCopyUnderANewLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		leader := c.leader()
		c.named()
		c.put(leader, "base", c.value())
		old := c.followers()[0]
		other := 6 - leader - old
		dir := c.keepCopy(old)
		for i := range 30 {
			c.put(old, fmt.Sprintf("k%d", i%5), c.value())
		}
		c.crash(old)
		if _, err := c.nodes[leader].srv.members.Transfer(context.Background(), other); err != nil {
			t.Fatal(err)
		}
		c.putBack(old, dir)
		srv := c.nodes[old].srv
		var clients sync.WaitGroup
		for i := range 4 {
			clients.Go(func() {
				for n := range 30 {
					c.doOn(i, srv, history.Input{Kind: history.Put, Key: fmt.Sprintf("k%d", n%5), Value: c.value()})
				}
			})
		}
		if err := c.ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		clients.Wait()
		delete(c.nodes, old)
	})
}

// A node whose lost life only acknowledged what others wrote is told so by its
// leader, which has heard of more than the node has.
func TestSimOldCopyOfAFollower(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		leader := c.leader()
		c.named()
		old := c.followers()[0]
		dir := c.keepCopy(old)
		for range 5 {
			c.put(leader, "k", c.value())
		}
		c.await("the follower has it all", func() bool {
			return c.nodes[old].srv.kv.applied.Get() == c.nodes[leader].srv.kv.applied.Get()
		})
		c.crash(old)
		c.putBack(old, dir)
		if err := c.ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		delete(c.nodes, old)
	})
}

// Two processes with one directory's content: neither is answered from what the
// other sent, and one of them ends.
func TestSimOldCopyWithHigherBoot(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		leader := c.leader()
		c.named()
		old := c.followers()[0]
		dir := c.keepCopy(old)
		for range 3 { // lives that the copy knows nothing of
			c.put(old, "k", c.value())
			c.crash(old)
			c.start(old)
		}
		c.put(old, "k", c.value())
		c.crash(old)
		if _, err := c.nodes[leader].srv.members.Transfer(context.Background(), 6-leader-old); err != nil {
			t.Fatal(err)
		}
		c.putBack(old, dir)
		if err := c.ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		delete(c.nodes, old)
	})
}

// forgetful makes two histories. While third was down, the other two acknowledged
// writes; then one of them is put back as it was before, the other goes down, and
// the one that forgot goes on with third. It returns the node that has what the
// others forgot, down, and its lost writes.
func (c *simCluster) forgetful(writes int) (knows, forgot, third uint64) {
	leader := c.leader()
	c.named()
	c.put(leader, "base", c.value())
	followers := c.followers()
	knows, forgot, third = leader, followers[0], followers[1]
	dir := c.keepCopy(forgot)
	c.leader()
	c.crash(third)
	for range writes {
		c.put(knows, "lost", c.value())
	}
	time.Sleep(time.Second) // so that it knows what is committed after a crash, too
	c.crash(knows)
	c.crash(forgot)
	c.putBack(forgot, dir)
	c.start(third)
	c.leader()
	c.history = nil // what was acknowledged is gone, and nobody there can know
	return knows, forgot, third
}

// Of two histories, the node that comes back with the one that a majority forgot
// notices, and serves nothing. It does not count for the majority either: its
// acknowledgements would speak for what it does not have.
func TestSimTwoHistories(t *testing.T) {
	for _, writes := range []int{1, 20, 300} {
		t.Run(fmt.Sprint(writes), func(t *testing.T) {
			small := func(cfg *config.Config) { cfg.SnapshotCount = 20 }
			simulateWith(t, 3, small, func(c *simCluster) {
				c.doubts = true
				knows, forgot, third := c.forgetful(writes)
				c.put(forgot, "new", c.value())
				c.start(knows)
				srv := c.nodes[knows].srv
				c.await("the node that knows more notices", func() bool { return srv.kv.Sound() != nil })
				if err := srv.kv.Sound(); !errors.Is(err, problem.ErrHistories) || problem.CodeOf(err) != "diverged" {
					t.Errorf("it says %v", err)
				}
				// The majority's leader hears what it lacks, if the other one's log does
				// not reach back far enough; then the third node takes over.
				c.await("a sound leader", func() bool {
					leader := c.leader()
					return leader != knows && c.nodes[leader].srv.kv.Sound() == nil
				})
				for range 10 {
					c.put(c.leader(), "new", c.value())
				}
				if err := srv.reads.Confirm(context.Background()); err == nil {
					t.Error("a read on it was confirmed")
				}
				// With it alone there is no majority.
				c.crash(third)
				res, _ := c.do(1, forgot, history.Input{Kind: history.Put, Key: "alone", Value: c.value()})
				if res.Err == nil {
					t.Error("a write was acknowledged that only one node has")
				}
				sent := c.net.transfers
				time.Sleep(time.Minute)
				if n := c.net.transfers - sent; n > 70 {
					t.Errorf("%d snapshots were sent in a minute to a node that takes none", n)
				}
				c.start(third)
				c.crash(knows)
				delete(c.nodes, knows)
			})
		})
	}
}

// A message that contradicts the log does no harm, and accuses nobody, when the
// node that it names as its sender does not stand by it.
func TestSimForgedContradictions(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		leader := c.leader()
		c.put(leader, "k", c.value())
		victim := c.followers()[0]
		forge := func(to, from, term uint64, m *raftpb.Message) {
			m.To, m.From, m.Term = new(to), new(from), new(term)
			if err := c.nodes[to].srv.node.Process(context.Background(), m); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			st := c.nodes[leader].srv.node.status.Load()
			forge(victim, leader, st.Term, &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(uint64(1e9))})
			forge(victim, leader, st.Term+1, &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(uint64(1))})
			forge(victim, leader, st.Term, &raftpb.Message{Type: raftpb.MsgApp.Enum(), Index: new(uint64(1)), LogTerm: new(uint64(7)), Commit: new(uint64(1))})
			forge(leader, victim, st.Term, &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Index: new(uint64(1e9))})
			time.Sleep(300 * time.Millisecond)
			c.put(victim, "k", c.value())
		}
		for _, id := range []uint64{leader, victim} {
			if n := c.nodes[id].srv.node.refusals.Count(refusal.RefusedContradiction); n < 20 {
				t.Errorf("node %d doubted %d messages", id, n)
			}
		}
		if now := c.leader(); now != leader {
			t.Errorf("node %d leads, it was %d", now, leader)
		}
	})
}

// A leader whose follower stands by an acknowledgement of more than the leader
// has lacks what was committed: it serves nothing, and gives up leadership.
func TestSimLeaderThatForgot(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		leader := c.leader()
		c.put(leader, "k", c.value())
		node := c.nodes[leader].srv.node
		follower := c.followers()[0]
		term := node.status.Load().Term
		node.doubts.AskStand = func(context.Context, string, uint64, uint64) (suspect.Stand, error) {
			return suspect.Stand{ClusterID: node.cluster, ID: follower, Term: term, Commit: 1e9}, nil
		}
		m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: new(leader), From: new(follower), Term: new(term), Index: new(uint64(1e9))}
		if err := node.Process(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		c.await("it notices", func() bool { return errors.Is(c.nodes[leader].srv.kv.Sound(), problem.ErrHistories) })
		c.await("another leads", func() bool { return c.leader() != leader })
		c.crash(leader)
		c.put(follower, "k", c.value())
	})
}

// elections makes the cluster of two hold elections until its term is at least so
// high, and returns the term.
func (c *simCluster) elections(term uint64) uint64 {
	c.t.Helper()
	for {
		leader := c.leader()
		srv := c.nodes[leader].srv
		if now := srv.node.status.Load().Term; now >= term {
			return now
		}
		_, _ = srv.members.Transfer(context.Background(), 0) // if it fails, it is tried again
		time.Sleep(time.Second)
	}
}

// Two histories whose terms are the same, entry by entry, are told apart, whichever
// of the two is longer, and also when the node that a majority has forgotten comes
// to lead. That node serves nothing of its own, and nobody else is accused.
func TestSimTwoHistoriesOfOneTerm(t *testing.T) {
	for name, tt := range map[string]struct {
		lost, writes int  // in the one, and in the other
		together     bool // all three start at one time
		leads        bool // and the one that is forgotten comes to lead
	}{
		"the forgotten one is shorter": {10, 60, false, false},
		"the forgotten one is longer":  {60, 10, false, false},
		"they are as long":             {40, -1, false, false}, // to the entry
		"shorter, all start":           {10, 60, true, false},
		"longer, all start":            {60, 10, true, false},
		"longer, and it leads":         {60, 10, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.doubts = true
				knows := c.leader()
				c.named()
				c.put(knows, "base", c.value())
				followers := c.followers()
				forgot, third := followers[0], followers[1]
				c.stop(forgot)
				dir := c.nodes[forgot].dir + ".copy"
				testkit.Must(t, os.CopyFS(dir, os.DirFS(c.nodes[forgot].dir)))
				c.crash(third)
				c.start(forgot)
				term := c.elections(c.nodes[c.leader()].srv.node.status.Load().Term + 3)
				for range tt.lost {
					c.put(knows, "k", c.value())
				}
				time.Sleep(time.Second) // so that it knows what is committed after a crash, too
				end := c.nodes[knows].srv.kv.applied.Get()
				c.crash(knows)
				c.crash(forgot)
				c.net.forget()
				c.putBack(forgot, dir)
				c.start(third)
				c.leader()
				c.history = nil // what was acknowledged is gone, and nobody there can know
				if now := c.elections(term); now != term {
					t.Skipf("this history is in term %d, the other is in term %d", now, term)
				}
				for range tt.writes {
					c.put(forgot, "k", c.value())
				}
				for tt.writes < 0 && c.nodes[forgot].srv.kv.applied.Get() < end {
					c.put(forgot, "k", c.value())
				}
				if tt.together {
					c.crash(forgot)
					c.crash(third)
					c.start(forgot)
					c.start(third)
				}
				c.wire = func(srv *server) { // what it hears meanwhile must not pass
					ask := srv.node.doubts.AskStand
					srv.node.doubts.AskStand = func(ctx context.Context, url string, node, index uint64) (suspect.Stand, error) {
						time.Sleep(300 * time.Millisecond)
						return ask(ctx, url, node, index)
					}
				}
				c.start(knows)
				c.wire = nil
				srv := c.nodes[knows].srv
				if tt.leads {
					c.await("the forgotten one to lead", func() bool {
						testkit.Must(t, srv.node.call(context.Background(), func(rn *raft.RawNode) { testkit.Must(t, rn.Campaign()) }))
						time.Sleep(10 * time.Millisecond)
						return srv.node.status.Load().Role == raft.StateLeader
					})
				}
				var clients sync.WaitGroup
				for i := range 2 {
					clients.Go(func() {
						for range 50 {
							c.doOn(10+i, srv, history.Input{Kind: history.Get, Key: "k"})
							if tt.writes >= 0 { // else a read may be told the very index that is applied here
								c.doOn(12+i, srv, history.Input{Kind: history.Put, Key: "k", Value: c.value()})
							}
							time.Sleep(20 * time.Millisecond)
						}
					})
				}
				c.await("the forgotten one notices", func() bool { return errors.Is(srv.kv.Sound(), problem.ErrHistories) })
				c.await("another leads", func() bool {
					leader, _, _ := c.nodes[third].srv.node.leaders.Get()
					return leader != 0 && leader != knows
				})
				clients.Wait()
				for _, id := range []uint64{forgot, third} {
					c.put(id, "k", c.value())
					if err := c.nodes[id].srv.kv.Sound(); err != nil {
						t.Errorf("node %d, of the majority, says %v", id, err)
					}
				}
				c.crash(knows)
				delete(c.nodes, knows)
			})
		})
	}
}

// A leader whose log does not reach back to where a follower is vouches by its
// state. It cannot commit anything before that follower hears it.
func TestSimLeaderVouchesByItsState(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 5 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.named()
		leader, followers := c.leader(), c.followers()
		behind, other := followers[0], followers[1]
		c.put(behind, "k", c.value())
		c.crash(behind)
		for range 100 {
			c.put(leader, "k", c.value())
		}
		c.crash(other)
		c.crash(leader)
		c.start(leader)
		c.start(behind)
		c.put(behind, "k", c.value())
		if first, err := c.nodes[leader].srv.storage.Mem.FirstIndex(); err != nil || first < 50 {
			t.Errorf("the log reaches back to entry %d, %v: this tests nothing", first, err)
		}
	})
}

// Two histories and no third voter that could tell which one counts: nobody is
// accused, nothing is acknowledged, and both sides say why, in every way they have.
// The third voter settles it. Without this a leader that can commit nothing calls
// itself ready.
func TestSimDisputedHistories(t *testing.T) {
	const check = "has a history that no other disputes"
	small := func(cfg *config.Config) { cfg.SnapshotCount = 20 }
	simulateWith(t, 3, small, func(c *simCluster) {
		c.doubts = true
		knows, forgot, third := c.forgetful(40)
		v := c.value()
		c.put(forgot, "new", v)
		c.crash(third)
		c.start(knows)
		for _, id := range []uint64{knows, forgot} {
			c.await(fmt.Sprintf("node %d to say that its history is disputed", id), func() bool {
				status, body := c.probe(id, "/readyz?verbose")
				return status == http.StatusServiceUnavailable && strings.Contains(body, "FAIL "+check) && strings.Contains(body, "raftkv recover")
			})
		}
		time.Sleep(10 * time.Second)
		for _, id := range []uint64{knows, forgot} {
			srv := c.nodes[id].srv
			if status, body := c.http(id, http.MethodPut, "k"); status < 500 || !strings.Contains(body, "raftkv recover") {
				t.Errorf("a write on node %d: %d %s", id, status, body)
			}
			status, body := c.http(id, http.MethodGet, "new")
			told := status == http.StatusServiceUnavailable && strings.Contains(body, "raftkv recover")
			// A leader that nobody has outvoted answers by what its history acknowledged.
			if lawful := id == forgot && status == http.StatusOK && body == v; !told && !lawful {
				t.Errorf("a read on node %d: %d %s", id, status, body)
			}
			if s := srv.status(); !s.Disputed || s.Diverged || srv.kv.Sound() != nil {
				t.Errorf("the status of node %d: %+v", id, s)
			}
		}
		c.start(third)
		c.awaitReady(forgot, third)
		c.put(forgot, "new", c.value())
		for _, id := range []uint64{forgot, third} {
			if s := c.nodes[id].srv.status(); s.Disputed || s.Diverged {
				t.Errorf("node %d, when a majority is with it: %+v", id, s)
			}
		}
		c.await("the one that a majority forgot to notice", func() bool { return errors.Is(c.nodes[knows].srv.kv.Sound(), problem.ErrHistories) })
		c.crash(knows)
		delete(c.nodes, knows)
	})
}

// Requests that wait when a node finds that its history is out hear it at once.
func TestSimWaitingWhenOut(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.doubts = true
		knows, forgot, _ := c.forgetful(20)
		c.put(forgot, "new", c.value())
		c.start(knows)
		srv := c.nodes[knows].srv
		type answer struct {
			method string
			status int
			body   string
			took   time.Duration
		}
		answers := make(chan answer, 2)
		for _, method := range []string{http.MethodPut, http.MethodGet} {
			go func() {
				began := time.Now()
				status, body := c.http(knows, method, "k")
				answers <- answer{method, status, body, time.Since(began)}
			}()
		}
		for range 2 {
			a := <-answers
			if a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, `"diverged"`) || a.took > 3*time.Second {
				t.Errorf("%s: %d %s after %v", a.method, a.status, a.body, a.took)
			}
		}
		if srv.kv.Sound() == nil {
			t.Error("it has not noticed")
		}
		c.crash(knows)
		delete(c.nodes, knows)
	})
}
