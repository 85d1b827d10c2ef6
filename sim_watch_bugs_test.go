//go:build unix

package main

import (
	"fmt"
	"math"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/watch/watchtest"
	"sync"
	"testing"
	"time"
)

// What watches of other systems got wrong, one test each.

// simulateWatch is simulateWith, with HTTP servers.
func simulateWatch(t *testing.T, n int, tweak func(*config.Config), test func(w *simWatches)) {
	t.Helper()
	var w *simWatches
	set := func(c *simCluster) {
		c.tweak = tweak
		w = watchIn(c)
	}
	simulateSet(t, n, set, func(c *simCluster) { test(w) })
}

// on follows on a node up to where the watcher hangs up or the stream ends; it must keep
// its promises.
func (v *simWatcher) on(id uint64, bytes int) {
	v.w.T.Helper()
	if err := v.follow(v.w.Nodes[id].Life, bytes); err != nil {
		v.w.T.Errorf("watcher %s: %v", v.name, err)
	}
}

// upTo follows on a node until the position is a revision or a later one. Where the stream
// ends before, it comes again, as a client does.
func (v *simWatcher) upTo(id, revision uint64) {
	v.w.T.Helper()
	v.until = func(watchtest.Message) bool { return v.HasLast && v.Last >= revision }
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && v.Last < revision && !v.w.T.Failed(); {
		v.on(id, math.MaxInt)
		time.Sleep(100 * time.Millisecond)
	}
	v.until = nil
	if v.Last < revision {
		v.w.T.Fatalf("watcher %s is at %d on node %d, want %d; it was told %v, ended %q", v.name, v.Last, id, revision, v.Counts, v.Ended)
	}
}

// goTo sets the position of a watcher.
func (v *simWatcher) goTo(revision uint64) { v.Last, v.HasLast = revision, true }

// background follows on a node in the background until the stream ends. What is returned
// is closed then.
func (v *simWatcher) background(id uint64) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.on(id, math.MaxInt)
	}()
	return done
}

// put writes so many revisions and returns the newest.
func (w *simWatches) put(id uint64, n int) uint64 {
	w.T.Helper()
	for i := range n {
		w.Put(id, fmt.Sprint("k", i%5), w.Value())
	}
	return w.changes.Revision()
}

// burst is put, all at once.
func (w *simWatches) burst(id uint64, n int) uint64 {
	var writers sync.WaitGroup
	for i := range n {
		cmd := state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("k", i%5), []byte(w.Value()))
		writers.Go(func() {
			if err := w.propose(w.Nodes[id].Life, cmd); err != nil {
				w.T.Error(err)
			}
		})
	}
	writers.Wait()
	return w.changes.Revision()
}

// later writes so many revisions on a node after a while, if it is there.
func (w *simWatches) later(after time.Duration, id uint64, n int) {
	time.AfterFunc(after, func() {
		for i := range n {
			_ = w.propose(w.Nodes[id].Life, putOf(fmt.Sprint("later/", i%5), w.Value())) // else nobody is told of it
		}
	})
}

func (w *simWatches) awaitApplied(id uint64) {
	w.T.Helper()
	w.Await(fmt.Sprintf("node %d to have applied all", id), func() bool {
		return w.Nodes[id].Life.kv.Status().Revision == w.changes.Revision()
	})
}

// Guarantee: a client that comes to a node which lags behind, or is cut off, is told nothing
// that it was told before, and no position below its own; once the node has caught up the
// watch goes on. (In etcd history went back: issues 15271 and 20221.)
func TestSimWatchOnALaggingNode(t *testing.T) {
	for _, asked := range []watchtest.Watch{{}, {State: true}, {NDJSON: true}} {
		simulateWatch(t, 3, nil, func(w *simWatches) {
			leader, lag := w.Leader(), w.Followers()[0]
			w.put(leader, 3)
			w.awaitApplied(lag)
			v := w.watcher("w", asked)
			if v.upTo(leader, w.changes.Revision()); !v.State {
				v.goTo(1)
			}
			w.Net.Isolate(lag, leader, 6-leader-lag)
			newest := w.put(leader, 5)
			v.upTo(leader, newest)
			before := v.Counts["position"] + v.Counts["change"] + v.Counts["synced"]
			v.on(lag, math.MaxInt)
			if v.Ended != "no_leader" || v.Counts["position"]+v.Counts["change"]+v.Counts["synced"] != before {
				t.Errorf("on a node that lags and is cut off it was told %v and ended with %q", v.Counts, v.Ended)
			}
			w.Net.Heal()
			v.upTo(lag, newest)
			// The same, and while the client waits the node catches up.
			w.awaitApplied(lag)
			w.Net.Isolate(lag, leader, 6-leader-lag)
			newest = w.put(leader, 5)
			v.upTo(leader, newest)
			time.AfterFunc(3*time.Second, w.Net.Heal)
			w.later(6*time.Second, leader, 5)
			v.upTo(lag, newest+5)
			for code, n := range v.Counts {
				if (code == "reset/history_gone" || code == "reset/unknown_revision") && n > 0 {
					t.Errorf("%s: %d times", code, n)
				}
			}
		})
	}
}

