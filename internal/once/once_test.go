package once

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"raftkv/internal/record"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// naive is what a table must be equal to.
type naive struct {
	records []naiveRecord // in the order in which they came
}

type naiveRecord struct {
	key      Key
	record   Record
	deadline uint64
}

func (n *naive) get(k Key) *naiveRecord {
	for i := range n.records {
		if n.records[i].key == k {
			return &n.records[i]
		}
	}
	return nil
}

func (n *naive) tick(clock uint64, most int) {
	for i := range n.records {
		if r := &n.records[i]; r.deadline == 0 {
			r.deadline = clock + r.record.Class.keep() + 1
		}
	}
	for c := TenSeconds; c <= TenMinutes; c++ {
		n.records = slices.DeleteFunc(n.records, func(r naiveRecord) bool {
			if r.record.Class != c || r.deadline > clock || most == 0 {
				return false
			}
			most--
			return true
		})
	}
}

// compare checks that the table holds what the model does, and knows its own sums.
func compare(t *testing.T, table *Table, n *naive) {
	t.Helper()
	want, bytes := map[Key]naiveRecord{}, 0
	for _, r := range n.records {
		want[r.key] = r
		bytes += len(r.key.text()) + len(r.record.Outcome) + Cost
	}
	got := map[Key]naiveRecord{}
	table.Scan(func(k Key, r *Record, deadline uint64) {
		rec := *r
		rec.seq = 0
		got[k] = naiveRecord{k, rec, deadline}
	})
	if !maps.Equal(got, want) || table.Len() != len(want) || table.Bytes() != uint64(bytes) {
		t.Fatalf("the table has %v, %d bytes; want %v, %d", got, table.Bytes(), want, bytes)
	}
	if !table.Sound() {
		t.Fatal("the sums are not those of the records")
	}
	if sum := table.BytesOf("") + table.BytesOf("web"); sum != uint64(bytes) || table.owners.Len() > 2 {
		t.Fatalf("the records of all owners have %d bytes, those of both %d", bytes, sum)
	}
	for _, owner := range []string{"", "web"} {
		own := 0
		for k, r := range want {
			if k.Owner == owner {
				own += len(k.text()) + len(r.record.Outcome) + Cost
			}
		}
		if got, known := table.owners.Get(owner); got != uint64(own) || known != (own > 0) {
			t.Fatalf("the records of %q take %d bytes, and %d are said", owner, own, got)
		}
	}
	fresh, next := false, uint64(0)
	for _, r := range n.records {
		if r.deadline == 0 {
			fresh = true
		} else if next == 0 || r.deadline < next {
			next = r.deadline
		}
	}
	if f, at := table.Agenda(); f != fresh || at != next {
		t.Fatalf("the agenda is %v, %d; want %v, %d", f, at, fresh, next)
	}
}

// reload writes a table and reads it back.
func reload(t *testing.T, table *Table) *Table {
	t.Helper()
	back := &Table{}
	if head := table.AppendHead(nil); len(head) > 0 {
		back.ReadHead(&record.Reader{B: head})
	}
	whole, err := table.Write(func(payload []byte) error {
		r := record.Reader{B: slices.Clone(payload)}
		if back.Read(&r); r.Bad {
			return fmt.Errorf("a record is refused: %x", payload)
		}
		return nil
	})
	if err != nil || !whole {
		t.Fatal(whole, err)
	}
	if err := back.Check(); err != nil {
		t.Fatal(err)
	}
	if a, b := table.AppendHead(nil), back.AppendHead(nil); !slices.Equal(a, b) {
		t.Fatalf("the head became %x, was %x", b, a)
	}
	return back
}

