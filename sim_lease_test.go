package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/history"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"sync"
	"testing"
	"time"
)

// leaseClient is a client of a simulated cluster that counts the time of its keys from
// when it sent the request.
type leaseClient struct {
	c    *simCluster
	id   int
	turn int  // which node comes next
	calm bool // nothing fails, so nothing may be late
}

// on returns a node to ask; another at each call. nil: all are down.
func (l *leaseClient) on() *server {
	l.c.Lives.Lock()
	defer l.c.Lives.Unlock()
	up := l.c.Up()
	if len(up) == 0 {
		return nil
	}
	l.turn++
	return l.c.Nodes[up[l.turn%len(up)]].Life
}

// propose has the cluster apply a command on some node.
func (l *leaseClient) propose(cmd []byte) state.Result {
	srv := l.on()
	if srv == nil {
		time.Sleep(100 * time.Millisecond)
		return state.Result{Err: problem.ErrNoLeader}
	}
	return srv.proposals.Propose(context.Background(), cmd)
}

// missing reports whether a key is not there, as a linearizable read has it.
func (l *leaseClient) missing(key string) bool {
	for {
		if srv := l.on(); srv != nil {
			if res, it := srv.Do(context.Background(), history.Input{Kind: history.Get, Key: key}); res.Err == nil {
				return it == nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// watch looks after a key that a request sent at some time keeps alive for ttl: it must not
// be gone before that, and must be soon after it.
func (l *leaseClient) watch(key string, sent time.Time, ttl time.Duration) {
	end := sent.Add(ttl)
	for time.Now().Before(end) {
		if l.missing(key) && time.Now().Before(end) {
			l.c.T.Errorf("%s with %v to live was gone %v early", key, ttl, time.Until(end))
			return
		}
		time.Sleep(min(max(time.Until(end)-time.Millisecond, time.Millisecond), 300*time.Millisecond))
	}
	limit := time.Minute
	if l.calm {
		limit = 2 * time.Second
	}
	for !l.missing(key) {
		if late := time.Since(end); late > limit {
			l.c.T.Errorf("%s with %v to live was there %v after that", key, ttl, late)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// timed writes keys with a time to live, one after the other.
func (l *leaseClient) timed(until time.Time) (seen int) {
	for n := 0; time.Now().Before(until); n++ {
		key := fmt.Sprintf("timed/%d/%d", l.id, n)
		ttl := time.Duration(200+1700*(n%5)) * time.Millisecond
		sent := time.Now()
		life := state.Lifetime{Kind: state.ForTTL, Value: uint64(ttl / time.Millisecond)}
		if l.propose(state.AppendLeasedPutHead(nil, state.Condition{}, life, key)).Err == nil {
			l.watch(key, sent, ttl)
			seen++
		}
	}
	return seen
}

// held holds a key with a lease, keeps that alive for a while, and lets it run out.
func (l *leaseClient) held(until time.Time) (seen int) {
	const ttl = 3 * time.Second
	for n := 0; time.Now().Before(until); n++ {
		sent := time.Now()
		res := l.propose(state.EncodeGrant(uint64(ttl/time.Millisecond), ""))
		if res.Err != nil {
			continue
		}
		id, key := res.Lease, fmt.Sprintf("held/%d/%d", l.id, n)
		put := state.AppendLeasedPutHead(nil, state.Condition{}, state.Lifetime{Kind: state.WithLease, Value: id}, key)
		if l.propose(put).Err != nil {
			continue
		}
		for range n % 4 {
			time.Sleep(ttl / 3)
			asked := time.Now()
			res := l.propose(state.EncodeKeep(id, ""))
			if errors.Is(res.Err, problem.ErrLeaseUnknown) && time.Since(sent) < ttl {
				l.c.T.Errorf("a lease of %v was gone after %v", ttl, time.Since(sent))
			}
			if res.Err == nil {
				sent = asked
			}
			if time.Since(sent) >= ttl {
				break // it is its own fault, or that of the faults
			}
		}
		l.watch(key, sent, ttl)
		seen++
	}
	return seen
}

// run has clients use times to live and leases for some time.
func runLeaseClients(c *simCluster, calm bool, long time.Duration) {
	var clients sync.WaitGroup
	until := time.Now().Add(long)
	for i := range 6 {
		l := &leaseClient{c: c, id: i, turn: i, calm: calm}
		use := l.timed
		if i%2 == 1 {
			use = l.held
		}
		clients.Go(func() {
			if seen := use(until); seen == 0 {
				c.T.Errorf("client %d has seen no key come and go", i)
			}
		})
	}
	clients.Wait()
}

// Guarantee: keys go never early, counted from when their request was sent, and within two
// seconds after it.
func TestSimLeasesCalm(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		runLeaseClients(c, true, 30*time.Second)
	})
}

// trouble has the leader crash, be cut off and hand over, and all nodes start again, until
// done.
func trouble(c *simCluster, done <-chan struct{}) {
	for round := 0; ; round++ {
		select {
		case <-done:
			return
		case <-time.After(4 * time.Second):
		}
		leader := c.Leader()
		change := func(nodes []uint64, how func(id uint64)) {
			c.Lives.Lock()
			defer c.Lives.Unlock()
			for _, id := range nodes {
				how(id)
			}
		}
		switch round % 4 {
		case 0:
			change([]uint64{leader}, c.Crash)
			time.Sleep(time.Second)
			change([]uint64{leader}, c.Start)
		case 1:
			c.Net.Isolate(leader, c.Followers()...)
			time.Sleep(3 * time.Second)
			c.Net.Heal()
		case 2:
			c.Nodes[leader].Life.HandOver()
		case 3:
			change([]uint64{1, 2, 3}, c.Crash)
			time.Sleep(20 * time.Second) // which do not count
			change([]uint64{1, 2, 3}, c.Start)
		}
	}
}

// Guarantee: they go never early, and go, while leaders crash, hand over and are cut off, and
// all nodes start again; the replicas hold the same at the end.
func TestSimLeasesFaults(t *testing.T) {
	simulateWith(t, 3, nil, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			runLeaseClients(c, false, 90*time.Second)
		}()
		trouble(c, done)
	})
}

// Guarantee: while all nodes are down no time passes for a lease, and after a change of the
// leader it does not get its whole time again.
func TestSimLeaseOutage(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		l := &leaseClient{c: c, calm: true}
		put := func(key string, ttl uint64) {
			if res := l.propose(state.AppendLeasedPutHead(nil, state.Condition{}, state.Lifetime{Kind: state.ForTTL, Value: ttl}, key)); res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		put("outage", 10_000)
		time.Sleep(5 * time.Second)
		for id := range uint64(3) {
			c.Crash(id + 1)
		}
		time.Sleep(time.Hour)
		for id := range uint64(3) {
			c.Start(id + 1)
		}
		c.Leader()
		back := time.Now()
		if l.missing("outage") {
			t.Error("it ran out while nobody could keep it alive")
		}
		for !l.missing("outage") {
			time.Sleep(100 * time.Millisecond)
		}
		// It had 5 s left, but what passed between the last tick and the crash.
		if took := time.Since(back); took < 4*time.Second || took > 9*time.Second {
			t.Errorf("it had about 5 s left, and lived for %v", took)
		}
		put("leaders", 20_000)
		sent := time.Now()
		for range 4 {
			time.Sleep(4 * time.Second)
			c.Nodes[c.Leader()].Life.HandOver()
		}
		for !l.missing("leaders") {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(sent); took < 20*time.Second || took > 26*time.Second {
			t.Errorf("with four changes of leader 20 s took %v", took)
		}
	})
}
