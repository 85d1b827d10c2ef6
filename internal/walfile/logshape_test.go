package walfile

import (
	"fmt"
	"testing"
)

// The shape of a log is that of its entries, whatever overwrites what.
func TestLogShape(t *testing.T) {
	var s shape
	if s.last() != 0 || s.has(0, 0) || s.has(1, 1) {
		t.Error("an empty log has entries")
	}
	add := func(index, term uint64, ok bool) {
		t.Helper()
		if err := s.Add(index, term); (err == nil) != ok {
			t.Errorf("entry %d of term %d: %v", index, term, err)
		}
	}
	want := func(first uint64, terms ...uint64) {
		t.Helper()
		if last := first + uint64(len(terms)) - 1; s.first != first || s.last() != last {
			t.Errorf("entries %d to %d, want %d to %d", s.first, s.last(), first, last)
		}
		for i, term := range terms {
			for _, other := range []uint64{term - 1, term, term + 1} {
				if index := first + uint64(i); s.has(index, other) != (other == term) {
					t.Errorf("entry %d of term %d: %v", index, other, s.has(index, other))
				}
			}
		}
		if s.has(first-1, terms[0]) || s.has(s.next, terms[len(terms)-1]) {
			t.Error("it has an entry beside its ends")
		}
	}
	add(5, 1, true)
	add(7, 1, false)
	add(6, 1, true)
	add(7, 2, true)
	add(8, 4, true)
	want(5, 1, 1, 2, 4)
	add(7, 5, true)
	want(5, 1, 1, 5)
	add(8, 5, true)
	add(9, 6, true)
	for cut, left := range [][]uint64{{1, 1, 5, 5, 6}, {1, 5, 5, 6}, {5, 5, 6}, {5, 6}, {6}} {
		s := s
		s.runs = append([]termRun(nil), s.runs...)
		s.dropTo(uint64(4 + cut))
		if got := fmt.Sprint(s.first, s.last(), len(left)); got != fmt.Sprint(5+cut, 9, 5-cut) {
			t.Errorf("cut behind %d: %s", 4+cut, got)
		}
		for i, term := range left {
			if !s.has(uint64(5+cut+i), term) {
				t.Errorf("cut behind %d: no entry %d of term %d", 4+cut, 5+cut+i, term)
			}
		}
	}
	add(3, 7, true)
	want(3, 7)
	s.dropTo(3)
	if !s.empty() {
		t.Error("not empty")
	}
}
