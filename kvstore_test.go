package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// dumpState writes out all of a state but the way in which its windows are kept.
func dumpState(s *state) string {
	var b bytes.Buffer
	fmt.Fprintln(&b, s.index, s.term, s.revision, s.bytes, s.membership.sorted(), sortedKeys(s.membership.removed), s.membership.changes)
	for _, node := range sortedKeys(s.windows) {
		w := s.windows[node]
		w.raise(0) // what was applied without a gap may or may not be shifted out yet
		fmt.Fprintln(&b, node, w)
	}
	s.scan(func(key string, it *item) bool {
		fmt.Fprintf(&b, "%q %q %d %d %d\n", key, it.value, it.createRevision, it.modRevision, it.version)
		return true
	})
	return b.String()
}

func put(key, value string, c condition) command {
	return command{kind: kindPut, condition: c, key: key, value: []byte(value)}
}

func del(key string, c condition) command {
	return command{kind: kindDelete, condition: c, key: key}
}

// Guarantee: conditions are decided against the current state, a refused one
// reports the current ETag and takes no revision.
func TestConditions(t *testing.T) {
	missing, matching, other := condition{kind: ifMissing}, condition{ifAtRevision, 1}, condition{ifAtRevision, 9}
	exists := condition{kind: ifExists}
	for _, tt := range []struct {
		name string
		cmd  command
		want result
	}{
		{"put", put("k", "w", condition{}), result{revision: 2}},
		{"put new", put("n", "w", condition{}), result{revision: 2}},
		{"put if exists", put("k", "w", exists), result{revision: 2}},
		{"put new if exists", put("n", "w", exists), result{err: problem.ErrPrecondition}},
		{"put if missing", put("k", "w", missing), result{err: problem.ErrPrecondition, revision: 1}},
		{"put new if missing", put("n", "w", missing), result{revision: 2}},
		{"put at revision", put("k", "w", matching), result{revision: 2}},
		{"put at other revision", put("k", "w", other), result{err: problem.ErrPrecondition, revision: 1}},
		{"put new at revision", put("n", "w", matching), result{err: problem.ErrPrecondition}},
		{"put new at revision 0", put("n", "w", condition{ifAtRevision, 0}), result{err: problem.ErrPrecondition}},
		{"delete", del("k", condition{}), result{deletion: 2}},
		{"delete new", del("n", condition{}), result{err: problem.ErrNotFound}},
		{"delete if exists", del("k", exists), result{deletion: 2}},
		{"delete new if exists", del("n", exists), result{err: problem.ErrPrecondition}},
		{"delete if missing", del("k", missing), result{err: problem.ErrPrecondition, revision: 1}},
		{"delete new if missing", del("n", missing), result{err: problem.ErrNotFound}},
		{"delete at revision", del("k", matching), result{deletion: 2}},
		{"delete at other revision", del("k", other), result{err: problem.ErrPrecondition, revision: 1}},
		{"publish", command{kind: kindPublish, member: 1, clientURL: "http://x"}, result{}},
	} {
		s := newState(testkit.Peers())
		s.apply(put("k", "v", condition{}))
		got := s.apply(tt.cmd)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if want := 1 + min(got.revision+got.deletion, 1); got.err == nil && tt.cmd.kind != kindPublish && s.revision != want ||
			got.err != nil && s.revision != 1 {
			t.Errorf("%s: the store is at revision %d", tt.name, s.revision)
		}
	}
}

// Guarantee: a key's create_revision, mod_revision and version tell its
// history; writing the same value is a change; a key that comes back starts anew.
func TestItemHistory(t *testing.T) {
	s := newState(testkit.Peers())
	want := func(key string, create, mod, version uint64) {
		t.Helper()
		it, ok := s.items.Get(key)
		if !ok || it.createRevision != create || it.modRevision != mod || it.version != version {
			t.Fatalf("%s is %+v, want created %d, changed %d, version %d", key, it, create, mod, version)
		}
	}
	s.apply(put("a", "x", condition{}))
	want("a", 1, 1, 1)
	s.apply(put("b", "x", condition{}))
	s.apply(put("a", "x", condition{}))
	want("a", 1, 3, 2)
	s.apply(del("a", condition{}))
	s.apply(put("a", "x", condition{}))
	want("a", 5, 5, 1)
	want("b", 2, 2, 1)
}

