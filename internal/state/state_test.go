package state

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"raftkv/internal/lease"
	"raftkv/internal/membership"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// dumpState writes out all of a state but the way in which its windows are kept.
func dumpState(s *State) string {
	var b bytes.Buffer
	fmt.Fprintln(&b, s.Index, s.Term, s.Revision, s.Bytes, s.Membership.Sorted(), membership.SortedKeys(s.Membership.Removed), s.Membership.Changes)
	for _, node := range membership.SortedKeys(s.Windows) {
		w := s.Windows[node]
		for ; w.Applied&1 != 0; w.Low++ { // what was applied without a gap may or may not be shifted out yet
			w.Applied >>= 1
		}
		fmt.Fprintln(&b, node, w)
	}
	s.Scan(func(key string, it *Item) bool {
		fmt.Fprintf(&b, "%q %q %d %d %d %d\n", key, it.Value, it.CreateRevision, it.ModRevision, it.Version, it.Lease)
		return true
	})
	fmt.Fprintln(&b, s.Leases.Clock, s.Leases.Last)
	s.Leases.Scan(func(id uint64, l *lease.Lease) bool {
		fmt.Fprintln(&b, id, l.TTL, l.Deadline, l.Owner, l.Private, l.Keys, s.Leases.KeysOf(id, "", lease.MaxKeys))
		return true
	})
	s.Once.Scan(func(k once.Key, r *once.Record, deadline uint64) { fmt.Fprintf(&b, "%+v %+v %d\n", k, *r, deadline) })
	return b.String()
}

func put(key, value string, c Condition) Command {
	return Command{Kind: KindPut, condition: c, Key: key, Value: []byte(value)}
}

func del(key string, c Condition) Command {
	return Command{Kind: KindDelete, condition: c, Key: key}
}

// Guarantee: conditions are decided against the current state, a refused one
// reports the current ETag and takes no revision.
func TestConditions(t *testing.T) {
	missing, matching, other := Condition{Kind: IfMissing}, Condition{Kind: IfAtRevision, Revision: 1}, Condition{Kind: IfAtRevision, Revision: 9}
	exists := Condition{Kind: IfExists}
	for _, tt := range []struct {
		name string
		cmd  Command
		want Result
	}{
		{"put", put("k", "w", Condition{}), Result{Revision: 2}},
		{"put new", put("n", "w", Condition{}), Result{Revision: 2, Created: true}},
		{"put if exists", put("k", "w", exists), Result{Revision: 2}},
		{"put new if exists", put("n", "w", exists), Result{Err: problem.ErrPrecondition}},
		{"put if missing", put("k", "w", missing), Result{Err: problem.ErrPrecondition, Revision: 1}},
		{"put new if missing", put("n", "w", missing), Result{Revision: 2, Created: true}},
		{"put at revision", put("k", "w", matching), Result{Revision: 2}},
		{"put at other revision", put("k", "w", other), Result{Err: problem.ErrPrecondition, Revision: 1}},
		{"put new at revision", put("n", "w", matching), Result{Err: problem.ErrPrecondition}},
		{"put new at revision 0", put("n", "w", Condition{Kind: IfAtRevision, Revision: 0}), Result{Err: problem.ErrPrecondition}},
		{"delete", del("k", Condition{}), Result{Deletion: 2}},
		{"delete new", del("n", Condition{}), Result{Err: problem.ErrNotFound}},
		{"delete if exists", del("k", exists), Result{Deletion: 2}},
		{"delete new if exists", del("n", exists), Result{Err: problem.ErrPrecondition}},
		{"delete if missing", del("k", missing), Result{Err: problem.ErrPrecondition, Revision: 1}},
		{"delete new if missing", del("n", missing), Result{Err: problem.ErrNotFound}},
		{"delete at revision", del("k", matching), Result{Deletion: 2}},
		{"delete at other revision", del("k", other), Result{Err: problem.ErrPrecondition, Revision: 1}},
		{"publish", Command{Kind: KindPublish, Member: 1, clientURL: "http://x"}, Result{}},
	} {
		s := New(testkit.Peers())
		s.Apply(put("k", "v", Condition{}))
		got := s.Apply(tt.cmd)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if want := 1 + min(got.Revision+got.Deletion, 1); got.Err == nil && tt.cmd.Kind != KindPublish && s.Revision != want ||
			got.Err != nil && s.Revision != 1 {
			t.Errorf("%s: the store is at revision %d", tt.name, s.Revision)
		}
	}
}

