package wait

import (
	"raftkv/internal/problem"
	"testing"
)

// Guarantee: who waits for an index is woken when it is reached, in whatever
// order they came, and once.
func TestIndexWait(t *testing.T) {
	w := NewIndex(5)
	woken := make(map[uint64]int)
	for _, index := range []uint64{9, 5, 7, 6, 7, 4} {
		w.Reached(index, func() { woken[index]++ })
	}
	if woken[4] != 1 || woken[5] != 1 || len(woken) != 2 {
		t.Fatalf("at 5: %v", woken)
	}
	w.Advance(7)
	w.Advance(3) // a state never goes back
	if w.Get() != 7 || woken[6] != 1 || woken[7] != 2 || woken[9] != 0 {
		t.Fatalf("at %d: %v", w.Get(), woken)
	}
	select {
	case <-w.Channel(8):
		t.Fatal("8 is not reached")
	case <-w.Channel(7):
	}
	w.Advance(9)
	w.Advance(9)
	if woken[9] != 1 || woken[4] != 1 || w.Waiting() != 0 {
		t.Fatalf("%v, %d left", woken, w.Waiting())
	}
}

// Guarantee: the proposer of a membership change learns the outcome once, and
// nobody else's.
func TestConfWait(t *testing.T) {
	w := NewOutcomes()
	c, cancel := w.Register(1)
	w.Done(2, problem.ErrMemberExists)
	w.Done(1, nil)
	w.Done(1, problem.ErrMemberExists) // the second of two proposals
	if err := <-c; err != nil || len(c) != 0 {
		t.Fatal(err, len(c))
	}
	cancel()
	_, cancel = w.Register(3)
	cancel()
	w.Done(3, nil)
	if len(w.waiting) != 0 {
		t.Fatalf("%d left", len(w.waiting))
	}
}

// Guarantee: who has led in a term is remembered, of the last terms that had a leader, so many
// exactly, however many leaders followed meanwhile; of a term without one nobody is said to have
// led.
func TestLeaderOf(t *testing.T) {
	l := NewLeadership()
	l.Set(0, 1)
	for term := uint64(2); term < 2+pastLeaders; term++ {
		l.Set(0, term)
		l.Set(term%3+1, term)
		l.Set(term%3+1, term)
	}
	l.Set(0, 1000)
	for term, want := range map[uint64]uint64{1: 0, 2: 3, 3: 1, 1 + pastLeaders: (1+pastLeaders)%3 + 1, 2 + pastLeaders: 0, 1000: 0} {
		if got := l.LeaderOf(term); got != want {
			t.Errorf("in term %d led %d, want %d", term, got, want)
		}
	}
	l.Set(9, 1000)
	if l.LeaderOf(2) != 0 || l.LeaderOf(3) != 1 || l.LeaderOf(1000) != 9 {
		t.Errorf("one more: %d, %d and %d", l.LeaderOf(2), l.LeaderOf(3), l.LeaderOf(1000))
	}
}
