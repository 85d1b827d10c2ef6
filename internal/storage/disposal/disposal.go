// Package disposal answers: who still reads a file of which there is a newer one,
// and how does it go? It counts the readers of the files of one directory, leaves a
// file as it is until the last of them has ended, and frees it in steps, so that the
// log's syncs do not wait for it. It does not know which files are of no more use.
package disposal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"strings"
	"sync"
)

// How a file goes, and what a crash leaves:
//
//  1. What takes its place is durable; that is the caller's part.
//  2. It is renamed, and from then on nobody of this process opens it. A crash
//     leaves it under either name.
//  3. The directory is synced: whatever becomes of its content, after a power cut
//     too it is not under its old name.
//  4. It is cut off step by step, and removed. A crash leaves a part of it.
//
// The next start removes what has such a name.

// goneMark is in the name of a file that is on its way out. The number behind it
// keeps two apart that had the same name one after the other: to rename one onto the
// other would free that one at once.
const goneMark = ".gone"

// IsGone reports whether a name is that of a file on its way out.
func IsGone(name string) bool {
	_, digits, ok := strings.Cut(name, goneMark)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// Files are the files of a directory. It is safe for concurrent use.
type Files struct {
	dir string

	mu      sync.Mutex
	readers map[string]int  // by name
	wanted  map[string]bool // names that could not go for their readers
	going   map[string]bool // names that are being taken away
	freeing map[string]bool // names of files that somebody is freeing
	numbers uint64

	more chan struct{}
}

// New returns those of a directory. Its caller has seen to it that no file on its
// way out is left there.
func New(dir string) *Files {
	return &Files{
		dir: dir, readers: make(map[string]int), wanted: make(map[string]bool), going: make(map[string]bool),
		freeing: make(map[string]bool), more: make(chan struct{}, 1),
	}
}

// File is a file that is open for reading, and stays as it is until it is closed.
type File struct {
	*os.File
	once  sync.Once
	ended func()
}

// Close closes the file. It may be called more than once.
func (f *File) Close() error {
	err := f.File.Close()
	f.once.Do(f.ended)
	return err
}

// Open opens the file of a name for reading. The error is fs.ErrNotExist when it is
// on its way out.
func (d *Files) Open(name string) (*File, error) {
	// Counted before it is opened, so that Discard knows of it in time.
	if !d.begin(name) {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.dir, name), Err: fs.ErrNotExist}
	}
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		d.end(name)
		return nil, err
	}
	return &File{File: f, ended: func() { d.end(name) }}, nil
}

// begin counts a reader, unless the file is being taken away.
func (d *Files) begin(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.going[name] {
		return false
	}
	d.readers[name]++
	return true
}

func (d *Files) end(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.readers[name]--; d.readers[name] > 0 {
		return
	}
	delete(d.readers, name)
	if d.wanted[name] {
		delete(d.wanted, name)
		d.wake()
	}
}

// More tells that there is something to do: a file was discarded, or one that was
// read when it should have been is not any more.
func (d *Files) More() <-chan struct{} { return d.more }

func (d *Files) wake() {
	select {
	case d.more <- struct{}{}:
	default:
	}
}

// Discard takes the name of a file away; Free frees it. While somebody reads the
// file it does nothing, and More tells when to call it again. It takes no longer than
// a rename does. It is no error if there is no such file.
func (d *Files) Discard(name string) error {
	gone, ok := d.claim(name)
	if !ok {
		return nil
	}
	err := os.Rename(filepath.Join(d.dir, name), filepath.Join(d.dir, gone))
	d.mu.Lock()
	delete(d.going, name) // another file may get it
	d.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		d.wake()
	}
	return err
}

// claim keeps new readers from a file, unless there are some, and returns the name
// under which it is to go.
func (d *Files) claim(name string) (gone string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.readers[name] > 0 {
		d.wanted[name] = true
		return "", false
	}
	d.going[name] = true
	d.numbers++
	return fmt.Sprint(name, goneMark, d.numbers), true
}

// Free frees what was discarded, except for what another call of it is freeing. It
// stops between two steps when ctx has ended.
func (d *Files) Free(ctx context.Context) error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	synced := false
	for _, e := range entries {
		if !IsGone(e.Name()) {
			continue
		}
		if !synced {
			if err := durable.SyncDir(d.dir); err != nil {
				return err
			}
			synced = true
		}
		if err := d.free(ctx, e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *Files) free(ctx context.Context, gone string) error {
	d.mu.Lock()
	busy := d.freeing[gone]
	d.freeing[gone] = true
	d.mu.Unlock()
	if busy {
		return nil
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.freeing, gone)
	}()
	return durable.Free(ctx, filepath.Join(d.dir, gone))
}
