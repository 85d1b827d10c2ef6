package rounds

import (
	"math/rand/v2"
	"raftkv/internal/state"
	"testing"
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
	gt.round(state.MaxBatchWork, time.Second, maxQueuedCommands)
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
