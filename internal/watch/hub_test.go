package watch

import (
	"errors"
	"fmt"
	"raftkv/internal/changelog"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs a test on a node that keeps changes of so many bytes.
func inBubble(t *testing.T, limit int64, test func(n *node)) {
	t.Helper()
	testkit.InBubble(t, func(t *testing.T) { test(startNode(t, limit, 0)) })
}

// watch begins a watcher that has nothing to take.
func (n *node) watch(keys, prefixes []string) *Watcher {
	n.Helper()
	w, err := n.hub.Watch(NewFilter(keys, prefixes), n.revision())
	testkit.Must(n, err)
	n.Cleanup(w.Close)
	<-w.Wake()
	n.wants(w)
	return w
}

// wants checks which revisions a watcher takes now, all of them.
func (n *node) wants(w *Watcher, revisions ...uint64) {
	n.Helper()
	synctest.Wait()
	var got []uint64
	for {
		b, err := w.Take()
		testkit.Must(n, err)
		for _, e := range b.Entries {
			got = append(got, e.Revision)
		}
		if len(b.Entries) > takeAtOnce {
			n.Errorf("%d entries at once", len(b.Entries))
		}
		if !b.More {
			if b.Upto != n.revision() {
				n.Errorf("it is at %d of %d", b.Upto, n.revision())
			}
			break
		}
	}
	if !slices.Equal(got, revisions) {
		n.Errorf("it takes %d revisions: %.200q, want %d: %.200q", len(got), fmt.Sprint(got), len(revisions), fmt.Sprint(revisions))
	}
}

func (w *Watcher) woken() bool {
	synctest.Wait()
	select {
	case <-w.Wake():
		return true
	default:
		return false
	}
}

// Guarantee: a change wakes those whose keys and prefixes it is for, and nobody else.
func TestHubWakesWhomItConcerns(t *testing.T) {
	inBubble(t, 1<<20, func(n *node) {
		filters := map[string]*Watcher{
			"all": n.watch(nil, []string{""}), "key a": n.watch([]string{"a"}, nil), "key a/b": n.watch([]string{"a/b"}, nil),
			"a": n.watch(nil, []string{"a"}), "a/": n.watch(nil, []string{"a/"}), "a/b": n.watch(nil, []string{"a/b"}), "b": n.watch(nil, []string{"b"}),
			"many": n.watch([]string{"x", "a/b/c"}, []string{"y", "b/", "a/b/c"}),
		}
		for _, tt := range []struct {
			keys []string
			want string
		}{
			{[]string{"a"}, "a all key a"},
			{[]string{"a/b"}, "a a/ a/b all key a/b"},
			{[]string{"a/b/c"}, "a a/ a/b all many"},
			{[]string{"b"}, "all b"},
			{[]string{"a", "b/1", "y"}, "a all b key a many"},
			{[]string{"z"}, "all"},
			{[]string{"x", "y", "yy"}, "all many"},
		} {
			n.write(tt.keys)
			var woken []string
			for name, w := range filters {
				want := []uint64(nil)
				if w.woken() {
					woken = append(woken, name)
					want = []uint64{n.revision()}
				}
				n.wants(w, want...)
			}
			slices.Sort(woken)
			if got := strings.Join(woken, " "); got != tt.want {
				t.Errorf("%q woke %q, want %q", tt.keys, got, tt.want)
			}
		}
	})
}

// Guarantee: filters that overlap are one filter, in which each key counts once.
func TestFilterOverlaps(t *testing.T) {
	f := NewFilter([]string{"k", "a/1", "k", "b"}, []string{"a/", "a", "a/b/", "c/"})
	if !slices.Equal(f.keys, []string{"b", "k"}) || !slices.Equal(f.prefixes, []string{"a", "c/"}) {
		t.Errorf("keys %q, prefixes %q", f.keys, f.prefixes)
	}
	for key, want := range map[string]bool{"a": true, "a/b/c": true, "b": true, "bb": false, "c": false, "c/": true, "k": true, "kk": false, "": false} {
		if got := f.Matches(key); got != want {
			t.Errorf("%q: %t", key, got)
		}
	}
	if f := NewFilter([]string{"k"}, []string{"", "p"}); len(f.keys) > 0 || !slices.Equal(f.prefixes, []string{""}) {
		t.Errorf("with all: keys %q, prefixes %q", f.keys, f.prefixes)
	}
}

// numbers are the revisions from one to another.
func numbers(from, to uint64) (all []uint64) {
	for r := from; r <= to; r++ {
		all = append(all, r)
	}
	return all
}

// Guarantee: a watcher that takes nothing for a while gets all that came, whether the node
// has noted what is for it or it has to search for it; at the bounds too.
func TestWatcherFallsBehind(t *testing.T) {
	for _, tt := range []struct {
		revisions int
		searches  bool
	}{
		{1, false}, {takeAtOnce - 1, false}, {takeAtOnce, false}, {maxPending, false}, {maxPending + 1, true},
		{2*maxPending + 1, true}, {searchAtOnce, true}, {searchAtOnce + 1, true}, {3*searchAtOnce + 1, true},
	} {
		for _, every := range []int{1, 3} { // of the revisions, that are for it
			inBubble(t, 1<<30, func(n *node) {
				w := n.watch([]string{"k"}, nil)
				var want []uint64
				for i := range tt.revisions * every {
					key := "other"
					if i%every == 0 {
						key = "k"
						want = append(want, uint64(i+1))
					}
					n.write([]string{key})
				}
				synctest.Wait()
				if w.searches != tt.searches || !tt.searches && len(w.pending) != tt.revisions {
					t.Errorf("%d revisions: it searches: %t, %d are noted", tt.revisions, w.searches, len(w.pending))
				}
				n.wants(w, want...)
				n.write([]string{"k"}, []string{"other"})
				n.wants(w, n.revision()-1)
				n.wants(w)
			})
		}
	}
}

// Guarantee: a watcher takes no more at once than takeBytes, unless one revision alone is
// larger, whether they were noted for it or it searches; the rest follows.
func TestWatcherTakesFewBytes(t *testing.T) {
	const half = takeBytes/2 - changelog.ChangeCost - len("v")
	for name, search := range map[string]bool{"noted": false, "search": true} {
		for size, atOnce := range map[int]int{half: 2, half + 1: 1, 3 * half: 1} {
			inBubble(t, 1<<30, func(n *node) {
				w := n.watch(nil, []string{"k"})
				for range 5 {
					n.write([]string{strings.Repeat("k", size)})
				}
				synctest.Wait()
				if search {
					w.search(0)
				}
				b, err := w.Take()
				testkit.Must(t, err)
				if len(b.Entries) != atOnce || b.Upto != uint64(atOnce) || !b.More || !w.woken() {
					t.Errorf("%s, revisions of %d: %d are taken, up to %d, more: %t", name, size, len(b.Entries), b.Upto, b.More)
				}
				n.write([]string{"k"}, []string{"other"})
				n.wants(w, numbers(uint64(atOnce)+1, 6)...)
			})
		}
	}
}

// Guarantee: what there was no room for is still noted, as far as there is room for notes: it
// is not lost with other changes before it, nor taken twice, and comes in its turn.
func TestWatcherPutsBack(t *testing.T) {
	large := strings.Repeat("k", takeBytes)
	for name, between := range map[string]func(n *node, w *Watcher){
		"nothing":        func(*node, *Watcher) {},
		"some":           func(n *node, _ *Watcher) { n.write([]string{"k"}, []string{"k"}) },
		"too many":       func(n *node, _ *Watcher) { n.write(slices.Repeat([][]string{{"k"}}, maxPending)...) },
		"a search":       func(_ *node, w *Watcher) { w.search(w.hub.matched.Load()) },
		"the same again": func(_ *node, w *Watcher) { w.add(5) },
	} {
		inBubble(t, 5*takeBytes, func(n *node) {
			w := n.watch(nil, []string{"k"})
			n.write([]string{large}, []string{"o" + large}, []string{"o" + large}, []string{large}, []string{"k"})
			synctest.Wait()
			// Something happens while it takes.
			look := n.hub.cfg.Look
			n.hub.cfg.Look = func(f func(*state.State)) error {
				n.hub.cfg.Look = look
				err := look(f)
				between(n, w)
				synctest.Wait()
				return err
			}
			b, err := w.Take()
			testkit.Must(t, err)
			if len(b.Entries) != 1 || b.Upto != 1 || !b.More || len(w.pending) > maxPending {
				t.Errorf("%s: it takes %d, up to %d, and has %d noted", name, len(b.Entries), b.Upto, len(w.pending))
			}
			n.mu.Lock()
			n.st.Revision++
			n.st.Changes.Note(state.Change{Revision: n.st.Revision, Kind: changelog.Delete, Key: "other", Size: 2 * takeBytes})
			n.st.Changes.Tell(1)
			base := n.st.Changes.Base()
			n.mu.Unlock()
			n.hub.cfg.Revision.Advance(n.revision())
			if base < 2 {
				t.Fatalf("what it has taken is still there, behind %d", base)
			}
			n.wants(w, numbers(4, n.revision()-1)...)
			n.write([]string{"k"})
			n.wants(w, n.revision())
		})
	}
}

// Guarantee: nor does it look at many more than searchChanges changes at once.
func TestWatcherLooksAtFewChanges(t *testing.T) {
	for first, upto := range map[int]uint64{searchChanges - 1: 2, searchChanges: 1} {
		inBubble(t, 1<<30, func(n *node) {
			w := n.watch([]string{"k"}, nil)
			n.mu.Lock()
			for _, changes := range []int{first, 1, 1} {
				n.st.Revision++
				for i := range changes {
					n.st.Changes.Note(state.Change{Revision: n.st.Revision, Kind: changelog.Delete, Key: fmt.Sprint("other", i)})
				}
			}
			n.st.Changes.Tell(1)
			n.mu.Unlock()
			w.search(0)
			b, err := w.Take()
			testkit.Must(t, err)
			if b.Upto != upto || !b.More || !w.woken() {
				t.Errorf("it looks at %d changes, and then up to %d, more: %t", first, b.Upto, b.More)
			}
			n.write([]string{"k"})
			n.wants(w, 4)
		})
	}
}

// Guarantee: behind the oldest change that is kept a watcher goes on; one before, it is told
// that changes are gone, and from where on they are there.
func TestWatchFromTheOldest(t *testing.T) {
	inBubble(t, 10_000, func(n *node) {
		for range 200 {
			n.write([]string{"k"})
		}
		var base uint64
		n.mu.RLock()
		base = n.st.Changes.Base()
		n.mu.RUnlock()
		if base < 100 || base > 190 {
			t.Fatalf("what is kept is behind %d", base)
		}
		for _, from := range []uint64{base, base + 1, 199, 200} {
			w, err := n.hub.Watch(NewFilter([]string{"k"}, nil), from)
			testkit.Must(t, err)
			n.wants(w, numbers(from+1, 200)...)
			w.Close()
		}
		w, err := n.hub.Watch(NewFilter([]string{"none"}, nil), base-1)
		testkit.Must(t, err)
		defer w.Close()
		var gone *Gone
		if _, err := w.Take(); !errors.As(err, &gone) || gone.Oldest != base {
			t.Errorf("behind %d: %v, %+v, want %d", base-1, err, gone, base)
		}
		w.Move(n.revision())
		n.wants(w)
	})
}

// Guarantee: a watcher that was noted to have something, which is gone when it comes for it,
// is told so.
func TestWatcherComesTooLate(t *testing.T) {
	inBubble(t, 10_000, func(n *node) {
		w := n.watch([]string{"k"}, nil)
		n.write([]string{"k"})
		synctest.Wait()
		for range 100 {
			n.write([]string{"other"})
			synctest.Wait()
		}
		var gone *Gone
		if b, err := w.Take(); !errors.As(err, &gone) {
			t.Errorf("it takes %+v, %v", b, err)
		}
	})
}

// Guarantee: what was noted before a snapshot comes is not forgotten for it: who comes behind
// it is told that changes are gone.
func TestWatcherAcrossASnapshot(t *testing.T) {
	inBubble(t, 1<<20, func(n *node) {
		idle, busy := n.watch([]string{"none"}, nil), n.watch([]string{"k"}, nil)
		n.write([]string{"k"})
		n.install(1, 10*time.Millisecond)
		for _, w := range []*Watcher{idle, busy} {
			var gone *Gone
			if !w.woken() {
				t.Error("it sleeps")
			}
			if b, err := w.Take(); !errors.As(err, &gone) || gone.Oldest != n.revision() {
				t.Errorf("it takes %+v, %v", b, err)
			}
			w.Move(n.revision())
			n.wants(w)
		}
		n.write([]string{"k", "none"})
		n.wants(idle, n.revision())
		n.wants(busy, n.revision())
	})
}

// Guarantee: while a snapshot is loaded nobody is told anything, and nobody is told that he
// knows all.
func TestWatcherWhileASnapshotIsLoaded(t *testing.T) {
	inBubble(t, 1<<20, func(n *node) {
		w := n.watch([]string{"k"}, nil)
		n.write([]string{"k"})
		synctest.Wait()
		loaded := make(chan struct{})
		go func() { n.install(5, time.Second); close(loaded) }()
		time.Sleep(time.Millisecond)
		if b, err := w.Take(); !errors.Is(err, problem.ErrNotReady) {
			t.Errorf("it takes %+v, %v", b, err)
		}
		<-loaded
		var gone *Gone
		if b, err := w.Take(); !errors.As(err, &gone) {
			t.Errorf("behind it, it takes %+v, %v", b, err)
		}
	})
}

// Guarantee: a node has Most watchers, and no more; who leaves makes room.
func TestMostWatchers(t *testing.T) {
	inBubble(t, 1<<20, func(n *node) {
		var all []*Watcher
		for i := range Most {
			w, err := n.hub.Watch(NewFilter([]string{fmt.Sprint(i % 100)}, nil), 0)
			testkit.Must(t, err)
			all = append(all, w)
		}
		if _, err := n.hub.Watch(NewFilter([]string{"k"}, nil), 0); !errors.Is(err, problem.ErrOverloaded) {
			t.Errorf("one more: %v", err)
		}
		all[5].Close()
		all[5].Close()
		w, err := n.hub.Watch(NewFilter([]string{"k"}, nil), 0)
		testkit.Must(t, err)
		if _, err := n.hub.Watch(NewFilter([]string{"k"}, nil), 0); !errors.Is(err, problem.ErrOverloaded) {
			t.Errorf("one more than that: %v", err)
		}
		for _, w := range append(all, w) {
			w.Close()
		}
		if n.hub.Watching() != 0 {
			t.Errorf("%d watchers are left", n.hub.Watching())
		}
	})
}

// Guarantee: the more are told of a change, the longer they wait for the next one, up to a
// bound; few do not wait.
func TestSpacing(t *testing.T) {
	for _, tt := range []struct {
		watchers int
		want     time.Duration
	}{{1, 0}, {49, 0}, {50, spacingLeast}, {51, 51 * perWatcher}, {2500, spacingMost}, {2501, spacingMost}} {
		inBubble(t, 1<<20, func(n *node) {
			for range tt.watchers {
				n.watch([]string{"k"}, nil)
			}
			n.write([]string{"k"})
			synctest.Wait()
			if got := n.hub.Spacing(); got != tt.want {
				t.Errorf("%d watchers: %v, want %v", tt.watchers, got, tt.want)
			}
			n.write([]string{"other"})
			synctest.Wait()
			if got := n.hub.Spacing(); got != 0 {
				t.Errorf("a change for nobody: %v", got)
			}
		})
	}
}

// Guarantee: who watches a node that cannot promise anything any more is cut off within a
// second, and told why; who comes again while that is so is refused, and taken behind it.
func TestWatchersAreCutOff(t *testing.T) {
	inBubble(t, 1<<20, func(n *node) {
		w := n.watch([]string{"k"}, nil)
		var lost error = problem.ErrNoLeader
		n.may.Store(&lost)
		began := time.Now()
		<-w.Ended()
		if took := time.Since(began); took > lookAround || !errors.Is(w.Why(), lost) {
			t.Errorf("it was cut off after %v: %v", took, w.Why())
		}
		if _, err := n.hub.Watch(NewFilter([]string{"k"}, nil), 0); !errors.Is(err, lost) {
			t.Errorf("one that comes then: %v", err)
		}
		n.may.Store(new(error))
		again := n.watch([]string{"k"}, nil)
		time.Sleep(3 * lookAround)
		if again.Why() != nil {
			t.Errorf("one that comes behind it is cut off: %v", again.Why())
		}
		n.hub.End()
		<-again.Ended()
		if _, err := n.hub.Watch(NewFilter([]string{"k"}, nil), 0); !errors.Is(again.Why(), problem.ErrStopping) || !errors.Is(err, problem.ErrStopping) {
			t.Errorf("when the node stops: %v, %v", again.Why(), err)
		}
	})
}
