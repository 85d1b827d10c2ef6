package storage

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// What a data directory holds is read and judged here, for those who look at it
// (Examine) and for a start (Open). So no check can be in one and not in the other.

// judgement is one reading of a directory. It changes nothing there.
type judgement struct {
	*Findings
	// whole: the entries are kept, and all faults are wanted, also those behind
	// others. A start stops at the first fault, and takes the entries one by one,
	// since a long log need not fit into memory.
	whole  bool
	walDir string
	logOK  bool // the log could be read to its end
}

// judge reads a directory up to the entries of its log. m is what its mark says, and
// nil if that cannot be read.
func judge(dir string, m *watermark.Mark, whole bool) *judgement {
	j := newJudgement(dir, m, whole)
	for _, step := range []func() (goOn bool){j.end, j.log, j.identity, j.snapshot, j.reach} {
		if !step() {
			break
		}
	}
	return j
}

func newJudgement(dir string, m *watermark.Mark, whole bool) *judgement {
	return &judgement{Findings: &Findings{Dir: dir, Mark: m}, whole: whole, walDir: filepath.Join(dir, "wal")}
}

// passes notes a fault, and reports whether to read on.
func (j *judgement) passes(err error) bool {
	j.Note(err)
	return err == nil || j.whole
}

// end looks at the end of the log, and refuses one that was lost.
func (j *judgement) end() bool {
	if _, err := os.Stat(j.walDir); errors.Is(err, os.ErrNotExist) {
		j.Note(fmt.Errorf("%s, the write-ahead log, is missing", j.walDir))
		j.NoLog = true
		return false // there is nothing behind it to judge
	}
	var err error
	if j.Tail, err = walfile.InspectTail(j.walDir); err == nil && j.Tail.Damaged {
		err = fmt.Errorf("%s: %s", j.Tail.File, j.Tail.Reason)
	}
	return j.passes(err)
}

func (j *judgement) log() bool {
	var err error
	if j.whole {
		j.Log, err = walfile.Read(j.walDir)
	} else {
		j.Log, err = walfile.Survey(j.walDir, j.Mark.Index)
	}
	j.logOK = err == nil
	return j.passes(err) && (j.logOK || j.Log.Settle() == nil)
}

func (j *judgement) identity() bool {
	if !j.logOK && j.Log.Meta == nil {
		return true // that it could not be read is noted
	}
	id, err := decodeIdentity(j.Log.Meta)
	if err == nil {
		j.Identity = &id
	}
	return j.passes(err)
}

// snapshot reads the state file that the log names. A node that joins and has not
// heard from the cluster yet has none.
func (j *judgement) snapshot() bool {
	snap := j.Log.Snapshot
	if snap.GetIndex() == 0 {
		j.Snapshot = state.New(nil)
		return true
	}
	j.File = StatePath(j.Dir, snap.GetTerm(), snap.GetIndex())
	st, digest, err := readState(j.File, snap)
	if err == nil {
		j.Snapshot, j.Digest = st, digest
	}
	return j.passes(err)
}

// readState loads the state file of a snapshot.
func readState(file string, of *walpb.Snapshot) (st *state.State, digest [sha256.Size]byte, err error) {
	st, digest, err = state.ReadFile(file)
	if err == nil && (st.Index != of.GetIndex() || st.Term != of.GetTerm()) {
		err = fmt.Errorf("state file %s holds another state, of term %d and index %d", file, st.Term, st.Index)
	}
	return st, digest, err
}

// reach compares the log with the mark.
func (j *judgement) reach() bool {
	if !j.logOK || j.Mark == nil {
		return true
	}
	return j.passes(checkReach(&j.Log, j.walDir, *j.Mark))
}

// checkReach compares the log with the mark.
func checkReach(c *walfile.Contents, walDir string, m watermark.Mark) error {
	switch last, hard := c.Last(), c.Hard; {
	case last < m.Index:
		return fmt.Errorf("%s ends at entry %d, but entry %d was synced to it: its end is missing", walDir, last, m.Index)
	case hard.GetTerm() < m.Term:
		return fmt.Errorf("%s ends in term %d, but term %d was synced to it: its end is missing", walDir, hard.GetTerm(), m.Term)
	case hard.GetTerm() == m.Term && m.Vote != 0 && hard.GetVote() != m.Vote:
		return fmt.Errorf("%s has lost a vote that was synced to it: its end is missing", walDir)
	case hard.GetCommit() > last:
		return fmt.Errorf("%s ends at entry %d, but says that entry %d is committed", walDir, last, hard.GetCommit())
	}
	return nil
}

// entries passes on the entries of the log behind the snapshot, in their order, up to
// the first that visit refuses.
func (j *judgement) entries(visit func(*raftpb.Entry) error) {
	if !j.whole {
		j.Note(j.Log.Each(j.walDir, visit))
		return
	}
	for _, e := range j.Log.Entries {
		if err := visit(e); err != nil {
			j.Note(err)
			return
		}
	}
}
