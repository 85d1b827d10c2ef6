package rounds

import (
	"time"
)

// Whether the next round begins now, or waits for more to share it. A round, of
// a batch of writes or of a read index, costs the cluster about half a
// millisecond of work (entry, fsyncs, messages, wake-ups), however many share
// it. Clients that were answered together come back together, each a little
// after the other; to leave with the first of them would make two rounds of what
// fits into one. On two cores, 64 clients that write get 40 % more done when
// their rounds wait for them, and each is answered sooner.
//
// Few clients never wait, nor do those who come when they like and not because
// they were answered: a wait in vain makes the next ones rarer.

const (
	// fewest: for less it is not worth waiting.
	fewest = 4
	// fullRound: this many do not wait for more, also not for the end of the
	// round before.
	fullRound = 128
	// roundSpacing is how long after the one before a round begins at the
	// latest. Where a round takes longer, as over a distance, they overlap.
	roundSpacing = 4 * time.Millisecond
	// maxPatience bounds the wait for those who were answered; less where
	// rounds are shorter.
	maxPatience = 3 * time.Millisecond
	maxMisses   = 6 // a wait in vain is tried again after 2, 4, ... 64 rounds
)

// gathering is what decides. Its owner's lock guards it.
type gathering struct {
	began    time.Time     // the latest round
	ended    time.Time     // the round that ended last
	took     time.Duration // that one
	waiting  int           // how many had come when it ended
	expected int           // how many to wait for
	misses   int           // waits in vain, one after the other
	skip     int           // rounds that do not wait
}

// hold returns 0 when have waiting requests are to begin a round now; else how
// long they wait at most, and how many are enough to begin sooner.
func (g *gathering) hold(have, underWay int, now time.Time) (wait time.Duration, enough int) {
	switch {
	case have >= fullRound:
		return 0, 0
	case underWay > 0:
		return max(0, roundSpacing-now.Sub(g.began)), fullRound
	case have >= g.expected || g.expected < fewest || g.skip > 0:
		return 0, 0
	}
	return max(0, min(2*g.took, maxPatience)-now.Sub(g.ended)), g.expected
}

// begin notes that have requests begin a round.
func (g *gathering) begin(have, underWay int, now time.Time) {
	g.began = now
	switch {
	case underWay > 0 || g.expected < fewest: // it was not for these that anyone waited
	case g.skip > 0:
		g.skip--
	case have < g.expected && g.vain(have-g.waiting, now.Sub(g.ended)):
		g.misses = min(g.misses+1, maxMisses)
		g.skip = 1 << g.misses
	default:
		g.misses = 0
	}
}

// vain reports whether those who came after the round's end came hardly faster
// than while it was under way: then it was not because of the answers.
func (g *gathering) vain(came int, waited time.Duration) bool {
	return time.Duration(came)*g.took <= 2*time.Duration(g.waiting)*waited
}

// end notes that a round has ended that served some, while others came to wait.
// With one in ten missing, the next does not wait for the last.
func (g *gathering) end(began time.Time, served, waiting int, now time.Time) {
	g.ended, g.took, g.waiting = now, now.Sub(began), waiting
	g.expected = min(served+waiting-(served+waiting)/10, fullRound)
}
