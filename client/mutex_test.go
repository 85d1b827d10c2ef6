package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: a lock is a key with a lease; others wait for it, or are told that it is taken; it is
// free at once when it is given back, and its fencing tokens grow.
func TestMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		a, b := f.client(2).Mutex("x", LockValue([]byte("a"))), f.client(2).Mutex("x")
		fence, held, err := a.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		it, ok := f.has("lock/x")
		if !ok || string(*it.Base64) != "a" || it.ModRevision != fence || it.Lease == 0 {
			t.Fatalf("%+v at %d", it, fence)
		}
		if _, _, err := b.TryLock(t.Context()); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), `"a"`) {
			t.Fatal(err)
		}
		if _, _, err := a.TryLock(t.Context()); !errors.Is(err, ErrHeld) {
			t.Fatal(err)
		}
		if left := time.Until(a.Until()); left < DefaultLockTTL*9/10 || left > DefaultLockTTL || time.Until(b.Until()) != 0 {
			t.Fatal(left, b.Until())
		}
		if f.sent("POST") != 1 {
			t.Fatal("TryLock of a lock that is taken has made a lease")
		}
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		if _, _, err := b.Lock(short); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Fatal(err, time.Since(begun))
		}
		if len(f.leases) != 1 || held.Err() != nil {
			t.Fatal("a Lock that was given up left a lease behind, or the lock was lost in a minute")
		}
		var freed time.Time
		go func() {
			time.Sleep(time.Minute)
			freed = time.Now()
			if err := a.Unlock(t.Context()); err != nil {
				t.Error(err)
			}
			if err := held.Err(); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		next, _, err := b.Lock(t.Context())
		if err != nil || next <= fence || time.Since(freed) > 100*time.Millisecond {
			t.Fatal(err, next, time.Since(freed))
		}
		if err := a.Unlock(t.Context()); !errors.Is(err, ErrNotHeld) {
			t.Fatal(err)
		}
		if err := b.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := f.has("lock/x"); ok || len(f.leases) != 0 {
			t.Fatal("something is left")
		}
	})
}

// Guarantee: no lock is taken twice by a retry. An answer that was lost, however often, and
// a request that arrives late make no other holder.
func TestMutexRetries(t *testing.T) {
	for name, fault := range map[string]func(n int) fakeFault{
		"one answer lost":   func(n int) fakeFault { return fakeFault{lost: n == 1} },
		"many answers lost": func(n int) fakeFault { return fakeFault{lost: n <= 5} },
		"a request is late": func(n int) fakeFault {
			return fakeFault{late: map[bool]time.Duration{true: 2500 * time.Millisecond}[n == 1]}
		},
		"an answer is late":  func(n int) fakeFault { return fakeFault{slow: map[bool]time.Duration{true: 3 * time.Second}[n == 1]} },
		"all hang for a bit": func(n int) fakeFault { return fakeFault{hangs: n <= 3} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t)
				n := 0
				f.fault = func(_ int, r *http.Request) fakeFault {
					if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "kv/lock") {
						return fakeFault{}
					}
					n++
					return fault(n)
				}
				m := f.client(3).Mutex("x")
				fence, held, err := m.Lock(t.Context())
				if err != nil || held.Err() != nil {
					t.Fatal(err)
				}
				if it, _ := f.has("lock/x"); it.CreateRevision != fence || it.Version != 1 {
					t.Fatalf("%+v, fence %d", it, fence)
				}
				time.Sleep(10 * time.Second)
				if it, _ := f.has("lock/x"); it.CreateRevision != fence || it.Version != 1 {
					t.Fatalf("later: %+v, fence %d", it, fence)
				}
				if err := m.Unlock(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if it, ok := f.has("lock/x"); ok {
					t.Fatalf("it came back: %+v", it)
				}
			})
		})
	}
}

// Guarantee: a key that is there with the lock's own lease is its own, also where the cluster
// does not remember the request any more.
func TestMutexFindsItsOwnKey(t *testing.T) {
	for _, try := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster(t)
			n := 0
			f.fault = func(_ int, r *http.Request) fakeFault {
				if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "kv/lock") {
					return fakeFault{}
				}
				if n++; n == 2 {
					clear(f.once)
				}
				return fakeFault{lost: n == 1}
			}
			m := f.client(2).Mutex("x")
			lock := m.Lock
			if try {
				lock = m.TryLock
			}
			fence, _, err := lock(t.Context())
			if it, _ := f.has("lock/x"); err != nil || n != 2 || it.CreateRevision != fence || it.Version != 1 {
				t.Fatalf("%v after %d requests, fence %d: %+v", err, n, fence, it)
			}
		})
	}
}

