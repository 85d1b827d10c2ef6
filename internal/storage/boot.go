package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/storage/disposal"
	"raftkv/internal/walfile"
	"raftkv/internal/watermark"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
)

// DirFormat is the version of the data directory's layout.
const DirFormat = 1

// Identity says whose data directory this is. It heads every WAL segment.
type Identity struct {
	Format    int    `json:"format"` // DirFormat of the program that made it
	Node      uint64 `json:"node"`   // its raft ID
	ClusterID uint64 `json:"cluster_id"`
	// Instance tells this directory from any other that the same node ID may
	// have had: drawn at random when the directory is made.
	Instance uint64 `json:"instance"`
	// Initial is the --cluster of the first start, in canonical form. Empty:
	// the node joined a running cluster.
	Initial string `json:"initial,omitempty"`
}

// NewInstance draws the instance of a new data directory.
func NewInstance() uint64 { return max(rand.Uint64(), 1) }

func (id Identity) encode() ([]byte, error) { return json.Marshal(id) }

func decodeIdentity(b []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("write-ahead log: its metadata is not raftkv's: %w", err)
	}
	if id.Format != DirFormat {
		return id, fmt.Errorf("%w: write-ahead log of format %d, this version knows format %d", durable.ErrNewer, id.Format, DirFormat)
	}
	return id, nil
}

