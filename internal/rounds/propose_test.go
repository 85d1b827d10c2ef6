package rounds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// proposeTest is a proposer with the test in the place of the raft loop and of
// the apply loop. It lives in a synctest bubble: time passes only when the test sleeps.
type proposeTest struct {
	*testing.T
	p        *Proposer
	proposeC chan Proposal
	leaders  *wait.Leadership
	stop     func()
}

const (
	testTimeout  = 5 * time.Second
	testElection = time.Second
	// testSlack is how late an expiry may be noticed.
	testSlack = dropRetry
)

// testProposer runs f in a bubble.
func testProposer(t *testing.T, f func(pt *proposeTest)) {
	t.Helper()
	testkit.InBubble(t, func(t *testing.T) {
		pt := &proposeTest{T: t, proposeC: make(chan Proposal), leaders: wait.NewLeadership()}
		cfg := config.Config{ID: 1, RequestTimeout: testTimeout, ElectionTimeout: testElection}
		pt.p = NewProposer(zap.NewNop(), cfg, NewLife(cfg.ID, 7), pt.proposeC, pt.leaders)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- pt.p.Run(ctx) }()
		pt.stop = func() {
			cancel()
			synctest.Wait()
		}
		f(pt)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// write proposes a command and returns where its result will be. The command
// is queued when it returns, so that writes queue in the order of the calls.
func (pt *proposeTest) write(cmd string) <-chan state.Result {
	c := make(chan state.Result, 1)
	go func() { c <- pt.p.Propose(pt.Context(), []byte(cmd)) }()
	synctest.Wait()
	return c
}

// next takes the batch that is being offered now.
func (pt *proposeTest) next() Proposal {
	pt.Helper()
	synctest.Wait()
	select {
	case p := <-pt.proposeC:
		synctest.Wait()
		return p
	default:
		pt.Fatal("no batch is offered")
		panic("unreachable")
	}
}

// quiet checks that no batch is offered.
func (pt *proposeTest) quiet() {
	pt.Helper()
	synctest.Wait()
	select {
	case p := <-pt.proposeC:
		id, cmds := pt.open(p)
		pt.Fatalf("batch %+v is offered: %q", id, cmds)
	default:
	}
}

// open splits a batch into its commands, which need not mean anything here.
func (pt *proposeTest) open(p Proposal) (state.BatchID, []string) {
	pt.Helper()
	r := record.Reader{B: p.Data}
	if r.Byte() != state.BatchFormat {
		pt.Fatalf("not a batch: %x", p.Data)
	}
	id := state.BatchID{Node: r.Uvarint(), Boot: r.Uvarint(), Seq: r.Uvarint(), Low: r.Uvarint()}
	var cmds []string
	for len(r.B) > 0 && !r.Bad {
		cmds = append(cmds, string(r.Bytes()))
	}
	if r.Bad || id.Node != 1 || id.Boot != 7 {
		pt.Fatalf("a bad batch of %+v: %x", id, p.Data)
	}
	return id, cmds
}

// apply tells the proposer that its batch seq of n commands was applied. The
// i-th command ends at revision 100*seq+i.
func (pt *proposeTest) apply(seq uint64, n int) {
	results := make([]state.Result, n)
	for i := range results {
		results[i].Revision = 100*seq + uint64(i)
	}
	pt.p.Applied(state.BatchID{Node: 1, Boot: 7, Seq: seq}, results)
	synctest.Wait()
}

// want checks that a result is there, and is this one.
func (pt *proposeTest) want(c <-chan state.Result, want state.Result) {
	pt.Helper()
	synctest.Wait()
	select {
	case got := <-c:
		if !errors.Is(got.Err, want.Err) || got.Revision != want.Revision {
			pt.Fatalf("the result is %+v, want %+v", got, want)
		}
	default:
		pt.Fatalf("no result, want %+v", want)
	}
}

// waits checks that there is no result yet.
func (pt *proposeTest) waits(cs ...<-chan state.Result) {
	pt.Helper()
	synctest.Wait()
	for _, c := range cs {
		select {
		case got := <-c:
			pt.Fatalf("a result too early: %+v", got)
		default:
		}
	}
}

// Guarantee: while a leader is being elected a request waits, for as long as
// it may and no longer; then it certainly did not happen.
func TestProposeNoLeader(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		early := pt.write("early")
		time.Sleep(2 * time.Second)
		late := pt.write("late")
		time.Sleep(testTimeout - 2*time.Second - 1)
		pt.waits(early)
		time.Sleep(1 + testSlack)
		pt.want(early, state.Result{Err: problem.ErrNoLeader})
		pt.waits(late)
		pt.leaders.Set(1, 1)
		if _, cmds := pt.open(pt.next()); !slices.Equal(cmds, []string{"late"}) {
			pt.Fatalf("proposed %q", cmds)
		}
		pt.apply(0, 1)
		pt.want(late, state.Result{})
	})
}

