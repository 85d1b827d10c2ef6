//go:build unix

package main

import (
	"fmt"
	"math"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"raftkv/internal/watch/watchtest"
	"strings"
	"testing"
	"time"
)

// What a client has whose stream is cut off, wherever that is.

// Guarantee: a state that is cut off at any byte, and a resume behind it on another node, end
// with a right copy.
func TestSimWatchStateCutAtEveryByte(t *testing.T) {
	for _, lines := range []bool{false, true} {
		simulateWatch(t, 3, nil, func(w *simWatches) {
			leader := w.Leader()
			w.put(leader, 8)
			whole := 0
			for at := 1; whole < 40; at++ {
				v := w.watcher("cut", watchtest.Watch{State: true, NDJSON: lines})
				v.Browser = at%2 == 0
				v.until = func(m watchtest.Message) bool { return m.Event == "synced" }
				v.on(uint64(at%3+1), at)
				if v.Whole {
					whole++
				}
				if at%20 == 0 {
					w.put(leader, 1)
				}
				v.upTo(uint64((at+1)%3+1), w.changes.Revision())
				if ok, err := v.Compare(); !ok || err != nil {
					t.Fatalf("cut off behind %d bytes: copy %t, %v", at, ok, err)
				}
			}
		})
	}
}

// Guarantee: a change that is cut off at any byte, between its parts too, is told again as a
// whole.
func TestSimWatchPartsCutAtEveryByte(t *testing.T) {
	simulateWatch(t, 3, nil, func(w *simWatches) {
		leader := w.Leader()
		from := w.put(leader, 1)
		for i := range 3 {
			big := make([]byte, 40_000)
			for n := range big {
				big[n] = 'a' + byte(i)
			}
			if err := w.propose(w.Nodes[leader].Life, state.EncodeTxn(twoPuts("big/1", string(big), "big/2", string(big)))); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range w.Up() {
			w.awaitApplied(id)
		}
		newest := w.changes.Revision()
		for at, whole := 0, false; !whole; at += 1 + int(w.Rng.Uint64N(4000)) {
			v := w.watcher("cut", watchtest.Watch{NDJSON: at%2 == 0})
			v.goTo(from)
			v.until = func(watchtest.Message) bool { return v.Last == newest }
			v.on(uint64(at%3+1), at)
			whole = v.Last == newest
			v.upTo(uint64((at+1)%3+1), newest)
		}
	})
}

// Guarantee: a browser that was told to forget all, and whose state breaks off, gets a state
// also on another node that could go on from where it was before, or from where its first
// request began.
func TestSimWatchStateCutAndResumedElsewhere(t *testing.T) {
	for _, lines := range []bool{false, true} {
		simulateWatch(t, 3, nil, func(w *simWatches) {
			leader, short := w.Leader(), w.Followers()[0]
			from := w.put(leader, 8)
			all := make(map[string]*simWatcher)
			for _, name := range []string{"browser", "browser with a position", "program"} {
				v := w.watcher(name, watchtest.Watch{State: true, NDJSON: lines})
				v.Browser = name != "program"
				v.upTo(leader, from)
				if name == "browser with a position" {
					v.origin = from
				}
				all[name] = v
			}
			newest := w.put(leader, 20)
			w.awaitApplied(short)
			srv := w.Nodes[short].Life
			srv.kv.AskForSnapshot(srv.kv.applied.Get())
			time.Sleep(time.Second)
			w.Restart(short)
			w.awaitReady(short)
			for name, v := range all {
				v.until = func(m watchtest.Message) bool { return m.Event == "state" }
				v.on(short, math.MaxInt)
				if v.Counts["reset/history_gone"] != 1 {
					t.Fatalf("%s was told %v", name, v.Counts)
				}
				v.upTo(leader, newest)
				if ok, err := v.Compare(); !ok || err != nil {
					t.Errorf("%s: copy %t, %v", name, ok, err)
				}
			}
		})
	}
}

func twoPuts(key, value, key2, value2 string) *txn.Txn {
	return &txn.Txn{MaxBytes: 1 << 20, Then: []txn.Op{
		{Kind: txn.Put, Key: key, Value: []byte(value)}, {Kind: txn.Put, Key: key2, Value: []byte(value2)},
	}}
}

// Guarantee: where a node stops in the middle of a large state, or its reader is too slow for
// it, the client can read all that came, and takes it for no state.
func TestSimWatchLargeStateBreaksOff(t *testing.T) {
	for _, lines := range []bool{false, true} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("lines=%t/slow=%t", lines, slow), func(t *testing.T) {
				simulateWatch(t, 3, nil, func(w *simWatches) {
					leader := w.Leader()
					for i := range 30 {
						large := &txn.Txn{MaxBytes: 1 << 20}
						for j := range 100 {
							large.Then = append(large.Then, txn.Op{Kind: txn.Put, Key: fmt.Sprintf("large/%02d/%02d", i, j), Value: []byte(strings.Repeat("v", 1000))})
						}
						w.must(leader, state.EncodeTxn(large))
					}
					newest := w.changes.Revision()
					id := w.Followers()[0]
					w.awaitApplied(id)
					v := w.watcher("large", watchtest.Watch{State: true, NDJSON: lines})
					n := 0
					v.each = func(m watchtest.Message) {
						if n++; m.Event != "state" {
							return
						}
						if slow {
							time.Sleep(time.Minute)
						} else if n > 5 {
							time.Sleep(10 * time.Millisecond)
							w.Nodes[id].Life.api.stop()
						}
					}
					v.on(id, math.MaxInt)
					if v.Whole || v.Counts["state"] == 0 {
						t.Errorf("it was told %v, and has a copy: %t", v.Counts, v.Whole)
					}
					v.each = nil
					v.upTo(leader, newest)
					if ok, err := v.Compare(); !ok || err != nil {
						t.Errorf("copy %t, %v", ok, err)
					}
					w.Restart(id)
				})
			})
		}
	}
}

