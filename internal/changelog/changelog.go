// Package changelog answers: what was changed of late, and from which revision on is that
// all? A Log holds the changes of the last revisions, as many as a bound of bytes lets it.
// It stands beside the replicated state and is no part of it: nodes hold different spans
// of the same changes.
package changelog

import (
	"sort"
	"sync/atomic"
)

const (
	// Forms is in how many forms watchers may want the same entry.
	Forms = 8
	// EntryCost is about what an entry of one change takes in memory beside its key and
	// value, in bytes.
	EntryCost = 256
)

// Entry is all that one revision changed. It is never changed once another follows it,
// or whoever holds the state's lock has let it go.
type Entry[C any] struct {
	Revision uint64
	Changes  []C // in the order in which they were made; each is of another key
	Size     int // bytes, about
	one      [1]C

	// Told is what watchers have made of the entry, by form, so that it is made once for
	// all of them. Package watch owns it.
	Told [Forms]atomic.Pointer[[]byte]
}

// Log is the changes of the revisions behind Base, without a gap. The zero value keeps
// nothing. Whoever owns the state owns its lock.
type Log[C any] struct {
	limit   int    // bytes; 0: nothing is kept
	base    uint64 // the revision before the oldest entry
	bytes   int
	entries []*Entry[C]
}

// Keep makes the log begin behind a revision, and hold about limit bytes from now on. It
// always holds the newest entry, however large that is.
func (l *Log[C]) Keep(limit int, revision uint64) { *l = Log[C]{limit: max(limit, 1), base: revision} }

// BeginAt forgets all entries: what comes next is behind a revision.
func (l *Log[C]) BeginAt(revision uint64) {
	if l.limit > 0 {
		l.Keep(l.limit, revision)
	}
}

// Limit is what Keep was given; 0 for a log that keeps nothing.
func (l *Log[C]) Limit() int { return l.limit }

// Base is the lowest revision whose successors are all here.
func (l *Log[C]) Base() uint64 { return l.base }

// Bytes is about how much memory the entries take.
func (l *Log[C]) Bytes() int { return l.bytes }

// Len is how many entries there are.
func (l *Log[C]) Len() int { return len(l.entries) }

// Add appends a change of so many bytes to those of its revision. Revisions never go
// back.
func (l *Log[C]) Add(revision uint64, change C, size int) {
	if l.limit == 0 {
		return
	}
	if n := len(l.entries); n > 0 && l.entries[n-1].Revision == revision {
		e := l.entries[n-1]
		e.Changes = append(e.Changes, change)
		e.Size += size + EntryCost
	} else {
		e := &Entry[C]{Revision: revision, Size: size + EntryCost, one: [1]C{change}}
		e.Changes = e.one[:]
		l.entries = append(l.entries, e)
	}
	l.bytes += size + EntryCost
	for l.bytes > l.limit && len(l.entries) > 1 {
		l.drop()
	}
}

// drop forgets the oldest entry.
func (l *Log[C]) drop() {
	e := l.entries[0]
	l.entries[0] = nil
	l.entries = l.entries[1:]
	l.base, l.bytes = e.Revision, l.bytes-e.Size
}

// After returns up to most entries behind a revision, the oldest first. False: some of
// those are gone.
func (l *Log[C]) After(revision uint64, most int) (entries []*Entry[C], ok bool) {
	if revision < l.base {
		return nil, false
	}
	from := l.search(revision + 1)
	to := min(len(l.entries), from+most)
	return append(entries, l.entries[from:to]...), true
}

// Get returns the entry of a revision, nil if it is not here.
func (l *Log[C]) Get(revision uint64) *Entry[C] {
	if i := l.search(revision); i < len(l.entries) && l.entries[i].Revision == revision {
		return l.entries[i]
	}
	return nil
}

// search returns the place of the first entry at or behind a revision.
func (l *Log[C]) search(revision uint64) int {
	return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].Revision >= revision })
}
