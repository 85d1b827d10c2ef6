package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"reflect"
	"strings"
	"testing"
)

// under puts a command under an Idempotency-Key, as clients' requests do.
func under(name string, class once.Class, inner Command) Command {
	cmd := encodeCommand(inner)
	c, err := DecodeCommand(EncodeOnce(once.Key{Name: name}, class, cmd, cmd))
	if err != nil {
		panic(err)
	}
	return c
}

// onceKeys leaves a record with a deadline in a state, and two without.
func onceKeys(s *State) {
	s.Apply(under("first", once.Minute, put("once", "1", Condition{})))
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 300})
	s.Apply(under("second", once.TenMinutes, put("once", "2", Condition{Kind: IfMissing})))
	s.Apply(Command{Kind: kindOnce, once: &onceFields{key: once.Key{Owner: "web", Name: "first"}, class: once.TenSeconds, inner: del("once", Condition{})}})
}

// requests are one of each kind that can be under an Idempotency-Key, with different ends.
func requests(s *State) []Command {
	add := func(key string, delta int64) Command {
		return Command{Kind: kindAdd, txn: &txn.Txn{Then: []txn.Op{{Kind: txn.Add, Key: key, Delta: delta}}}}
	}
	return []Command{
		put("new", "v", Condition{}),
		put("there", "w", Condition{}),
		put("there", "w", Condition{Kind: IfMissing}),
		put("missing", "w", Condition{Kind: IfExists}),
		del("there", Condition{}),
		del("missing", Condition{}),
		{Kind: kindLeasedPut, Key: "timed", Value: []byte("v"), life: Lifetime{Kind: ForTTL, Value: 60_000}},
		{Kind: kindLeasedPut, Key: "leased", Value: []byte("v"), life: Lifetime{Kind: WithLease, Value: s.Leases.Last + 1000}},
		{Kind: kindGrant, lease: 5000},
		{Kind: kindDeletePrefix, Key: "p/", limit: 2},
		{Kind: kindDeletePrefix, Key: "p/"},
		add("n", 5), add("text", 5), add("most", 1),
		{Kind: kindAppend, txn: &txn.Txn{Then: []txn.Op{{Kind: txn.Append, Key: "jobs/", Value: []byte("v")}}}},
		{Kind: kindTxn, txn: &txn.Txn{MaxBytes: 1 << 20,
			If: []txn.Comparison{{Field: txn.Exists, Key: "there", Number: 1}},
			Then: []txn.Op{{Kind: txn.Put, Key: "a", Value: []byte("1")}, {Kind: txn.Delete, Key: "there"}, {Kind: txn.Delete, Key: "missing"},
				{Kind: txn.Add, Key: "n", Delta: -7}, {Kind: txn.Append, Key: "jobs/", Value: []byte("x")}, {Kind: txn.Append, Key: "jobs/", Value: []byte("y")}},
		}},
		{Kind: kindTxn, txn: &txn.Txn{MaxBytes: 1 << 20,
			If:   []txn.Comparison{{Field: txn.Exists, Key: "there", Number: 0}},
			Then: []txn.Op{{Kind: txn.Put, Key: "a", Value: []byte("1")}},
			Else: []txn.Op{{Kind: txn.Add, Key: "else", Delta: 1}},
		}},
	}
}

func onceState() *State {
	s := New(testkit.Peers())
	s.Term = 1
	for _, c := range []Command{put("there", "v", Condition{}), put("text", "v", Condition{}), put("most", "9223372036854775807", Condition{}),
		put("p/1", "", Condition{}), put("p/2", "", Condition{}), put("p/3", "", Condition{})} {
		s.Apply(c)
	}
	return s
}

