package main

import (
	"fmt"
	"io"
	"raftkv/internal/durable"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// What a node does that cannot write a snapshot: it says so, keeps its log, and
// tries again. A snapshot only makes the log shorter. The same holds for a
// snapshot that it is sent, and that it cannot store.

const (
	firstRest = time.Second // before a snapshot that failed is tried again
	mostRest  = time.Minute
	// roomChecked is how many bytes of a snapshot are written between two looks
	// at how much room the disk has left.
	roomChecked = 1 << 20
)

// rests are the pauses between tries: each twice as long as the one before.
type rests struct{ first, most, last time.Duration }

func (r *rests) next() time.Duration {
	r.last = min(max(2*r.last, r.first), r.most)
	return r.last
}

// snapshotTrouble is what became of this node's last snapshot.
type snapshotTrouble struct {
	log    *zap.Logger
	disk   func(dir string) (durable.Disk, error)
	keep   atomic.Int64  // bytes of the disk that a snapshot must leave free
	count  atomic.Uint64 // of those that failed, received ones too
	lost   atomic.Uint64 // of received ones alone
	mu     sync.Mutex
	err    error // nil: it succeeded
	pauses rests
}

// failed notes that a snapshot failed, and returns how long to rest.
func (t *snapshotTrouble) failed(err error, index uint64) time.Duration {
	t.count.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	t.pauses.first, t.pauses.most = firstRest, mostRest
	rest := t.pauses.next()
	t.log.Warn("cannot write a snapshot; the log is kept, and it will be tried again",
		zap.Uint64("index", index), zap.Duration("in", rest), zap.Error(err))
	return rest
}

func (t *snapshotTrouble) succeeded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.pauses.last = nil, 0
}

// present returns why the last snapshot failed, nil if it did not.
func (t *snapshotTrouble) present() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// errKeepFree: a snapshot would take room that the log may need.
var errKeepFree = fmt.Errorf("the disk has no room for a snapshot beside what is kept free for the log")

// check says whether size more bytes leave enough of the disk free. A disk that
// cannot be measured will say so itself.
func (t *snapshotTrouble) check(dir string, size uint64) error {
	d, err := t.disk(dir)
	keep := t.keep.Load()
	if err != nil || keep == 0 || d.Free-keep >= int64(size) {
		return nil
	}
	return fmt.Errorf("%w: it takes at least %d bytes, %d are free", errKeepFree, size, d.Free)
}

// bounded returns a writer that fails before too little of the disk is left.
func (t *snapshotTrouble) bounded(dir string, w io.Writer) io.Writer {
	return &boundedWriter{t: t, dir: dir, w: w}
}

type boundedWriter struct {
	t       *snapshotTrouble
	dir     string
	w       io.Writer
	checked int // bytes until the next check
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.checked -= len(p); b.checked <= 0 {
		if err := b.t.check(b.dir, uint64(len(p))); err != nil {
			return 0, err
		}
		b.checked = roomChecked
	}
	return b.w.Write(p)
}

// notStored notes that a snapshot which came in was refused. Its sender tries
// again, after a rest of its own.
func (t *snapshotTrouble) notStored(err error) {
	t.count.Add(1)
	t.lost.Add(1)
	t.log.Warn("cannot store a snapshot that another node sends; it will try again", zap.Error(err))
}

// redoSnapshot has the apply loop take a snapshot in place of one that failed.
func (kv *kvstore) redoSnapshot() {
	kv.redo.Store(true)
	kv.askForSnapshot(0)
}
