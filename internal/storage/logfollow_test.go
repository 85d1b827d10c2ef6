package storage

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/watermark"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// wantSameBothWays reads a directory in one go and step by step, and compares. It
// reports whether it could be read in one go.
func wantSameBothWays(t testing.TB, dir string, limit int64) bool {
	t.Helper()
	m, err := watermark.Peek(filepath.Join(dir, "mark"))
	testkit.Must(t, err)
	j, l, err := followLog(dir, m, Bounds{Tail: limit})
	if err != nil {
		return false
	}
	k, n := loadLog(dir, m, Bounds{Tail: limit})
	if len(k.Damage) > 0 {
		t.Fatalf("read in one go, but step by step: %v", k.Damage)
	}
	if got, want := statetest.Describe(j.Snapshot), statetest.Describe(k.Snapshot); got != want || l.state != j.Snapshot {
		t.Errorf("the state is\n%s\nwant\n%s", got, want)
	}
	if !proto.Equal(j.Log.Hard, k.Log.Hard) || !proto.Equal(j.Log.Snapshot, k.Log.Snapshot) || j.Log.Last() != k.Log.Last() ||
		j.Log.Proven != k.Log.Proven || j.Tail != k.Tail || *j.Identity != *k.Identity || j.File != k.File || j.Digest != k.Digest {
		t.Errorf("read %+v, want %+v", j.Findings, k.Findings)
	}
	if l.due.Bytes != n.due.Bytes || l.due.Commands != n.due.Commands || l.worked != n.worked || l.base != n.base || l.term != n.term || l.weight != n.weight {
		t.Errorf("loaded %+v, want %+v", l, n)
	}
	if l.facts.Reconfigured != n.facts.Reconfigured || l.facts.OwnURL != n.facts.OwnURL || !maps.Equal(l.facts.Published, n.facts.Published) {
		t.Errorf("the log tells %+v, want %+v", l.facts, n.facts)
	}
	if len(l.tail) != len(n.tail) {
		t.Fatalf("a tail of %d entries, want %d", len(l.tail), len(n.tail))
	}
	for i := range l.tail {
		if !proto.Equal(l.tail[i], n.tail[i]) {
			t.Errorf("in the tail %v, want %v", l.tail[i], n.tail[i])
		}
	}
	return true
}

// Guarantee: a log that is read in one go, beside the state, is the one that is read
// step by step; and what a start mostly finds is read in one go.
func TestStorageReadInOneGo(t *testing.T) {
	if !wantSameBothWays(t, newDisk(t), TailWeight) {
		t.Error("a new directory is not read in one go")
	}
	dir := newDisk(t)
	o := openDisk(t, dir)
	entries := testkit.Entries(2, 2, 60, 40<<10)
	for i, e := range entries {
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, uint64(max(i-3, 1)), e)}))
	}
	takeSnapshot(t, o, someState(t, 2, 20))
	puts := putEntries(2, 61, 90)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 85, puts...)}))
	for _, limit := range []int64{1, 100 << 10, TailWeight} {
		if !wantSameBothWays(t, testkit.Crashed(t, dir), limit) {
			t.Errorf("a log behind a snapshot is not read in one go, with a tail of %d", limit)
		}
	}
	for _, load := range []func() (*judgement, *logLoader){
		func() (*judgement, *logLoader) { return loadLog(dir, markOf(t, dir), Bounds{Tail: TailWeight}) },
		func() (*judgement, *logLoader) {
			j, l, err := followLog(dir, markOf(t, dir), Bounds{Tail: TailWeight})
			testkit.Must(t, err)
			return j, l
		},
	} {
		_, l := load()
		if l.state.Index != 85 || l.state.Get("key/85") == nil || l.state.Get("key/86") != nil || l.due.Commands != 25 || l.worked != 85 {
			t.Errorf("the state is of entry %d and has %v, after %d commands, the last one in entry %d",
				l.state.Index, l.state.Get("key/85"), l.due.Commands, l.worked)
		}
	}
	// A newer state that the log does not name.
	writeSomeState(t, dir, someState(t, 2, 30))
	if crash := testkit.Crashed(t, dir); wantSameBothWays(t, crash, TailWeight) {
		t.Error("read in one go with a state that does not count")
	} else {
		wantState(t, openDisk(t, crash), 20)
	}
	// One of another term than the log names.
	crash := testkit.Crashed(t, dir)
	testkit.Must(t, os.Remove(StatePath(crash, 2, 20)))
	testkit.Must(t, os.Remove(StatePath(crash, 2, 30)))
	writeSomeState(t, crash, someState(t, 3, 20))
	if wantSameBothWays(t, crash, TailWeight) {
		t.Error("read in one go with a state of another term")
	}
	wantRefused(t, crash, "no such file")
}

// putEntries are entries of node 1 that each put a key.
func putEntries(term, from, to uint64) (entries []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		data := entry.AppendHeader(nil, state.BatchID{Node: 1, Boot: 1, Seq: i})
		data = entry.AppendCommand(data, state.EncodeWrite(state.KindPut, state.Condition{}, fmt.Sprint("key/", i), []byte("value")))
		entries = append(entries, &raftpb.Entry{Term: new(term), Index: new(i), Data: data})
	}
	return entries
}
