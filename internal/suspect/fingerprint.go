package suspect

import (
	"math"
	"raftkv/internal/state"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/raft/v3/raftpb"
)

// A leader makes one entry for an index in its term (thesis §3.5, Log Matching), so
// entries of one index and term are the same. They are not if a node that was put back
// has voted twice in a term: then two histories can have the same terms at the same
// indexes, and raft takes entries of one for those of the other. So a leader tells the
// fingerprints of what its log holds behind a follower's settled entries, and the
// follower compares.

const (
	// maxPrints is how many fingerprints a node keeps, and maxTold how many it tells.
	// A follower has as many entries that are not settled as were on their way when it
	// ended.
	maxPrints = 1024
	maxTold   = 256
)

// Print is the fingerprint of a log entry.
type Print struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	Sum   uint64 `json:"sum"` // XXH64 of the data, plus the type
}

func printOf(e *raftpb.Entry) Print {
	return Print{e.GetIndex(), e.GetTerm(), xxhash.Sum64(e.GetData()) + uint64(e.GetType())}
}

// ownLog is the end of this node's log, as it was given to the persist loop. It
// belongs to the raft loop.
type ownLog struct {
	prints []Print         // of the last entries, in their order
	tail   []*raftpb.Entry // those that are not applied yet
}

// add takes in entries that follow the log, or overwrite its end.
func (l *ownLog) add(entries []*raftpb.Entry) {
	first := entries[0].GetIndex()
	for n := len(l.prints); n > 0 && l.prints[n-1].Index >= first; n-- {
		l.prints = l.prints[:n-1]
	}
	for n := len(l.tail); n > 0 && l.tail[n-1].GetIndex() >= first; n-- {
		l.tail[n-1] = nil
		l.tail = l.tail[:n-1]
	}
	for _, e := range entries {
		l.prints = append(l.prints, printOf(e))
	}
	if over := len(l.prints) - maxPrints; over > maxPrints {
		l.prints = append(l.prints[:0], l.prints[over:]...)
	}
	l.tail = append(l.tail, entries...)
}

// trim lets go of entries that are applied.
func (l *ownLog) trim(applied uint64) {
	for len(l.tail) > 0 && l.tail[0].GetIndex() <= applied {
		l.tail[0] = nil
		l.tail = l.tail[1:]
	}
}

// replace forgets the log: a snapshot has taken its place.
func (l *ownLog) replace() { l.prints, l.tail = nil, nil }

// behind returns the fingerprints of the entries behind an index.
func (l *ownLog) behind(index uint64) []Print {
	for i, p := range l.prints {
		if p.Index > index {
			told := l.prints[i:min(len(l.prints), i+maxTold)]
			return append([]Print(nil), told...)
		}
	}
	return nil
}

// contradicts returns the lowest index at which this log has an entry of the same term
// as another one, and not the same entry; 0 if there is none.
func (l *ownLog) contradicts(others []Print) uint64 {
	theirs := make(map[uint64]Print, len(others))
	for _, p := range others {
		theirs[p.Index] = p
	}
	for _, p := range l.prints {
		if t, ok := theirs[p.Index]; ok && t.Term == p.Term && t.Sum != p.Sum {
			return p.Index
		}
	}
	return 0
}

// standing is how far this node's history has come with all of its log. For a leader
// that is what it stands for: it never overwrites its own log (thesis §3.5).
func (d *Doubts) standing() state.Standing {
	if len(d.own.tail) > maxPrints {
		return d.Standing() // what is to be applied takes too long
	}
	return d.StandingWith(d.own.tail)
}

// Started takes in the log with which this life begins: where it ends, up to where it
// is known to be committed, and up to where the state has applied it.
func (d *Doubts) Started(last, committed, applied uint64) error {
	d.Last, d.BegunAt = last, committed
	lo, err := d.Log.FirstIndex()
	if err != nil || lo > last {
		return err
	}
	if last-lo >= maxPrints {
		lo = min(last-maxPrints, applied) + 1
	}
	entries, err := d.Log.Entries(lo, last+1, math.MaxUint64)
	if err == nil && len(entries) > 0 {
		d.own.add(entries)
		d.own.trim(applied)
	}
	return err
}