// Guarantee: a key's create_revision, mod_revision and version tell its
// history; writing the same value is a change; a key that comes back starts anew.
func TestItemHistory(t *testing.T) {
	s := New(testkit.Peers())
	want := func(key string, create, mod, version uint64) {
		t.Helper()
		it, ok := s.Items.Get(key)
		if !ok || it.CreateRevision != create || it.ModRevision != mod || it.Version != version {
			t.Fatalf("%s is %+v, want created %d, changed %d, version %d", key, it, create, mod, version)
		}
	}
	s.Apply(put("a", "x", Condition{}))
	want("a", 1, 1, 1)
	s.Apply(put("b", "x", Condition{}))
	s.Apply(put("a", "x", Condition{}))
	want("a", 1, 3, 2)
	s.Apply(del("a", Condition{}))
	s.Apply(put("a", "x", Condition{}))
	want("a", 5, 5, 1)
	want("b", 2, 2, 1)
}

// Guarantee: the client URL of a member is replicated state, that of a
// stranger is not.
func TestPublish(t *testing.T) {
	s := New(testkit.Peers())
	s.Apply(Command{Kind: KindPublish, Member: 2, clientURL: "http://x"})
	s.Apply(Command{Kind: KindPublish, Member: 9, clientURL: "http://y"})
	if m := s.Membership.Members; len(m) != 3 || m[2].ClientURL != "http://x" || m[1].ClientURL != "" {
		t.Fatalf("members are %+v", m)
	}
}

// Guarantee: a stored value does not keep, or change with, the entry it came in.
func TestValueIsCopied(t *testing.T) {
	s := New(testkit.Peers())
	value := []byte("before")
	s.Apply(Command{Kind: KindPut, Key: "k", Value: value})
	copy(value, "AFTER!")
	if it, _ := s.Items.Get("k"); string(it.Value) != "before" {
		t.Fatalf("the value became %q", it.Value)
	}
}

// dumbStore is what the store must be equal to.
type dumbStore struct {
	items    map[string]Item
	revision uint64
}

func (d *dumbStore) apply(c Command) Result {
	old, exists := d.items[c.Key]
	ok := true
	switch c.condition.Kind {
	case IfExists:
		ok = exists
	case IfMissing:
		ok = !exists
	case IfAtRevision:
		ok = exists && old.ModRevision == c.condition.Revision
	}
	switch {
	case !ok && exists:
		return Result{Err: problem.ErrPrecondition, Revision: old.ModRevision}
	case !ok:
		return Result{Err: problem.ErrPrecondition}
	case c.Kind == KindDelete && !exists:
		return Result{Err: problem.ErrNotFound}
	}
	d.revision++
	if c.Kind == KindDelete {
		delete(d.items, c.Key)
		return Result{Deletion: d.revision}
	}
	it := Item{Value: string(c.Value), CreateRevision: d.revision, ModRevision: d.revision, Version: 1}
	if exists {
		it.CreateRevision, it.Version = old.CreateRevision, old.Version+1
	}
	d.items[c.Key] = it
	return Result{Revision: d.revision, Created: !exists}
}

func randomCommand(rnd *rand.Rand, revision uint64) Command {
	c := Command{Kind: KindPut, Key: fmt.Sprint("key", rnd.IntN(20))}
	c.condition.Kind = txn.ConditionKind(rnd.IntN(4))
	if c.condition.Kind == IfAtRevision {
		c.condition.Revision = revision - min(revision, uint64(rnd.IntN(20)))
	}
	if rnd.IntN(3) == 0 {
		c.Kind = KindDelete
		return c
	}
	c.Value = make([]byte, rnd.IntN(9))
	for i := range c.Value {
		c.Value[i] = byte(rnd.Uint32())
	}
	return c
}

