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
	c.nodes[id].srv.api.ServeHTTP(w, r)
	var p struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &p) // a value is no problem
	return w.Code, p.Code
}

// alter changes a node's state behind raft's back.
func (c *simCluster) alter(id uint64, key, value string) {
	kv := c.nodes[id].srv.kv
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.state = statetest.Altered(c.t, kv.state, key, value)
}

// flip alters a value where it lies in a node's memory.
func (c *simCluster) flip(id uint64, key string) {
	c.t.Helper()
	kv := c.nodes[id].srv.kv
	kv.mu.Lock()
	defer kv.mu.Unlock()
	it := kv.state.Get(key)
	if it == nil {
		c.t.Fatalf("node %d has no %s", id, key)
	}
	it.Value[0] ^= 1
}

// awaitLevel waits until the cluster makes checks.
func (c *simCluster) awaitLevel(ids ...uint64) {
	c.t.Helper()
	c.await("all nodes to know that all know checks", func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return c.nodes[id].srv.kv.Status().Level < state.CheckLevel })
	})
}

func (c *simCluster) checked(id uint64) uint64 { return c.nodes[id].srv.kv.Status().Checked }

// awaitCheck waits until the nodes have seen a check of what is applied now.
func (c *simCluster) awaitCheck(ids ...uint64) {
	c.t.Helper()
	after := c.nodes[ids[0]].srv.kv.Status().Index
	c.await("a check", func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return c.checked(id) <= after })
	})
}

func (c *simCluster) awaitFault(want error, ids ...uint64) {
	c.t.Helper()
	c.await(fmt.Sprint("nodes ", ids, " to find: ", want), func() bool {
		return !slices.ContainsFunc(ids, func(id uint64) bool { return !errors.Is(c.nodes[id].srv.kv.Sound(), want) })
	})
}

// giveUp ends a test whose cluster cannot serve any more.
func (c *simCluster) giveUp() {
	c.close()
	c.nodes, c.history = map[uint64]*simNode{}, nil
}

// wantRefused asks a node for everything that needs its state.
func (c *simCluster) wantRefused(id uint64) {
	c.t.Helper()
	for _, what := range []string{"GET /k", "GET /k?consistency=stale", "PUT /k", "DELETE /v1/kv/k", "GET /v1/members", "POST /9", "GET /"} {
		method, target, _ := strings.Cut(what, " ")
		if status, code := c.request(id, method, target, "x"); status != http.StatusServiceUnavailable || code != "diverged" {
			c.t.Errorf("%s on node %d: %d %s", what, id, status, code)
		}
	}
	for target, want := range map[string]int{"/livez": 200, "/metrics": 200, "/v1/status": 200, "/readyz": 503} {
		if status, _ := c.request(id, "GET", target, ""); status != want {
			c.t.Errorf("%s on node %d: %d, want %d", target, id, status, want)
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
				victim := c.leader()
				if !leads {
					victim = c.followers()[0]
				}
				others := slices.DeleteFunc(c.up(), func(id uint64) bool { return id == victim })
				c.awaitLevel(c.up()...)
				v := c.value()
				c.put(others[0], "k", v)
				c.awaitCheck(c.up()...)

				began := time.Now()
				c.put(others[0], "other", c.value())
				c.alter(victim, "secret", "not in the log")
				c.awaitFault(problem.ErrDiverged, victim)
				if took := time.Since(began); took > 11*time.Second {
					t.Errorf("it took %v", took)
				}
				c.wantRefused(victim)
				c.await("another leader", func() bool {
					l, _, _ := c.nodes[others[0]].srv.node.leaders.Get()
					return l != victim && l != 0
				})
				for _, id := range others {
					c.want(id, "k", v)
					v = c.value()
					c.put(id, "k", v)
				}
				c.wantRefused(victim)
				// It can be made leader, but does not stay it.
				leader := c.leader()
				err := c.nodes[leader].srv.node.call(context.Background(), func(rn *raft.RawNode) { rn.TransferLeader(victim) })
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				if c.leader() == victim {
					t.Error("the node that has diverged leads")
				}
				if err := c.change(others[0], reconfig.Request{Op: membership.OpRemove, ID: victim}); err != nil {
					t.Fatal(err)
				}
				if err := c.ended(victim); !errors.Is(err, problem.ErrRemoved) {
					t.Errorf("it ended with: %v", err)
				}
				if err := c.change(others[0], addRequest(4)); err != nil {
					t.Fatal(err)
				}
				c.join(4)
				c.awaitVoter(others[0], 4)
				c.want(4, "k", v)
				c.awaitFault(nil, c.up()...)
				c.put(4, "k", c.value())
				c.awaitCheck(c.up()...)
			})
		})
	}
}

