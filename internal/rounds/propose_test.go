package rounds

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/entry"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"raftkv/internal/window"
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
	if r.Byte() != entry.BatchFormat {
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
				var rs []outcome
				for _, d := range []time.Duration{testSlack + time.Millisecond, time.Millisecond} {
					done := newOutcome()
					r := &request{cmd: []byte("w"), deadline: time.Now().Add(testTimeout + d), waiter: done}
					if err := pt.p.enqueue(r); err != nil {
						pt.Fatal(err)
					}
					rs = append(rs, done)
				}
				pt.leaders.Set(1, 1)
				pt.next().Done(true, 1, true)
				if stop {
					pt.stop()
				} else {
					time.Sleep(2 * testTimeout)
				}
				for _, done := range rs {
					pt.want(done, state.Result{Err: problem.ErrOutcomeUnknown})
				}
			})
		})
	}
}

// Guarantee: a node never has more batches unsettled than the replicated
// window holds: one more, and a batch could be applied twice.
func TestProposeWindowBound(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		stuck := pt.write("stuck")
		pt.next().Done(true, 1, true)
		for seq := uint64(1); seq < window.Size; seq++ {
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
		if id, _ := pt.open(pt.next()); id.Seq != window.Size || id.Low != window.Size {
			pt.Fatalf("batch %+v", id)
		}
		pt.apply(window.Size, 1)
		pt.want(waiting, state.Result{Revision: 100 * window.Size})
	})
}
