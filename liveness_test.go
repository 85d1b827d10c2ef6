//go:build unix

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/diskhang"
	"raftkv/internal/doors"
	"raftkv/internal/liveness"
	"raftkv/internal/membership"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/supervisor"
	"raftkv/internal/suspect"
	"raftkv/internal/testkit"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// probe asks a node of a simulation for its health.
func (c *simCluster) probe(id uint64, path string) (status int, body string) {
	w := httptest.NewRecorder()
	openapitest.Serve(c.T, c.Nodes[id].Life.api, w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+path, nil))
	return w.Code, w.Body.String()
}

// Guarantee: a node whose loop does not come round for a minute says so, and
// which, at /livez, and before and after that it says nothing of the kind.
// Without this an orchestrator never starts it again.
func TestSimLivezNamesTheLoop(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitReady(1, 2, 3) // a read that waits would have the reader loop wait, too
		victim := c.Followers()[0]
		srv := c.Nodes[victim].Life
		release := make(chan struct{})
		go func() {
			if err := srv.node.call(context.Background(), func(*raft.RawNode) { <-release }); err != nil {
				t.Error(err)
			}
		}()
		for began := time.Now(); time.Since(began) < (liveness.StuckAfter-2)*liveness.LiveInterval; time.Sleep(liveness.LiveInterval) {
			if status, body := c.probe(victim, "/livez"); status != http.StatusOK {
				t.Fatalf("after %v: %d %s", time.Since(began), status, body)
			}
		}
		time.Sleep(5 * liveness.LiveInterval)
		status, body := c.probe(victim, "/livez")
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "the raft loop for 1m") || !strings.Contains(body, `"code":"stuck"`) {
			t.Errorf("%d %s", status, body)
		}
		for _, loop := range []string{"persist", "apply", "reader"} {
			if strings.Contains(body, loop) {
				t.Errorf("the %s loop is named: %s", loop, body)
			}
		}
		close(release)
		time.Sleep(2 * liveness.LiveInterval)
		if status, body := c.probe(victim, "/livez"); status != http.StatusOK {
			t.Errorf("when it comes round again: %d %s", status, body)
		}
		for _, id := range c.Up() {
			if err := c.Nodes[id].Life.live.Check(); err != nil {
				t.Errorf("node %d: %v", id, err)
			}
		}
	})
}

// Guarantee: a node whose loop hangs sends the service manager no more signs of life, so that
// a watchdog starts it again, and says why; the others go on. This is over a real socket.
func TestSimHungLoopEndsSignsOfLife(t *testing.T) {
	const victim = 3
	socket, take := testkit.ServiceManager(t)
	env := map[string]string{"NOTIFY_SOCKET": socket, "WATCHDOG_USEC": "3000000"}
	find := func(name string) (string, bool) { return env[name], env[name] != "" }
	manage := func(cfg *config.Config) {
		if cfg.ID == victim {
			cfg.Manager = supervisor.Find(find, os.Getpid())
		}
	}
	simulateWith(t, 3, manage, func(c *simCluster) {
		c.awaitReady(1, 2, 3)
		signs := func(after time.Duration) (n int, told []string) {
			take()
			for began := time.Now(); time.Since(began) < after; {
				time.Sleep(time.Second) // a socket holds few datagrams
				for _, line := range take() {
					if line == "WATCHDOG=1" {
						n++
					} else {
						told = append(told, line)
					}
				}
			}
			return n, told
		}
		if n, told := signs(10 * time.Second); n < 9 || n > 11 {
			t.Errorf("%d signs of life in 10 s, and %q", n, told)
		}
		release := make(chan struct{})
		go func() {
			if err := c.Nodes[victim].Life.node.call(context.Background(), func(*raft.RawNode) { <-release }); err != nil {
				t.Error(err)
			}
		}()
		if n, told := signs((liveness.StuckAfter - 2) * liveness.LiveInterval); n < liveness.StuckAfter-4 {
			t.Errorf("%d signs of life while it is not yet known that a loop hangs, and %q", n, told)
		}
		_, why := signs(5 * liveness.LiveInterval)
		if !strings.Contains(strings.Join(why, "\n"), "the raft loop for 1m") {
			t.Errorf("the status does not say what hangs: %q", why)
		}
		if n, told := signs(time.Minute); n > 0 {
			t.Errorf("%d signs of life of a node that hangs, and %q", n, told)
		}
		close(release)
		time.Sleep(2 * liveness.LiveInterval)
		if n, told := signs(10 * time.Second); n < 9 || n > 11 {
			t.Errorf("when it comes round again, %d signs of life in 10 s, and %q", n, told)
		}
	})
}

// A node that loads a snapshot is alive, however long that takes, but not ready.
func TestLoadingASnapshotIsNoHang(t *testing.T) {
	kv := newTestStore()
	kv.pulse = liveness.NewPulse("apply")
	kv.snapshots, kv.writer = make(chan *state.State, 1), make(chan struct{}, 1)
	file, leader, err := os.Pipe() // of which the end is long in coming
	testkit.Must(t, err)
	done := make(chan error)
	go func() {
		done <- kv.install(file, func(uint64, *raftpb.ConfChange, membership.Membership) error { return nil })
	}()
	node := &raftNode{disk: &diskhang.Watch{}, doubts: &suspect.Doubts{}}
	node.status.Store(&contact.RaftStatus{})
	s := &server{kv: kv, node: node, caughtUp: new(atomic.Bool)}
	kv.doors = doors.New(kv.log, 1, 1, config.Doors{})
	ready := func() bool {
		for _, c := range s.readyChecks() {
			if c.Name == "is not loading a snapshot" {
				return c.Ok
			}
		}
		t.Fatal("it is not checked")
		return false
	}
	for began := time.Now(); kv.pulse.Excuse.Load() != liveness.LoadingSnapshot; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("it does not say that it is loading one")
		}
	}
	if !ready() {
		t.Error("not ready from the first moment")
	}
	for range 2 * liveness.StuckAfter {
		kv.pulse.Ask()
	}
	if ready() || kv.pulse.Stuck() {
		t.Errorf("ready: %t, stuck: %t", ready(), kv.pulse.Stuck())
	}
	testkit.Must(t, state.Write(leader, statetest.At(t, storagetest.Peers(), 2, 50)))
	testkit.Must(t, leader.Close())
	testkit.Must(t, <-done)
	if !ready() || kv.pulse.Stuck() {
		t.Errorf("when it is loaded, ready: %t, stuck: %t", ready(), kv.pulse.Stuck())
	}
}
