package state

import (
	"fmt"
	"math"
	"raftkv/internal/address"
	"raftkv/internal/membership"
)

// The index and term of the state that every node of a new cluster starts
// from. All of them make the same one from the same --cluster, so that the log
// can begin behind it.
const (
	FirstIndex = 1
	FirstTerm  = 1
)

// First is the state that a new cluster of these voters starts from; of
// nobody, it is the empty one of a node that joins.
func First(peers []address.Peer) *State {
	st := New(peers)
	if len(peers) > 0 {
		st.Index, st.Term = FirstIndex, FirstTerm
	}
	return st
}

// RevisionJump lies between the last revision of a cluster and the first one
// of a cluster made from its state. The state may be older than what the old
// cluster wrote last: without a jump, an ETag or a position in a watch that
// somebody still has would match other data.
const RevisionJump = 1_000_000_000

// Refound makes the state the first one of a new cluster with these voters.
// Who was a member, who was removed, which batches were applied and what the
// replicas found of one another is the old cluster's: here those IDs have not
// been used yet.
func (s *State) Refound(voters []address.Peer) error {
	if s.Revision > math.MaxUint64-RevisionJump {
		return fmt.Errorf("its revision %d is too high to go on from", s.Revision)
	}
	if !s.Leases.Jump(RevisionJump) {
		return fmt.Errorf("its last lease %d is too high to go on from", s.Leases.Last)
	}
	for _, p := range parts {
		p.reset(s)
	}
	s.Revision += RevisionJump
	s.Membership = membership.New(voters)
	return nil
}
