package peerport

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/contact"
	"raftkv/internal/peerclient"
	"raftkv/internal/refusal"
	"raftkv/internal/state"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// What a message must be to get to raft. raft trusts its peers: it panics at
// what no peer of its own kind sends, and takes over any term. Checked here is
// what can be told from the message and from this node's term; what raft's log
// has to say of it is checked on the raft loop.

const (
	// MaxTerm is above every term that elections reach: one a millisecond for
	// 8,900 years.
	MaxTerm = 1 << 48
	// MaxTermLeap is by how much a message's term may be above this node's. A
	// node that was away for a century of elections passes.
	MaxTermLeap = 1 << 32
	// maxReadContext bounds the context of a round of ReadIndex.
	maxReadContext = 256
	// heartbeatContext is the length of the context by which raft tells rounds of
	// heartbeats apart.
	heartbeatContext = 8
)

// PeerMessages are the types that peers send. MsgTransferLeader is not among
// them: a leader transfers leadership by itself, and raft panics when the
// message has to be passed on.
var PeerMessages = map[raftpb.MessageType]func(*raftpb.Message) error{
	raftpb.MsgProp:          checkProposal,
	raftpb.MsgApp:           checkAppend,
	raftpb.MsgAppResp:       nil,
	raftpb.MsgVote:          nil,
	raftpb.MsgVoteResp:      nil,
	raftpb.MsgPreVote:       nil,
	raftpb.MsgPreVoteResp:   nil,
	raftpb.MsgSnap:          checkSnapshot,
	raftpb.MsgHeartbeat:     nil,
	raftpb.MsgHeartbeatResp: checkHeartbeatResp,
	raftpb.MsgTimeoutNow:    nil,
	raftpb.MsgReadIndex:     checkReadIndex,
	raftpb.MsgReadIndexResp: checkReadIndex,
}

func malformed(format string, args ...any) error {
	return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: fmt.Sprintf(format, args...)}
}

// checkMessage refuses what no peer sends.
func checkMessage(m *raftpb.Message) error {
	check, ok := PeerMessages[m.GetType()]
	if !ok {
		return malformed("a %s message does not come from a peer", m.GetType())
	}
	// Proposals and reads are passed on to whoever leads, in whatever term.
	termless := m.GetType() == raftpb.MsgProp || m.GetType() == raftpb.MsgReadIndex
	if termless != (m.GetTerm() == 0) {
		return malformed("a %s message of term %d", m.GetType(), m.GetTerm())
	}
	if check == nil {
		return nil
	}
	return check(m)
}

// Admission decides which messages get to raft.
type Admission struct {
	ID        uint64 // of this node
	IsRemoved func(id uint64) bool
	Known     admitted
	// Role is what raft knew of its role last; nil before the start.
	Role func() *contact.RaftStatus
}

// admitted is who may talk to this node's raft.
type admitted interface {
	// Knows reports whether a node is a member, and notes that it was heard of.
	Knows(id uint64) bool
	// Passes reports whether this node's ID is proven to a peer.
	Passes(id uint64) bool
	// Ask has the members asked who else there is. It does not wait.
	Ask()
	// HighestTerm is the highest term that a member told of when it was asked.
	HighestTerm() uint64
	// Claim notes what a stranger says of itself.
	Claim(id uint64, urls, remoteAddr string)
}

// Admit refuses a message that cannot be meant for this node, or would stop it.
func (a *Admission) Admit(m *raftpb.Message) error {
	from := m.GetFrom()
	switch {
	case m.GetTo() != a.ID:
		return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedAddress, Reason: fmt.Sprintf("message for node %d came to node %d", m.GetTo(), a.ID)}
	case from == a.ID || address.CheckID(from) != nil:
		return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedAddress, Reason: fmt.Sprintf("a %s message does not come from node %d", m.GetType(), from)}
	case a.IsRemoved(from):
		// rafthttp takes this status for the word that ends the sender.
		return refusal.Refusal{Status: http.StatusForbidden, Kind: refusal.NotHostile, Reason: fmt.Sprintf("node %d was removed from the cluster", from)}
	case !a.Known.Knows(from):
		a.Known.Ask()
		return unknownSender(from)
	}
	if err := checkMessage(m); err != nil {
		return err
	}
	term, lead := a.OwnTerm()
	if err := checkTerm(m.GetTerm(), max(term, a.Known.HighestTerm())); err != nil {
		a.Known.Ask() // the others may be that far
		return err
	}
	if m.GetType() == raftpb.MsgSnap && (m.GetTerm() < term || m.GetTerm() == term && lead) {
		return refusal.Refusal{Status: http.StatusConflict, Kind: refusal.NotHostile, Reason: fmt.Sprintf("a snapshot of term %d in term %d", m.GetTerm(), term)}
	}
	if !a.Known.Passes(from) {
		return refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.NotHostile, Reason: "this node is still asking whether its ID is its own"}
	}
	return nil
}

// Remains returns nil, or an error if a request comes from who was removed. Only a certificate
// proves that: without TLS, and with names that are no member's, nobody was.
func (a *Admission) Remains(ctx context.Context) error {
	return peerclient.SenderIsOne(ctx, func(id uint64) bool { return !a.IsRemoved(id) })
}

