package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// load is what is asked of one server for one turn.
type load struct {
	keys   keyRange
	writes float64   // part of the requests that are PUTs
	read   operation // of all others
	rate   float64   // requests a second, open loop; 0 is a closed loop
	warm   time.Duration
	length time.Duration
	keep   bool // keep each sample, not only the histogram
}

// keyRange is keys by number.
type keyRange struct{ first, count uint64 }

// result is what came of one or more turns.
type result struct {
	ops       int64
	seconds   float64
	errors    int64
	firstErr  error
	latency   *hdrhistogram.Histogram // microseconds
	serverCPU time.Duration
	clientCPU time.Duration
	samples   []sample
	written   []uint64 // the last key that each worker wrote
}

// sample is one request: when it was meant to begin, and how long it took.
type sample struct {
	at   time.Time
	took time.Duration
}

// longest is the largest latency that a histogram tells apart.
const longest = time.Minute

func newResult() *result {
	return &result{latency: hdrhistogram.New(1, longest.Microseconds(), 3)}
}

// record adds one request that succeeded.
func (r *result) record(took time.Duration) {
	r.ops++
	_ = r.latency.RecordValue(max(1, min(took, longest).Microseconds())) // cannot be out of range
}

// fail adds one that did not.
func (r *result) fail(err error) {
	r.errors++
	r.firstErr = cmp.Or(r.firstErr, err)
}

// add adds what came of another turn, or of another worker of this one.
func (r *result) add(o *result) {
	r.ops += o.ops
	r.seconds += o.seconds
	r.errors += o.errors
	r.firstErr = cmp.Or(r.firstErr, o.firstErr)
	r.latency.Merge(o.latency)
	r.serverCPU += o.serverCPU
	r.clientCPU += o.clientCPU
	r.samples = append(r.samples, o.samples...)
	r.written = append(r.written, o.written...)
}

func (r *result) rate() float64 { return float64(r.ops) / r.seconds }

// ms returns a quantile of the latency in milliseconds.
func (r *result) ms(quantile float64) float64 {
	return float64(r.latency.ValueAtQuantile(quantile)) / 1000
}

// perOp returns what an operation took of CPU, in microseconds.
func (r *result) perOp(cpu time.Duration) float64 {
	return float64(cpu.Microseconds()) / float64(max(1, r.ops))
}

// run puts the clients to work, each with a worker, and returns what came of
// it. The CPU is that of the servers pids, and of this process.
func (l load) run(ctx context.Context, clients []client, pids []int) (*result, error) {
	t := &turn{load: l, begin: time.Now()}
	t.from = t.begin.Add(l.warm)
	t.until = t.from.Add(l.length)
	if l.rate > 0 {
		// Room for all, so that the pace does not depend on who takes them.
		t.due = make(chan time.Time, int(l.rate*(l.warm+l.length).Seconds())+1)
		go t.pace()
	}
	workers := make([]*worker, len(clients))
	var running sync.WaitGroup
	for i, c := range clients {
		w := &worker{turn: t, client: c, random: rand.New(rand.NewPCG(rand.Uint64(), 0)), shard: t.shardOf(i)}
		workers[i] = w
		running.Go(w.run)
	}
	cpu, err := t.measureCPU(ctx, pids)
	if err != nil {
		t.cancelled.Store(true)
	}
	running.Wait()
	if err != nil {
		return nil, err
	}
	sum := newResult()
	for i := range t.shards {
		if s := t.shards[i].result; s != nil {
			sum.add(s)
		}
	}
	for _, w := range workers {
		if w.wrote {
			sum.written = append(sum.written, w.last)
		}
		sum.samples = append(sum.samples, w.samples...)
	}
	sum.seconds, sum.serverCPU, sum.clientCPU = l.length.Seconds(), cpu.server, cpu.client
	return sum, nil
}

// turn is a load that is being run.
type turn struct {
	load
	begin, from, until time.Time      // requests count that are done between the last two
	due                chan time.Time // open loop: when requests are to begin
	cancelled          atomic.Bool
	shards             [8]shard
}

// shard is where some workers record: one histogram for each would be too large
// for the caches, one for all a place to queue.
type shard struct {
	mu     sync.Mutex
	result *result
}

