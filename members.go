package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// member is one node of the cluster as the replicated state knows it.
type member struct {
	ID      uint64
	PeerURL string
	// ClientURL is what the node published of its client API when it first
	// took part. Empty: the node has never started.
	ClientURL string
	// Instance is that of the data directory with which the node published;
	// 0 if it never did. The same ID with another directory is not this node:
	// it has forgotten its votes.
	Instance uint64
	// Level is the level of commands that the node's program knows, as it
	// published it last; 0 if it never did.
	Level uint64
	// Learner: receives the log but does not vote (thesis §4.2.1).
	Learner bool
}

// membership is who is in the cluster and who must never be again. It is
// replicated state: changed only by applying committed entries, and part of
// every snapshot.
//
// Invariant: the voters and learners here are those of raft's ConfState at
// the same index.
type membership struct {
	members map[uint64]member
	// removed holds every ID that was ever taken out. raft requires that an
	// ID is used once: a node that comes back under its old ID without its
	// old disk has forgotten its votes.
	removed map[uint64]bool
	// changes counts the membership changes since the first boot.
	changes uint64
}

func newMembership(peers []peer) membership {
	m := membership{members: make(map[uint64]member), removed: make(map[uint64]bool)}
	for _, p := range peers {
		m.members[p.ID] = member{ID: p.ID, PeerURL: p.URL}
	}
	return m
}

func (m membership) clone() membership {
	return membership{members: maps.Clone(m.members), removed: maps.Clone(m.removed), changes: m.changes}
}

// sorted returns the members in the order of their IDs.
func (m membership) sorted() []member {
	return slices.SortedFunc(maps.Values(m.members), func(a, b member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// voters returns the IDs of the voting members, in order.
func (m membership) voters() []uint64 {
	var ids []uint64
	for _, mem := range m.sorted() {
		if !mem.Learner {
			ids = append(ids, mem.ID)
		}
	}
	return ids
}

// publish notes what a node says of itself. The first instance to use an ID
// keeps it.
func (m *membership) publish(id, instance uint64, clientURL string, level uint64) {
	mem, ok := m.members[id]
	if !ok || (mem.Instance != 0 && mem.Instance != instance) {
		return
	}
	mem.Instance, mem.ClientURL, mem.Level = instance, clientURL, level
	m.members[id] = mem
}

// confState is the same membership in raft's terms.
func (m membership) confState() *raftpb.ConfState {
	cs := &raftpb.ConfState{AutoLeave: new(false)}
	for _, mem := range m.sorted() {
		if mem.Learner {
			cs.Learners = append(cs.Learners, mem.ID)
		} else {
			cs.Voters = append(cs.Voters, mem.ID)
		}
	}
	return cs
}

// changeOp says what a membership change does. The values are on disk.
type changeOp byte

const (
	opAdd     changeOp = 1 // a new learner
	opPromote changeOp = 2 // a learner becomes a voter
	opRemove  changeOp = 3 // a member leaves for good
)

func (op changeOp) String() string {
	switch op {
	case opAdd:
		return "add"
	case opPromote:
		return "promote"
	case opRemove:
		return "remove"
	}
	return "unknown"
}

// memberChange travels in the context of a raft configuration change.
type memberChange struct {
	op      changeOp
	id      uint64
	peerURL string // opAdd
	// request lets the node that proposed the change recognise it when it is
	// applied.
	request uint64
}

// The reasons for which a membership change is refused. Each means that the
// change did not happen.
var (
	errMemberExists  = errors.New("another member has this ID or this URL")
	errMemberRemoved = errors.New("this ID was removed; an ID is used once in the life of a cluster")
	errMemberUnknown = errors.New("no member has this ID")
	errLastVoter     = errors.New("the last voter cannot be removed")
	errBadPeerURL    = errors.New("bad peer URL")
)

// check decides whether c can be applied to m. done means that m already is
// as c wants it. It is deterministic, and is asked twice: before a change is
// proposed, for a clear answer, and when it is applied, because another
// change may have come between.
func (m membership) check(c memberChange) (done bool, err error) {
	switch c.op {
	case opAdd:
		return m.checkAdd(c)
	case opPromote:
		mem, ok := m.members[c.id]
		if !ok {
			return false, errMemberUnknown
		}
		return !mem.Learner, nil
	case opRemove:
		if m.removed[c.id] {
			return true, nil
		}
		mem, ok := m.members[c.id]
		if !ok {
			return false, errMemberUnknown
		}
		if !mem.Learner && len(m.voters()) == 1 {
			return false, errLastVoter
		}
		return false, nil
	}
	return false, errUnknownCommand
}

func (m membership) checkAdd(c memberChange) (done bool, err error) {
	// A URL that rafthttp cannot parse would panic every node at every
	// start, so it must not get past here however it got into the log.
	if _, err := checkPeerURL(c.peerURL); err != nil {
		return false, fmt.Errorf("%w: %w", errBadPeerURL, err)
	}
	if err := checkID(c.id); err != nil {
		return false, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if m.removed[c.id] {
		return false, errMemberRemoved
	}
	for _, mem := range m.members {
		if mem.ID == c.id && mem.PeerURL == c.peerURL {
			return true, nil
		}
		if mem.ID == c.id || mem.PeerURL == c.peerURL {
			return false, fmt.Errorf("%w: member %d is at %s", errMemberExists, mem.ID, mem.PeerURL)
		}
	}
	return false, nil
}

// apply carries out a change that check has allowed.
func (m *membership) apply(c memberChange) {
	switch c.op {
	case opAdd:
		m.members[c.id] = member{ID: c.id, PeerURL: c.peerURL, Learner: true}
	case opPromote:
		mem := m.members[c.id]
		mem.Learner = false
		m.members[c.id] = mem
	case opRemove:
		delete(m.members, c.id)
		m.removed[c.id] = true
	}
	m.changes++
}

// confChange puts c into raft's terms.
func (c memberChange) confChange() *raftpb.ConfChange {
	types := map[changeOp]raftpb.ConfChangeType{
		opAdd:     raftpb.ConfChangeAddLearnerNode,
		opPromote: raftpb.ConfChangeAddNode,
		opRemove:  raftpb.ConfChangeRemoveNode,
	}
	return &raftpb.ConfChange{Type: types[c.op].Enum(), NodeId: new(c.id), Context: c.encode()}
}

func (c memberChange) encode() []byte {
	b := []byte{byte(c.op)}
	b = binary.AppendUvarint(b, c.id)
	b = binary.AppendUvarint(b, c.request)
	return append(b, c.peerURL...)
}

func decodeMemberChange(b []byte) (memberChange, error) {
	r := fields{b: b}
	c := memberChange{op: changeOp(r.byte()), id: r.uvarint(), request: r.uvarint(), peerURL: string(r.b)}
	if r.bad {
		return c, errMalformed
	}
	if c.op < opAdd || c.op > opRemove {
		return c, fmt.Errorf("%w: membership change %d", errUnknownCommand, c.op)
	}
	return c, nil
}

func sortedKeys[V any](m map[uint64]V) []uint64 {
	return slices.Sorted(maps.Keys(m))
}
