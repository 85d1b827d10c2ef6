// Package suspect answers: does what comes from others contradict what this node
// holds? A forged message, an older copy of a directory and two histories of one
// cluster look alike at first, so nothing is concluded from a message: Doubts holds
// it back and asks its sender over a connection of this node's own. Only that answer
// proves anything.
package suspect

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/membership"
	"raftkv/internal/refusal"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/walfile"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Messages that contradict this node's log. In a cluster in which every node
// keeps what it has made durable there are none. There are if a data directory
// was put back from an older copy: then its node has forgotten what it
// acknowledged, and a majority with it may have forgotten what was committed.
//
// raft does not expect such messages. Of a heartbeat that commits more than the
// log holds it panics; an acknowledgement of more than the leader has it counts
// towards the majority. So they do not get to raft. But whoever reaches the peer
// port can write one, so they prove nothing either: the node that a message names
// as its sender is asked, over a connection of this node's own (inquiry.go).
//
// Where the terms agree, the logs may still be of two histories, with as many
// elections in each. So before this node acknowledges anything of a leader, it
// compares how far their states have come (state.Standing).
//
// What looks alike, and is lawful, goes through: messages of other terms, whose
// senders may have been behind; a commit index in an append or a snapshot, which
// runs ahead of a follower that catches up; and a probe, or a snapshot, of an
// index that this node has committed long ago.

// sign is a message that contradicts this node's log.
type sign struct {
	from  uint64 // its sender
	index uint64 // of an entry that the two have in different terms; 0: not that
}

// logReader is raft's log.
type logReader interface {
	Term(index uint64) (uint64, error)
	FirstIndex() (uint64, error)
	Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error)
}

// Config is what a Doubts needs of others.
type Config struct {
	Say     *zap.Logger // the log for people
	ID      uint64
	Cluster uint64
	Log     logReader // raft's log
	// Call runs a function where the state of raft is, and returns when it is done.
	Call     func(ctx context.Context, f func(*raft.RawNode)) error
	Leaders  *wait.Leadership
	Refusals *refusal.Refusals
	Members  func() membership.Membership
	// URLOf returns where a member is, also one that the state does not know yet; ""
	// if it is none.
	URLOf func(id uint64) string
	// Asked reports whether this life asked for the round of ReadIndex that has
	// a context.
	Asked func(context []byte) bool
	// AskStand asks the peer at a URL where its log stands against node's.
	AskStand func(ctx context.Context, peerURL string, node, index uint64) (Stand, error)
	// Standing is how far this node's state has come, and StandingWith how far with
	// entries behind that, in their order.
	Standing     func() state.Standing
	StandingWith func(tail []*raftpb.Entry) state.Standing
	// Again gives raft a message that was held back. It runs on the raft loop.
	Again func(m *raftpb.Message)
	// Divide is told that this node's history is out, Dispute that it is not known
	// whether it is.
	Divide  func()
	Dispute func()
	// CommittedTerm is the term of the last entry known to be committed. It is
	// asked on the raft loop.
	CommittedTerm         func() uint64
	Tick, ElectionTimeout time.Duration
}

// Doubts is what this node does about messages that contradict its log, and what
// it has found out.
type Doubts struct {
	Config

	signs    chan sign     // from the raft loop: what is to be looked into
	reopened chan struct{} // a peer reads from this node anew: it may have started again

	disputes disputes
	// forked is how far this node's history has come with entries of its log that are
	// proven to be of another history than a leader's; nil: there are none.
	forked atomic.Pointer[state.Standing]
	goals  map[uint64]uint64 // of Inquire alone: the commit index that a voter has first answered (whole)

	// Of the raft loop alone:
	// Last is the index of the last entry that was given to the persist loop.
	Last uint64
	// BegunAt is the commit index with which this life began.
	BegunAt uint64
	// own is the end of this node's log.
	own ownLog
	// asks is how often each node has asked this one in the term asksIn, in which it
	// leads.
	asks   map[uint64]int
	asksIn uint64
	// Split: another history contradicts this node's, which has no majority.
	Split bool
	// vouched is the leader, in its term, that is known to have what this node has
	// committed.
	vouched leaderInTerm
	// silent is a leader that could not be asked.
	silent  silence
	givenUp int // how many such leaders, since one has vouched
	// held is what has come from a leader that has not vouched yet.
	held []*raftpb.Message
}

