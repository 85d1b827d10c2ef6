//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"raftkv/internal/checker"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
)

// request makes a request of a client to a node, and returns the status and, of
// a problem, its code.
func (c *simCluster) request(id uint64, method, target, body string) (status int, code string) {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:9121"
	w := httptest.NewRecorder()
	openapitest.Serve(c.T, c.Nodes[id].Life.api, w, r)
	var p struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &p) // a value is no problem
	return w.Code, p.Code
}

// alter changes a node's state behind raft's back.
func (c *simCluster) alter(id uint64, key, value string) {
	kv := c.Nodes[id].Life.kv
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.state = statetest.Altered(c.T, kv.state, key, value)
}

// flip alters a value where it lies in a node's memory.
func (c *simCluster) flip(id uint64, key string) {
	c.T.Helper()
	kv := c.Nodes[id].Life.kv
	kv.mu.Lock()
	defer kv.mu.Unlock()
	it := kv.state.Get(key)
	if it == nil {
		c.T.Fatalf("node %d has no %s", id, key)
	}
	it.Bytes()[0] ^= 1
}

// awaitLevel waits until the cluster makes checks.
func (c *simCluster) awaitLevel(ids ...uint64) {
	c.T.Helper()
	c.Await("all nodes to know that all know checks", func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return c.Nodes[id].Life.kv.Status().Level < state.CheckLevel })
	})
}

func (c *simCluster) checked(id uint64) uint64 { return c.Nodes[id].Life.kv.Status().Checked }

// awaitCheck waits until the nodes have seen a check of what is applied now.
func (c *simCluster) awaitCheck(ids ...uint64) {
	c.T.Helper()
	after := c.Nodes[ids[0]].Life.kv.Status().Index
	c.Await("a check", func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return c.checked(id) <= after })
	})
}

func (c *simCluster) awaitFault(want error, ids ...uint64) {
	c.T.Helper()
	c.Await(fmt.Sprint("nodes ", ids, " to find: ", want), func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return !errors.Is(c.Nodes[id].Life.kv.Fault(), want) })
	})
}

// wantRefused asks a node for everything that needs its state.
func (c *simCluster) wantRefused(id uint64) {
	c.T.Helper()
	for _, what := range []string{"GET /k", "GET /k?consistency=stale", "PUT /k", "DELETE /v1/kv/k", "GET /v1/members", "POST /9", "GET /"} {
		method, target, _ := strings.Cut(what, " ")
		if status, code := c.request(id, method, target, "x"); status != http.StatusServiceUnavailable || code != "diverged" {
			c.T.Errorf("%s on node %d: %d %s", what, id, status, code)
		}
	}
	for target, want := range map[string]int{"/livez": 200, "/metrics": 200, "/v1/status": 200, "/readyz": 503} {
		if status, _ := c.request(id, "GET", target, ""); status != want {
			c.T.Errorf("%s on node %d: %d, want %d", target, id, status, want)
		}
	}
}

// A replica whose state is not that of the others is found by the next check,
// whether it leads or not. It serves nothing and does not lead; the others go
// on; a new node in its place makes the cluster whole.
func TestSimAlteredReplica(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("leads=%v", leads), func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				victim := c.Leader()
				if !leads {
					victim = c.Followers()[0]
				}
				others := slices.DeleteFunc(c.Up(), func(id uint64) bool { return id == victim })
				c.awaitLevel(c.Up()...)
				v := c.Value()
				c.Put(others[0], "k", v)
				c.awaitCheck(c.Up()...)

				began := time.Now()
				c.Put(others[0], "other", c.Value())
				c.alter(victim, "secret", "not in the log")
				c.awaitFault(problem.ErrDiverged, victim)
				if took := time.Since(began); took > 11*time.Second {
					t.Errorf("it took %v", took)
				}
				c.wantRefused(victim)
				c.Await("another leader", func() bool {
					l, _, _ := c.Nodes[others[0]].Life.node.leaders.Get()
					return l != victim && l != 0
				})
				for _, id := range others {
					c.Want(id, "k", v)
					v = c.Value()
					c.Put(id, "k", v)
				}
				c.wantRefused(victim)
				// It can be made leader, but does not stay it.
				leader := c.Leader()
				err := c.Nodes[leader].Life.node.call(context.Background(), func(rn *raft.RawNode) { rn.TransferLeader(victim) })
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				if c.Leader() == victim {
					t.Error("the node that has diverged leads")
				}
				if err := c.change(others[0], reconfig.Request{Op: membership.OpRemove, ID: victim}); err != nil {
					t.Fatal(err)
				}
				if err := c.Ended(victim); !errors.Is(err, problem.ErrRemoved) {
					t.Errorf("it ended with: %v", err)
				}
				if err := c.change(others[0], addRequest(4)); err != nil {
					t.Fatal(err)
				}
				c.Join(4)
				c.awaitVoter(others[0], 4)
				c.Want(4, "k", v)
				c.awaitFault(nil, c.Up()...)
				c.Put(4, "k", c.Value())
				c.awaitCheck(c.Up()...)
			})
		})
	}
}

