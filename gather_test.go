package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// gatherTest is a gathering with a clock that the test moves.
type gatherTest struct {
	*testing.T
	g   gathering
	now time.Time
}

func newGatherTest(t *testing.T) *gatherTest {
	return &gatherTest{T: t, now: time.Unix(1000, 0)}
}

// round lets a round of have requests begin now and end after took; waiting
// have come meanwhile.
func (gt *gatherTest) round(have int, took time.Duration, waiting int) {
	began := gt.now
	gt.g.begin(have, 0, began)
	gt.now = began.Add(took)
	gt.g.end(began, have, waiting, gt.now)
}

// holds checks for how long have requests wait, and for how many.
func (gt *gatherTest) holds(have, underWay int, wait time.Duration, enough int) {
	gt.Helper()
	w, e := gt.g.hold(have, underWay, gt.now)
	if w != wait || w > 0 && e != enough {
		gt.Fatalf("%d with %d rounds under way wait %v for %d, want %v for %d", have, underWay, w, e, wait, enough)
	}
}

// missed lets a round begin after a wait in which only one came, where five had
// come while the round before was under way.
func (gt *gatherTest) missed() {
	gt.Helper()
	gt.holds(6, 0, 2*time.Millisecond, 9)
	gt.now = gt.now.Add(2 * time.Millisecond)
	gt.holds(6, 0, 0, 0)
	gt.g.begin(6, 0, gt.now)
}

// skipped counts the rounds that then do not wait.
func (gt *gatherTest) skipped() int {
	for n := 0; ; n++ {
		gt.g.end(gt.now, 5, 5, gt.now.Add(time.Millisecond))
		gt.now = gt.now.Add(time.Millisecond)
		if wait, _ := gt.g.hold(1, 0, gt.now); wait > 0 || n > 1000 {
			return n
		}
		gt.g.begin(1, 0, gt.now)
	}
}

// Guarantee: a lone client never waits, however long its rounds take and
// however soon it comes back: nobody else could come.
func TestGatherLoneClient(t *testing.T) {
	gt := newGatherTest(t)
	for i := range 1000 {
		gt.holds(1, 0, 0, 0)
		gt.round(1, time.Duration(i%50)*100*time.Microsecond, 0)
		gt.now = gt.now.Add(time.Duration(i%7) * 300 * time.Microsecond)
	}
	if gt.g.misses != 0 || gt.g.skip != 0 {
		t.Fatalf("it counts as %d waits in vain", gt.g.misses)
	}
}

// Guarantee: those that were answered together, and those that came meanwhile,
// are waited for: for at most twice the round, less what has passed, and without
// the last tenth of them, of whom one may be slow.
func TestGatherWaitsForThoseAnswered(t *testing.T) {
	const round = 500 * time.Microsecond
	gt := newGatherTest(t)
	gt.round(7, round, 3)
	gt.holds(1, 0, 2*round, 9)
	gt.now = gt.now.Add(round)
	gt.holds(8, 0, round, 9)
	gt.holds(9, 0, 0, 0)
	gt.now = gt.now.Add(round - 1)
	gt.holds(8, 0, 1, 9)
	gt.now = gt.now.Add(1)
	gt.holds(8, 0, 0, 0)
	gt.now = gt.now.Add(time.Hour)
	gt.holds(1, 0, 0, 0)
}

// Guarantee: patience is bounded where rounds take long.
func TestGatherPatienceIsBounded(t *testing.T) {
	gt := newGatherTest(t)
	gt.round(4, time.Minute, 0)
	gt.holds(3, 0, maxPatience, 4)
}

// Guarantee: a wait in vain makes the next ones rarer, up to a bound, so that
// clients that do not come back cost the others next to nothing; one that was
// not in vain makes them as frequent as at first.
func TestGatherMisses(t *testing.T) {
	gt := newGatherTest(t)
	gt.round(5, time.Millisecond, 5)
	for _, want := range []int{2, 4, 8, 16, 32, 64, 64, 64} {
		gt.missed()
		if n := gt.skipped(); n != want {
			t.Fatalf("after a wait in vain %d rounds did not wait, want %d", n, want)
		}
	}
	for _, have := range []int{9, 8} { // all came; or not all, but they came fast
		gt.g.end(gt.now.Add(-time.Millisecond), 10, 0, gt.now)
		gt.now = gt.now.Add(2 * time.Millisecond)
		gt.g.begin(have, 0, gt.now)
		gt.g.end(gt.now.Add(-time.Millisecond), 5, 5, gt.now)
		gt.missed()
		if n := gt.skipped(); n != 2 {
			t.Fatalf("after one wait in vain %d rounds did not wait, want 2", n)
		}
	}
}

