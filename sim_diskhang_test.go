//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/diskhang"
	"raftkv/internal/history"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/rounds"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
)

// ready reports whether a node says that it is ready.
func (c *simCluster) ready(id uint64) bool {
	status, _ := c.probe(id, "/readyz")
	return status == http.StatusOK
}

func (c *simCluster) awaitReady(ids ...uint64) {
	c.T.Helper()
	for _, id := range ids {
		c.Await(fmt.Sprintf("node %d to be ready", id), func() bool { return c.ready(id) })
	}
}

// http sends a write to a node's API.
func (c *simCluster) http(id uint64, method, key string) (status int, body string) {
	w := httptest.NewRecorder()
	openapitest.Serve(c.T, c.Nodes[id].Life.api, w, httptest.NewRequest(method, "http://127.0.0.1/"+key, strings.NewReader("v")))
	return w.Code, w.Body.String()
}

// Guarantee: a leader whose disk hangs hands leadership over to a node whose disk
// does not, soon, and writes go on there; it says that it is not ready until the
// disk answers again. Without this a cluster with one bad disk stands still.
func TestSimDiskHangsOnTheLeader(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitReady(1, 2, 3)
		for round := range 3 {
			// Also one that was asked to lead just before.
			old := c.Followers()[0]
			if _, err := c.Nodes[c.Leader()].Life.members.MoveLeader(context.Background(), old); err != nil {
				t.Fatal(err)
			}
			c.Await("all to know that it leads", func() bool {
				for _, id := range c.Up() {
					if l, _, _ := c.Nodes[id].Life.node.leaders.Get(); l != old {
						return false
					}
				}
				return true
			})
			disk := &c.Nodes[old].Disk
			disk.Set(sim.Hang)
			// One write, which nothing follows: also then the others have to be
			// found fit.
			lost := make(chan state.Result)
			go func() {
				res, _ := c.Do(1, old, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
				lost <- res
			}()
			began := time.Now()
			c.Await("another leader", func() bool {
				l, _, _ := c.Nodes[c.Followers()[0]].Life.node.leaders.Get()
				return l != 0 && l != old
			})
			// When it handed over 10 election timeouts ago, it may again.
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("round %d: another leader after %v", round, took)
			}
			for range 3 {
				v := c.Value()
				for _, id := range c.Up() {
					if id != old {
						c.Put(id, "k", v)
						c.Want(id, "k", v)
					}
				}
			}
			if c.ready(old) {
				t.Error("a node whose disk hangs is ready")
			}
			if status, body := c.http(old, http.MethodPut, "k"); status != http.StatusTooManyRequests || !strings.Contains(body, `"overloaded"`) {
				t.Errorf("a write there: %d %s", status, body)
			}
			if status, body := c.probe(old, "/livez"); status != http.StatusOK {
				t.Errorf("livez: %d %s", status, body)
			}
			if res := <-lost; !errors.Is(res.Err, problem.ErrOutcomeUnknown) {
				t.Errorf("the write that was under way: %v", res.Err)
			}
			time.Sleep(70 * time.Second) // longer than a loop may take for a step
			if status, body := c.probe(old, "/livez"); status != http.StatusOK {
				t.Errorf("livez: %d %s", status, body)
			}
			disk.Set(0)
			c.awaitReady(old)
			c.Put(old, "k", c.Value())
		}
	})
}

// Guarantee: with a leader whose disk hangs and that nobody can replace, a
// majority's disks or this node being needed, leadership stays, nothing is
// acknowledged, growing writes are refused, and it all ends with the hang.
func TestSimDiskHangsWhereNobodyCanTakeOver(t *testing.T) {
	for name, hung := range map[string]func(c *simCluster, leader uint64) []uint64{
		"one of three is down": func(c *simCluster, leader uint64) []uint64 {
			down := c.Followers()[0]
			c.Crash(down)
			return []uint64{leader}
		},
		"one follower's disk hangs too": func(c *simCluster, leader uint64) []uint64 { return []uint64{leader, c.Followers()[0]} },
		"all disks hang":                func(c *simCluster, _ uint64) []uint64 { return c.Up() },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.awaitReady(1, 2, 3)
				leader := c.Leader()
				_, term, _ := c.Nodes[leader].Life.node.leaders.Get()
				ids := hung(c, leader)
				for _, id := range ids {
					c.Nodes[id].Disk.Set(sim.Hang)
				}
				for _, id := range c.Up() {
					go c.http(id, http.MethodPut, fmt.Sprintf("from-%d", id))
				}
				time.Sleep(3 * time.Second)
				for range 30 {
					time.Sleep(time.Second)
					for _, id := range c.Up() {
						l, now, _ := c.Nodes[id].Life.node.leaders.Get()
						if l != leader || now != term {
							t.Fatalf("node %d follows %d in term %d, it was %d in term %d", id, l, now, leader, term)
						}
					}
					for _, id := range ids {
						if status, body := c.http(id, http.MethodPut, "refused"); status != http.StatusTooManyRequests {
							t.Fatalf("a write at node %d: %d %s", id, status, body)
						}
						if c.ready(id) {
							t.Fatalf("node %d is ready", id)
						}
					}
				}
				if status, body := c.http(leader, http.MethodDelete, "v1/kv/k"); status != http.StatusGatewayTimeout {
					t.Errorf("a delete: %d %s", status, body)
				}
				for _, id := range ids {
					c.Nodes[id].Disk.Set(0)
				}
				c.awaitReady(c.Up()...)
				c.Put(leader, "k", c.Value())
				if status, _ := c.http(leader, http.MethodGet, "refused"); status != http.StatusNotFound {
					t.Errorf("what was refused: %d", status)
				}
			})
		})
	}
}

