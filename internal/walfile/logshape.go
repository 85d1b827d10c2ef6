package walfile

import (
	"fmt"
	"slices"
	"sort"
)

// Shape says of a log which entries it has, and of which terms, without the
// entries: so a log that is larger than the memory can be judged.
type Shape struct {
	First, Next uint64 // the entries from first on, before next; equal: none
	Runs        []TermRun
}

// TermRun: the entries from an index on, up to the next run, are of one term.
type TermRun struct{ from, term uint64 }

// Add takes in an entry, which overwrites what is at and behind its index
// (thesis §3.5).
func (s *Shape) Add(index, term uint64) error {
	switch {
	case s.Empty() || index <= s.First:
		s.First, s.Runs = index, nil
	case index > s.Next:
		return fmt.Errorf("entry %d follows entry %d", index, s.Next-1)
	}
	s.Next = index + 1
	for len(s.Runs) > 0 && s.Runs[len(s.Runs)-1].from >= index {
		s.Runs = s.Runs[:len(s.Runs)-1]
	}
	if n := len(s.Runs); n == 0 || s.Runs[n-1].term != term {
		s.Runs = append(s.Runs, TermRun{index, term})
	}
	return nil
}

func (s *Shape) Empty() bool { return s.First == s.Next }

// Last is the index of the last entry, 0 if there is none.
func (s *Shape) Last() uint64 {
	if s.Empty() {
		return 0
	}
	return s.Next - 1
}

// Has reports whether the entry at index is there, and of that term.
func (s *Shape) Has(index, term uint64) bool {
	if s.Empty() || index < s.First || index >= s.Next {
		return false
	}
	i := sort.Search(len(s.Runs), func(i int) bool { return s.Runs[i].from > index })
	return s.Runs[i-1].term == term
}

// clear forgets all entries.
func (s *Shape) clear() { *s = Shape{} }

// DropTo forgets the entries up to an index.
func (s *Shape) DropTo(index uint64) {
	switch {
	case s.Empty() || index < s.First:
	case index+1 >= s.Next:
		s.clear()
	default:
		s.First = index + 1
		i := sort.Search(len(s.Runs), func(i int) bool { return s.Runs[i].from > s.First })
		s.Runs = slices.Delete(s.Runs, 0, i-1)
		s.Runs[0].from = s.First
	}
}