// Guarantee: the client URL of a member is replicated state, that of a
// stranger is not.
func TestPublish(t *testing.T) {
	s := newState(testkit.Peers())
	s.apply(command{kind: kindPublish, member: 2, clientURL: "http://x"})
	s.apply(command{kind: kindPublish, member: 9, clientURL: "http://y"})
	if m := s.membership.members; len(m) != 3 || m[2].ClientURL != "http://x" || m[1].ClientURL != "" {
		t.Fatalf("members are %+v", m)
	}
}

// Guarantee: a stored value does not keep, or change with, the entry it came in.
func TestValueIsCopied(t *testing.T) {
	s := newState(testkit.Peers())
	value := []byte("before")
	s.apply(command{kind: kindPut, key: "k", value: value})
	copy(value, "AFTER!")
	if it, _ := s.items.Get("k"); string(it.value) != "before" {
		t.Fatalf("the value became %q", it.value)
	}
}

// dumbStore is what the store must be equal to.
type dumbStore struct {
	items    map[string]item
	revision uint64
}

func (d *dumbStore) apply(c command) result {
	old, exists := d.items[c.key]
	ok := true
	switch c.condition.kind {
	case ifExists:
		ok = exists
	case ifMissing:
		ok = !exists
	case ifAtRevision:
		ok = exists && old.modRevision == c.condition.revision
	}
	switch {
	case !ok && exists:
		return result{err: problem.ErrPrecondition, revision: old.modRevision}
	case !ok:
		return result{err: problem.ErrPrecondition}
	case c.kind == kindDelete && !exists:
		return result{err: problem.ErrNotFound}
	}
	d.revision++
	if c.kind == kindDelete {
		delete(d.items, c.key)
		return result{deletion: d.revision}
	}
	it := item{value: c.value, createRevision: d.revision, modRevision: d.revision, version: 1}
	if exists {
		it.createRevision, it.version = old.createRevision, old.version+1
	}
	d.items[c.key] = it
	return result{revision: d.revision}
}

func randomCommand(rnd *rand.Rand, revision uint64) command {
	c := command{kind: kindPut, key: fmt.Sprint("key", rnd.IntN(20))}
	c.condition.kind = conditionKind(rnd.IntN(4))
	if c.condition.kind == ifAtRevision {
		c.condition.revision = revision - min(revision, uint64(rnd.IntN(20)))
	}
	if rnd.IntN(3) == 0 {
		c.kind = kindDelete
		return c
	}
	c.value = make([]byte, rnd.IntN(9))
	for i := range c.value {
		c.value[i] = byte(rnd.Uint32())
	}
	return c
}

// Guarantee: put, delete, conditions, revisions, versions and the count of
// bytes do what they say, in any order.
func TestStateAgreesWithModel(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s, d := newState(testkit.Peers()), &dumbStore{items: make(map[string]item)}
		for range 300 {
			c := randomCommand(rnd, d.revision)
			if got, want := s.apply(c), d.apply(c); got != want {
				t.Fatalf("seed %d: %+v gave %+v, want %+v", seed, c, got, want)
			}
			bytes := 0
			for key, it := range d.items {
				bytes += len(key) + len(it.value)
			}
			if s.revision != d.revision || s.bytes != uint64(bytes) || s.items.Len() != len(d.items) {
				t.Fatalf("seed %d: revision %d, %d bytes, %d keys; want %d, %d, %d",
					seed, s.revision, s.bytes, s.items.Len(), d.revision, bytes, len(d.items))
			}
		}
		keys := slices.Sorted(maps.Keys(d.items))
		if got := s.items.Keys(); !slices.Equal(got, keys) {
			t.Fatalf("seed %d: keys %q, want %q", seed, got, keys)
		}
		for key, want := range d.items {
			got, _ := s.items.Get(key)
			if !bytes.Equal(got.value, want.value) || got.createRevision != want.createRevision ||
				got.modRevision != want.modRevision || got.version != want.version {
				t.Fatalf("seed %d: %s is %+v, want %+v", seed, key, got, want)
			}
		}
	}
}

// dumbWindow is what a window must be equal to, kept without bounds.
type dumbWindow struct {
	boot, low uint64
	done      map[uint64]bool
}

func (d *dumbWindow) admit(id batchID) bool {
	if id.boot < d.boot {
		return false
	}
	if id.boot > d.boot {
		*d = dumbWindow{boot: id.boot, done: make(map[uint64]bool)}
	}
	d.low = max(d.low, id.low)
	if id.seq < d.low || d.done[id.seq] {
		return false
	}
	if id.seq >= windowSize {
		d.low = max(d.low, id.seq-windowSize+1)
	}
	d.done[id.seq] = true
	return true
}