// Guarantee: nor when that node catches up by a snapshot from the leader.
func TestSimWatchOnANodeThatGetsASnapshot(t *testing.T) {
	for _, asked := range []watchtest.Watch{{}, {State: true}} {
		small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
		simulateWatch(t, 3, small, func(w *simWatches) {
			leader, lag := w.Leader(), w.Followers()[0]
			w.put(leader, 3)
			w.awaitApplied(lag)
			at := w.changes.Revision()
			w.Net.Isolate(lag, leader, 6-leader-lag)
			newest := w.put(leader, 60)
			early, late := w.watcher("early", asked), w.watcher("late", asked)
			if early.upTo(leader, newest); early.State {
				late.upTo(leader, newest)
			} else {
				early.goTo(at)
				late.goTo(newest)
			}
			time.AfterFunc(5*time.Second, w.Net.Heal)
			w.later(10*time.Second, leader, 5)
			ended := make(chan struct{})
			go func() { defer close(ended); early.upTo(lag, newest+5) }()
			late.upTo(lag, newest+5)
			<-ended
			if w.Net.Transfers() == 0 {
				t.Error("there was no snapshot")
			}
			if n := late.Counts["reset/history_gone"]; n > 0 {
				t.Errorf("whose position is that of the snapshot was reset %d times", n)
			}
		})
	}
}

// Guarantee: who watches a node that installs a snapshot is told that changes are missing.
func TestSimWatchAcrossAnInstalledSnapshot(t *testing.T) {
	small := func(cfg *config.Config) { cfg.SnapshotCount = 10 }
	simulateWatch(t, 3, small, func(w *simWatches) {
		leader, lag := w.Leader(), w.Followers()[0]
		w.put(leader, 3)
		w.awaitApplied(lag)
		w.Net.Isolate(lag, leader, 6-leader-lag)
		var all []*simWatcher
		var ended []<-chan struct{}
		for name, asked := range map[string]watchtest.Watch{"plain": {}, "lines": {NDJSON: true}, "copy": {State: true}} {
			v := w.watcher(name, asked)
			v.upTo(leader, w.changes.Revision())
			all, ended = append(all, v), append(ended, v.background(lag))
		}
		newest := w.put(leader, 60)
		time.Sleep(3 * time.Second)
		w.Net.Heal()
		for _, v := range all {
			w.Await(v.name+" to be where the cluster is", func() bool { return v.at() >= newest })
		}
		newest = w.put(lag, 3)
		for i, v := range all {
			w.Await(v.name+" to go on", func() bool { return v.at() >= newest })
			v.stop()
			<-ended[i]
			if v.Counts["reset/history_gone"] != 1 || v.Ended != "" {
				t.Errorf("watcher %s was told %v, ended %q", v.name, v.Counts, v.Ended)
			}
		}
	})
}

// Guarantee: a client that reads slowly gets all that history still has, however much it is,
// and a reset if history has gone; nothing is left out without one. (In etcd a starved
// stream lost events: issue 17529.)
func TestSimWatchStarvedStream(t *testing.T) {
	for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy, lines": {State: true, NDJSON: true}, "one key": {Keys: []string{"k1"}}} {
		for _, revisions := range []int{200, 3000} { // the node notes 256 for a client, and then searches
			for _, history := range []int64{64 << 20, 8_000} {
				t.Run(fmt.Sprintf("%s/%d/%d", name, revisions, history), func(t *testing.T) {
					starve(t, asked, revisions, history)
				})
			}
		}
	}
}

// starve has a client stop reading at its first change while so many revisions are made.
func starve(t *testing.T, asked watchtest.Watch, revisions int, history int64) {
	simulateWatch(t, 3, func(cfg *config.Config) { cfg.WatchHistory = history }, func(w *simWatches) {
		id := w.Followers()[0]
		w.put(id, 3)
		v := w.watcher("starved", asked)
		goOn := make(chan struct{})
		v.each = func(m watchtest.Message) {
			if m.Event == "change" {
				<-goOn
			}
		}
		ended := v.background(id)
		w.Await("the start", func() bool { return v.at() > 0 })
		w.put(id, 10) // to be written while the client does not read
		time.Sleep(time.Second)
		many := w.burst
		if revisions < 256 {
			many = w.put // one by one, so that the node can note each
		}
		newest := many(w.Leader(), revisions)
		time.Sleep(time.Second)
		close(goOn)
		w.Await("it to have caught up", func() bool { return v.at() >= newest-5 })
		newest = w.put(id, 5)
		w.Await("it to go on", func() bool { return v.at() >= newest-5 })
		v.stop()
		<-ended
		if got := v.Counts["reset/history_gone"]; got > 0 != (history < 1<<20) {
			t.Errorf("%d resets, with a history of %d bytes", got, history)
		}
	})
}

