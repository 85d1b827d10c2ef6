package suspect

import (
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// entriesOf makes entries from an index on, one for each of the texts.
func entriesOf(from, term uint64, texts ...string) (entries []*raftpb.Entry) {
	for i, text := range texts {
		entries = append(entries, &raftpb.Entry{Index: new(from + uint64(i)), Term: new(term), Data: []byte(text)})
	}
	return entries
}

// Entries of one index and term that differ are found, and nothing else is. Without
// this raft takes the entries of one history for those of another; or a healthy node is
// doubted because entries that were never committed were overwritten.
func TestPrintsContradict(t *testing.T) {
	for name, tt := range map[string]struct {
		mine, theirs [][]*raftpb.Entry
		want         uint64
	}{
		"the same":             {[][]*raftpb.Entry{entriesOf(5, 2, "a", "b")}, [][]*raftpb.Entry{entriesOf(5, 2, "a", "b", "c")}, 0},
		"another one":          {[][]*raftpb.Entry{entriesOf(5, 2, "a", "b", "c")}, [][]*raftpb.Entry{entriesOf(5, 2, "a", "x", "y")}, 6},
		"of another term":      {[][]*raftpb.Entry{entriesOf(5, 2, "a", "b")}, [][]*raftpb.Entry{entriesOf(5, 2, "a"), entriesOf(6, 3, "x")}, 0},
		"overwritten since":    {[][]*raftpb.Entry{entriesOf(5, 2, "a", "b", "c"), entriesOf(6, 3, "x")}, [][]*raftpb.Entry{entriesOf(5, 2, "a"), entriesOf(6, 3, "x", "y")}, 0},
		"behind the other one": {[][]*raftpb.Entry{entriesOf(9, 2, "a")}, [][]*raftpb.Entry{entriesOf(5, 2, "a", "b")}, 0},
		"a first entry only":   {[][]*raftpb.Entry{entriesOf(5, 2, "")}, [][]*raftpb.Entry{entriesOf(5, 2, "")}, 0},
	} {
		var mine, theirs ownLog
		for _, entries := range tt.mine {
			mine.add(entries)
		}
		for _, entries := range tt.theirs {
			theirs.add(entries)
		}
		if got := mine.contradicts(theirs.behind(4)); got != tt.want {
			t.Errorf("%s: contradicts at %d, want %d", name, got, tt.want)
		}
	}
}

// What is kept and told is bounded, and what is applied is let go.
func TestOwnLogIsBounded(t *testing.T) {
	var l ownLog
	for i := range uint64(5 * maxPrints) {
		l.add(entriesOf(i+1, 1, fmt.Sprint(i)))
		l.trim(i - min(i, 3))
		if len(l.prints) > 2*maxPrints || len(l.tail) > 4 {
			t.Fatalf("%d fingerprints, %d entries", len(l.prints), len(l.tail))
		}
	}
	last := l.prints[len(l.prints)-1].Index
	if told := l.behind(last - maxPrints + 1); len(told) != maxTold || told[0].Index != last-maxPrints+2 {
		t.Errorf("%d fingerprints are told", len(told))
	}
	if told := l.behind(last - 1); len(told) != 1 || told[0].Index != last {
		t.Errorf("of the last: %v", told)
	}
	l.add(entriesOf(last-1, 2, "x"))
	if told := l.behind(last - 2); len(told) != 1 || told[0].Term != 2 {
		t.Errorf("what was overwritten is told: %v", told)
	}
}
