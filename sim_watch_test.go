//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"raftkv/internal/watch/watchtest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Guarantee: a watch tells every change that it asks for, in order, once and whole, whatever
// network, disks and nodes do, and wherever its connection breaks; it is never ahead of what
// a read on the same node shows; and a client that follows the protocol has, at each
// position, exactly what the store had.
func TestSimChaosWatch(t *testing.T) {
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { simChaosWatch(t) })
	}
}

// TestSoakSimChaosWatch is the same, many times.
func TestSoakSimChaosWatch(t *testing.T) {
	for range testkit.SoakOr(1, 1000) {
		simChaosWatch(t)
	}
}

// watches are what the watchers of a random test ask for.
func watches() map[string]watchtest.Watch {
	return map[string]watchtest.Watch{
		"everything":         {},
		"everything, lines":  {NDJSON: true},
		"copy":               {State: true},
		"copy, lines":        {State: true, NDJSON: true},
		"copy of a":          {State: true, Prefixes: []string{"a/"}},
		"copy of b, lines":   {State: true, Prefixes: []string{"b/", "b"}, NDJSON: true, Base64: true},
		"overlapping":        {Prefixes: []string{"a/", "a/b/", "a", "g0/"}, Keys: []string{"a/1", "b/1", "k1"}},
		"copy, overlapping":  {State: true, Prefixes: []string{"a/", "a/b/", "a"}, Keys: []string{"a/1", "b/1", "k1"}},
		"one key":            {Keys: []string{"a/1"}},
		"copy of one key":    {State: true, Keys: []string{"b/2"}, NDJSON: true},
		"keys alone":         {State: true, KeysOnly: true},
		"puts":               {Types: []string{"put"}, Prefixes: []string{"a/"}},
		"what goes, lines":   {Types: []string{"delete", "expire"}, NDJSON: true, KeysOnly: true},
		"nothing ever":       {State: true, Prefixes: []string{"never/"}},
		"expiries in base64": {Types: []string{"expire", "put"}, Base64: true},
	}
}

func simChaosWatch(t *testing.T) {
	var w *simWatches
	set := func(c *simCluster) {
		c.tweak = func(cfg *config.Config) {
			cfg.SnapshotCount, cfg.CheckInterval = 20, 100*time.Millisecond
			cfg.WatchHistory = 48 << 10
		}
		w = watchIn(c)
	}
	simulateSet(t, 3, set, func(c *simCluster) {
		c.awaitCommands()
		c.Net.SpoilSnapshots(0.3)
		var watchers []*simWatcher
		var running sync.WaitGroup
		for name, asked := range watches() {
			v := w.watcher(name, asked)
			v.reads, v.Browser = true, strings.HasPrefix(name, "copy") && v.rng.IntN(2) == 0
			if v.rng.IntN(3) == 0 {
				v.slow.Store(int64(20 * time.Second))
			}
			watchers = append(watchers, v)
			running.Go(v.run)
		}
		done := make(chan struct{})
		var clients sync.WaitGroup
		until := time.Now().Add(30 * time.Second)
		var polls atomic.Int64
		for i := range 4 {
			clients.Go(func() { polls.Add(w.pollAlong(i, until)) })
		}
		for i := range 3 {
			clients.Go(func() { w.write(i, until) })
		}
		clients.Go(func() { w.comeAndGo(until) })
		go func() { clients.Wait(); close(done) }()
		c.RandomFaults(done)
		c.Net.Heal()
		w.settle(watchers)
		running.Wait()
		w.sum(watchers)
		if polls.Load() < 20 {
			t.Errorf("%d polls were answered with a change: that is no test", polls.Load())
		}
	})
}

