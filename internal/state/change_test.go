package state

import (
	"fmt"
	"math/rand/v2"
	"raftkv/internal/changelog"
	"raftkv/internal/entry"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// follower keeps a copy of the items by what the changes say alone.
type follower struct {
	items    map[string]*Item
	leases   map[string]uint64
	revision uint64
}

// follow takes in what has changed since the last call.
func (f *follower) follow(t *testing.T, s *State) {
	t.Helper()
	entries, ok := s.Changes.After(f.revision, 1<<20)
	if !ok {
		t.Fatalf("the changes behind %d are gone", f.revision)
	}
	for _, e := range entries {
		if e.Revision != f.revision+1 || len(e.Changes) == 0 {
			t.Fatalf("revision %d with %d changes follows %d", e.Revision, len(e.Changes), f.revision)
		}
		f.revision = e.Revision
		seen := make(map[string]bool)
		for _, c := range e.Changes {
			if seen[c.Key] || c.Revision != e.Revision || (c.Item == nil) != (c.Kind != changelog.Put) {
				t.Fatalf("revision %d: %+v", e.Revision, c)
			}
			seen[c.Key] = true
			if c.Item == nil {
				delete(f.items, c.Key)
				delete(f.leases, c.Key)
			} else {
				f.items[c.Key], f.leases[c.Key] = c.Item, c.Lease
			}
		}
	}
	if f.revision != s.Revision {
		t.Fatalf("the changes end at %d, the store is at %d", f.revision, s.Revision)
	}
	if len(f.items) != s.Items.Len() {
		t.Fatalf("revision %d: %d keys by the changes, %d in the store", s.Revision, len(f.items), s.Items.Len())
	}
	s.Scan(func(key string, it *Item) bool {
		if f.items[key] != it || f.leases[key] != s.Left(it).Lease {
			t.Fatalf("revision %d: %s is %+v with lease %d by the changes, %+v with %d in the store",
				s.Revision, key, f.items[key], f.leases[key], it, s.Left(it).Lease)
		}
		return true
	})
}

// randomChange encodes a command of any kind that changes keys, or a tick.
func randomChange(rng *rand.Rand, s *State, seq uint64) []byte {
	key := fmt.Sprint("k", rng.IntN(9))
	batch := func(cmd []byte) []byte {
		b := entry.AppendHeader(nil, BatchID{Node: 1, Boot: 1, Seq: seq, Low: seq})
		return entry.AppendCommand(b, cmd)
	}
	switch rng.IntN(10) {
	case 0:
		return entry.EncodeTick(1, s.Leases.Clock+rng.Uint64N(3000))
	case 1:
		return batch(EncodeDeletePrefix(fmt.Sprint("k", rng.IntN(3)), rng.Uint64N(2), ""))
	case 2:
		return batch(EncodeAdd(Condition{}, Lifetime{}, key, 1))
	case 3:
		return batch(append(AppendAppendHead(nil, Lifetime{}, "q/"), 'v'))
	case 4:
		return batch(EncodeTxn(&txn.Txn{MaxBytes: 1 << 20, Then: []txn.Op{
			{Kind: txn.Put, Key: key, Value: []byte("1")}, {Kind: txn.Delete, Key: "k100"}, {Kind: txn.Put, Key: "other", Value: []byte("2")},
		}}))
	case 5:
		c := randomLeaseCommand(rng, s.Leases.Last)
		return encodeBatch(BatchID{Node: 1, Boot: 1, Seq: seq, Low: seq}, c)
	default:
		c := randomLeaseCommand(rng, s.Leases.Last)
		for c.Kind == KindDelete && rng.IntN(2) == 0 {
			c = randomLeaseCommand(rng, s.Leases.Last)
		}
		return encodeBatch(BatchID{Node: 1, Boot: 1, Seq: seq, Low: seq}, c)
	}
}

// Guarantee: who applies the changes has the store, at each revision, and so has who applies
// those of a log that is replayed. Each revision has changed something.
func TestChangesAreTheStore(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 13))
		s, replayed := New(testkit.Peers()), New(testkit.Peers())
		s.Changes.Keep(1<<30, 0)
		replayed.Changes.Keep(1<<30, 0)
		replay := NewReplay(replayed, 2000)
		live := &follower{items: map[string]*Item{}, leases: map[string]uint64{}}
		for seq := range uint64(300) {
			e := raftpb.Entry{Index: new(seq + 1), Term: new(uint64(1)), Data: randomChange(rng, s, seq)}
			_, _, err := s.ApplyEntry(&e)
			testkit.Must(t, err)
			live.follow(t, s)
			if id, cmds, err := DecodeBatch(e.Data); err == nil {
				_, err = replay.Batch(&e, id, cmds)
				testkit.Must(t, err)
			} else {
				_, err := replay.Entry(&e)
				testkit.Must(t, err)
			}
		}
		replay.Flush()
		again := &follower{items: map[string]*Item{}, leases: map[string]uint64{}}
		again.follow(t, replayed)
		if again.revision != live.revision {
			t.Fatalf("seed %d: %d, %d", seed, again.revision, live.revision)
		}
	}
}

// Guarantee: a state that keeps no changes remembers none, and a copy of one that does keeps
// none either.
func TestChangesAreNotKeptUnasked(t *testing.T) {
	s := New(testkit.Peers())
	s.Apply(Command{Kind: KindPut, Key: "a"})
	if s.Changes.Len() != 0 {
		t.Error("changes are kept")
	}
	s.Changes.Keep(1<<20, s.Revision)
	s.Apply(Command{Kind: KindPut, Key: "b"})
	s.Changes.Tell(1)
	if s.Changes.Len() != 1 || s.Changes.Base() != 1 || s.Copy().Changes.Limit() != 0 {
		t.Errorf("%d entries behind %d", s.Changes.Len(), s.Changes.Base())
	}
	if s.DropItems(); s.Changes.Len() != 0 || s.Changes.Base() != 2 || s.Changes.Limit() != 1<<20 {
		t.Errorf("without items %d entries behind %d", s.Changes.Len(), s.Changes.Base())
	}
}
