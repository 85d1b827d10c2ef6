package txn

import (
	"errors"
	"fmt"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"reflect"
	"slices"
	"testing"
)

// shop is a store without leases.
type shop map[string]*Item

func (s shop) Get(key string) *Item { return s[key] }

func (s shop) Ascend(from string, each func(key string, it *Item) bool) {
	var keys []string
	for key := range s {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if key >= from && !each(key, s[key]) {
			return
		}
	}
}

func (s shop) Left(*Item) Left { return Left{} }

func (s shop) LeaseRoom(uint64, string) (room int, remaining uint64, ok bool) { return 0, 0, false }

// Guarantee: a plan changes nothing, and lists what was there together with what the
// transaction has written before, in one order.
func TestPlanLists(t *testing.T) {
	s := shop{"a": {Value: "1"}, "p/1": {Value: "1"}, "p/3": {Value: "3"}, "p/5": {Value: "5"}, "q": {Value: "1"}}
	list := func(limit uint64, after string) Op { return Op{Kind: List, Key: "p/", Limit: limit, After: after} }
	tx := Txn{MaxBytes: 1000, Then: []Op{
		list(9, ""), {Kind: Put, Key: "p/2"}, {Kind: Delete, Key: "p/3"}, {Kind: Put, Key: "p/5"}, {Kind: Put, Key: "p/9"}, {Kind: Delete, Key: "p/7"},
		list(9, ""), list(3, ""), list(3, "p/1"), list(4, "z"), list(3, "a"), {Kind: Put, Key: "p/0"}, list(1, ""), {Kind: Get, Key: "p/3"}, {Kind: Get, Key: "q"},
	}}
	o, changes, err := tx.Plan(s, 7)
	if err != nil || len(changes) != 5 || o.Revision != 8 || len(s) != 5 {
		t.Fatal(o, changes, err)
	}
	for i, want := range map[int][]string{
		0: {"p/1", "p/3", "p/5"}, 6: {"p/1", "p/2", "p/5", "p/9"}, 7: {"p/1", "p/2", "p/5"}, 8: {"p/2", "p/5", "p/9"}, 9: nil,
		10: {"p/1", "p/2", "p/5"}, 12: {"p/0"}, 13: nil, 14: {"q"},
	} {
		var got []string
		for _, f := range o.Results[i].Items {
			got = append(got, f.Key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("operation %d sees %q, want %q", i, got, want)
		}
	}
	for i, want := range map[int]string{0: "", 6: "", 7: "p/5", 8: "", 10: "p/5", 12: "p/0"} {
		if got := o.Results[i].Next; got != want {
			t.Errorf("operation %d goes on behind %q, want %q", i, got, want)
		}
	}
	if it := changes[2].Item; it.Version != 1 || it.ModRevision != 8 || it.CreateRevision != 0 {
		t.Errorf("%+v", it)
	}
}

// Guarantee: an append never writes over a key that is there.
func TestAppendLeavesOthersAlone(t *testing.T) {
	s := shop{}
	name := func(n int) string { return fmt.Sprintf("p/%020d-%03d", 8, n) }
	s[name(1)] = &Item{}
	tx := Txn{Then: []Op{{Kind: Put, Key: name(0)}, {Kind: Append, Key: "p/"}, {Kind: Append, Key: "p/"}}}
	o, _, err := tx.Plan(s, 7)
	if err != nil || o.Results[1].Key != name(2) || o.Results[2].Key != name(3) {
		t.Error(o, err)
	}
	for n := range maxNames - 1 {
		s[name(n)] = &Item{}
	}
	tx.Then = tx.Then[1:2]
	if o, _, err := tx.Plan(s, 7); err != nil || o.Results[0].Key != name(maxNames-1) || len(name(maxNames-1)) != len("p/")+NameLength {
		t.Error(o, err)
	}
	s[name(maxNames-1)] = &Item{}
	if _, _, err := tx.Plan(s, 7); !errors.Is(err, problem.ErrBadRequest) {
		t.Error(err)
	}
}

// Guarantee: a transaction comes back from its encoding as it was, and cut short it does
// not come back at all.
func TestEncoding(t *testing.T) {
	tx := &Txn{Owner: "o", MaxBytes: 300, If: []Comparison{{Field: AnyBelow, Key: "p", Number: 1}, {Field: HasValue, Key: "k", Value: []byte("v")}},
		Then: []Op{{Kind: Put, Key: "k", Value: []byte("v"), Life: Lifetime{ForTTL, 300, "o"}}, {Kind: Add, Key: "n", Delta: -300, Life: Lifetime{Owner: "o"}}},
		Else: []Op{{Kind: List, Key: "p", Limit: 300, After: "q"}, {Kind: Get, Key: "k"}}}
	b := tx.AppendTo(nil)
	got, err := Read(&record.Reader{B: b})
	if err != nil || !reflect.DeepEqual(got, tx) {
		t.Fatalf("%+v, %v; want %+v", got, err, tx)
	}
	for n := range b {
		r := record.Reader{B: b[:n]}
		if _, err := Read(&r); err == nil && !r.Bad {
			t.Errorf("the first %d bytes are a transaction", n)
		}
	}
}

// Guarantee: what a transaction asks of a missing key is that it is at revision 0; a value
// it never has, not even an empty one.
func TestMissingKey(t *testing.T) {
	for _, tt := range []struct {
		c    Comparison
		want bool
	}{
		{Comparison{Field: Mod}, true}, {Comparison{Field: Create}, true}, {Comparison{Field: Version}, true}, {Comparison{Field: Lease}, true},
		{Comparison{Field: Mod, Number: 1}, false}, {Comparison{Field: HasValue}, false}, {Comparison{Field: Exists}, true}, {Comparison{Field: AnyBelow, Key: "k"}, true},
	} {
		if got := tt.c.holds(shop{"a": {}, "l": {}}); got != tt.want {
			t.Errorf("%+v: %v", tt.c, got)
		}
	}
}

// Guarantee: what a transaction could add to the store at most is what the larger of its
// lists could.
func TestGrowth(t *testing.T) {
	put := Op{Kind: Put, Key: "key", Value: []byte("value"), Life: Lifetime{Kind: ForTTL}}
	tx := Txn{Then: []Op{put, {Kind: Add, Key: "n"}}, Else: []Op{{Kind: Append, Key: "p/", Value: []byte("v")}, {Kind: Delete, Key: "k"}}}
	if size, timed, ok := tx.Growth(); size != 8+1+maxDigits || timed != 1 || !ok || tx.OnlyReads() {
		t.Error(size, timed, ok)
	}
	if _, _, ok := (&Txn{Then: []Op{{Kind: Delete}}}).Growth(); ok {
		t.Error("a deletion grows")
	}
	if !(&Txn{Then: []Op{{Kind: Get}}, Else: []Op{{Kind: List}}}).OnlyReads() || (&Txn{Else: []Op{{Kind: Append}}}).OnlyReads() {
		t.Error("what only reads is mistaken")
	}
	if _, err := sumOf(&Item{Value: "1\n\n"}, 1); !errors.Is(err, problem.ErrNotANumber) {
		t.Error(err)
	}
}
