//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/version"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// simLogs are what the nodes of a simulation say, as at --log-level info.
type simLogs map[uint64]*simLog

func (l simLogs) logger(id uint64) *zap.Logger {
	if l[id] == nil {
		inner, logs := observer.New(zap.DebugLevel)
		levels, _ := logging.ParseLevels("info")
		l[id] = &simLog{zap.New(logging.NewCore(levels, inner, nil)), logs}
	}
	return l[id].log // of a later life, too
}

type simLog struct {
	log *zap.Logger
	*observer.ObservedLogs
}

// said returns what a node has said since the last call, but for the fields.
func (l simLogs) said(id uint64) (got []string) {
	for _, e := range l[id].TakeAll() {
		if !strings.HasPrefix(e.Message, "the peer port is open") { // as that of each simulated node is
			got = append(got, e.Message)
		}
	}
	return got
}

const noLeaderLine = "no leader: nothing can be written, and nothing read but by ?consistency=stale"

// simulateEvents is simulate with three nodes and what they say.
func simulateEvents(t *testing.T, test func(c *simCluster, logs simLogs)) {
	t.Helper()
	logs := make(simLogs)
	simulateLogged(t, 3, nil, logs.logger, func(c *simCluster) { test(c, logs) })
}

// settled waits until a cluster leads itself and everyone has said so, and
// forgets what was said until then.
func (l simLogs) settled(c *simCluster) (leader uint64) {
	c.T.Helper()
	leader = c.Leader()
	c.awaitPublished(c.Up()...)
	time.Sleep(3 * time.Second)
	for _, id := range c.Up() {
		if got := l.said(id); !slices.Equal(got, []string{"leader changed", "ready"}) {
			c.T.Errorf("a start says %q on node %d, want who leads and that it is ready", got, id)
		}
	}
	return leader
}

// Guarantee: without a leader a node says so once at once and then every 30 s,
// and nothing else, whether it had led or followed.
func TestSimSaysThatThereIsNoLeader(t *testing.T) {
	for _, led := range []bool{false, true} {
		simulateEvents(t, func(c *simCluster, logs simLogs) {
			leader := logs.settled(c)
			left := leader
			if !led {
				left = c.Followers()[0]
			}
			for _, id := range c.Up() {
				if id != left {
					c.Crash(id)
				}
			}
			c.Await("the leader to be lost", func() bool {
				l, _, _ := c.Nodes[left].Life.node.leaders.Get()
				return l == 0
			})
			began := time.Now()
			time.Sleep(500 * time.Millisecond)
			got := logs.said(left)
			got = slices.DeleteFunc(got, func(s string) bool { return led && s == "member down" })
			if !slices.Equal(got, []string{noLeaderLine}) {
				t.Errorf("led %t: at once it says %q, want one line", led, got)
			}
			time.Sleep(35*time.Second - time.Since(began))
			again := logs[left].All()
			if got := logs.said(left); !slices.Equal(got, []string{noLeaderLine}) {
				t.Fatalf("led %t: in 35 s it says %q, want one more line", led, got)
			}
			m := again[0].ContextMap()
			if since := m["for"].(time.Duration); since < 29*time.Second || since > 31*time.Second || m["voters"] != int64(3) ||
				fmt.Sprint(m["silent"]) != fmt.Sprint(slices.DeleteFunc([]uint64{1, 2, 3}, func(id uint64) bool { return id == left })) {
				t.Errorf("led %t: after 30 s it says %v", led, m)
			}
			for _, id := range []uint64{1, 2, 3} {
				if id != left {
					c.Start(id)
				}
			}
			c.Leader()
			time.Sleep(time.Second)
			if got := logs.said(left); !slices.Contains(got, "leader changed") || slices.Contains(got, noLeaderLine) {
				t.Errorf("led %t: with a leader again it says %q", led, got)
			}
		})
	}
}