func (t *turn) shardOf(worker int) *shard {
	s := &t.shards[worker%len(t.shards)]
	if s.result == nil {
		s.result = newResult()
	}
	return s
}

type cpuUse struct{ server, client time.Duration }

// measureCPU waits until the turn is over, and returns the CPU used in the part
// that counts.
func (t *turn) measureCPU(ctx context.Context, pids []int) (cpuUse, error) {
	now := func() (u cpuUse, err error) {
		var err2 error
		u.server, err = cpuTime(pids...)
		u.client, err2 = cpuTime(os.Getpid())
		return u, errors.Join(err, err2)
	}
	if err := sleep(ctx, time.Until(t.from)); err != nil {
		return cpuUse{}, err
	}
	before, err := now()
	if err != nil {
		return cpuUse{}, err
	}
	if err := sleep(ctx, time.Until(t.until)); err != nil {
		return cpuUse{}, err
	}
	after, err := now()
	return cpuUse{after.server - before.server, after.client - before.client}, err
}

// worker sends one request after the other.
type worker struct {
	*turn
	client  client
	random  *rand.Rand
	shard   *shard
	last    uint64 // the key that it wrote last
	wrote   bool
	samples []sample
}

func (w *worker) run() {
	send := w.closedLoop
	if w.rate > 0 {
		send = w.openLoop
	}
	if err := send(); err != nil {
		w.shard.mu.Lock()
		w.shard.result.fail(err)
		w.shard.mu.Unlock()
	}
}

// closedLoop sends the next request when the one before is answered. The first
// error ends it: the turn does not count then.
func (w *worker) closedLoop() error {
	for !w.cancelled.Load() {
		begin := time.Now()
		if begin.After(w.until) {
			return nil
		}
		if err := w.request(); err != nil {
			return err
		}
		if end := time.Now(); end.After(w.from) && !end.After(w.until) {
			w.record(begin, end)
		}
	}
	return nil
}

// pace makes the times of an open loop, each when it has come. It has a thread
// of its own to sleep in, because the runtime's timers are late by up to a
// millisecond.
func (t *turn) pace() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(t.due)
	for i := 0; !t.cancelled.Load(); i++ {
		at := t.begin.Add(time.Duration(float64(i) / t.rate * float64(time.Second)))
		if at.After(t.until) {
			return
		}
		for wait := time.Until(at); wait > 0; wait = time.Until(at) {
			pause(wait)
		}
		t.due <- at
	}
}

// openLoop sends requests at times that were fixed before, whatever the answers
// to earlier ones do, and counts a request from when it was due. So what a slow
// answer makes others wait is counted, too.
func (w *worker) openLoop() error {
	for at := range w.due {
		if w.cancelled.Load() { // what has piled up in due may be much
			return nil
		}
		if time.Since(w.until) > w.length {
			w.cancelled.Store(true)
			return fmt.Errorf("the server does not keep up with %.0f requests/s", w.rate)
		}
		if err := w.request(); err != nil {
			return err
		}
		if at.After(w.from) {
			w.record(at, time.Now())
		}
	}
	return nil
}

// request sends one request for a key drawn at random.
func (w *worker) request() error {
	op := w.read
	if w.writes == 1 || w.writes > 0 && w.random.Float64() < w.writes {
		op = put
	}
	key := w.keys.first + w.random.Uint64N(w.keys.count)
	err := w.client.do(op, key)
	if op.writes() && err == nil {
		w.last, w.wrote = key, true
	}
	return err
}

func (w *worker) record(begin, end time.Time) {
	took := end.Sub(begin)
	w.shard.mu.Lock()
	w.shard.result.record(took)
	w.shard.mu.Unlock()
	if w.keep {
		w.samples = append(w.samples, sample{begin, took})
	}
}

// fill writes each key of a range once.
func fill(ctx context.Context, clients []client, keys keyRange) error {
	var next atomic.Uint64
	errs := make([]error, len(clients))
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() {
			for errs[i] == nil && ctx.Err() == nil {
				k := next.Add(1) - 1
				if k >= keys.count {
					return
				}
				errs[i] = c.do(put, keys.first+k)
			}
		})
	}
	running.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