// Lock makes the data directory this process's own. The lock goes with the
// process, however it ends.
func Lock(dir string) (io.Closer, error) {
	if err := makeDirAll(dir); err != nil {
		return nil, err
	}
	f, err := fileutil.TryLockFile(filepath.Join(dir, "lock"), os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another process; stop that one, or use another --data-dir", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return f, nil
}

// RestoringName is a file that is in a data directory while raftkv restore makes
// it. What that leaves when it does not get to its end looks like a first start
// that did not; but to start from it would begin an empty cluster.
const RestoringName = "restoring"

// CheckInterrupted refuses a first start in the place of a directory that a
// command was making, or about to put there, when it was interrupted.
func CheckInterrupted(dir string) error {
	if Exists(filepath.Join(dir, RestoringName)) {
		return fmt.Errorf("data directory %s is one that raftkv restore did not complete: run that again, or remove the directory", dir)
	}
	real, err := durable.RealDir(dir)
	if err != nil {
		return err
	}
	for _, next := range []string{BesideDir(real), filepath.Join(real, RecoveringName)} {
		complete, err := Booted(next)
		if err != nil {
			return err
		}
		if complete {
			return fmt.Errorf("%s is from a raftkv recover that was interrupted: run raftkv recover --force-new-cluster --data-dir %s "+
				"again before this node starts; or remove it, to begin without it", next, dir)
		}
	}
	return nil
}

// oldCopyName is a file that a node leaves in its directory when it ends for
// problem.ErrOldCopy. The next life would be counted higher, so nothing in the log would
// contradict it; and it must not vote before it has what it acknowledged.
const oldCopyName = "old-copy"

// NoteOldCopy leaves that file. Durable on return.
func NoteOldCopy(dir string) error {
	return durable.WriteFile(filepath.Join(dir, oldCopyName), func(w io.Writer) error {
		_, err := fmt.Fprintln(w, problem.ErrOldCopy)
		return err
	})
}

// CheckOldCopy refuses to start from a directory in which that file is.
func CheckOldCopy(dir string) error {
	path := filepath.Join(dir, oldCopyName)
	if !Exists(path) {
		return nil
	}
	return fmt.Errorf("%w. An earlier start has found this out, and left the file %s; only who has stopped "+
		"another process for good that ran with a copy may remove it", problem.ErrOldCopy, path)
}

// Booted reports whether a node has ever started from this directory.
func Booted(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, "wal"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Create makes the data directory of a node's first start. It begins
// with st, which is of state.FirstIndex and state.FirstTerm; or, when st is that of a node
// that joins, it will get log and state from the cluster.
//
// The directory counts as booted once it has wal/, which appears in one
// rename when everything in and beside it is durable. A crash at any point
// before leaves a directory that is still new, and is made again from scratch.
func Create(log *zap.Logger, dir string, id Identity, st *state.State) error {
	if err := CheckNew(dir); err != nil {
		return err
	}
	if err := removeLeftovers(dir); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "snap"), 0o700); err != nil {
		return err
	}
	if st.Index > 0 {
		path := StatePath(dir, st.Term, st.Index)
		if err := durable.WriteFile(path, func(w io.Writer) error { return state.Write(w, st) }); err != nil {
			return err
		}
	}
	if err := watermark.Create(filepath.Join(dir, "mark"), watermark.Mark{Index: st.Index, Term: st.Term}); err != nil {
		return err
	}
	if err := createLog(log, filepath.Join(dir, "wal.new"), id, st); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	if err := durable.SyncDir(filepath.Join(dir, "wal.new")); err != nil {
		return err // the WAL does not sync the name of its first segment
	}
	if err := os.Rename(filepath.Join(dir, "wal.new"), filepath.Join(dir, "wal")); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// removeLeftovers clears what an earlier first start did not complete, after
// CheckNew has seen that it is just that.
func removeLeftovers(dir string) error {
	for _, name := range []string{"snap", "mark", "wal.new", "wal.new.tmp"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return watermark.RemoveTemps(dir)
}

// CheckNew refuses to make a directory anew that is not new: one that has lost
// its log, or that holds somebody else's files. What it accepts beside the lock
// is what a first start leaves when it does not get to its end.
func CheckNew(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		switch {
		case name == "lock" && f.Type().IsRegular(), name == RestoringName && f.Type().IsRegular():
		case name == "wal.new" && f.IsDir(), name == "wal.new.tmp" && f.IsDir():
		case durable.IsTemp(name, "mark"), isFileSystems(f):
		case name == "mark" && f.Type().IsRegular():
			err = checkNewMark(dir)
		case name == "snap" && f.IsDir():
			err = checkNewSnaps(dir)
		default:
			err = foreign(dir, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func foreign(dir, name string) error {
	return fmt.Errorf("data directory %s holds %s, which is not this program's; use a directory of its own", dir, name)
}

func noLog(dir string) error {
	return Refused(dir, fmt.Errorf("%s is missing", filepath.Join(dir, "wal")))
}

// checkNewMark: the mark of a directory that was in use has counted its lives.
func checkNewMark(dir string) error {
	f, m, err := watermark.OpenFile(filepath.Join(dir, "mark"))
	if err != nil {
		return foreign(dir, "mark")
	}
	if m.Boot > 0 || m.Index > state.FirstIndex {
		err = noLog(dir)
	}
	return errors.Join(err, f.Close())
}

func checkNewSnaps(dir string) error {
	files, err := os.ReadDir(filepath.Join(dir, "snap"))
	if err != nil {
		return err
	}
	first := filepath.Base(StatePath(dir, state.FirstTerm, state.FirstIndex))
	for _, f := range files {
		name := f.Name()
		if name == first || durable.IsTemp(name, first) {
			continue
		}
		if _, kind := parseSnapName(name); kind == ".state" || disposal.IsGone(name) {
			return noLog(dir)
		}
		return foreign(dir, filepath.Join("snap", name))
	}
	return nil
}

// createLog makes a WAL that begins at st.
func createLog(log *zap.Logger, dir string, id Identity, st *state.State) error {
	meta, err := id.encode()
	if err != nil {
		return err
	}
	return walfile.Create(log, dir, meta, &walpb.Snapshot{Index: new(st.Index), Term: new(st.Term), ConfState: st.Membership.ConfState()})
}

// makeDirAll makes a directory and those above it, and makes their names durable:
// POSIX promises nothing of a name whose directory was not synced, not that of a
// directory in its parent, and not that of a file in a directory that got its own
// name later. The names within a data directory are synced where they are made.
//
// A process that ended between the two would leave directories whose names
// nobody syncs, so they are synced whether this call made them or not. Once the
// directory has a log, all names above it are durable but the last, which
// raftkv recover renames.
func makeDirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path, err := durable.RealDir(dir) // a link is its maker's business
	if err != nil {
		return err
	}
	old, err := Booted(path)
	if err != nil {
		return err
	}
	for parent := filepath.Dir(path); parent != path; path, parent = parent, filepath.Dir(parent) {
		if err := durable.SyncAbove(parent); err != nil || old {
			return err
		}
	}
	return nil
}

// A data directory that is the root of a volume: it holds what the file system
// puts there, and it cannot be renamed.

// isFileSystems reports whether something at the top of a directory belongs to
// the file system: what fsck found on ext4, and the snapshots of a filer or of
// ZFS. It is nobody's data, and stays where it is.
func isFileSystems(f os.DirEntry) bool {
	switch f.Name() {
	case "lost+found", ".snapshot", ".zfs":
		return f.IsDir()
	}
	return false
}

// Where raftkv recover works within a directory that cannot be renamed.
const (
	RecoveringName = "recovering"       // the new directory, while it is made
	SetAsidePrefix = "before-recovery-" // and a number: an old one
)

// IsSetAside reports whether something at the top of a data directory is what a
// recovery has set aside there.
func IsSetAside(f os.DirEntry) bool { return f.IsDir() && strings.HasPrefix(f.Name(), SetAsidePrefix) }

// DataNames are what makes up a data directory, beside its lock; the log last,
// since a directory that has it counts as one.
var DataNames = []string{"snap", "mark", "wal"}
