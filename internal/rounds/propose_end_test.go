package rounds

import (
	"context"
	"errors"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

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

// Who waits on a node that will not learn what becomes of a request is told so at
// once; what is asked later is taken as ever.
func TestProposeRelease(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		taken := pt.write("taken")
		p := pt.next()
		p.Done(true, 1, true)
		pt.leaders.Set(0, 1)
		queued := pt.write("queued")
		synctest.Wait()
		pt.p.Release(problem.ErrHistories)
		if res := <-taken; !errors.Is(res.Err, problem.ErrHistories) || problem.Of(res.Err).Outcome != problem.MaybeApplied {
			t.Errorf("a request that raft had taken: %v", res.Err)
		}
		if res := <-queued; !errors.Is(res.Err, problem.ErrHistories) || problem.Of(res.Err).Outcome != problem.NotApplied {
			t.Errorf("a request that nobody had seen: %v", res.Err)
		}
		id, _ := pt.open(p)
		pt.apply(id.Seq, 1) // nobody waits for it any more
		pt.leaders.Set(1, 2)
		later := pt.write("later")
		id, _ = pt.open(pt.next())
		pt.apply(id.Seq, 1)
		pt.want(later, state.Result{Revision: 100})
	})
}
