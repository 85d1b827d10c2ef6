package state

import (
	"maps"
	"raftkv/internal/membership"
	"raftkv/internal/record"
	"raftkv/internal/window"
)

// The types of package window, by the names that they have here.
type (
	BatchID  = window.Batch
	Window   = window.Window
	Standing = window.Standing
)

// Window tells which batches of a node's life are settled.
func (s *State) Window(node uint64) Window { return s.Windows[node] }

// Standing returns how far s has come, in a copy that later changes of s do not touch.
func (s *State) Standing() Standing {
	st := Standing{Index: s.Index, Changes: s.Membership.Changes, Windows: make(map[uint64]window.Reach)}
	for node, w := range s.Windows {
		st.Windows[node] = w.Reach()
	}
	return st
}

// windowPart is which batches were applied.
var windowPart = part{
	records: []byte{windowRecord},
	write: func(s *State, put func(kind byte, payload []byte) error) error {
		var b []byte
		for _, node := range membership.SortedKeys(s.Windows) {
			w := s.Windows[node]
			b = record.AppendUvarints(b[:0], node, w.Boot, w.Low, w.Applied)
			b = record.AppendOptional(b, w.Life)
			if err := put(windowRecord, b); err != nil {
				return err
			}
		}
		return nil
	},
	restore: func(s *State, _ byte, f *record.Reader) error {
		s.Windows[f.Uvarint()] = Window{Boot: f.Uvarint(), Low: f.Uvarint(), Applied: f.Uvarint(), Life: f.Optional()}
		return nil
	},
	clone: func(from, to *State) { to.Windows = maps.Clone(from.Windows) },
	reset: func(s *State) { s.Windows = make(map[uint64]Window) },
}