// A state file in which something else stands, with all checksums in order, is
// found by the next check after the start from it.
func TestSimAlteredOnDisk(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.leader()
		c.awaitLevel(c.up()...)
		v := c.value()
		c.put(3, "k", v)
		index := c.nodes[3].srv.kv.Status().Index
		c.nodes[3].srv.kv.AskForSnapshot(c.nodes[3].srv.kv.applied.Get())
		c.await("a snapshot", func() bool { return c.nodes[3].srv.storage.SnapIndex.Load() >= index })
		index = c.nodes[3].srv.storage.SnapIndex.Load()
		c.crash(3)
		files, err := filepath.Glob(filepath.Join(c.nodes[3].dir, "snap", fmt.Sprintf("*-%016x.state", index)))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		st, _, err := state.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		st.Get("k").Value[0] ^= 1
		st.Sum = state.HashItems(&st.Items)
		if err := durable.WriteFile(files[0], func(w io.Writer) error { return state.Write(w, st) }); err != nil {
			t.Fatal(err)
		}
		c.start(3)
		c.put(1, "other", c.value())
		c.awaitFault(problem.ErrDiverged, 3)
		c.awaitFault(nil, 1, 2)
		c.want(1, "k", v)
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 3}); err != nil {
			t.Fatal(err)
		}
		if err := c.ended(3); !errors.Is(err, problem.ErrRemoved) {
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
				c.leader()
				c.awaitLevel(c.up()...)
				c.put(1, "k", c.value())
				c.awaitCheck(c.up()...)
				c.flip(3, "k")
				c.put(1, "other", c.value())
				c.awaitCheck(1, 2, 3)
				if err := c.nodes[3].srv.kv.Sound(); err != nil {
					t.Fatalf("a check of the sum alone says: %v", err)
				}
				if overwritten {
					began := time.Now()
					c.put(1, "k", c.value())
					c.awaitFault(problem.ErrDiverged, 3)
					if took := time.Since(began); took > 11*time.Second {
						t.Errorf("it took %v", took)
					}
				} else {
					time.Sleep(checker.FullEvery * 10 * time.Second) // an idle cluster's, too
					c.awaitFault(problem.ErrDiverged, 3)
					if !c.nodes[3].srv.kv.agreement.Unsound.Load() {
						t.Error("it did not find it by itself")
					}
				}
				c.wantRefused(3)
				c.awaitFault(nil, 1, 2)
				if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 3}); err != nil {
					t.Fatal(err)
				}
				if err := c.ended(3); !errors.Is(err, problem.ErrRemoved) {
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
				c.leader()
				c.awaitLevel(c.up()...)
				c.put(1, "k", c.value())
				for id := 2; id <= n; id++ {
					c.alter(uint64(id), fmt.Sprint("secret", id), "x")
				}
				// On disk, so that a restart does not make it good.
				for _, id := range c.up() {
					srv := c.nodes[id].srv
					index := srv.kv.Status().Index
					srv.kv.AskForSnapshot(srv.kv.applied.Get())
					c.await("a snapshot", func() bool { return srv.storage.SnapIndex.Load() >= index })
				}
				c.awaitFault(problem.ErrNoMajority, c.up()...)
				for _, id := range c.up() {
					c.wantRefused(id)
				}
				for _, id := range c.up() {
					c.crash(id)
				}
				for id := range c.nodes {
					c.start(id)
				}
				time.Sleep(time.Minute)
				for _, id := range c.up() {
					c.wantRefused(id)
				}
				c.giveUp()
			})
		})
	}
}

