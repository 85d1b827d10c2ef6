package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"slices"
	"testing"
	"time"
)

// fullState returns a state with something in each of its parts. The order in
// which its keys come to be does not show in it.
func fullState(order []int) *state {
	s := newState([]address.Peer{{ID: 1, URL: "http://a:1"}, {ID: math.MaxUint64 - 2, URL: "http://b:2"}})
	s.index, s.term, s.revision = 1<<40, 77, 1e9
	s.membership.members[1] = member{ID: 1, PeerURL: "http://a:1", ClientURL: "http://a:9121"}
	s.membership.members[3] = member{ID: 3, PeerURL: "http://c:3", Learner: true}
	s.membership.members[4] = member{ID: 4, PeerURL: "http://d:4", Learner: true, Pinned: true, Added: math.MaxUint64}
	s.membership.changes = 4
	for _, n := range order {
		s.membership.removed[uint64(100+n)] = true
		s.windows[uint64(n)] = window{boot: uint64(n), low: 1 << 30, applied: math.MaxUint64 - uint64(n)}
		it := &item{value: bytes.Repeat([]byte{byte(n)}, n*50), createRevision: uint64(n), modRevision: uint64(2 * n), version: 3}
		key := fmt.Sprint("key/", n)
		s.items.Set(key, it)
		s.bytes += uint64(len(key) + len(it.value))
	}
	for key, value := range map[string]string{"binary": "\xff\xfe\x00\x80", "\xff\x00 key": "\x00", "empty": "", "große": "\"é\"\n"} {
		s.items.Set(key, &item{value: []byte(value), createRevision: 1, modRevision: 1, version: 1})
		s.bytes += uint64(len(key) + len(value))
	}
	s.sum = hashItems(&s.items)
	return s
}

