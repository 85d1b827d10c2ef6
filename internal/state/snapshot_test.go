package state

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
	"raftkv/internal/entry"
	"raftkv/internal/membership"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"raftkv/internal/verdict"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// fullState returns a state with something in each of its parts. The order in
// which its keys come to be does not show in it.
func fullState(order []int) *State {
	s := New([]address.Peer{{ID: 1, URL: "http://a:1"}, {ID: math.MaxUint64 - 2, URL: "http://b:2"}})
	s.Index, s.Term, s.Revision = 1<<40, 77, 1e9
	s.Membership.Members[1] = membership.Member{ID: 1, PeerURL: "http://a:1", ClientURL: "http://a:9121"}
	s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", Learner: true}
	s.Membership.Members[4] = membership.Member{ID: 4, PeerURL: "http://d:4", Learner: true, Pinned: true, Added: math.MaxUint64}
	s.Membership.Changes = 4
	for _, n := range order {
		s.Membership.Removed[uint64(100+n)] = true
		s.Windows[uint64(n)] = Window{Boot: uint64(n), Low: 1 << 30, Applied: math.MaxUint64 - uint64(n)}
		it := &Item{Value: strings.Repeat(string(rune(n)), n*50), CreateRevision: uint64(n), ModRevision: uint64(2 * n), Version: 3}
		key := fmt.Sprint("key/", n)
		s.Items.Set(key, it)
		s.Bytes += uint64(len(key) + len(it.Value))
	}
	for key, value := range map[string]string{"binary": "\xff\xfe\x00\x80", "\xff\x00 key": "\x00", "empty": "", "große": "\"é\"\n"} {
		s.Items.Set(key, &Item{Value: value, CreateRevision: 1, ModRevision: 1, Version: 1})
		s.Bytes += uint64(len(key) + len(value))
	}
	s.Sum = HashItems(&s.Items)
	return s
}

