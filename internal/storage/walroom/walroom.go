// Package walroom answers: is there always room on the disk for what is written to
// the log? It reserves blocks before they are needed, and holds back the next segment
// of etcd's WAL until it can be made, so that a full disk makes the log wait instead
// of ending the node.
package walroom

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/walfile"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Room sees to it that the disk has room for what is written to the log,
// before it is written: a write that failed would end the node.
//
// The WAL makes the next segment while this one is in use, in a goroutine of its
// own, and when that fails once, the log ends with the segment in use, however
// much room there is by then. But it waits for the lock of the file (0.tmp and
// 1.tmp in turn) in which it makes it. So the next file is locked here, until its
// blocks are reserved; then the lock is let go, and the WAL cannot fail. Before
// it is, the file after that is locked.
//
// The last save into a segment may reach beyond its size. For that, blocks behind
// its end are reserved too; cutting the segment frees what was not needed.
//
// It belongs to the persist loop, except for Left, Reach and Waiting.
type Room struct {
	log  *zap.Logger
	dir  string
	size int64 // of a segment
	disk func(dir string) (durable.Disk, error)

	held  *fileutil.LockedFile // the file that the WAL may not make yet
	turn  int                  // its number
	Ready string               // the path of the next segment, once it is made; empty: not yet
	spare int64                // the blocks of that, in bytes

	tail    string // the segment in use
	At      int64  // where the log ends in it, or a little less
	backed  int64  // up to where it has blocks
	unsure  bool   // the file system does not reserve blocks
	said    time.Time
	lacking bool        // something could not be reserved
	Waiting atomic.Bool // the persist loop waits for room

	Left  atomic.Int64 // what can be written to the log although the disk is full
	wants atomic.Int64 // the blocks that the segment in use has not got yet
}

const (
	// LogSlack is reserved behind a segment's end, for the save that ends it.
	LogSlack = 4 << 20
	// recordMargin is kept at the end of a segment that is not followed by
	// another, for the records of terms, votes and snapshots.
	recordMargin = 64 << 10
	// headBound is more than what the WAL writes at the head of a segment.
	headBound = 64 << 10
	// diskCrumbs is what a file system may need beside what is asked of it.
	diskCrumbs = 64 << 10
	// StateRecord and SnapRecord are more than these records take in the log.
	StateRecord = 64
	SnapRecord  = 4 << 10

	noRoomSaid = time.Minute // between two lines about it in the log
)

// ErrNoRoom: the disk has no room for what the log has to take. Nothing was
// written.
var ErrNoRoom = errors.New("there is no space left on the disk for the log")

// New takes hold of the WAL's next segments. It is called before the WAL
// is opened, when there are no files of theirs.
func New(log *zap.Logger, dir string, size int64, measure func(string) (durable.Disk, error)) (*Room, error) {
	g := &Room{log: log, dir: dir, size: size, disk: measure}
	var err error
	if g.held, err = g.lock(0); err != nil {
		return nil, err
	}
	g.pass()
	return g, nil
}

// Begin says where the log ends.
func (g *Room) Begin(end walfile.Tail) {
	g.tail, g.At = end.File, end.End
	g.back(g.size + LogSlack)
	g.publish()
}

// InUse is the segment in use, and about where the log ends in it.
func (g *Room) InUse() (path string, end int64) { return g.tail, g.At }

func (g *Room) lock(turn int) (*fileutil.LockedFile, error) {
	path := filepath.Join(g.dir, fmt.Sprintf("%d.tmp", turn%2))
	f, err := fileutil.TryLockFile(path, os.O_WRONLY|os.O_CREATE, fileutil.PrivateFileMode)
	if err != nil {
		return nil, fmt.Errorf("the log's next segment: %w", err)
	}
	return f, nil
}

// fits reports whether so much can be reserved. A disk that cannot be measured
// has to say so itself.
func (g *Room) fits(n int64) bool {
	d, err := g.disk(g.dir)
	return err != nil || d.Free >= n+diskCrumbs
}

// pass reserves the blocks of the next segment and lets the WAL have it.
func (g *Room) pass() {
	if g.Ready != "" || g.held == nil {
		return
	}
	err := ErrNoRoom
	if g.fits(g.size) {
		if err = fileutil.Preallocate(g.held.File, g.size, true); err != nil {
			// What it got is better kept for the segment in use.
			err = errors.Join(err, g.held.Truncate(0))
		}
	}
	var after *fileutil.LockedFile
	if err == nil {
		after, err = g.lock(g.turn + 1)
	}
	if err != nil {
		g.lack("the next segment", err)
		return
	}
	if g.spare, err = durable.Allocated(g.held.File); err != nil {
		g.spare = 0
	}
	g.spare = min(g.spare, g.size)
	g.Ready = g.held.Name()
	if err := g.held.Close(); err != nil {
		g.log.Warn("the log's next segment", zap.Error(err)) // the lock is gone all the same
	}
	g.held, g.turn = after, g.turn+1
}

