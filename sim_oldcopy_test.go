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
	c.T.Helper()
	c.Stop(id)
	dir = c.Nodes[id].Dir + ".copy"
	if err := os.CopyFS(dir, os.DirFS(c.Nodes[id].Dir)); err != nil {
		c.T.Fatal(err)
	}
	c.Start(id)
	return dir
}

// putBack has a node that is down begin its next life on an older copy of its
// directory, as an operator would who restores a machine.
func (c *simCluster) putBack(id uint64, dir string) {
	c.T.Helper()
	if err := os.RemoveAll(c.Nodes[id].Dir); err != nil {
		c.T.Fatal(err)
	}
	c.Nodes[id].Dir = dir
	c.Start(id)
}

// named waits until batches name the lives that send them.
func (c *simCluster) named() {
	c.Await("level 3", func() bool {
		for _, id := range c.Up() {
			if c.Nodes[id].Life.kv.Status().Level < state.LifeLevel {
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
		c.Doubts = true
		leader := c.Leader()
		c.named()
		c.Put(leader, "base", c.Value())
		old := c.Followers()[0]
		other := 6 - leader - old
		dir := c.keepCopy(old)
		for i := range 30 {
			c.Put(old, fmt.Sprintf("k%d", i%5), c.Value())
		}
		c.Crash(old)
		if _, err := c.Nodes[leader].Life.members.Transfer(context.Background(), other); err != nil {
			t.Fatal(err)
		}
		c.putBack(old, dir)
		srv := c.Nodes[old].Life
		var clients sync.WaitGroup
		for i := range 4 {
			clients.Go(func() {
				for n := range 30 {
					c.DoOn(i, srv, history.Input{Kind: history.Put, Key: fmt.Sprintf("k%d", n%5), Value: c.Value()})
				}
			})
		}
		if err := c.Ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		clients.Wait()
		delete(c.Nodes, old)
	})
}

// A node whose lost life only acknowledged what others wrote is told so by its
// leader, which has heard of more than the node has.
func TestSimOldCopyOfAFollower(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		leader := c.Leader()
		c.named()
		old := c.Followers()[0]
		dir := c.keepCopy(old)
		for range 5 {
			c.Put(leader, "k", c.Value())
		}
		c.Await("the follower has it all", func() bool {
			return c.Nodes[old].Life.kv.applied.Get() == c.Nodes[leader].Life.kv.applied.Get()
		})
		c.Crash(old)
		c.putBack(old, dir)
		if err := c.Ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		delete(c.Nodes, old)
	})
}

// Two processes with one directory's content: neither is answered from what the
// other sent, and one of them ends.
func TestSimOldCopyWithHigherBoot(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		leader := c.Leader()
		c.named()
		old := c.Followers()[0]
		dir := c.keepCopy(old)
		for range 3 { // lives that the copy knows nothing of
			c.Put(old, "k", c.Value())
			c.Crash(old)
			c.Start(old)
		}
		c.Put(old, "k", c.Value())
		c.Crash(old)
		if _, err := c.Nodes[leader].Life.members.Transfer(context.Background(), 6-leader-old); err != nil {
			t.Fatal(err)
		}
		c.putBack(old, dir)
		if err := c.Ended(old); !errors.Is(err, problem.ErrOldCopy) {
			t.Errorf("the node with the older copy ended with: %v", err)
		}
		delete(c.Nodes, old)
	})
}

