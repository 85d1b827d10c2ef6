package peerport

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"raftkv/internal/durable"
	"raftkv/internal/refusal"
	"raftkv/internal/transport"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Snapshots that come in: one at a time, and no more of it than the disk has
// room for. Which one is decided by the message before the file: it comes from
// a member, in a term that is at least this node's. A newer one takes the place
// of the one that is coming in: its sender knows that the other has failed, or
// leads in a later term.

const (
	// maxSnapshotMessage bounds the message before the file: indexes, terms and
	// the IDs of the members.
	maxSnapshotMessage = 64 << 10
	// roomEvery is after how many bytes the room on the disk is looked at.
	roomEvery = 4 << 20
	// takeOverLimit is how long a newer snapshot waits for the end of an older.
	takeOverLimit = 5 * time.Second
)

var (
	errSuperseded     = errors.New("another snapshot has taken its place")
	errNoSnapshotRoom = errors.New("the disk has no room for a snapshot")
)

// freeSpace returns how many bytes this process may still write to the file
// system of a directory; any number where that cannot be told.
func freeSpace(dir string) (uint64, error) {
	d, err := durable.DiskOf(dir)
	if errors.Is(err, errors.ErrUnsupported) {
		return math.MaxUint64, nil
	}
	return uint64(d.Free), err
}

// uploads is the place of the one snapshot that may come in.
type uploads struct {
	freeSpace func(dir string) (uint64, error) // in bytes

	mu      sync.Mutex // guards Current
	current *upload    // nil: none comes in
}

// upload is a snapshot that comes in.
type upload struct {
	io.ReadCloser
	from, term uint64 // the node that sends it, and its term; 0: not read yet
	conn       *http.ResponseController
	guard      *Guard
	freeSpace  func(dir string) (uint64, error)
	cut        atomic.Bool
	unchecked  int           // bytes since the room was looked at
	done       chan struct{} // closed at its end
}

// begin gives u the place, or says why not.
func (s *uploads) begin(u *upload) *refusal.Refusal {
	limit := time.After(takeOverLimit)
	for {
		cur, why := s.tryBegin(u)
		if cur == nil || why != nil {
			return why
		}
		select {
		case <-cur.done:
		case <-limit:
			return &refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.NotHostile, Reason: "the snapshot before it is being taken in"}
		}
	}
}

// tryBegin returns the upload that has the place, after it has been broken off.
func (s *uploads) tryBegin(u *upload) (cur *upload, why *refusal.Refusal) {
	s.mu.Lock() // while it is held, that one does not end
	defer s.mu.Unlock()
	cur = s.current
	switch {
	case cur == nil:
		s.current = u
	case u.term < cur.term, u.term == cur.term && u.from != cur.from:
		return cur, &refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.RefusedBusy, Reason: fmt.Sprintf("a snapshot of node %d is coming in", cur.from)}
	default:
		cur.breakOff()
	}
	return cur, nil
}

func (s *uploads) end(u *upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = nil
	close(u.done)
}

// breakOff has the upload end at its next read, or at the one that waits.
func (u *upload) breakOff() {
	u.cut.Store(true)
	_ = u.conn.SetReadDeadline(time.Unix(1, 0)) // the flag is enough, if a little later
}

// Read is the innermost reader of the body, below the one that sets deadlines:
// so a deadline that comes after the break is followed by a look at the flag.
func (u *upload) Read(p []byte) (int, error) {
	if u.cut.Load() {
		return 0, errSuperseded
	}
	if term, _ := u.guard.Admission.OwnTerm(); u.term != 0 && term > u.term {
		return 0, fmt.Errorf("%w: term %d has begun", errSuperseded, term)
	}
	if u.term != 0 && u.unchecked <= 0 {
		if err := u.checkRoom(); err != nil {
			return 0, err
		}
		u.unchecked = roomEvery
	}
	n, err := u.ReadCloser.Read(p[:min(len(p), roomEvery)])
	u.unchecked -= n
	return n, err
}

