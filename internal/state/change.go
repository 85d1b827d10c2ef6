package state

import "raftkv/internal/changelog"

// Change is what became of one key at a revision.
type Change = changelog.Change[Item]

// ChangeEntry is all that one revision changed.
type ChangeEntry = changelog.Entry[Item]

// note remembers what became of a key at the revision that the store has already.
func (s *State) note(kind changelog.Kind, key string, it *Item) {
	if s.Changes.Limit() == 0 {
		return
	}
	c := Change{Revision: s.Revision, Kind: kind, Key: key, Item: it, Size: len(key)}
	if it != nil {
		c.Size += len(it.Value)
		c.Lease = s.Left(it).Lease
	}
	s.Changes.Note(c)
}
