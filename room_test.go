package main

import (
	"bytes"
	"errors"
	"fmt"
	"raftkv/internal/durable"
	"raftkv/internal/record"
	"raftkv/internal/storage"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Without this a level is off by one byte, or --min-free 0 refuses something.
func TestRoomJudge(t *testing.T) {
	const r = 128 << 20
	for _, tt := range []struct {
		reserve, free, log int64
		want               shortage
	}{
		{r, r, 0, plenty},
		{r, r - 1, 0, shortForGrowth},
		{r, r - 1, 1 << 40, shortForGrowth}, // what is reserved for the log is no room for growth
		{r, r / 2, 0, shortForGrowth},
		{r, r/2 - 1, 0, shortForPuts},
		{r, 0, r / 2, shortForGrowth},
		{r, 0, r/2 - 1, shortForPuts},
		{r, r / 4, 0, shortForPuts},
		{r, r/4 - 1, 0, shortForDeletes},
		{r, 0, r / 4, shortForPuts},
		{r, r / 8, 0, shortForDeletes},
		{r, r/8 - 1, 0, shortForEntries},
		{r, 0, 0, shortForEntries},
		{0, 0, 0, plenty},
	} {
		if got := judge(tt.reserve, tt.free, tt.log); got != tt.want {
			t.Errorf("of %d, %d free and %d for the log: %v, want %v", tt.reserve, tt.free, tt.log, got, tt.want)
		}
	}
	for total, want := range map[int64]int64{400 << 20: r, 3 * r: r, 3*r - 3: r - 1, 100 << 20: 100 << 20 / 3, 0: 0} {
		if got := reserveOf(r, total); got != want {
			t.Errorf("on a disk of %d: %d, want %d", total, got, want)
		}
	}
}

// Without this a write is refused although the cluster could lose another disk,
// or let in although it could not.
func TestRoomDecide(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		voters int
		short  map[uint64]shortage // node 1 leads
		want   shortage
	}{
		{1, nil, plenty},
		{1, map[uint64]shortage{1: shortForGrowth}, shortForGrowth},
		{2, nil, plenty},
		{2, map[uint64]shortage{2: shortForGrowth}, shortForGrowth},
		{3, nil, plenty},
		{3, map[uint64]shortage{3: shortForGrowth}, shortForGrowth},
		{3, map[uint64]shortage{3: shortForEntries}, shortForDeletes},
		{3, map[uint64]shortage{9: shortForGrowth}, plenty}, // no voter
		{4, map[uint64]shortage{4: shortForGrowth}, shortForGrowth},
		{5, map[uint64]shortage{5: shortForDeletes}, plenty},
		{5, map[uint64]shortage{4: shortForGrowth, 5: shortForDeletes}, shortForGrowth},
		{5, map[uint64]shortage{4: shortForPuts, 5: shortForDeletes}, shortForPuts},
		{5, map[uint64]shortage{1: shortForGrowth}, shortForGrowth},
		{7, map[uint64]shortage{6: shortForGrowth, 7: shortForGrowth}, plenty},
		{7, map[uint64]shortage{5: shortForGrowth, 6: shortForGrowth, 7: shortForGrowth}, shortForGrowth},
	} {
		r := &roomKeeper{id: 1, heard: make(map[uint64]heardNote)}
		var voters []uint64
		for id := range uint64(tt.voters) {
			voters = append(voters, id+1)
		}
		r.short.Store(int64(tt.short[1]))
		for id, s := range tt.short {
			if id != 1 {
				r.heard[id] = heardNote{diskNote{From: id, Short: s}, now.Add(-roomTrusted + 1)}
			}
		}
		got, full := r.decide(voters, now)
		if got != tt.want || (got > plenty) != (len(full) > 0) {
			t.Errorf("%d voters, %v: %v because of %v, want %v", tt.voters, tt.short, got, full, tt.want)
		}
		if got, _ := r.decide(voters, now.Add(1)); got != min(tt.want, tt.short[1]) {
			t.Errorf("%d voters, %v: %v by what is too old, or not by this node's own disk", tt.voters, tt.short, got)
		}
	}
}

