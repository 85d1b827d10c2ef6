package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/storage"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// How a snapshot travels from node to node: as a file. raft's message names it
// and says who the members were; the state follows it on rafthttp's snapshot
// route, from the sender's file to one of the receiver's, and is whole in the
// memory of neither. Only when the receiver has the file, and has verified it,
// does its raft get the message.

const (
	// StallLimit is how long a transfer may stand still before it is given
	// up. TCP alone would wait a quarter of an hour for a peer that is gone.
	StallLimit = 30 * time.Second
	// adoptLimit is how long the receiver may take, once it has every byte,
	// to sync and verify them.
	adoptLimit = 5 * time.Minute
)

// CourierConfig is what a Courier needs of others.
type CourierConfig struct {
	Log             *zap.Logger
	Storage         *storage.Storage
	Tick            time.Duration
	ElectionTimeout time.Duration
	Life            context.Context // ends when the node stops
	Group           *errgroup.Group // of the goroutines that send
	// MayGet returns why a node gets no snapshot now; nil: it may.
	MayGet  func(to uint64) error
	Members snapshotMembers
	// Send passes a message with its file to the transport.
	Send func(m *snap.Message)
	// Receives notes that a snapshot is on its way to a node, until done is called.
	Receives func(to uint64) (done func())
	// Later runs a function on the raft loop. It does not wait.
	Later func(f func(*raft.RawNode))
}

// Courier sends snapshots to followers.
type Courier struct {
	CourierConfig

	// Of the raft loop alone:
	sending map[uint64]bool   // nodes that a snapshot is on its way to
	resend  map[uint64]resend // when each may get the next
}

// NewCourier returns a courier that has nothing to carry yet.
func NewCourier(c CourierConfig) *Courier {
	return &Courier{CourierConfig: c, sending: make(map[uint64]bool), resend: make(map[uint64]resend)}
}

// snapshotMembers is what the courier needs of the state.
type snapshotMembers interface {
	Membership() (m membership.Membership, index uint64)
	// AskForSnapshot has a snapshot of an index, or a later one, taken soon.
	AskForSnapshot(index uint64)
}

// Deliver sends a follower the state file that belongs to a snapshot message,
// and reports to raft what became of it: until then raft sends that follower
// nothing else. It is called on the raft loop.
func (c *Courier) Deliver(rn *raft.RawNode, m *raftpb.Message) {
	to := m.GetTo()
	if c.sending[to] {
		// One at a time for each receiver. raft asks again when it has heard
		// that this one failed.
		c.report(to, raft.SnapshotFailure)
		return
	}
	c.sending[to] = true
	rest := c.restBefore(rn, to)
	c.Group.Go(func() error {
		err := c.rest(rest)
		began := time.Now()
		if err == nil {
			err = c.transfer(m)
		}
		status := raft.SnapshotFinish
		if err != nil {
			status = raft.SnapshotFailure
			c.Storage.Snapshots.Unsent.Add(1)
			c.Log.Warn("snapshot not sent", zap.Uint64("to", to), zap.Error(err))
		}
		took := time.Since(began)
		c.Later(func(*raft.RawNode) { c.sent(to, took, err) })
		c.report(to, status)
		return nil
	})
}

// Forget drops what is known of a former member.
func (c *Courier) Forget(id uint64) { delete(c.resend, id) }

// resend says of the latest snapshot to a node when the next may go.
type resend struct {
	match  uint64 // of the node then
	rest   time.Duration
	failed bool // it broke off, or was refused
	took   time.Duration
}

// maxRest is the longest rest between two snapshots to a node that is no further
// for them. Between two that fail, as when the receiver's disk is full, it is the
// election timeout, or resendShare times as long as the sending took.
const (
	maxRest     = 30 * time.Second
	resendShare = 8
)

// restBefore returns how long to wait before a node gets a snapshot. One that is
// no further than when it got the one before has no use for it, and raft would
// send the next at once.
func (c *Courier) restBefore(rn *raft.RawNode, to uint64) time.Duration {
	var match uint64
	rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == to {
			match = pr.Match
		}
	})
	last, sent := c.resend[to]
	next := resend{match: match}
	if sent && match <= last.match {
		next.rest = min(max(c.Tick, 2*last.rest), maxRest)
		if last.failed {
			next.rest = min(next.rest, max(c.ElectionTimeout, resendShare*last.took))
		}
	}
	c.resend[to] = next
	return next.rest
}

// sent notes on the raft loop what became of a snapshot.
func (c *Courier) sent(to uint64, took time.Duration, err error) {
	delete(c.sending, to)
	if last, ok := c.resend[to]; ok {
		last.failed, last.took = err != nil, took
		c.resend[to] = last
	}
}

func (c *Courier) rest(d time.Duration) error {
	if d == 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-c.Life.Done():
		return problem.ErrStopping
	}
}

// report tells raft what became of a snapshot. It does not wait.
func (c *Courier) report(to uint64, status raft.SnapshotStatus) {
	c.Later(func(rn *raft.RawNode) { rn.ReportSnapshot(to, status) })
}