// Guarantee: a follower whose disk hangs is not ready, does not stand for
// election, is not made leader, and disturbs nobody.
func TestSimDiskHangsOnAFollower(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitReady(1, 2, 3)
		leader, victim := c.Leader(), c.Followers()[0]
		_, term, _ := c.Nodes[leader].Life.node.leaders.Get()
		c.Nodes[victim].Disk.Set(sim.Hang)
		c.Put(leader, "k", c.Value())
		time.Sleep(3 * time.Second)
		if c.ready(victim) {
			t.Error("it is ready")
		}
		v := c.Value()
		c.Put(leader, "k", v)
		c.Want(leader, "k", v)
		if err := c.Nodes[leader].Life.node.call(context.Background(), func(rn *raft.RawNode) { rn.TransferLeader(victim) }); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		c.Put(leader, "k", c.Value())
		c.Net.Isolate(victim, slices.DeleteFunc(c.Up(), func(id uint64) bool { return id == victim })...)
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if role := c.Nodes[victim].Life.node.status.Load().Role; role != raft.StateFollower {
				t.Fatalf("it stands for election: %v", role)
			}
		}
		c.Net.Heal()
		c.Put(leader, "k", c.Value())
		if l, now, _ := c.Nodes[leader].Life.node.leaders.Get(); l != leader || now != term {
			t.Errorf("node %d leads in term %d, it was %d in term %d", l, now, leader, term)
		}
		c.Nodes[victim].Disk.Set(0)
		c.awaitReady(victim)
	})
}

// Guarantee: disks that are merely slow move no leadership and make nobody
// unready: 100 to 900 ms a sync, on one node or all, also where saving takes three
// of them.
func TestSimSlowDisksAreNoHang(t *testing.T) {
	for _, tt := range []struct {
		slow time.Duration
		all  bool
	}{{100, true}, {400, true}, {900, true}, {400, false}} {
		t.Run(fmt.Sprintf("%d ms, all: %t", tt.slow, tt.all), func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.awaitReady(1, 2, 3)
				leader := c.Leader()
				_, term, _ := c.Nodes[leader].Life.node.leaders.Get()
				for id, n := range c.Nodes {
					if tt.all || id == leader {
						n.Disk.Set(tt.slow * time.Millisecond)
					}
				}
				var wg sync.WaitGroup
				stop := make(chan struct{})
				for i := range 6 {
					wg.Go(func() {
						for {
							select {
							case <-stop:
								return
							case <-time.After(200 * time.Millisecond):
								c.Do(i, uint64(i%3)+1, history.Input{Kind: history.Put, Key: fmt.Sprintf("k%d", i), Value: c.Value()})
							}
						}
					})
				}
				for i := range 200 {
					time.Sleep(100 * time.Millisecond)
					if i%50 == 49 { // a new segment: three syncs in one save
						c.Nodes[leader].Disk.Set(3 * tt.slow * time.Millisecond)
						time.Sleep(3 * tt.slow * time.Millisecond)
						c.Nodes[leader].Disk.Set(tt.slow * time.Millisecond)
					}
					for _, id := range c.Up() {
						if c.Nodes[id].Life.node.disk.Hanging.Load() {
							t.Errorf("after %d ms the disk of node %d is said to hang", 100*i, id)
						}
					}
				}
				close(stop)
				wg.Wait()
				for _, id := range c.Up() {
					if l, now, _ := c.Nodes[id].Life.node.leaders.Get(); l != leader || now != term {
						t.Errorf("node %d leads in term %d, it was %d in term %d", l, now, leader, term)
					}
				}
				for _, n := range c.Nodes {
					n.Disk.Set(0)
				}
			})
		})
	}
}

