package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"raftkv/internal/verdict"
	"testing"
)

func (s *State) hash() uint64 { return stateHash(s.hashRest(), s.Sum, uint64(s.Items.Len())) }

// Guarantee: the hash that is kept up to date is the one computed anew, after
// any commands, in a copy, and in what was written and read.
func TestSumAgreesWithItems(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		s := New(testkit.Peers())
		for range 500 {
			s.Apply(randomCommand(rnd, s.Revision))
			if got := HashItems(&s.Items); got != s.Sum {
				t.Fatalf("seed %d: the sum is %x, the items have %x", seed, s.Sum, got)
			}
		}
		c := s.Copy()
		r, err := Read(bytes.NewReader(snapshotBytes(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		if c.hash() != s.hash() || r.hash() != s.hash() {
			t.Fatalf("seed %d: %x, its copy %x, what was read %x", seed, s.hash(), c.hash(), r.hash())
		}
		for _, key := range s.Items.Keys() {
			s.Apply(del(key, Condition{}))
		}
		if s.Sum != 0 {
			t.Fatalf("seed %d: without items the sum is %x", seed, s.Sum)
		}
	}
}

// Guarantee: the definition stays, because versions that run side by side
// compare their hashes. If this fails, a cluster being upgraded would stop.
func TestHashIsForever(t *testing.T) {
	full := fullState([]int{1, 2, 3})
	checked := fullState([]int{1, 2, 3})
	checked.Level = 2
	m := checked.Membership.Members[1]
	m.Level = 2
	checked.Membership.Members[1] = m
	checked.Checks.Checks = verdict.Checks{
		Index: 9, Full: 8, Voters: []uint64{1, 2}, Reports: map[uint64]Report{1: {Hash: 77}, 2: {Void: true}},
		Checked: 7, Agreed: 78, Diverged: map[uint64]uint64{2: 6}, NoMajority: 5,
	}
	asked := fullState([]int{1, 2, 3})
	asked.Level = OnceLevel
	leaseKeys(asked)
	onceKeys(asked)
	open := fullState([]int{1, 2, 3})
	open.Level = DoorsLevel
	m.Level, m.Doors = DoorsLevel, "\x01\x02\x00\x01"
	open.Membership.Members[1] = m
	for _, tt := range []struct {
		name string
		s    *State
		want uint64
	}{
		{"empty", New(nil), 0x630217e609911f01},
		{"first", New(testkit.Peers()), 0x89876fff74f7d964},
		{"full", full, 0xf6ae3aae2e03b378},
		{"checked", checked, 0x8b8932a684914822},
		{"asked", asked, 0x712688a570b16603},
		{"open", open, 0xb95ece51465d2a14},
	} {
		if got := tt.s.hash(); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

// Guarantee: whatever differs in the state shows in the hash.
func TestHashSeesEverything(t *testing.T) {
	base := func() *State { return fullState([]int{1, 2, 3}) }
	setItem := func(s *State, key string, it Item) {
		s.Items.Set(key, &it)
		s.Sum = HashItems(&s.Items)
	}
	seen := map[uint64]string{base().hash(): "nothing"}
	for name, alter := range map[string]func(s *State){
		"index":    func(s *State) { s.Index++ },
		"term":     func(s *State) { s.Term++ },
		"revision": func(s *State) { s.Revision++ },
		"level":    func(s *State) { s.Level++ },
		"changes":  func(s *State) { s.Membership.Changes++ },
		"removed":  func(s *State) { s.Membership.Removed[7] = true },
		"window":   func(s *State) { s.Windows[1] = Window{Boot: 1, Low: 2, Applied: 4} },
		"life":     func(s *State) { w := s.Windows[1]; w.Life = 1; s.Windows[1] = w },
		"peer URL": func(s *State) {
			s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:4", Learner: true}
		},
		"client URL": func(s *State) {
			s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", ClientURL: "x", Learner: true}
		},
		"instance": func(s *State) {
			s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", Instance: 1, Learner: true}
		},
		"level of": func(s *State) {
			s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", Level: 1, Learner: true}
		},
		"doors of": func(s *State) {
			s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", Doors: "\x01", Learner: true}
		},
		"voter":      func(s *State) { s.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3"} },
		"checkpoint": func(s *State) { s.checkpoint(false) },
		"full":       func(s *State) { s.checkpoint(true) },
		"no key":     func(s *State) { s.Items.Delete("empty"); s.Sum = HashItems(&s.Items) },
		"value": func(s *State) {
			setItem(s, "empty", Item{Value: "\x00", CreateRevision: 1, ModRevision: 1, Version: 1})
		},
		"create":  func(s *State) { setItem(s, "empty", Item{CreateRevision: 2, ModRevision: 1, Version: 1}) },
		"mod":     func(s *State) { setItem(s, "empty", Item{CreateRevision: 1, ModRevision: 2, Version: 1}) },
		"version": func(s *State) { setItem(s, "empty", Item{CreateRevision: 1, ModRevision: 1, Version: 2}) },
		"other key": func(s *State) {
			setItem(s, "empt", Item{Value: "y", CreateRevision: 1, ModRevision: 1, Version: 1})
		},
		"other split": func(s *State) {
			setItem(s, "emp", Item{Value: "ty", CreateRevision: 1, ModRevision: 1, Version: 1})
		},
	} {
		s := base()
		alter(s)
		if was, ok := seen[s.hash()]; ok {
			t.Errorf("%s: the hash is that with %s altered", name, was)
		}
		seen[s.hash()] = name
	}
}

// Guarantee: an item that was altered behind the store's back is found by the
// items' own hash, leaves its mark in the sum when it is written or deleted, and
// does not get into a state file.
func TestAlteredItemShows(t *testing.T) {
	for name, touch := range map[string]Command{"put": put("k", "w", Condition{}), "delete": del("k", Condition{})} {
		s, other := New(testkit.Peers()), New(testkit.Peers())
		for _, st := range []*State{s, other} {
			st.Apply(put("k", "value", Condition{}))
			st.Apply(put("l", "value", Condition{}))
		}
		it, _ := s.Items.Get("k")
		it.Bytes()[0] ^= 1
		if s.hash() != other.hash() || HashItems(&s.Items) == s.Sum {
			t.Fatalf("%s: altered: the sum is %x, was %x, the items have %x", name, s.Sum, other.Sum, HashItems(&s.Items))
		}
		if err := Write(new(bytes.Buffer), s); !errors.Is(err, problem.ErrMemory) {
			t.Errorf("%s: writing it: %v", name, err)
		}
		s.Apply(touch)
		other.Apply(touch)
		if s.hash() == other.hash() {
			t.Errorf("%s: nothing shows", name)
		}
		if err := Write(new(bytes.Buffer), s); !errors.Is(err, problem.ErrMemory) {
			t.Errorf("%s: writing it: %v", name, err)
		}
	}
}

// Guarantee: a state file of the time before there were sums and levels is
// read, and one whose items are not those of its sum is not.
func TestStateFileSum(t *testing.T) {
	s := fullState([]int{1, 2, 3})
	write := func(keep func(kind byte) bool, sum uint64) []byte {
		var old bytes.Buffer
		w := statefile.NewWriter(&old)
		r, err := statefile.NewReader(bytes.NewReader(snapshotBytes(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		for kind, payload, err := r.Next(); err == nil; kind, payload, err = r.Next() {
			if kind == sumRecord {
				payload = record.AppendUvarints(nil, sum)
			}
			if !keep(kind) {
				continue
			}
			if err := w.Record(kind, payload); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		return old.Bytes()
	}
	got, err := Read(bytes.NewReader(write(func(kind byte) bool { return kind <= windowRecord }, 0)))
	if err != nil || got.hash() != s.hash() || dumpState(got) != dumpState(s) {
		t.Fatalf("without a sum: %v", err)
	}
	all := func(byte) bool { return true }
	if _, err := Read(bytes.NewReader(write(all, s.Sum))); err != nil {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader(write(all, s.Sum+1))); !errors.Is(err, statefile.ErrBad) {
		t.Errorf("with another sum: %v", err)
	}
}

// benchState has n keys of values of 128 bytes.
func benchState(n int) (s *State, keys []string) {
	s = New(testkit.Peers())
	for _, i := range rand.New(rand.NewPCG(1, 6)).Perm(n) { // in no order, as keys come
		keys = append(keys, fmt.Sprintf("key-%08d", i))
		s.Apply(Command{Kind: KindPut, Key: keys[len(keys)-1], Value: bytes.Repeat([]byte{byte(i)}, 128)})
	}
	return s, keys
}

// What a put costs, and which part of that is its hash: a put hashes two items.
func BenchmarkPut(b *testing.B) {
	s, keys := benchState(100_000)
	rnd := rand.New(rand.NewPCG(1, 1))
	value := bytes.Repeat([]byte("v"), 128)
	b.Run("put", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.put(Command{Kind: KindPut, Key: keys[rnd.IntN(len(keys))], Value: value})
		}
	})
	b.Run("lookup and hashes alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			key := keys[rnd.IntN(len(keys))]
			it, _ := s.Items.Get(key)
			s.Sum += itemHash(key, it)
			s.Sum -= itemHash(key, it)
		}
	})
	b.Run("lookup alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			it, _ := s.Items.Get(keys[rnd.IntN(len(keys))])
			s.Sum += it.Version
		}
	})
}

// What a full check of a million keys costs, and a check of the sum.
func BenchmarkCheck(b *testing.B) {
	s, _ := benchState(1_000_000)
	b.Run("full", func(b *testing.B) {
		for b.Loop() {
			if HashItems(&s.Items) != s.Sum {
				b.Fatal("the sum is wrong")
			}
		}
	})
	b.Run("sum", func(b *testing.B) {
		for b.Loop() {
			s.hash()
		}
	})
}
