package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"slices"
	"strings"
)

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

// isSetAside reports whether something at the top of a data directory is what a
// recovery has set aside there.
func isSetAside(f os.DirEntry) bool { return f.IsDir() && strings.HasPrefix(f.Name(), SetAsidePrefix) }

// DataNames are what makes up a data directory, beside its lock; the log last,
// since a directory that has it counts as one.
var DataNames = []string{"snap", "mark", "wal"}

// VolumeRecovery is a recovery in the root of a volume, dir. It moves the parts
// of the data directory one by one, while dir itself stays where it is.
//
// The order of effects, and what a crash between two of them leaves:
//
//  1. The new directory is made as dir/recovering. Until it is complete, the old
//     one in dir counts, and it is made again; behind that both are complete, and
//     a second run asks the operator to remove the new one.
//  2. The old log is moved to dir/before-recovery-N. Behind that dir has no log,
//     so no node starts from it; a second run does what is left.
//  3. The rest of the old directory is moved there, too.
//  4. The parts of the new directory are moved into dir, the log last.
//
// Which of two directories a part in dir belongs to can be told at any moment: to
// the new one if dir/recovering does not have it any more.
type VolumeRecovery struct{ Dir string }

func (v VolumeRecovery) Next() string { return filepath.Join(v.Dir, RecoveringName) }

// Begin sets the old log aside, under a name that is free. From here on, finish
// has to follow.
func (v VolumeRecovery) Begin() (aside string, err error) {
	for n := 1; ; n++ {
		aside = filepath.Join(v.Dir, fmt.Sprint(SetAsidePrefix, n))
		if err := os.Mkdir(aside, 0o700); err == nil {
			break
		} else if !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	if err := os.Rename(filepath.Join(v.Dir, "wal"), filepath.Join(aside, "wal")); err != nil {
		return "", errors.Join(err, os.Remove(aside))
	}
	return aside, errors.Join(durable.SyncDir(aside), durable.SyncDir(v.Dir))
}

// Finish moves what is not in its place yet, and removes what is left of the
// place where the new directory was made.
func (v VolumeRecovery) Finish(aside string) error {
	next := v.Next()
	for _, name := range DataNames {
		in := filepath.Join(v.Dir, name)
		if !Exists(filepath.Join(next, name)) {
			continue // it is the new one's that is in dir
		}
		if Exists(in) {
			if err := os.Rename(in, filepath.Join(aside, name)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(durable.SyncDir(aside), durable.SyncDir(v.Dir)); err != nil {
		return err
	}
	for _, name := range DataNames {
		from := filepath.Join(next, name)
		if !Exists(from) {
			continue
		}
		// In order on disk as well: the log says that the others are there.
		if err := errors.Join(os.Rename(from, filepath.Join(v.Dir, name)), durable.SyncDir(v.Dir)); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(next), durable.SyncDir(v.Dir))
}

// LatestAside returns the newest directory that was set aside in dir.
func (v VolumeRecovery) LatestAside() (string, error) {
	files, err := os.ReadDir(v.Dir)
	if err != nil {
		return "", err
	}
	var numbers []int
	for _, f := range files {
		var n int
		if _, err := fmt.Sscanf(f.Name(), SetAsidePrefix+"%d", &n); err == nil && isSetAside(f) {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		return "", fmt.Errorf("%s is complete, but %s has neither a log nor a directory %sN: put the old directory back", v.Next(), v.Dir, SetAsidePrefix)
	}
	return filepath.Join(v.Dir, fmt.Sprint(SetAsidePrefix, slices.Max(numbers))), nil
}