// Guarantee: rounds that begin beside another say nothing of whether those who
// were waited for came.
func TestGatherOverlappingRoundsAreNoMisses(t *testing.T) {
	gt := newGatherTest(t)
	gt.round(5, time.Millisecond, 5)
	for range 100 {
		gt.g.begin(1, 1, gt.now)
	}
	gt.missed()
	gt.g.begin(1, 1, gt.now)
	gt.g.begin(10, 1, gt.now)
	if n := gt.skipped(); n != 2 {
		t.Fatalf("%d rounds did not wait, want 2", n)
	}
}

// Guarantee: a full round goes at once, whatever is under way or expected.
func TestGatherFullRound(t *testing.T) {
	gt := newGatherTest(t)
	gt.round(10*fullRound, time.Millisecond, 10*fullRound)
	gt.g.begin(1, 0, gt.now)
	for underWay := range 3 {
		gt.holds(fullRound, underWay, 0, 0)
		gt.holds(fullRound+1, underWay, 0, 0)
		if wait, _ := gt.g.hold(fullRound-1, 1+underWay, gt.now); wait == 0 {
			t.Fatalf("with %d under way fewer go at once too", 1+underWay)
		}
	}
}

// Guarantee: while a round is under way the next begins roundSpacing after it,
// not later: over a distance throughput would otherwise be one round at a time.
func TestGatherSpacing(t *testing.T) {
	gt := newGatherTest(t)
	gt.g.begin(1, 0, gt.now)
	gt.holds(1, 1, roundSpacing, fullRound)
	gt.now = gt.now.Add(roundSpacing - 1)
	gt.holds(1, 1, 1, fullRound)
	gt.now = gt.now.Add(1)
	gt.holds(1, 1, 0, 0)
	gt.g.begin(1, 1, gt.now)
	gt.holds(1, 2, roundSpacing, fullRound) // after the latest
	gt.now = gt.now.Add(time.Hour)
	gt.holds(1, 2, 0, 0)
}

// Guarantee: no more are waited for than a full round, however many were
// answered.
func TestGatherExpectedIsBounded(t *testing.T) {
	gt := newGatherTest(t)
	gt.round(maxBatchCommands, time.Second, maxQueuedCommands)
	gt.holds(fullRound-1, 0, maxPatience, fullRound)
}

// Guarantee: whatever happened before, who waits does so for a bounded time, and
// for more than there are: the reader wakes its run only when exactly enough
// have come, so a number that was already passed would never wake it.
func TestGatherHoldsForMore(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	gt := newGatherTest(t)
	for range 100000 {
		have, underWay := 1+rnd.IntN(1+rnd.IntN(2*fullRound)), rnd.IntN(3)
		wait, enough := gt.g.hold(have, underWay, gt.now)
		bound := maxPatience
		if underWay > 0 {
			bound = roundSpacing
		}
		if wait < 0 || wait > bound || wait > 0 && (enough <= have || enough > fullRound) {
			t.Fatalf("%d with %d rounds under way wait %v for %d: %+v", have, underWay, wait, enough, gt.g)
		}
		switch rnd.IntN(3) {
		case 0:
			gt.g.begin(have, underWay, gt.now)
		case 1:
			gt.g.end(gt.g.began, rnd.IntN(300), rnd.IntN(300), gt.now)
		}
		gt.now = gt.now.Add(time.Duration(rnd.IntN(3000)) * time.Microsecond)
	}
}

// mustGather fails if run sleeps though a request may go now, or something in
// flight is to be tried again: then only chance would wake it. To be called when
// all goroutines sleep.
func (pt *proposeTest) mustGather() {
	pt.Helper()
	leader, term, _ := pt.leaders.get()
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
	if len(p.queue) == 0 || len(p.inFlight) >= maxBatchesInFlight || p.nextSeq-p.low() >= windowSize {
		return
	}
	if wait, _ := p.gather.hold(len(p.queue), len(p.inFlight), now); wait == 0 || p.queued >= fullBatchBytes {
		pt.Fatalf("run sleeps, but %d requests of %d bytes may go beside %d batches: enough %d, %+v",
			len(p.queue), p.queued, len(p.inFlight), p.enough, p.gather)
	}
}

