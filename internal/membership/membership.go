// Package membership answers: who is in the cluster, and who can never be again?
// It has the members, their changes, and the rules by which a change is taken or
// refused, alike on every node. It is pure, as package state, of which it is a part.
package membership

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

// Member is one node of the cluster as the replicated state knows it.
type Member struct {
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
	// Doors is what the node published of how it lets others in, as package doors writes
	// it; empty if it has not yet. Nothing that is decided here depends on it, so that a
	// newer program may say more in it.
	Doors string
	// Learner: receives the log but does not vote (thesis §4.2.1).
	Learner bool
	// Pinned: a learner that stays one until a person says otherwise.
	Pinned bool
	// Added is the request that added the member; 0 for the first ones. By it
	// a request that is tried again knows that it has been carried out.
	Added uint64
}

// Membership is who is in the cluster and who must never be again. It is
// replicated state: changed only by applying committed entries, and part of
// every snapshot.
//
// Invariant: the voters and learners here are those of raft's ConfState at
// the same index.
type Membership struct {
	Members map[uint64]Member // by ID
	// Removed holds every ID that was ever taken out. raft requires that an
	// ID is used once: a node that comes back under its old ID without its
	// old disk has forgotten its votes.
	Removed map[uint64]bool
	// Changes counts the membership changes since the first boot.
	Changes uint64
}

// New returns a membership in which these peers are voters and nobody was removed.
func New(peers []address.Peer) Membership {
	m := Membership{Members: make(map[uint64]Member), Removed: make(map[uint64]bool)}
	for _, p := range peers {
		m.Members[p.ID] = Member{ID: p.ID, PeerURL: p.URL}
	}
	return m
}

// Clone returns a copy that shares no map with m.
func (m Membership) Clone() Membership {
	return Membership{Members: maps.Clone(m.Members), Removed: maps.Clone(m.Removed), Changes: m.Changes}
}

