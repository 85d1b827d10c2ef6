package state

import (
	"cmp"
	"raftkv/internal/changelog"
	"slices"
)

// ChangeKind says what became of a key.
type ChangeKind byte

// The kinds of a change.
const (
	ChangePut    ChangeKind = iota // it was written
	ChangeDelete                   // it was deleted, or its lease was revoked
	ChangeExpire                   // its time was up, or its lease's
)

// Change is what became of one key at a revision.
type Change struct {
	Kind     ChangeKind
	Key      string
	Item     *Item  // as it was written; nil if it is gone
	Lease    uint64 // with which it goes; 0: with none that has a name
	revision uint64
}

// Changes is what the last revisions changed.
type Changes struct {
	changelog.Log[Change]
	noted []Change // since the last call of tell
}

// ChangeEntry is all that one revision changed.
type ChangeEntry = changelog.Entry[Change]

// note remembers a change at the revision that the store has already, if changes are kept.
func (s *State) note(kind ChangeKind, key string, it *Item) {
	if s.Changes.Limit() == 0 {
		return
	}
	c := Change{Kind: kind, Key: key, Item: it, revision: s.Revision}
	if it != nil && it.Lease != 0 {
		if l := s.Leases.Get(it.Lease); l != nil && !l.Private {
			c.Lease = it.Lease
		}
	}
	s.Changes.noted = append(s.Changes.noted, c)
}

// tell passes on what was noted, in the order of the revisions.
func (s *State) tell() {
	noted := s.Changes.noted
	if len(noted) == 0 {
		return
	}
	// A replay has gathered writes and made them in the order of their keys.
	slices.SortStableFunc(noted, func(a, b Change) int { return cmp.Compare(a.revision, b.revision) })
	for _, c := range noted {
		size := len(c.Key)
		if c.Item != nil {
			size += len(c.Item.Value)
		}
		s.Changes.Add(c.revision, c, size)
	}
	clear(noted) // what they write must not stay in memory
	s.Changes.noted = noted[:0]
}
