package rounds

import (
	"bytes"
	"context"
	"errors"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"testing"
	"testing/synctest"
	"time"
)

// readTest is a reader with the test in the place of the raft loop and of the
// apply loop, in a synctest bubble.
type readTest struct {
	*testing.T
	r       *Reader
	roundC  chan []byte
	leaders *wait.Leadership
	applied *wait.Index
	stop    func()
}

// testReader runs f in a bubble.
func testReader(t *testing.T, f func(rt *readTest)) {
	t.Helper()
	testkit.InBubble(t, func(t *testing.T) {
		rt := &readTest{T: t, roundC: make(chan []byte), leaders: wait.NewLeadership(), applied: wait.NewIndex(10)}
		cfg := config.Config{ID: 1, RequestTimeout: testTimeout, ElectionTimeout: testElection}
		rt.r = NewReader(cfg, NewLife(cfg.ID, 7), rt.roundC, rt.leaders, rt.applied)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- rt.r.Run(ctx) }()
		rt.stop = func() {
			cancel()
			synctest.Wait()
		}
		f(rt)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// read asks for a confirmation and returns where the answer will be.
func (rt *readTest) read() <-chan error {
	c := make(chan error, 1)
	go func() { c <- rt.r.Confirm(rt.Context()) }()
	synctest.Wait()
	return c
}

// next takes the round that is asked for now.
func (rt *readTest) next() []byte {
	rt.Helper()
	synctest.Wait()
	select {
	case c := <-rt.roundC:
		synctest.Wait()
		return c
	default:
		rt.Fatal("no round is asked for")
		panic("unreachable")
	}
}

// quiet checks that no round is asked for.
func (rt *readTest) quiet() {
	rt.Helper()
	synctest.Wait()
	select {
	case <-rt.roundC:
		rt.Fatal("a round is asked for")
	default:
	}
}

// want checks that an answer is there, and is err.
func (rt *readTest) want(c <-chan error, err error) {
	rt.Helper()
	synctest.Wait()
	select {
	case got := <-c:
		if !errors.Is(got, err) {
			rt.Fatalf("the answer is %v, want %v", got, err)
		}
	default:
		rt.Fatalf("no answer, want %v", err)
	}
}

// waits checks that there is no answer yet.
func (rt *readTest) waits(cs ...<-chan error) {
	rt.Helper()
	synctest.Wait()
	for _, c := range cs {
		select {
		case got := <-c:
			rt.Fatalf("an answer too early: %v", got)
		default:
		}
	}
}

// Guarantee: while a leader is being elected a read waits, for as long as it
// may and no longer.
func TestReadNoLeader(t *testing.T) {
	testReader(t, func(rt *readTest) {
		res := rt.read()
		time.Sleep(testTimeout - 1)
		rt.waits(res)
		rt.quiet()
		time.Sleep(1 + testSlack)
		rt.want(res, problem.ErrNoLeader)

		res = rt.read()
		time.Sleep(testTimeout - 1)
		rt.leaders.Set(2, 1)
		rt.r.Confirmed(rt.next(), 10)
		rt.want(res, nil)
	})
}

// Guarantee: a read is answered when this node has applied all that was
// committed when it was asked, and not before; no timer holds it back.
func TestReadWaitsForApply(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		start := time.Now()
		res := rt.read()
		rt.r.Confirmed(rt.next(), 12)
		for _, index := range []uint64{10, 11} {
			rt.applied.Advance(index)
			rt.waits(res)
		}
		rt.applied.Advance(12)
		rt.want(res, nil)
		again := rt.read()
		rt.r.Confirmed(rt.next(), 12) // nothing to wait for
		rt.want(again, nil)
		if time.Since(start) != 0 {
			rt.Fatalf("reads were held back for %v", time.Since(start))
		}
	})
}

// Guarantee: a read is not confirmed by a round that began before it: a write
// acknowledged in between would be missing.
func TestReadNotServedByAnEarlierRound(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		early := rt.read()
		first := rt.next()
		late := rt.read()
		rt.r.Confirmed(first, 10)
		rt.want(early, nil)
		rt.waits(late)
		rt.r.Confirmed(first, 10)
		rt.waits(late)
		rt.r.Confirmed(rt.next(), 11)
		rt.waits(late)
		rt.applied.Advance(11)
		rt.want(late, nil)
	})
	testReader(t, func(rt *readTest) { // also not when its own is under way as well
		rt.leaders.Set(2, 1)
		early := rt.read()
		first := rt.next()
		late := rt.read()
		time.Sleep(roundSpacing)
		second := rt.next()
		rt.r.Confirmed(first, 10)
		rt.want(early, nil)
		rt.waits(late)
		rt.r.Confirmed(second, 10)
		rt.want(late, nil)
	})
}

