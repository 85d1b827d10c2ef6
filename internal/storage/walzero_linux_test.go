package storage

import (
	"errors"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// zeroingDisk is a node's storage that zeroes its segments, on whatever file
// system the test runs.
func zeroingDisk(t *testing.T, dir string) *Opened {
	t.Helper()
	o := openDisk(t, dir)
	o.Zeros.Off = false
	return o
}

// zeroTo has the next segment zeroed up to some offset or further, as if the one in
// use were full. The WAL makes it in a goroutine of its own.
func zeroTo(t *testing.T, o *Opened, to int64) {
	t.Helper()
	path, _ := o.Room.InUse()
	o.Zeros.Step(path, 0) // if it finds the next one now, it begins to count here
	for end := time.Now().Add(10 * time.Second); o.Zeros.Next.File == nil || o.Zeros.Next.At < to; {
		if o.Zeros.Next.File == nil {
			o.Zeros.Step(path, 0)
		} else {
			o.Zeros.Step(path, wal.SegmentSizeBytes)
		}
		if o.Zeros.Off {
			t.Fatal("given up")
		}
		if time.Now().After(end) {
			t.Fatalf("zeros up to %d only", o.Zeros.Next.At)
		}
	}
}

// stepOf is what the persist loop does after a save.
func stepOf(o *Opened) func() { return func() { o.Zeros.Step(o.Room.InUse()) } }

// diskLog appends entries one by one, and has all that it appended.
type diskLog struct {
	t       *testing.T
	o       *Opened
	entries []*raftpb.Entry
}

func (l *diskLog) append(size int) {
	l.t.Helper()
	next := uint64(len(l.entries)) + 2
	e := testkit.Entries(2, next, next, size)
	testkit.Must(l.t, l.o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 1, e...)}))
	l.entries = append(l.entries, e...)
}

// cut appends until the WAL begins a new segment, and calls between after each.
func (l *diskLog) cut(size int, between func()) {
	l.t.Helper()
	for n := len(testkit.Segments(l.t, l.o.Dir)); len(testkit.Segments(l.t, l.o.Dir)) == n; between() {
		l.append(size)
	}
}

// want checks what a crash would leave.
func (l *diskLog) want() {
	l.t.Helper()
	dir := testkit.Crashed(l.t, l.o.Dir)
	tail := inspectPath(l.t, filepath.Join(dir, "wal"))
	if tail.NonZero {
		l.t.Errorf("behind the end of %s, at %d, not all is zero", tail.File, tail.End)
	}
	if info, err := os.Stat(tail.File); err != nil || info.Size() < wal.SegmentSizeBytes {
		l.t.Errorf("the segment in use is %d bytes long: %v", info.Size(), err)
	}
	wantEntries(l.t, openDisk(l.t, dir), l.entries)
}

func nothing() {}

// Without this a segment that was zeroed, as a whole, in part or not at all,
// could be one that cannot be read, or ends in what looks like a torn write.
func TestSegmentZeroedIsWhole(t *testing.T) {
	t.Parallel()
	o := zeroingDisk(t, newDisk(t))
	l := &diskLog{t: t, o: o}
	for _, to := range []int64{wal.SegmentSizeBytes, 3 * walfile.ZeroPiece, 0} {
		if to > 0 {
			zeroTo(t, o, to)
		}
		l.cut(50<<10, nothing)
		l.want()
	}
	for _, size := range []int{1 << 10, 40 << 10, 300 << 10} {
		l.cut(size, stepOf(o)) // as the persist loop does
		l.want()
		l.append(10)
		l.want()
	}
	if o.Zeros.Off {
		t.Error("given up")
	}
}

// Without this zeros go on to be written to a file after the WAL has begun to
// use it: over the log.
func TestZeroesNeverReachASegment(t *testing.T) {
	t.Parallel()
	o := zeroingDisk(t, newDisk(t))
	l := &diskLog{t: t, o: o}
	for _, cuts := range []int{1, 2, 1} { // after two the next has the same name again
		zeroTo(t, o, walfile.ZeroPiece)
		for range cuts {
			l.cut(100<<10, nothing)
		}
		for range 4 {
			l.append(100 << 10) // over the place where the zeros ended
		}
		for range wal.SegmentSizeBytes / walfile.ZeroPiece {
			o.Zeros.Step(o.Room.InUse())
		}
		l.want()
	}
}