func snapshotBytes(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Guarantee: everything in the replicated state comes back from a snapshot, a
// value byte for byte.
func TestSnapshotRoundTrip(t *testing.T) {
	for _, s := range []*State{New(nil), New(testkit.Peers()), fullState([]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 200})} {
		file := snapshotBytes(t, s)
		got, err := Read(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if dumpState(got) != dumpState(s) {
			t.Fatalf("wrote\n%s, read\n%s", dumpState(s), dumpState(got))
		}
		for node, w := range s.Windows {
			if got.Windows[node] != w {
				t.Fatalf("window of node %d is %+v, want %+v", node, got.Windows[node], w)
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
	s := New(testkit.Peers())
	for seq := range uint64(100) {
		s.ApplyBatch(BatchID{Node: 1, Boot: 1, Seq: seq ^ 1, Low: seq &^ 7}, []Command{randomCommand(rnd, s.Revision)})
	}
	r, err := Read(bytes.NewReader(snapshotBytes(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(200) {
		id, cmds := BatchID{Node: 1, Boot: 1, Seq: seq}, []Command{randomCommand(rnd, s.Revision)}
		_, first := s.ApplyBatch(id, cmds)
		if _, again := r.ApplyBatch(id, cmds); again != first || first != (seq >= 100) {
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
		if byte(kind) == itemRecord || byte(kind) == leasedItemRecord || byte(kind) == sumRecord || partOf(byte(kind)) != nil {
			want = statefile.ErrBad
		}
		if s, err := Read(&b); !errors.Is(err, want) || s != nil {
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
		if err := Write(&fullDisk{n}, s); !errors.Is(err, errFullDisk) {
			t.Fatalf("with room for %d of %d bytes: %v", n, size, err)
		}
	}
}

// Guarantee: the message names the file.
func TestReadStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if _, _, err := ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s := fullState([]int{1})
	file := snapshotBytes(t, s)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ReadFile(path); err != nil || dumpState(got) != dumpState(s) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file[:len(file)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReadFile(path); !errors.Is(err, statefile.ErrBad) || !bytes.Contains([]byte(err.Error()), []byte(path)) {
		t.Fatal(err)
	}
}

// Guarantee: a member's record of the oldest files, shorter than today's, is
// read, and one that is cut short is not.
func TestSnapshotMemberRecord(t *testing.T) {
	m := membership.Member{ID: 3, PeerURL: "http://c:3", ClientURL: "http://c:9121", Instance: 5, Learner: true}
	old := record.AppendUvarints(nil, m.ID, 1, m.Instance)
	old = record.AppendString(record.AppendString(old, m.PeerURL), m.ClientURL)
	s := New(nil)
	if err := s.restore(memberRecord, old, nil); err != nil || s.Membership.Members[3] != m {
		t.Errorf("%+v, %v", s.Membership.Members, err)
	}
	m.Level, m.Added = 2, 1<<20
	whole := membership.AppendMember(nil, m)
	if err := s.restore(memberRecord, whole, nil); err != nil || s.Membership.Members[3] != m {
		t.Errorf("%+v, %v", s.Membership.Members, err)
	}
	cuts := []int{1, 5, len(old) - 1, len(whole) - 1}
	m.Doors = "\x01\x02"
	withDoors := membership.AppendMember(nil, m)
	if err := s.restore(memberRecord, withDoors, nil); err != nil || s.Membership.Members[3] != m || !bytes.Equal(withDoors, append(bytes.Clone(whole), 2, 1, 2)) {
		t.Errorf("%+v, %x, %v", s.Membership.Members, withDoors, err)
	}
	for _, cut := range []int{len(withDoors) - 1, len(withDoors) - 2} {
		if err := New(nil).restore(memberRecord, withDoors[:cut], nil); !errors.Is(err, statefile.ErrBad) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
	m.Level, m.Added = 0, 0
	if err := s.restore(memberRecord, membership.AppendMember(nil, m), nil); err != nil || s.Membership.Members[3] != m {
		t.Errorf("doors alone: %+v, %v", s.Membership.Members, err)
	}
	for _, cut := range cuts {
		if err := New(nil).restore(memberRecord, whole[:cut], nil); !errors.Is(err, statefile.ErrBad) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
}

// Guarantee: no field of a state is lost by a copy or a snapshot, and a new cluster
// begins with none of the old one's. A field that is not set here is a test's mistake.
func TestPartsKeepEverything(t *testing.T) {
	s := fullState([]int{1, 2, 3})
	s.Level = 2
	s.Checks.Checks = verdict.Checks{
		Index: 40, Full: 30, Voters: []uint64{1, 3}, Reports: map[uint64]Report{1: {Hash: 5}, 3: {Void: true}},
		Diverged: map[uint64]uint64{3: 9},
	}
	s.Checks.Checked, s.Checks.Agreed, s.Checks.NoMajority = 35, 77, 36
	leaseKeys(s)
	onceKeys(s)
	fields := func(s *State) map[string]any {
		got := make(map[string]any)
		v := reflect.ValueOf(s).Elem()
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if name == "Changes" {
				continue // no part of what is replicated
			}
			if name == "Items" || name == "Leases" || name == "Once" { // compared by what they hold
				got[name] = dumpState(s)
				continue
			}
			if v.Field(i).IsZero() {
				t.Errorf("%s is not set", name)
			}
			got[name] = v.Field(i).Interface()
		}
		return got
	}
	want := fields(s)
	back, err := Read(bytes.NewReader(snapshotBytes(t, s)))
	testkit.Must(t, err)
	for how, got := range map[string]*State{"a copy": s.Copy(), "a snapshot": back} {
		for name, value := range fields(got) {
			if !reflect.DeepEqual(value, want[name]) {
				t.Errorf("%s has another %s: %+v, want %+v", how, name, value, want[name])
			}
		}
	}
	fresh, voters := s.Copy(), testkit.Peers()
	testkit.Must(t, fresh.Refound(voters))
	first := First(voters)
	first.Revision, first.Bytes, first.Sum, first.Items = fresh.Revision, fresh.Bytes, fresh.Sum, fresh.Items
	first.Leases, first.Once = fresh.Leases, fresh.Once
	if fresh.Once.Len() != s.Once.Len() || fresh.Once.Len() == 0 {
		t.Errorf("a new cluster has the outcomes of %d requests, there were %d", fresh.Once.Len(), s.Once.Len())
	}
	if was := s.Leases.Last; fresh.Leases.Last != was+RevisionJump || fresh.Leases.Clock != s.Leases.Clock {
		t.Errorf("the next lease is after %d, it was %d; the clock is %d", fresh.Leases.Last, was, fresh.Leases.Clock)
	}
	if !bytes.Equal(snapshotBytes(t, fresh), snapshotBytes(t, first)) {
		t.Errorf("a new cluster begins with %+v", fresh)
	}
}

// Guarantee: whatever is in a record of a state file, reading it does not panic. (The file
// has a checksum; this is for what was written wrong.)
func FuzzRestore(f *testing.F) {
	s := fullState([]int{1, 2, 3})
	s.Level = ProgramLevel
	leaseKeys(s)
	onceKeys(s)
	sr, err := statefile.NewReader(bytes.NewReader(snapshotBytes(f, s)))
	if err != nil {
		f.Fatal(err)
	}
	for {
		kind, payload, err := sr.Next()
		if err != nil {
			break
		}
		f.Add(kind, bytes.Clone(payload))
	}
	f.Fuzz(func(_ *testing.T, kind byte, payload []byte) {
		into := New(nil)
		into.Leases.Last = 1 << 40
		_ = into.restore(onceHeadRecord, record.AppendUvarints(nil, 1<<40, 0, 0, 0), nil)
		for range 2 {
			_ = into.restore(kind, bytes.Clone(payload), func(key string, it *Item) { into.Items.Set(key, it) })
		}
		into.hash()
		into.tick(entry.Tick{Term: 0, Clock: 1 << 30})
	})
}
