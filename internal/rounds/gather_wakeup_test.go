package rounds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/window"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Proposer and reader with what gather.go tells them: nobody is forgotten, and
// nobody is held back for longer than it says. gather_test.go has its rules.

// mustGather fails if run sleeps though a request may go now, or something in
// flight is to be tried again: then only chance would wake it. To be called when
// all goroutines sleep.
func (pt *proposeTest) mustGather() {
	pt.Helper()
	leader, term, _ := pt.leaders.Get()
	p, now := pt.p, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if leader == 0 {
		return
	}
	for _, b := range p.inFlight {
		if !b.offered && (b.tried < term || b.due(term, now.Add(-dropRetry-1))) {
			pt.Fatalf("batch %+v is not offered again", b.id)
		}
	}
	if len(p.queue) == 0 || len(p.inFlight) >= maxBatchesInFlight || p.nextSeq-p.low() >= window.Size {
		return
	}
	if pause, _ := p.gather.hold(len(p.queue), len(p.inFlight), now); pause == 0 || p.queued >= fullBatchBytes {
		pt.Fatalf("run sleeps, but %d requests of %d bytes may go beside %d batches: enough %d, %+v",
			len(p.queue), p.queued, len(p.inFlight), p.enough, p.gather)
	}
}

// mustGather is the same for the reader.
func (rt *readTest) mustGather() {
	rt.Helper()
	leader, _, _ := rt.leaders.Get()
	r, now := rt.r, time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if leader == 0 {
		return
	}
	asked := 0
	for _, round := range r.rounds {
		if round.indexed {
			continue
		}
		asked++
		if now.Sub(round.retryAt) > dropRetry {
			rt.Fatalf("attempts %d are not followed by another", round.attempts)
		}
	}
	if r.waiting == nil || asked >= maxReadRounds {
		return
	}
	if pause, _ := r.gather.hold(len(r.waiting.readers), asked, now); pause == 0 {
		rt.Fatalf("run sleeps, but %d readers may go beside %d rounds: enough %d, %+v", len(r.waiting.readers), asked, r.enough, r.gather)
	}
}

// crowd is clients that come and go. Each must have its answer in time.
type crowd struct {
	t       *testing.T
	rnd     *rand.Rand
	waiting atomic.Int64
	hangUps []context.CancelFunc
}

// come lets n clients ask. Some will hang up at some time.
func (c *crowd) come(n int, ask func(context.Context)) {
	ctx, hangUp := context.WithCancel(c.t.Context())
	c.hangUps = append(c.hangUps, hangUp)
	c.waiting.Add(int64(n))
	for range n {
		go func() {
			start := time.Now()
			ask(ctx)
			c.waiting.Add(-1)
			if took := time.Since(start); took > testTimeout+testSlack {
				c.t.Errorf("a client was answered after %v", took)
			}
		}()
	}
}

// hangUp lets clients that came together give up.
func (c *crowd) hangUp() {
	if n := len(c.hangUps); n > 0 {
		c.hangUps[c.rnd.IntN(n)]()
	}
}

// size is how many come at once: mostly few, but also more than are waited for.
func (c *crowd) size() int {
	switch c.rnd.IntN(10) {
	case 0:
		return 1 + c.rnd.IntN(2*fullRound)
	case 1, 2:
		return 1 + c.rnd.IntN(20)
	}
	return 1 + c.rnd.IntN(3)
}

// pause is for how long nothing happens: mostly about as long as the waits are,
// rarely until everyone's time is up.
func (c *crowd) pause() time.Duration {
	switch c.rnd.IntN(20) {
	case 0:
		return time.Duration(c.rnd.Int64N(int64(testTimeout + 10*testSlack)))
	case 1, 2:
		return time.Duration(c.rnd.Int64N(int64(2 * dropRetry)))
	case 3, 4, 5, 6:
		return 0
	}
	return time.Duration(c.rnd.Int64N(int64(roundSpacing)))
}