// New returns doubts about nobody.
func New(c Config) *Doubts {
	return &Doubts{Config: c, signs: make(chan sign, 1), reopened: make(chan struct{}, 1), goals: make(map[uint64]uint64), disputes: newDisputes()}
}

// maxHeld bounds the messages that wait for a leader to vouch. What is lost beside
// them is sent again.
const maxHeld = 64

type leaderInTerm struct{ id, term uint64 }

// MeetAgain has the leader asked anew, because a peer reads from this node anew:
// the leader may have started again, on an older copy of its directory. It does
// not wait.
func (d *Doubts) MeetAgain() {
	select {
	case d.reopened <- struct{}{}:
	default:
	}
}

// Appended notes a storage message for the persist loop.
func (d *Doubts) Appended(m *raftpb.Message) {
	if m.GetSnapshot() != nil {
		d.Last = m.GetSnapshot().GetMetadata().GetIndex()
		d.own.replace()
	}
	if entries := m.GetEntries(); len(entries) > 0 {
		d.Last = walfile.LastIndex(entries)
		d.own.add(entries)
	}
}

// Applied lets go of the entries up to an index, which the state has applied.
func (d *Doubts) Applied(index uint64) { d.own.trim(index) }

// contradicts looks for a sign in a message from a peer. If there is one, the
// message must not get to raft. It runs on the raft loop.
func (d *Doubts) contradicts(rn *raft.RawNode, m *raftpb.Message) (s sign, found bool) {
	st := rn.BasicStatus()
	s.from = m.GetFrom()
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		// The leader caps this commit index at what it has heard from this node
		// in its term (raft, sendHeartbeat). This node was in that term then.
		ahead := m.GetTerm() > st.GetTerm() && m.GetCommit() > 0
		return s, ahead || m.GetTerm() == st.GetTerm() && m.GetCommit() > d.Last
	case raftpb.MsgApp:
		s.index = d.conflict(rn, m.GetIndex(), m.GetLogTerm(), m.GetEntries())
		return s, s.index > 0 && m.GetTerm() >= st.GetTerm()
	case raftpb.MsgSnap:
		meta := m.GetSnapshot().GetMetadata()
		s.index = d.conflict(rn, meta.GetIndex(), meta.GetTerm(), nil)
		return s, s.index > 0 && m.GetTerm() >= st.GetTerm()
	case raftpb.MsgAppResp:
		// Followers acknowledge what they were sent, and what they know to be
		// committed; the leader of their term has all of it.
		leads := st.RaftState == raft.StateLeader && m.GetTerm() == st.GetTerm()
		return s, leads && !m.GetReject() && m.GetIndex() > d.Last
	case raftpb.MsgReadIndexResp:
		// A leader answers with its commit index, once it has committed an entry
		// of its own term: then it knows of everything that was committed before.
		return s, m.GetTerm() == st.GetTerm() && m.GetFrom() == st.Lead && d.answersBelow(m)
	}
	return s, false
}

// conflict returns the first index at which this node has applied an entry of
// another term than the one named; 0 if there is none, or the log does not reach
// back so far. Applied entries are on disk, and never change.
func (d *Doubts) conflict(rn *raft.RawNode, index, term uint64, entries []*raftpb.Entry) uint64 {
	if d.differs(rn, index, term) {
		return index
	}
	settled := d.settled(rn)
	for _, e := range entries {
		if e.GetIndex() > settled {
			return 0 // and so is what follows
		}
		if d.differs(rn, e.GetIndex(), e.GetTerm()) {
			return e.GetIndex()
		}
	}
	return 0
}

// differs reports whether this node has applied an entry of another term at an
// index.
func (d *Doubts) differs(rn *raft.RawNode, index, term uint64) bool {
	if index == 0 || index > d.settled(rn) {
		return false
	}
	own, err := d.Log.Term(index)
	return err == nil && own != term
}

// settled is the index up to which the log on disk is known to be committed. That
// of raft's own commit index may still be on its way to the disk, and what the
// disk has in its place may be about to be overwritten.
func (d *Doubts) settled(rn *raft.RawNode) uint64 {
	return max(rn.BasicStatus().Applied, d.BegunAt)
}

// answersBelow reports whether an answer to a round of this node's is below the
// commit index that it had when it asked.
func (d *Doubts) answersBelow(m *raftpb.Message) bool {
	if len(m.GetEntries()) != 1 {
		return false
	}
	context := m.GetEntries()[0].GetData()
	return d.Asked(context) && m.GetIndex() < rounds.AskedAt(context)
}