func (d *dumbWindow) settled(id batchID) bool {
	return id.boot < d.boot || id.boot == d.boot && (id.seq < d.low || d.done[id.seq])
}

// Guarantee: a batch is applied at most once however often and in whatever
// order its copies come, and only what can still come is remembered.
func TestWindowAgreesWithModel(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		w, d := window{}, dumbWindow{done: make(map[uint64]bool)}
		boot, at := uint64(0), uint64(rnd.IntN(3))
		for step := range 300 {
			if rnd.IntN(100) == 0 {
				boot++
			}
			at += uint64(rnd.IntN(3))
			if rnd.IntN(50) == 0 {
				at += uint64(rnd.IntN(200))
			}
			near := func(n int) uint64 { return at - min(at, uint64(rnd.IntN(n))) }
			id := batchID{node: 1, boot: boot - min(boot, uint64(rnd.IntN(20)/19)), seq: near(90), low: near(90)}
			if got, want := w.admit(id), d.admit(id); got != want {
				t.Fatalf("seed %d, step %d: admit(%+v) is %v, want %v (%+v)", seed, step, id, got, want, w)
			}
			for seq := at - min(at, 150); seq < at+150; seq++ {
				for b := boot - min(boot, 1); b <= boot+1; b++ {
					id := batchID{node: 1, boot: b, seq: seq}
					if got, want := w.settled(id), d.settled(id); got != want {
						t.Fatalf("seed %d, step %d: settled(%+v) is %v, want %v (%+v)", seed, step, id, got, want, w)
					}
				}
			}
		}
	}
}

// Guarantee: the edges of the window, which random numbers may miss.
func TestWindowEdges(t *testing.T) {
	full := func() window {
		var w window
		for seq := range uint64(windowSize) {
			w.admit(batchID{seq: windowSize - 1 - seq}) // backwards: nothing is shifted out
		}
		return w
	}
	for _, tt := range []struct {
		name string
		w    window
		id   batchID
		want bool
	}{
		{"last of an empty window", window{}, batchID{seq: windowSize - 1}, true},
		{"first after a full one", full(), batchID{seq: windowSize}, true},
		{"first of a full one again", full(), batchID{seq: 0}, false},
		{"last of a full one again", full(), batchID{seq: windowSize - 1}, false},
		{"low far ahead", full(), batchID{seq: 1000, low: 1000}, true},
		{"low ahead of the batch", window{}, batchID{seq: 4, low: 5}, false},
		{"a very large sequence", window{}, batchID{seq: math.MaxUint64 - windowSize}, true},
		{"an earlier life", window{boot: 2}, batchID{boot: 1, seq: 9}, false},
		{"a later life", full(), batchID{boot: 1}, true},
	} {
		if got := tt.w.admit(tt.id); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if tt.w.admit(tt.id) {
			t.Errorf("%s: admitted again", tt.name)
		}
		if !tt.w.settled(tt.id) {
			t.Errorf("%s: not settled", tt.name)
		}
	}
}

// Guarantee: who is not a member changes nothing and leaves nothing behind,
// before it joins and after it was removed.
func TestBatchOfNonMember(t *testing.T) {
	s := newState(testkit.Peers())
	s.applyBatch(batchID{node: 3, boot: 1}, []command{put("k", "v", condition{})})
	if len(s.windows) != 1 {
		t.Fatalf("windows are %v", s.windows)
	}
	if changed, err := s.applyMemberChange(memberChange{op: opRemove, id: 3}); !changed || err != nil {
		t.Fatal(changed, err)
	}
	before := dumpState(s)
	for _, node := range []uint64{0, 3, 4} {
		if res, first := s.applyBatch(batchID{node: node, boot: 1, seq: 1}, []command{put("k", "w", condition{})}); res != nil || first {
			t.Fatalf("node %d: %+v, %v", node, res, first)
		}
	}
	if got := dumpState(s); got != before || len(s.windows) != 0 {
		t.Fatalf("the state went from\n%s to\n%s", before, got)
	}
}