// Guarantee: a repeat does nothing, and is told what the first was, whatever happened in
// between, through snapshots too.
func TestOnceAppliesOnce(t *testing.T) {
	for i := range requests(onceState()) {
		s := onceState()
		inner := requests(s)[i]
		plain := s.Copy()
		want := plain.Apply(inner)
		c := under("key", once.Minute, inner)
		if got := s.Apply(c); !reflect.DeepEqual(got, want) {
			t.Fatalf("request %d: %+v, want %+v", i, got, want)
		}
		s.Apply(put("other", "v", Condition{}))
		s.Apply(del("a", Condition{}))
		back, err := Read(bytes.NewReader(snapshotBytes(t, s)))
		testkit.Must(t, err)
		back.Term = s.Term
		for how, s := range map[string]*State{"at once": s, "from a snapshot": back} {
			before, hash := dumpState(s), s.hash()
			got := s.Apply(c)
			want := want
			want.Replayed = true
			if want.Err != nil {
				if !errors.Is(got.Err, outcomeErrors[codeOf(t, want.Err)]) {
					t.Errorf("request %d, %s: %v, want %v", i, how, got.Err, want.Err)
				}
				got.Err = want.Err // the text may be shorter
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("request %d, %s: the repeat got %+v %+v, want %+v %+v", i, how, got, got.Txn, want, want.Txn)
			}
			if after := dumpState(s); after != before || s.hash() != hash {
				t.Errorf("request %d, %s: the repeat changed the state from\n%s to\n%s", i, how, before, after)
			}
			if got := s.Apply(under("key", once.Minute, put("k", "another", Condition{}))); !errors.Is(got.Err, problem.ErrKeyReused) || s.Get("k") != nil {
				t.Errorf("request %d, %s: another request under the key: %+v", i, how, got)
			}
		}
	}
}

func codeOf(t *testing.T, err error) int {
	for i, e := range outcomeErrors {
		if e != nil && errors.Is(err, e) {
			return i
		}
	}
	t.Fatalf("%v is not recorded", err)
	return 0
}

// Guarantee: what is refused for a reason that passes, and may not be repeated for ever, is
// not recorded: the same request succeeds later.
func TestOnceForgetsRefusals(t *testing.T) {
	s := onceState()
	list := Command{Kind: kindTxn, txn: &txn.Txn{MaxBytes: 1, Then: []txn.Op{{Kind: txn.Put, Key: "a", Value: []byte("1")}, {Kind: txn.List, Key: "p/", Limit: 10}}}}
	if got := s.Apply(under("key", once.Minute, list)); !errors.Is(got.Err, problem.ErrTooLarge) || s.Once.Len() != 0 || s.Get("a") != nil {
		t.Fatalf("%+v, %d records", got, s.Once.Len())
	}
	s.Apply(Command{Kind: kindDeletePrefix, Key: "p/"})
	if got := s.Apply(under("key", once.Minute, list)); got.Err != nil || got.Replayed || s.Once.Len() != 1 {
		t.Fatalf("%+v, %d records", got, s.Once.Len())
	}
}

// Guarantee: reads of a repeated transaction are of now, its writes of then; and what it
// reads may have become too large, which keeps nobody from hearing what it wrote.
func TestOnceReadsAnew(t *testing.T) {
	s := onceState()
	c := under("key", once.Minute, Command{Kind: kindTxn, txn: &txn.Txn{MaxBytes: 100, Then: []txn.Op{
		{Kind: txn.Add, Key: "n", Delta: 1}, {Kind: txn.Get, Key: "n"}, {Kind: txn.List, Key: "p/", Limit: 10}}}})
	if got := s.Apply(c); got.Txn.Results[1].Items[0].Item.Value != "1" || len(got.Txn.Results[2].Items) != 3 {
		t.Fatalf("%+v", got.Txn)
	}
	s.Apply(put("n", "7", Condition{}))
	s.Apply(del("p/1", Condition{}))
	got := s.Apply(c)
	if r := got.Txn.Results; r[0].Number != 1 || r[1].Items[0].Item.Value != "7" || len(r[2].Items) != 2 || got.Txn.Seen != 3 {
		t.Fatalf("%+v", got.Txn)
	}
	s.Apply(put("p/4", strings.Repeat("x", 200), Condition{}))
	got = s.Apply(c)
	if r := got.Txn.Results; got.Err != nil || r[0].Number != 1 || r[1].TooLarge || !r[2].TooLarge || r[2].Items != nil || got.Txn.Seen != 1 {
		t.Fatalf("%+v, %v", got.Txn, got.Err)
	}
}

// Guarantee: a cluster that is made of a state answers repeats as the old one would have,
// and its leases have what they had left.
func TestOnceRefounded(t *testing.T) {
	s := onceState()
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 1000})
	s.Apply(Command{Kind: kindGrant, lease: 5000})
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 1000}) // it counts from here
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 2000})
	c := under("key", once.Minute, put("once", "v", Condition{}))
	first := s.Apply(c)
	old, _ := s.Lease(s.Leases.Last, anybody)
	id := s.Leases.Last
	testkit.Must(t, s.Refound(testkit.Peers()))
	if again := s.Apply(c); !again.Replayed || again.Revision != first.Revision || !again.Created {
		t.Errorf("a repeat got %+v, the first %+v", again, first)
	}
	if got, ok := s.Lease(id, anybody); !ok || got != old || got.Remaining == 0 || got.Remaining >= 5000 {
		t.Errorf("the lease is %+v, %t; it was %+v", got, ok, old)
	}
}

