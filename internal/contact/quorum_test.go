//go:build unix

package contact

import (
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// members are those of a cluster, as raft tells of them.
type members struct{ voters, learners []uint64 }

func (m members) WithProgress(visit func(uint64, raft.ProgressType, tracker.Progress)) {
	for _, id := range m.voters {
		visit(id, raft.ProgressTypePeer, tracker.Progress{})
	}
	for _, id := range m.learners {
		visit(id, raft.ProgressTypeLearner, tracker.Progress{})
	}
}

// quorumTest is the rounds of reads of a leader, node 1.
type quorumTest struct {
	*testing.T
	q    *Outbox
	m    members
	term uint64
}

// withQuorum runs f with a bubble's clock.
func withQuorum(t *testing.T, voters []uint64, f func(qt *quorumTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(&quorumTest{T: t, q: NewOutbox(), m: members{voters: voters}, term: 1})
	})
}

func (qt *quorumTest) message(typ raftpb.MessageType, from, to, round uint64) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(to), Term: new(qt.term)}
	if round > 0 {
		m.Context = binary.LittleEndian.AppendUint64(nil, round)
	}
	return m
}

// begin begins a round, or sends plain heartbeats if it is 0, and checks who is asked.
func (qt *quorumTest) begin(round uint64, want ...uint64) {
	qt.Helper()
	var asked []uint64
	for _, to := range slices.Concat(qt.m.voters, qt.m.learners) {
		if to == 1 {
			continue
		}
		for _, m := range qt.q.Add(nil, qt.message(raftpb.MsgHeartbeat, 1, to, round), qt.m) {
			asked = append(asked, m.GetTo())
		}
	}
	if !slices.Equal(asked, want) {
		qt.Fatalf("round %d asked %v, want %v", round, asked, want)
	}
}

func (qt *quorumTest) answers(round uint64, from ...uint64) {
	for _, id := range from {
		qt.q.Note(qt.message(raftpb.MsgHeartbeatResp, id, 1, round), qt.m)
	}
}

// wants waits, and checks who has been asked by then that was not before.
func (qt *quorumTest) wants(wait time.Duration, want ...uint64) {
	qt.Helper()
	var asked []uint64
	select {
	case <-qt.q.Due.C:
		for _, m := range qt.q.Flush() {
			asked = append(asked, m.GetTo())
		}
	case <-time.After(wait):
	}
	slices.Sort(asked)
	if !slices.Equal(asked, want) {
		qt.Fatalf("%v later %v were asked, want %v", wait, asked, want)
	}
}

func TestReadQuorumAsksWhoAnsweredFirst(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3, 4, 5}, func(qt *quorumTest) {
		qt.m.learners = []uint64{6}
		qt.begin(1, 2, 3, 4, 5, 6)
		qt.answers(1, 6, 4, 2, 3, 5) // 6 has no vote
		for round := uint64(2); round < probeEvery+1; round++ {
			qt.begin(round, 2, 4)
			qt.answers(round, 2, 4)
		}
		qt.wants(2 * maxPatience)
		qt.begin(probeEvery+1, 2, 3, 4, 5, 6)
		qt.answers(probeEvery+1, 5, 5, 3) // faster by now
		qt.begin(probeEvery+2, 3, 5)
	})
}

func TestReadQuorumAsksTheOthersLate(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		time.Sleep(3 * time.Millisecond)
		qt.answers(1, 2)
		qt.begin(2, 2)
		qt.answers(1, 2, 3) // not to this round
		qt.wants(9*time.Millisecond - 1)
		qt.wants(2, 3) // three times what round 1 took
		qt.answers(2, 3)
		qt.begin(3, 3)
		qt.answers(3, 3)
		qt.wants(2 * maxPatience)
	})
}

// Rounds that overlap ask nobody else as long as those who were asked keep answering.
func TestReadQuorumOverlapping(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		qt.answers(1, 2)
		qt.begin(2, 2)
		for round := uint64(3); round < probeEvery; round++ {
			qt.begin(round, 2)
			qt.wants(minPatience - 1)
			qt.answers(round-1, 2)
		}
		qt.wants(minPatience+1, 3)
	})
}

func TestReadQuorumHeartbeats(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		qt.answers(1, 2)
		qt.begin(2, 2)
		qt.begin(0, 2, 3) // a plain one goes out, and in place of what was held
		qt.wants(2 * maxPatience)
		qt.begin(3, 2)
		qt.q.Tick()
		qt.begin(3, 2, 3) // raft asks again with the heartbeats of a tick
		qt.begin(4, 2)
	})
}

// Who is asked follows the members, and the term.
func TestReadQuorumMembers(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(7, 2, 3)
		qt.answers(7, 2)
		qt.m.voters = []uint64{1, 2, 3, 4}
		qt.begin(8, 2, 3, 4) // two are needed
		qt.answers(8, 2, 4)
		qt.begin(9, 2, 4)
		qt.m.voters = []uint64{1, 3, 4, 5}
		qt.q.Forget(2)
		qt.begin(10, 4, 5) // 5 has never got a heartbeat
		qt.wants(minPatience+1, 3)
		qt.answers(10, 3, 5)
		qt.begin(11, 3, 5)
		qt.m.voters = []uint64{2, 3, 4} // without this node
		qt.begin(12, 2, 3)              // 4 has got one just now
		qt.wants(minPatience+1, 4)
		qt.term = 2
		qt.m.voters = []uint64{1, 2, 3}
		qt.begin(1, 2, 3)
		qt.answers(1, 3)
		qt.begin(2, 3)
		qt.term = 1
		qt.answers(2, 3) // to a leader that it was before
		qt.wants(minPatience+1, 2)
	})
	withQuorum(t, []uint64{1}, func(qt *quorumTest) {
		qt.m.learners = []uint64{2}
		qt.begin(1, 2)
	})
}

// Probes come as often where the others have to be asked in every round. Else a follower
// that has become slow would be asked first for ever.
func TestReadQuorumProbes(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		qt.answers(1, 2)
		for round := uint64(2); round <= probeEvery; round++ {
			qt.begin(round, 2)
			qt.wants(minPatience+1, 3)
			qt.answers(round, 2, 3) // 2 had more time
		}
		qt.begin(probeEvery+1, 2, 3)
		time.Sleep(time.Millisecond)
		qt.answers(probeEvery+1, 3, 2)
		qt.begin(probeEvery+2, 3)
		qt.wants(3*time.Millisecond - 1) // as long as the probe says, and not what flushes took
		qt.wants(2, 2)
	})
}

// Who is chosen is asked at once what was held for it.
func TestReadQuorumLeftOver(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		qt.answers(1, 2)
		qt.begin(2, 2)
		qt.wants(minPatience+1, 3)
		qt.begin(3, 2)
		qt.answers(2, 3)
		qt.wants(1, 3)
	})
}

// A quorum is that of the members there are when an answer comes.
func TestReadQuorumMemberAdded(t *testing.T) {
	withQuorum(t, []uint64{1, 2, 3}, func(qt *quorumTest) {
		qt.begin(1, 2, 3)
		qt.answers(1, 2)
		qt.begin(2, 2)
		qt.m.voters = []uint64{1, 2, 3, 4}
		qt.answers(2, 2)
		qt.wants(minPatience+1, 3)
	})
}
