package logging

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// maxQueue bounds the lines, in bytes, that wait for whoever reads the log, unless another
	// bound is given.
	maxQueue = 1 << 20
	// lineOverhead is what a waiting line takes beside its bytes.
	lineOverhead = 64
	// logFlushLimit is how long an ending process waits for its last lines to be
	// read.
	logFlushLimit = time.Second
)

// Queue stands between the log and whoever reads it: a terminal that is
// stopped, a pipe that is full, a file on a disk that does not answer. A write
// to such a reader does not return, and a node that waited for it would serve
// nobody. So the writes of a Queue never wait: a goroutine of its own carries
// the lines on, a bounded number of them waits, and what comes beyond is dropped
// and counted. So is what the reader does not take, for example because it has
// gone; the queue goes on, since a reader may come back and a disk get room.
//
// Each line is one write, as without the queue.
type Queue struct {
	w         io.Writer
	most      int           // bytes of lines that wait
	kick      chan struct{} // there is a line; buffered, so kicking never blocks
	closing   chan struct{} // closed by Close
	closeOnce sync.Once
	done      chan struct{} // closed when the goroutine has ended
	dropped   atomic.Uint64

	onLost atomic.Pointer[func(lost, all uint64)]

	mu     sync.Mutex
	lines  [][]byte
	queued int  // what the lines take, the one being written too
	closed bool // the goroutine has ended or is about to
}

// NewQueue starts a queue in front of w.
func NewQueue(w io.Writer) *Queue { return NewQueueOf(w, maxQueue) }

// NewQueueOf is NewQueue, with another bound of the bytes that wait.
func NewQueueOf(w io.Writer, most int) *Queue {
	q := &Queue{w: w, most: most, kick: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	go q.run()
	return q
}

// Write takes in a line. It never waits and never fails: a log that is lost is
// no reason to do anything else differently.
func (q *Queue) Write(line []byte) (int, error) {
	q.put(line, q.most)
	return len(line), nil
}

// Sync implements zapcore.WriteSyncer. It does not wait, Close does.
func (q *Queue) Sync() error { return nil }

// Last takes in a line for which there is always room: the one that says why the
// process ends.
func (q *Queue) Last(line []byte) { q.put(line, q.most+len(line)+lineOverhead) }

func (q *Queue) put(line []byte, limit int) {
	size := len(line) + lineOverhead
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.queued+size > limit {
		q.dropped.Add(1)
		return
	}
	q.lines = append(q.lines, append([]byte(nil), line...)) // the caller uses its own again
	q.queued += size
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were lost.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

// ReportLost has log, which writes to the queue, say that lines were lost. It is
// an error, since a log that shows only errors has lost some.
func (q *Queue) ReportLost(log *zap.Logger) {
	q.OnLost(func(lost, all uint64) {
		log.Error("lines of this log were lost: they were not read in time, or could not be written",
			zap.Uint64("lines", lost), zap.Uint64("total", all))
	})
}

// OnLost has f called when a line got through after others had been lost, with their number
// and that of all so far. It may write to the queue.
func (q *Queue) OnLost(f func(lost, all uint64)) { q.onLost.Store(&f) }

// Close waits, up to a limit, until the lines that are queued are written. Lines
// that come later are dropped.
func (q *Queue) Close() error {
	q.closeOnce.Do(func() { close(q.closing) })
	limit := time.NewTimer(logFlushLimit)
	defer limit.Stop()
	select {
	case <-q.done:
	case <-limit.C:
	}
	return nil
}

// run carries lines on until the queue is to close and is empty.
func (q *Queue) run() {
	defer close(q.done)
	var said uint64 // of the lost lines
	for {
		line := q.next()
		if line == nil {
			return
		}
		n, err := q.w.Write(line)
		left := q.written(line)
		if err != nil || n < len(line) {
			q.dropped.Add(1)
			continue
		}
		// Only now that somebody reads it can it be said, and not before there
		// is room, or a slow reader would get little else.
		if all := q.dropped.Load(); all > said && left <= q.most/2 {
			if f := q.onLost.Load(); f != nil {
				(*f)(all-said, all)
			}
			said = all
		}
	}
}

// next waits for a line and takes it. It returns nil when there is none and the
// Queue is to close.
func (q *Queue) next() []byte {
	for {
		q.mu.Lock()
		if len(q.lines) > 0 {
			line := q.lines[0]
			q.lines[0] = nil
			q.lines = q.lines[1:]
			q.mu.Unlock()
			return line
		}
		q.lines = nil // its array has grown with the queue
		select {
		case <-q.closing:
			q.closed = true
			q.mu.Unlock()
			return nil
		default:
		}
		q.mu.Unlock()
		select {
		case <-q.kick:
		case <-q.closing:
		}
	}
}

// written gives back the room of a line, and returns what the others take.
func (q *Queue) written(line []byte) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queued -= len(line) + lineOverhead
	return q.queued
}
