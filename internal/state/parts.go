package state

import (
	"fmt"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
)

// part is a part of the replicated state beside the items. A new one is a file with
// its fields' records, and a row in parts.
type part struct {
	records []byte // the kinds of its records
	// write passes on its records, in a fixed order. While it says nothing it has
	// none, so that it leaves no trace in files and in the hash (level.go).
	write func(s *State, put func(kind byte, payload []byte) error) error
	// bulk passes on records that are not in the hash as they stand, since there may be
	// very many: something in those of write sums them up. nil: there are none.
	bulk func(s *State, put func(kind byte, payload []byte) error) error
	// verify says, once all records of a file are read, what is wrong with them. nil:
	// nothing can be.
	verify func(s *State) error
	// restore takes over one record. A short one shows in the reader.
	restore func(s *State, kind byte, f *record.Reader) error
	// clone makes the part of to a copy of that of from, which later changes of
	// from do not touch.
	clone func(from, to *State)
	// reset drops what belongs to a cluster and not to its data: a new one is made
	// of the state.
	reset func(s *State)
}

// parts are in the order of their records in a state file, for ever.
var parts = [...]part{headPart, memberPart, windowPart, checkPart, leasePart, oncePart}

// partOf returns the part that has records of a kind, nil if there is none.
func partOf(kind byte) *part {
	for i := range parts {
		for _, k := range parts[i].records {
			if k == kind {
				return &parts[i]
			}
		}
	}
	return nil
}

// headPart is where the state stands.
var headPart = part{
	records: []byte{headRecord},
	write: func(s *State, put func(kind byte, payload []byte) error) error {
		b := record.AppendUvarints(nil, s.Index, s.Term, s.Revision, s.Membership.Changes)
		return put(headRecord, record.AppendOptional(b, s.Level))
	},
	restore: func(s *State, _ byte, f *record.Reader) error {
		s.Index, s.Term, s.Revision, s.Membership.Changes = f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint()
		if s.Level = f.Optional(); s.Level > ProgramLevel {
			return ErrLevel(s.Level)
		}
		return nil
	},
	clone: func(from, to *State) {
		to.Index, to.Term, to.Revision, to.Level = from.Index, from.Term, from.Revision, from.Level
	},
	reset: func(s *State) { s.Index, s.Term, s.Level = FirstIndex, FirstTerm, 0 },
}

// memberPart is who is in the cluster, and who was.
var memberPart = part{
	records: []byte{memberRecord, removedRecord},
	write: func(s *State, put func(kind byte, payload []byte) error) error {
		var b []byte
		for _, m := range s.Membership.Sorted() {
			b = membership.AppendMember(b[:0], m)
			if err := put(memberRecord, b); err != nil {
				return err
			}
		}
		for _, id := range membership.SortedKeys(s.Membership.Removed) {
			b = record.AppendUvarints(b[:0], id)
			if err := put(removedRecord, b); err != nil {
				return err
			}
		}
		return nil
	},
	restore: func(s *State, kind byte, f *record.Reader) error {
		if kind == removedRecord {
			s.Membership.Removed[f.Uvarint()] = true
			return nil
		}
		m := membership.TakeMember(f)
		s.Membership.Members[m.ID] = m
		return nil
	},
	clone: func(from, to *State) { to.Membership = from.Membership.Clone() },
	reset: func(s *State) { s.Membership = membership.New(nil) },
}

// table is what a part has that can be very large: a head, and records that are hashed
// into sums, which are in the head.
type table interface {
	// AppendHead appends the head; nothing if there never was a record.
	AppendHead(b []byte) []byte
	ReadHead(r *record.Reader)
	// Write passes on all records; whole: they are those that were summed up.
	Write(put func(payload []byte) error) (whole bool, err error)
	Read(r *record.Reader)
	// Check returns what is wrong with the records once all were read.
	Check() error
}

// tablePart is a part that is a table. Only its head is in the hash. A new cluster goes on
// with what it holds.
func tablePart(head, each byte, of func(*State) table, clone func(from, to *State)) part {
	return part{
		records: []byte{head, each},
		write: func(s *State, put func(kind byte, payload []byte) error) error {
			b := of(s).AppendHead(nil)
			if len(b) == 0 {
				return nil
			}
			return put(head, b)
		},
		bulk: func(s *State, put func(kind byte, payload []byte) error) error {
			whole, err := of(s).Write(func(payload []byte) error { return put(each, payload) })
			if err == nil && !whole {
				return problem.ErrMemory
			}
			return err
		},
		verify: func(s *State) error {
			if err := of(s).Check(); err != nil {
				return fmt.Errorf("%w: %w", statefile.ErrBad, err)
			}
			return nil
		},
		restore: func(s *State, kind byte, f *record.Reader) error {
			if kind == head {
				of(s).ReadHead(f)
			} else {
				of(s).Read(f)
			}
			return nil
		},
		clone: clone,
		reset: func(*State) {},
	}
}
