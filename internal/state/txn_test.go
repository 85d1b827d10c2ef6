package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A naive transaction works on a copy of the whole store, one operation after the other,
// and the copy takes the store's place if none fails.

func (n *naive) copy() *naive {
	c := *n
	c.keys, c.leases = maps.Clone(n.keys), map[uint64]*naiveLease{}
	for id, l := range n.leases {
		kept := *l
		c.leases[id] = &kept
	}
	return &c
}

// naiveTxn is a store with values and histories beside what naive has.
type naiveTxn struct {
	*naive
	items map[string]Item
}

func (n *naiveTxn) set(key, value string, life Lifetime, keeps bool) error {
	if !keeps {
		id := uint64(0)
		if life.Kind == WithLease {
			if id = life.Value; n.named(id, life.Owner) == nil {
				return problem.ErrNoSuchLease
			}
			if n.count(id) >= lease.MaxKeys && n.keys[key] != id {
				return problem.ErrLeaseFull
			}
		}
		n.free(key)
		if life.Kind == ForTTL {
			n.last++
			id = n.last
			n.leases[id] = &naiveLease{ttl: life.Value, owner: life.Owner, private: true}
		}
		n.keys[key] = id
	}
	it, ok := n.items[key]
	if !ok {
		it.CreateRevision = n.revision + 1
	}
	it.Value, it.ModRevision, it.Version = value, n.revision+1, it.Version+1
	n.items[key] = it
	return nil
}

func (n *naiveTxn) count(id uint64) (keys int) {
	for _, l := range n.keys {
		if l == id {
			keys++
		}
	}
	return keys
}

func (n *naiveTxn) delete(key string) bool {
	if _, ok := n.items[key]; !ok {
		return false
	}
	n.free(key)
	delete(n.keys, key)
	delete(n.items, key)
	return true
}

func (n *naiveTxn) holds(c txn.Comparison) bool {
	it, ok := n.items[c.Key]
	switch c.Field {
	case txn.Exists:
		return ok == (c.Number == 1)
	case txn.AnyBelow:
		return (len(n.below(c.Key)) > 0) == (c.Number == 1)
	case txn.Mod:
		return it.ModRevision == c.Number
	case txn.Create:
		return it.CreateRevision == c.Number
	case txn.Version:
		return it.Version == c.Number
	case txn.Lease:
		id := n.keys[c.Key]
		if l := n.leases[id]; l != nil && l.private {
			id = 0
		}
		return id == c.Number
	}
	return ok && it.Value == string(c.Value)
}