// Guarantee: each record is there until its time has passed since the tick behind it,
// whatever is copied, written and read meanwhile; and then it goes.
func TestTableAgreesWithModel(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		table, model, clock := &Table{}, &naive{}, uint64(1000)
		type copied struct {
			table Table
			model naive
		}
		var copies []copied
		for range 300 {
			switch rnd.IntN(8) {
			case 0, 1, 2, 3:
				k := Key{Owner: []string{"", "web"}[rnd.IntN(2)], Name: fmt.Sprint("request-", rnd.IntN(60))}
				if got, want := table.Get(k), model.get(k); (got == nil) != (want == nil) {
					t.Fatalf("seed %d: %v is %v, want %v", seed, k, got, want)
				} else if got != nil {
					continue
				}
				r := Record{Print: Print{byte(rnd.IntN(3))}, Class: Class(1 + rnd.IntN(classes)), Outcome: strings.Repeat("o", rnd.IntN(5))}
				table.Add(k, r.Print, r.Class, r.Outcome)
				model.records = append(model.records, naiveRecord{key: k, record: r})
			case 4, 5:
				clock += uint64(1 + rnd.IntN(20_000))
				most := 1 + rnd.IntN(10)
				table.Tick(clock, most)
				model.tick(clock, most)
			case 6:
				table = reload(t, table)
			case 7:
				if len(copies) < 3 {
					copies = append(copies, copied{table.Copy(), naive{slices.Clone(model.records)}})
				}
			}
			compare(t, table, model)
		}
		for _, c := range copies {
			compare(t, &c.table, &c.model)
		}
	}
}

// Guarantee: a record lives for its whole time, and not a tick longer than there is one.
func TestDeadline(t *testing.T) {
	for c, keep := range map[Class]uint64{TenSeconds: 10_000, Minute: 60_000, TenMinutes: 600_000} {
		var table Table
		k := Key{Name: "k"}
		table.Add(k, Print{}, c, "")
		table.Tick(5000, MaxDropped)
		if table.Tick(5000+keep, MaxDropped); table.Get(k) == nil {
			t.Errorf("class %d: it is gone early", c)
		}
		if table.Tick(5000+keep+1, MaxDropped); table.Get(k) != nil {
			t.Errorf("class %d: it is still there", c)
		}
		if fresh, next := table.Agenda(); fresh || next != 0 {
			t.Errorf("class %d: there is still something to do: %v, %d", c, fresh, next)
		}
	}
}

// Guarantee: deadlines do not sink along a queue, and none is before now at the end of time.
func TestDeadlinesDoNotSink(t *testing.T) {
	var table Table
	for i := range 2 {
		table.Add(Key{Name: fmt.Sprint(i)}, Print{}, Minute, "")
		table.Tick(100_000+uint64(i)*10_000, MaxDropped)
	}
	var records [][]byte
	_, _ = table.Write(func(payload []byte) error {
		records = append(records, slices.Clone(payload))
		return nil
	})
	// The deadlines of both, 160,001 and 170,001, take three bytes each.
	records[0], records[1] = slices.Concat(records[0][:2], records[1][2:5], records[0][5:]), slices.Concat(records[1][:2], records[0][2:5], records[1][5:])
	back := &Table{last: 2}
	for i, payload := range records {
		r := record.Reader{B: payload}
		if back.Read(&r); r.Bad != (i == 1) {
			t.Errorf("record %d: bad %v", i, r.Bad)
		}
	}
	var last Table
	last.Add(Key{Name: "k"}, Print{}, Minute, "")
	if last.Tick(math.MaxUint64-5, MaxDropped); last.Len() != 1 {
		t.Error("a deadline behind the end of time has passed")
	}
}

// Guarantee: no tick drops more than it may, and the next goes on.
func TestTickIsBounded(t *testing.T) {
	if MaxDropped != 2000 {
		t.Fatal("nodes of two versions would come to different states")
	}
	var table Table
	for i := range MaxDropped + 1 {
		table.Add(Key{Name: fmt.Sprint(i)}, Print{}, TenSeconds, "")
	}
	table.Tick(1, MaxDropped)
	for _, want := range []int{MaxDropped, 1, 0} {
		if got := table.Tick(20_000, MaxDropped); got != want {
			t.Errorf("%d were dropped, want %d", got, want)
		}
	}
}