// Guarantee: disks so slow that they pass for hanging do not make leadership
// wander: it moves for them no more than once in ten election timeouts.
func TestSimDisksBeyondTheLimit(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitReady(1, 2, 3)
		_, before, _ := c.Nodes[1].Life.node.leaders.Get()
		stop := time.Now().Add(time.Minute)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for time.Now().Before(stop) {
					c.Do(i, uint64(i%3)+1, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		for time.Now().Before(stop) { // whoever leads has the slowest
			leader := c.Leader()
			for id, n := range c.Nodes {
				if id == leader {
					n.Disk.Set(4500 * time.Millisecond)
				} else {
					n.Disk.Set(200 * time.Millisecond)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		wg.Wait()
		_, after, _ := c.Nodes[1].Life.node.leaders.Get()
		t.Logf("%d changes of term in a minute", after-before)
		if after-before == 0 || after-before > 7 {
			t.Errorf("leadership changed %d times in a minute", after-before)
		}
		for _, n := range c.Nodes {
			n.Disk.Set(0)
		}
	})
}

// Guarantee: what a leader takes in while its disk hangs, for as long as it stays
// leader, is bounded. Without this a cluster with one bad disk ends by that
// node's memory.
func TestSimDiskHangIsBounded(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitReady(1, 2, 3)
		leader, others := c.Leader(), c.Followers()
		node := c.Nodes[leader].Life.node
		const room = 1 << 20
		testkit.Must(t, node.call(context.Background(), func(*raft.RawNode) {
			d := node.disk
			d.Room, d.Moved = room, d.Tick // as if it had just come to lead, it stays for a while
		}))
		c.Nodes[leader].Disk.Set(sim.Hang)
		value := []byte(strings.Repeat("x", 32<<10))
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for range 16 {
					srv := c.Nodes[others[i%2]].Life
					srv.proposals.Propose(context.Background(), state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprintf("k%d", i), value))
				}
			})
		}
		highest := 0
		for range 40 {
			time.Sleep(100 * time.Millisecond)
			testkit.Must(t, node.call(context.Background(), func(*raft.RawNode) {
				highest = max(highest, node.disk.Queued.Bytes+node.disk.Handed.Bytes)
			}))
		}
		// It is passed by what comes before raft is asked what follows.
		if highest < room || highest > 2*room {
			t.Errorf("%d KiB were on their way to the disk, %d may be", highest>>10, room>>10)
		}
		testkit.Must(t, node.call(context.Background(), func(*raft.RawNode) {
			node.propose(rounds.Proposal{Data: value, Done: func(taken bool, _ uint64, _ bool) {
				if taken {
					t.Error("a proposal of its own is taken in")
				}
			}})
		}))
		c.Nodes[leader].Disk.Set(0)
		wg.Wait()
		c.awaitReady(1, 2, 3)
	})
}

// A process that was stopped for a while does not take its own absence for a
// hang of its disk: ticks that nobody took do not count.
func TestSimPauseIsNoHang(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.awaitReady(1)
		node := c.Nodes[1].Life.node
		c.Nodes[1].Disk.Set(500 * time.Millisecond)
		go c.Do(1, 1, history.Input{Kind: history.Put, Key: "k", Value: c.Value()})
		time.Sleep(10 * time.Millisecond)
		// Stopping the loop that counts is as near as this comes to a process
		// that is stopped as a whole.
		testkit.Must(t, node.call(context.Background(), func(*raft.RawNode) { time.Sleep(20 * time.Second) }))
		synctest.Wait()
		if node.disk.Hanging.Load() {
			t.Error("the disk is said to hang")
		}
	})
}

// What waits for a leader's first commit is bounded; whoever asked asks again.
func TestSimHeldReadsAreBounded(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.awaitReady(1)
		n := c.Nodes[1].Life.node
		testkit.Must(t, n.call(context.Background(), func(*raft.RawNode) {
			term := n.loop.committedTerm
			n.loop.committedTerm = 0
			for range diskhang.MaxHeldReads {
				n.readIndex(n.newRound(make([]byte, rounds.RoundContext)))
			}
			if len(n.loop.held) != diskhang.MaxHeldReads {
				t.Errorf("%d are held", len(n.loop.held))
			}
			if n.readIndex(n.newRound(make([]byte, rounds.RoundContext))); len(n.loop.held) != diskhang.MaxHeldReads {
				t.Errorf("%d are held", len(n.loop.held))
			}
			n.loop.committedTerm, n.loop.held = term, nil
		}))
	})
}