// Without this what is refused is not what the disks are too short for; or the
// word of someone who does not lead is taken; or a leader's, long after it fell.
func TestRoomRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := newAPITest(t)
		at.a.quota.limit = 0
		big, small := strings.Repeat("x", 50), "x"
		rule := func(s shortage) { at.a.room.hear(diskNote{From: 2, Leads: true, Refuse: s, Full: []uint64{3}}) }
		statuses := func() (codes []int) {
			for _, key := range []string{"/a", "/b", "/c"} {
				if w := at.do("PUT", key, big[:10]); at.a.room.refusing().refuse == plenty && w.Code != 204 {
					t.Fatalf("PUT: %d", w.Code)
				}
			}
			for _, r := range [][3]string{{"PUT", "/new", small}, {"PUT", "/a", big[:11]}, {"PUT", "/b", big[:10]}, {"DELETE", "/v1/kv/c", ""}, {"GET", "/b", ""}} {
				codes = append(codes, at.do(r[0], r[1], r[2]).Code)
			}
			return codes
		}
		for _, tt := range []struct {
			refuse shortage
			want   []int
		}{
			{plenty, []int{204, 204, 204, 204, 200}},
			{shortForGrowth, []int{507, 507, 204, 204, 200}},
			{shortForPuts, []int{507, 507, 507, 204, 200}},
			{shortForDeletes, []int{507, 507, 507, 507, 200}},
			{shortForEntries, []int{507, 507, 507, 507, 200}}, // nobody rules that
		} {
			rule(plenty)
			statuses()
			for _, key := range []string{"a", "b", "c"} {
				at.do("PUT", "/"+key, big[:10])
			}
			at.do("DELETE", "/v1/kv/new", "")
			rule(tt.refuse)
			if got := statuses(); !slices.Equal(got, tt.want) {
				t.Errorf("%v: %v, want %v", tt.refuse, got, tt.want)
			}
		}
		rule(shortForGrowth)
		w := at.do("PUT", "/more", small)
		at.problem("a growing write", w, 507, "disk_full")
		if before := at.proposed; at.do("PUT", "/more", small).Code != 507 || at.proposed != before {
			t.Error("it was proposed")
		}
		at.a.room.hear(diskNote{From: 3, Leads: true, Refuse: plenty}) // does not lead
		at.a.room.hear(diskNote{From: 3, Short: plenty})
		if got := at.do("PUT", "/more", small).Code; got != 507 {
			t.Errorf("%d after the word of one who does not lead", got)
		}
		time.Sleep(roomTrusted - 1)
		if got := at.do("PUT", "/more", small).Code; got != 507 {
			t.Errorf("%d before the leader's word is too old", got)
		}
		time.Sleep(time.Nanosecond)
		if got := at.do("PUT", "/more", small).Code; got != 204 {
			t.Errorf("%d after the leader has been silent", got)
		}
	})
}

// Without this the estimate of what is written to a segment is too small: the log
// would be cut when no next segment is there, and wait for ever.
func TestSizeInLog(t *testing.T) {
	for _, size := range []int{0, 1, 7, 100, 127, 128, 1 << 14, 1 << 20} {
		for _, n := range []uint64{1, 127, 128, 1 << 40, 1<<64 - 1} {
			e := &raftpb.Entry{Term: new(n), Index: new(n), Type: raftpb.EntryNormal.Enum(), Data: bytes.Repeat([]byte("x"), size)}
			size := proto.Size(e) + 2 + 6 + 1 + int(storage.VarintSize(uint64(proto.Size(e))))
			least := int64(8 + (size+7)/8*8)
			if got := storage.SizeInLog(nil, []*raftpb.Entry{e}); got < least || got > least+16 {
				t.Errorf("%d bytes at %d: %d, want %d or a little more", size, n, got, least)
			}
		}
	}
	for _, v := range []uint64{0, 1, 127, 128, 1<<14 - 1, 1 << 14, 1<<64 - 1} {
		if got, want := storage.VarintSize(v), int64(len(record.AppendUvarints(nil, v))); got != want {
			t.Errorf("varint %d: %d bytes, want %d", v, got, want)
		}
	}
}

// Without this a small disk is taken up by two segments.
func TestSegmentSizeOn(t *testing.T) {
	const usual = 64 * 1000 * 1000
	for total, want := range map[int64]int64{
		1 << 40: usual, 8 * usual: usual, 8*usual - 1: usual - storage.SegmentUnit, 400 << 20: 50 << 20, 100 << 20: 12800 << 10, 1 << 20: storage.LeastSegment,
	} {
		if got := storage.SegmentSizeOn(total, usual); got != want {
			t.Errorf("on %d: %d, want %d", total, got, want)
		}
	}
}

// Without this snapshots that fail are tried again in a tight loop, or never, or
// nobody hears of it.
func TestSnapshotTrouble(t *testing.T) {
	tr := &storage.Trouble{Log: zap.NewNop(), Disk: func(string) (durable.Disk, error) { return durable.Disk{Free: 100, Total: 1000}, nil }}
	var got []time.Duration
	for range 8 {
		got = append(got, tr.Failed(storage.ErrKeepFree, 1))
	}
	s := time.Second
	if want := []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, storage.MostRest, storage.MostRest}; !slices.Equal(got, want) {
		t.Errorf("rests %v, want %v", got, want)
	}
	if tr.Present() == nil || tr.Count.Load() != 8 {
		t.Errorf("%v after %d", tr.Present(), tr.Count.Load())
	}
	if tr.Succeeded(); tr.Present() != nil || tr.Failed(storage.ErrKeepFree, 1) != s {
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
	least := wal.SegmentSizeBytes + storage.FirstStartRoom
	for _, c := range []struct {
		free int64
		err  error
		want string
	}{
		{least, nil, ""},
		{least - 1, nil, "the first start takes 2 MiB in data directory /d, and its disk has 1 MiB free"},
		{0, errors.ErrUnsupported, ""},
	} {
		err := storage.CheckFirstRoom("/d", func(string) (durable.Disk, error) { return durable.Disk{Free: c.free}, c.err })
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes free: %v, want %q", c.free, err, c.want)
		}
	}
}