// Guarantee: a table whose records are not those that its head speaks of is refused.
func TestReadStrict(t *testing.T) {
	var table Table
	table.Add(Key{Owner: "web", Name: "a"}, Print{1}, Minute, "out")
	table.Tick(1, MaxDropped)
	table.Add(Key{Name: "b"}, Print{2}, Minute, "")
	table.Add(Key{Name: "c"}, Print{3}, Minute, "")
	head := table.AppendHead(nil)
	var records [][]byte
	_, _ = table.Write(func(payload []byte) error {
		records = append(records, slices.Clone(payload))
		return nil
	})
	a, b, c := records[0], records[1], records[2]
	altered := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at]++
		return b
	}
	for name, tt := range map[string]struct {
		records [][]byte
		good    bool
	}{
		"all":                     {[][]byte{a, b, c}, true},
		"one is missing":          {[][]byte{a, b}, false},
		"twice":                   {[][]byte{a, b, c, c}, false},
		"in another order":        {[][]byte{a, c, b}, false},
		"no deadline before one":  {[][]byte{b, a, c}, false},
		"another print":           {[][]byte{altered(a, 6), b, c}, false},
		"another class":           {[][]byte{altered(a, 0), b, c}, false},
		"an unknown class":        {[][]byte{altered(altered(a, 0), 0), b, c}, false},
		"another name":            {[][]byte{a, b, altered(c, len(c)-1)}, false},
		"another deadline":        {[][]byte{altered(a, 2), b, c}, false},
		"cut short":               {[][]byte{a, b, c[:10]}, false},
		"more behind it":          {[][]byte{a, b, append(slices.Clone(c), 0)}, false},
		"a place behind the last": {[][]byte{a, b, altered(c, 1)}, false},
	} {
		back := &Table{}
		back.ReadHead(&record.Reader{B: head})
		good := true
		for _, payload := range tt.records {
			r := record.Reader{B: slices.Clone(payload)}
			back.Read(&r)
			good = good && !r.Bad
		}
		if good = good && back.Check() == nil; good != tt.good {
			t.Errorf("%s: %v, want %v", name, good, tt.good)
		}
		if tt.good && !reflect.DeepEqual(back.AppendHead(nil), head) {
			t.Errorf("%s: another head", name)
		}
	}
}

// Guarantee: whatever bytes are read, nothing panics, and what is taken is written again
// as it was.
func FuzzRead(f *testing.F) {
	var table Table
	table.Add(Key{Owner: "web", Name: "a"}, Print{1}, Minute, "out")
	table.Tick(1, MaxDropped)
	_, _ = table.Write(func(payload []byte) error { f.Add(slices.Clone(payload)); return nil })
	f.Fuzz(func(t *testing.T, payload []byte) {
		back := &Table{last: 1 << 62}
		r := record.Reader{B: slices.Clone(payload)}
		if back.Read(&r); r.Bad {
			if back.Len() != 0 {
				t.Fatal("a bad record was taken")
			}
			return
		}
		if back.Len() != 1 || !back.Sound() {
			t.Fatalf("%x: %d records", payload, back.Len())
		}
		_, _ = back.Write(func(again []byte) error { // numbers may have had more bytes than they need
			twice, r := &Table{last: 1 << 62}, record.Reader{B: slices.Clone(again)}
			if twice.Read(&r); r.Bad || twice.head() != back.head() {
				t.Fatalf("%x was written as %x", payload, again)
			}
			return nil
		})
	})
}

// Guarantee: a table takes about as much memory as it says.
func TestBytesAreThoseOfMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 100_000
	before := heap()
	table := &Table{}
	for i := range n {
		table.Add(Key{Name: fmt.Sprintf("%032x", i)}, Print{}, TenMinutes, "0123456789abcdef")
		if i%100 == 0 {
			table.Tick(uint64(i), MaxDropped)
		}
	}
	took := heap() - before
	if says := table.Bytes(); took > says*11/10 || took < says*5/10 {
		t.Errorf("it takes %d bytes, and says %d", took, says)
	}
	t.Logf("%d bytes a record, it says %d", took/n, table.Bytes()/n)
	runtime.KeepAlive(table)
}
