package storage

import (
	"cmp"
	"errors"
	"fmt"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"raftkv/internal/storage/snapshots"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// A start takes in the log as it reads it: what is known to be committed goes into the state
// at once, and in memory stays the tail that a running node would have there, too. So a start
// needs no more memory than running did, however long the log has become since the snapshot.

// logLoader takes in the log behind a snapshot, entry by entry.
type logLoader struct {
	id    uint64
	state *state.State // as of the snapshot, and then as of the last entry applied
	// replay applies entries to state, a little later: it is to be flushed at the end.
	replay *state.Replay
	// commit is up to where the entries are applied here; the rest raft hands
	// over, once it knows that it is committed.
	commit uint64

	limit      int64 // of the tail's weight; what is not applied stays in any case
	weight     int64
	tail       []*raftpb.Entry
	base, term uint64 // of the entry before the tail

	facts logFacts
	// worked is the last entry applied that was more than a check.
	worked uint64
	due    snapshots.Policy // bytes and commands: what the log holds behind the snapshot
}

// logFacts is what a log tells beside its entries. Not all of it need be
// committed.
type logFacts struct {
	// Reconfigured: members came or went since the first start.
	Reconfigured bool
	// Published: the instances that the log tells of, by node. They still say
	// that an ID is used.
	Published map[uint64]uint64
	// OwnURL is the last peer URL that the log gives this node; empty if it
	// gives none.
	OwnURL string
}

func newLogLoader(id uint64, st *state.State, commit uint64, within Bounds) *logLoader {
	st.Changes.Keep(within.Changes, st.Revision)
	return &logLoader{
		id: id, state: st, replay: state.NewReplay(st, int(within.Tail/4)), commit: commit, limit: within.Tail, base: st.Index, term: st.Term, worked: st.Index,
		facts: logFacts{Reconfigured: st.Membership.Changes > 0, Published: make(map[uint64]uint64)},
	}
}

// take takes in the next entry.
func (l *logLoader) take(e *raftpb.Entry) error {
	n, err := l.facts.note(l.id, e)
	if err != nil {
		return err
	}
	return l.add(n)
}

// add is take without what the entry tells.
func (l *logLoader) add(n logEntry) error {
	e := n.Entry
	if removes(e, l.id) {
		l.commit = min(l.commit, e.GetIndex()-1) // how this node ends is the apply loop's business
	}
	l.due.Bytes += uint64(len(e.GetData())) + snapshots.LogOverhead
	if e.GetIndex() <= l.commit {
		commands, err := n.replay(l.replay)
		if err != nil {
			return err
		}
		l.due.Commands += uint64(commands)
		if commands > 0 || e.GetType() != raftpb.EntryNormal {
			l.worked = e.GetIndex()
		}
		if l.state.Level > state.ProgramLevel {
			return state.ErrLevel(l.state.Level)
		}
	}
	l.tail = append(l.tail, e)
	for l.weight += weightOf(e); l.weight > l.limit && l.tail[0].GetIndex() <= l.state.Index; l.tail = l.tail[1:] {
		first := l.tail[0]
		l.weight -= weightOf(first)
		l.base, l.term = first.GetIndex(), first.GetTerm()
		l.tail[0] = nil
	}
	return nil
}

// logEntry is an entry with its batch taken apart; cmds is nil if it is none.
type logEntry struct {
	*raftpb.Entry
	id   state.BatchID
	cmds []state.Command
}

// note takes in what an entry tells, and refuses what a newer version wrote, before
// anything is changed.
func (f *logFacts) note(node uint64, e *raftpb.Entry) (n logEntry, err error) {
	n.Entry = e
	f.Reconfigured = f.Reconfigured || e.GetType() != raftpb.EntryNormal
	f.OwnURL = cmp.Or(membership.NewURLOf(node, e), f.OwnURL)
	if e.GetType() != raftpb.EntryNormal {
		if _, _, err := state.DecodeConfEntry(e); errors.Is(err, record.ErrUnknownCommand) {
			return n, fmt.Errorf("log %w: %w", durable.ErrNewer, err)
		}
		return n, nil
	}
	if len(e.GetData()) == 0 {
		return n, nil
	}
	if n.id, n.cmds, err = state.DecodeBatch(e.GetData()); errors.Is(err, record.ErrUnknownCommand) {
		return n, fmt.Errorf("log %w: entry %d: %w; upgrade this node", durable.ErrNewer, e.GetIndex(), err)
	}
	for _, c := range n.cmds {
		if c.Kind == state.KindPublish || c.Kind == state.KindAnnounce {
			f.Published[c.Member] = c.Instance
		}
	}
	return n, nil
}

// replay applies the entry.
func (n logEntry) replay(r *state.Replay) (commands int, err error) {
	if n.cmds == nil {
		return r.Entry(n.Entry)
	}
	return r.Batch(n.Entry, n.id, n.cmds)
}

// removes reports whether an entry removes a member, if it comes to that.
func removes(e *raftpb.Entry, id uint64) bool {
	if e.GetType() == raftpb.EntryNormal {
		return false
	}
	_, change, err := state.DecodeConfEntry(e)
	return err == nil && change.Op == membership.OpRemove && change.ID == id
}

// fill gives raft the tail, and the members as of what the state has applied:
// raft goes on behind that.
func (l *logLoader) fill(mem *raft.MemoryStorage, hard *raftpb.HardState) error {
	members := l.state.Membership.ConfState()
	if l.base > 0 {
		before := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(l.base), Term: new(l.term), ConfState: members}}
		if err := mem.ApplySnapshot(before); err != nil {
			return err
		}
	}
	err := errors.Join(mem.SetHardState(hard), mem.Append(l.tail))
	if err == nil && l.state.Index > l.base {
		_, err = mem.CreateSnapshot(l.state.Index, members, nil)
	}
	if err != nil {
		return fmt.Errorf("log in memory: %w", err)
	}
	return nil
}