// end gives everyone the time that they may wait.
func (c *crowd) end() {
	time.Sleep(testTimeout + testSlack)
	synctest.Wait()
	if n := c.waiting.Load(); n != 0 {
		c.t.Fatalf("%d clients are left waiting", n)
	}
	for _, hangUp := range c.hangUps {
		hangUp()
	}
}

// election loses the leader, or finds one, perhaps the same.
func election(leaders *wait.Leadership, rnd *rand.Rand) {
	leader, term, _ := leaders.Get()
	switch {
	case leader == 0:
		leaders.Set(1+rnd.Uint64N(3), term+rnd.Uint64N(2))
	case rnd.IntN(3) == 0:
		leaders.Set(1+rnd.Uint64N(3), term+1)
	default:
		leaders.Set(0, term+rnd.Uint64N(2))
	}
}

// fickleRaft takes batches, or does not, until the bubble ends.
type fickleRaft struct {
	*proposeTest
	mu    sync.Mutex
	taken []*batch // only the identity, and how many requests
}

func (f *fickleRaft) run(rnd *rand.Rand) {
	for {
		select {
		case p := <-f.proposeC:
			_, term, _ := f.leaders.Get()
			taken := rnd.IntN(6) > 0
			id, cmds := f.open(p)
			if taken {
				f.mu.Lock()
				f.taken = append(f.taken, &batch{id: id, requests: make([]*request, len(cmds))})
				f.mu.Unlock()
			}
			p.Done(taken, term, rnd.IntN(2) == 0)
		case <-f.Context().Done():
			return
		}
	}
}

// settle applies a batch that was taken, or loses it.
func (f *fickleRaft) settle(rnd *rand.Rand, lost bool) {
	f.mu.Lock()
	if len(f.taken) == 0 {
		f.mu.Unlock()
		return
	}
	i := rnd.IntN(len(f.taken))
	b := f.taken[i]
	f.taken = append(f.taken[:i], f.taken[i+1:]...)
	f.mu.Unlock()
	if !lost {
		f.p.Applied(b.id, make([]state.Result, len(b.requests)))
	}
}

// Guarantee: whatever comes in whatever order, no request is left waiting for a
// wake-up that does not come: a batch goes at the instant at which it may, and
// everyone is answered in time.
func TestProposeNeverForgets(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			testProposer(t, func(pt *proposeTest) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				c := &crowd{t: pt.T, rnd: rnd}
				raft := &fickleRaft{proposeTest: pt}
				go raft.run(rand.New(rand.NewPCG(seed, 2)))
				big := make([]byte, fullBatchBytes/2)
				for range 400 {
					switch rnd.IntN(12) {
					case 0, 1, 2, 3:
						c.come(c.size(), func(ctx context.Context) { pt.p.Propose(ctx, []byte("w")) })
					case 4:
						c.come(1, func(ctx context.Context) { pt.p.Propose(ctx, big) })
					case 5:
						c.hangUp()
					case 6:
						election(pt.leaders, rnd)
					case 7:
						raft.settle(rnd, true)
					default:
						raft.settle(rnd, false)
					}
					time.Sleep(c.pause())
					synctest.Wait()
					pt.mustGather()
				}
				c.end()
			})
		})
	}
}

// Guarantee: the same for readers.
func TestReadNeverForgets(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			testReader(t, func(rt *readTest) {
				rnd := rand.New(rand.NewPCG(seed, 3))
				c := &crowd{t: rt.T, rnd: rnd}
				asked := make(chan []byte, 10000)
				go func() {
					for {
						select {
						case c := <-rt.roundC:
							asked <- c
						case <-rt.Context().Done():
							return
						}
					}
				}()
				for range 400 {
					switch rnd.IntN(12) {
					case 0, 1, 2, 3, 4:
						c.come(c.size(), func(ctx context.Context) { rt.r.Confirm(ctx) })
					case 5:
						c.hangUp()
					case 6:
						election(rt.leaders, rnd)
					case 7:
						rt.applied.Advance(rt.applied.Get() + 1)
					default:
						if len(asked) > 0 {
							if round := <-asked; rnd.IntN(4) > 0 { // else it is lost
								rt.r.Confirmed(round, rt.applied.Get()+uint64(rnd.IntN(2)))
							}
						}
					}
					time.Sleep(c.pause())
					synctest.Wait()
					rt.mustGather()
				}
				c.end()
			})
		})
	}
}

