package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"raftkv/internal/address"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
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
	// Pinned: a learner that stays one until a person says otherwise.
	Pinned bool
	// Added is the request that added the member; 0 for the first ones. By it
	// a request that is tried again knows that it has been carried out.
	Added uint64
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

func newMembership(peers []address.Peer) membership {
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

// peers returns the members as a list of --cluster.
func (m membership) peers() []address.Peer {
	var peers []address.Peer
	for _, mem := range m.sorted() {
		peers = append(peers, address.Peer{ID: mem.ID, URL: mem.PeerURL})
	}
	return peers
}

// below returns the members whose programs are not known to know a level of
// commands, in order.
func (m membership) below(level uint64) []uint64 {
	var ids []uint64
	for _, mem := range m.sorted() {
		if mem.Level < level {
			ids = append(ids, mem.ID)
		}
	}
	return ids
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
	opAddFirst    changeOp = 1 // opAdd as the first version wrote it
	opPromote     changeOp = 2 // a learner that is not pinned becomes a voter: the leader's own doing
	opRemove      changeOp = 3 // a member leaves for good
	opAddVoter    changeOp = 4 // a new voter at once
	opAddLearner  changeOp = 5 // a new learner that stays one
	opMakeVoter   changeOp = 6 // a member becomes a voter, and has another URL if one is given
	opMakeLearner changeOp = 7 // a member becomes a learner that stays one, likewise
	opMove        changeOp = 8 // a member has another URL
	opAdd         changeOp = 9 // a new learner, to become a voter by itself

	lastOp = opAdd
	// opLead is no change of the members and never in the log: a voter is to
	// take over leadership.
	opLead changeOp = 255
)

// adds reports whether op brings in a new member.
func (op changeOp) adds() bool {
	return op == opAdd || op == opAddVoter || op == opAddLearner || op == opAddFirst
}

func (op changeOp) String() string {
	switch op {
	case opAdd, opAddFirst:
		return "add"
	case opPromote:
		return "promote"
	case opRemove:
		return "remove"
	case opAddVoter:
		return "add as voter"
	case opAddLearner:
		return "add as learner"
	case opMakeVoter:
		return "make voter"
	case opMakeLearner:
		return "make learner"
	case opMove:
		return "move"
	}
	return "unknown"
}

// memberChange travels in the context of a raft configuration change.
type memberChange struct {
	op      changeOp
	id      uint64
	peerURL string // of a new member, or the new one of a member
	// request lets the node that proposed the change recognise it when it is
	// applied.
	request uint64
}

// check decides whether c can be applied to m. done means that m already is
// as c wants it. It is deterministic, and is asked twice: before a change is
// proposed, for a clear answer, and when it is applied, because another
// change may have come between.
func (m membership) check(c memberChange) (done bool, err error) {
	mem, isMember := m.members[c.id]
	switch {
	case c.op < opAddFirst || c.op > lastOp:
		return false, record.ErrUnknownCommand
	case c.op.adds():
		return m.checkAdd(c)
	case c.op == opRemove && m.removed[c.id]:
		return true, nil
	case !isMember:
		return false, problem.ErrMemberUnknown
	case c.op == opPromote && (!mem.Learner || mem.Pinned):
		return true, nil
	case (c.op == opRemove || c.op == opMakeLearner) && !mem.Learner && len(m.voters()) == 1:
		return false, problem.ErrLastVoter
	case c.op == opRemove:
		return false, nil
	}
	return m.checkUpdate(mem, c)
}

// checkUpdate is check for a change of a member that stays.
func (m membership) checkUpdate(mem member, c memberChange) (done bool, err error) {
	if c.peerURL != "" || c.op == opMove {
		if err := m.checkNewURL(c.peerURL, c.id); err != nil {
			return false, err
		}
	}
	return mem == mem.updated(c), nil
}

// checkNewURL says whether a URL can be that of the member id.
func (m membership) checkNewURL(peerURL string, id uint64) error {
	if !address.IsPlainPeerURL(peerURL) {
		return fmt.Errorf("%w: %.300q", problem.ErrBadPeerURL, peerURL)
	}
	for _, mem := range m.sorted() {
		if mem.PeerURL == peerURL && mem.ID != id {
			return fmt.Errorf("%w: member %d is at %s", problem.ErrMemberExists, mem.ID, mem.PeerURL)
		}
	}
	return nil
}

func (m membership) checkAdd(c memberChange) (done bool, err error) {
	if err := address.CheckID(c.id); err != nil {
		return false, fmt.Errorf("%w: %w", problem.ErrBadRequest, err)
	}
	if m.removed[c.id] {
		return false, problem.ErrMemberRemoved
	}
	if err := m.checkNewURL(c.peerURL, c.id); err != nil {
		return false, err
	}
	mem, ok := m.members[c.id]
	wanted := newMember(c)
	switch {
	case !ok:
		return false, nil
	case mem.PeerURL != c.peerURL:
		return false, fmt.Errorf("%w: member %d is at %s", problem.ErrMemberExists, mem.ID, mem.PeerURL)
	case c.op == opAdd, c.op == opAddFirst, c.request != 0 && mem.Added == c.request, mem.Learner == wanted.Learner && mem.Pinned == wanted.Pinned:
		return true, nil
	}
	return false, fmt.Errorf("%w: member %d is there in another role; PATCH changes that", problem.ErrMemberExists, mem.ID)
}

// freeID returns the ID of the member that a request without one adds: the one
// that it has added already, or one above all that were ever used.
func (m membership) freeID(request uint64) uint64 {
	var last uint64
	for id, mem := range m.members {
		if request != 0 && mem.Added == request {
			return id
		}
		last = max(last, id)
	}
	for id := range m.removed {
		last = max(last, id)
	}
	if last < address.MaxID {
		return last + 1
	}
	for id := uint64(1); ; id++ { // somebody has used the last one
		if _, used := m.members[id]; !used && !m.removed[id] {
			return id
		}
	}
}

// newMember returns the member that c adds.
func newMember(c memberChange) member {
	mem := member{ID: c.id, PeerURL: c.peerURL, Added: c.request, Learner: c.op != opAddVoter, Pinned: c.op == opAddLearner}
	if c.op == opAddFirst {
		mem.Added = 0 // the first version's snapshots do not have it, so its log must not give it
	}
	return mem
}

// updated returns the member as c changes it.
func (mem member) updated(c memberChange) member {
	switch c.op {
	case opPromote, opMakeVoter:
		mem.Learner, mem.Pinned = false, false
	case opMakeLearner:
		mem.Learner, mem.Pinned = true, true
	}
	if c.peerURL != "" {
		mem.PeerURL = c.peerURL
	}
	return mem
}

// apply carries out a change that check has allowed.
func (m *membership) apply(c memberChange) {
	switch c.op {
	case opAdd, opAddVoter, opAddLearner, opAddFirst:
		m.members[c.id] = newMember(c)
	case opRemove:
		delete(m.members, c.id)
		m.removed[c.id] = true
	default:
		m.members[c.id] = m.members[c.id].updated(c)
	}
	m.changes++
}

// confChange puts c into raft's terms.
func (c memberChange) confChange() *raftpb.ConfChange {
	types := map[changeOp]raftpb.ConfChangeType{
		opAdd:         raftpb.ConfChangeAddLearnerNode,
		opAddFirst:    raftpb.ConfChangeAddLearnerNode,
		opPromote:     raftpb.ConfChangeAddNode,
		opRemove:      raftpb.ConfChangeRemoveNode,
		opAddVoter:    raftpb.ConfChangeAddNode,
		opAddLearner:  raftpb.ConfChangeAddLearnerNode,
		opMakeVoter:   raftpb.ConfChangeAddNode,
		opMakeLearner: raftpb.ConfChangeAddLearnerNode,
		opMove:        raftpb.ConfChangeUpdateNode,
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
	r := record.Reader{B: b}
	c := memberChange{op: changeOp(r.Byte()), id: r.Uvarint(), request: r.Uvarint(), peerURL: string(r.B)}
	if r.Bad {
		return c, record.ErrMalformed
	}
	if c.op < opAddFirst || c.op > lastOp {
		return c, fmt.Errorf("%w: membership change %d", record.ErrUnknownCommand, c.op)
	}
	return c, nil
}

// newURLOf returns the peer URL that a log entry gives a node, if it does.
func newURLOf(id uint64, e *raftpb.Entry) string {
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.GetData(), cc) != nil {
		return ""
	}
	if c, err := decodeMemberChange(cc.GetContext()); err == nil && c.id == id {
		return c.peerURL
	}
	return ""
}

func sortedKeys[V any](m map[uint64]V) []uint64 {
	return slices.Sorted(maps.Keys(m))
}

// roleName is what a member is called by whether it is a learner.
func roleName(learner bool) string {
	if learner {
		return "learner"
	}
	return "voter"
}

// role is what a member is called.
func (m member) role() string { return roleName(m.Learner) }