// Guarantee: a lock whose taking has an unknown outcome when the wait ends is not left behind, and
// the error says whether it may be: it is not if the lease was revoked.
func TestMutexUnknownOutcome(t *testing.T) {
	for _, revoked := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster(t)
			f.fault = func(_ int, r *http.Request) fakeFault {
				return fakeFault{
					lost:  r.Method == http.MethodPut && strings.Contains(r.URL.Path, "kv/lock"),
					hangs: r.Method == http.MethodDelete && !revoked,
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			begun := time.Now()
			_, _, err := f.client(2).Mutex("x").Lock(ctx)
			if errors.Is(err, ErrOutcomeUnknown) == revoked || errors.Is(err, ErrNotApplied) != revoked || !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 6*time.Second {
				t.Fatal(err, time.Since(begun))
			}
			if !revoked {
				time.Sleep(DefaultLockTTL)
			}
			if it, ok := f.has("lock/x"); ok || len(f.leases) != 0 {
				t.Fatalf("it is still there: %+v", it)
			}
		})
	}
}

// Guarantee: a Lock does not wait for an answer longer than its lease is good for, and a lock whose
// lease was lost when the answer came is not handed out.
func TestMutexLeaseLostWhileLocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		begun := time.Now()
		f.fault = func(_ int, r *http.Request) fakeFault {
			return fakeFault{hangs: time.Since(begun) < 20*time.Second && r.Method == http.MethodPut}
		}
		if _, _, err := f.client(2).Mutex("x", LockTTL(3*time.Second)).Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.last < 5 {
			t.Fatalf("%d leases in 20 seconds", f.last)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		c := f.client(1)
		l, err := c.Lease(t.Context(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		f.fault = func(_ int, r *http.Request) fakeFault { // this process is stopped for a while
			l.mu.Lock()
			defer l.mu.Unlock()
			l.look.Stop()
			l.sent.at = l.sent.at.Add(-11 * time.Second)
			return fakeFault{}
		}
		p := &pursuit{holding: newHolding(c, "lock/x", "lock", "unlock", nil), lease: l}
		if fence, err := p.step(t.Context()); fence != 0 || err != nil {
			t.Fatal(fence, err)
		}
		if _, ok := f.has("lock/x"); !ok {
			t.Fatal("it was not written")
		}
	})
}

// Guarantee: a Lock that was given up before anything of it was in doubt did not happen, whatever
// became of its lease.
func TestMutexGivenUpInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.puts("lock/x")
		f.fault = func(_ int, r *http.Request) fakeFault { return fakeFault{hangs: r.Method == http.MethodDelete} }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err := f.client(2).Mutex("x").Lock(ctx); !errors.Is(err, ErrNotApplied) || errors.Is(err, ErrOutcomeUnknown) {
			t.Fatal(err)
		}
	})
}

// Guarantee: a lease that is gone when the key is to be written is replaced by another.
func TestMutexLeaseGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		n := 0
		f.fault = func(_ int, r *http.Request) fakeFault {
			if strings.Contains(r.URL.Path, "kv/lock") {
				if n++; n == 1 {
					f.dropLease(1, Expire)
				}
			}
			return fakeFault{}
		}
		_, held, err := f.client(1).Mutex("x").Lock(t.Context())
		if err != nil || held.Err() != nil || f.last != 2 {
			t.Fatal(err, f.last)
		}
	})
}

// Guarantee: a holder that is cut off is told before anybody else can have the lock, and
// Unlock says so.
func TestMutexLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		var cut bool
		f.fault = func(node int, r *http.Request) fakeFault { return fakeFault{hangs: cut && node == 1} }
		a, b := f.client(1).Mutex("x", LockTTL(5*time.Second)), f.client(3)
		_, held, err := a.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		f.mu.Lock()
		cut = true
		f.mu.Unlock()
		begun := time.Now()
		_, _, err = b.Mutex("x").Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if held.Err() == nil || !errors.Is(context.Cause(held), ErrLeaseLost) {
			t.Fatal("two hold it")
		}
		if took := time.Since(begun); took > 6*time.Second {
			t.Fatalf("it took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Unlock(ctx); !errors.Is(err, ErrLeaseLost) {
			t.Fatal(err)
		}
		f.mu.Lock()
		cut = false
		f.mu.Unlock()
		if _, _, err := a.TryLock(t.Context()); !errors.Is(err, ErrHeld) {
			t.Fatal(err)
		}
	})
}

// Guarantee: Lock waits through an outage of the whole cluster, and not for what waiting does not
// mend.
func TestMutexWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		down := true
		f.fault = func(int, *http.Request) fakeFault { return fakeFault{refused: down} }
		go func() {
			time.Sleep(10 * time.Minute)
			f.mu.Lock()
			down = false
			f.mu.Unlock()
		}()
		if _, _, err := f.client(3).Mutex("x").Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	for _, at := range []string{"POST", "PUT", "GET"} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster(t)
			f.puts("lock/x")
			f.fault = func(_ int, r *http.Request) fakeFault {
				if r.Method == at && !(at == "PUT" && strings.Contains(r.URL.Path, "lease")) {
					a := fakeProblem(403, Forbidden, false)
					return fakeFault{answer: &a}
				}
				return fakeFault{}
			}
			begun := time.Now()
			_, _, err := f.client(3).Mutex("x").Lock(t.Context())
			if !errors.Is(err, Forbidden) || !errors.Is(err, ErrNotApplied) || time.Since(begun) > time.Second || len(f.leases) != 0 {
				t.Fatal(err, time.Since(begun), len(f.leases))
			}
		})
	}
}