// Guarantee: nothing falls between a state and the changes behind it, however much changes
// while the state is told.
func TestSimWatchChangesWhileTheStateIsTold(t *testing.T) {
	for name, tt := range map[string]struct{ keys, size int }{"few that are large": {8, 40_000}, "many": {1200, 300}} {
		for _, lines := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/lines=%t", name, lines), func(t *testing.T) {
				simulateWatch(t, 3, nil, func(w *simWatches) {
					leader, id := w.Leader(), w.Followers()[0]
					key := func(i int) string { return fmt.Sprintf("all/%04d", i%tt.keys) }
					for i := 0; i < tt.keys; i += 100 {
						some := &txn.Txn{MaxBytes: 1 << 20}
						for j := i; j < min(i+100, tt.keys); j++ {
							some.Then = append(some.Then, txn.Op{Kind: txn.Put, Key: key(j), Value: []byte(strings.Repeat("v", tt.size))})
						}
						w.must(leader, state.EncodeTxn(some))
					}
					w.awaitApplied(id)
					one := w.watcher("one", watchtest.Watch{State: true, NDJSON: lines})
					one.each = func(m watchtest.Message) {
						if m.Event == "state" {
							w.must(leader, putOf(key(0), w.Value()))
							w.awaitApplied(id)
						}
					}
					one.until = func(watchtest.Message) bool { return one.HasLast && one.Last == w.changes.Revision() }
					one.on(id, math.MaxInt)
					if ok, err := one.Compare(); !ok || err != nil || one.Counts["reset"] != 1 || one.Counts["change"] == 0 {
						t.Errorf("over one connection: copy %t, %v, %v", ok, err, one.Counts)
					}
					// The same, with a break behind the state.
					v := w.watcher("copy", watchtest.Watch{State: true, NDJSON: lines})
					parts := 0
					v.each = func(m watchtest.Message) {
						if m.Event != "state" {
							return
						}
						for range 3 {
							parts++
							w.must(leader, putOf(key(parts*7), w.Value()))
							w.must(leader, deleteOf(key(parts*7+3)))
							w.must(leader, putOf("all/new", w.Value()))
						}
						w.awaitApplied(id)
					}
					v.until = func(m watchtest.Message) bool { return m.Event == "synced" }
					v.on(id, math.MaxInt)
					v.each = nil
					if ok, err := v.Compare(); !ok || err != nil || parts < 9 || v.Last == w.changes.Revision() {
						t.Errorf("copy %t, %v; %d changes in the meantime", ok, err, parts)
					}
					v.each = func(m watchtest.Message) {
						if m.Event == "reset" {
							t.Error("it has to begin again")
						}
					}
					v.upTo(id, w.changes.Revision())
				})
			})
		}
	}
}
