package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"sync"
	"testing"
	"time"
)

// onceClient is a client of a simulated cluster that sends each request several times, to
// different nodes, until it knows what came of it.
type onceClient struct {
	*leaseClient
	rnd *rand.Rand
}

// add asks for one more on a counter, under a key, until there is an answer; some of the
// requests go out beside each other. All answers must be one.
func (o *onceClient) add(counter, name string) (number int64) {
	cmd := state.EncodeAdd(state.Condition{}, state.Lifetime{}, counter, 1)
	cmd = state.EncodeOnce(once.Key{Name: name}, once.TenMinutes, cmd, cmd)
	var mu sync.Mutex
	seen, first := map[int64]int{}, 0
	send := func() {
		srv := o.on()
		if srv == nil {
			time.Sleep(100 * time.Millisecond)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		res := srv.proposals.Propose(ctx, cmd)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case res.Err == nil:
			seen[res.Txn.Results[0].Number]++
			if !res.Replayed {
				first++
			}
		case errors.Is(res.Err, problem.ErrInternal) || errors.Is(res.Err, problem.ErrKeyReused):
			o.c.T.Errorf("%s: %v", name, res.Err)
		}
	}
	for answered := 0; answered < 2; { // the second is a repeat
		var tries sync.WaitGroup
		for range 1 + o.rnd.IntN(3) {
			tries.Go(send)
		}
		tries.Wait()
		mu.Lock()
		answered = 0
		for n, times := range seen {
			number, answered = n, answered+times
		}
		mu.Unlock()
	}
	if len(seen) != 1 || first > 1 {
		o.c.T.Errorf("%s: the answers are %v, %d of them to a first request", name, seen, first)
	}
	return number
}

// Guarantee: a request under an Idempotency-Key happens once and has one answer, whichever
// nodes it is sent to and how often, while leaders crash, hand over and are cut off, and
// all nodes start again.
func TestSimOnce(t *testing.T) {
	simulateWith(t, 3, nil, func(c *simCluster) {
		c.awaitLevel(1, 2, 3)
		var clients sync.WaitGroup
		var mu sync.Mutex
		numbers := map[string]map[int64]bool{"a": {}, "b": {}}
		until := time.Now().Add(50 * time.Second)
		for i := range 4 {
			o := &onceClient{&leaseClient{c: c, id: i, turn: i}, rand.New(rand.NewPCG(c.Seed, uint64(i)))}
			clients.Go(func() {
				for n := 0; time.Now().Before(until); n++ {
					counter := []string{"a", "b"}[o.rnd.IntN(2)]
					number := o.add(counter, fmt.Sprintf("client-%d-%d", i, n))
					mu.Lock()
					if numbers[counter][number] {
						t.Errorf("the counter %s was at %d twice", counter, number)
					}
					numbers[counter][number] = true
					mu.Unlock()
					time.Sleep(time.Duration(o.rnd.IntN(800)) * time.Millisecond)
				}
			})
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			clients.Wait()
		}()
		trouble(c, done)
		srv := c.Nodes[c.Leader()].Life
		for counter, seen := range numbers {
			it, _ := srv.kv.Get(counter)
			if got, want := it.Value, fmt.Sprint(len(seen)); got != want || len(seen) < 20 {
				t.Errorf("the counter %s is at %s after %s requests", counter, got, want)
			}
		}
	})
}