// mustGather is the same for the reader.
func (rt *readTest) mustGather() {
	rt.Helper()
	leader, _, _ := rt.leaders.get()
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
	if wait, _ := r.gather.hold(r.waiting.readers, asked, now); wait == 0 {
		rt.Fatalf("run sleeps, but %d readers may go beside %d rounds: enough %d, %+v", r.waiting.readers, asked, r.enough, r.gather)
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
func election(leaders *leadership, rnd *rand.Rand) {
	leader, term, _ := leaders.get()
	switch {
	case leader == 0:
		leaders.set(1+rnd.Uint64N(3), term+rnd.Uint64N(2))
	case rnd.IntN(3) == 0:
		leaders.set(1+rnd.Uint64N(3), term+1)
	default:
		leaders.set(0, term+rnd.Uint64N(2))
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
			_, term, _ := f.leaders.get()
			taken := rnd.IntN(6) > 0
			id, cmds := f.open(p)
			if taken {
				f.mu.Lock()
				f.taken = append(f.taken, &batch{id: id, requests: make([]*request, len(cmds))})
				f.mu.Unlock()
			}
			p.done(taken, term, rnd.IntN(2) == 0)
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
		f.p.applied(b.id, make([]result, len(b.requests)))
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
						c.come(c.size(), func(ctx context.Context) { pt.p.propose(ctx, []byte("w")) })
					case 4:
						c.come(1, func(ctx context.Context) { pt.p.propose(ctx, big) })
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
						c.come(c.size(), func(ctx context.Context) { rt.r.confirm(ctx) })
					case 5:
						c.hangUp()
					case 6:
						election(rt.leaders, rnd)
					case 7:
						rt.applied.advance(rt.applied.get() + 1)
					default:
						if len(asked) > 0 {
							if round := <-asked; rnd.IntN(4) > 0 { // else it is lost
								rt.r.confirmed(round, rt.applied.get()+uint64(rnd.IntN(2)))
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
			pt.leaders.set(1, 1)
			go func() {
				rnd := rand.New(rand.NewPCG(5, 5))
				for {
					select {
					case p := <-pt.proposeC:
						p.done(true, 1, true)
						id, cmds := pt.open(p)
						time.AfterFunc(time.Duration(rnd.Int64N(int64(ru.slowest))), func() {
							pt.p.applied(id, make([]result, len(cmds)))
						})
					case <-pt.Context().Done():
						return
					}
				}
			}()
			ru.run(pt.T, func() error { return pt.p.propose(pt.Context(), []byte("w")).err })
		})
	})
}

// Guarantee: the same for reads.
func TestReadIsPrompt(t *testing.T) {
	rushes(t, func(t *testing.T, ru rush) {
		testReader(t, func(rt *readTest) {
			rt.leaders.set(1, 1)
			go func() {
				rnd := rand.New(rand.NewPCG(6, 6))
				for {
					select {
					case c := <-rt.roundC:
						time.AfterFunc(time.Duration(rnd.Int64N(int64(ru.slowest))), func() { rt.r.confirmed(c, 10) })
					case <-rt.Context().Done():
						return
					}
				}
			}()
			ru.run(rt.T, func() error { return rt.r.confirm(rt.Context()) })
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
		pt.leaders.set(1, 1)
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
		rt.leaders.set(1, 1)
		c := rt.next()
		time.Sleep(round)
		rt.r.confirmed(c, 10)
		rt.read()
		for range 2 {
			time.Sleep(round / 2)
			rt.read()
			rt.quiet()
		}
		rt.read()
		c = rt.next()
		time.Sleep(round)
		rt.r.confirmed(c, 10)
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
			pt.leaders.set(1, 1)
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
		rt.leaders.set(1, 1)
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
		pt.leaders.set(1, 1)
		lost := pt.write("lost")
		pt.takes(0, 0, "lost")
		held := pt.write("held") // beside it: only many would wake run
		pt.leaders.set(0, 1)
		time.Sleep(testTimeout + testSlack)
		pt.want(lost, result{err: errOutcomeUnknown})
		pt.want(held, result{err: errNoLeader})
		res := pt.write("later")
		time.Sleep(testTimeout + testSlack)
		pt.want(res, result{err: errNoLeader})
	})
}

// Guarantee: clients that hung up in the queue hold the others back no longer
// than clients that do not come back do, and of such alone there is no batch.
func TestProposeCanceledAreNotWaitedForLong(t *testing.T) {
	for _, others := range []bool{true, false} {
		testProposer(t, func(pt *proposeTest) {
			pt.leaders.set(1, 1)
			pt.write("first")
			pt.takes(0, 0, "first")
			ctx, hangUp := context.WithCancel(pt.Context())
			for range 5 {
				go pt.p.propose(ctx, []byte("gone"))
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
