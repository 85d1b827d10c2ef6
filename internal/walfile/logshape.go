package walfile

import (
	"fmt"
	"slices"
	"sort"
)

// shape says of a log which entries it has, and of which terms, without the
// entries: so a log that is larger than the memory can be judged.
type shape struct {
	first, next uint64 // the entries from first on, before next; equal: none
	runs        []termRun
}

// termRun: the entries from an index on, up to the next run, are of one term.
type termRun struct{ from, term uint64 }

// Add takes in an entry, which overwrites what is at and behind its index
// (thesis §3.5).
func (s *shape) Add(index, term uint64) error {
	switch {
	case s.empty() || index <= s.first:
		s.first, s.runs = index, nil
	case index > s.next:
		return fmt.Errorf("entry %d follows entry %d", index, s.next-1)
	}
	s.next = index + 1
	for len(s.runs) > 0 && s.runs[len(s.runs)-1].from >= index {
		s.runs = s.runs[:len(s.runs)-1]
	}
	if n := len(s.runs); n == 0 || s.runs[n-1].term != term {
		s.runs = append(s.runs, termRun{index, term})
	}
	return nil
}

func (s *shape) empty() bool { return s.first == s.next }

// last is the index of the last entry, 0 if there is none.
func (s *shape) last() uint64 {
	if s.empty() {
		return 0
	}
	return s.next - 1
}

// has reports whether the entry at index is there, and of that term.
func (s *shape) has(index, term uint64) bool {
	if s.empty() || index < s.first || index >= s.next {
		return false
	}
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].from > index })
	return s.runs[i-1].term == term
}

// clear forgets all entries.
func (s *shape) clear() { *s = shape{} }

// dropTo forgets the entries up to an index.
func (s *shape) dropTo(index uint64) {
	switch {
	case s.empty() || index < s.first:
	case index+1 >= s.next:
		s.clear()
	default:
		s.first = index + 1
		i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].from > s.first })
		s.runs = slices.Delete(s.runs, 0, i-1)
		s.runs[0].from = s.first
	}
}