// forgetful makes two histories. While third was down, the other two acknowledged
// writes; then one of them is put back as it was before, the other goes down, and
// the one that forgot goes on with third. It returns the node that has what the
// others forgot, down, and its lost writes.
func (c *simCluster) forgetful(writes int) (knows, forgot, third uint64) {
	leader := c.Leader()
	c.named()
	c.Put(leader, "base", c.Value())
	followers := c.Followers()
	knows, forgot, third = leader, followers[0], followers[1]
	dir := c.keepCopy(forgot)
	c.Leader()
	c.Crash(third)
	for range writes {
		c.Put(knows, "lost", c.Value())
	}
	time.Sleep(time.Second) // so that it knows what is committed after a crash, too
	c.Crash(knows)
	c.Crash(forgot)
	c.putBack(forgot, dir)
	c.Start(third)
	c.Leader()
	c.History = nil // what was acknowledged is gone, and nobody there can know
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
				c.Doubts = true
				knows, forgot, third := c.forgetful(writes)
				c.Put(forgot, "new", c.Value())
				c.Start(knows)
				srv := c.Nodes[knows].Life
				c.Await("the node that knows more notices", func() bool { return srv.kv.Fault() != nil })
				if err := srv.kv.Fault(); !errors.Is(err, problem.ErrHistories) || problem.CodeOf(err) != "diverged" {
					t.Errorf("it says %v", err)
				}
				// The majority's leader hears what it lacks, if the other one's log does
				// not reach back far enough; then the third node takes over.
				c.Await("a sound leader", func() bool {
					leader := c.Leader()
					return leader != knows && c.Nodes[leader].Life.kv.Fault() == nil
				})
				for range 10 {
					c.Put(c.Leader(), "new", c.Value())
				}
				if err := srv.reads.Confirm(context.Background()); err == nil {
					t.Error("a read on it was confirmed")
				}
				// With it alone there is no majority.
				c.Crash(third)
				res, _ := c.Do(1, forgot, history.Input{Kind: history.Put, Key: "alone", Value: c.Value()})
				if res.Err == nil {
					t.Error("a write was acknowledged that only one node has")
				}
				sent := c.Net.Transfers()
				time.Sleep(time.Minute)
				if n := c.Net.Transfers() - sent; n > 70 {
					t.Errorf("%d snapshots were sent in a minute to a node that takes none", n)
				}
				c.Start(third)
				c.Crash(knows)
				delete(c.Nodes, knows)
			})
		})
	}
}

// A message that contradicts the log does no harm, and accuses nobody, when the
// node that it names as its sender does not stand by it.
func TestSimForgedContradictions(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		leader := c.Leader()
		c.Put(leader, "k", c.Value())
		victim := c.Followers()[0]
		forge := func(to, from, term uint64, m *raftpb.Message) {
			m.To, m.From, m.Term = new(to), new(from), new(term)
			if err := c.Nodes[to].Life.node.Process(context.Background(), m); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			st := c.Nodes[leader].Life.node.status.Load()
			forge(victim, leader, st.Term, &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(uint64(1e9))})
			forge(victim, leader, st.Term+1, &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(uint64(1))})
			forge(victim, leader, st.Term, &raftpb.Message{Type: raftpb.MsgApp.Enum(), Index: new(uint64(1)), LogTerm: new(uint64(7)), Commit: new(uint64(1))})
			forge(leader, victim, st.Term, &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Index: new(uint64(1e9))})
			time.Sleep(300 * time.Millisecond)
			c.Put(victim, "k", c.Value())
		}
		for _, id := range []uint64{leader, victim} {
			if n := c.Nodes[id].Life.node.refusals.Count(refusal.RefusedContradiction); n < 20 {
				t.Errorf("node %d doubted %d messages", id, n)
			}
		}
		if now := c.Leader(); now != leader {
			t.Errorf("node %d leads, it was %d", now, leader)
		}
	})
}

// A leader whose follower stands by an acknowledgement of more than the leader
// has lacks what was committed: it serves nothing, and gives up leadership.
func TestSimLeaderThatForgot(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		leader := c.Leader()
		c.Put(leader, "k", c.Value())
		node := c.Nodes[leader].Life.node
		follower := c.Followers()[0]
		term := node.status.Load().Term
		node.doubts.AskStand = func(context.Context, string, uint64, uint64) (suspect.Stand, error) {
			return suspect.Stand{ClusterID: node.cluster, ID: follower, Term: term, Commit: 1e9}, nil
		}
		m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: new(leader), From: new(follower), Term: new(term), Index: new(uint64(1e9))}
		if err := node.Process(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		c.Await("it notices", func() bool { return errors.Is(c.Nodes[leader].Life.kv.Fault(), problem.ErrHistories) })
		c.Await("another leads", func() bool { return c.Leader() != leader })
		c.Crash(leader)
		c.Put(follower, "k", c.Value())
	})
}

