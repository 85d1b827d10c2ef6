package walfile

import (
	"errors"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.uber.org/zap"
)

// zeroLog is a log without records: segments of which only the blocks count.
type zeroLog struct {
	t    *testing.T
	z    *Zeroer
	path string   // of the segment in use
	f    *os.File // the same
	end  int64    // of the log in it
	seq  int

	appended, unwritten int64 // bytes; the latter to blocks that were only reserved
}

const zeroSize = 8 << 20 // of a segment

func newZeroLog(t *testing.T, end int64) *zeroLog {
	t.Helper()
	l := &zeroLog{t: t, z: &Zeroer{Log: zap.NewNop(), Dir: t.TempDir(), Size: zeroSize}}
	t.Cleanup(func() { l.z.Close(); _ = l.f.Close() })
	l.next()
	l.cut()
	l.write(end)
	return l
}

func (l *zeroLog) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// next makes the next segment, as the WAL does.
func (l *zeroLog) next() {
	l.t.Helper()
	f, err := os.Create(filepath.Join(l.z.Dir, []string{"0.tmp", "1.tmp"}[l.seq%2]))
	l.must(err)
	l.must(errors.Join(fileutil.Preallocate(f, zeroSize, true), f.Close()))
}

// cut goes to the next segment.
func (l *zeroLog) cut() {
	l.t.Helper()
	l.path = filepath.Join(l.z.Dir, string(rune('a'+l.seq)))
	l.must(os.Rename(filepath.Join(l.z.Dir, []string{"0.tmp", "1.tmp"}[l.seq%2]), l.path))
	if l.f != nil {
		l.must(errors.Join(l.f.Truncate(l.end), l.f.Close()))
	}
	var err error
	l.f, err = os.OpenFile(l.path, os.O_RDWR, 0)
	l.must(err)
	l.end = 0
	l.seq++
	l.next()
}

func (l *zeroLog) write(n int64) {
	l.t.Helper()
	for i := range n { // and not zero
		if i%4096 == 0 {
			_, err := l.f.WriteAt([]byte("log"), l.end+i)
			l.must(err)
		}
	}
	l.end += n
}

// append appends a save, and lets the Zeroer make its step.
func (l *zeroLog) append(size int64) {
	l.t.Helper()
	first, err := durable.FirstWritten(l.f, (l.end+4095)/4096*4096)
	l.must(err)
	if first >= l.end+size {
		l.unwritten += size
	}
	l.write(size)
	l.appended += size
	if l.end >= zeroSize {
		l.cut()
	}
	l.z.Step(l.path, l.end)
	if l.z.Off {
		l.t.Fatal("given up")
	}
}

// Guarantee: zeros are written in proportion to the log, not in a burst, and each
// segment is zeroed when its turn comes.
func TestZeroesInProportion(t *testing.T) {
	l := newZeroLog(t, 0)
	const save = 8 << 10
	for l.seq < 3 { // the first one was only reserved
		l.append(save)
	}
	l.appended, l.unwritten, l.z.Written = 0, 0, 0
	for l.seq < 6 {
		was, before := l.z.Written, l.seq
		l.append(save)
		if grown := l.z.Written - was; grown > ZeroPiece {
			t.Fatalf("%d bytes of zeros in one step", grown)
		}
		// Never more than a segment's part that goes before, and two pieces.
		if most := l.appended + l.appended/zeroMargin + 3*ZeroPiece; l.z.Written > most+zeroSize/zeroMargin {
			t.Fatalf("%d bytes of zeros for %d of log", l.z.Written, l.appended)
		}
		if full := zeroSize - zeroSize/zeroMargin + 2*ZeroPiece; l.seq == before && l.end > int64(full) && l.z.Next.At != zeroSize {
			t.Fatalf("at %d the next segment is zeroed up to %d only", l.end, l.z.Next.At)
		}
	}
	if ratio := float64(l.z.Written) / float64(l.appended); ratio < 0.98 || ratio > 1.02 {
		t.Errorf("%.2f bytes of zeros for each of log", ratio)
	}
	if l.unwritten > 0 {
		t.Errorf("%d of %d bytes of log were written to blocks that are only reserved", l.unwritten, l.appended)
	}
}

// Guarantee: wherever in its segment the log ends at a start, it is soon written to
// blocks that hold zeros, and no burst of zeros comes with it.
func TestZeroesAfterAStart(t *testing.T) {
	const save = 8 << 10
	for _, end := range []int64{0, 2 << 20, 6 << 20, zeroSize - zeroSize/zeroMargin, zeroSize - 256<<10} {
		l := newZeroLog(t, end)
		for l.appended < 2*zeroSize {
			l.append(save)
			if most := 3*l.appended + ZeroLead + 3*ZeroPiece; l.z.Written > most {
				t.Fatalf("from %d: %d bytes of zeros for %d of log", end, l.z.Written, l.appended)
			}
		}
		// The first saves, until a piece is before them; and again, if the next
		// segment was not begun when its turn came.
		if l.unwritten > 6*ZeroPiece {
			t.Errorf("from %d: %d of %d bytes of log were written to blocks that are only reserved", end, l.unwritten, l.appended)
		}
	}
}

// Without this saves that are limited by the disk's bandwidth share it with zeros.
func TestZeroesBesideLargeSaves(t *testing.T) {
	l := newZeroLog(t, 0)
	for l.seq < 6 {
		l.append(1 << 20)
	}
	if l.z.Written > l.appended/(1<<20)*ZeroPiece {
		t.Errorf("%d bytes of zeros for %d of log", l.z.Written, l.appended)
	}
}

// Without this a place of the log's end that is wrong has zeros written over the log.
func TestZeroesNeverOverTheLog(t *testing.T) {
	l := newZeroLog(t, 4<<20)
	for range 200 {
		l.z.Step(l.path, 0)
	}
	want := l.end
	for at := int64(0); at < want; at += 4096 {
		b := make([]byte, 3)
		_, err := l.f.ReadAt(b, at)
		if l.must(err); string(b) != "log" {
			t.Fatalf("at %d: %q", at, b)
		}
	}
	if info, err := l.f.Stat(); err != nil || info.Size() != zeroSize {
		t.Errorf("%v, %v", info, err)
	}
}

// Without this a segment that is shorter than others, as an older program or a
// smaller disk had them, becomes longer than the WAL made it.
func TestZeroesLeaveShortSegments(t *testing.T) {
	l := newZeroLog(t, 4096)
	l.must(l.f.Truncate(1 << 20))
	for range 100 {
		l.z.Step(l.path, 4096)
	}
	if info, err := l.f.Stat(); err != nil || info.Size() != 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
}