// Sorted returns the members in the order of their IDs.
func (m Membership) Sorted() []Member {
	return slices.SortedFunc(maps.Values(m.Members), func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// Voters returns the IDs of the voting members, in order.
func (m Membership) Voters() []uint64 {
	var ids []uint64
	for _, mem := range m.Sorted() {
		if !mem.Learner {
			ids = append(ids, mem.ID)
		}
	}
	return ids
}

// Publish notes what a node says of itself. The first instance to use an ID
// keeps it.
func (m *Membership) Publish(id, instance uint64, clientURL string, level uint64) {
	mem, ok := m.Members[id]
	if !ok || (mem.Instance != 0 && mem.Instance != instance) {
		return
	}
	mem.Instance, mem.ClientURL, mem.Level = instance, clientURL, level
	m.Members[id] = mem
}

// MaxDoors is how long Member.Doors is at most, in bytes. It is decided in apply, so it is a
// constant for ever.
const MaxDoors = 256

// PublishDoors notes what a node says of its doors. One that has not published its
// instance, or another one, says nothing.
func (m *Membership) PublishDoors(id, instance uint64, doors string) {
	mem, ok := m.Members[id]
	if !ok || mem.Instance == 0 || mem.Instance != instance || len(doors) > MaxDoors {
		return
	}
	mem.Doors = doors
	m.Members[id] = mem
}

// Peers returns the members as a list of --cluster.
func (m Membership) Peers() []address.Peer {
	var peers []address.Peer
	for _, mem := range m.Sorted() {
		peers = append(peers, address.Peer{ID: mem.ID, URL: mem.PeerURL})
	}
	return peers
}

// Below returns the members whose programs are not known to know a level of
// commands, in order.
func (m Membership) Below(level uint64) []uint64 {
	var ids []uint64
	for _, mem := range m.Sorted() {
		if mem.Level < level {
			ids = append(ids, mem.ID)
		}
	}
	return ids
}

// ConfState is the same membership in raft's terms.
func (m Membership) ConfState() *raftpb.ConfState {
	cs := &raftpb.ConfState{AutoLeave: new(false)}
	for _, mem := range m.Sorted() {
		if mem.Learner {
			cs.Learners = append(cs.Learners, mem.ID)
		} else {
			cs.Voters = append(cs.Voters, mem.ID)
		}
	}
	return cs
}

// Op says what a membership change does. The values are on disk.
type Op byte

const (
	opAddFirst    Op = 1 // OpAdd as the first version wrote it
	OpPromote     Op = 2 // a learner that is not pinned becomes a voter: the leader's own doing
	OpRemove      Op = 3 // a member leaves for good
	OpAddVoter    Op = 4 // a new voter at once
	OpAddLearner  Op = 5 // a new learner that stays one
	OpMakeVoter   Op = 6 // a member becomes a voter, and has another URL if one is given
	OpMakeLearner Op = 7 // a member becomes a learner that stays one, likewise
	OpMove        Op = 8 // a member has another URL
	OpAdd         Op = 9 // a new learner, to become a voter by itself

	LastOp = OpAdd // the highest that may be in the log
	// OpLead is no change of the members and never in the log: a voter is to
	// take over leadership.
	OpLead Op = 255
)

// Adds reports whether op brings in a new member.
func (op Op) Adds() bool {
	return op == OpAdd || op == OpAddVoter || op == OpAddLearner || op == opAddFirst
}

func (op Op) String() string {
	switch op {
	case OpAdd, opAddFirst:
		return "add"
	case OpPromote:
		return "promote"
	case OpRemove:
		return "remove"
	case OpAddVoter:
		return "add as voter"
	case OpAddLearner:
		return "add as learner"
	case OpMakeVoter:
		return "make voter"
	case OpMakeLearner:
		return "make learner"
	case OpMove:
		return "move"
	}
	return "unknown"
}

// Change travels in the context of a raft configuration change.
type Change struct {
	Op      Op
	ID      uint64
	PeerURL string // of a new member, or the new one of a member
	// Request lets the node that proposed the change recognise it when it is
	// applied.
	Request uint64
}

// Check decides whether c can be applied to m. done means that m already is
// as c wants it. It is deterministic, and is asked twice: before a change is
// proposed, for a clear answer, and when it is applied, because another
// change may have come between.
func (m Membership) Check(c Change) (done bool, err error) {
	mem, isMember := m.Members[c.ID]
	switch {
	case c.Op < opAddFirst || c.Op > LastOp:
		return false, record.ErrUnknownCommand
	case c.Op.Adds():
		return m.checkAdd(c)
	case c.Op == OpRemove && m.Removed[c.ID]:
		return true, nil
	case !isMember:
		return false, problem.ErrMemberUnknown
	case c.Op == OpPromote && (!mem.Learner || mem.Pinned):
		return true, nil
	case (c.Op == OpRemove || c.Op == OpMakeLearner) && !mem.Learner && len(m.Voters()) == 1:
		return false, problem.ErrLastVoter
	case c.Op == OpRemove:
		return false, nil
	}
	return m.checkUpdate(mem, c)
}

// checkUpdate is check for a change of a member that stays.
func (m Membership) checkUpdate(mem Member, c Change) (done bool, err error) {
	if c.PeerURL != "" || c.Op == OpMove {
		if err := m.checkNewURL(c.PeerURL, c.ID); err != nil {
			return false, err
		}
	}
	return mem == mem.updated(c), nil
}

// checkNewURL says whether a URL can be that of the member id. From which level on it may
// be of the scheme https, package state knows. There is one node at a host and port,
// whatever the scheme.
func (m Membership) checkNewURL(peerURL string, id uint64) error {
	if !address.IsPlainURL(peerURL) {
		return fmt.Errorf("%w: %.300q", problem.ErrBadPeerURL, peerURL)
	}
	for _, mem := range m.Sorted() {
		if mem.ID != id && address.HostPortOf(mem.PeerURL) == address.HostPortOf(peerURL) {
			return fmt.Errorf("%w: member %d is at %s", problem.ErrMemberExists, mem.ID, mem.PeerURL)
		}
	}
	return nil
}

func (m Membership) checkAdd(c Change) (done bool, err error) {
	if err := address.CheckID(c.ID); err != nil {
		return false, fmt.Errorf("%w: %w", problem.ErrBadRequest, err)
	}
	if m.Removed[c.ID] {
		return false, problem.ErrMemberRemoved
	}
	if err := m.checkNewURL(c.PeerURL, c.ID); err != nil {
		return false, err
	}
	mem, ok := m.Members[c.ID]
	wanted := newMember(c)
	switch {
	case !ok:
		return false, nil
	case mem.PeerURL != c.PeerURL:
		return false, fmt.Errorf("%w: member %d is at %s", problem.ErrMemberExists, mem.ID, mem.PeerURL)
	case c.Op == OpAdd, c.Op == opAddFirst, c.Request != 0 && mem.Added == c.Request, mem.Learner == wanted.Learner && mem.Pinned == wanted.Pinned:
		return true, nil
	}
	return false, fmt.Errorf("%w: member %d is there in another role; PATCH changes that", problem.ErrMemberExists, mem.ID)
}

// FreeID returns the ID of the member that a request without one adds: the one
// that it has added already, or one above all that were ever used.
func (m Membership) FreeID(request uint64) uint64 {
	var last uint64
	for id, mem := range m.Members {
		if request != 0 && mem.Added == request {
			return id
		}
		last = max(last, id)
	}
	for id := range m.Removed {
		last = max(last, id)
	}
	if last < address.MaxID {
		return last + 1
	}
	for id := uint64(1); ; id++ { // somebody has used the last one
		if _, used := m.Members[id]; !used && !m.Removed[id] {
			return id
		}
	}
}

// newMember returns the member that c adds.
func newMember(c Change) Member {
	mem := Member{ID: c.ID, PeerURL: c.PeerURL, Added: c.Request, Learner: c.Op != OpAddVoter, Pinned: c.Op == OpAddLearner}
	if c.Op == opAddFirst {
		mem.Added = 0 // the first version's snapshots do not have it, so its log must not give it
	}
	return mem
}

// updated returns the member as c changes it.
func (mem Member) updated(c Change) Member {
	switch c.Op {
	case OpPromote, OpMakeVoter:
		mem.Learner, mem.Pinned = false, false
	case OpMakeLearner:
		mem.Learner, mem.Pinned = true, true
	}
	if c.PeerURL != "" {
		mem.PeerURL = c.PeerURL
	}
	return mem
}

// Apply carries out a change that check has allowed.
func (m *Membership) Apply(c Change) {
	switch c.Op {
	case OpAdd, OpAddVoter, OpAddLearner, opAddFirst:
		m.Members[c.ID] = newMember(c)
	case OpRemove:
		delete(m.Members, c.ID)
		m.Removed[c.ID] = true
	default:
		m.Members[c.ID] = m.Members[c.ID].updated(c)
	}
	m.Changes++
}

// ConfChange puts c into raft's terms.
func (c Change) ConfChange() *raftpb.ConfChange {
	types := map[Op]raftpb.ConfChangeType{
		OpAdd:         raftpb.ConfChangeAddLearnerNode,
		opAddFirst:    raftpb.ConfChangeAddLearnerNode,
		OpPromote:     raftpb.ConfChangeAddNode,
		OpRemove:      raftpb.ConfChangeRemoveNode,
		OpAddVoter:    raftpb.ConfChangeAddNode,
		OpAddLearner:  raftpb.ConfChangeAddLearnerNode,
		OpMakeVoter:   raftpb.ConfChangeAddNode,
		OpMakeLearner: raftpb.ConfChangeAddLearnerNode,
		OpMove:        raftpb.ConfChangeUpdateNode,
	}
	return &raftpb.ConfChange{Type: types[c.Op].Enum(), NodeId: new(c.ID), Context: c.encode()}
}

func (c Change) encode() []byte {
	b := []byte{byte(c.Op)}
	b = binary.AppendUvarint(b, c.ID)
	b = binary.AppendUvarint(b, c.Request)
	return append(b, c.PeerURL...)
}

// DecodeChange reads the context of a raft configuration change. Its error is
// record.ErrMalformed for what no version writes, and record.ErrUnknownCommand for an
// operation that this version does not know.
func DecodeChange(b []byte) (Change, error) {
	r := record.Reader{B: b}
	c := Change{Op: Op(r.Byte()), ID: r.Uvarint(), Request: r.Uvarint(), PeerURL: string(r.B)}
	if r.Bad {
		return c, record.ErrMalformed
	}
	if c.Op < opAddFirst || c.Op > LastOp {
		return c, fmt.Errorf("%w: membership change %d", record.ErrUnknownCommand, c.Op)
	}
	return c, nil
}

// NewURLOf returns the peer URL that a log entry gives a node, if it does.
func NewURLOf(id uint64, e *raftpb.Entry) string {
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.GetData(), cc) != nil {
		return ""
	}
	if c, err := DecodeChange(cc.GetContext()); err == nil && c.ID == id {
		return c.PeerURL
	}
	return ""
}

// SortedKeys returns the keys of a map in ascending order, nil if there are none.
func SortedKeys[V any](m map[uint64]V) []uint64 {
	return slices.Sorted(maps.Keys(m))
}

// RoleName is what a member is called by whether it is a learner.
func RoleName(learner bool) string {
	if learner {
		return "learner"
	}
	return "voter"
}

// Role is what a member is called.
func (m Member) Role() string { return RoleName(m.Learner) }

// AppendMember appends a member as state files hold it. The hash of the state covers
// these bytes, so a new field goes to the end and is left out while it is 0 or empty.
func AppendMember(b []byte, m Member) []byte {
	b = record.AppendUvarints(b, m.ID, uint64(record.BoolByte(m.Learner)), m.Instance)
	b = record.AppendString(b, m.PeerURL)
	b = record.AppendString(b, m.ClientURL)
	if m.Doors == "" {
		return record.AppendOptional(b, m.Level, uint64(record.BoolByte(m.Pinned)), m.Added)
	}
	b = record.AppendUvarints(b, m.Level, uint64(record.BoolByte(m.Pinned)), m.Added)
	return record.AppendString(b, m.Doors)
}

// TakeMember reads what AppendMember wrote. f is bad afterwards if it could not.
func TakeMember(f *record.Reader) Member {
	m := Member{ID: f.Uvarint(), Learner: f.Uvarint() == 1, Instance: f.Uvarint(), PeerURL: string(f.Bytes()), ClientURL: string(f.Bytes())}
	m.Level, m.Pinned, m.Added = f.Optional(), f.Optional() == 1, f.Optional()
	if len(f.B) > 0 {
		m.Doors = string(f.Bytes())
	}
	return m
}
