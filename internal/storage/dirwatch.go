package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/walfile"
	"time"
)

// A process goes on writing to files that were removed or renamed, and syncs them,
// and nothing of that is there at the next start. So a node looks whether its files
// still have the names under which it would look for them.

const (
	// WatchInterval is how often; what it costs is a dozen system calls.
	WatchInterval = 500 * time.Millisecond
	// watchLooks is how often in a row it must look wrong: a look takes several
	// calls, and in between the log goes to a new segment, or a snapshot comes.
	watchLooks = 3
	watchPause = 20 * time.Millisecond
)

// errDirLost ends a node whose files are not its own any more.
var errDirLost = errors.New("the data directory was changed under the running node")

// dirWatch knows the files that have to stay, by name.
type dirWatch struct {
	s     *Storage
	files map[string]fs.FileInfo // of the directories, the mark and the segments, as first seen
	// first and last are the lowest and the highest segment at the last look.
	first, last uint64
	begun       bool // there was one
}

func newDirWatch(s *Storage) *dirWatch {
	return &dirWatch{s: s, files: make(map[string]fs.FileInfo)}
}

// Watch looks at the data directory until ctx ends.
func (s *Storage) Watch(ctx context.Context) error {
	w := newDirWatch(s)
	tick := time.NewTicker(WatchInterval)
	defer tick.Stop()
	for {
		if err := w.check(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// check looks until all is well, or has looked wrong often enough.
func (w *dirWatch) check(ctx context.Context) error {
	for n := 1; ; n++ {
		err := w.look()
		if err == nil {
			return nil
		}
		if n == watchLooks {
			return fmt.Errorf("%w: %w; what was written since is lost with the files that this node still has open", errDirLost, err)
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// look compares what is there with what must be. An error of the disk is no news
// of the names: it is left to those who need the files.
func (w *dirWatch) look() error {
	walDir := filepath.Join(w.s.Dir, "wal")
	for _, path := range []string{w.s.Dir, w.s.snapDir(), walDir, filepath.Join(w.s.Dir, "mark")} {
		if err := w.same(path); err != nil {
			return err
		}
	}
	if err := w.segments(walDir); err != nil {
		return err
	}
	// The older one goes when a newer one counts.
	meta := w.s.Newest.Load().GetMetadata()
	if meta.GetIndex() == 0 {
		return nil
	}
	_, err := os.Stat(StatePath(w.s.Dir, meta.GetTerm(), meta.GetIndex()))
	return missing(err)
}

// segments looks whether all segments are there that the newest snapshot needs:
// none is missing between the first and the last, and none behind those that were
// there before.
func (w *dirWatch) segments(walDir string) error {
	segments, _, err := walfile.Segments(walDir)
	if err != nil {
		return missing(err)
	}
	// Behind the listing: what had gone by then, an older snapshot released.
	released := w.s.SnapIndex.Load()
	there := make(map[string]bool)
	var start, next, last uint64
	for _, s := range segments {
		seq, first, path := s.Seq, s.First, s.Path
		switch {
		case len(there) > 0 && seq != next:
			return fmt.Errorf("the segment before %s is missing", path)
		case len(there) == 0 && w.begun && seq > w.first && first >= released:
			return fmt.Errorf("the segment before %s is missing", path)
		}
		if err := w.same(path); err != nil {
			if _, gone := os.Lstat(path); len(there) == 0 && errors.Is(gone, fs.ErrNotExist) {
				next = seq + 1
				continue // it was just released: the next look counts
			}
			return err
		}
		if len(there) == 0 {
			start = seq
		}
		there[path] = true
		next, last = seq+1, seq
	}
	if len(there) == 0 || last < w.last {
		return fmt.Errorf("the last segment in %s is missing", walDir)
	}
	w.first, w.last, w.begun = start, last, true
	for path := range w.files {
		if filepath.Dir(path) == walDir && !there[path] {
			delete(w.files, path)
		}
	}
	return nil
}

// same reports whether a path leads to the file to which it led at first.
func (w *dirWatch) same(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return missing(err)
	}
	if was := w.files[path]; was != nil && !os.SameFile(was, info) {
		return fmt.Errorf("%s is another one", path)
	}
	w.files[path] = info
	return nil
}

// missing is nil for an error that does not say that something is missing.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