// Guarantee: who resumes where history has gone is told so at once, also where nothing
// changes any more; a watch that hangs there would wait for ever.
func TestSimWatchFromACompactedPosition(t *testing.T) {
	small := func(cfg *config.Config) { cfg.WatchHistory = 4096 }
	simulateWatch(t, 3, small, func(w *simWatches) {
		id := w.Followers()[0]
		newest := w.put(id, 200)
		for _, restarted := range []bool{false, true} {
			for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy": {State: true}, "quiet": {Keys: []string{"never"}}} {
				v := w.watcher(name, asked)
				v.Copy, v.Whole = map[string]watchtest.Item{}, false
				v.goTo(1)
				began := time.Now()
				v.upTo(id, newest)
				if took := time.Since(began); v.Counts["reset/history_gone"] != 1 || took > time.Second {
					t.Errorf("restarted %t: watcher %s was told %v in %v", restarted, name, v.Counts, took)
				}
			}
			if restarted {
				return
			}
			w.Nodes[id].Life.kv.AskForSnapshot(w.Nodes[id].Life.kv.applied.Get())
			time.Sleep(time.Second)
			w.Restart(id)
			w.awaitReady(id)
		}
	})
}

// Guarantee: a stream on a node without a leader says so after ten seconds and ends, so that
// nobody takes it for a healthy one; the position serves on another node.
func TestSimWatchOnANodeThatIsCutOff(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		leader := w.Leader()
		newest := w.put(leader, 3)
		for _, id := range []uint64{w.Followers()[0], leader} {
			var all []*simWatcher
			var ended []<-chan struct{}
			for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy": {State: true}, "lines": {NDJSON: true}} {
				v := w.watcher(name, asked)
				all, ended = append(all, v), append(ended, v.background(id))
			}
			for _, v := range all {
				w.Await(v.name+" to be there", func() bool { return v.at() >= newest })
			}
			others := []uint64{1, 2, 3}
			w.Net.Isolate(id, append(others[:id-1:id-1], others[id:]...)...)
			began := time.Now()
			for i, v := range all {
				<-ended[i]
				if took := time.Since(began); took < 10*time.Second || took > 13*time.Second || v.Ended != "no_leader" {
					t.Errorf("watcher %s on node %d ended with %q after %v", v.name, id, v.Ended, took)
				}
			}
			w.Net.Heal()
			next := w.Leader()
			newest = w.put(next, 3)
			for _, v := range all {
				v.upTo(next, newest)
			}
		}
	})
}

// Guarantee: a position that the cluster has not come to is of another history, and its
// client is told so; while that cannot be made sure of, it is told nothing.
func TestSimWatchOfAnotherHistory(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		leader := w.Leader()
		newest := w.put(leader, 5)
		for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy": {State: true}, "lines": {NDJSON: true}} {
			for _, id := range w.Up() {
				v := w.watcher(name, asked)
				v.goTo(newest + 1000)
				v.Foreign, v.Copy = true, map[string]watchtest.Item{}
				began := time.Now()
				v.until = func(watchtest.Message) bool { return v.Last <= newest && v.HasLast }
				v.on(id, math.MaxInt)
				if took := time.Since(began); v.Counts["reset/unknown_revision"] != 1 || took > time.Second {
					t.Errorf("watcher %s on node %d was told %v in %v", name, id, v.Counts, took)
				}
			}
			v := w.watcher(name, asked)
			lag := w.Followers()[0]
			w.Net.Isolate(lag, leader, 6-leader-lag)
			v.goTo(newest + 1000)
			v.Foreign = true
			v.on(lag, math.MaxInt)
			if v.Counts["reset"] > 0 || v.Ended != "no_leader" {
				t.Errorf("watcher %s on a node that is cut off was told %v, and ended with %q", name, v.Counts, v.Ended)
			}
			w.Net.Heal()
			w.Leader()
		}
	})
}

