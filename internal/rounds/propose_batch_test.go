package rounds

import (
	"fmt"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// What goes into a batch, and when: how the proposer gathers.

// takes takes the batch that is being offered now, checks which it is, and says
// that raft has it.
func (pt *proposeTest) takes(seq, low uint64, cmds ...string) {
	pt.Helper()
	p := pt.next()
	if id, got := pt.open(p); id.Seq != seq || id.Low != low || !slices.Equal(got, cmds) {
		pt.Fatalf("batch %+v is %q, want %d with low %d, %q", id, got, seq, low, cmds)
	}
	p.Done(true, 1, true)
}

// Guarantee: a lone write goes at once; what comes while a batch is on its way
// becomes one batch, in the order in which it came, and goes as soon as that is
// applied: no timer holds anyone back.
func TestProposeGathers(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		start := time.Now()
		var results []<-chan state.Result
		results = append(results, pt.write("a"))
		pt.takes(0, 0, "a")
		for _, cmd := range []string{"b", "c", "d"} {
			results = append(results, pt.write(cmd))
			pt.quiet()
		}
		pt.apply(0, 1)
		pt.takes(1, 1, "b", "c", "d")
		pt.apply(1, 3)
		for i, rev := range []uint64{0, 100, 101, 102} {
			pt.want(results[i], state.Result{Revision: rev})
		}
		res := pt.write("e")
		pt.takes(2, 2, "e")
		pt.apply(2, 1)
		pt.want(res, state.Result{Revision: 200})
		if time.Since(start) != 0 {
			pt.Fatalf("writes were held back for %v", time.Since(start))
		}
	})
}

// Guarantee: where batches take long they overlap, each later than the one
// before by roundSpacing, but no more than maxBatchesInFlight; each says which
// are settled, whatever their order.
func TestProposeOverlaps(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		pt.leaders.Set(1, 1)
		results := []<-chan state.Result{pt.write("0")}
		pt.takes(0, 0, "0")
		for i := 1; i < maxBatchesInFlight; i++ {
			results = append(results, pt.write(fmt.Sprint(i)))
			time.Sleep(roundSpacing - 1)
			pt.quiet()
			time.Sleep(time.Nanosecond)
			pt.takes(uint64(i), 0, fmt.Sprint(i))
		}
		x, y := pt.write("x"), pt.write("y")
		time.Sleep(time.Second)
		pt.quiet() // enough are on their way
		pt.apply(1, 1)
		pt.takes(maxBatchesInFlight, 0, "x", "y")
		for _, seq := range []uint64{0, 2, 3} {
			pt.apply(seq, 1)
		}
		for i, c := range results {
			pt.want(c, state.Result{Revision: 100 * uint64(i)})
		}
		pt.waits(x, y)
		pt.apply(maxBatchesInFlight, 2)
		pt.want(x, state.Result{Revision: 100 * maxBatchesInFlight})
		pt.want(y, state.Result{Revision: 100*maxBatchesInFlight + 1})
		res := pt.write("z")
		time.Sleep(maxPatience) // for the other of x and y, at most
		pt.takes(maxBatchesInFlight+1, maxBatchesInFlight+1, "z")
		pt.apply(maxBatchesInFlight+1, 1)
		pt.want(res, state.Result{Revision: 100 * (maxBatchesInFlight + 1)})
	})
}

// Guarantee: one raft entry is bounded in commands and bytes, and a command
// larger than that still goes, alone.
func TestProposeBatchBounds(t *testing.T) {
	testProposer(t, func(pt *proposeTest) {
		queue := func(n, size int) {
			cmd := make([]byte, size)
			for range n {
				if err := pt.p.enqueue(&request{cmd: cmd, deadline: time.Now().Add(testTimeout), waiter: newOutcome()}); err != nil {
					pt.Fatal(err)
				}
			}
		}
		queue(state.MaxBatchWork+1, 1)
		queue(1, 2*maxBatchBytes)
		queue(3, maxBatchBytes/2)
		pt.leaders.Set(1, 1)
		for seq, want := range []int{state.MaxBatchWork, 1, 1, 1, 1, 1} {
			p := pt.next()
			id, cmds := pt.open(p)
			if id.Seq != uint64(seq) || len(cmds) != want || len(cmds) > 1 && len(p.Data) > maxBatchBytes+maxBatchBytes/8 {
				pt.Fatalf("batch %+v has %d commands, %d bytes; want %d", id, len(cmds), len(p.Data), want)
			}
			pt.apply(id.Seq, len(cmds))
		}
		pt.quiet()
		if pt.p.queued != 0 {
			pt.Fatalf("%d bytes are left", pt.p.queued)
		}
	})
}

// Guarantee: what waits for the cluster is bounded; the next is refused at
// once, before it is proposed, and there is room again when the queue is empty.
func TestProposeOverload(t *testing.T) {
	for _, tt := range []struct{ n, size int }{{maxQueuedCommands, 1}, {MaxQueuedBytes >> 20, 1 << 20}, {1, MaxQueuedBytes + 1}} {
		testProposer(t, func(pt *proposeTest) {
			cmd := make([]byte, tt.size)
			for range tt.n {
				if err := pt.p.enqueue(&request{cmd: cmd, deadline: time.Now().Add(testTimeout), waiter: newOutcome()}); err != nil {
					pt.Fatal(err)
				}
			}
			pt.want(pt.write("one more"), state.Result{Err: problem.ErrOverloaded})
			time.Sleep(testTimeout + testSlack)
			synctest.Wait()
			if pt.p.queued != 0 || len(pt.p.queue) != 0 {
				pt.Fatalf("%d bytes, %d commands are left", pt.p.queued, len(pt.p.queue))
			}
			pt.waits(pt.write("there is room"))
		})
	}
}