// Guarantee: a snapshot that is being written does not see later writes.
func TestCopyIsUntouched(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	s := newState(testkit.Peers())
	feed := func(from, n uint64) {
		for seq := from; seq < from+n; seq++ {
			s.index++
			s.applyBatch(batchID{node: 1 + seq%3, boot: 1, seq: seq, low: seq}, []command{
				randomCommand(rnd, s.revision), put(fmt.Sprint(rnd.IntN(5000)), "v", condition{}),
			})
		}
	}
	feed(0, 2000)
	c := s.copy()
	want := dumpState(c)
	if want != dumpState(s) {
		t.Fatal("the copy differs")
	}
	feed(2000, 500)
	for _, m := range []memberChange{{op: opAdd, id: 4, peerURL: "http://d:4"}, {op: opRemove, id: 1}} {
		if changed, err := s.applyMemberChange(m); !changed {
			t.Fatal(err)
		}
	}
	s.apply(command{kind: kindPublish, member: 2, clientURL: "http://x"})
	s.items.Clear()
	if dumpState(c) != want {
		t.Fatal("later writes reached the copy")
	}
	d := c.copy()
	c.apply(put("k", "v", condition{}))
	if dumpState(d) != want {
		t.Fatal("writes to the original reached a copy of the copy")
	}
}

// Guarantee: replicas that apply the same log are equal, and a batch that
// raft delivers more than once counts once.
func TestReplicasAreEqual(t *testing.T) {
	type entry struct {
		id   batchID
		cmds []command
	}
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		a, b, c := newState(testkit.Peers()), newState(testkit.Peers()), newState(testkit.Peers())
		var log []entry
		next := make(map[batchID]uint64) // by node and boot
		for range 200 {
			node := batchID{node: 1 + uint64(rnd.IntN(4)), boot: 1 + uint64(rnd.IntN(2)+len(log)/100)}
			e := entry{id: node}
			e.id.seq = next[node] + uint64(rnd.IntN(4)) // out of order, now and then twice
			e.id.low = next[node] - min(next[node], uint64(rnd.IntN(10)))
			next[node]++
			for range rnd.IntN(4) {
				e.cmds = append(e.cmds, randomCommand(rnd, a.revision))
			}
			log = append(log, e)
			ra, fa := a.applyBatch(e.id, e.cmds)
			rb, fb := b.applyBatch(e.id, e.cmds)
			if _, fc := c.applyBatch(e.id, e.cmds); fa != fb || fa != fc || !reflect.DeepEqual(ra, rb) {
				t.Fatalf("seed %d: %+v gave %v %v, %v %v, %v", seed, e.id, ra, fa, rb, fb, fc)
			}
			for range rnd.IntN(3) {
				old := log[max(0, len(log)-1-rnd.IntN(30))]
				if res, first := c.applyBatch(old.id, old.cmds); res != nil || first {
					t.Fatalf("seed %d: %+v was applied again", seed, old.id)
				}
			}
		}
		if !reflect.DeepEqual(a.windows, b.windows) || dumpState(a) != dumpState(b) {
			t.Fatalf("seed %d: the same log, but\n%s and\n%s", seed, dumpState(a), dumpState(b))
		}
		if dumpState(a) != dumpState(c) {
			t.Fatalf("seed %d: duplicates changed\n%s to\n%s", seed, dumpState(a), dumpState(c))
		}
	}
}

// newTestStore returns a kvstore of node 1 without the goroutines around it.
func newTestStore() *kvstore {
	return &kvstore{
		agreement: newAgreement(zap.NewNop(), 1, 0, 0),
		log:       zap.NewNop(), applied: &wait.Index{}, conf: wait.NewOutcomes(), state: newState(testkit.Peers()),
		proposals: newProposer(zap.NewNop(), config{ID: 1}, newLife(1, 1), nil, wait.NewLeadership()),
	}
}

func entryAt(index uint64, data []byte) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(uint64(1)), Type: raftpb.EntryNormal.Enum(), Data: data}
}

// Guarantee: an entry that no version wrote is ignored by every node alike,
// one of a newer version stops the node, and none is left out or taken twice.
func TestApplyEntries(t *testing.T) {
	good := encodeBatch(batchID{node: 1, boot: 1}, put("k", "v", condition{}))
	newer := appendCommand(appendBatchHeader(nil, batchID{node: 1, boot: 1}), []byte{99})
	for _, tt := range []struct {
		name     string
		entries  []*raftpb.Entry
		want     error // nil: none
		fails    bool
		revision uint64
	}{
		{"good", []*raftpb.Entry{entryAt(1, good)}, nil, false, 1},
		{"twice", []*raftpb.Entry{entryAt(1, good), entryAt(2, good)}, nil, false, 1},
		{"empty", []*raftpb.Entry{entryAt(1, nil), entryAt(2, good)}, nil, false, 1},
		{"malformed", []*raftpb.Entry{entryAt(1, []byte{1, 2, 3}), entryAt(2, good)}, nil, false, 1},
		{"newer", []*raftpb.Entry{entryAt(1, newer), entryAt(2, good)}, record.ErrUnknownCommand, true, 0},
		{"a gap", []*raftpb.Entry{entryAt(2, good)}, nil, true, 0},
		{"a repetition", []*raftpb.Entry{entryAt(1, nil), entryAt(1, good)}, nil, true, 0},
	} {
		kv := newTestStore()
		err := kv.commit(commit{entries: tt.entries}, nil)
		if (err != nil) != tt.fails || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if kv.state.revision != tt.revision || err == nil && kv.applied.Get() != uint64(len(tt.entries)) {
			t.Errorf("%s: at revision %d, applied %d", tt.name, kv.state.revision, kv.applied.Get())
		}
	}
}