// Guarantee: a watch goes on over restarts of all nodes and a change of the leader without a
// reset, as far back as the log behind the newest snapshot.
func TestSimWatchAcrossRestarts(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		from := w.put(w.Leader(), 1)
		newest := w.put(w.Leader(), 50)
		for id := range uint64(3) {
			w.Crash(id + 1)
		}
		for id := range uint64(3) {
			w.Start(id + 1)
		}
		w.Leader()
		for id := range uint64(3) {
			v := w.watcher("w", watchtest.Watch{})
			v.goTo(from)
			v.upTo(id+1, newest)
			if v.Counts["reset"] > 0 || v.Counts["change"] != 50 {
				t.Errorf("on node %d: %v", id+1, v.Counts)
			}
		}
		v := w.watcher("over leaders", watchtest.Watch{})
		follower := w.Followers()[0]
		ended := v.background(follower)
		w.Await("it to be there", func() bool { return v.at() >= newest })
		for range 3 {
			leader := w.Leader()
			w.Nodes[leader].Life.HandOver()
			w.Await("another leader", func() bool { return w.Leader() != leader })
			newest = w.put(follower, 5)
		}
		w.Await("it to have all", func() bool { return v.at() >= newest })
		v.stop()
		<-ended
		if v.Counts["reset"] > 0 || v.Counts["change"] != 15 || v.Ended != "" {
			t.Errorf("over changes of the leader: %v, ended %q", v.Counts, v.Ended)
		}
	})
}

// Guarantee: a client of a cluster that was restored from a backup is told to begin again,
// wherever the cluster before had come to.
func TestSimWatchOfARestoredCluster(t *testing.T) {
	var w *simWatches
	simulateSet(t, 0, func(c *simCluster) { w = watchIn(c) }, func(c *simCluster) {
		old, _ := statetest.Filled(t, 20)
		file := storagetest.BackupFile(t, old)
		c.Peers = sim.Peers(3)
		for _, p := range c.Peers {
			n := &simPlace{ID: p.ID, Dir: c.NodeDir(p.ID, 0)}
			if code, out, errs := runCommand(t, "restore", file, "--id", fmt.Sprint(p.ID), "--data-dir", n.Dir, "--cluster", address.FormatPeers(c.Peers)); code != config.ExitOK {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			c.Nodes[p.ID] = n
			c.Start(p.ID)
		}
		newest := w.put(w.Leader(), 5)
		for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy": {State: true}} {
			for _, from := range []uint64{1, old.Revision, old.Revision + 100} { // which the cluster before may have had
				v := w.watcher(name, asked)
				v.goTo(from)
				v.Foreign = true
				v.upTo(w.Followers()[0], newest)
				if v.Counts["reset/history_gone"] != 1 {
					t.Errorf("watcher %s from %d was told %v", name, from, v.Counts)
				}
			}
		}
	})
}

// Guarantee: a stream says something every 15 s also while its node loads a snapshot for
// longer than that, and then tells that changes are missing, or goes on.
func TestSimWatchWhileASnapshotIsLoadedForLong(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		id := w.Followers()[0]
		newest := w.put(id, 3)
		var all []*simWatcher
		var ended []<-chan struct{}
		for name, asked := range map[string]watchtest.Watch{"plain": {}, "copy": {State: true}, "lines": {NDJSON: true}} {
			v := w.watcher(name, asked)
			all, ended = append(all, v), append(ended, v.background(id))
			w.Await(name+" to be there", func() bool { return v.at() >= newest })
		}
		kv := w.Nodes[id].Life.kv
		load := func(on bool) {
			kv.mu.Lock()
			defer kv.mu.Unlock()
			kv.loading.Store(on)
		}
		load(true)
		newest = w.put(w.Leader(), 3)
		time.Sleep(50 * time.Second)
		load(false)
		for i, v := range all {
			w.Await(v.name+" to go on", func() bool { return v.at() >= newest || w.T.Failed() })
			v.stop()
			<-ended[i]
		}
	})
}

// Guarantee: nor does a stream look healthy on a node that hears its leader and cannot apply
// what that says, because its disk hangs, while there is something to be told.
func TestSimWatchOnANodeWhoseDiskHangs(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		id := w.Followers()[0]
		newest := w.put(id, 3)
		v := w.watcher("w", watchtest.Watch{})
		ended := v.background(id)
		w.Await("it to be there", func() bool { return v.at() >= newest })
		w.Nodes[id].Disk.Set(sim.Hang)
		newest = w.put(w.Leader(), 3)
		began := time.Now()
		<-ended
		if took := time.Since(began); took > 15*time.Second || v.Ended == "" || v.Last >= newest {
			t.Errorf("it ended with %q after %v, at %d", v.Ended, took, v.Last)
		}
		v.upTo(w.Leader(), newest)
		w.Nodes[id].Disk.Set(0)
		v.upTo(id, w.put(w.Leader(), 1))
	})
}