// elections makes the cluster of two hold elections until its term is at least so
// high, and returns the term.
func (c *simCluster) elections(term uint64) uint64 {
	c.T.Helper()
	for {
		leader := c.Leader()
		srv := c.Nodes[leader].Life
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
				c.Doubts = true
				knows := c.Leader()
				c.named()
				c.Put(knows, "base", c.Value())
				followers := c.Followers()
				forgot, third := followers[0], followers[1]
				c.Stop(forgot)
				dir := c.Nodes[forgot].Dir + ".copy"
				testkit.Must(t, os.CopyFS(dir, os.DirFS(c.Nodes[forgot].Dir)))
				c.Crash(third)
				c.Start(forgot)
				term := c.elections(c.Nodes[c.Leader()].Life.node.status.Load().Term + 3)
				for range tt.lost {
					c.Put(knows, "k", c.Value())
				}
				time.Sleep(time.Second) // so that it knows what is committed after a crash, too
				end := c.Nodes[knows].Life.kv.applied.Get()
				c.Crash(knows)
				c.Crash(forgot)
				c.Net.Forget()
				c.putBack(forgot, dir)
				c.Start(third)
				c.Leader()
				c.History = nil // what was acknowledged is gone, and nobody there can know
				if now := c.elections(term); now != term {
					t.Skipf("this history is in term %d, the other is in term %d", now, term)
				}
				for range tt.writes {
					c.Put(forgot, "k", c.Value())
				}
				for tt.writes < 0 && c.Nodes[forgot].Life.kv.applied.Get() < end {
					c.Put(forgot, "k", c.Value())
				}
				if tt.together {
					c.Crash(forgot)
					c.Crash(third)
					c.Start(forgot)
					c.Start(third)
				}
				c.wire = func(srv *server) { // what it hears meanwhile must not pass
					ask := srv.node.doubts.AskStand
					srv.node.doubts.AskStand = func(ctx context.Context, url string, node, index uint64) (suspect.Stand, error) {
						time.Sleep(300 * time.Millisecond)
						return ask(ctx, url, node, index)
					}
				}
				c.Start(knows)
				c.wire = nil
				srv := c.Nodes[knows].Life
				if tt.leads {
					c.Await("the forgotten one to lead", func() bool {
						testkit.Must(t, srv.node.call(context.Background(), func(rn *raft.RawNode) { testkit.Must(t, rn.Campaign()) }))
						time.Sleep(10 * time.Millisecond)
						return srv.node.status.Load().Role == raft.StateLeader
					})
				}
				var clients sync.WaitGroup
				for i := range 2 {
					clients.Go(func() {
						for range 50 {
							c.DoOn(10+i, srv, history.Input{Kind: history.Get, Key: "k"})
							if tt.writes >= 0 { // else a read may be told the very index that is applied here
								c.DoOn(12+i, srv, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
							}
							time.Sleep(20 * time.Millisecond)
						}
					})
				}
				c.Await("the forgotten one notices", func() bool { return errors.Is(srv.kv.Fault(), problem.ErrHistories) })
				c.Await("another leads", func() bool {
					leader, _, _ := c.Nodes[third].Life.node.leaders.Get()
					return leader != 0 && leader != knows
				})
				clients.Wait()
				for _, id := range []uint64{forgot, third} {
					c.Put(id, "k", c.Value())
					if err := c.Nodes[id].Life.kv.Fault(); err != nil {
						t.Errorf("node %d, of the majority, says %v", id, err)
					}
				}
				c.Crash(knows)
				delete(c.Nodes, knows)
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
		leader, followers := c.Leader(), c.Followers()
		behind, other := followers[0], followers[1]
		c.Put(behind, "k", c.Value())
		c.Crash(behind)
		for range 100 {
			c.Put(leader, "k", c.Value())
		}
		c.Crash(other)
		c.Crash(leader)
		c.Start(leader)
		c.Start(behind)
		c.Put(behind, "k", c.Value())
		if first, err := c.Nodes[leader].Life.storage.Mem.FirstIndex(); err != nil || first < 50 {
			t.Errorf("the log reaches back to entry %d, %v: this tests nothing", first, err)
		}
	})
}

// Requests that wait when a node finds that its history is out hear it at once.
func TestSimWaitingWhenOut(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Doubts = true
		knows, forgot, _ := c.forgetful(20)
		c.Put(forgot, "new", c.Value())
		c.Start(knows)
		srv := c.Nodes[knows].Life
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
		if srv.kv.Fault() == nil {
			t.Error("it has not noticed")
		}
		c.Crash(knows)
		delete(c.Nodes, knows)
	})
}
