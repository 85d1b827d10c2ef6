// Package changelog answers: what was changed of late, and from which revision on is that
// all? A Log holds the changes of the last revisions, as many as a bound of bytes lets it.
// It stands beside the replicated state and is no part of it: nodes hold different spans
// of the same changes.
package changelog

import (
	"cmp"
	"slices"
	"sort"
	"sync/atomic"
)

const (
	// Forms is in how many forms watchers may want the same entry.
	Forms = 8
	// ChangeCost is about what a change takes in memory beside its key and value, in bytes.
	ChangeCost = 256
)

// Kind says what became of a key.
type Kind byte

// The kinds of a change.
const (
	Put    Kind = iota // it was written
	Delete             // it was deleted, or its lease was revoked
	Expire             // its time was up, or its lease's
)

// Change is what became of one key at a revision.
type Change[I any] struct {
	Revision uint64
	Kind     Kind
	Key      string
	Item     *I     // as it was written; nil if it is gone
	Lease    uint64 // with which it goes; 0: with none that has a name
	Size     int    // of key and value, in bytes
}

// Entry is all that one revision changed. It is never changed once another follows it,
// or whoever holds the state's lock has let it go.
type Entry[I any] struct {
	Revision uint64
	Term     uint64      // of the log entry that made it
	Changes  []Change[I] // in the order in which they were made; each is of another key
	Size     int         // bytes, about
	one      [1]Change[I]

	// Told is what watchers have made of the entry, by form, so that it is made once for
	// all of them. Package watch owns it.
	Told [Forms]atomic.Pointer[[]byte]
}

// Log is the changes of the revisions behind Base, without a gap. The zero value keeps
// nothing. Whoever owns the state owns its lock.
type Log[I any] struct {
	limit   int64  // bytes; 0: nothing is kept
	base    uint64 // the revision before the oldest entry
	bytes   int64
	entries []*Entry[I]
	noted   []Change[I] // since the last Tell
}

// Keep makes the log begin behind a revision, and hold about limit bytes from now on. It
// always holds the newest entry, however large that is; with 0 it keeps nothing.
func (l *Log[I]) Keep(limit int64, revision uint64) { *l = Log[I]{limit: limit, base: revision} }

// Limit is what Keep was given; 0 for a log that keeps nothing.
func (l *Log[I]) Limit() int64 { return l.limit }

// Base is the lowest revision whose successors are all here.
func (l *Log[I]) Base() uint64 { return l.base }

// Bytes is about how much memory the entries take.
func (l *Log[I]) Bytes() int64 { return l.bytes }

// Len is how many entries there are.
func (l *Log[I]) Len() int { return len(l.entries) }

// Note gathers a change until Tell.
func (l *Log[I]) Note(c Change[I]) {
	if l.limit > 0 {
		l.noted = append(l.noted, c)
	}
}

// Tell takes in what was noted, of a log entry of that term. The order of the revisions counts: a replay of a log makes
// writes in another one.
func (l *Log[I]) Tell(term uint64) {
	if len(l.noted) == 0 {
		return
	}
	slices.SortStableFunc(l.noted, func(a, b Change[I]) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, c := range l.noted {
		l.add(c, term)
	}
	clear(l.noted) // what they write must not stay in memory
	l.noted = l.noted[:0]
}

// add appends a change to those of its revision.
func (l *Log[I]) add(c Change[I], term uint64) {
	size := c.Size + ChangeCost
	if n := len(l.entries); n > 0 && l.entries[n-1].Revision == c.Revision {
		e := l.entries[n-1]
		e.Changes = append(e.Changes, c)
		e.Size += size
	} else {
		e := &Entry[I]{Revision: c.Revision, Term: term, Size: size, one: [1]Change[I]{c}}
		e.Changes = e.one[:]
		l.entries = append(l.entries, e)
	}
	l.bytes += int64(size)
	for l.bytes > l.limit && len(l.entries) > 1 {
		l.drop()
	}
}

// drop forgets the oldest entry.
func (l *Log[I]) drop() {
	e := l.entries[0]
	l.entries[0] = nil
	l.entries = l.entries[1:]
	l.base, l.bytes = e.Revision, l.bytes-int64(e.Size)
}

// After returns up to most entries behind a revision, the oldest first. False: some of
// those are gone.
func (l *Log[I]) After(revision uint64, most int) (entries []*Entry[I], ok bool) {
	if revision < l.base {
		return nil, false
	}
	if n := len(l.entries); n == 0 || revision >= l.entries[n-1].Revision {
		return nil, true
	}
	from := l.search(revision + 1)
	to := min(len(l.entries), from+most)
	return append(entries, l.entries[from:to]...), true
}

// Get returns the entry of a revision, nil if it is not here.
func (l *Log[I]) Get(revision uint64) *Entry[I] {
	if i := l.search(revision); i < len(l.entries) && l.entries[i].Revision == revision {
		return l.entries[i]
	}
	return nil
}

// search returns the place of the first entry at or behind a revision.
func (l *Log[I]) search(revision uint64) int {
	// As a rule no revision is missing, and the place follows from the first one.
	if n := uint64(len(l.entries)); n > 0 {
		// Below the first one this is a huge number.
		if i := revision - l.entries[0].Revision; i < n && l.entries[i].Revision == revision {
			return int(i)
		}
	}
	return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].Revision >= revision })
}
