//go:build unix

package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"raftkv/client"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// rolling is a program that uses package client while the nodes are restarted, and that
// afterwards looks whether each effect that it was told of is there, once.
type rolling struct {
	t       testing.TB
	c       *procCluster
	workers int
	every   time.Duration // between two calls of one worker

	calls   atomic.Int64
	mu      sync.Mutex
	slowest time.Duration
	what    string            // the slowest call
	faults  []string          // errors, and answers that cannot be
	written map[uint64]string // key by revision, of puts and appends that were acknowledged
	told    map[uint64]string // what the watch said
	last    uint64            // the highest revision that it was told of
}

// fault notes what must not be.
func (r *rolling) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) < 20 {
		r.faults = append(r.faults, fmt.Sprintf(format, args...))
	}
}

// call makes one call, and notes how long it took and whether it failed.
func (r *rolling) call(what string, do func() error) bool {
	began := time.Now()
	err := do()
	took := time.Since(began)
	r.calls.Add(1)
	r.mu.Lock()
	if took > r.slowest {
		r.slowest, r.what = took, what
	}
	r.mu.Unlock()
	if err != nil {
		r.fault("%s after %v: %v", what, took, err)
	}
	return err == nil
}

func (r *rolling) acknowledged(revision uint64, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before, ok := r.written[revision]; ok {
		r.faults = append(r.faults, fmt.Sprintf("revision %d was given to %s and to %s", revision, before, key))
	}
	r.written[revision] = key
}