// unvouched reports whether a message comes from a leader that has not shown yet
// that it has what this node has committed, and would make this node acknowledge
// its log, or read from a state of it. raft compares no more than the term of one
// entry, and of what begins below its commit index nothing. So the leader has to
// vouch for its log first, in each term once.
func (d *Doubts) unvouched(rn *raft.RawNode, m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgReadIndexResp:
	default:
		return false
	}
	return d.unproven(rn, m)
}

// unproven reports whether a message comes from a leader that has not vouched yet.
func (d *Doubts) unproven(rn *raft.RawNode, m *raftpb.Message) bool {
	if m.GetTerm() < rn.BasicStatus().GetTerm() || d.settled(rn) <= state.FirstIndex {
		return false // it is late; or this node has nothing to lose
	}
	return d.vouched != leaderInTerm{m.GetFrom(), m.GetTerm()}
}

// hold keeps a message back until its sender has vouched. raft hears that it
// leads, so that nobody stands for election meanwhile.
func (d *Doubts) hold(rn *raft.RawNode, m *raftpb.Message) {
	// Of the appends one is enough: raft sends the next when it is answered.
	if m.GetType() == raftpb.MsgApp {
		d.held = slices.DeleteFunc(d.held, func(h *raftpb.Message) bool { return h.GetType() == raftpb.MsgApp })
	}
	if m.GetType() != raftpb.MsgSnap && len(d.held) < maxHeld {
		d.held = append(d.held, m)
	}
	st := rn.BasicStatus()
	if m.GetType() == raftpb.MsgReadIndexResp || st.RaftState == raft.StateLeader || m.GetTerm() == st.GetTerm() && st.Lead == m.GetFrom() || d.outOfReach(rn, m) {
		return
	}
	leads := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: m.From, To: m.To, Term: m.Term}
	if err := rn.Step(leads); err != nil {
		d.Say.Debug("raft took no notice of a new leader", zap.Error(err))
	}
}

// leave has a node that is split, and leads, hear that there is another term.
func (d *Doubts) leave(rn *raft.RawNode, m *raftpb.Message) {
	st := rn.BasicStatus()
	if st.RaftState != raft.StateLeader || m.GetTerm() <= st.GetTerm() {
		return
	}
	over := &raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: m.From, To: m.To, Term: m.Term}
	if err := rn.Step(over); err != nil {
		d.Say.Debug("raft took no notice of another term", zap.Error(err))
	}
}

// resign has a leader follow nobody in the next term. raft knows no resignation, so
// it hears of that term; a leader that only fell silent would still be heard when it
// sends again what it could not commit.
func (d *Doubts) resign(rn *raft.RawNode) {
	st := rn.BasicStatus()
	if st.RaftState != raft.StateLeader {
		return
	}
	over := &raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(d.ID), To: new(d.ID), Term: new(st.GetTerm() + 1)}
	if err := rn.Step(over); err != nil {
		d.Say.Error("cannot give leadership up", zap.Error(err))
	}
}

// Sift keeps from raft what contradicts this node's log, and has it looked into.
// A node that is split hears no leader: an acknowledgement would speak for
// entries that it does not have. It still votes, which concerns the end of its
// log alone.
func (d *Doubts) Sift(rn *raft.RawNode, m *raftpb.Message) (passes bool) {
	if from := m.GetFrom(); raft.IsLocalMsgTarget(from) || from == d.ID {
		return true // its own disk and state machine
	}
	if d.Split {
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgHeartbeat, raftpb.MsgTimeoutNow:
			d.leave(rn, m)
			return false
		}
	}
	s, found := d.contradicts(rn, m)
	switch {
	case found:
		d.Refusals.Note(s.from, refusal.Refusal{Status: http.StatusConflict, Kind: refusal.RefusedContradiction,
			Reason: fmt.Sprintf("a %s message does not fit this node's log: it was dropped, and its sender is asked", m.GetType())})
	case d.unvouched(rn, m):
		d.hold(rn, m)
	case m.GetType() == raftpb.MsgHeartbeat && d.outOfReach(rn, m):
	default:
		if m.GetType() == raftpb.MsgHeartbeat && len(m.GetContext()) > 0 && d.unproven(rn, m) {
			// What its leader reads is confirmed by those who share its history. That
			// it is heard is no confirmation: without the context of the round it
			// does not count for one.
			m.Context = nil
		}
		return true
	}
	select {
	case d.signs <- s:
	default: // there is something to look into already
	}
	return false
}