// Guarantee: what raft may have is answered as unknown, never as not done;
// and what raft never took is never answered as perhaps done.
func TestProposeTimeout(t *testing.T) {
	for _, tt := range []struct {
		name string
		raft func(p Proposal) // what the raft loop says, each time
		may  bool
	}{
		{"taken by the leader", func(p Proposal) { p.Done(true, 1, true) }, true},
		{"passed on to the leader", func(p Proposal) { p.Done(true, 1, false) }, true},
		{"no word", func(Proposal) {}, true},
		{"dropped", func(p Proposal) { p.Done(false, 1, false) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testProposer(t, func(pt *proposeTest) {
				pt.leaders.Set(1, 1)
				res := pt.write("w")
				go func() {
					for {
						select {
						case p := <-pt.proposeC:
							tt.raft(p)
						case <-pt.Context().Done():
							return
						}
					}
				}()
				time.Sleep(testTimeout - 1)
				pt.waits(res)
				time.Sleep(1 + testSlack)
				if tt.may {
					pt.want(res, state.Result{Err: problem.ErrOutcomeUnknown})
					return
				}
				synctest.Wait()
				got := <-res
				if p := problem.Of(got.Err); p.Outcome != problem.NotApplied || p.Retry != problem.RetrySoon {
					pt.Fatalf("the result is %v, want one that says it did not happen, and to try again", got.Err)
				}
			})
		})
	}
}

// Guarantee: a batch dropped once and passed on once is unknown, though the
// last attempt was dropped: the first may still be applied.
func TestProposeTakenThenDropped(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		res := pt.write("w")
		pt.next().Done(true, 1, false)
		go func() {
			for {
				select {
				case p := <-pt.proposeC:
					p.Done(false, 1, false)
				case <-pt.Context().Done():
					return
				}
			}
		}()
		time.Sleep(testTimeout + testSlack)
		pt.want(res, state.Result{Err: problem.ErrOutcomeUnknown})
	})
}

// Guarantee: what raft drops is proposed again under the same identity: the
// very same bytes, or it could be applied twice, or differently.
func TestProposeDropped(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		res := pt.write("w")
		p := pt.next()
		first := bytes.Clone(p.Data)
		for range 10 {
			p.Done(false, 1, false)
			pt.quiet() // not at once: that would be a busy loop
			time.Sleep(2 * dropRetry)
			if p = pt.next(); !bytes.Equal(p.Data, first) {
				pt.Fatalf("%x was offered again as %x", first, p.Data)
			}
		}
		p.Done(true, 1, false)
		pt.apply(0, 1)
		pt.want(res, state.Result{})
		time.Sleep(testTimeout)
		pt.quiet()
	})
}

// Guarantee: a batch that was on its way when leadership changed is proposed
// to the new leader at once and under the same identity: a change of leader
// costs latency, as little as can be, and no error.
func TestProposeLeaderChange(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("led=%v", leads), func(t *testing.T) {
			testProposer(t, func(pt *proposeTest) {
				pt.leaders.Set(1, 1)
				res := pt.write("w")
				p := pt.next()
				p.Done(true, 1, leads)
				time.Sleep(30 * time.Millisecond)
				pt.quiet()
				pt.leaders.Set(0, 2)
				pt.quiet()
				pt.leaders.Set(2, 2)
				again := pt.next()
				if !bytes.Equal(again.Data, p.Data) {
					pt.Fatalf("%x was offered again as %x", p.Data, again.Data)
				}
				if pt.p.retried() != 1 {
					pt.Fatalf("counted %d retries", pt.p.retried())
				}
				again.Done(true, 2, false)
				pt.apply(0, 1)
				pt.want(res, state.Result{})
			})
		})
	}
}