// A state file in which something else stands, with all checksums in order, is
// found by the next check after the start from it.
func TestSimAlteredOnDisk(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		v := c.Value()
		c.Put(3, "k", v)
		index := c.Nodes[3].Life.kv.Status().Index
		c.Nodes[3].Life.kv.AskForSnapshot(c.Nodes[3].Life.kv.applied.Get())
		c.Await("a snapshot", func() bool { return c.Nodes[3].Life.storage.SnapIndex.Load() >= index })
		index = c.Nodes[3].Life.storage.SnapIndex.Load()
		c.Crash(3)
		files, err := filepath.Glob(filepath.Join(c.Nodes[3].Dir, "snap", fmt.Sprintf("*-%016x.state", index)))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		st, _, err := state.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		st.Get("k").Bytes()[0] ^= 1
		st.Sum = state.HashItems(&st.Items)
		if err := durable.WriteFile(files[0], func(w io.Writer) error { return state.Write(w, st) }); err != nil {
			t.Fatal(err)
		}
		c.Start(3)
		c.Put(1, "other", c.Value())
		c.awaitFault(problem.ErrDiverged, 3)
		c.awaitFault(nil, 1, 2)
		c.Want(1, "k", v)
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 3}); err != nil {
			t.Fatal(err)
		}
		if err := c.Ended(3); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("it ended with: %v", err)
		}
	})
}

// Bytes that change in memory are found by the next full check; by the next
// check of any kind once the key is written again.
func TestSimFlippedInMemory(t *testing.T) {
	for _, overwritten := range []bool{false, true} {
		t.Run(fmt.Sprintf("overwritten=%v", overwritten), func(t *testing.T) {
			simulate(t, 3, func(c *simCluster) {
				c.Leader()
				c.awaitLevel(c.Up()...)
				c.Put(1, "k", c.Value())
				c.awaitCheck(c.Up()...)
				c.flip(3, "k")
				c.Put(1, "other", c.Value())
				c.awaitCheck(1, 2, 3)
				if err := c.Nodes[3].Life.kv.Fault(); err != nil {
					t.Fatalf("a check of the sum alone says: %v", err)
				}
				if overwritten {
					began := time.Now()
					c.Put(1, "k", c.Value())
					c.awaitFault(problem.ErrDiverged, 3)
					if took := time.Since(began); took > 11*time.Second {
						t.Errorf("it took %v", took)
					}
				} else {
					time.Sleep(checker.FullEvery * 10 * time.Second) // an idle cluster's, too
					c.awaitFault(problem.ErrDiverged, 3)
					if !c.Nodes[3].Life.kv.agreement.Unsound.Load() {
						t.Error("it did not find it by itself")
					}
				}
				c.wantRefused(3)
				c.awaitFault(nil, 1, 2)
				if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 3}); err != nil {
					t.Fatal(err)
				}
				if err := c.Ended(3); !errors.Is(err, problem.ErrRemoved) {
					t.Errorf("it ended with: %v", err)
				}
			})
		})
	}
}

