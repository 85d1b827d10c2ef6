package contact

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

const (
	// minPatience and maxPatience bound how long a round of reads waits for those that were
	// asked before the others are asked too.
	minPatience = 2 * time.Millisecond
	maxPatience = 50 * time.Millisecond
	// probeEvery: of so many rounds one is a probe, which asks everyone at once, to learn who
	// answers first.
	probeEvery = 16
)

// readQuorum decides which followers are asked to confirm a round of reads. raft asks
// all of them, and goes on with the answers of a quorum (thesis §6.4): the others work
// for nothing, for a quarter of a millisecond a round on a small machine. So only as many
// are asked as it takes, those that were the first to answer the last probe. If they do
// not answer within three times what that took, the others are asked as well; and if these
// answer first, they are asked from then on.
//
// The price is paid where answers take now longer, now shorter: one follower that was
// chosen before is seldom the faster of two.
//
// To raft a message that is held is a slow one, and one that is dropped a lost one; it must
// expect both. Heartbeats are more than such questions: the first one after a tick of
// raft's clock goes to everyone, whatever it asks.
type readQuorum struct {
	ticks uint64
	sent  map[uint64]uint64 // by node: the tick of the last heartbeat
	held  map[uint64]*raftpb.Message
	due   time.Time // when what is held then goes; zero: nothing is held

	// raft counts the rounds of a term; an answer to one is an answer to all before.
	term, newest uint64
	self         uint64            // who leads in that term
	need         int               // how many voters beside this node make a quorum with it
	acked        map[uint64]uint64 // by voter beside this node: the newest round it has answered
	confirmed    uint64            // the newest round that a quorum has answered
	chosen       map[uint64]bool   // the voters to ask
	choice       uint64            // the round whose first answers decide who that is; 0: none
	probed       time.Time         // when that began; zero: it is no probe
	rest         int               // rounds until the next probe
	took         time.Duration     // how long the last probe took to be answered by a quorum
}

// progress is what raft tells of the members (raft.RawNode).
type progress interface {
	WithProgress(visit func(id uint64, kind raft.ProgressType, p tracker.Progress))
}

func newReadQuorum() *readQuorum {
	return &readQuorum{ticks: 1, sent: make(map[uint64]uint64), held: make(map[uint64]*raftpb.Message)}
}

// holds reports whether a message is not to be sent now. Then it is kept for flush.
func (q *readQuorum) holds(m *raftpb.Message, members progress) bool {
	if m.GetType() != raftpb.MsgHeartbeat {
		return false
	}
	to := m.GetTo()
	if round := roundOf(m); round > 0 {
		if m.GetTerm() != q.term {
			*q = readQuorum{ticks: q.ticks, sent: q.sent, held: make(map[uint64]*raftpb.Message), term: m.GetTerm(), self: m.GetFrom()}
		}
		if round > q.newest {
			q.begin(round, members)
		}
		if q.choice != q.newest && !q.chosen[to] && q.sent[to] == q.ticks {
			if len(q.held) == 0 {
				q.due = time.Now().Add(q.patience())
			}
			q.held[to] = m
			return true
		}
	}
	q.drop(to)
	q.sent[to] = q.ticks
	return false
}

// drop drops what is held for a node.
func (q *readQuorum) drop(node uint64) {
	delete(q.held, node)
	if len(q.held) == 0 {
		q.due = time.Time{}
	}
}

// begin begins a round.
func (q *readQuorum) begin(round uint64, members progress) {
	q.newest = round
	q.count(members)
	q.rest--
	if q.rest < 0 || len(q.chosen) != q.need {
		q.choice, q.probed, q.rest = round, time.Now(), probeEvery-1
	}
}

// count asks raft who has a vote.
func (q *readQuorum) count(members progress) {
	voters, votes, acked := 0, false, make(map[uint64]uint64, len(q.acked))
	members.WithProgress(func(id uint64, kind raft.ProgressType, _ tracker.Progress) {
		switch {
		case kind != raft.ProgressTypePeer:
			return
		case id == q.self:
			votes = true
		default:
			acked[id] = q.acked[id]
		}
		voters++
	})
	q.acked, q.need = acked, voters/2+1
	if votes {
		q.need--
	}
}

// patience is how long a round waits for those that were asked.
func (q *readQuorum) patience() time.Duration { return max(minPatience, min(3*q.took, maxPatience)) }

// note notes a message that has come. What a quorum has answered, nobody else need be
// asked.
func (q *readQuorum) note(m *raftpb.Message, members progress) {
	from, round := m.GetFrom(), roundOf(m)
	if m.GetType() != raftpb.MsgHeartbeatResp || m.GetTerm() != q.term || round <= q.confirmed {
		return
	}
	q.count(members)
	if last, votes := q.acked[from]; !votes || round <= last {
		return
	}
	q.acked[from] = round
	answers := slices.Sorted(maps.Values(q.acked))
	n := len(answers) - q.need
	if n < 0 || n == len(answers) || answers[n] <= q.confirmed {
		return
	}
	q.confirmed = answers[n]
	switch {
	case q.confirmed >= q.newest:
		clear(q.held)
		q.due = time.Time{}
	case len(q.held) > 0:
		q.due = time.Now().Add(q.patience())
	}
	if q.choice > 0 && q.confirmed >= q.choice {
		q.choose()
	}
}

// choose chooses those that have answered.
func (q *readQuorum) choose() {
	if !q.probed.IsZero() {
		q.took = time.Since(q.probed)
	}
	q.chosen = make(map[uint64]bool)
	for id, round := range q.acked {
		if round < q.choice {
			continue
		}
		q.chosen[id] = true
		if q.held[id] != nil {
			q.due = time.Now() // nobody else is asked what that asks
		}
	}
	q.choice = 0
}

// flush gives back all that is held: those that were asked do not answer. It is no probe, as
// they had more time than the others.
func (q *readQuorum) flush() (out []*raftpb.Message) {
	if q.choice == 0 {
		q.choice, q.probed = q.newest, time.Time{}
	}
	for _, m := range q.held {
		out = append(out, m)
	}
	clear(q.held)
	q.due = time.Time{}
	return out
}

// forget drops what is known of a former member.
func (q *readQuorum) forget(node uint64) {
	delete(q.sent, node)
	q.drop(node)
}

// roundOf returns the round of reads that a heartbeat or its answer is for; 0: none.
func roundOf(m *raftpb.Message) uint64 {
	if len(m.GetContext()) != 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(m.GetContext())
}
