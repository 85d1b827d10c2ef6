// Package dirwatch answers: are the files of the data directory still those that this
// process writes to? It looks at names, and reads nothing.
package dirwatch

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
	// Interval is how often; what it costs is a dozen system calls.
	Interval = 500 * time.Millisecond
	// lookAgain is how often in a row it must look wrong: a look takes several
	// calls, and in between the log goes to a new segment, or a snapshot comes.
	lookAgain = 3
	lookPause = 20 * time.Millisecond
)

// ErrLost ends a node whose files are not its own any more.
var ErrLost = errors.New("the data directory was changed under the running node")

// Config is what a Watch needs to know.
type Config struct {
	Dir string // the data directory
	// Newest is the state file of the newest snapshot; empty if there is none.
	Newest func() string
	// Released is the index of the newest snapshot that the log records.
	Released func() uint64
}

// Watch knows the files that have to stay, by name.
type Watch struct {
	Config
	files map[string]fs.FileInfo // of the directories, the mark and the segments, as first seen
	// first and last are the lowest and the highest segment at the last look.
	first, last uint64
	begun       bool // there was one
}

// New returns a watch that has not looked yet.
func New(c Config) *Watch {
	return &Watch{Config: c, files: make(map[string]fs.FileInfo)}
}

// Run looks at the data directory until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		if err := w.Check(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Check looks until all is well, or has looked wrong often enough.
func (w *Watch) Check(ctx context.Context) error {
	for n := 1; ; n++ {
		err := w.look()
		if err == nil {
			return nil
		}
		if n == lookAgain {
			return fmt.Errorf("%w: %w; what was written since is lost with the files that this node still has open", ErrLost, err)
		}
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// look compares what is there with what must be. An error of the disk is no news
// of the names: it is left to those who need the files.
func (w *Watch) look() error {
	walDir := filepath.Join(w.Dir, "wal")
	for _, path := range []string{w.Dir, filepath.Join(w.Dir, "snap"), walDir, filepath.Join(w.Dir, "mark")} {
		if err := w.same(path); err != nil {
			return err
		}
	}
	if err := w.segments(walDir); err != nil {
		return err
	}
	// The older one goes when a newer one counts.
	newest := w.Newest()
	if newest == "" {
		return nil
	}
	_, err := os.Stat(newest)
	return missing(err)
}

// segments looks whether all segments are there that the newest snapshot needs:
// none is missing between the first and the last, and none behind those that were
// there before.
func (w *Watch) segments(walDir string) error {
	segments, _, err := walfile.Segments(walDir)
	if err != nil {
		return missing(err)
	}
	// Behind the listing: what had gone by then, an older snapshot released.
	released := w.Released()
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
func (w *Watch) same(path string) error {
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