// Guarantee: after its time a record is gone, and the request is a new one; the agenda has
// a leader tick for it.
func TestOnceEnds(t *testing.T) {
	s := onceState()
	c := under("key", once.TenSeconds, Command{Kind: kindAdd, txn: &txn.Txn{Then: []txn.Op{{Kind: txn.Add, Key: "n", Delta: 1}}}})
	s.Apply(c)
	if a := s.Agenda(); !a.Fresh {
		t.Fatalf("the agenda is %+v", a)
	}
	s.tick(entry.Tick{Term: 1, Clock: 1000})
	if a := s.Agenda(); a.Fresh || a.Next != 11_001 {
		t.Fatalf("the agenda is %+v", a)
	}
	s.tick(entry.Tick{Term: 1, Clock: 11_000})
	if got := s.Apply(c); !got.Replayed || s.Get("n").Value != "1" {
		t.Fatalf("%+v", got)
	}
	s.tick(entry.Tick{Term: 1, Clock: 11_001})
	if got := s.Apply(c); got.Replayed || s.Get("n").Value != "2" {
		t.Fatalf("%+v", got)
	}
}

// Guarantee: random requests and repeats change a state as the requests alone would, and
// its copies, snapshots and replays agree.
func TestOnceModel(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s, plain := onceState(), onceState()
		results := map[int]Result{}
		for range 200 {
			n := rnd.IntN(60)
			inner := requests(onceState())[n%len(requests(onceState()))]
			got := s.Apply(under(fmt.Sprint(n), once.TenMinutes, inner))
			want, again := results[n]
			if !again {
				want = plain.Apply(inner)
				if _, recorded := encodeOutcome(want); recorded {
					results[n] = want
				}
			}
			if got.Replayed && got.Revision != want.Revision || got.Deletion != want.Deletion || (got.Err == nil) != (want.Err == nil) {
				t.Fatalf("seed %d: request %d got %+v, want %+v", seed, n, got, want)
			}
			if rnd.IntN(20) == 0 {
				back, err := Read(bytes.NewReader(snapshotBytes(t, s)))
				testkit.Must(t, err)
				s = back
			}
			if s.Revision != plain.Revision || s.Sum != plain.Sum {
				t.Fatalf("seed %d: at revision %d with %x, without keys at %d with %x", seed, s.Revision, s.Sum, plain.Revision, plain.Sum)
			}
		}
	}
}