// rush is closed loops: each client asks again a little after it was answered.
type rush struct {
	clients int
	slowest time.Duration // of the rounds
}

// bound is the longest that a client may wait when nothing is lost: for the
// rounds that are under way, or until the next may begin beside them; then for
// those who were answered; then for its own round. More clients than fill a
// round may besides find that enough rounds are under way.
func (ru rush) bound() time.Duration {
	bound := min(ru.slowest, roundSpacing) + min(2*ru.slowest, maxPatience) + ru.slowest
	if ru.clients >= fullRound {
		bound += ru.slowest
	}
	return bound
}

// run lets the clients ask, each many times.
func (ru rush) run(t *testing.T, ask func() error) {
	var wg sync.WaitGroup
	for i := range ru.clients {
		rnd := rand.New(rand.NewPCG(uint64(i), uint64(ru.clients)))
		wg.Go(func() {
			for range 30 {
				if rnd.IntN(3) > 0 {
					time.Sleep(time.Duration(rnd.Int64N(int64(3 * ru.slowest))))
				}
				start := time.Now()
				err := ask()
				if took := time.Since(start); err != nil || took > ru.bound() {
					t.Errorf("a client was answered after %v, want %v at most: %v", took, ru.bound(), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// rushes runs f for crowds and rounds of several sizes.
func rushes(t *testing.T, f func(t *testing.T, ru rush)) {
	for _, clients := range []int{1, 2, 3, 10, 64, fullRound - 1, 3 * fullRound} {
		for _, slowest := range []time.Duration{100 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond} {
			t.Run(fmt.Sprintf("%d,%v", clients, slowest), func(t *testing.T) { f(t, rush{clients, slowest}) })
		}
	}
}

// Guarantee: when nothing is lost a write is held back for no longer than
// patience and spacing explain; a lone client's is not held back at all.
func TestProposeIsPrompt(t *testing.T) {
	rushes(t, func(t *testing.T, ru rush) {
		testProposer(t, func(pt *proposeTest) {
			pt.leaders.Set(1, 1)
			go func() {
				rnd := rand.New(rand.NewPCG(5, 5))
				for {
					select {
					case p := <-pt.proposeC:
						p.Done(true, 1, true)
						id, cmds := pt.open(p)
						time.AfterFunc(time.Duration(rnd.Int64N(int64(ru.slowest))), func() {
							pt.p.Applied(id, make([]state.Result, len(cmds)))
						})
					case <-pt.Context().Done():
						return
					}
				}
			}()
			ru.run(pt.T, func() error { return pt.p.Propose(pt.Context(), []byte("w")).Err })
		})
	})
}

// Guarantee: the same for reads.
func TestReadIsPrompt(t *testing.T) {
	rushes(t, func(t *testing.T, ru rush) {
		testReader(t, func(rt *readTest) {
			rt.leaders.Set(1, 1)
			go func() {
				rnd := rand.New(rand.NewPCG(6, 6))
				for {
					select {
					case c := <-rt.roundC:
						time.AfterFunc(time.Duration(rnd.Int64N(int64(ru.slowest))), func() { rt.r.Confirmed(c, 10) })
					case <-rt.Context().Done():
						return
					}
				}
			}()
			ru.run(rt.T, func() error { return rt.r.Confirm(rt.Context()) })
		})
	})
}

// Guarantee: clients that were answered together leave together, at the instant
// at which the last of them is back; when it does not come, the others leave
// when patience ends.
func TestProposeWaitsForThoseAnswered(t *testing.T) {
	const round = 500 * time.Microsecond
	testProposer(t, func(pt *proposeTest) {
		pt.write("a")
		pt.write("b")
		pt.write("c")
		pt.write("d")
		pt.leaders.Set(1, 1)
		pt.takes(0, 0, "a", "b", "c", "d")
		time.Sleep(round)
		pt.apply(0, 4)
		pt.write("d")
		for _, cmd := range []string{"a", "b"} {
			time.Sleep(round / 2)
			pt.write(cmd)
			pt.quiet()
		}
		time.Sleep(round / 2)
		pt.write("c")
		pt.takes(1, 1, "d", "a", "b", "c")
		time.Sleep(round)
		pt.apply(1, 4)
		pt.write("a")
		pt.write("b")
		time.Sleep(2*round - 1)
		pt.quiet()
		time.Sleep(time.Nanosecond)
		pt.takes(2, 2, "a", "b")
	})
}

// Guarantee: the same for readers.
func TestReadWaitsForThoseAnswered(t *testing.T) {
	const round = 500 * time.Microsecond
	testReader(t, func(rt *readTest) {
		rt.read()
		rt.read()
		rt.read()
		rt.read()
		rt.leaders.Set(1, 1)
		c := rt.next()
		time.Sleep(round)
		rt.r.Confirmed(c, 10)
		rt.read()
		for range 2 {
			time.Sleep(round / 2)
			rt.read()
			rt.quiet()
		}
		rt.read()
		c = rt.next()
		time.Sleep(round)
		rt.r.Confirmed(c, 10)
		rt.read()
		rt.read()
		time.Sleep(2*round - 1)
		rt.quiet()
		time.Sleep(time.Nanosecond)
		rt.next()
	})
}

// Guarantee: what fills a batch, by number or by size, goes at once, also
// beside another.
func TestProposeFullBatch(t *testing.T) {
	for _, tt := range []struct{ n, size int }{{fullRound, 1}, {2, fullBatchBytes / 2}} {
		testProposer(t, func(pt *proposeTest) {
			pt.leaders.Set(1, 1)
			pt.write("first")
			pt.takes(0, 0, "first")
			for range tt.n {
				pt.quiet()
				pt.write(string(make([]byte, tt.size)))
			}
			if _, cmds := pt.open(pt.next()); len(cmds) != tt.n {
				pt.Fatalf("%d commands go", len(cmds))
			}
		})
	}
}

// Guarantee: the same for readers.
func TestReadFullRound(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(1, 1)
		rt.read()
		rt.next()
		for range fullRound {
			rt.quiet()
			rt.read()
		}
		rt.next()
	})
}

// Guarantee: a write that comes when nothing is left in the proposer is noticed
// though no leader is known and many were waited for when the last was lost:
// unnoticed, it would wait until there is a leader again.
func TestProposeAfterLostLeader(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		lost := pt.write("lost")
		pt.takes(0, 0, "lost")
		held := pt.write("held") // beside it: only many would wake run
		pt.leaders.Set(0, 1)
		time.Sleep(testTimeout + testSlack)
		pt.want(lost, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.want(held, state.Result{Err: problem.ErrNoLeader})
		res := pt.write("later")
		time.Sleep(testTimeout + testSlack)
		pt.want(res, state.Result{Err: problem.ErrNoLeader})
	})
}

// Guarantee: clients that hung up in the queue hold the others back no longer
// than clients that do not come back do, and of such alone there is no batch.
func TestProposeCanceledAreNotWaitedForLong(t *testing.T) {
	for _, others := range []bool{true, false} {
		testProposer(t, func(pt *proposeTest) {
			pt.leaders.Set(1, 1)
			pt.write("first")
			pt.takes(0, 0, "first")
			ctx, hangUp := context.WithCancel(pt.Context())
			for range 5 {
				go pt.p.Propose(ctx, []byte("gone"))
			}
			synctest.Wait()
			hangUp()
			time.Sleep(time.Millisecond)
			pt.apply(0, 1)
			if others {
				pt.write("other")
				pt.takes(1, 1, "other") // all six have come
				return
			}
			time.Sleep(maxPatience)
			pt.quiet()
			if n := len(pt.p.queue); n != 0 {
				pt.Fatalf("%d that are gone wait for more", n)
			}
			pt.write("next")
			pt.takes(1, 1, "next")
		})
	}
}
