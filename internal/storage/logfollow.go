package storage

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// A start mostly finds all in order. Then it reads the log once, beside the state, and
// applies what is committed while it reads on. Whatever does not fit, it finds out
// nothing about: it forgets what it has, and reads again step by step (loadLog), which
// judges, and says what is wrong.

const (
	followPart = 256 << 10 // bytes of the log that are handed over at once
	// commandWeight is about what a command that is taken apart takes beside its data.
	commandWeight = 200
)

// followLog is loadLog in one reading. An error says that it could not be done so, and
// no more.
func followLog(dir string, m watermark.Mark, within Bounds) (*judgement, *logLoader, error) {
	j := newJudgement(dir, &m, false)
	snap, err := newestState(dir)
	if err != nil {
		return nil, nil, err
	}
	r := startReplay(j, snap, within)
	if err := errors.Join(r.read(m.Index), r.wait()); err != nil {
		return nil, nil, err
	}
	return j, r.loader, nil
}

// newestState is the snapshot of the newest state file, which mostly is the one that
// the log names. It is nil if there is none.
func newestState(dir string) (*walpb.Snapshot, error) {
	files, err := os.ReadDir(filepath.Join(dir, "snap"))
	if err != nil {
		return nil, err
	}
	var newest *walpb.Snapshot
	for _, f := range files {
		var term, index uint64
		if _, err := fmt.Sscanf(f.Name(), "%016x-%016x", &term, &index); err != nil || f.Name() != stateName(term, index) {
			continue
		}
		if newest == nil || index > newest.GetIndex() {
			newest = &walpb.Snapshot{Term: new(term), Index: new(index)}
		}
	}
	return newest, nil
}

// replay loads a state, and applies to it what is read of the log meanwhile. One
// goroutine reads the log and decodes it, another one loads and applies.
type replay struct {
	j     *judgement
	snap  *walpb.Snapshot // nil: the state is empty
	file  string          // of the state
	facts logFacts

	parts chan logPart
	part  logPart // not handed over yet
	most  int64   // that a part weighs, about

	// Of the second goroutine, until ended is closed:
	loader *logLoader
	digest [sha256.Size]byte // of the state's file
	failed error
	ended  chan struct{}
}

// logPart is a piece of the log.
type logPart struct {
	entries []logEntry
	weight  int64
	pending bool   // it is not known to be committed
	node    uint64 // whose it is
}

// startReplay begins to load the state. What is read ahead meanwhile is half of what
// the tail may weigh: by that, the tail of a node that runs grows before it is trimmed.
func startReplay(j *judgement, snap *walpb.Snapshot, within Bounds) *replay {
	most := max(min(followPart, within.Tail/4), 1)
	r := &replay{
		j: j, snap: snap, most: most, parts: make(chan logPart, max(within.Tail/2/most-2, 0)), ended: make(chan struct{}),
		facts: logFacts{Published: make(map[uint64]uint64)},
	}
	if snap != nil {
		r.file = StatePath(j.Dir, snap.GetTerm(), snap.GetIndex())
	}
	go func() {
		defer close(r.ended)
		r.failed = r.apply(within)
	}()
	return r
}

// apply loads the state, and applies what comes.
func (r *replay) apply(within Bounds) error {
	st := state.New(nil)
	if r.snap != nil {
		var err error
		if st, r.digest, err = readState(r.file, r.snap); err != nil {
			return err
		}
	}
	r.loader = newLogLoader(0, st, math.MaxUint64, within)
	for part := range r.parts {
		r.loader.id = part.node
		if part.pending {
			r.loader.commit = min(r.loader.commit, part.entries[0].GetIndex()-1)
		}
		for _, e := range part.entries {
			if err := r.loader.add(e); err != nil {
				return err
			}
		}
	}
	r.loader.replay.Flush()
	return nil
}

// read reads the log, and hands over its entries.
func (r *replay) read(marked uint64) error {
	j := r.j
	if !j.end() {
		return errors.Join(j.Damage...)
	}
	take := func(pending bool) func([]byte, *raftpb.Entry) error {
		return func(meta []byte, e *raftpb.Entry) error { return r.take(meta, e, pending) }
	}
	var err error
	if j.Log, err = walfile.Follow(j.walDir, marked, r.snap.GetIndex(), take(false), take(true)); err != nil {
		return err
	}
	if at := j.Log.Snapshot; at.GetTerm() != r.snap.GetTerm() {
		return fmt.Errorf("the log names a snapshot of term %d, the file is of term %d", at.GetTerm(), r.snap.GetTerm())
	}
	j.logOK = true
	if !j.identity() || !j.reach() {
		return errors.Join(j.Damage...)
	}
	return r.hand()
}

// take takes in the next entry of the log.
func (r *replay) take(meta []byte, e *raftpb.Entry, pending bool) error {
	if r.j.Identity == nil {
		id, err := decodeIdentity(meta)
		if err != nil {
			return err
		}
		r.j.Identity = &id
	}
	n, err := r.facts.note(r.j.Identity.Node, e)
	if err != nil {
		return err
	}
	if r.part.weight >= r.most || r.part.pending != pending {
		if err := r.hand(); err != nil {
			return err
		}
	}
	r.part.pending, r.part.node = pending, r.j.Identity.Node
	r.part.entries = append(r.part.entries, n)
	r.part.weight += weightOf(e) + int64(len(n.cmds))*commandWeight
	return nil
}

// hand hands over what has gathered.
func (r *replay) hand() error {
	if len(r.part.entries) == 0 {
		return nil
	}
	select {
	case r.parts <- r.part:
		r.part = logPart{}
		return nil
	case <-r.ended:
		return r.failed
	}
}

// wait returns when all that was handed over is applied.
func (r *replay) wait() error {
	close(r.parts)
	<-r.ended
	if r.failed != nil {
		return r.failed
	}
	r.facts.Reconfigured = r.facts.Reconfigured || r.loader.facts.Reconfigured
	r.loader.facts = r.facts
	r.j.Snapshot, r.j.File, r.j.Digest = r.loader.state, r.file, r.digest
	return nil
}