// checkRoom reports whether the next bytes leave enough of the disk.
func (u *upload) checkRoom() error {
	free, err := u.freeSpace(u.guard.Dir)
	if err != nil {
		return err
	}
	if free < uint64(u.guard.KeepFree())+2*roomEvery {
		u.guard.Refusals.Note(u.from, refusal.Refusal{Status: http.StatusInsufficientStorage, Kind: refusal.RefusedRoom, Reason: errNoSnapshotRoom.Error()})
		err := fmt.Errorf("%w: %d bytes are left", errNoSnapshotRoom, free)
		u.guard.NotStored(err)
		return err
	}
	return nil
}

// serveSnapshot takes a snapshot.
func (g *Guard) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	from, ok := g.letIn(w, r)
	if !ok {
		return
	}
	if r.Method != http.MethodPost {
		g.rafthttp.ServeHTTP(w, r)
		return
	}
	u := &upload{
		ReadCloser: r.Body, from: from, conn: http.NewResponseController(w), guard: g,
		freeSpace: g.uploads.freeSpace, done: make(chan struct{}),
	}
	r.Body = u
	transport.LimitStalls(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := g.takeSnapshot(w, r, u); why != nil {
			g.refuse(w, r, from, *why)
		}
	})).ServeHTTP(w, r)
}

// takeSnapshot reads the message before the file, and passes both on if it is
// to be taken.
func (g *Guard) takeSnapshot(w http.ResponseWriter, r *http.Request, u *upload) *refusal.Refusal {
	if !g.small.TryAcquire(1) {
		return &refusal.Refusal{Status: http.StatusServiceUnavailable, Kind: refusal.RefusedBusy, Reason: "too many messages are coming in"}
	}
	m, head, why := readSnapshotMessage(r.Body)
	g.small.Release(1)
	if why != nil {
		return why
	}
	if err := cmp.Or(transport.CheckSender(m, u.from), g.Admission.Admit(m)); err != nil {
		return refusal.As(err)
	}
	u.term = m.GetTerm()
	if err := u.checkRoom(); err != nil {
		return &refusal.Refusal{Status: http.StatusInsufficientStorage, Kind: refusal.NotHostile, Reason: err.Error()} // it is counted already
	}
	if why := g.uploads.begin(u); why != nil {
		return why
	}
	defer g.uploads.end(u)
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	g.rafthttp.ServeHTTP(w, r)
	return nil
}

// readSnapshotMessage reads the message that goes before a file. It returns it
// as it came, too.
func readSnapshotMessage(r io.Reader) (m *raftpb.Message, head []byte, why *refusal.Refusal) {
	head = make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.NotHostile, Reason: "the snapshot broke off: " + err.Error()}
	}
	size := binary.BigEndian.Uint64(head)
	if size > maxSnapshotMessage {
		return nil, nil, &refusal.Refusal{Status: http.StatusRequestEntityTooLarge, Kind: refusal.RefusedSize,
			Reason: fmt.Sprintf("a snapshot message of %d bytes, where %d are allowed", size, maxSnapshotMessage)}
	}
	head = append(head, make([]byte, size)...)
	if _, err := io.ReadFull(r, head[8:]); err != nil {
		return nil, nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.NotHostile, Reason: "the snapshot broke off: " + err.Error()}
	}
	if _, why := countEntries(head[8:], fieldSnapshot); why != nil {
		return nil, nil, why
	}
	m = new(raftpb.Message)
	if err := proto.Unmarshal(head[8:], m); err != nil {
		return nil, nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: "no message: " + err.Error()}
	}
	if m.GetType() != raftpb.MsgSnap {
		return nil, nil, &refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedMalformed, Reason: fmt.Sprintf("a %s message came as a snapshot", m.GetType())}
	}
	return m, head, nil
}