// back reserves blocks of the segment in use up to an offset.
func (g *Room) back(to int64) bool {
	if g.backed >= to {
		return true
	}
	if g.unsure {
		return g.fits(max(0, to-g.At))
	}
	f, err := os.OpenFile(g.tail, os.O_WRONLY, 0)
	if err != nil {
		g.lack("the segment in use", err)
		return false
	}
	defer func() { _ = f.Close() }() // nothing was written
	has, err := durable.Allocated(f)
	if err == nil && has < to {
		err = ErrNoRoom
		if g.fits(to - has) {
			err = durable.AllocateBeyond(f, 0, to)
		}
		if err == nil {
			has, err = durable.Allocated(f)
		}
	}
	switch {
	case errors.Is(err, errors.ErrUnsupported), err == nil && has < to:
		g.unsure, g.backed = true, 0
		return g.fits(max(0, to-g.At))
	case err != nil:
		g.backed = min(has, to)
		g.lack("the end of the segment in use", err)
		return false
	}
	g.backed = to
	return true
}

func (g *Room) lack(what string, err error) {
	g.lacking = true
	if now := time.Now(); now.Sub(g.said) >= noRoomSaid {
		g.said = now
		g.log.Warn("cannot reserve disk space for the log; trying again", zap.String("for", what), zap.Error(err))
	}
}

// Admits reports whether there is room for a save of that size. Entries leave
// some for the records without which the node could not go on.
func (g *Room) Admits(size int64, entries bool) bool {
	if !g.back(min(g.At+size+LogSlack, g.size+LogSlack)) && !g.back(g.At+size) {
		return false
	}
	limit := g.size
	if entries {
		limit -= recordMargin
	}
	if g.At+size >= limit {
		g.pass()
	}
	return g.At+size < limit || g.Ready != ""
}

// Saved notes that so much was written.
func (g *Room) Saved(size int64) {
	g.At += size
	if g.At >= g.size && g.Ready != "" {
		if _, err := os.Lstat(g.Ready); errors.Is(err, fs.ErrNotExist) {
			g.cut()
		}
	}
	g.publish()
}

// cut notes that the WAL has begun another segment.
func (g *Room) cut() {
	last, err := walfile.LastSegment(g.dir)
	if err != nil {
		g.log.Warn("the log's segment in use", zap.Error(err))
	}
	g.tail, g.At, g.backed = last.Path, headBound, g.spare
	g.Ready, g.spare = "", 0
	g.pass()
	g.back(g.size + LogSlack)
}

// Tend reserves what is not reserved yet. It is called again and again.
func (g *Room) Tend() {
	if g.Ready != "" && (g.unsure || g.backed >= g.size+LogSlack) {
		return
	}
	g.lacking = false
	g.pass()
	g.back(g.size + LogSlack)
	if !g.lacking {
		g.said = time.Time{}
	}
	g.publish()
}

func (g *Room) publish() {
	end, backed := g.size, max(g.backed, g.At)
	if g.Ready == "" {
		end -= recordMargin // nothing follows this segment
	}
	g.wants.Store(max(0, end-backed))
	g.Left.Store(max(0, min(end, backed)-g.At) + g.spare)
}

// Reach is what can be written to the log, in bytes, while so much is free on the
// disk: what is reserved, and what can be. Only what holds a whole segment can become
// the next one; the rest is of no use to the log.
func (g *Room) Reach(free int64) int64 {
	wants := min(g.wants.Load(), free)
	reach := g.Left.Load() + wants
	if free-wants >= g.size {
		reach += free - wants
	}
	return reach
}

// Close closes the WAL by closeWAL, and removes its next segment. The WAL waits
// until its goroutine has had that file, so it is let go first; and the goroutine
// may come to it only then, and leaves it behind when the disk is full, so it is
// removed last.
func (g *Room) Close(closeWAL func() error) error {
	held := g.held
	if held == nil {
		return closeWAL()
	}
	g.held = nil
	uerr := held.Close()
	err := closeWAL()
	rerr := os.Remove(held.Name())
	if errors.Is(rerr, fs.ErrNotExist) {
		rerr = nil // the WAL has removed it
	}
	if warn := errors.Join(uerr, rerr); warn != nil {
		g.log.Warn("the log's next segment", zap.Error(warn)) // the next start removes it
	}
	return err
}

// SizeInLog is what a save takes in the log, or a few bytes more.
func SizeInLog(hard *raftpb.HardState, entries []*raftpb.Entry) int64 {
	size := int64(0)
	if !raft.IsEmptyHardState(hard) {
		size = StateRecord
	}
	for _, e := range entries {
		d := int64(len(e.GetData()))
		n := 2 + 1 + VarintSize(e.GetTerm()) + 1 + VarintSize(e.GetIndex()) + 1 + VarintSize(uint64(d)) + d
		n += 2 + 6 + 1 + VarintSize(uint64(n)) // the record's type, checksum, tag and length
		size += 8 + (n+7)/8*8
	}
	return size
}

// VarintSize is how many bytes a varint of v takes: 1 to 10.
func VarintSize(v uint64) int64 { return int64(bits.Len64(v|1)+6) / 7 }

// SizeOf is what storage messages take in the log, and whether there are entries
// in them.
func SizeOf(msgs []*raftpb.Message) (size int64, entries bool) {
	for _, m := range msgs {
		size += SizeInLog(nil, m.GetEntries()) + StateRecord
		entries = entries || len(m.GetEntries()) > 0
		if !raft.IsEmptySnap(m.GetSnapshot()) {
			size += SnapRecord
		}
	}
	return size, entries
}