// ForMembers serves with h, but for who was removed.
func (a *Admission) ForMembers(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := a.Remains(r.Context()); err != nil {
			http.Error(w, "this member was removed: "+err.Error(), http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// unknownSender refuses a sender for now: it may be a member that this node has
// not heard of yet, and tries again.
func unknownSender(id uint64) refusal.Refusal {
	return refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.RefusedSender, Reason: fmt.Sprintf("this node knows of no member %d", id)}
}

// OwnTerm returns the term of this node, and whether it leads in it.
func (a *Admission) OwnTerm() (term uint64, leads bool) {
	st := a.Role()
	if st == nil {
		return 0, false // it has not started yet
	}
	return st.Term, st.Role == raft.StateLeader
}

// checkTerm refuses a term that no election has led to. own is that of this
// node, or the highest that a member has told it when it asked.
func checkTerm(term, own uint64) error {
	switch {
	case term > MaxTerm:
		return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedTerm, Reason: fmt.Sprintf("no cluster gets to term %d", term)}
	case term > own && term-own > MaxTermLeap:
		return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedTerm, Reason: fmt.Sprintf("term %d is too far above term %d", term, own)}
	}
	return nil
}

// checkProposal keeps entries that no node could apply out of the log, where
// they would stop every node at every start.
func checkProposal(m *raftpb.Message) error {
	if len(m.GetEntries()) == 0 {
		return malformed("a proposal of nothing")
	}
	for _, e := range m.GetEntries() {
		if e.GetType() != raftpb.EntryNormal {
			return malformed("membership changes are proposed by the leader alone")
		}
		if _, _, err := state.DecodeBatch(e.GetData()); err != nil {
			return malformed("proposal: %v", err)
		}
	}
	return nil
}

// checkAppend refuses entries that are no piece of a log: their indexes follow
// the one before them, and terms never sink, nor go above the leader's.
func checkAppend(m *raftpb.Message) error {
	index, term := m.GetIndex(), m.GetLogTerm()
	for _, e := range m.GetEntries() {
		index++
		if e.GetIndex() != index || index == 0 {
			return malformed("entry %d where entry %d belongs", e.GetIndex(), index)
		}
		if e.GetTerm() < term || e.GetTerm() == 0 || e.GetTerm() > m.GetTerm() {
			return malformed("entry %d of term %d behind one of term %d, from a leader of term %d", index, e.GetTerm(), term, m.GetTerm())
		}
		term = e.GetTerm()
	}
	return nil
}

func checkReadIndex(m *raftpb.Message) error {
	if n := len(m.GetEntries()); n != 1 {
		return malformed("a %s message with %d entries in place of one", m.GetType(), n)
	}
	if n := len(m.GetEntries()[0].GetData()); n > maxReadContext {
		return malformed("a context of %d bytes for a read", n)
	}
	return nil
}

// checkHeartbeatResp: raft reads a number from the context.
func checkHeartbeatResp(m *raftpb.Message) error {
	if n := len(m.GetContext()); n != 0 && n != heartbeatContext {
		return malformed("a heartbeat answered with a context of %d bytes", n)
	}
	return nil
}

// checkSnapshot refuses members that are no configuration of this program's.
func checkSnapshot(m *raftpb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	if meta.GetIndex() == 0 || meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm() {
		return malformed("a snapshot of index %d and term %d in term %d", meta.GetIndex(), meta.GetTerm(), m.GetTerm())
	}
	cs := meta.GetConfState()
	if len(cs.GetVoters()) == 0 || len(cs.GetVotersOutgoing()) > 0 || len(cs.GetLearnersNext()) > 0 || cs.GetAutoLeave() {
		return malformed("a snapshot of the configuration %v", cs)
	}
	seen := make(map[uint64]bool)
	for _, ids := range [][]uint64{cs.GetVoters(), cs.GetLearners()} {
		for _, id := range ids {
			if address.CheckID(id) != nil || seen[id] {
				return malformed("a snapshot of the configuration %v", cs)
			}
			seen[id] = true
		}
	}
	return nil
}

// ReadRounds is the newest round of heartbeats that this node has sent as a
// leader to confirm reads. It belongs to the raft loop.
type ReadRounds struct{ term, last uint64 }

// Sent notes a message that goes out.
func (r *ReadRounds) Sent(m *raftpb.Message) {
	if m.GetType() != raftpb.MsgHeartbeat || len(m.GetContext()) != heartbeatContext {
		return
	}
	if m.GetTerm() != r.term {
		*r = ReadRounds{term: m.GetTerm()}
	}
	r.last = max(r.last, binary.LittleEndian.Uint64(m.GetContext()))
}

// Check refuses the answer to a round of heartbeats that this node, which leads,
// has not sent: raft would look for the reads of it, and panic.
func (r ReadRounds) Check(rn *raft.RawNode, m *raftpb.Message) error {
	if m.GetType() != raftpb.MsgHeartbeatResp || len(m.GetContext()) != heartbeatContext {
		return nil
	}
	st := rn.BasicStatus()
	if st.RaftState != raft.StateLeader || st.GetTerm() != m.GetTerm() {
		return nil // raft does not look at the round
	}
	if got := binary.LittleEndian.Uint64(m.GetContext()); got > r.last || r.term != m.GetTerm() {
		return malformed("an answer to round %d of heartbeats in term %d, which was not sent", got, m.GetTerm())
	}
	return nil
}