// Guarantee: a refused or void membership change reaches raft as void, so that
// raft's members stay those of the state.
func TestApplyConfChange(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  memberChange
		node    uint64 // what raft gets
		outcome error
	}{
		{"add", memberChange{op: opAdd, id: 4, peerURL: "http://d:4", request: 7}, 4, nil},
		{"add again", memberChange{op: opAdd, id: 3, peerURL: "http://c:3", request: 7}, 0, nil},
		{"refused", memberChange{op: opAdd, id: 4, peerURL: "http://c:3", request: 7}, 0, problem.ErrMemberExists},
		{"bad URL", memberChange{op: opAdd, id: 4, peerURL: "http://d:4/", request: 7}, 0, problem.ErrBadPeerURL},
		{"remove", memberChange{op: opRemove, id: 3, request: 7}, 3, nil},
	} {
		kv := newTestStore()
		outcome, cancel := kv.conf.Register(7)
		defer cancel()
		data, err := proto.Marshal(tt.change.confChange())
		if err != nil {
			t.Fatal(err)
		}
		e := entryAt(1, data)
		e.Type = raftpb.EntryConfChange.Enum()
		var told *raftpb.ConfChange
		var members membership
		err = kv.commit(commit{entries: []*raftpb.Entry{e}}, func(_ uint64, cc *raftpb.ConfChange, m membership) error {
			told, members = cc, m
			return nil
		})
		if err != nil || told.GetNodeId() != tt.node {
			t.Errorf("%s: raft is told of node %d (%v), want %d", tt.name, told.GetNodeId(), err, tt.node)
		}
		if got := <-outcome; !errors.Is(got, tt.outcome) {
			t.Errorf("%s: the outcome is %v, want %v", tt.name, got, tt.outcome)
		}
		if !reflect.DeepEqual(members, kv.state.membership) || kv.state.index != 1 {
			t.Errorf("%s: members %+v, the state at %d has %+v", tt.name, members, kv.state.index, kv.state.membership)
		}
	}
}

// Guarantee: snapshots cost no more writing than the log did, the log stays
// bounded in bytes, and a snapshot that found the writer busy is made later.
func TestSnapshotPolicy(t *testing.T) {
	for _, tt := range []struct {
		commands, bytes, state uint64
		want                   bool
	}{
		{99, 1000, 10, false}, {100, 1000, 10, true}, {100, 1000, 1001, false},
		{1, maxLogBytes, 10, true}, {1, maxLogBytes, maxLogBytes + 1, false}, {1, maxLogBytes - 1, 10, false},
	} {
		p := snapshotPolicy{every: 100, commands: tt.commands, bytes: tt.bytes}
		if got := p.isDue(tt.state); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	kv, states := newTestStore(), make(chan *state, 1)
	kv.writer = make(chan struct{}, 1)
	kv.snapshots, kv.due = states, snapshotPolicy{every: 1, commands: 1, bytes: 1}
	kv.snapshotIfDue()
	kv.due.commands, kv.due.bytes = 1, 1
	kv.snapshotIfDue() // busy
	if len(states) != 1 || kv.due.commands != 1 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
	<-states
	kv.snapshotIfDue() // still busy: it is being written
	if len(states) != 0 {
		t.Fatal("a copy waits for the writer, and keeps what is overwritten")
	}
	<-kv.writer
	kv.snapshotIfDue()
	if len(states) != 1 || kv.due.commands != 0 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
	<-states
	<-kv.writer

	// Somebody needs one, and says so again and again: it is taken once.
	kv.state.index = 7
	for range 3 {
		kv.askForSnapshot(5)
		kv.snapshotIfDue()
		kv.state.index++
	}
	if len(states) != 1 || kv.due.last != 7 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
}
