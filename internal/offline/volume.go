package offline

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/storage"
	"slices"
)

// volumeRecovery is a recovery in the root of a volume, dir. It moves the parts
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
type volumeRecovery struct{ dir string }

func (v volumeRecovery) next() string { return filepath.Join(v.dir, storage.RecoveringName) }

// begin sets the old log aside, under a name that is free. From here on, finish
// has to follow.
func (v volumeRecovery) begin() (aside string, err error) {
	for n := 1; ; n++ {
		aside = filepath.Join(v.dir, fmt.Sprint(storage.SetAsidePrefix, n))
		if err := os.Mkdir(aside, 0o700); err == nil {
			break
		} else if !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	if err := os.Rename(filepath.Join(v.dir, "wal"), filepath.Join(aside, "wal")); err != nil {
		return "", errors.Join(err, os.Remove(aside))
	}
	return aside, errors.Join(durable.SyncDir(aside), durable.SyncDir(v.dir))
}

// finish moves what is not in its place yet, and removes what is left of the
// place where the new directory was made.
func (v volumeRecovery) finish(aside string) error {
	next := v.next()
	for _, name := range storage.DataNames {
		in := filepath.Join(v.dir, name)
		if !storage.Exists(filepath.Join(next, name)) {
			continue // it is the new one's that is in dir
		}
		if storage.Exists(in) {
			if err := os.Rename(in, filepath.Join(aside, name)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(durable.SyncDir(aside), durable.SyncDir(v.dir)); err != nil {
		return err
	}
	for _, name := range storage.DataNames {
		from := filepath.Join(next, name)
		if !storage.Exists(from) {
			continue
		}
		// In order on disk as well: the log says that the others are there.
		if err := errors.Join(os.Rename(from, filepath.Join(v.dir, name)), durable.SyncDir(v.dir)); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(next), durable.SyncDir(v.dir))
}

// latestAside returns the newest directory that was set aside in dir.
func (v volumeRecovery) latestAside() (string, error) {
	files, err := os.ReadDir(v.dir)
	if err != nil {
		return "", err
	}
	var numbers []int
	for _, f := range files {
		var n int
		if _, err := fmt.Sscanf(f.Name(), storage.SetAsidePrefix+"%d", &n); err == nil && storage.IsSetAside(f) {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		return "", fmt.Errorf("%s is complete, but %s has neither a log nor a directory %sN: put the old directory back", v.next(), v.dir, storage.SetAsidePrefix)
	}
	return filepath.Join(v.dir, fmt.Sprint(storage.SetAsidePrefix, slices.Max(numbers))), nil
}