// Guarantee: who leads is said on every node, once; the leader says who is down
// and who is up again; a healthy cluster says nothing at all.
func TestSimSaysWhoLeadsAndWhoIsUp(t *testing.T) {
	simulateEvents(t, func(c *simCluster, logs simLogs) {
		leader := logs.settled(c)
		for range 60 { // ten minutes
			c.Put(c.Followers()[0], "k", c.Value())
			time.Sleep(10 * time.Second)
		}
		for _, id := range c.Up() {
			if got := logs.said(id); got != nil {
				t.Errorf("in ten good minutes node %d says %q", id, got)
			}
		}

		// Leadership that is handed over is never missed.
		next := c.Followers()[0]
		c.mustChange(leader, reconfig.Request{Op: membership.OpLead, ID: next})
		time.Sleep(5 * time.Second)
		for _, id := range c.Up() {
			entries := logs[id].All()
			if got := logs.said(id); !slices.Equal(got, []string{"leader changed"}) {
				t.Errorf("when leadership was handed over, node %d says %q", id, got)
			} else if m := entries[0].ContextMap(); m["leader"] != next || m["this-node"] != (id == next) || m["term"].(uint64) < 2 {
				t.Errorf("node %d says %v", id, m)
			}
		}

		// A leader that dies: each of the others says who leads now, and the new
		// leader that the old one is down. That there is none for a moment is said
		// at most once, by who is left in doubt.
		c.Crash(next)
		leader = c.Leader()
		time.Sleep(5 * time.Second)
		for _, id := range c.Up() {
			got := slices.DeleteFunc(logs.said(id), func(s string) bool { return s == noLeaderLine })
			want := []string{"leader changed"}
			if id == leader {
				want = []string{"leader changed", "member down"}
			}
			if !slices.Equal(got, want) {
				t.Errorf("after the leader's death node %d says %q, want %q", id, got, want)
			}
		}
		c.Start(next)
		c.awaitPublished(c.Up()...)
		time.Sleep(5 * time.Second)
		if got := logs.said(leader); !slices.Equal(got, []string{"member up"}) {
			t.Errorf("when it is back, the leader says %q", got)
		}
	})
}

// Guarantee: who is added, promoted, moved and removed is said once, on every
// node, and not again after a restart. The leader knows each member's version.
func TestSimSaysWhoComesAndGoes(t *testing.T) {
	simulateEvents(t, func(c *simCluster, logs simLogs) {
		leader := logs.settled(c)
		c.mustChange(leader, addRequest(4))
		c.Join(4)
		c.Await("node 4 to be a voter", func() bool {
			m := c.member(leader, 4)
			return m.ID == 4 && !m.Learner
		})
		time.Sleep(20 * time.Second)
		for _, id := range []uint64{1, 2, 3, 4} {
			view := c.Nodes[id].Life.members.View(context.Background())
			for member := range uint64(4) {
				if got := view[member+1].Version; got != version.This().Version {
					t.Errorf("node %d knows version %q of node %d, want %q", id, got, member+1, version.This().Version)
				}
			}
		}
		c.mustChange(leader, reconfig.Request{Op: membership.OpRemove, ID: 4})
		if err := c.Ended(4); !errors.Is(err, problem.ErrRemoved) {
			t.Errorf("node 4 ended with %v", err)
		}
		time.Sleep(time.Second)
		want := []string{"member added", "member promoted to voter", "member removed"}
		for _, id := range []uint64{1, 2, 3} {
			got := logs.said(id)
			got = slices.DeleteFunc(got, func(s string) bool {
				return strings.HasPrefix(s, "snapshot ") || s == "member down" || s == "member up"
			})
			if !slices.Equal(got, want) {
				t.Errorf("node %d says %q, want %q", id, got, want)
			}
		}
		follower := c.Followers()[0]
		c.Stop(follower)
		c.Start(follower)
		c.awaitPublished(1, 2, 3)
		time.Sleep(time.Second)
		if got := logs.said(follower); slices.ContainsFunc(got, func(s string) bool { return slices.Contains(want, s) }) {
			t.Errorf("after a restart node %d says again: %q", follower, got)
		}
	})
}

// Guarantee: a snapshot that is written, sent and installed is said, and counted.
func TestSimSaysSnapshots(t *testing.T) {
	logs := make(simLogs)
	simulateLogged(t, 3, func(cfg *config.Config) { cfg.SnapshotCount = 10 }, logs.logger, func(c *simCluster) {
		leader := c.Leader()
		behind := c.Followers()[0]
		c.Crash(behind)
		for range 60 {
			c.Put(leader, "k", c.Value())
		}
		c.Await("the log to be compacted", func() bool {
			first, err := c.Nodes[leader].Life.storage.Mem.FirstIndex()
			return err == nil && first > 5
		})
		c.Start(behind)
		c.Want(behind, "k", "v60")
		st := &c.Nodes[leader].Life.storage.Snapshots
		if st.Written.Load() == 0 || st.Sent.Load() == 0 || st.Bytes.Load() == 0 || st.At.Load() == 0 || st.Took.Load() == 0 {
			t.Errorf("the leader has counted %d written, %d sent, %d bytes at %d in %d", st.Written.Load(), st.Sent.Load(), st.Bytes.Load(), st.At.Load(), st.Took.Load())
		}
		if c.Nodes[behind].Life.storage.Snapshots.Installed.Load() == 0 {
			t.Error("who installed one has counted none")
		}
		at := logs.said(leader)
		if !slices.Contains(at, "snapshot written") || !slices.Contains(at, "snapshot sent") {
			t.Errorf("the leader says %q", at)
		}
		if got := logs.said(behind); !slices.Contains(got, "snapshot installed") {
			t.Errorf("who installed one says %q", got)
		}
	})
}
