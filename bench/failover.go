package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	failoverClients = 48
	failoverLimit   = 30 * time.Second // for writes to go on
)

// failoverRow kills leaders under load, and measures how long no write is
// acknowledged.
func (b *bench) failoverRow(ctx context.Context) (_ []outcome, failed error) {
	o := outcome{Row: failoverName, Notes: []string{
		fmt.Sprintf("%d clients, evenly on three nodes; one that loses its node moves to the next", failoverClients),
		"first: from the kill to the first acknowledgement of a write that was sent later; slowest: until every client has had one"}}
	for _, f := range []struct {
		name  string
		s     system
		dial  dialer
		times int
	}{
		{"raftkv", b.raftkv, dialRaftkv, b.kills},
		{"etcd gateway", b.etcd, dialGateway, (b.kills + 3) / 4},
	} {
		if !b.lanes.MatchString(f.name) {
			continue
		}
		res, err := b.failovers(ctx, f.name, f.s, f.dial, f.times)
		l := res.line(f.name)
		if err != nil { // the kills before it count
			failed = errors.Join(failed, err)
			l.Remarks = append(l.Remarks, "ended early: "+err.Error())
		}
		o.Lines = append(o.Lines, l)
		if f.name == "raftkv" && err == nil {
			o.Targets = res.judge()
		}
	}
	return []outcome{o}, failed
}

// failures is what came of some kills, times in seconds.
type failures struct {
	first, slowest []float64
	errors         int64
	firstErr       error
}

func (f *failures) line(name string) line {
	l := line{Name: name, Figures: []figure{
		{Name: "kills", Value: float64(len(f.first))},
		{Name: "first: median s", Value: quantile(f.first, 0.5), decimals: 2},
		{Name: "p95 s", Value: quantile(f.first, 0.95), decimals: 2},
		{Name: "max s", Value: quantile(f.first, 1), decimals: 2},
		{Name: "slowest: median s", Value: quantile(f.slowest, 0.5), decimals: 2},
		{Name: "max s", Value: quantile(f.slowest, 1), decimals: 2},
		{Name: "errors", Value: float64(f.errors)},
	}}
	if f.firstErr != nil {
		l.Remarks = append(l.Remarks, "the first error: "+f.firstErr.Error())
	}
	return l
}

func (f *failures) judge() []verdict {
	return []verdict{
		atMost("median seconds without an acknowledged write", 2, f.first...),
		atMost("p95 of them", 3, quantile(f.first, 0.95)),
		atMost("errors at clients that move on", 0, float64(f.errors)),
	}
}

func (b *bench) failovers(ctx context.Context, name string, s system, dial dialer, times int) (_ *failures, err error) {
	f := &failures{}
	c, err := newCluster(ctx, s, "failover", b.temp, 3)
	defer func() { err = errors.Join(err, c.stop()) }()
	if err != nil {
		return f, err
	}
	for i := range times {
		if err := f.killLeader(ctx, c, dial, uint64(i)); err != nil {
			return f, fmt.Errorf("%s, kill %d: %w", name, i+1, err)
		}
		b.detailf("  %-24s first %.2f s, slowest %.2f s, %d errors so far", name, f.first[i], f.slowest[i], f.errors)
	}
	return f, nil
}

// killLeader kills the leader once, lets the clients go on, checks that what
// they were told is true, and starts the node again.
func (f *failures) killLeader(ctx context.Context, c *cluster, dial dialer, round uint64) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	s := &survivors{cluster: c, victim: leader, dial: dial}
	stop := s.start(round)
	// At any moment of a heartbeat interval.
	err = sleep(ctx, time.Second+rand.N(500*time.Millisecond))
	began := time.Now()
	if err == nil {
		leader.kill()
		s.killed.Store(time.Now().UnixNano())
		err = waitFor(ctx, failoverLimit, s.allServed)
	}
	stop()
	if err != nil {
		return err
	}
	first, slowest := s.served(began)
	f.first, f.slowest = append(f.first, first.Seconds()), append(f.slowest, slowest.Seconds())
	for _, cl := range s.clients {
		f.errors += cl.errors
		f.firstErr = cmp.Or(f.firstErr, cl.firstErr)
		if err := s.check(cl); err != nil {
			return err
		}
	}
	if err := c.start(leader); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// survivors are the clients of a cluster whose leader is killed.
type survivors struct {
	*cluster
	victim  *node
	dial    dialer
	killed  atomic.Int64 // when it was dead
	clients []*survivor
}

// survivor writes one key after the other.
type survivor struct {
	at       *node
	client   client // nil while it has no connection
	next     uint64
	before   uint64       // the last key that was acknowledged before the kill
	served   atomic.Int64 // when a write was acknowledged that was sent after it
	errors   int64
	firstErr error
}

var survivorValue = valueMaker{size: usualSize}

// start lets the clients write until the function that it returns is called.
func (s *survivors) start(round uint64) (stop func()) {
	var ended atomic.Bool
	var running sync.WaitGroup
	for i := range failoverClients {
		cl := &survivor{at: s.nodes[i%len(s.nodes)], next: (round*failoverClients + uint64(i)) * 1_000_000}
		s.clients = append(s.clients, cl)
		running.Go(func() {
			for !ended.Load() {
				s.write(cl)
			}
			if cl.client != nil {
				cl.client.close()
			}
		})
	}
	return func() { ended.Store(true); running.Wait() }
}

// write makes one attempt to write a client's next key. When it fails, the
// client moves to the next node. That is an error that counts, unless it is
// only that the killed node no longer speaks.
func (s *survivors) write(cl *survivor) {
	begin, killed := time.Now(), s.killed.Load()
	err := s.attempt(cl)
	if err == nil {
		if killed == 0 {
			cl.before = cl.next
		} else if begin.UnixNano() > killed {
			cl.served.CompareAndSwap(0, time.Now().UnixNano())
		}
		cl.next++
		return
	}
	if status := (statusError{}); errors.As(err, &status) || cl.at != s.victim {
		cl.errors++
		cl.firstErr = cmp.Or(cl.firstErr, fmt.Errorf("node %d: %w", cl.at.id, err))
	}
	if cl.client != nil {
		cl.client.close()
		cl.client = nil
	}
	cl.at = s.other(cl.at)
}

func (s *survivors) attempt(cl *survivor) error {
	if cl.client == nil {
		made, err := s.dial(cl.at.client, 1, survivorValue, 2*failoverLimit)
		if err != nil {
			return err
		}
		cl.client = made[0]
	}
	return cl.client.do(put, cl.next)
}

// allServed returns nil once every client has had a write acknowledged that it
// sent after the kill.
func (s *survivors) allServed() error {
	for i, cl := range s.clients {
		if cl.served.Load() == 0 {
			return fmt.Errorf("client %d has had no write acknowledged", i)
		}
	}
	return nil
}

// served returns when the first and the last client was, counted from a time.
func (s *survivors) served(from time.Time) (first, last time.Duration) {
	for i, cl := range s.clients {
		d := time.Unix(0, cl.served.Load()).Sub(from)
		if i == 0 || d < first {
			first = d
		}
		last = max(last, d)
	}
	return first, last
}

// check reads back what a client was told of last, before the kill and at all.
func (s *survivors) check(cl *survivor) error {
	made, err := s.dial(s.other(s.victim).client, 1, survivorValue, failoverLimit)
	if err != nil {
		return err
	}
	defer closeAll(made)
	return errors.Join(survivorValue.check(made[0], cl.before), survivorValue.check(made[0], cl.next-1))
}