func (n *naiveTxn) below(prefix string) (keys []string) {
	for _, key := range slices.Sorted(maps.Keys(n.items)) {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// run returns the results as text, and whether anything changed.
func (n *naiveTxn) run(ops []txn.Op) (results []string, changed bool, err error) {
	names, seen := 0, 0
	for _, op := range ops {
		key, text := op.Key, op.Kind.String()
		switch op.Kind {
		case txn.Put, txn.Append:
			if op.Kind == txn.Append {
				key += fmt.Sprintf("%020d-%03d", n.revision+1, names)
				names++
			}
			if err := n.set(key, string(op.Value), op.Life, false); err != nil {
				return nil, false, err
			}
			changed, text = true, text+" "+key
		case txn.Delete:
			gone := n.delete(key)
			changed, text = changed || gone, fmt.Sprint(text, gone)
		case txn.Add:
			it, ok := n.items[key]
			old, err := int64(0), error(nil)
			if ok {
				if old, err = strconv.ParseInt(strings.TrimSuffix(it.Value, "\n"), 10, 64); err != nil {
					return nil, false, problem.ErrNotANumber
				}
			}
			if sum := old + op.Delta; (sum > old) != (op.Delta > 0) && op.Delta != 0 {
				return nil, false, problem.ErrOutOfRange
			}
			if err := n.set(key, fmt.Sprint(old+op.Delta), op.Life, ok); err != nil {
				return nil, false, err
			}
			changed, text = true, fmt.Sprint(text, old+op.Delta)
		case txn.Get, txn.List:
			keys := []string{key}
			if op.Kind == txn.List {
				keys = slices.DeleteFunc(n.below(key), func(k string) bool { return k <= op.After })
			}
			next := ""
			if op.Kind == txn.List && len(keys) > int(op.Limit) {
				keys, next = keys[:op.Limit], keys[op.Limit-1]
			}
			for _, k := range keys {
				if it, ok := n.items[k]; ok {
					seen++
					text += n.show(k, it)
				}
			}
			text += ">" + next
		}
		results = append(results, text)
	}
	if seen > txn.MaxItems {
		return nil, false, problem.ErrTooLarge
	}
	return results, changed, nil
}

func (n *naiveTxn) show(key string, it Item) string {
	id, left, mortal := n.keys[key], uint64(0), false
	if l := n.leases[id]; l != nil {
		left, mortal = l.ttl, true
		if l.deadline != 0 {
			left = min(left, l.deadline-n.clock) // a deadline is rounded up
		}
		if l.private {
			id = 0
		}
	}
	return fmt.Sprint(" ", key, "=", it.Value, it.CreateRevision, it.ModRevision, it.Version, id, left, mortal)
}

// shown is what run says, of an outcome.
func shown(o *txn.Outcome) (results []string) {
	for _, r := range o.Results {
		text := r.Kind.String()
		switch r.Kind {
		case txn.Put, txn.Append:
			text += " " + r.Key
		case txn.Delete:
			text = fmt.Sprint(text, r.Deleted == 1)
		case txn.Add:
			text = fmt.Sprint(text, r.Number)
		case txn.Get, txn.List:
			for _, f := range r.Items {
				it := f.Item
				text += fmt.Sprint(" ", f.Key, "=", it.Value, it.CreateRevision, it.ModRevision, it.Version, f.Left.Lease, f.Left.Millis, f.Left.Goes)
			}
			text += ">" + r.Next
		}
		results = append(results, text)
	}
	return results
}

func randomTxn(rng *rand.Rand, revision, last uint64) *txn.Txn {
	key := func() string { return string(rune('a'+rng.IntN(3))) + "/" + strconv.Itoa(rng.IntN(3)) }
	prefix := func() string { return []string{"", "a/", "b", "c/", "zz"}[rng.IntN(5)] }
	t := &txn.Txn{MaxBytes: 1 << 20, Owner: []string{"", "", "web"}[rng.IntN(3)]}
	for range rng.IntN(3) {
		c := txn.Comparison{Field: txn.Field(1 + rng.IntN(7)), Key: key(), Number: rng.Uint64N(2)}
		switch c.Field {
		case txn.AnyBelow:
			c.Key = prefix()
		case txn.Mod, txn.Create:
			c.Number = revision - min(revision, rng.Uint64N(4))
		case txn.Lease, txn.Version:
			c.Number = rng.Uint64N(4)
		case txn.HasValue:
			c.Number, c.Value = 0, []byte(strconv.Itoa(rng.IntN(3)))
		}
		t.If = append(t.If, c)
	}
	ops := func() (ops []txn.Op) {
		written := map[string]bool{}
		for range rng.IntN(6) {
			op := txn.Op{Kind: txn.OpKind(1 + rng.IntN(6)), Key: key()}
			if op.Kind <= txn.Add {
				if written[op.Key] {
					continue
				}
				written[op.Key] = true
			}
			if op.Kind == txn.Put || op.Kind == txn.Add || op.Kind == txn.Append {
				op.Life = Lifetime{Kind: txn.LifetimeKind(rng.IntN(3)), Owner: t.Owner}
				if op.Life.Value = 1000 + rng.Uint64N(5000); op.Life.Kind == WithLease {
					op.Life.Value = 1 + rng.Uint64N(last+1)
				} else if op.Life.Kind == forEver {
					op.Life.Value = 0
				}
			}
			switch op.Kind {
			case txn.Put:
				op.Value = []byte([]string{"0", "1", "2\n", "x", "9223372036854775807"}[rng.IntN(5)])
			case txn.Add:
				op.Delta = int64(rng.IntN(5)) - 2
			case txn.Append:
				op.Key, op.Value = prefix(), []byte("v")
			case txn.List:
				op.Key, op.Limit = prefix(), 1+rng.Uint64N(6)
				if rng.IntN(3) == 0 {
					op.After = key()
				}
			}
			ops = append(ops, op)
		}
		return ops
	}
	t.Then, t.Else = ops(), ops()
	return t
}

// Guarantee: a transaction does what its operations do one after the other, all of it or
// nothing, in one revision or none, with times to live and leases too; and it sees what
// it has written.
func TestTxnModel(t *testing.T) {
	var fine, refused int
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		s := New(testkit.Peers())
		s.Term = 1
		n := &naiveTxn{&naive{keys: map[string]uint64{}, leases: map[uint64]*naiveLease{}}, map[string]Item{}}
		for range 60 {
			switch rng.IntN(8) {
			case 0:
				c := Command{Kind: kindGrant, lease: 1000 + rng.Uint64N(5000)}
				s.Apply(c)
				testkit.Must(t, n.apply(c))
				continue
			case 1:
				now := n.clock + 1 + rng.Uint64N(2000)
				s.tick(entry.Tick{Term: 1, Clock: now})
				n.tick(now)
				maps.DeleteFunc(n.items, func(key string, _ Item) bool { _, ok := n.keys[key]; return !ok })
				continue
			}
			tx := randomTxn(rng, n.revision, n.last)
			encoded := EncodeTxn(tx)
			c, err := DecodeCommand(encoded)
			testkit.Must(t, err)
			before := dumpState(s)
			after := &naiveTxn{n.copy(), maps.Clone(n.items)}
			ops := tx.Then
			succeeded := !slices.ContainsFunc(tx.If, func(c txn.Comparison) bool { return !n.holds(c) })
			if !succeeded {
				ops = tx.Else
			}
			want, changed, wantErr := after.run(ops)
			res := s.Apply(c)
			if (res.Err == nil) != (wantErr == nil) || wantErr != nil && !errors.Is(res.Err, wantErr) {
				t.Fatalf("seed %d: %+v: %v, want %v", seed, tx, res.Err, wantErr)
			}
			if res.Err != nil {
				refused++
				if dumpState(s) != before {
					t.Fatalf("seed %d: %+v was refused and changed\n%s to\n%s", seed, tx, before, dumpState(s))
				}
				continue
			}
			fine++
			if changed {
				after.revision++
			}
			n = after
			if got := shown(res.Txn); !slices.Equal(got, want) || res.Txn.Succeeded != succeeded || res.Txn.Revision != n.revision {
				t.Fatalf("seed %d: %+v: %q, %+v; want %q, %v at %d", seed, tx, got, res.Txn, want, succeeded, n.revision)
			}
			checkNaive(t, seed, s, n.naive)
			for key, it := range n.items {
				if got := *s.Get(key); got.Value != it.Value || got.CreateRevision != it.CreateRevision || got.ModRevision != it.ModRevision || got.Version != it.Version {
					t.Fatalf("seed %d: %s is %+v, want %+v", seed, key, got, it)
				}
			}
		}
		back, err := Read(bytes.NewReader(snapshotBytes(t, s)))
		testkit.Must(t, err)
		if back.hash() != s.hash() {
			t.Fatalf("seed %d: another hash", seed)
		}
	}
	if fine < 3000 || refused < 500 {
		t.Errorf("only %d were fine and %d refused", fine, refused)
	}
}

func transaction(ops ...txn.Op) Command {
	return Command{Kind: kindTxn, txn: &txn.Txn{MaxBytes: math.MaxUint64, Then: ops}}
}

// Guarantee: what is more than a transaction may be is refused at the first thing past
// the bound, in apply too, and nothing happens.
func TestTxnBounds(t *testing.T) {
	s := New(testkit.Peers())
	for i := range txn.MaxItems + 1 {
		s.Apply(put(fmt.Sprintf("p/%04d", i), "v", Condition{}))
	}
	list := func(limit uint64) txn.Op { return txn.Op{Kind: txn.List, Key: "p/", Limit: limit} }
	many := func(n int, op txn.Op) (ops []txn.Op) { return slices.Repeat([]txn.Op{op}, n) }
	set := txn.Op{Kind: txn.Put, Key: "k", Value: []byte("v")}
	size := uint64(10 * len("p/0000v"))
	limited := func(most uint64) Command {
		return Command{Kind: kindTxn, txn: &txn.Txn{MaxBytes: most, Then: []txn.Op{set, list(10)}}}
	}
	for name, tt := range map[string]struct {
		c    Command
		want error
	}{
		"items":              {transaction(list(txn.MaxItems)), nil},
		"one item more":      {transaction(set, list(txn.MaxItems+1)), problem.ErrTooLarge},
		"items of two":       {transaction(set, list(txn.MaxItems), txn.Op{Kind: txn.Get, Key: "p/0000"}), problem.ErrTooLarge},
		"bytes":              {limited(size), nil},
		"one byte more":      {limited(size - 1), problem.ErrTooLarge},
		"operations":         {transaction(many(txn.MaxOps, txn.Op{Kind: txn.Get, Key: "p/0000"})...), nil},
		"one operation more": {transaction(append(many(txn.MaxOps, txn.Op{Kind: txn.Get}), set)...), problem.ErrTooLarge},
		"written twice":      {transaction(set, txn.Op{Kind: txn.Delete, Key: "k"}), problem.ErrBadRequest},
		"written twice by a name": {transaction(txn.Op{Kind: txn.Append, Key: "q/"},
			txn.Op{Kind: txn.Put, Key: fmt.Sprintf("q/%020d-000", txn.MaxItems+2)}), problem.ErrBadRequest},
		"no lease":         {transaction(set, txn.Op{Kind: txn.Put, Key: "l", Life: Lifetime{Kind: WithLease, Value: 9}}), problem.ErrNoSuchLease},
		"many lists":       {transaction(append(many(txn.MaxOps-1, txn.Op{Kind: txn.List, Key: "p/", Limit: 8}), set)...), problem.ErrTooLarge},
		"many empty lists": {transaction(many(txn.MaxOps, txn.Op{Kind: txn.List, Key: "nothing/", Limit: txn.MaxItems})...), nil},
	} {
		s := s.Copy()
		s.Revision = txn.MaxItems + 1
		before := dumpState(s)
		began := time.Now()
		res := s.Apply(tt.c)
		if took := time.Since(began); took > time.Second { // it is far below a ms
			t.Errorf("%s: took %v", name, took)
		}
		if !errors.Is(res.Err, tt.want) || tt.want == nil && res.Err != nil || res.Err != nil && dumpState(s) != before {
			t.Errorf("%s: %v, want %v; or it changed something", name, res.Err, tt.want)
		}
	}
	many513 := Command{Kind: kindTxn, txn: &txn.Txn{If: slices.Repeat([]txn.Comparison{{Field: txn.Exists, Key: "no"}}, txn.MaxComparisons+1)}}
	if res := s.Apply(many513); !errors.Is(res.Err, problem.ErrTooLarge) {
		t.Errorf("too many comparisons: %v", res.Err)
	}
}

// Guarantee: a transaction may fill a lease, and is refused if it takes one key more; it
// may free one first.
func TestTxnFillsALease(t *testing.T) {
	s := New(testkit.Peers())
	id := s.Apply(Command{Kind: kindGrant, lease: 1000}).Lease
	with := Lifetime{Kind: WithLease, Value: id}
	for i := range lease.MaxKeys - 1 {
		s.Apply(Command{Kind: kindLeasedPut, Key: fmt.Sprint(i), life: with})
	}
	bind := func(key string) txn.Op { return txn.Op{Kind: txn.Put, Key: key, Life: with} }
	if res := s.Apply(transaction(bind("a"), bind("b"))); !errors.Is(res.Err, problem.ErrLeaseFull) || s.Get("a") != nil {
		t.Error(res.Err)
	}
	if res := s.Apply(transaction(txn.Op{Kind: txn.Delete, Key: "0"}, bind("a"), bind("b"))); res.Err != nil || s.Leases.Get(id).Keys != lease.MaxKeys {
		t.Error(res.Err)
	}
}

// Guarantee: an addition is of 64 bits with a sign, keeps the time to live that the key
// has, and its own counts only if it makes the key.
func TestAdd(t *testing.T) {
	s := New(testkit.Peers())
	ttl := Lifetime{Kind: ForTTL, Value: 5000}
	add := func(key string, delta int64, life Lifetime, cond Condition) Result {
		c, err := DecodeCommand(EncodeAdd(cond, life, key, delta))
		testkit.Must(t, err)
		return s.Apply(c)
	}
	for _, tt := range []struct {
		has   string
		delta int64
		want  string
		err   error
	}{
		{"5", 2, "7", nil}, {"5\n", -7, "-2", nil}, {"", 1, "", problem.ErrNotANumber}, {"\n", 1, "", problem.ErrNotANumber}, {"5\n\n", 1, "", problem.ErrNotANumber},
		{" 5", 1, "", problem.ErrNotANumber}, {"1.5", 1, "", problem.ErrNotANumber}, {"0x5", 1, "", problem.ErrNotANumber}, {"1_0", 1, "", problem.ErrNotANumber},
		{"9223372036854775806", 1, "9223372036854775807", nil}, {"9223372036854775807", 1, "", problem.ErrOutOfRange},
		{"-9223372036854775807", -1, "-9223372036854775808", nil}, {"-9223372036854775808", -1, "", problem.ErrOutOfRange},
		{"9223372036854775808", -1, "", problem.ErrOutOfRange}, {"-1", math.MinInt64, "", problem.ErrOutOfRange}, {"0", math.MinInt64, "-9223372036854775808", nil},
		{"-9223372036854775808", math.MaxInt64, "-1", nil}, {strings.Repeat("0", 64), 1, "1", nil}, {strings.Repeat("0", 65), 1, "", problem.ErrNotANumber},
	} {
		s.Apply(put("n", tt.has, Condition{}))
		before := s.Revision
		res := add("n", tt.delta, ttl, Condition{})
		if !errors.Is(res.Err, tt.err) || tt.err == nil && (res.Err != nil || s.Get("n").Value != tt.want || res.Revision != before+1) || tt.err != nil && (s.Revision != before || s.Get("n").Value != tt.has) {
			t.Errorf("%q and %d: %+v, %q", tt.has, tt.delta, res, s.Get("n").Value)
		}
		if s.Get("n").Lease != 0 {
			t.Error("a key that stays has got a time to live")
		}
	}
	add("fresh", 3, ttl, Condition{})
	id := s.Get("fresh").Lease
	add("fresh", 4, Lifetime{}, Condition{})
	add("fresh", 4, Lifetime{Kind: ForTTL, Value: 9}, Condition{Kind: IfExists})
	if it := s.Get("fresh"); id == 0 || it.Lease != id || it.Value != "11" || it.Version != 3 || s.Leases.Get(id).TTL != 5000 {
		t.Errorf("%+v", it)
	}
	if res := add("fresh", 1, Lifetime{}, Condition{Kind: IfMissing}); !errors.Is(res.Err, problem.ErrPrecondition) || res.Revision != s.Get("fresh").ModRevision {
		t.Error(res)
	}
}

// Guarantee: a deletion by prefix takes MaxDeleted keys at most; of more it takes the
// first as many as it is told, and untold none.
func TestDeletePrefix(t *testing.T) {
	s := New(testkit.Peers())
	id := s.Apply(Command{Kind: kindGrant, lease: 1000}).Lease
	for i := range MaxDeleted + 1 {
		life := Lifetime{}
		if i < lease.MaxKeys {
			life = Lifetime{Kind: WithLease, Value: id}
		}
		s.Apply(Command{Kind: kindLeasedPut, Key: fmt.Sprintf("p/%05d", i), life: life})
	}
	s.Apply(put("p", "stays", Condition{}))
	s.Apply(put("p0", "stays", Condition{}))
	del := func(prefix string, limit uint64) Result {
		c, err := DecodeCommand(EncodeDeletePrefix(prefix, limit, ""))
		testkit.Must(t, err)
		return s.Apply(c)
	}
	before := s.Revision
	if res := del("p/", 0); !errors.Is(res.Err, problem.ErrTooLarge) || s.Revision != before || s.Keys() != MaxDeleted+3 {
		t.Fatal(res)
	}
	if res := del("p/", 1); res.Err != nil || res.Deleted != 1 || !res.More || res.Deletion != before+1 || s.Get("p/00000") != nil {
		t.Fatal(res)
	}
	began := time.Now()
	if res := del("p/", 0); res.Err != nil || res.Deleted != MaxDeleted || res.More || res.Deletion != before+2 || s.Keys() != 2 {
		t.Fatal(res)
	}
	t.Logf("%d keys, all bound to a lease but one, went in %v", MaxDeleted, time.Since(began))
	if res := del("p/", 0); res.Err != nil || res.Deleted != 0 || res.Deletion != before+2 || s.Revision != before+2 {
		t.Fatal(res)
	}
	if l := s.Leases.Get(id); l == nil || l.Keys != 0 || !s.Leases.Sound() || HashItems(&s.Items) != s.Sum {
		t.Errorf("%+v", l)
	}
	if res := del("p", math.MaxUint64); res.Deleted != 2 || res.More {
		t.Error(res)
	}
}

// Guarantee: who makes batches knows how long a command takes, without reading it whole.
func TestWork(t *testing.T) {
	list := txn.Op{Kind: txn.List, Limit: 500}
	for _, tt := range []struct {
		encoded []byte
		want    int
	}{
		{EncodeWrite(KindPut, Condition{}, "k", nil), 1},
		{EncodeAdd(Condition{}, Lifetime{}, "k", 1), 1},
		{EncodeDeletePrefix("p", 0, ""), MaxBatchWork},
		{EncodeRevoke(1, ""), MaxBatchWork},
		{EncodeTxn(&txn.Txn{}), 1},
		{EncodeTxn(&txn.Txn{If: make([]txn.Comparison, 3), Then: []txn.Op{list, list}, Else: []txn.Op{list}}), 1 + 3 + 2 + 1000},
		{EncodeTxn(&txn.Txn{Then: slices.Repeat([]txn.Op{list}, 128)}), MaxBatchWork},
		{[]byte{200}, 1},
	} {
		if got := Work(tt.encoded); got != tt.want {
			t.Errorf("%x: %d, want %d", tt.encoded, got, tt.want)
		}
	}
	if _, err := DecodeCommand([]byte{byte(kindTxn), 1}); !errors.Is(err, record.ErrMalformed) {
		t.Error(err)
	}
}