// settle waits until all watchers are where the cluster is, and ends them.
func (w *simWatches) settle(watchers []*simWatcher) {
	w.T.Helper()
	w.Lives.Lock()
	for id, p := range w.Nodes {
		p.Disk.Set(0)
		if !p.Up() {
			w.Start(id)
		}
	}
	w.Lives.Unlock()
	w.Leader()
	target := w.changes.Revision()
	for _, v := range watchers {
		v.slow.Store(0)
	}
	for _, v := range watchers {
		w.Await(fmt.Sprintf("watcher %s to be at %d, it is at %d", v.name, target, v.at()), func() bool { return w.T.Failed() || v.at() >= target })
	}
	for _, v := range watchers {
		v.stop()
	}
}

// sum says what the watchers have seen, and checks that they saw enough for a test.
func (w *simWatches) sum(watchers []*simWatcher) {
	w.T.Helper()
	counts := make(map[string]int)
	for _, v := range watchers {
		for what, n := range v.Counts {
			counts[what] += n
		}
		if whole, err := v.Compare(); err != nil || whole != v.State && !w.T.Failed() {
			w.T.Errorf("watcher %s has a copy in the end: %t, %v", v.name, whole, err)
		}
	}
	w.T.Logf("%d revisions; %v", w.changes.Revision(), counts)
	for _, what := range []string{"change", "position", "reset/start", "state", "synced"} {
		if counts[what] < 10 {
			w.T.Errorf("that is no test: %s came %d times", what, counts[what])
		}
	}
}

// write changes all kinds of things on random nodes.
func (w *simWatches) write(client int, until time.Time) {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(client)+300))
	var lease uint64
	for time.Now().Before(until) {
		time.Sleep(time.Duration(rng.Int64N(int64(120 * time.Millisecond))))
		s := w.node(rng)
		if s == nil {
			continue
		}
		if rng.IntN(12) == 0 {
			if res := s.proposals.Propose(w.T.Context(), state.EncodeGrant(60_000, "")); res.Err == nil {
				lease = res.Lease
			}
		}
		_ = w.propose(s, drawCommand(rng, w.Value(), lease)) // the changes tell what came of it
	}
}

// pollAlong follows a key by reads that wait, on one node after the other, and returns how
// many told of a change.
func (w *simWatches) pollAlong(client int, until time.Time) (told int64) {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(client)+500))
	key := []string{"a/1", "b/2"}[client%2]
	etag, seen := "", uint64(0)
	for time.Now().Before(until) {
		time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
		s := w.node(rng)
		if s == nil {
			continue
		}
		var header []string
		if etag != "" {
			header = []string{"If-None-Match", etag}
		}
		a := <-poll(s.api.ServeHTTP, fmt.Sprintf("kv/%s?wait=%dms", key, 1+rng.IntN(8000)), header...)
		if a.revision == 0 {
			continue // it could not be served
		}
		if a.revision < seen {
			w.T.Errorf("a read that waits shows revision %d behind %d", a.revision, seen)
		}
		seen = a.revision
		items, ok := w.changes.At(seen, watchtest.Watch{Keys: []string{key}})
		it, there := items[key]
		switch {
		case !ok:
			w.T.Errorf("revision %d is none of this history", seen)
		case a.status == http.StatusOK && (a.body != it.Value || a.etag != api.Etag(it.ModRevision) || a.etag == etag),
			a.status == http.StatusNotModified && (etag != api.Etag(it.ModRevision)), a.status == http.StatusNotFound && there:
			w.T.Errorf("a read that waits is answered with %d %q %.100q, behind %q, and there is %.100q", a.status, a.etag, a.body, etag, fmt.Sprint(it))
		case a.status == http.StatusOK:
			told++
		}
		etag = a.etag
	}
	return told
}

// drawKey draws a key of those that watchers ask for.
func drawKey(rng *rand.Rand) string {
	return [...]string{"a/", "a/b/", "b/", "b", "k", "other/"}[rng.IntN(6)] + fmt.Sprint(rng.IntN(4))
}