// Guarantee: a follower that is behind, whose watch says that the key is not there, does not make
// a waiter ask over and over.
func TestMutexWatchBehind(t *testing.T) {
	s := &sentry{now: sighting{next: make(chan struct{})}}
	c := newFakeCluster(t).client(1)
	p := &pursuit{holding: newHolding(c, "lock/x", "lock", "unlock", nil), watch: s, lease: c.newLease(t.Context(), 7, time.Minute, thisMoment())}
	s.set(sighting{known: true, revision: 9})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.wait(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if fence, err := p.wait(t.Context(), 9); fence != 0 || err != nil {
		t.Fatal(fence, err)
	}
	s.set(sighting{known: true, there: true, item: Item{Lease: 7, CreateRevision: 11}, revision: 12})
	if fence, err := p.wait(t.Context(), 10); fence != 11 || err != nil {
		t.Fatal(fence, err)
	}
}

// Guarantee: a waiter whose watch is told nothing, since its node hangs, gets a lock that is free
// within its time to live.
func TestMutexWatchHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		a, b := f.client(1).Mutex("x"), f.client(1).Mutex("x")
		if _, _, err := a.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() {
			_, _, err := b.Lock(t.Context())
			got <- err
		}()
		time.Sleep(time.Minute)
		f.mu.Lock()
		clear(f.streams) // nothing is told any more
		f.mu.Unlock()
		freed := time.Now()
		if err := a.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil || time.Since(freed) > DefaultLockTTL {
			t.Fatal(err, time.Since(freed))
		}
	})
}

// Guarantee: who waits for a lock relies on a watch again once there can be one, and does not go on
// trying to write the key.
func TestMutexWatchComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		a, b := f.client(1).Mutex("x"), f.client(1).Mutex("x")
		if _, _, err := a.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		refused := true
		f.fault = func(_ int, r *http.Request) fakeFault {
			return fakeFault{refused: refused && r.URL.Path == "/v1/watch"}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan error)
		go func() {
			_, _, err := b.Lock(ctx)
			got <- err
		}()
		time.Sleep(5 * time.Minute)
		f.mu.Lock()
		refused = false
		f.mu.Unlock()
		time.Sleep(time.Minute)
		f.mu.Lock()
		f.requests = nil
		f.mu.Unlock()
		time.Sleep(5 * time.Minute)
		f.mu.Lock()
		writes := 0
		for _, r := range f.requests {
			if r == "PUT /v1/kv/lock/x" {
				writes++
			}
		}
		f.mu.Unlock()
		if writes > 0 {
			t.Errorf("the key was tried to be written %d times while another held it", writes)
		}
		if err := a.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	})
}

// Guarantee: of many who contend for a lock, over connections that lose requests and answers and
// holders that are cut off, each is alone with it while its context says so, and what it
// protects never sees a smaller fencing token behind a larger one of a holder.
func TestMutexContended(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster(t)
			rng := rand.New(rand.NewPCG(seed, 1))
			f.fault = func(int, *http.Request) fakeFault { // it is called under f.mu
				switch n := rng.IntN(100); {
				case n < 5:
					return fakeFault{refused: true}
				case n < 10:
					return fakeFault{lost: true}
				case n < 14:
					return fakeFault{late: time.Duration(rng.IntN(8000)) * time.Millisecond}
				case n < 18:
					return fakeFault{slow: time.Duration(rng.IntN(8000)) * time.Millisecond}
				case n < 20:
					return fakeFault{hangs: true}
				}
				return fakeFault{slow: time.Duration(rng.IntN(20)) * time.Millisecond}
			}
			var (
				mu      sync.Mutex
				newest  uint64
				holders = map[uint64]context.Context{}
				turns   int
				wg      sync.WaitGroup
			)
			for range 6 {
				m := f.client(3).Mutex("x", LockTTL(3*time.Second))
				wg.Go(func() {
					for range 5 {
						fence, held, err := m.Lock(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						for other, ctx := range holders {
							if ctx.Err() == nil && held.Err() == nil {
								t.Errorf("seed %d: %d holds it, and so does %d", seed, fence, other)
							}
						}
						if fence <= newest {
							t.Errorf("seed %d: fence %d behind %d", seed, fence, newest)
						}
						newest, turns = fence, turns+1
						holders[fence] = held
						long := jitter(0, 2*time.Second)
						mu.Unlock()
						_ = sleep(held, long)
						mu.Lock()
						delete(holders, fence)
						mu.Unlock()
						_ = m.Unlock(t.Context())
					}
				})
			}
			wg.Wait()
			if turns != 30 {
				t.Errorf("seed %d: %d turns", seed, turns)
			}
		})
	}
}

// Guarantee: within a process one Lock of a Mutex has it at a time, too.
func TestMutexInOneProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		m := f.client(1).Mutex("x")
		n, inside := 0, 0
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, _, err := m.Lock(t.Context()); err != nil {
					t.Error(err)
					return
				}
				if n, inside = n+1, inside+1; inside != 1 {
					t.Error("two are inside")
				}
				time.Sleep(time.Second)
				inside--
				if err := m.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n != 10 {
			t.Fatal(n)
		}
	})
}