// Guarantee: what is in the leader's own log is not proposed a second time
// while the term lasts; what was passed on can get lost, and is.
func TestProposeAgainInTheSameTerm(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		own := pt.write("own")
		pt.next().Done(true, 1, true)
		time.Sleep(testTimeout - 1)
		pt.quiet()
		pt.apply(0, 1)
		pt.want(own, state.Result{})

		pt.leaders.Set(2, 2)
		passed := pt.write("passed")
		p := pt.next()
		p.Done(true, 2, false)
		time.Sleep(testElection/2 - 1)
		pt.quiet()
		time.Sleep(1 + testSlack)
		if again := pt.next(); !bytes.Equal(again.Data, p.Data) {
			pt.Fatalf("%x was offered again as %x", p.Data, again.Data)
		}
		pt.apply(1, 1) // while the second attempt is at the raft loop
		pt.want(passed, state.Result{Revision: 100})
		pt.apply(1, 1) // the other copy
		time.Sleep(testTimeout)
		pt.quiet()
	})
}

// Guarantee: a client that hangs up stops waiting at once, what it asked for
// is not proposed any more if it was not yet, and the others of its batch get
// their own results.
func TestProposeCanceled(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		before := pt.write("before")
		ctx, hangUp := context.WithCancel(pt.Context())
		gone := make(chan state.Result, 1)
		go func() { gone <- pt.p.Propose(ctx, []byte("gone")) }()
		synctest.Wait()
		after := pt.write("after")
		hangUp()
		pt.want(gone, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.leaders.Set(1, 1)
		p := pt.next()
		if _, cmds := pt.open(p); !slices.Equal(cmds, []string{"before", "after"}) {
			pt.Fatalf("proposed %q", cmds)
		}
		pt.apply(0, 2)
		pt.want(before, state.Result{Revision: 0})
		pt.want(after, state.Result{Revision: 1})

		// All of a queue: no empty batch.
		pt.leaders.Set(0, 2)
		ctx, hangUp = context.WithCancel(pt.Context())
		go func() { gone <- pt.p.Propose(ctx, []byte("gone")) }()
		synctest.Wait()
		hangUp()
		pt.want(gone, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.leaders.Set(1, 3)
		pt.quiet()
		if pt.p.queued != 0 || len(pt.p.queue) != 0 {
			pt.Fatalf("%d bytes, %d commands are left", pt.p.queued, len(pt.p.queue))
		}

		// After it was proposed: the batch goes on without the client.
		ctx, hangUp = context.WithCancel(pt.Context())
		go func() { gone <- pt.p.Propose(ctx, []byte("gone")) }()
		pt.next().Done(true, 3, true)
		hangUp()
		pt.want(gone, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.apply(1, 1)
		if len(pt.p.inFlight) != 0 {
			pt.Fatal("the batch is left in flight")
		}
	})
}

// Guarantee: when the node stops nobody is left waiting, each is told what is
// known, and later requests are refused.
func TestProposeStop(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		taken := pt.write("taken")
		pt.next().Done(true, 1, true)
		dropped := pt.write("dropped")
		time.Sleep(roundSpacing)
		pt.next().Done(false, 1, true)
		queued := pt.write("queued")
		pt.stop()
		pt.want(taken, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.want(dropped, state.Result{Err: problem.ErrStopping})
		pt.want(queued, state.Result{Err: problem.ErrStopping})
		pt.want(pt.write("later"), state.Result{Err: problem.ErrStopping})
		pt.apply(0, 1) // too late, and harmless
	})
	testProposer(t, func(pt *proposeTest) { // while the raft loop is asked
		pt.leaders.Set(1, 1)
		offered := pt.write("offered")
		synctest.Wait()
		pt.stop()
		pt.want(offered, state.Result{Err: problem.ErrOutcomeUnknown})
	})
}

// Guarantee: a node that has applied its own removal knows that nothing which
// still waits will ever happen, whatever raft took.
func TestProposeVoid(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		taken := pt.write("taken")
		pt.next().Done(true, 1, true)
		offered := pt.write("offered")
		time.Sleep(roundSpacing)
		synctest.Wait()
		queued := pt.write("queued")
		if len(pt.p.inFlight) != 2 || len(pt.p.queue) != 1 {
			pt.Fatalf("%d batches in flight, %d requests wait", len(pt.p.inFlight), len(pt.p.queue))
		}
		pt.p.Void()
		pt.want(taken, state.Result{Err: problem.ErrStopping})
		pt.want(offered, state.Result{Err: problem.ErrStopping})
		pt.want(queued, state.Result{Err: problem.ErrStopping})
		pt.want(pt.write("later"), state.Result{Err: problem.ErrStopping})
	})
}