// Without this zeros may not be written at all; or beyond the file's end, which
// then is longer than the WAL made it; or while the WAL still makes it.
func TestZeroesFillTheFile(t *testing.T) {
	const size = 2*walfile.ZeroPiece + 5000
	for _, name := range []string{"0.tmp", "1.tmp"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		old := strings.Repeat("\xff", size)
		fill := func(content string) { testkit.Must(t, os.WriteFile(path, []byte(content), 0o600)) }
		want := func(content string) {
			t.Helper()
			if got, err := os.ReadFile(path); err != nil || string(got) != content {
				t.Fatalf("%d bytes, not the %d wanted (%v)", len(got), len(content), err)
			}
		}
		zeros := func(n int) string { return string(make([]byte, n)) }
		fill(old[:size-1])
		use := filepath.Join(dir, "use") // as full as it gets
		testkit.Must(t, os.WriteFile(use, nil, 0o600))
		z := &walfile.Zeroer{Log: zap.NewNop(), Dir: dir, Size: size}
		step := func() { z.Step(use, size) }
		step()
		want(old[:size-1])
		fill(old)
		z.Step(use, 0) // here it is found
		for _, at := range []int{walfile.ZeroPiece, 2 * walfile.ZeroPiece, size, size} {
			step()
			want(zeros(at) + old[at:])
		}
		// Another file of the same name, as after a cut.
		testkit.Must(t, os.Rename(path, filepath.Join(dir, "segment")))
		fill(old)
		use = filepath.Join(dir, "segment")
		z.Step(use, 0)
		step()
		want(zeros(walfile.ZeroPiece) + old[walfile.ZeroPiece:])
		if z.Off {
			t.Error("given up")
		}
		z.Close()
		testkit.Must(t, errors.Join(os.Remove(path), os.Remove(use)))
	}
}

// Without this a crash leaves a file, partly zeroed or with the head of a
// segment that did not get its name, which the next life takes for one of its
// own.
func TestZeroedSegmentLeftOver(t *testing.T) {
	t.Parallel()
	o := zeroingDisk(t, newDisk(t))
	l := &diskLog{t: t, o: o}
	l.append(100)
	zeroTo(t, o, 2*walfile.ZeroPiece)
	name := filepath.Base(o.Zeros.Next.File.Name())
	for _, crash := range []string{"while it is zeroed", "in the midst of a cut"} {
		for how, between := range map[string]func(o *Opened){
			"zeroing": func(o *Opened) { o.Zeros.Step(o.Room.InUse()) },
			"not":     func(*Opened) {},
		} {
			t.Run(crash+", then "+how, func(t *testing.T) {
				dir := testkit.Crashed(t, o.Dir)
				if crash == "in the midst of a cut" {
					data, err := os.ReadFile(testkit.Segments(t, dir)[0])
					testkit.Must(t, err)
					testkit.Patch(t, filepath.Join(dir, "wal", name), 0, data[:4096])
					testkit.Patch(t, filepath.Join(dir, "wal", name), 5*walfile.ZeroPiece, data[:4096])
				}
				o := zeroingDisk(t, dir)
				l := &diskLog{t: t, o: o, entries: l.entries[:1:1]}
				for range 2 {
					l.cut(70<<10, func() { between(o) })
					l.want()
				}
			})
		}
	}
}

// Without this a disk that does not take the zeros ends the node, which could do
// without them, or fills its log.
func TestZeroesRefused(t *testing.T) {
	t.Parallel()
	o := zeroingDisk(t, newDisk(t))
	core, logs := observer.New(zap.WarnLevel)
	o.Zeros.Log = zap.New(core)
	l := &diskLog{t: t, o: o}
	zeroTo(t, o, walfile.ZeroPiece)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("no /dev/full here: %v", err)
	}
	testkit.Must(t, o.Zeros.Next.File.Close())
	o.Zeros.Next.File = full
	o.Zeros.Next.Info, err = full.Stat()
	testkit.Must(t, err)
	for range 2 {
		l.cut(100<<10, stepOf(o))
		l.want()
	}
	if got := logs.All(); len(got) != 1 || o.Zeros.Next.File != nil {
		t.Errorf("logged: %v; file %v", got, o.Zeros.Next.File)
	}
}
