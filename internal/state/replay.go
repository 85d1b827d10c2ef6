package state

import (
	"cmp"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Replay applies a log for which nobody waits, and of which nobody sees the states
// between. Plain writes in a row are gathered, and reach the tree in the order of their
// keys: neighbours are near each other in memory, which a large store is too large to
// have in the processor's caches. What each of them does is what it would have done in
// its turn, since it has its revision, and writes of other keys do not matter to it.
//
// Between two calls the state may lack the writes that wait; Flush ends that.
type Replay struct {
	state   *State
	waiting []waitingPut
	bytes   int // that wait
	limit   int
}

type waitingPut struct {
	cmd      *Command
	revision uint64
}

// putWeight is about what a write that waits takes beside its value.
const putWeight = 200

// NewReplay returns a replay on top of a state. About limit bytes of writes wait at
// most.
func NewReplay(s *State, limit int) *Replay { return &Replay{state: s, limit: limit} }

// Entry is State.ReplayCounting.
func (r *Replay) Entry(e *raftpb.Entry) (commands int, err error) {
	r.Flush()
	return r.state.ReplayCounting(e)
}

// Batch is Entry for one that DecodeBatch has taken apart.
func (r *Replay) Batch(e *raftpb.Entry, id BatchID, cmds []Command) (commands int, err error) {
	s := r.state
	if err := s.goTo(e); err != nil {
		return 0, err
	}
	if !s.admit(id) {
		return countWork(cmds), nil
	}
	for i := range cmds {
		c := &cmds[i]
		if c.Kind != KindPut || c.condition.Kind != always {
			r.Flush() // it may look at any of them
			s.Apply(*c)
			s.Changes.Tell(s.Term)
			continue
		}
		s.Revision++
		r.waiting = append(r.waiting, waitingPut{c, s.Revision})
		r.bytes += len(c.Value) + putWeight
	}
	if r.bytes >= r.limit {
		r.Flush()
	}
	return countWork(cmds), nil
}

// Flush applies the writes that wait.
func (r *Replay) Flush() {
	if len(r.waiting) == 0 {
		return
	}
	slices.SortFunc(r.waiting, func(a, b waitingPut) int {
		return cmp.Or(cmp.Compare(a.cmd.Key, b.cmd.Key), cmp.Compare(a.revision, b.revision))
	})
	last := r.state.Revision
	for _, w := range r.waiting {
		r.state.Revision = w.revision - 1
		r.state.put(*w.cmd)
	}
	r.state.Revision = last
	r.state.Changes.Tell(r.state.Term)
	clear(r.waiting) // what they write must not stay in memory
	r.waiting, r.bytes = r.waiting[:0], 0
}