// Without a majority for any hash all stop, and a restart changes nothing.
func TestSimNoMajority(t *testing.T) {
	for n := 2; n <= 3; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			simulate(t, n, func(c *simCluster) {
				c.Leader()
				c.awaitLevel(c.Up()...)
				c.Put(1, "k", c.Value())
				for id := 2; id <= n; id++ {
					c.alter(uint64(id), fmt.Sprint("secret", id), "x")
				}
				// On disk, so that a restart does not make it good.
				for _, id := range c.Up() {
					srv := c.Nodes[id].Life
					index := srv.kv.Status().Index
					srv.kv.AskForSnapshot(srv.kv.applied.Get())
					c.Await("a snapshot", func() bool { return srv.storage.SnapIndex.Load() >= index })
				}
				c.awaitFault(problem.ErrNoMajority, c.Up()...)
				for _, id := range c.Up() {
					c.wantRefused(id)
				}
				for _, id := range c.Up() {
					c.Crash(id)
				}
				for id := range c.Nodes {
					c.Start(id)
				}
				time.Sleep(time.Minute)
				for _, id := range c.Up() {
					c.wantRefused(id)
				}
				c.GiveUp()
			})
		})
	}
}

// What was altered in memory alone is made good by a restart: then a majority
// agrees, and the cluster serves again by itself.
func TestSimNoMajorityIsSettled(t *testing.T) {
	simulate(t, 2, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(1, 2)
		v := c.Value()
		c.Put(1, "k", v)
		c.alter(2, "secret", "altered")
		c.awaitFault(problem.ErrNoMajority, 1, 2)
		at := c.Nodes[1].Life.kv.Status().Index
		c.Crash(2)
		c.Start(2)
		c.Await("a check", func() bool { return c.checked(1) > at && c.checked(2) > at })
		c.awaitFault(nil, 1, 2)
		c.Want(2, "k", v)
	})
}

// A node by itself finds with a full check that its memory has failed. Started
// again it serves what is on its disk.
func TestSimLoneNode(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(1)
		v := c.Value()
		c.Put(1, "k", v)
		c.awaitCheck(1)
		c.flip(1, "k")
		time.Sleep(checker.FullEvery * 10 * time.Second)
		c.awaitFault(problem.ErrMemory, 1)
		time.Sleep(time.Minute)
		c.awaitFault(problem.ErrMemory, 1)
		c.wantRefused(1)
		at := c.Nodes[1].Life.kv.Status().Index
		c.Crash(1)
		c.Start(1)
		c.Await("a check", func() bool { return c.checked(1) > at })
		c.awaitFault(nil, 1)
		c.Want(1, "k", v)
	})
}

// With one voter down the other two are a majority, if they agree. If not, they
// stop by the next check, until the third decides.
func TestSimCheckWithoutOne(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.Leader()
		c.awaitLevel(c.Up()...)
		c.Put(1, "k", c.Value())
		c.awaitCheck(c.Up()...)
		c.Crash(3)
		c.Put(c.Leader(), "k", c.Value())
		c.awaitCheck(1, 2)
		c.awaitFault(nil, 1, 2)

		c.Put(c.Leader(), "k", c.Value())
		c.alter(2, "secret", "altered")
		c.awaitFault(problem.ErrNoMajority, 1, 2)
		c.Start(3)
		c.awaitFault(problem.ErrDiverged, 2)
		c.awaitFault(nil, 1, 3)
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 2}); err != nil {
			t.Fatal(err)
		}
		if err := c.Ended(2); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("it ended with: %v", err)
		}
	})
}

// A leader that has diverged and cannot hand over sends nobody its state.
func TestSimDivergedLeaderSendsNoSnapshot(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 20 }
	simulateWith(t, 3, small, func(c *simCluster) {
		leader := c.Leader()
		behind, other := c.Followers()[0], c.Followers()[1]
		c.awaitLevel(c.Up()...)
		c.Put(leader, "k", c.Value())
		c.awaitCheck(c.Up()...)
		c.Crash(behind)
		at := c.Nodes[leader].Life.kv.Status().Index
		big := string(make([]byte, 1<<20))
		for range 40 {
			c.Put(leader, "big", c.Value()+big)
		}
		var first uint64
		c.Await("a log that is too short for the other", func() bool {
			var err error
			first, err = c.Nodes[leader].Life.storage.Mem.FirstIndex()
			return err == nil && first > at+1
		})
		c.Nodes[leader].Life.kv.agreement.Unsound.Store(true)
		c.Net.Isolate(other, leader, behind) // so that there is nobody to hand over to
		c.Start(behind)
		time.Sleep(30 * time.Second)
		if at := c.Nodes[behind].Life.kv.Status().Index; at >= first {
			t.Errorf("node %d was brought to %d, behind the log of the leader, by a node that has diverged", behind, at)
		}
		c.Crash(leader)
		c.Start(leader) // its memory is what it was
	})
}
