package snapshots

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
	MostRest  = time.Minute // the longest such rest
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

// Trouble is what became of this node's last snapshot.
type Trouble struct {
	Log    *zap.Logger
	Disk   func(dir string) (durable.Disk, error)
	Keep   atomic.Int64  // bytes of the disk that a snapshot must leave free
	Count  atomic.Uint64 // of those that failed, received ones too
	Lost   atomic.Uint64 // of received ones alone
	mu     sync.Mutex
	err    error // nil: it succeeded
	pauses rests
}

// Failed notes that a snapshot failed, and returns how long to rest.
func (t *Trouble) Failed(err error, index uint64) time.Duration {
	t.Count.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	t.pauses.first, t.pauses.most = firstRest, MostRest
	rest := t.pauses.next()
	t.Log.Warn("cannot write a snapshot; the log is kept, and it will be tried again",
		zap.Uint64("index", index), zap.Duration("in", rest), zap.Error(err))
	return rest
}

// Succeeded notes that a snapshot succeeded: there is no trouble any more, and the rest
// after the next failure is the shortest again.
func (t *Trouble) Succeeded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.pauses.last = nil, 0
}

// Present returns why the last snapshot failed, nil if it did not.
func (t *Trouble) Present() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// ErrKeepFree: a snapshot would take room that the log may need.
var ErrKeepFree = fmt.Errorf("the disk has no room for a snapshot beside what is kept free for the log")

// Check says whether size more bytes leave enough of the disk free. A disk that
// cannot be measured will say so itself.
func (t *Trouble) Check(dir string, size uint64) error {
	d, err := t.Disk(dir)
	keep := t.Keep.Load()
	if err != nil || keep == 0 || d.Free-keep >= int64(size) {
		return nil
	}
	return fmt.Errorf("%w: it takes at least %d bytes, %d are free", ErrKeepFree, size, d.Free)
}

// Bounded returns a writer that fails before too little of the disk is left.
func (t *Trouble) Bounded(dir string, w io.Writer) io.Writer {
	return &boundedWriter{t: t, dir: dir, w: w}
}

type boundedWriter struct {
	t       *Trouble
	dir     string
	w       io.Writer
	checked int // bytes until the next check
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.checked -= len(p); b.checked <= 0 {
		if err := b.t.Check(b.dir, uint64(len(p))); err != nil {
			return 0, err
		}
		b.checked = roomChecked
	}
	return b.w.Write(p)
}

// NotStored notes that a snapshot which came in was refused. Its sender tries
// again, after a rest of its own.
func (t *Trouble) NotStored(err error) {
	t.Count.Add(1)
	t.Lost.Add(1)
	t.Log.Warn("cannot store a snapshot that another node sends; it will try again", zap.Error(err))
}