// Guarantee: each request of a batch has its own deadline, and the batch is
// tried for as long as anyone waits.
func TestProposeDeadlinesInABatch(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		early := pt.write("early")
		time.Sleep(2 * time.Second)
		late := pt.write("late")
		pt.leaders.Set(2, 1)
		pt.next().Done(true, 1, false)
		for range 5 {
			time.Sleep(testElection/2 + testSlack)
			pt.next().Done(true, 1, false)
		}
		time.Sleep(testElection / 2)
		pt.want(early, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.waits(late)
		pt.apply(0, 2)
		pt.want(late, state.Result{Revision: 1})
	})
}

// Guarantee: nobody is told that a write did not happen while others still wait
// for the batch that it is in: for them it is offered again, and then applied.
func TestProposeExpiredInABatchThatGoesOn(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		early := pt.write("early")
		time.Sleep(2 * time.Second)
		late := pt.write("late")
		pt.leaders.Set(2, 1)
		p := pt.next()
		pt.leaders.Set(0, 1)
		p.Done(false, 1, false)
		time.Sleep(testTimeout - 2*time.Second + testSlack)
		pt.want(early, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.waits(late)
		pt.leaders.Set(2, 2)
		_, cmds := pt.open(pt.next())
		if len(cmds) != 2 {
			pt.Errorf("offered again: %q", cmds)
		}
		pt.apply(0, 2)
		pt.want(late, state.Result{Revision: 1})
	})
}

// Guarantee: nobody waits longer than the timeout, nor past a stop, though
// requests may reach the queue in another order than that of their deadlines:
// those are set before the queue's lock is taken.
func TestProposeDeadlinesOutOfOrder(t *testing.T) {
	for _, stop := range []bool{true, false} {
		t.Run(fmt.Sprintf("stop=%v", stop), func(t *testing.T) {
			testProposer(t, func(pt *proposeTest) {
				var rs []*request
				for _, d := range []time.Duration{testSlack + time.Millisecond, time.Millisecond} {
					r := &request{cmd: []byte("w"), deadline: time.Now().Add(testTimeout + d), done: make(chan state.Result, 1)}
					if err := pt.p.enqueue(r); err != nil {
						pt.Fatal(err)
					}
					rs = append(rs, r)
				}
				pt.leaders.Set(1, 1)
				pt.next().Done(true, 1, true)
				if stop {
					pt.stop()
				} else {
					time.Sleep(2 * testTimeout)
				}
				for _, r := range rs {
					pt.want(r.done, state.Result{Err: problem.ErrOutcomeUnknown})
				}
			})
		})
	}
}

// Guarantee: a batch that a snapshot from the leader covers is not waited for
// in vain; one that it does not cover goes on.
func TestProposeSettle(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		covered := pt.write("covered")
		pt.next().Done(true, 1, false)
		open := pt.write("open")
		time.Sleep(roundSpacing)
		pt.next().Done(true, 1, false)
		pt.p.Settle(state.Window{})
		pt.p.Settle(state.Window{Boot: 6, Low: 100})
		pt.waits(covered, open)
		pt.p.Settle(state.Window{Boot: 7, Low: 1})
		pt.want(covered, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.waits(open)
		next := pt.write("next")
		time.Sleep(roundSpacing)
		if id, _ := pt.open(pt.next()); id.Seq != 2 || id.Low != 1 {
			pt.Fatalf("the next batch is %+v", id)
		}
		pt.p.Settle(state.Window{Boot: 7, Low: 1, Applied: 2})
		pt.want(next, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.apply(1, 1)
		pt.want(open, state.Result{Revision: 100})
		time.Sleep(testTimeout)
		pt.quiet()
	})
}

// Guarantee: a node never has more batches unsettled than the replicated
// window holds: one more, and a batch could be applied twice.
func TestProposeWindowBound(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		stuck := pt.write("stuck")
		pt.next().Done(true, 1, true)
		for seq := uint64(1); seq < state.WindowSize; seq++ {
			res := pt.write("w")
			time.Sleep(roundSpacing) // the stuck one is on its way
			if id, _ := pt.open(pt.next()); id.Seq != seq || id.Low != 0 {
				pt.Fatalf("batch %+v, want %d", id, seq)
			}
			pt.apply(seq, 1)
			pt.want(res, state.Result{Revision: 100 * seq})
		}
		waiting := pt.write("waiting")
		time.Sleep(time.Second)
		pt.quiet()
		pt.apply(0, 1)
		pt.want(stuck, state.Result{})
		time.Sleep(maxPatience) // for the client of the stuck one
		if id, _ := pt.open(pt.next()); id.Seq != state.WindowSize || id.Low != state.WindowSize {
			pt.Fatalf("batch %+v", id)
		}
		pt.apply(state.WindowSize, 1)
		pt.want(waiting, state.Result{Revision: 100 * state.WindowSize})
	})
}

