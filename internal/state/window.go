package state

import (
	"maps"
	"math/bits"
	"raftkv/internal/membership"
	"raftkv/internal/record"
)

// Window records which batches of one node's current life were applied.
// Everything below Low is settled; bit i of Applied stands for Low+i. A node
// keeps fewer than WindowSize unsettled batches, so nothing falls out.
type Window struct {
	Boot, Low, Applied uint64
	// Life is the nonce of that life. It is 0, and so leaves no trace in files
	// and in the hash, until a batch has named it, which none does below level 3.
	Life uint64
}

// WindowSize is how many batches of one life a window tells apart: the bits of Applied.
const WindowSize = 64

// Admit reports whether a batch is applied now for the first time, and
// records it. A batch of an earlier life is refused: nobody waits for it, and
// its window is gone. So is one of another life with the same boot: one of the
// two began on an older copy of the directory, and ends when it sees the other.
func (w *Window) Admit(id BatchID) bool {
	if id.Boot < w.Boot {
		return false
	}
	if id.Boot > w.Boot {
		*w = Window{Boot: id.Boot}
	}
	if id.Life != 0 {
		if w.Life != 0 && id.Life != w.Life {
			return false
		}
		w.Life = id.Life
	}
	w.raise(id.Low)
	if id.Seq < w.Low {
		return false
	}
	if id.Seq >= w.Low+WindowSize {
		w.raise(id.Seq - WindowSize + 1)
	}
	bit := uint64(1) << (id.Seq - w.Low)
	if w.Applied&bit != 0 {
		return false
	}
	w.Applied |= bit
	return true
}

func (w *Window) raise(low uint64) {
	if low > w.Low {
		w.Applied >>= min(low-w.Low, WindowSize) // Go shifts out to zero
		w.Low = low
	}
	n := uint64(bits.TrailingZeros64(^w.Applied))
	w.Applied >>= n
	w.Low += n
}

// End is behind the last sequence that the window knows to be settled.
func (w Window) End() uint64 { return w.Low + uint64(bits.Len64(w.Applied)) }

// Settled reports whether the state has applied, or will never apply, a batch.
func (w Window) Settled(id BatchID) bool {
	if id.Boot != w.Boot {
		return id.Boot < w.Boot
	}
	return id.Seq < w.Low || (id.Seq < w.Low+WindowSize && w.Applied&(1<<(id.Seq-w.Low)) != 0)
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
