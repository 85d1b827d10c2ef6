package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/storage/walroom"
	"raftkv/internal/testkit"
	"runtime"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// tightDisk is a node's storage on a file system of its own. free makes it so
// large that so many bytes are free.
func tightDisk(t *testing.T) (o *Opened, dir string, free func(n int64)) {
	t.Helper()
	testkit.NeedRoot(t)
	dir = t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		testkit.CannotRun(t, "no tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	testkit.Must(t, os.CopyFS(dir, os.DirFS(newDisk(t))))
	free = func(n int64) {
		t.Helper()
		var st syscall.Statfs_t
		testkit.Must(t, syscall.Statfs(dir, &st))
		size := int64(st.Blocks-st.Bfree)*st.Bsize + n
		testkit.Must(t, syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", size)))
	}
	return openDisk(t, dir), dir, free
}

// appendOne appends an entry of some size, if there is room.
func (l *diskLog) appendOne(size int) error {
	next := uint64(len(l.entries)) + 2
	e := testkit.Entries(2, next, next, size)
	msgs := []*raftpb.Message{testkit.AppendMessage(2, 1, 1, e...)}
	n, entries := walroom.SizeOf(msgs)
	if !l.o.Room.Admits(n, entries) {
		return walroom.ErrNoRoom
	}
	if err := l.o.Append(msgs); err != nil {
		return err
	}
	l.entries = append(l.entries, e...)
	return nil
}

// Without this a disk that becomes full ends the log with the segment in use, or
// for good: the WAL that could not make a segment once does not try again.
func TestLogGoesOnOnAFullDisk(t *testing.T) {
	o, dir, free := tightDisk(t)
	l := &diskLog{t: t, o: o}
	free(0)
	left := o.Room.Left.Load()
	if least := wal.SegmentSizeBytes; left < least {
		t.Fatalf("room for %d bytes, want %d", left, least)
	}
	write := func() (n int64) {
		t.Helper()
		for {
			err := l.appendOne(50 << 10)
			if errors.Is(err, walroom.ErrNoRoom) {
				return n
			}
			testkit.Must(t, err)
			n += 50 << 10
		}
	}
	const more = 256 << 10                                        // of one entry, the heads of records and segments, and what is kept for other records
	if n := write(); n < left-more || n > left+walroom.LogSlack { // which a segment that ends gives back
		t.Errorf("%d bytes went into the log, which had room for %d", n, left)
	}
	for _, free := range []int64{0, wal.SegmentSizeBytes - 1} { // too little for a segment is of no use
		if got := o.Room.Reach(free); got > more {
			t.Errorf("with %d bytes free, room for %d in the log, which has taken nothing more", free, got)
		}
	}
	if got := o.Room.Reach(wal.SegmentSizeBytes); got < wal.SegmentSizeBytes {
		t.Errorf("with a segment free, room for %d", got)
	}
	// Terms and votes are still taken, and so is the record of a snapshot.
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 1)}))
	if !o.Room.Admits(walroom.StateRecord+walroom.SnapRecord, false) {
		t.Error("no room for the record of a snapshot")
	}
	for range 3 { // it becomes free and full again
		free(3*wal.SegmentSizeBytes + walroom.LogSlack)
		o.Room.Tend()
		if left := o.Room.Left.Load(); o.Room.Ready == "" || left < wal.SegmentSizeBytes {
			t.Errorf("room for %d bytes with a disk that is free", left)
		}
		if n := write(); n < wal.SegmentSizeBytes {
			t.Errorf("%d bytes went into the log after the disk was free", n)
		}
	}
	testkit.Must(t, o.Close())
	free(0)
	again := openDisk(t, dir) // it starts on a full disk
	wantEntries(t, again, l.entries)
	testkit.Must(t, again.Close())
	wantEntries(t, openDisk(t, testkit.Crashed(t, dir)), l.entries)
}

// Without this a save that reaches beyond its segment fails on a full disk, since
// nothing is reserved there.
func TestLogBeyondItsSegment(t *testing.T) {
	o, _, free := tightDisk(t)
	l := &diskLog{t: t, o: o}
	free(0)
	n := len(testkit.Segments(t, o.Dir))
	for o.Room.At < wal.SegmentSizeBytes-200<<10 {
		testkit.Must(t, l.appendOne(50<<10))
	}
	testkit.Must(t, l.appendOne(1<<20))
	if got := len(testkit.Segments(t, o.Dir)); got != n+1 {
		t.Errorf("%d segments, want %d", got, n+1)
	}
	l.want()
}

// Without this the files that are held back are left behind, or closing waits for
// ever for the WAL, which waits for them.
func TestLogRoomCloses(t *testing.T) {
	o, dir, free := tightDisk(t)
	l := &diskLog{t: t, o: o}
	free(0)
	for l.appendOne(50<<10) == nil {
	}
	if o.Room.Ready != "" {
		t.Fatal("a next segment on a full disk")
	}
	testkit.Must(t, o.Close())
	if files, err := filepath.Glob(filepath.Join(dir, "wal", "*.tmp")); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v %v", files, err)
	}
}

// Without this what the log has no room for ends the node, or is forgotten: what
// comes behind it must not be written without it.
func TestLogWaitsForRoom(t *testing.T) {
	o, _, free := tightDisk(t)
	l := &diskLog{t: t, o: o}
	free(0)
	for l.appendOne(50<<10) == nil {
	}
	written := make(chan *state.State)
	next := uint64(len(l.entries)) + 2
	msgs := []*raftpb.Message{testkit.AppendMessage(3, 1, 1, testkit.Entries(3, next, next, 50<<10)...)}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.AwaitRoom(ctx, msgs, time.Millisecond, written); !errors.Is(err, walroom.ErrNoRoom) {
		t.Errorf("stopped while it waited: %v", err)
	}
	if err := o.Append(msgs); !errors.Is(err, walroom.ErrNoRoom) {
		t.Errorf("written without room: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- o.AwaitRoom(t.Context(), msgs, time.Millisecond, written) }()
	for !o.Room.Waiting.Load() {
		runtime.Gosched()
	}
	free(3*wal.SegmentSizeBytes + walroom.LogSlack)
	testkit.Must(t, <-done)
	if o.Room.Waiting.Load() {
		t.Error("it says that it waits still")
	}
	testkit.Must(t, o.Append(msgs))
	l.entries = append(l.entries, msgs[0].GetEntries()...)
	wantEntries(t, openDisk(t, testkit.Crashed(t, o.Dir)), l.entries)
}
