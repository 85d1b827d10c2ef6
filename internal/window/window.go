// Package window answers: which batches were applied, and can two states be of one
// history? Each node numbers the batches of commands that it gathers. A window says which
// of those of one node's life were applied, so that one that is offered to raft twice is
// applied once. What the windows of two states say never sinks along one history, so they
// tell histories apart. Windows are a part of the replicated state, and pure like it.
package window

import "math/bits"

// Batch identifies a batch of commands for ever: the node that gathered it, which of
// its lives, and a count within that life. A batch that raft may have lost is
// proposed again under the same identity, and applied at most once.
type Batch struct {
	Node, Boot, Seq uint64
	// Low: every batch of this life below it is settled, that is, was
	// applied or will never be proposed again. It keeps the replicated
	// window of applied sequences short.
	Low uint64
	// Life is the nonce of the life that gathered it; 0 in format 1.
	Life uint64
}

// Window records which batches of one node's current life were applied.
// Everything below Low is settled; bit i of Applied stands for Low+i. A node
// keeps fewer than Size unsettled batches, so nothing falls out.
type Window struct {
	Boot, Low, Applied uint64
	// Life is the nonce of that life. It is 0, and so leaves no trace in files
	// and in the hash, until a batch has named it, which none does below level 3.
	Life uint64
}

// Size is how many batches of one life a window tells apart: the bits of Applied.
const Size = 64

// Admit reports whether a batch is applied now for the first time, and
// records it. A batch of an earlier life is refused: nobody waits for it, and
// its window is gone. So is one of another life with the same boot: one of the
// two began on an older copy of the directory, and ends when it sees the other.
func (w *Window) Admit(id Batch) bool {
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
	if id.Seq >= w.Low+Size {
		w.raise(id.Seq - Size + 1)
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
		w.Applied >>= min(low-w.Low, Size) // Go shifts out to zero
		w.Low = low
	}
	n := uint64(bits.TrailingZeros64(^w.Applied))
	w.Applied >>= n
	w.Low += n
}

// End is behind the last sequence that the window knows to be settled.
func (w Window) End() uint64 { return w.Low + uint64(bits.Len64(w.Applied)) }

// Settled reports whether the state has applied, or will never apply, a batch.
func (w Window) Settled(id Batch) bool {
	if id.Boot != w.Boot {
		return id.Boot < w.Boot
	}
	return id.Seq < w.Low || (id.Seq < w.Low+Size && w.Applied&(1<<(id.Seq-w.Low)) != 0)
}

// Reach tells how far the batches of the current life were applied.
func (w Window) Reach() Reach { return Reach{w.Boot, w.Life, w.End()} }