// Guarantee: what an Idempotency-Key cannot be on stops a node, as what is newer does; and
// the work of a command is that of what it holds.
func TestOnceStrict(t *testing.T) {
	head := AppendOnceHead(nil, once.Key{Name: "k"}, once.Minute)
	for name, tt := range map[string]struct {
		cmd  []byte
		want error
	}{
		"a keepalive":     {append(bytes.Clone(head), EncodeKeep(1, "")...), record.ErrUnknownCommand},
		"within another":  {append(bytes.Clone(head), append(bytes.Clone(head), EncodeGrant(1, "")...)...), record.ErrUnknownCommand},
		"a report":        {append(bytes.Clone(head), EncodeReport(1, 2, Report{})...), record.ErrUnknownCommand},
		"nothing":         {head, record.ErrMalformed},
		"cut in its head": {head[:5], record.ErrMalformed},
		"another class":   {append([]byte{byte(kindOnce), 4}, head[2:]...), record.ErrUnknownCommand},
		"class 0":         {append([]byte{byte(kindOnce), 0}, head[2:]...), record.ErrUnknownCommand},
	} {
		if _, err := DecodeCommand(tt.cmd); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range requests(onceState()) {
		encoded := encodeCommand(c)
		if got, want := Work(append(bytes.Clone(head), encoded...)), Work(encoded); got != want {
			t.Errorf("kind %d: work %d, want %d", c.Kind, got, want)
		}
	}
	if got := Work(head); got != 1 {
		t.Errorf("the head alone: work %d", got)
	}
}

// Guarantee: what came of a request is in the hash, its time too; and an outcome that was
// altered in memory is found, and does not get into a state file.
func TestOnceIsHashed(t *testing.T) {
	base := func() *State {
		s := onceState()
		onceKeys(s)
		return s
	}
	seen := map[uint64]string{base().hash(): "nothing"}
	for name, alter := range map[string]func(*State){
		"one more":    func(s *State) { s.Once.Add(once.Key{Name: "x"}, once.Print{}, once.Minute, "") },
		"a class":     func(s *State) { s.Once.Add(once.Key{Name: "x"}, once.Print{}, once.TenSeconds, "") },
		"a print":     func(s *State) { s.Once.Add(once.Key{Name: "x"}, once.Print{1}, once.Minute, "") },
		"an owner":    func(s *State) { s.Once.Add(once.Key{Owner: "x"}, once.Print{}, once.Minute, "") },
		"an outcome":  func(s *State) { s.Once.Add(once.Key{Name: "x"}, once.Print{}, once.Minute, "o") },
		"a deadline":  func(s *State) { s.Once.Tick(500, 0) },
		"another one": func(s *State) { s.Once.Tick(501, 0) },
	} {
		s := base()
		alter(s)
		if was, ok := seen[s.hash()]; ok {
			t.Errorf("%s: the hash is that with %s altered", name, was)
		}
		seen[s.hash()] = name
	}
	s := base()
	s.checkpoint(true)
	if !s.Checks.Own.Sound() {
		t.Error("it does not trust itself")
	}
	s.Once.Get(once.Key{Name: "second"}).Outcome = "other"
	if err := Write(new(bytes.Buffer), s); !errors.Is(err, problem.ErrMemory) {
		t.Errorf("writing it: %v", err)
	}
	s.checkpoint(true)
	if s.Checks.Own.Sound() {
		t.Error("an outcome that was altered is not found")
	}
}

// Guarantee: one tick does no more with records the more keys it ends, and that for ever:
// nodes of two versions have to do the same.
func TestOnceTickShares(t *testing.T) {
	s := onceState()
	for i := range 300 {
		s.Apply(Command{Kind: kindLeasedPut, Key: fmt.Sprint("timed/", i), life: Lifetime{Kind: ForTTL, Value: 100}})
	}
	for i := range 2500 {
		s.Apply(under(fmt.Sprint(i), once.TenSeconds, del("missing", Condition{})))
	}
	s.tick(entry.Tick{Term: 1, Clock: 1})
	for _, left := range []int{2500 - 1700, 0} {
		if s.tick(entry.Tick{Term: 1, Clock: s.Leases.Clock + 20_000}); s.Once.Len() != left {
			t.Errorf("%d records are left, want %d", s.Once.Len(), left)
		}
	}
}

// Guarantee: before a snapshot brings others, what is held is let go of.
func TestDropItemsDropsAll(t *testing.T) {
	s := onceState()
	leaseKeys(s)
	onceKeys(s)
	if s.DropItems(); s.Keys() != 0 || s.Leases.Len() != 0 || s.Once.Len() != 0 {
		t.Errorf("%d keys, %d leases, %d requests are left", s.Keys(), s.Leases.Len(), s.Once.Len())
	}
}

// Guarantee: a snapshot is due by all that its file holds.
func TestSummaryCountsAll(t *testing.T) {
	s := onceState()
	leaseKeys(s)
	onceKeys(s)
	for i := range 5000 {
		s.Apply(under(fmt.Sprintf("%032x", i), once.TenMinutes, put("k", "v", Condition{})))
	}
	if size, says := len(snapshotBytes(t, s)), s.Summary().File; says < uint64(size)/2 || says > 2*uint64(size) {
		t.Errorf("the file has %d bytes, the summary says %d", size, says)
	}
}

// Guarantee: below the level nothing of it is in a state file or in the hash.
func TestOnceLeavesNoTrace(t *testing.T) {
	s := onceState()
	leaseKeys(s)
	_ = s.writeRest(func(kind byte, _ []byte) error {
		if kind == onceHeadRecord || kind == onceRecord {
			t.Errorf("record %d", kind)
		}
		return nil
	})
}

// Guarantee: whatever is recorded, reading it does not panic.
func FuzzDecodeOutcome(f *testing.F) {
	for i, c := range requests(onceState()) {
		if outcome, ok := encodeOutcome(onceState().Apply(c)); ok {
			f.Add(i, []byte(outcome))
		}
	}
	all := requests(onceState())
	f.Fuzz(func(t *testing.T, i int, outcome []byte) {
		if i < 0 || i >= len(all) {
			return
		}
		c := all[i]
		res, ok := decodeOutcome(string(outcome), &c)
		if !ok {
			return
		}
		if again, ok := encodeOutcome(res); ok {
			if res2, ok := decodeOutcome(again, &c); !ok || !reflect.DeepEqual(res, res2) {
				t.Fatalf("%+v became %+v", res, res2)
			}
		}
	})
}