// What was altered in memory alone is made good by a restart: then a majority
// agrees, and the cluster serves again by itself.
func TestSimNoMajorityIsSettled(t *testing.T) {
	simulate(t, 2, func(c *simCluster) {
		c.leader()
		c.awaitLevel(1, 2)
		v := c.value()
		c.put(1, "k", v)
		c.alter(2, "secret", "altered")
		c.awaitFault(problem.ErrNoMajority, 1, 2)
		at := c.nodes[1].srv.kv.Status().Index
		c.crash(2)
		c.start(2)
		c.await("a check", func() bool { return c.checked(1) > at && c.checked(2) > at })
		c.awaitFault(nil, 1, 2)
		c.want(2, "k", v)
	})
}

// A node by itself finds with a full check that its memory has failed. Started
// again it serves what is on its disk.
func TestSimLoneNode(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.leader()
		c.awaitLevel(1)
		v := c.value()
		c.put(1, "k", v)
		c.awaitCheck(1)
		c.flip(1, "k")
		time.Sleep(checker.FullEvery * 10 * time.Second)
		c.awaitFault(problem.ErrMemory, 1)
		time.Sleep(time.Minute)
		c.awaitFault(problem.ErrMemory, 1)
		c.wantRefused(1)
		at := c.nodes[1].srv.kv.Status().Index
		c.crash(1)
		c.start(1)
		c.await("a check", func() bool { return c.checked(1) > at })
		c.awaitFault(nil, 1)
		c.want(1, "k", v)
	})
}

// With one voter down the other two are a majority, if they agree. If not, they
// stop by the next check, until the third decides.
func TestSimCheckWithoutOne(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.leader()
		c.awaitLevel(c.up()...)
		c.put(1, "k", c.value())
		c.awaitCheck(c.up()...)
		c.crash(3)
		c.put(c.leader(), "k", c.value())
		c.awaitCheck(1, 2)
		c.awaitFault(nil, 1, 2)

		c.put(c.leader(), "k", c.value())
		c.alter(2, "secret", "altered")
		c.awaitFault(problem.ErrNoMajority, 1, 2)
		c.start(3)
		c.awaitFault(problem.ErrDiverged, 2)
		c.awaitFault(nil, 1, 3)
		if err := c.change(1, reconfig.Request{Op: membership.OpRemove, ID: 2}); err != nil {
			t.Fatal(err)
		}
		if err := c.ended(2); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("it ended with: %v", err)
		}
	})
}

// A leader that has diverged and cannot hand over sends nobody its state.
func TestSimDivergedLeaderSendsNoSnapshot(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 20 }
	simulateWith(t, 3, small, func(c *simCluster) {
		leader := c.leader()
		behind, other := c.followers()[0], c.followers()[1]
		c.awaitLevel(c.up()...)
		c.put(leader, "k", c.value())
		c.awaitCheck(c.up()...)
		c.crash(behind)
		at := c.nodes[leader].srv.kv.Status().Index
		big := string(make([]byte, 1<<20))
		for range 40 {
			c.put(leader, "big", c.value()+big)
		}
		var first uint64
		c.await("a log that is too short for the other", func() bool {
			var err error
			first, err = c.nodes[leader].srv.storage.Mem.FirstIndex()
			return err == nil && first > at+1
		})
		c.nodes[leader].srv.kv.agreement.Unsound.Store(true)
		c.net.isolate(other, leader, behind) // so that there is nobody to hand over to
		c.start(behind)
		time.Sleep(30 * time.Second)
		if at := c.nodes[behind].srv.kv.Status().Index; at >= first {
			t.Errorf("node %d was brought to %d, behind the log of the leader, by a node that has diverged", behind, at)
		}
		c.crash(leader)
		c.start(leader) // its memory is what it was
	})
}
