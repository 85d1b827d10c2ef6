package storage

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/raft/v3/raftpb"
)

// Findings is what is in a data directory, read without touching it. What could
// not be read is nil, and the reason among the damage.
type Findings struct {
	Dir      string
	Mark     *watermark.Mark
	Tail     walfile.Tail // how the last segment of the log ends
	Identity *Identity
	OldCopy  bool             // the node has ended because an older copy was put in place
	NoLog    bool             // there is none: its directory is missing
	Log      walfile.Contents // as far as it can be read
	// Snapshot is the state of the snapshot that counts. A node that joins and
	// has not heard from the cluster yet has an empty one, of index 0.
	Snapshot *state.State
	File     string            // of the snapshot
	Digest   [sha256.Size]byte // the SHA-256 at the end of File
	Damage   []error           // in the order in which it was found
}

// errNoDataDir: there is nothing of this program in a directory.
var errNoDataDir = errors.New("it is not a data directory")

// Examine reads a data directory, and finds the damage that Open
// would refuse, all of it. It goes on behind damage as far as that makes sense.
func Examine(dir string) (*Findings, error) {
	if err := CheckHasData(dir); err != nil {
		return nil, err
	}
	// The mark first: beside a running node, what it claims was in the log by
	// then.
	m, err := watermark.Peek(filepath.Join(dir, "mark"))
	if err != nil {
		j := judge(dir, nil, true)
		j.Damage = append([]error{err}, j.Damage...)
		return j.findings(), nil
	}
	return judge(dir, &m, true).findings(), nil
}

// findings judges the entries, too, as a start would take them.
func (j *judgement) findings() *Findings {
	j.OldCopy = Exists(filepath.Join(j.Dir, oldCopyName))
	facts := logFacts{Published: make(map[uint64]uint64)}
	j.entries(func(e *raftpb.Entry) error {
		_, err := facts.note(0, e)
		return err
	})
	return j.Findings
}

// Note adds err to the damage, if there is one.
func (f *Findings) Note(err error) {
	if err != nil {
		f.Damage = append(f.Damage, err)
	}
}

// CheckHasData reports whether dir has anything that only a data directory has.
func CheckHasData(dir string) error {
	if _, err := os.ReadDir(dir); err != nil {
		return err
	}
	for _, name := range []string{"wal", "mark", "snap"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", dir, errNoDataDir)
}

// Replay returns the state after the entries up to an index, as the apply loop
// makes it.
func (f *Findings) Replay(upTo uint64) (*state.State, error) {
	st := f.Snapshot.Copy()
	for _, e := range f.Log.Entries {
		if e.GetIndex() > upTo {
			break
		}
		if err := st.Replay(e); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// InUse reports whether a process has the directory locked. To learn it, the
// lock is taken for a moment, if there is one.
func InUse(dir string) bool {
	l, err := fileutil.TryLockFile(filepath.Join(dir, "lock"), os.O_WRONLY, 0)
	if err == nil {
		_ = l.Close() // it goes with the file
	}
	return errors.Is(err, fileutil.ErrLocked)
}

// Leftovers are the files that the log does not name, which the next start
// removes, and those that are not this program's.
func (f *Findings) Leftovers() (temporary, foreign []string, err error) {
	counts := filepath.Base(f.File)
	for _, sub := range []string{"", "wal", "snap"} {
		files, err := os.ReadDir(filepath.Join(f.Dir, sub))
		if errors.Is(err, os.ErrNotExist) {
			continue // noted as damage if it matters
		}
		if err != nil {
			return nil, nil, err
		}
		for _, file := range files {
			name := file.Name()
			_, _, segment := walfile.ParseSegmentName(name)
			switch {
			case sub == "" && (name == "lock" || name == "mark" || name == "wal" || name == "snap" || name == oldCopyName):
			case sub == "" && (isFileSystems(file) || IsSetAside(file)):
			case sub == "wal" && segment, sub == "snap" && name == counts:
			case sub == "" && durable.IsTemp(name, "mark"), sub == "snap", sub == "wal" && strings.HasSuffix(name, ".tmp"):
				temporary = append(temporary, filepath.Join(sub, name))
			default:
				foreign = append(foreign, filepath.Join(sub, name))
			}
		}
	}
	return temporary, foreign, nil
}

// BesideDir is where the new directory is made, unless that is within dir.
func BesideDir(dir string) string { return dir + ".recovering" }
