package suspect

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// A leader that cannot be asked cannot vouch, and until it has, nothing that it sends is
// acknowledged. Its heartbeats pass meanwhile, so that nobody stands for election; but if
// it stays so, nothing could be committed any more, while all nodes run and hear each
// other: the leader has moved, and nobody listens yet at the peer URL that the cluster
// has for it, or what is between lets connections through in one direction alone. So
// after a while it is not followed any more. If a majority cannot ask it, it steps down
// by raft's check of the quorum, and another node leads; if only this node cannot, the
// others do not vote for it, since they hear a leader (thesis §9.6).

const (
	// silentTimes is how many election timeouts a leader may take before it can be asked:
	// twice as many with each that was given up since one has vouched, so that where all are
	// slow to answer, as on overloaded machines, elections do not follow one another.
	silentTimes   = 3
	mostDoublings = 4
	// silentAsks is how often it was asked in vain at least.
	silentAsks = 2
)

// silence is a leader that could not be asked.
type silence struct {
	leader leaderInTerm
	since  time.Time
	asks   int
	told   bool
}

// notAnswered notes that a leader could not be asked. It runs on the raft loop.
func (d *Doubts) notAnswered(rn *raft.RawNode, id uint64) {
	st := rn.BasicStatus()
	if st.Lead != id {
		return
	}
	if now := (leaderInTerm{id, st.GetTerm()}); d.silent.leader != now {
		d.silent = silence{leader: now, since: time.Now()}
	}
	d.silent.asks++
}

// outOfReach reports whether a message comes from a leader that has to vouch, and could
// not be asked for so long that it is not to be followed.
func (d *Doubts) outOfReach(rn *raft.RawNode, m *raftpb.Message) bool {
	return d.silent.asks >= silentAsks && d.unproven(rn, m) && d.givesUp(m)
}

// givesUp reports whether the leader that has sent a message is not to be followed.
func (d *Doubts) givesUp(m *raftpb.Message) bool {
	s := &d.silent
	if s.leader != (leaderInTerm{m.GetFrom(), m.GetTerm()}) || time.Since(s.since) < silentTimes<<min(d.givenUp, mostDoublings)*d.ElectionTimeout && !s.told {
		return false
	}
	if !s.told {
		s.told = true
		d.givenUp++
		d.Say.Warn("the leader cannot be asked at its peer URL, so this node does not follow it", zap.Uint64("leader", s.leader.id),
			zap.Uint64("term", s.leader.term), zap.String("peer-url", d.URLOf(s.leader.id)))
	}
	return true
}
