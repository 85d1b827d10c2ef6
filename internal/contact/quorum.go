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
	// minHedge and maxHedge bound how long a round of reads waits for those that were
	// asked before it asks the others too.
	minHedge = 2 * time.Millisecond
	maxHedge = 20 * time.Millisecond
	// probeEvery is after how many rounds one asks all, to learn who answers first.
	probeEvery = 16
)

// readQuorum decides which followers are asked to confirm a round of reads. raft asks
// all of them, and goes on with the answers of a quorum (thesis §6.4): the others work
// for nothing, for a quarter of a millisecond a round on a small machine. So only as many
// are asked as it takes, those that were the first to answer when all were asked the
// last time. If they get nowhere in three times what it took then, the others are asked
// as well, and who answers first is asked from then on.
//
// To raft a message that is held is a slow one, and one that is dropped a lost one; both
// it must expect. Heartbeats are more than such questions: the first one behind a tick of
// raft's clock goes to everyone, whatever it asks.
type readQuorum struct {
	ticks uint64
	sent  map[uint64]uint64 // by node: the tick of the last heartbeat
	held  map[uint64]*raftpb.Message
	due   time.Time // when what is held then goes; zero: nothing is held

	// raft counts the rounds of a term; an answer to one is an answer to all before.
	term, newest uint64
	need         int               // how many voters beside this node make a quorum with it
	acked        map[uint64]uint64 // by voter beside this node: the newest round it has answered
	confirmed    uint64            // the newest round that a quorum has answered
	chosen       map[uint64]bool   // the voters to ask
	probe        uint64            // the round whose first answers decide who that is; 0: none
	probed       time.Time         // when that began
	rest         int               // rounds until the next probe
	took         time.Duration     // the last one that was answered
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
	to, now := m.GetTo(), time.Now()
	if round := roundOf(m); round > 0 {
		if m.GetTerm() != q.term {
			*q = readQuorum{ticks: q.ticks, sent: q.sent, held: make(map[uint64]*raftpb.Message), term: m.GetTerm()}
		}
		if round > q.newest {
			q.begin(round, m.GetFrom(), members, now)
		}
		if q.probe != q.newest && !q.chosen[to] && q.sent[to] == q.ticks {
			if len(q.held) == 0 {
				q.due = now.Add(q.patience())
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
func (q *readQuorum) begin(round, self uint64, members progress, now time.Time) {
	q.newest = round
	voters, votes, acked := 0, false, make(map[uint64]uint64, len(q.acked))
	members.WithProgress(func(id uint64, kind raft.ProgressType, _ tracker.Progress) {
		switch {
		case kind != raft.ProgressTypePeer:
			return
		case id == self:
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
	q.rest--
	if q.rest < 0 || len(q.chosen) != q.need {
		q.ask(now)
	}
}

// ask has everyone asked, beginning with the newest round.
func (q *readQuorum) ask(now time.Time) { q.probe, q.probed, q.rest = q.newest, now, probeEvery-1 }

// patience is how long a round waits for those that were asked.
func (q *readQuorum) patience() time.Duration { return max(minHedge, min(3*q.took, maxHedge)) }

// note notes a message that has come. What a quorum has answered, nobody else need be
// asked.
func (q *readQuorum) note(m *raftpb.Message) {
	from, round := m.GetFrom(), roundOf(m)
	last, votes := q.acked[from]
	if m.GetType() != raftpb.MsgHeartbeatResp || m.GetTerm() != q.term || !votes || round <= last {
		return
	}
	q.acked[from] = round
	answers := slices.Sorted(maps.Values(q.acked))
	n := len(answers) - q.need
	if n < 0 || n == len(answers) || answers[n] <= q.confirmed {
		return
	}
	q.confirmed = answers[n]
	if q.probe > 0 && q.confirmed >= q.probe {
		q.chosen, q.took = make(map[uint64]bool), time.Since(q.probed)
		for id, round := range q.acked {
			if round >= q.probe {
				q.chosen[id] = true
			}
		}
		q.probe = 0
	}
	switch {
	case q.confirmed >= q.newest:
		clear(q.held)
		q.due = time.Time{}
	case len(q.held) > 0:
		q.due = time.Now().Add(q.patience())
	}
}

// flush gives back all that is held: those that were asked get nowhere.
func (q *readQuorum) flush(now time.Time) (out []*raftpb.Message) {
	q.ask(now)
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