// Guarantee: put, delete, conditions, revisions, versions and the count of
// bytes do what they say, in any order.
func TestStateAgreesWithModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s, d := New(testkit.Peers()), &dumbStore{items: make(map[string]Item)}
		for range 300 {
			c := randomCommand(rnd, d.revision)
			if got, want := s.Apply(c), d.apply(c); got != want {
				t.Fatalf("seed %d: %+v gave %+v, want %+v", seed, c, got, want)
			}
			bytes := 0
			for key, it := range d.items {
				bytes += len(key) + len(it.Value)
			}
			if s.Revision != d.revision || s.Bytes != uint64(bytes) || s.Items.Len() != len(d.items) {
				t.Fatalf("seed %d: revision %d, %d bytes, %d keys; want %d, %d, %d",
					seed, s.Revision, s.Bytes, s.Items.Len(), d.revision, bytes, len(d.items))
			}
		}
		keys := slices.Sorted(maps.Keys(d.items))
		if got := s.Items.Keys(); !slices.Equal(got, keys) {
			t.Fatalf("seed %d: keys %q, want %q", seed, got, keys)
		}
		for key, want := range d.items {
			got, _ := s.Items.Get(key)
			if *got != want {
				t.Fatalf("seed %d: %s is %+v, want %+v", seed, key, got, want)
			}
		}
	}
}

// Guarantee: who is not a member changes nothing and leaves nothing behind,
// before it joins and after it was removed.
func TestBatchOfNonMember(t *testing.T) {
	s := New(testkit.Peers())
	s.ApplyBatch(BatchID{Node: 3, Boot: 1}, []Command{put("k", "v", Condition{})})
	if len(s.Windows) != 1 {
		t.Fatalf("windows are %v", s.Windows)
	}
	if changed, err := s.ApplyChange(membership.Change{Op: membership.OpRemove, ID: 3}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	before := dumpState(s)
	for _, node := range []uint64{0, 3, 4} {
		if res, first := s.ApplyBatch(BatchID{Node: node, Boot: 1, Seq: 1}, []Command{put("k", "w", Condition{})}); res != nil || first {
			t.Fatalf("node %d: %+v, %v", node, res, first)
		}
	}
	if got := dumpState(s); got != before || len(s.Windows) != 0 {
		t.Fatalf("the state went from\n%s to\n%s", before, got)
	}
}

// Guarantee: a snapshot that is being written does not see later writes.
func TestCopyIsUntouched(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	s := New(testkit.Peers())
	feed := func(from, n uint64) {
		for seq := from; seq < from+n; seq++ {
			s.Index++
			s.ApplyBatch(BatchID{Node: 1 + seq%3, Boot: 1, Seq: seq, Low: seq}, []Command{
				randomCommand(rnd, s.Revision), put(fmt.Sprint(rnd.IntN(5000)), "v", Condition{}),
			})
		}
	}
	feed(0, 2000)
	c := s.Copy()
	want := dumpState(c)
	if want != dumpState(s) {
		t.Fatal("the copy differs")
	}
	feed(2000, 500)
	for _, m := range []membership.Change{{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}, {Op: membership.OpRemove, ID: 1}} {
		if changed, err := s.ApplyChange(m); !changed {
			t.Fatal(err)
		}
	}
	s.Apply(Command{Kind: KindPublish, Member: 2, clientURL: "http://x"})
	s.Items.Clear()
	if dumpState(c) != want {
		t.Fatal("later writes reached the copy")
	}
	d := c.Copy()
	c.Apply(put("k", "v", Condition{}))
	if dumpState(d) != want {
		t.Fatal("writes to the original reached a copy of the copy")
	}
}

// Guarantee: replicas that apply the same log are equal, and a batch that
// raft delivers more than once counts once.
func TestReplicasAreEqual(t *testing.T) {
	type entry struct {
		id   BatchID
		cmds []Command
	}
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		a, b, c := New(testkit.Peers()), New(testkit.Peers()), New(testkit.Peers())
		var log []entry
		next := make(map[BatchID]uint64) // by node and boot
		for range 200 {
			node := BatchID{Node: 1 + uint64(rnd.IntN(4)), Boot: 1 + uint64(rnd.IntN(2)+len(log)/100)}
			e := entry{id: node}
			e.id.Seq = next[node] + uint64(rnd.IntN(4)) // out of order, now and then twice
			e.id.Low = next[node] - min(next[node], uint64(rnd.IntN(10)))
			next[node]++
			for range rnd.IntN(4) {
				e.cmds = append(e.cmds, randomCommand(rnd, a.Revision))
			}
			log = append(log, e)
			ra, fa := a.ApplyBatch(e.id, e.cmds)
			rb, fb := b.ApplyBatch(e.id, e.cmds)
			if _, fc := c.ApplyBatch(e.id, e.cmds); fa != fb || fa != fc || !reflect.DeepEqual(ra, rb) {
				t.Fatalf("seed %d: %+v gave %v %v, %v %v, %v", seed, e.id, ra, fa, rb, fb, fc)
			}
			for range rnd.IntN(3) {
				old := log[max(0, len(log)-1-rnd.IntN(30))]
				if res, first := c.ApplyBatch(old.id, old.cmds); res != nil || first {
					t.Fatalf("seed %d: %+v was applied again", seed, old.id)
				}
			}
		}
		if !reflect.DeepEqual(a.Windows, b.Windows) || dumpState(a) != dumpState(b) {
			t.Fatalf("seed %d: the same log, but\n%s and\n%s", seed, dumpState(a), dumpState(b))
		}
		if dumpState(a) != dumpState(c) {
			t.Fatalf("seed %d: duplicates changed\n%s to\n%s", seed, dumpState(a), dumpState(c))
		}
	}
}

