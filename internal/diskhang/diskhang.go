// Package diskhang answers: does this node's disk still answer, and what is to be
// done while it does not? A Watch knows since when the oldest sync is out, refuses
// growing writes meanwhile, and tells when leadership should be handed to a node
// whose disk works.
package diskhang

import (
	"fmt"
	"raftkv/internal/contact"
	"raftkv/internal/problem"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// What a node does while its disk does not answer: neither takes the log nor
// fails.
//
// It sends and hears heartbeats as ever, so nobody elects another leader, and it
// commits with its followers' disks what itself can never apply. So it says that
// it is not ready, hands leadership over if another can have it, does not stand
// for election, and takes in no more than a bounded amount.
//
// Time is counted in ticks of the raft loop. A process that was stopped for a
// while counts none, and so does not take its own absence for that of its disk.

const (
	// maxUnsynced bounds the entries, in bytes, that are on their way to the
	// disk. Proposers alone stay far below it (package rounds). It is passed by one
	// entry at most.
	maxUnsynced = 64 << 20
	// maxUnsyncedAppends bounds raft's storage messages on their way to the disk.
	maxUnsyncedAppends = 16 << 10
	// entryOverhead is about what an entry takes in memory beside its data.
	entryOverhead = 128

	// A disk hangs when a sync takes longer than an election timeout, and longer
	// than four times what it took of late: saving entries takes three syncs
	// where a new segment of the log begins, and a disk that is slow at each is
	// no better in another's hands. But it does hang after three timeouts.
	hangFactor  = 4
	hangCeiling = 3 // election timeouts

	// handOverRest is how many election timeouts are between two times that
	// leadership goes to another node for the sake of a disk.
	handOverRest = 10
	// MaxHeldReads bounds the requests for a read index that wait for a leader's
	// first commit. Whoever asked asks again.
	MaxHeldReads = 4096
)

// errDiskHangs refuses a write before it is proposed.
var errDiskHangs = fmt.Errorf("%w: its disk does not answer", problem.ErrOverloaded)

// Watch is what the raft loop knows of the log's way to the disk. All of it
// belongs to that loop, but for Hanging.
type Watch struct {
	log      *zap.Logger
	id       uint64        // of this node
	each     time.Duration // of a tick
	election uint64        // the election timeout in ticks
	contacts *contact.Contacts
	Hanging  atomic.Bool // as hangs, for anyone to ask

	Room    int     // maxUnsynced
	Tick    uint64  // now
	Queued  backlog // waits for the persist loop
	Handed  backlog // is with the persist loop
	usual   float64 // ticks that a sync takes of late
	acked   map[uint64]ack
	term    uint64 // of acked
	Moved   uint64 // when leadership last came or went for the sake of a disk; 0: not in this life
	asked   uint64 // when the others were last asked to show that they can write
	hangs   bool
	hungAt  time.Time // for the log alone
	Refused uint64    // messages and proposals that were not taken in since then
}

// backlog is storage messages that the disk does not have.
type backlog struct {
	appends, Bytes int
	since          uint64 // the tick of the first
}

// ack is the highest index that a node has acknowledged, and when that rose.
type ack struct{ index, tick uint64 }

// New returns the watch of node id, with nothing on its way to the disk. tick is the
// time between two calls of Ticked. The election timeout is rounded up to whole ticks.
func New(log *zap.Logger, id uint64, tick, electionTimeout time.Duration, c *contact.Contacts) *Watch {
	return &Watch{
		log: log, id: id, each: tick, election: uint64((electionTimeout + tick - 1) / tick), contacts: c, Room: maxUnsynced,
	}
}

// Queue notes a message for the persist loop.
func (d *Watch) Queue(m *raftpb.Message) {
	if d.Queued.appends == 0 {
		d.Queued.since = d.Tick
	}
	d.Queued.appends++
	for _, e := range m.GetEntries() {
		d.Queued.Bytes += len(e.GetData()) + entryOverhead
	}
}

// Hand notes that the persist loop has taken all that was queued.
func (d *Watch) Hand() {
	d.Handed, d.Queued = d.Queued, backlog{}
	d.Handed.since = d.Tick
}

// Done notes that the persist loop has answered. A hang counts as a bounded
// time, so that one does not raise what a sync usually takes.
func (d *Watch) Done() {
	took := min(d.Tick-d.Handed.since, d.election)
	d.usual += (float64(took) - d.usual) / 4
	d.Handed = backlog{}
}

// out returns for how many ticks the disk has been at what it was given, or, if
// the persist loop is at something else, at that.
func (d *Watch) out() uint64 {
	switch {
	case d.Handed.appends > 0:
		return d.Tick - d.Handed.since
	case d.Queued.appends > 0:
		return d.Tick - d.Queued.since
	}
	return 0
}

// Full reports whether no more may be taken in.
func (d *Watch) Full() bool {
	return d.Queued.Bytes+d.Handed.Bytes >= d.Room || d.Queued.appends+d.Handed.appends >= maxUnsyncedAppends
}

// limit returns after how many ticks the disk hangs.
func (d *Watch) limit() uint64 {
	return min(hangCeiling*d.election, max(d.election, uint64(hangFactor*d.usual)))
}

// MayWrite returns nil if a client's write that makes the store grow may be
// proposed through this node. One that does not, as a delete, is no burden: it
// waits, like all that was proposed before, for the disk.
func (d *Watch) MayWrite() error {
	if d.Hanging.Load() {
		return errDiskHangs
	}
	return nil
}

// Ticked is called at each tick. It reports whether raft may take it: a node whose
// disk hangs might else stand for election, with a vote of its own that is not
// durable.
func (d *Watch) Ticked(rn *raft.RawNode, leads bool) (counts bool) {
	d.Tick++
	hangs := d.out() > d.limit()
	if hangs != d.hangs {
		d.hangs = hangs
		d.Hanging.Store(hangs)
		if hangs {
			d.hungAt = time.Now().Add(-time.Duration(d.out()) * d.each)
			d.log.Warn("the disk does not answer: it has been at a sync of the log for too long; this node is not ready",
				zap.Duration("for", time.Since(d.hungAt)), zap.Int("unsynced-bytes", d.Queued.Bytes+d.Handed.Bytes))
		} else {
			d.log.Info("the disk answers again", zap.Duration("after", time.Since(d.hungAt)), zap.Uint64("refused", d.Refused))
			d.Refused = 0
		}
	}
	if hangs && leads {
		d.leaveLead(rn)
	}
	return !hangs || leads
}

// NoteAck notes what another node has acknowledged, and so has on its disk.
func (d *Watch) NoteAck(m *raftpb.Message, st *contact.RaftStatus) {
	if m.GetType() != raftpb.MsgAppResp || m.GetReject() || st.Role != raft.StateLeader || m.GetTerm() != st.Term {
		return
	}
	if d.term != st.Term {
		d.term, d.acked = st.Term, make(map[uint64]ack)
	}
	if m.GetIndex() > d.acked[m.GetFrom()].index {
		d.acked[m.GetFrom()] = ack{m.GetIndex(), d.Tick}
	}
}

// TakesIn reports whether a message from another node is given to raft. With as
// much on its way to the disk as there may be, what would add to it is not, nor
// is what asks this node to lead while its disk hangs. To raft that is a lost
// message, which it must expect.
func (d *Watch) TakesIn(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgTimeoutNow:
		if d.hangs {
			return false
		}
		if string(m.GetContext()) == forTheDisk {
			d.Moved = d.Tick
		}
	case raftpb.MsgApp, raftpb.MsgProp, raftpb.MsgVote, raftpb.MsgPreVote:
		if d.Full() {
			d.Refused++
			return false
		}
	}
	return true
}