// Guarantee: many reads cost few rounds: those that wait share the next, which
// begins when the one before ends, or roundSpacing after it began; and no more
// than maxReadRounds are under way, however many wait.
func TestReadRoundsAreShared(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		reads := []<-chan error{rt.read()}
		rounds := [][]byte{rt.next()}
		for len(rounds) < maxReadRounds {
			reads = append(reads, rt.read())
			time.Sleep(roundSpacing - 1)
			rt.quiet()
			time.Sleep(time.Nanosecond)
			rounds = append(rounds, rt.next())
		}
		var rest []<-chan error
		for range fullRound + 1 {
			rest = append(rest, rt.read())
		}
		time.Sleep(2 * roundSpacing)
		rt.quiet()
		rt.r.Confirmed(rounds[1], 10)
		rt.want(reads[1], nil)
		round := rt.next()
		rt.quiet()
		rt.r.Confirmed(round, 10)
		for _, c := range rest {
			rt.want(c, nil)
		}
		for i, c := range reads {
			if i != 1 {
				rt.waits(c)
				rt.r.Confirmed(rounds[i], 10)
				rt.want(c, nil)
			}
		}
		time.Sleep(testTimeout)
		rt.quiet()
	})
	testReader(t, func(rt *readTest) { // no timer holds anyone back
		rt.leaders.Set(2, 1)
		start := time.Now()
		a := rt.read()
		round := rt.next()
		b, c := rt.read(), rt.read()
		rt.quiet()
		rt.r.Confirmed(round, 10)
		rt.r.Confirmed(rt.next(), 10)
		for _, c := range []<-chan error{a, b, c} {
			rt.want(c, nil)
		}
		if time.Since(start) != 0 {
			rt.Fatalf("reads were held back for %v", time.Since(start))
		}
	})
}

// Guarantee: a round that got lost on its way is asked for again, under a
// context of its own; an answer to either will do.
func TestReadLostRound(t *testing.T) {
	for answered := range 3 {
		testReader(t, func(rt *readTest) {
			rt.leaders.Set(2, 1)
			res := rt.read()
			rounds := [][]byte{rt.next()}
			for range 2 {
				time.Sleep(testElection/2 - 2*testSlack)
				rt.quiet()
				time.Sleep(3 * testSlack)
				c := rt.next()
				for _, old := range rounds {
					if bytes.Equal(c, old) {
						rt.Fatalf("context %x was used before", c)
					}
				}
				rounds = append(rounds, c)
			}
			rt.waits(res)
			rt.r.Confirmed(rounds[answered], 11)
			rt.r.Confirmed(rounds[0], 99) // an answer that comes late changes nothing
			rt.applied.Advance(11)
			rt.want(res, nil)
			time.Sleep(testTimeout)
			rt.quiet()
		})
	}
}

// Guarantee: rounds that were on their way when leadership changed are asked
// for again at once, also when new reads come at the same moment.
func TestReadLeaderChange(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		res := rt.read()
		rt.next()
		rt.leaders.Set(0, 2)
		rt.quiet()
		rt.leaders.Set(3, 2)
		rt.r.Confirmed(rt.next(), 10)
		rt.want(res, nil)
	})
	for range 30 { // which of two events comes first is up to the scheduler
		testReader(t, func(rt *readTest) {
			rt.leaders.Set(2, 1)
			a := rt.read()
			rt.next()
			b := rt.read()
			time.Sleep(roundSpacing)
			synctest.Wait()
			rt.leaders.Set(3, 2) // while b's round is handed to the raft loop
			rt.read()
			roundB := rt.next()
			rt.r.Confirmed(rt.next(), 10)
			rt.want(a, nil)
			rt.r.Confirmed(roundB, 10)
			rt.want(b, nil)
		})
	}
}

// Guarantee: an answer to another node, to a former life of this one, or to
// nobody confirms nothing.
func TestReadForeignAnswers(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		res := rt.read()
		own := rt.next()
		for i := range own[:24] { // what follows is a note to the node itself
			c := bytes.Clone(own)
			c[i]++
			rt.r.Confirmed(c, 10)
		}
		for _, c := range [][]byte{nil, own[:24], own[:31], append(bytes.Clone(own), 0)} {
			rt.r.Confirmed(c, 10)
		}
		rt.waits(res)
		rt.r.Confirmed(own, 10)
		rt.want(res, nil)
	})
}

// Guarantee: a read that could not be confirmed says so when its time is up,
// whichever half is missing, and a late answer does no harm.
func TestReadTimeout(t *testing.T) {
	for _, answered := range []bool{false, true} {
		testReader(t, func(rt *readTest) {
			rt.leaders.Set(2, 1)
			res := rt.read()
			var last []byte
			go func() {
				for {
					select {
					case last = <-rt.roundC:
					case <-rt.Context().Done():
						return
					}
				}
			}()
			synctest.Wait()
			if answered {
				rt.r.Confirmed(last, 11) // which is never applied
			}
			time.Sleep(testTimeout - 1)
			rt.waits(res)
			time.Sleep(1 + testSlack)
			rt.want(res, problem.ErrUnavailable)
			rt.r.Confirmed(last, 11)
			rt.applied.Advance(11)
			synctest.Wait()
			if !rt.r.idle() {
				rt.Fatal("something is left")
			}
		})
	}
}

