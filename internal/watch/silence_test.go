package watch

import (
	"context"
	"errors"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: watchers of a node that cannot confirm that it has applied what was
// acknowledged are cut off in time, with the reason, and none of one that can, however long
// nobody watched before. Nobody is asked while nobody watches.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fails atomic.Bool
		var asked atomic.Int64
		st := state.New(testkit.Peers())
		st.Changes.Keep(1<<20, 0)
		h := New(Config{
			Look:     func(look func(*state.State)) error { look(st); return nil },
			Revision: wait.NewLevel(0),
			May:      func() error { return nil },
			Confirm: func(ctx context.Context) error {
				asked.Add(1)
				if !fails.Load() {
					return nil
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
				return problem.ErrNoLeader
			},
		})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		watch := func() *Watcher {
			w, err := h.Watch(NewFilter(nil, []string{""}), 0)
			testkit.Must(t, err)
			return w
		}
		cutAfter := func(w *Watcher) time.Duration {
			began := time.Now()
			select {
			case <-w.Ended():
				return time.Since(began)
			case <-time.After(time.Hour):
				return 0
			}
		}
		time.Sleep(time.Hour)
		if n := asked.Load(); n > 0 {
			t.Errorf("it was asked %d times while nobody watched", n)
		}
		w := watch()
		if at := cutAfter(w); at > 0 {
			t.Errorf("a healthy node cuts off after %v: %v", at, w.Why())
		}
		fails.Store(true)
		if at := cutAfter(w); at < Silence-probeEvery || at > Silence+2*time.Second || !errors.Is(w.Why(), problem.ErrNoLeader) {
			t.Errorf("it is cut off after %v: %v", at, w.Why())
		}
		w.Close()
		// Who comes again is told again.
		w = watch()
		if at := cutAfter(w); at < Silence || at > Silence+2*time.Second || !errors.Is(w.Why(), problem.ErrNoLeader) {
			t.Errorf("again it is cut off after %v: %v", at, w.Why())
		}
		w.Close()
		fails.Store(false)
		w = watch()
		if at := cutAfter(w); at > 0 {
			t.Errorf("a node that is healthy again cuts off after %v: %v", at, w.Why())
		}
		w.Close()
		end()
		testkit.Must(t, <-ended)
		if _, err := h.Watch(NewFilter(nil, nil), 0); !errors.Is(err, problem.ErrStopping) {
			t.Errorf("a watch of a node that has ended: %v", err)
		}
	})
}

// Guarantee: an answer to what was asked before a watcher came says nothing against it: it is
// cut off no sooner than any other.
func TestSilenceOfThoseBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := state.New(testkit.Peers())
		h := New(Config{
			Look:     func(look func(*state.State)) error { look(st); return nil },
			Revision: wait.NewLevel(0),
			May:      func() error { return nil },
			Confirm:  func(context.Context) error { time.Sleep(Silence - time.Second); return nil },
		})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		before, err := h.Watch(NewFilter(nil, []string{""}), 0)
		testkit.Must(t, err)
		time.Sleep(probeEvery + Silence - 2*time.Second) // it has been asked for, and is not answered
		before.Close()
		w, err := h.Watch(NewFilter(nil, []string{""}), 0)
		testkit.Must(t, err)
		began := time.Now()
		if <-w.Ended(); time.Since(began) < Silence {
			t.Errorf("it is cut off after %v: %v", time.Since(began), w.Why())
		}
		w.Close()
		end()
		testkit.Must(t, <-ended)
	})
}