// forTheDisk is the context of the message that makes another node stand for
// election because this node's disk hangs: its receiver is not to hand leadership
// on at once. An older program takes no notice.
const forTheDisk = "disk"

// Tag marks that message.
func (d *Watch) Tag(m *raftpb.Message) {
	if m.GetType() == raftpb.MsgTimeoutNow && d.hangs {
		m.Context = []byte(forTheDisk)
	}
}

// leaveLead hands leadership over, if a voter can have it. It must have
// acknowledged entries within the last election timeout, so that its disk is
// known to answer, and so must a majority without this node, whose vote is not
// durable.
func (d *Watch) leaveLead(rn *raft.RawNode) {
	if d.Moved != 0 && d.Tick-d.Moved < handOverRest*d.election {
		return // one of them is slow, too: to move on and on would stop all writes
	}
	st := rn.Status()
	fit := make(map[uint64]tracker.Progress)
	votes, all := make(map[uint64]bool), make(map[uint64]bool)
	for id, p := range st.Progress {
		answers := id != d.id && d.term == st.GetTerm() && d.acked[id].tick+d.election >= d.Tick && d.acked[id].index > 0
		votes[id], all[id] = answers, id != d.id
		if answers && p.State == tracker.StateReplicate {
			fit[id] = p
		}
	}
	if st.Config.Voters.VoteResult(all) != quorum.VoteWon {
		return // a majority needs this node
	}
	st.Progress = fit
	to := d.contacts.BestFollower(st, time.Time{})
	if to == 0 || st.Config.Voters.VoteResult(votes) != quorum.VoteWon {
		d.askForAcks(rn)
		return
	}
	d.Moved = d.Tick
	d.log.Warn("this node gives leadership to one whose disk answers", zap.Uint64("to", to))
	rn.TransferLeader(to)
}

// askForAcks appends an empty entry, once an election timeout: where nothing is
// written, or nothing more is taken in, that is how others show that they can
// write.
func (d *Watch) askForAcks(rn *raft.RawNode) {
	if d.asked != 0 && d.Tick-d.asked < d.election {
		return
	}
	d.asked = d.Tick
	if err := rn.Propose(nil); err != nil {
		d.log.Debug("raft did not take an empty entry", zap.Error(err))
	}
}
