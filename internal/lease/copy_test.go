package lease

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// filled is a table with leases of all kinds: with keys and without, private ones, some
// without a deadline, some due.
func filled(rng *rand.Rand) *Table {
	t := &Table{}
	for n := range 60 {
		if n%20 == 0 {
			t.Tick(t.Clock + 100)
		}
		ttl := 1 + rng.Uint64N(300)
		if n%3 == 0 {
			t.GrantFor(fmt.Sprint("private", n), ttl, "")
			continue
		}
		id, _ := t.Grant(ttl, "")
		for key := range n % 4 {
			_ = t.Bind(id, fmt.Sprint("key", n, ".", key), "")
		}
	}
	return t
}

func describe(t *Table) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%x %+v %d %d %d", t.AppendHead(nil), t.Agenda(), t.Listed(), t.fresh, t.Bytes())
	t.Scan(func(id uint64, l *Lease) bool {
		fmt.Fprintf(&b, "\n%d %+v %v", id, *l, t.KeysOf(id, "", MaxKeys))
		return true
	})
	return b.String()
}

// Guarantee: a copy of a table goes on as the table itself does, whatever is the first change
// of it, and neither touches the other.
func TestCopyGoesOn(t *testing.T) {
	changes := map[string]func(t *Table) []string{
		"tick":      func(t *Table) []string { return t.Tick(t.Clock + 150) },
		"grant":     func(t *Table) []string { _, err := t.Grant(50, ""); return []string{fmt.Sprint(err)} },
		"grant for": func(t *Table) []string { return []string{fmt.Sprint(t.GrantFor("new", 50, ""))} },
		"keep":      func(t *Table) []string { ttl, err := t.Keep(t.Last, ""); return []string{fmt.Sprint(ttl, err)} },
		"revoke":    func(t *Table) []string { keys, err := t.Revoke(2, ""); return append(keys, fmt.Sprint(err)) },
		"bind":      func(t *Table) []string { return []string{fmt.Sprint(t.Bind(t.Last, "new", ""))} },
	}
	ended := 0
	for name, change := range changes {
		for seed := range uint64(10) {
			table := filled(rand.New(rand.NewPCG(seed, 1)))
			before := describe(table)
			copied := table.Copy()
			if got := describe(&copied); got != before {
				t.Fatalf("seed %d: a copy of\n%s\nis\n%s", seed, before, got)
			}
			got := change(&copied)
			if now := describe(table); now != before {
				t.Fatalf("seed %d: %s of a copy changed the table from\n%s\nto\n%s", seed, name, before, now)
			}
			after := describe(&copied)
			want := change(table)
			if now := describe(&copied); now != after {
				t.Fatalf("seed %d: %s of a table changed its copy from\n%s\nto\n%s", seed, name, after, now)
			}
			for round := range 6 {
				if a, b := describe(table), describe(&copied); a != b || !slices.Equal(got, want) {
					t.Fatalf("seed %d, %d ticks after %s: %v and\n%s\nin a copy %v and\n%s", seed, round, name, want, a, got, b)
				}
				want, got = table.Tick(table.Clock+100), copied.Tick(copied.Clock+100)
				ended += len(want)
			}
		}
	}
	if ended < 500 {
		t.Errorf("only %d keys went", ended)
	}
}

// Guarantee: what only reads a copy writes nothing to it; the race detector sees it.
func TestCopyIsReadTogether(t *testing.T) {
	table := filled(rand.New(rand.NewPCG(1, 1)))
	copied := table.Copy()
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			describe(&copied)
			copied.List(0, 100, anybody)
			copied.Named(1, "")
		})
	}
	readers.Wait()
}

func anybody(string) bool { return true }
