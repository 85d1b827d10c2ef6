package state

import (
	"fmt"
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Guarantee: a log that is replayed makes the same state as one that is applied entry
// by entry, whatever is gathered.
func TestReplayIsApply(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 60 {
		applied, replayed := New(testkit.Peers()), New(testkit.Peers())
		r := NewReplay(replayed, []int{0, 1000, 1 << 20}[round%3])
		revision := uint64(0) // that a condition may ask for
		for index := uint64(1); index < 60; index++ {
			e := randomEntry(rnd, index, revision)
			want, err := applied.ReplayCounting(e)
			testkit.Must(t, err)
			revision = applied.Revision
			var got int
			if id, cmds, derr := DecodeBatch(e.GetData()); derr == nil && len(e.GetData()) > 0 && rnd.IntN(5) > 0 {
				got, err = r.Batch(e, id, cmds)
			} else {
				got, err = r.Entry(e)
			}
			testkit.Must(t, err)
			if got != want {
				t.Fatalf("entry %d has %d commands, want %d", index, got, want)
			}
		}
		r.Flush()
		if got, want := dumpState(replayed), dumpState(applied); got != want || replayed.Sum != applied.Sum || replayed.Level != applied.Level {
			t.Fatalf("replayed\n%s\nsum %x, applied\n%s\nsum %x", got, replayed.Sum, want, applied.Sum)
		}
		if len(r.waiting) != 0 || r.bytes != 0 {
			t.Fatalf("%d writes still wait", len(r.waiting))
		}
	}
}

func randomEntry(rnd *rand.Rand, index, revision uint64) *raftpb.Entry {
	e := &raftpb.Entry{Term: new(uint64(1)), Index: new(index)}
	switch rnd.IntN(20) {
	case 0:
		return e // of a new leader
	case 1:
		e.Data = []byte{entry.BatchFormat, 0xff} // of nobody
		return e
	}
	// Some twice, some of a stranger.
	e.Data = entry.AppendHeader(nil, BatchID{Node: 1 + uint64(rnd.IntN(12)/11*98), Boot: 1, Seq: index - rnd.Uint64N(2)})
	for range rnd.IntN(12) {
		key := fmt.Sprint("k", rnd.IntN(8))
		c := Condition{}
		if rnd.IntN(4) == 0 {
			c = Condition{Kind: txn.ConditionKind(rnd.IntN(4))}
			if c.Kind == IfAtRevision {
				c.Revision = revision - min(revision, rnd.Uint64N(5))
			}
		}
		kind, value := KindPut, []byte(fmt.Sprint("v", rnd.IntN(1000)))
		if rnd.IntN(6) == 0 {
			kind, value = KindDelete, nil
		}
		e.Data = entry.AppendCommand(e.Data, EncodeWrite(kind, c, key, value))
	}
	return e
}

// Without this what waits may be all of a log.
func TestReplayWaitsWithinBounds(t *testing.T) {
	const limit = 10 << 10
	r := NewReplay(New(testkit.Peers()), limit)
	for index := uint64(1); index < 200; index++ {
		e := &raftpb.Entry{Term: new(uint64(1)), Index: new(index), Data: entry.AppendHeader(nil, BatchID{Node: 1, Boot: 1, Seq: index})}
		e.Data = entry.AppendCommand(e.Data, EncodeWrite(KindPut, Condition{}, fmt.Sprint(index), make([]byte, 100)))
		id, cmds, err := DecodeBatch(e.GetData())
		testkit.Must(t, err)
		_, err = r.Batch(e, id, cmds)
		testkit.Must(t, err)
		if r.bytes >= limit {
			t.Fatalf("%d bytes wait", r.bytes)
		}
	}
	for _, w := range r.waiting[:cap(r.waiting)][len(r.waiting):] {
		if w.cmd != nil {
			t.Fatal("a write that was applied is still held")
		}
	}
	if _, err := r.Batch(&raftpb.Entry{Term: new(uint64(1)), Index: new(uint64(7))}, BatchID{}, nil); err == nil {
		t.Error("an entry out of its turn is taken")
	}
}