// work writes and reads keys of its own until ctx ends, and then looks at what has become of them.
func (r *rolling) work(ctx context.Context, kv *client.Client, id int) {
	key, sum, queue := fmt.Sprintf("put/%d", id), fmt.Sprintf("sum/%d", id), fmt.Sprintf("queue/%d/", id)
	var value string
	var added int64
	var appended []string
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	all := context.WithoutCancel(ctx) // a call that has begun is ended
	check := func() {
		r.call("get", func() error {
			it, err := kv.Get(all, key)
			if err == nil && string(it.Value) != value {
				r.fault("%s is %q, not %q", key, it.Value, value)
			}
			return err
		})
	}
	for i := 0; ctx.Err() == nil; i++ {
		switch {
		case i%4 == 0:
			value = strconv.Itoa(i)
			r.call("put", func() error {
				revision, err := kv.Put(all, key, []byte(value))
				if err == nil {
					r.acknowledged(revision, key)
				}
				return err
			})
		case i%8 == 1:
			r.call("add", func() error {
				n, err := kv.Add(all, sum, 1)
				if added++; err == nil && n != added {
					r.fault("%s is %d, not %d", sum, n, added)
					added = n
				}
				return err
			})
		case i%8 == 5:
			r.call("append", func() error {
				at, revision, err := kv.Append(all, queue, []byte(value))
				if err == nil {
					appended = append(appended, at)
					r.acknowledged(revision, at)
				}
				return err
			})
		default:
			check()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	check()
	var found []string
	for it, err := range kv.List(all, queue, client.KeysOnly()) {
		if err != nil {
			r.fault("list: %v", err)
			break
		}
		found = append(found, it.Key)
	}
	if !slices.Equal(found, appended) {
		r.fault("%s holds %d values, %d were acknowledged", queue, len(found), len(appended))
	}
}

// follow watches all that the workers append and put, from the beginning, until ctx ends.
func (r *rolling) follow(ctx context.Context, kv *client.Client) {
	var last uint64
	for change, err := range kv.Watch(ctx, client.WatchConfig{Prefixes: []string{"put/", "queue/"}, After: 1}) {
		if err != nil {
			if ctx.Err() == nil {
				r.fault("watch: %v", err)
			}
			return
		}
		if change.Revision <= last {
			r.fault("the watch told of revision %d behind %d", change.Revision, last)
		}
		last = change.Revision
		r.mu.Lock()
		for _, e := range change.Events {
			r.told[e.ModRevision] = e.Key
		}
		r.last = last
		r.mu.Unlock()
	}
}

// hold holds a lock until ctx ends, writes under its token, and has another client try to take it.
func (r *rolling) hold(ctx context.Context, kv, other *client.Client, locked chan<- struct{}) {
	all := context.WithoutCancel(ctx)
	lock := kv.Mutex("rolling")
	fence, held, err := lock.Lock(all)
	close(locked)
	if err != nil {
		r.fault("lock: %v", err)
		return
	}
	rival := other.Mutex("rolling")
	for ctx.Err() == nil {
		if held.Err() != nil {
			r.fault("the lock was lost: %v", context.Cause(held))
			return
		}
		r.call("fenced write", func() error {
			res, err := kv.Txn().If(lock.Guard(fence)).Then(client.PutOp("fenced", []byte("x"))).Commit(all)
			if err == nil && !res.Succeeded {
				r.fault("the lock is held by another")
			}
			return err
		})
		r.call("rival", func() error {
			_, _, err := rival.TryLock(all)
			if errors.Is(err, client.ErrHeld) {
				return nil
			}
			return fmt.Errorf("the rival got: %w", err)
		})
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	r.call("unlock", func() error { return lock.Unlock(all) })
}

// restartAll restarts all nodes, one after another, as often as rounds says, with a rest behind each.
func (r *rolling) restartAll(rounds int, rest time.Duration) {
	r.t.Helper()
	for range rounds {
		for _, id := range r.c.ids() {
			r.c.signal(id, syscall.SIGTERM)
			r.c.waitExit(id, 0, procStopWithin)
			r.c.launch(id)
			r.c.waitReady(id)
			time.Sleep(rest) // some load while all nodes are there
		}
	}
}

// run is the whole of it.
func (r *rolling) run(rounds int, rest time.Duration) {
	r.t.Helper()
	r.written, r.told = map[uint64]string{}, map[uint64]string{}
	r.c.start()
	r.c.put(1, "first", "x") // revision 1: the watch begins behind it
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	watching, endWatch := context.WithCancel(context.Background())
	defer endWatch()
	var load, watch sync.WaitGroup
	watch.Go(func() { r.follow(watching, r.c.goClient()) })
	locked := make(chan struct{})
	load.Go(func() { r.hold(ctx, r.c.goClient(2, 3, 1), r.c.goClient(3, 1, 2), locked) })
	<-locked
	for id := range r.workers {
		kv := r.c.goClient(id%3+1, (id+1)%3+1, (id+2)%3+1)
		load.Go(func() { r.work(ctx, kv, id) })
	}
	r.restartAll(rounds, rest)
	stop()
	load.Wait()

	r.mu.Lock()
	var newest uint64
	if len(r.written) > 0 {
		newest = slices.Max(slices.Collect(maps.Keys(r.written)))
	}
	r.mu.Unlock()
	procEventually(r.t, 10*time.Second, "the watch has told of all", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.last < newest {
			return fmt.Errorf("it is at revision %d, not %d", r.last, newest)
		}
		return nil
	})
	endWatch()
	watch.Wait()
	for revision, key := range r.written {
		if r.told[revision] != key {
			r.fault("revision %d wrote %s, the watch told of %q", revision, key, r.told[revision])
		}
	}
	for revision, key := range r.told {
		if r.written[revision] == "" {
			r.fault("the watch told of %s at revision %d, which nobody wrote", key, revision)
		}
	}
	for _, f := range r.faults {
		r.t.Error(f)
	}
}

// Guarantee: a program that uses package client does not notice that all nodes are restarted
// one after another: no call fails, and each effect that it was told of is there, once. At
// full length that is 2,000 calls a second and three rounds, and no call takes three seconds.
func TestSoakRollingRestart(t *testing.T) {
	full := testkit.SoakOr(false, true)
	if !full {
		t.Parallel()
	}
	r := &rolling{t: t, c: newProcCluster(t, 3), workers: testkit.SoakOr(8, 80), every: testkit.SoakOr(20*time.Millisecond, 32*time.Millisecond)}
	began := time.Now()
	r.run(testkit.SoakOr(1, 3), testkit.SoakOr(100*time.Millisecond, 2*time.Second))
	took := time.Since(began)
	t.Logf("%d calls in %v, %.0f a second; the slowest was a %s of %v", r.calls.Load(), took, float64(r.calls.Load())/took.Seconds(), r.what, r.slowest)
	if full && r.slowest >= 3*time.Second {
		t.Errorf("a %s took %v", r.what, r.slowest)
	}
}