// Guarantee: a client that hangs up stops waiting at once, and the others of
// its round do not notice.
func TestReadCanceled(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		ctx, hangUp := context.WithCancel(rt.Context())
		gone := make(chan error, 1)
		rt.leaders.Set(0, 1)
		go func() { gone <- rt.r.Confirm(ctx) }()
		synctest.Wait()
		other := rt.read()
		hangUp()
		rt.want(gone, problem.ErrUnavailable)
		rt.waits(other)
		rt.leaders.Set(2, 2)
		rt.r.Confirmed(rt.next(), 10)
		rt.want(other, nil)
	})
}

// Guarantee: when the node stops no reader is left waiting, and later ones
// are refused.
func TestReadStop(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		asked := rt.read()
		rt.next()
		behind := rt.read()
		time.Sleep(roundSpacing)
		rt.r.Confirmed(rt.next(), 11) // not applied
		taken := rt.read()
		time.Sleep(roundSpacing)
		rt.next()
		waiting := rt.read()
		rt.stop()
		for _, c := range []<-chan error{asked, behind, taken, waiting, rt.read()} {
			rt.want(c, problem.ErrStopping)
		}
		rt.applied.Advance(11)
	})
	testReader(t, func(rt *readTest) { // while the raft loop is asked
		rt.leaders.Set(2, 1)
		res := rt.read()
		rt.stop()
		rt.want(res, problem.ErrStopping)
	})
}

// Who waits on a node that will not learn whether a read is fresh is told so at once;
// what is asked later is taken as ever.
func TestReadRelease(t *testing.T) {
	testReader(t, func(rt *readTest) {
		rt.leaders.Set(2, 1)
		asked := rt.read()
		rt.next()
		behind := rt.read()
		time.Sleep(roundSpacing)
		rt.r.Confirmed(rt.next(), 11) // not applied
		rt.leaders.Set(0, 1)
		waiting := rt.read()
		synctest.Wait()
		rt.r.Release(problem.ErrHistories)
		for _, c := range []<-chan error{asked, behind, waiting} {
			rt.want(c, problem.ErrHistories)
		}
		rt.applied.Advance(11)
		rt.leaders.Set(2, 2)
		later := rt.read()
		rt.r.Confirmed(rt.next(), 11)
		rt.want(later, nil)
	})
}

// Guarantee: rounds of reads that come and expire while a node applies nothing
// leave nothing behind, and those that are left are answered in time.
func TestReadRoundsThatExpire(t *testing.T) {
	applied := wait.NewIndex(10)
	r := NewReader(config.Config{ID: 1}, NewLife(1, 7), nil, wait.NewLeadership(), applied)
	begin := time.Now()
	await := func(index uint64, deadline time.Time) outcome {
		done := newOutcome()
		round := &readRound{readers: []readWait{{done, deadline}}, indexed: true}
		r.rounds = append(r.rounds, round)
		r.await(round, index)
		return done
	}
	for i := range uint64(1000) {
		await(11+i%100, begin)
		r.expire(begin)
	}
	if n := applied.Waiting(); n > 1 {
		t.Errorf("%d callbacks wait for the state", n)
	}
	later := begin.Add(time.Hour)
	rounds := []outcome{await(15, later), await(12, later), await(30, later), await(12, later)}
	answered := func() (n int) {
		for _, done := range rounds {
			n += len(done)
		}
		return n
	}
	for _, tt := range []struct {
		index uint64
		want  int
	}{{11, 0}, {12, 2}, {14, 2}, {29, 3}, {30, 4}} {
		if applied.Advance(tt.index); answered() != tt.want {
			t.Errorf("at %d %d rounds are answered, not %d", tt.index, answered(), tt.want)
		}
	}
	if n := applied.Waiting(); n > 0 || len(r.rounds) > 0 {
		t.Errorf("%d callbacks and %d rounds are left", n, len(r.rounds))
	}
}

// Guarantee: in a round that takes long, each reader waits for as long as it may and no
// shorter: the one whose time is up takes nobody along.
func TestReadersOfARoundExpireAlone(t *testing.T) {
	testReader(t, func(rt *readTest) {
		early := rt.read() // there is no leader yet
		time.Sleep(testTimeout / 2)
		late := rt.read()
		rt.leaders.Set(2, 1)
		round, over := rt.next(), time.After(testTimeout/2+testSlack)
		for again := true; again; { // raft takes in the further attempts, and answers none
			select {
			case <-rt.roundC:
			case <-over:
				again = false
			}
		}
		rt.want(early, problem.ErrUnavailable)
		rt.waits(late)
		rt.r.Confirmed(round, 10)
		rt.want(late, nil)
	})
}
