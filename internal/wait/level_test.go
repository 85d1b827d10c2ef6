package wait

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Guarantee: who waits for a level is woken once, when it is reached and not before;
// who has given up is not woken.
func TestLevel(t *testing.T) {
	l := NewLevel(5)
	woken := make(map[uint64]int)
	await := func(level uint64) (giveUp func() bool) {
		return l.Await(level, func(ended bool) {
			if ended {
				t.Errorf("%d: ended", level)
			}
			woken[level]++
		})
	}
	want := func(when string, levels ...uint64) {
		t.Helper()
		for _, level := range levels {
			if woken[level] != 1 {
				t.Errorf("%s: %d was woken %d times", when, level, woken[level])
			}
		}
		if len(woken) != len(levels) {
			t.Errorf("%s: woken are %v, want %v", when, woken, levels)
		}
	}
	for _, level := range []uint64{0, 5} {
		if await(level)() {
			t.Errorf("%d is reached, and still waited for", level)
		}
	}
	want("at once", 0, 5)
	await(9)
	await(7)
	gone, kept := await(6), await(8)
	if !gone() || gone() {
		t.Error("a wait that was given up goes on")
	}
	l.Advance(6)
	l.Advance(4)
	want("at 6", 0, 5)
	l.Advance(8)
	want("at 8", 0, 5, 7, 8)
	if kept() {
		t.Error("who was woken could still give up")
	}
	l.Advance(9)
	want("at 9", 0, 5, 7, 8, 9)
	if l.Get() != 9 || l.Waiting() != 0 {
		t.Errorf("at %d, %d wait", l.Get(), l.Waiting())
	}
}

// Guarantee: nobody waits beyond the end, and what is reached is not called ended.
func TestLevelEnds(t *testing.T) {
	l := NewLevel(1)
	var told []bool
	wake := func(ended bool) { told = append(told, ended) }
	l.Await(2, wake)
	l.End()
	l.Await(2, wake)
	l.Await(1, wake)
	if len(told) != 3 || !told[0] || !told[1] || told[2] {
		t.Errorf("told %v", told)
	}
}

// Guarantee: waking and giving up at the same moment, a wait ends in one of the two.
func TestLevelRace(t *testing.T) {
	l := NewLevel(0)
	var woken, gaveUp atomic.Int64
	var all sync.WaitGroup
	for n := range uint64(200) {
		all.Go(func() {
			if l.Await(n, func(bool) { woken.Add(1) })() {
				gaveUp.Add(1)
			}
		})
		all.Go(func() { l.Advance(n) })
	}
	all.Wait()
	l.Advance(200)
	if woken.Load()+gaveUp.Load() != 200 {
		t.Errorf("%d were woken, %d gave up", woken.Load(), gaveUp.Load())
	}
}
