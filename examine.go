package main

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
)

// findings is what is in a data directory, read without touching it. What could
// not be read is nil, and the reason among the damage.
type findings struct {
	dir      string
	mark     *watermark.Mark
	tail     walfile.Tail
	identity *identity
	log      walfile.Contents // as far as it can be read
	// snapshot is the state of the snapshot that counts. A node that joins and
	// has not heard from the cluster yet has an empty one, of index 0.
	snapshot *state.State
	file     string // of the snapshot
	digest   [sha256.Size]byte
	damage   []error
}

// errNoDataDir: there is nothing of this program in a directory.
var errNoDataDir = errors.New("it is not a data directory")

// examineDir reads a data directory, and finds the damage that openStorage
// would refuse, all of it. It goes on behind damage as far as that makes sense.
func examineDir(dir string) (*findings, error) {
	if err := checkHasData(dir); err != nil {
		return nil, err
	}
	f := &findings{dir: dir}
	walDir := filepath.Join(dir, "wal")
	// The mark first: beside a running node, what it claims was in the log by
	// then.
	m, err := peekMark(filepath.Join(dir, "mark"))
	if err == nil {
		f.mark = &m
	}
	f.note(err)
	f.tail, err = checkTail(walDir)
	f.note(err)
	f.log, err = walfile.Read(walDir)
	logRead := err == nil
	if f.note(err); !logRead && f.log.Settle() != nil {
		return f, nil
	}
	if logRead || f.log.Meta != nil {
		id, err := decodeIdentity(f.log.Meta)
		if err == nil {
			f.identity = &id
		}
		f.note(err)
	}
	for _, e := range f.log.Entries {
		if err := notePublished(e, make(map[uint64]uint64)); err != nil {
			f.note(err)
			break
		}
	}
	f.note(f.readSnapshot())
	if logRead && f.mark != nil {
		f.note(checkReach(&f.log, walDir, *f.mark))
	}
	return f, nil
}

func (f *findings) note(err error) {
	if err != nil {
		f.damage = append(f.damage, err)
	}
}

// checkHasData reports whether dir has anything that only a data directory has.
func checkHasData(dir string) error {
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

// peekMark reads a mark file that it may not be allowed to write.
func peekMark(path string) (watermark.Mark, error) {
	f, err := os.Open(path)
	if err != nil {
		return watermark.Mark{}, err
	}
	defer func() { _ = f.Close() }() // only read from
	mf, err := watermark.Read(f)
	if err != nil {
		return watermark.Mark{}, fmt.Errorf("mark file %s: %w", path, err)
	}
	return mf.Last, nil
}

// readSnapshot reads the state file that the log names.
func (f *findings) readSnapshot() error {
	snap := f.log.Snapshot
	if snap.GetIndex() == 0 {
		f.snapshot = state.New(nil)
		return nil
	}
	f.file = statePath(f.dir, snap.GetTerm(), snap.GetIndex())
	st, digest, err := state.ReadBackup(nil, f.file)
	if err != nil {
		return err
	}
	if st.Index != snap.GetIndex() || st.Term != snap.GetTerm() {
		return fmt.Errorf("state file %s holds another state, of term %d and index %d", f.file, st.Term, st.Index)
	}
	f.snapshot, f.digest = st, digest
	return nil
}

// replay returns the state after the entries up to an index, as the apply loop
// makes it.
func (f *findings) replay(upTo uint64) (*state.State, error) {
	st := f.snapshot.Copy()
	for _, e := range f.log.Entries {
		if e.GetIndex() > upTo {
			break
		}
		if err := st.Replay(e); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// inUse reports whether a process has the directory locked. To learn it, the
// lock is taken for a moment, if there is one.
func inUse(dir string) bool {
	l, err := fileutil.TryLockFile(filepath.Join(dir, "lock"), os.O_WRONLY, 0)
	if err == nil {
		_ = l.Close() // it goes with the file
	}
	return errors.Is(err, fileutil.ErrLocked)
}

// leftovers are the files that the log does not name, which the next start
// removes, and those that are not this program's.
func (f *findings) leftovers() (temporary, foreign []string, err error) {
	counts := filepath.Base(f.file)
	for _, sub := range []string{"", "wal", "snap"} {
		files, err := os.ReadDir(filepath.Join(f.dir, sub))
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
			case sub == "" && (name == "lock" || name == "mark" || name == "wal" || name == "snap"):
			case sub == "" && (isFileSystems(file) || isSetAside(file)):
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
