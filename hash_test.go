package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"testing"
)

func (s *state) hash() uint64 { return stateHash(s.hashRest(), s.sum, uint64(s.items.Len())) }

// Guarantee: the hash that is kept up to date is the one computed anew, after
// any commands, in a copy, and in what was written and read.
func TestSumAgreesWithItems(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		s := newState(testkit.Peers())
		for range 500 {
			s.apply(randomCommand(rnd, s.revision))
			if got := hashItems(&s.items); got != s.sum {
				t.Fatalf("seed %d: the sum is %x, the items have %x", seed, s.sum, got)
			}
		}
		c := s.copy()
		r, err := readState(bytes.NewReader(snapshotBytes(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		if c.hash() != s.hash() || r.hash() != s.hash() {
			t.Fatalf("seed %d: %x, its copy %x, what was read %x", seed, s.hash(), c.hash(), r.hash())
		}
		for _, key := range s.items.Keys() {
			s.apply(del(key, condition{}))
		}
		if s.sum != 0 {
			t.Fatalf("seed %d: without items the sum is %x", seed, s.sum)
		}
	}
}

// Guarantee: the definition stays, because versions that run side by side
// compare their hashes. If this fails, a cluster being upgraded would stop.
func TestHashIsForever(t *testing.T) {
	full := fullState([]int{1, 2, 3})
	checked := fullState([]int{1, 2, 3})
	checked.level = 2
	m := checked.membership.members[1]
	m.Level = 2
	checked.membership.members[1] = m
	checked.checks = checks{
		index: 9, full: 8, voters: []uint64{1, 2}, reports: map[uint64]report{1: {hash: 77}, 2: {void: true}},
		checked: 7, agreed: 78, diverged: map[uint64]uint64{2: 6}, noMajority: 5,
	}
	for _, tt := range []struct {
		name string
		s    *state
		want uint64
	}{
		{"empty", newState(nil), 0x630217e609911f01},
		{"first", newState(testkit.Peers()), 0x89876fff74f7d964},
		{"full", full, 0xf6ae3aae2e03b378},
		{"checked", checked, 0x8b8932a684914822},
	} {
		if got := tt.s.hash(); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

// Guarantee: whatever differs in the state shows in the hash.
func TestHashSeesEverything(t *testing.T) {
	base := func() *state { return fullState([]int{1, 2, 3}) }
	setItem := func(s *state, key string, it item) {
		s.items.Set(key, &it)
		s.sum = hashItems(&s.items)
	}
	seen := map[uint64]string{base().hash(): "nothing"}
	for name, alter := range map[string]func(s *state){
		"index":    func(s *state) { s.index++ },
		"term":     func(s *state) { s.term++ },
		"revision": func(s *state) { s.revision++ },
		"level":    func(s *state) { s.level++ },
		"changes":  func(s *state) { s.membership.changes++ },
		"removed":  func(s *state) { s.membership.removed[7] = true },
		"window":   func(s *state) { s.windows[1] = window{boot: 1, low: 2, applied: 4} },
		"life":     func(s *state) { w := s.windows[1]; w.life = 1; s.windows[1] = w },
		"peer URL": func(s *state) { s.membership.members[3] = member{ID: 3, PeerURL: "http://c:4", Learner: true} },
		"client URL": func(s *state) {
			s.membership.members[3] = member{ID: 3, PeerURL: "http://c:3", ClientURL: "x", Learner: true}
		},
		"instance": func(s *state) {
			s.membership.members[3] = member{ID: 3, PeerURL: "http://c:3", Instance: 1, Learner: true}
		},
		"level of": func(s *state) {
			s.membership.members[3] = member{ID: 3, PeerURL: "http://c:3", Level: 1, Learner: true}
		},
		"voter":      func(s *state) { s.membership.members[3] = member{ID: 3, PeerURL: "http://c:3"} },
		"checkpoint": func(s *state) { s.checkpoint(false) },
		"full":       func(s *state) { s.checkpoint(true) },
		"no key":     func(s *state) { s.items.Delete("empty"); s.sum = hashItems(&s.items) },
		"value": func(s *state) {
			setItem(s, "empty", item{value: []byte{0}, createRevision: 1, modRevision: 1, version: 1})
		},
		"create":  func(s *state) { setItem(s, "empty", item{createRevision: 2, modRevision: 1, version: 1}) },
		"mod":     func(s *state) { setItem(s, "empty", item{createRevision: 1, modRevision: 2, version: 1}) },
		"version": func(s *state) { setItem(s, "empty", item{createRevision: 1, modRevision: 1, version: 2}) },
		"other key": func(s *state) {
			setItem(s, "empt", item{value: []byte("y"), createRevision: 1, modRevision: 1, version: 1})
		},
		"other split": func(s *state) {
			setItem(s, "emp", item{value: []byte("ty"), createRevision: 1, modRevision: 1, version: 1})
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
	for name, touch := range map[string]command{"put": put("k", "w", condition{}), "delete": del("k", condition{})} {
		s, other := newState(testkit.Peers()), newState(testkit.Peers())
		for _, st := range []*state{s, other} {
			st.apply(put("k", "v", condition{}))
			st.apply(put("l", "v", condition{}))
		}
		it, _ := s.items.Get("k")
		it.value[0] ^= 1
		if s.hash() != other.hash() || hashItems(&s.items) == s.sum {
			t.Fatalf("%s: altered: the sum is %x, was %x, the items have %x", name, s.sum, other.sum, hashItems(&s.items))
		}
		if err := writeState(new(bytes.Buffer), s); !errors.Is(err, problem.ErrMemory) {
			t.Errorf("%s: writing it: %v", name, err)
		}
		s.apply(touch)
		other.apply(touch)
		if s.hash() == other.hash() {
			t.Errorf("%s: nothing shows", name)
		}
		if err := writeState(new(bytes.Buffer), s); !errors.Is(err, problem.ErrMemory) {
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
	got, err := readState(bytes.NewReader(write(func(kind byte) bool { return kind <= windowRecord }, 0)))
	if err != nil || got.hash() != s.hash() || dumpState(got) != dumpState(s) {
		t.Fatalf("without a sum: %v", err)
	}
	all := func(byte) bool { return true }
	if _, err := readState(bytes.NewReader(write(all, s.sum))); err != nil {
		t.Error(err)
	}
	if _, err := readState(bytes.NewReader(write(all, s.sum+1))); !errors.Is(err, statefile.ErrBad) {
		t.Errorf("with another sum: %v", err)
	}
}

// benchState has n keys of values of 128 bytes.
func benchState(n int) (s *state, keys []string) {
	s = newState(testkit.Peers())
	for _, i := range rand.New(rand.NewPCG(1, 6)).Perm(n) { // in no order, as keys come
		keys = append(keys, fmt.Sprintf("key-%08d", i))
		s.apply(command{kind: kindPut, key: keys[len(keys)-1], value: bytes.Repeat([]byte{byte(i)}, 128)})
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
			s.put(command{kind: kindPut, key: keys[rnd.IntN(len(keys))], value: value})
		}
	})
	b.Run("lookup and hashes alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			key := keys[rnd.IntN(len(keys))]
			it, _ := s.items.Get(key)
			s.sum += itemHash(key, it)
			s.sum -= itemHash(key, it)
		}
	})
	b.Run("lookup alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			it, _ := s.items.Get(keys[rnd.IntN(len(keys))])
			s.sum += it.version
		}
	})
}

// What a full check of a million keys costs, and a check of the sum.
func BenchmarkCheck(b *testing.B) {
	s, _ := benchState(1_000_000)
	b.Run("full", func(b *testing.B) {
		for b.Loop() {
			if hashItems(&s.items) != s.sum {
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