// drawValue draws a value: text, bytes, nothing, or more than a part.
func drawValue(rng *rand.Rand, unique string) []byte {
	switch rng.IntN(12) {
	case 0:
		return nil
	case 1:
		return []byte(unique + "\xff\x00\n")
	case 2:
		return []byte(unique + "\r\n\n\"data: \u2028 id: 7\\")
	case 3:
		return []byte(strings.Repeat(unique, 1+rng.IntN(1000)))
	}
	return []byte(unique)
}

func drawCommand(rng *rand.Rand, unique string, lease uint64) []byte {
	switch n := rng.IntN(40); {
	case n < 16:
		return state.EncodeWrite(state.KindPut, state.Condition{}, drawKey(rng), drawValue(rng, unique))
	case n < 20:
		return state.EncodeWrite(state.KindDelete, state.Condition{}, drawKey(rng), nil)
	case n < 24:
		life := state.Lifetime{Kind: state.ForTTL, Value: 200 + rng.Uint64N(3000)}
		return append(state.AppendLeasedPutHead(nil, state.Condition{}, life, drawKey(rng)), unique...)
	case n < 27 && lease != 0:
		life := state.Lifetime{Kind: state.WithLease, Value: lease}
		return append(state.AppendLeasedPutHead(nil, state.Condition{}, life, drawKey(rng)), unique...)
	case n < 28 && lease != 0:
		return state.EncodeRevoke(lease, "")
	case n < 29:
		return state.EncodeDeletePrefix([...]string{"a/b/", "b/", "other/"}[rng.IntN(3)], 0, "")
	case n < 31:
		return append(state.AppendAppendHead(nil, state.Lifetime{}, "other/log/"), unique...)
	case n < 33:
		return state.EncodeAdd(state.Condition{}, state.Lifetime{}, "other/n", 1)
	}
	t := &txn.Txn{MaxBytes: 1 << 20}
	big := rng.IntN(6) == 0
	taken := make(map[string]bool)
	for range 1 + rng.IntN(6) {
		key := drawKey(rng)
		if taken[key] {
			continue
		}
		taken[key] = true
		op := txn.Op{Kind: txn.Put, Key: key, Value: drawValue(rng, unique)}
		if big {
			op.Value = []byte(strings.Repeat(unique, 6000)) // so that it comes in parts
		}
		if rng.IntN(4) == 0 {
			op = txn.Op{Kind: txn.Delete, Key: key}
		}
		t.Then = append(t.Then, op)
	}
	return state.EncodeTxn(t)
}

// slowDown makes a node's disk slow, between changes of its life.
func (w *simWatches) slowDown(id uint64, slow time.Duration) {
	w.Lives.Lock()
	defer w.Lives.Unlock()
	w.Nodes[id].Disk.Set(slow)
}

// comeAndGo adds a node, removes it, and makes disks slow.
func (w *simWatches) comeAndGo(until time.Time) {
	rng := rand.New(rand.NewPCG(w.Seed, 400))
	change := func(r reconfig.Request) {
		for s := w.node(rng); time.Now().Before(until.Add(time.Minute)); s = w.node(rng) {
			if s != nil {
				if _, err := s.members.Change(w.T.Context(), r); err == nil {
					return
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		w.T.Errorf("%+v does not come to be", r)
	}
	for id := uint64(4); time.Now().Before(until); id++ {
		time.Sleep(time.Duration(rng.Int64N(int64(4 * time.Second))))
		slow := rng.Uint64N(3) + 1
		w.slowDown(slow, time.Duration(rng.Int64N(int64(200*time.Millisecond))))
		change(addRequest(id))
		w.Lives.Lock()
		w.Join(id)
		w.Lives.Unlock()
		time.Sleep(time.Duration(rng.Int64N(int64(8 * time.Second))))
		w.slowDown(slow, 0)
		change(reconfig.Request{Op: membership.OpRemove, ID: id, Force: true})
		ended := w.EndOf(id)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			w.T.Errorf("node %d was removed and does not end", id)
			return
		}
		w.Lives.Lock()
		_ = w.Ended(id)
		delete(w.Nodes, id)
		w.Lives.Unlock()
	}
}
