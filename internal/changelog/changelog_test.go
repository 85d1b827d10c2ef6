package changelog

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

// item is what the keys of these tests hold.
type item struct{}

// put notes a change of size bytes at a revision.
func put(l *Log[item], revision uint64, key string, size int) {
	l.Note(Change[item]{Revision: revision, Key: key, Item: &item{}, Size: size})
}

// revisions are those of the entries behind a revision.
func revisions(l *Log[item], after uint64, most int) (got []uint64, ok bool) {
	entries, ok := l.After(after, most)
	for _, e := range entries {
		got = append(got, e.Revision)
	}
	return got, ok
}

// Guarantee: a log holds as many bytes as it may, exactly, and the newest revision in any
// case; what it has let go of it says is gone.
func TestLogHoldsItsBytes(t *testing.T) {
	const each = 100 + ChangeCost
	var l Log[item]
	l.Keep(3*each, 7)
	for revision := uint64(8); revision <= 10; revision++ {
		put(&l, revision, "k", 100)
		l.Tell(1)
	}
	if l.Len() != 3 || l.Base() != 7 || l.Bytes() != 3*each {
		t.Errorf("%d entries behind %d, %d bytes", l.Len(), l.Base(), l.Bytes())
	}
	put(&l, 11, "k", 0)
	l.Tell(1)
	if l.Len() != 3 || l.Base() != 8 {
		t.Errorf("one byte past the bound: %d entries behind %d", l.Len(), l.Base())
	}
	if got, ok := revisions(&l, 8, 10); !ok || !slices.Equal(got, []uint64{9, 10, 11}) {
		t.Errorf("behind the oldest are %v, %t", got, ok)
	}
	if got, ok := revisions(&l, 7, 10); ok {
		t.Errorf("behind what is gone are %v", got)
	}
	if got, ok := revisions(&l, 9, 1); !ok || !slices.Equal(got, []uint64{10}) {
		t.Errorf("one behind 9 is %v, %t", got, ok)
	}
	if got, ok := revisions(&l, 11, 10); !ok || got != nil {
		t.Errorf("behind the newest are %v, %t", got, ok)
	}
	put(&l, 12, "k", 100*each)
	l.Tell(1)
	if l.Len() != 1 || l.Base() != 11 || l.Get(12) == nil || l.Get(11) != nil || l.Get(13) != nil {
		t.Errorf("behind a large one: %d entries behind %d", l.Len(), l.Base())
	}
	put(&l, 13, "k", 0)
	l.Tell(1)
	if l.Len() != 1 || l.Base() != 12 || l.Bytes() != ChangeCost {
		t.Errorf("%d entries behind %d, %d bytes", l.Len(), l.Base(), l.Bytes())
	}
}

// Guarantee: the changes of a revision stand in one entry, in their order, and revisions in
// theirs, in whatever order a replay has made them.
func TestLogSortsRevisions(t *testing.T) {
	var l Log[item]
	l.Keep(1<<20, 0)
	for _, c := range []struct {
		revision uint64
		key      string
	}{{3, "c"}, {1, "z"}, {1, "a"}, {2, "b"}} {
		put(&l, c.revision, c.key, 1)
	}
	l.Tell(7)
	put(&l, 4, "k", 1)
	l.Tell(8)
	if l.Get(1).Term != 7 || l.Get(3).Term != 7 || l.Get(4).Term != 8 {
		t.Errorf("terms %d, %d and %d", l.Get(1).Term, l.Get(3).Term, l.Get(4).Term)
	}
	l.Tell(9)
	var got []string
	entries, _ := l.After(0, 10)
	for _, e := range entries {
		for _, c := range e.Changes {
			got = append(got, fmt.Sprint(e.Revision, c.Key))
		}
	}
	if want := []string{"1z", "1a", "2b", "3c", "4k"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if l.Get(1).Size != 2+2*ChangeCost || l.Bytes() != 5+5*ChangeCost {
		t.Errorf("%d, %d bytes", l.Get(1).Size, l.Bytes())
	}
	l.Keep(0, 3)
	put(&l, 4, "k", 1)
	if l.Tell(1); l.Len() != 0 || l.Limit() != 0 {
		t.Error("a log that is to keep nothing does")
	}
}

// Guarantee: an entry is found by its revision, also where revisions are missing before it,
// and none is found for another.
func TestLogWithGaps(t *testing.T) {
	var l Log[item]
	l.Keep(1<<20, 4)
	there := []uint64{5, 8, 9, 12}
	for _, revision := range there {
		put(&l, revision, "k", 0)
	}
	l.Tell(1)
	for revision := uint64(0); revision <= 14; revision++ {
		e := l.Get(revision)
		if want := slices.Contains(there, revision); (e != nil) != want || want && e.Revision != revision {
			t.Errorf("revision %d: %+v", revision, e)
		}
		if revision < l.Base() {
			continue
		}
		var want []uint64
		for _, r := range there {
			if r > revision {
				want = append(want, r)
			}
		}
		if got, ok := revisions(&l, revision, 10); !ok || !slices.Equal(got, want) {
			t.Errorf("behind %d are %v, want %v", revision, got, want)
		}
	}
	if got, ok := revisions(&l, math.MaxUint64, 10); !ok || len(got) > 0 {
		t.Errorf("behind the last number that there is are %v", got)
	}
}