// ErrNotSent: a transfer broke off; raft will ask for another.
var ErrNotSent = errors.New("the transfer broke off")

// errDeposed: while a snapshot waited another node came to lead, and the newest one here
// has entries of that leader's. In a message of the earlier term its receiver would take
// it for forged. Raft has no use for it either: the new leader sends its own.
var errDeposed = errors.New("another node has come to lead meanwhile")

// transfer returns nil once the receiver's raft has the snapshot.
func (c *Courier) transfer(m *raftpb.Message) error {
	to := m.GetTo()
	if err := c.MayGet(to); err != nil {
		return err
	}
	meta, err := c.SnapshotWith(to)
	if err != nil {
		return err
	}
	m.Snapshot = meta
	term, index := meta.GetMetadata().GetTerm(), meta.GetMetadata().GetIndex()
	if term > m.GetTerm() {
		return errDeposed
	}
	f, err := c.Storage.OpenState(term, index)
	if err != nil {
		return err // a newer snapshot has taken its place
	}
	body := &snapshotBody{file: f}
	body.moved.Store(time.Now().UnixNano())
	defer func() { _ = body.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		return err
	}
	msg := snap.NewMessage(m, body, info.Size())
	defer c.Receives(to)() // until it has ended, or was given up
	c.Send(msg)
	watch := time.NewTicker(StallLimit / 10)
	defer watch.Stop()
	for {
		select {
		case ok := <-msg.CloseNotify():
			if !ok {
				return ErrNotSent
			}
			c.Storage.Snapshots.Sent.Add(1)
			c.Log.Info("snapshot sent", logging.News, zap.Uint64("to", to), zap.Uint64("index", index), zap.Int64("bytes", info.Size()))
			return nil
		case <-watch.C:
			if body.stalled(time.Now()) {
				return fmt.Errorf("%w: the receiver takes nothing", ErrNotSent)
			}
		case <-c.Life.Done():
			return problem.ErrStopping
		}
	}
}

// snapshotBody is a state file on its way. Closing it, which may be done more
// than once, breaks the transfer off as soon as rafthttp reads on. Where that
// waits for a peer that takes nothing, a goroutine of its own stays until the
// kernel gives that peer up.
type snapshotBody struct {
	file  io.ReadCloser
	moved atomic.Int64 // when bytes last moved, in Unix nanoseconds
	ended atomic.Bool  // every byte has been read
	once  sync.Once
	err   error
}

func (b *snapshotBody) Read(p []byte) (int, error) {
	n, err := b.file.Read(p)
	b.moved.Store(time.Now().UnixNano())
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err
}

func (b *snapshotBody) Close() error {
	b.once.Do(func() { b.err = b.file.Close() })
	return b.err
}

func (b *snapshotBody) stalled(now time.Time) bool {
	limit := StallLimit
	if b.ended.Load() {
		limit = adoptLimit
	}
	return now.Sub(time.Unix(0, b.moved.Load())) > limit
}

// SnapshotWith returns the newest snapshot in whose membership a node is. A
// node refuses a snapshot that does not know it; so for one that was added
// since the newest snapshot, another is taken.
func (c *Courier) SnapshotWith(id uint64) (*raftpb.Snapshot, error) {
	again := time.NewTicker(c.Tick) // the snapshot writer may be busy when it is asked
	defer again.Stop()
	var needed uint64 // an index at which the node is a member
	for {
		newest := c.Storage.Newest.Load()
		cs := newest.GetMetadata().GetConfState()
		if slices.Contains(cs.GetVoters(), id) || slices.Contains(cs.GetLearners(), id) {
			return newest, nil
		}
		newer := c.Storage.Recorded.Channel(newest.GetMetadata().GetIndex() + 1)
		for waiting := true; waiting; {
			m, index := c.Members.Membership()
			if m.Members[id].ID == 0 {
				return nil, problem.ErrMemberUnknown
			}
			if needed == 0 {
				needed = index
			}
			c.Storage.Tail.Awaited.Store(true) // again and again, too: see storage.WriteSnapshots
			c.Members.AskForSnapshot(needed)
			select {
			case <-newer:
				waiting = false
			case <-again.C:
			case <-c.Life.Done():
				return nil, problem.ErrStopping
			}
		}
	}
}

// LimitStalls gives a request as long as its body keeps moving. A sender that
// is gone without a word would else hold its connection, and a half-written
// file, for as long as the kernel believes in it.
func LimitStalls(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &rollingBody{r.Body, http.NewResponseController(w)}
		h.ServeHTTP(w, r)
	})
}

type rollingBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (b *rollingBody) Read(p []byte) (int, error) {
	if err := b.conn.SetReadDeadline(time.Now().Add(StallLimit)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	// What follows, verifying the file, takes as long as it takes.
	if derr := b.conn.SetReadDeadline(time.Time{}); derr != nil {
		return n, derr
	}
	return n, err
}
