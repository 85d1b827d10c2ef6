package storage

import (
	"bytes"
	"errors"
	"fmt"
	"raftkv/internal/durable"
	"raftkv/internal/record"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/storage/walroom"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Without this the estimate of what is written to a segment is too small: the log
// would be cut when no next segment is there, and wait for ever.
func TestSizeInLog(t *testing.T) {
	for _, size := range []int{0, 1, 7, 100, 127, 128, 1 << 14, 1 << 20} {
		for _, n := range []uint64{1, 127, 128, 1 << 40, 1<<64 - 1} {
			e := &raftpb.Entry{Term: new(n), Index: new(n), Type: raftpb.EntryNormal.Enum(), Data: bytes.Repeat([]byte("x"), size)}
			size := proto.Size(e) + 2 + 6 + 1 + int(walroom.VarintSize(uint64(proto.Size(e))))
			least := int64(8 + (size+7)/8*8)
			if got := walroom.SizeInLog(nil, []*raftpb.Entry{e}); got < least || got > least+16 {
				t.Errorf("%d bytes at %d: %d, want %d or a little more", size, n, got, least)
			}
		}
	}
	for _, v := range []uint64{0, 1, 127, 128, 1<<14 - 1, 1 << 14, 1<<64 - 1} {
		if got, want := walroom.VarintSize(v), int64(len(record.AppendUvarints(nil, v))); got != want {
			t.Errorf("varint %d: %d bytes, want %d", v, got, want)
		}
	}
}

// Without this a small disk is taken up by two segments.
func TestSegmentSizeOn(t *testing.T) {
	const usual = 64 * 1000 * 1000
	for total, want := range map[int64]int64{
		1 << 40: usual, 8 * usual: usual, 8*usual - 1: usual - walroom.SegmentUnit, 400 << 20: 50 << 20, 100 << 20: 12800 << 10, 1 << 20: walroom.LeastSegment,
	} {
		if got := walroom.SegmentSizeOn(total, usual); got != want {
			t.Errorf("on %d: %d, want %d", total, got, want)
		}
	}
}

// Without this snapshots that fail are tried again in a tight loop, or never, or
// nobody hears of it.
func TestSnapshotTrouble(t *testing.T) {
	tr := &snapshots.Trouble{Log: zap.NewNop(), Disk: func(string) (durable.Disk, error) { return durable.Disk{Free: 100, Total: 1000}, nil }}
	var got []time.Duration
	for range 8 {
		got = append(got, tr.Failed(snapshots.ErrKeepFree, 1))
	}
	s := time.Second
	if want := []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, snapshots.MostRest, snapshots.MostRest}; !slices.Equal(got, want) {
		t.Errorf("rests %v, want %v", got, want)
	}
	if tr.Present() == nil || tr.Count.Load() != 8 {
		t.Errorf("%v after %d", tr.Present(), tr.Count.Load())
	}
	if tr.Succeeded(); tr.Present() != nil || tr.Failed(snapshots.ErrKeepFree, 1) != s {
		t.Error("a success does not end it")
	}
	tr.Keep.Store(40)
	if err := tr.Check("", 60); err != nil {
		t.Error(err)
	}
	if err := tr.Check("", 61); err == nil {
		t.Error("61 bytes of 100 leave 40")
	}
	out := new(bytes.Buffer)
	if n, err := fmt.Fprint(tr.Bounded("", out), strings.Repeat("x", 61)); err == nil || n != 0 {
		t.Errorf("wrote %d: %v", n, err)
	}
}

// Without this a first start on a full disk ends with what the library says of
// it, and a node that joins is a member by then.
func TestFirstStartNeedsRoom(t *testing.T) {
	least := wal.SegmentSizeBytes + walroom.FirstStartRoom
	for _, c := range []struct {
		free int64
		err  error
		want string
	}{
		{least, nil, ""},
		{least - 1, nil, "the first start takes 2 MiB in data directory /d, and its disk has 1 MiB free"},
		{0, errors.ErrUnsupported, ""},
	} {
		err := walroom.CheckFirstRoom("/d", func(string) (durable.Disk, error) { return durable.Disk{Free: c.free}, c.err })
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes free: %v, want %q", c.free, err, c.want)
		}
	}
}
