package rounds

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/state"
)

// Life is one run of a node on its data directory.
//
// Two things tell lives apart. boot counts them, and so puts them in order. But
// it is kept in the directory, and goes back with it when an operator puts an
// older copy in its place: the next life then has the number of one that was
// lived already, in which other batches were sent. nonce is drawn at random, so
// no two lives share it, whatever becomes of the directory.
type Life struct {
	node, boot, nonce uint64
}

// NewLife begins a life of a node.
func NewLife(node, boot uint64) Life {
	return Life{node: node, boot: boot, nonce: max(rand.Uint64(), 1)}
}

// isAnothers reports whether a batch comes from a life that this one, with the
// directory that it has, cannot know of: a later life of this node, or another
// with the same number. Batches of earlier lives are what every crash leaves.
func (l Life) isAnothers(id state.BatchID) bool {
	if id.Node != l.node || id.Boot < l.boot {
		return false
	}
	return id.Boot > l.boot || id.Life != 0 && id.Life != l.nonce
}

// contradictedBy reports whether a window of this node's shows another life in
// the same way, when this one has begun batches with sequences below next.
func (l Life) contradictedBy(w state.Window, next uint64) bool {
	if w.Boot < l.boot {
		return false
	}
	return w.Boot > l.boot || w.Life != 0 && w.Life != l.nonce || w.End() > next
}

// CheckWindow returns problem.ErrOldCopy when the replicated state has seen another life
// of this node.
func (p *Proposer) CheckWindow(w state.Window) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.contradictedBy(w, p.nextSeq) {
		return problem.ErrOldCopy
	}
	return nil
}

// CheckBatch returns problem.ErrOldCopy when a batch in the log cannot be one that this
// Life of this node has sent, though it is marked as its own.
func (p *Proposer) CheckBatch(id state.BatchID, data []byte) error {
	if p.life.isAnothers(id) {
		return problem.ErrOldCopy
	}
	if id.Node != p.life.node || id.Boot != p.life.boot {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if id.Seq >= p.nextSeq {
		return problem.ErrOldCopy
	}
	for _, b := range p.inFlight {
		if b.id.Seq == id.Seq && !bytes.Equal(b.data, data) {
			return problem.ErrOldCopy
		}
	}
	return nil
}

// RoundContext is the length of a context of ReadIndex: the node that asks, the
// nonce of its life, which attempt it is, and the commit index that the node had
// then, eight bytes each, big-endian. The leader gives it back as it is.
const RoundContext = 32

// Asked reports whether this life asked for the round of a context.
func (l Life) Asked(context []byte) bool {
	return len(context) == RoundContext && binary.BigEndian.Uint64(context) == l.node &&
		binary.BigEndian.Uint64(context[8:]) == l.nonce
}

// AskedAt is the commit index in a context.
func AskedAt(context []byte) uint64 { return binary.BigEndian.Uint64(context[RoundContext-8:]) }