// Guarantee: of two lives with the same number, only the batches of the one that
// came first are applied; and one that does not name its life goes with either.
func TestWindowAdmitsOneLife(t *testing.T) {
	w := Window{Boot: 7}
	for i, tt := range []struct {
		id   BatchID
		want bool
	}{
		{BatchID{Boot: 7, Seq: 0}, true},
		{BatchID{Boot: 7, Seq: 1, Life: 70}, true},
		{BatchID{Boot: 7, Seq: 2, Life: 71}, false},
		{BatchID{Boot: 7, Seq: 2}, true},
		{BatchID{Boot: 7, Seq: 3, Life: 70}, true},
		{BatchID{Boot: 8, Seq: 0, Life: 71}, true},
		{BatchID{Boot: 7, Seq: 4, Life: 70}, false},
	} {
		if got := w.Admit(tt.id); got != tt.want {
			t.Errorf("%d: %+v: %t", i, tt.id, got)
		}
	}
}

// Guarantee: the members in the replicated state are raft's, after any changes
// in any order; there is always a voter; an ID and a URL are used once.
func TestMembershipAgreesWithRaft(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		m := membership.New(testkit.Peers()[:1+rnd.IntN(3)])
		mem := raft.NewMemoryStorage()
		err := mem.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(uint64(1)), Term: new(uint64(1)), ConfState: m.ConfState(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		rn, err := raft.NewRawNode(&raft.Config{
			ID: 1000, ElectionTick: 10, HeartbeatTick: 1, Storage: mem, MaxSizePerMsg: 1, MaxInflightMsgs: 1,
			Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &State{Membership: m, Windows: make(map[uint64]Window)}
		removed := make(map[uint64]bool)
		for range 200 {
			c := membership.Change{Op: membership.Op(1 + rnd.IntN(int(membership.LastOp))), ID: 1 + uint64(rnd.IntN(12)), Request: rnd.Uint64N(50)}
			if c.Op.Adds() || rnd.IntN(2) == 0 {
				c.PeerURL = fmt.Sprintf("http://h:%d", 1+rnd.IntN(12))
			}
			cc := c.ConfChange()
			changed, _ := s.ApplyChange(c)
			if !changed {
				cc.NodeId = new(raft.None)
			} else if c.Op == membership.OpRemove {
				removed[c.ID] = true
			}
			if got, want := rn.ApplyConfChange(cc), s.Membership.ConfState(); !proto.Equal(got, want) {
				t.Fatalf("seed %d: after %+v raft has %v, the state %v", seed, c, got, want)
			}
			urls := make(map[string]bool)
			for id, mem := range s.Membership.Members {
				if removed[id] || urls[mem.PeerURL] || mem.ID != id {
					t.Fatalf("seed %d: after %+v the members are %+v", seed, c, s.Membership)
				}
				urls[mem.PeerURL] = true
			}
			if len(s.Membership.Voters()) == 0 || !reflect.DeepEqual(s.Membership.Removed, removed) {
				t.Fatalf("seed %d: after %+v the members are %+v", seed, c, s.Membership)
			}
		}
	}
}