// Guarantee: what was given up is said to be settled by the next batch, so
// that it is not applied after a write that the client made later.
func TestProposeGivenUpIsSettled(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(2, 1)
		lost := pt.write("lost")
		p := pt.next()
		p.Done(true, 1, false)
		for range 9 {
			time.Sleep(testElection/2 + testSlack)
			pt.next().Done(true, 1, false)
		}
		time.Sleep(testElection)
		pt.want(lost, state.Result{Err: problem.ErrOutcomeUnknown})
		pt.write("next")
		next := pt.next()
		first, _ := pt.open(p)
		var w state.Window
		if id, _ := pt.open(next); !w.Admit(id) || w.Admit(first) {
			pt.Fatalf("%+v does not settle %+v", id, first)
		}
	})
}

// Guarantee: results of another node's batches, or of this node's former
// life, are not taken for those of its own.
func TestProposeResultsOfOthers(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		res := pt.write("w")
		pt.next().Done(true, 1, true)
		for _, id := range []state.BatchID{{Node: 2, Boot: 7}, {Node: 1, Boot: 6}, {Node: 1, Boot: 7, Seq: 1}} {
			pt.p.Applied(id, []state.Result{{Revision: 9}})
		}
		pt.waits(res)
		pt.apply(0, 1)
		pt.want(res, state.Result{})
	})
}

// Guarantee: with a raft that drops, loses, repeats and reorders, and with
// changes of leader, every write that is acknowledged happened exactly once,
// and none fails that had the time to be tried again.
func TestProposeThroughLossyRaft(t *testing.T) {
	for seed := range uint64(5) {
		testProposer(t, func(pt *proposeTest) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			s := state.New(testkit.Peers())
			apply := func(data []byte) {
				id, cmds, err := state.DecodeBatch(data)
				if err != nil {
					pt.Error(err)
				}
				if results, first := s.ApplyBatch(id, cmds); first {
					pt.p.Applied(id, results)
				}
			}
			ctx, cancel := context.WithCancel(pt.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				var late [][]byte // copies that come later
				for term := uint64(1); ; {
					select {
					case p := <-pt.proposeC:
						leads := rnd.IntN(2) == 0
						switch rnd.IntN(6) {
						case 0:
							p.Done(false, term, leads)
						case 1: // lost: by a follower, or with the term
							p.Done(true, term, leads)
							term++
							pt.leaders.Set(1+term%3, term)
						case 2:
							p.Done(true, term, false)
							late = append(late, p.Data)
						default:
							p.Done(true, term, leads)
							apply(p.Data)
						}
						if len(late) > 0 && rnd.IntN(2) == 0 {
							i := rnd.IntN(len(late))
							apply(late[i]) // and perhaps again
							if rnd.IntN(2) == 0 {
								late = slices.Delete(late, i, i+1)
							}
						}
					case <-ctx.Done():
						return
					}
				}
			}()
			pt.leaders.Set(1, 1)
			const writers, each = 20, 10
			results := make(chan state.Result)
			for w := range writers {
				go func() {
					for i := range each {
						results <- pt.p.Propose(ctx, state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("key", w), fmt.Append(nil, i)))
					}
				}()
			}
			seen := make(map[uint64]bool)
			for range writers * each {
				r := <-results
				if r.Err != nil || seen[r.Revision] {
					pt.Errorf("seed %d: %+v", seed, r)
				}
				seen[r.Revision] = true
			}
			cancel()
			<-done
			if s.Revision != writers*each {
				pt.Errorf("seed %d: %d writes made %d changes", seed, writers*each, s.Revision)
			}
			s.Scan(func(key string, it *state.Item) bool {
				if it.Version != each || string(it.Value) != fmt.Sprint(each-1) {
					pt.Errorf("seed %d: %s is %+v", seed, key, it)
				}
				return true
			})
		})
	}
}