func snapshotBytes(t *testing.T, s *state) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeState(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Guarantee: everything in the replicated state comes back from a snapshot, a
// value byte for byte.
func TestSnapshotRoundTrip(t *testing.T) {
	for _, s := range []*state{newState(nil), newState(testkit.Peers()), fullState([]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 200})} {
		file := snapshotBytes(t, s)
		got, err := readState(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if dumpState(got) != dumpState(s) {
			t.Fatalf("wrote\n%s, read\n%s", dumpState(s), dumpState(got))
		}
		for node, w := range s.windows {
			if got.windows[node] != w {
				t.Fatalf("window of node %d is %+v, want %+v", node, got.windows[node], w)
			}
		}
		if !bytes.Equal(snapshotBytes(t, got), file) {
			t.Fatal("what was read makes another file")
		}
	}
}

// Guarantee: a node that installed a snapshot goes on as if it had applied the
// log itself.
func TestSnapshotGoesOn(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 3))
	s := newState(testkit.Peers())
	for seq := range uint64(100) {
		s.applyBatch(batchID{node: 1, boot: 1, seq: seq ^ 1, low: seq &^ 7}, []command{randomCommand(rnd, s.revision)})
	}
	r, err := readState(bytes.NewReader(snapshotBytes(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(200) {
		id, cmds := batchID{node: 1, boot: 1, seq: seq}, []command{randomCommand(rnd, s.revision)}
		_, first := s.applyBatch(id, cmds)
		if _, again := r.applyBatch(id, cmds); again != first || first != (seq >= 100) {
			t.Fatalf("batch %d: applied %v, after the snapshot %v", seq, first, again)
		}
	}
	if dumpState(r) != dumpState(s) {
		t.Fatalf("from\n%s to\n%s", dumpState(s), dumpState(r))
	}
}

// Guarantee: equal states make equal files, so that replicas can be compared.
func TestSnapshotIsDeterministic(t *testing.T) {
	order := rand.New(rand.NewPCG(1, 4)).Perm(100)
	want := snapshotBytes(t, fullState(order))
	slices.Reverse(order)
	for range 3 {
		if !bytes.Equal(snapshotBytes(t, fullState(order)), want) {
			t.Fatal("two files of one state differ")
		}
	}
}

// Guarantee: a snapshot with something in it that this version does not know
// is refused, not taken without it; and one that is cut short is damaged.
func TestSnapshotRecordsStrict(t *testing.T) {
	for kind := range 256 {
		var b bytes.Buffer
		w := statefile.NewWriter(&b)
		// Not a whole record of any kind.
		if err := errors.Join(w.Record(byte(kind), []byte{0x80}), w.Finish()); err != nil {
			t.Fatal(err)
		}
		want := durable.ErrNewer
		if byte(kind) >= headRecord && byte(kind) <= sumRecord {
			want = statefile.ErrBad
		}
		if s, err := readState(&b); !errors.Is(err, want) || s != nil {
			t.Errorf("kind %d: %v, %v; want %v", kind, s, err, want)
		}
	}
}

// fullDisk takes n bytes.
type fullDisk struct{ n int }

var errFullDisk = errors.New("disk full")

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.n -= len(b); d.n < 0 {
		return 0, errFullDisk
	}
	return len(b), nil
}

// Guarantee: a snapshot that could not be written whole is not taken for one.
func TestSnapshotWriteFails(t *testing.T) {
	s := fullState([]int{1, 2, 3, 4000})
	size := len(snapshotBytes(t, s))
	for n := 0; n < size; n += 1 + n/8 {
		if err := writeState(&fullDisk{n}, s); !errors.Is(err, errFullDisk) {
			t.Fatalf("with room for %d of %d bytes: %v", n, size, err)
		}
	}
}

// slowDisk takes a time for each write.
type slowDisk struct{ each time.Duration }

func (d slowDisk) Write(b []byte) (int, error) {
	time.Sleep(d.each)
	return len(b), nil
}

// Guarantee: a snapshot leaves most of the time to requests; less of it when a
// follower waits for the snapshot, and none when the log grows too fast or the
// disk is slow, or a snapshot would never be done.
func TestSnapshotPace(t *testing.T) {
	const each, block, size = 4 * time.Millisecond, 1 << 20, 64 << 20
	for name, c := range map[string]struct {
		awaited bool
		grown   int64
		block   int
		want    time.Duration // for each write
	}{
		"at leisure":       {block: block, want: each * (1 + paceRest)},
		"awaited":          {block: block, awaited: true, want: each * (1 + paceAwaited)},
		"much is written":  {block: block, grown: size/4 + 1, want: each},
		"both":             {block: block, awaited: true, grown: size/4 + 1, want: each},
		"on a slow disk":   {block: 1 << 10, want: each},
		"slow and awaited": {block: 1 << 10, awaited: true, want: each},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, func(t *testing.T) {
				var tail logTail
				tail.awaited.Store(c.awaited)
				tail.grown.Store(c.grown)
				began := time.Now()
				w := &restingWriter{ctx: t.Context(), w: slowDisk{each}, began: began, since: began,
					pace: func() time.Duration { return tail.snapshotPace(size) }}
				const writes = 8
				for range writes {
					if n, err := w.Write(make([]byte, c.block)); n != c.block || err != nil {
						t.Fatal(n, err)
					}
				}
				if got := time.Since(began); got != writes*c.want {
					t.Errorf("%v a write, want %v", got/writes, c.want)
				}
			})
		})
	}
}

// Guarantee: the message names the file.
func TestReadStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if _, err := readStateFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s := fullState([]int{1})
	file := snapshotBytes(t, s)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readStateFile(path); err != nil || dumpState(got) != dumpState(s) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file[:len(file)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readStateFile(path); !errors.Is(err, statefile.ErrBad) || !bytes.Contains([]byte(err.Error()), []byte(path)) {
		t.Fatal(err)
	}
}

// Guarantee: a member's record of the oldest files, shorter than today's, is
// read, and one that is cut short is not.
func TestSnapshotMemberRecord(t *testing.T) {
	m := member{ID: 3, PeerURL: "http://c:3", ClientURL: "http://c:9121", Instance: 5, Learner: true}
	old := record.AppendUvarints(nil, m.ID, 1, m.Instance)
	old = record.AppendString(record.AppendString(old, m.PeerURL), m.ClientURL)
	s := newState(nil)
	if err := s.restore(memberRecord, old, nil); err != nil || s.membership.members[3] != m {
		t.Errorf("%+v, %v", s.membership.members, err)
	}
	m.Level, m.Added = 2, 1<<20
	whole := appendMember(nil, m)
	if err := s.restore(memberRecord, whole, nil); err != nil || s.membership.members[3] != m {
		t.Errorf("%+v, %v", s.membership.members, err)
	}
	for _, cut := range []int{1, 5, len(old) - 1, len(whole) - 1} {
		if err := newState(nil).restore(memberRecord, whole[:cut], nil); !errors.Is(err, statefile.ErrBad) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}
