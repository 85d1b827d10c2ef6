package list

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"slices"
	"strings"
	"testing"
)

// naive is what a query means, said over a sorted list of all keys.
func naive(keys []string, q Query) (found []string) {
	for _, key := range keys {
		if strings.HasPrefix(key, q.Prefix) && key >= q.Start && (q.End == "" || key < q.End) {
			found = append(found, key)
		}
	}
	if q.Reverse {
		slices.Reverse(found)
	}
	found = slices.DeleteFunc(found, func(key string) bool {
		switch {
		case q.After == "":
			return false
		case q.Reverse:
			return key >= q.After
		case q.Groups && strings.HasSuffix(q.After, "/") && strings.HasPrefix(q.After, q.Prefix) &&
			strings.Count(q.After[len(q.Prefix):], "/") == 1 && strings.HasPrefix(key, q.After):
			return true
		}
		return key <= q.After
	})
	return found
}

// told is how a page tells of keys: each by itself, or by its group.
func told(keys []string, q Query) (entries []string) {
	for _, key := range keys {
		if i := strings.Index(key[len(q.Prefix):], "/"); q.Groups && i >= 0 {
			key = key[:len(q.Prefix)+i+1]
		}
		if len(entries) == 0 || entries[len(entries)-1] != key {
			entries = append(entries, key)
		}
	}
	return entries
}

func treeOf(keys []string) *Tree {
	tree := new(Tree)
	for i, key := range keys {
		tree.Set(key, &state.Item{Value: key, CreateRevision: 1, ModRevision: uint64(i + 1), Version: 1})
	}
	return tree
}

var alphabet = []string{"a", "b", "/", "/", "0", ".", "é", "\U0010ffff", "\x7f", " "}

func text(r *rand.Rand, most int) (s string) {
	for range r.IntN(most + 1) {
		s += alphabet[r.IntN(len(alphabet))]
	}
	return s
}

// someKeys are keys that share beginnings, in order.
func someKeys(r *rand.Rand) []string {
	set := make(map[string]bool)
	for range r.IntN(400) {
		if key := text(r, 6); key != "" {
			set[key] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// near is a text that means something for these keys.
func near(r *rand.Rand, keys []string) string {
	switch n := r.IntN(6); {
	case n < 2:
		return ""
	case n == 2 || len(keys) == 0:
		return text(r, 3)
	default:
		key := []rune(keys[r.IntN(len(keys))])
		return string(key[:r.IntN(len(key)+1)])
	}
}

func someQuery(r *rand.Rand, keys []string) Query {
	q := Query{
		Prefix: near(r, keys), After: near(r, keys), Reverse: r.IntN(2) == 0, Groups: r.IntN(2) == 0,
		Limit: 1 + r.IntN(8),
	}
	if r.IntN(2) == 0 {
		q.Start = near(r, keys)
	}
	if r.IntN(2) == 0 {
		q.End = near(r, keys)
	}
	return q
}

func names(entries []Entry) (names []string) {
	for _, e := range entries {
		names = append(names, e.Key)
	}
	return names
}

// Guarantee: a page, a walk and a count are what they are by the plain meaning of their
// parameters, and paging forward and in reverse gives every key or group exactly once.
func TestAgainstNaive(t *testing.T) {
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 1))
		keys := someKeys(r)
		tree := treeOf(keys)
		for range 60 {
			q := someQuery(r, keys)
			if errors.Is(q.Check(), problem.ErrBadRequest) {
				continue // start is behind end
			}
			againstNaive(t, tree, keys, q)
			if t.Failed() {
				t.Fatalf("seed %d: %+v of %q", seed, q, keys)
			}
		}
	}
}

func againstNaive(t *testing.T, tree *Tree, keys []string, q Query) {
	found := naive(keys, q)
	want := told(found, q)
	entries, more := q.Page(of(7, tree))
	if got := names(entries); !slices.Equal(got, want[:min(len(want), q.Limit)]) || more != (len(want) > q.Limit) {
		t.Errorf("a page is %q, %t, want %q", got, more, want)
	}
	var all []string
	for at := q; ; at.After = all[len(all)-1] {
		page, more := at.Page(of(7, tree))
		for _, e := range page {
			it, _ := tree.Get(e.Key)
			if grouped := q.Groups && strings.Contains(strings.TrimPrefix(e.Key, q.Prefix), "/"); !grouped && e.Item != it || grouped && e.Item != nil {
				t.Errorf("%q comes with %v", e.Key, e.Item)
			}
		}
		if all = append(all, names(page)...); !more || len(all) > len(want) {
			break
		}
	}
	if !slices.Equal(all, want) {
		t.Errorf("the pages are %q, want %q", all, want)
	}
	q.Groups = false
	want = naive(keys, q)
	var walked []string
	q.Walk(tree, func(key string, _ *state.Item) bool { walked = append(walked, key); return true })
	if n := q.Counted(tree); !slices.Equal(walked, want) || n != len(want) {
		t.Errorf("a walk is %q, the count %d, want %q", walked, n, want)
	}
}

// Guarantee: a walk ends when it is told to.
func TestWalkEnds(t *testing.T) {
	tree := treeOf([]string{"a", "b", "c"})
	for _, reverse := range []bool{false, true} {
		n := 0
		(&Query{Reverse: reverse}).Walk(tree, func(string, *state.Item) bool { n++; return n < 2 })
		if n != 2 {
			t.Errorf("reverse %t: %d keys were shown", reverse, n)
		}
	}
}

// Guarantee: a tree that has been through deletions, and one that was loaded, count as
// they hold.
func TestCountedAfterChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	tree, keys := new(Tree), make(map[string]bool)
	for i := range 20_000 {
		key := fmt.Sprintf("%05d", i)
		tree.Load(key, &state.Item{})
		keys[key] = true
	}
	for range 30_000 {
		key := fmt.Sprintf("%05d", r.IntN(30_000))
		if r.IntN(2) == 0 {
			tree.Delete(key)
			delete(keys, key)
		} else {
			tree.Set(key, &state.Item{})
			keys[key] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(keys))
	for range 200 {
		q := Query{Start: fmt.Sprintf("%05d", r.IntN(30_000)), Prefix: fmt.Sprint(r.IntN(3))[:r.IntN(2)], Limit: 1}
		if got, want := q.Counted(tree), len(naive(sorted, q)); got != want {
			t.Fatalf("%+v counts %d, want %d", q, got, want)
		}
	}
}

// Guarantee: what can be no query is refused: at the bounds, and one past them.
func TestCheck(t *testing.T) {
	long := strings.Repeat("k", config.MaxKeyBytes)
	for _, tt := range []struct {
		q  Query
		ok bool
	}{
		{Query{Limit: 1}, true}, {Query{Limit: MaxItems}, true}, {Query{Limit: 0}, false}, {Query{Limit: MaxItems + 1}, false}, {Query{Limit: -1}, false},
		{Query{Limit: 1, Prefix: long, Start: long, End: long, After: long}, true},
		{Query{Limit: 1, Prefix: long + "k"}, false}, {Query{Limit: 1, Start: long + "k"}, false},
		{Query{Limit: 1, End: long + "k"}, false}, {Query{Limit: 1, After: long + "k"}, false},
		{Query{Limit: 1, Prefix: "\xff"}, false}, {Query{Limit: 1, After: "a\xc3"}, false}, {Query{Limit: 1, Start: "\x00"}, false}, {Query{Limit: 1, End: "a\x00"}, false},
		{Query{Limit: 1, Start: "a", End: "a"}, true}, {Query{Limit: 1, Start: "b", End: "a"}, false}, {Query{Limit: 1, Start: "b"}, true},
	} {
		if err := tt.q.Check(); tt.ok != (err == nil) || err != nil && !errors.Is(err, problem.ErrBadRequest) {
			t.Errorf("%.60v: %v", fmt.Sprintf("%+v", tt.q), err)
		}
	}
}

// Guarantee: whatever the parameters, they are refused or mean what they mean plainly.
func FuzzQuery(f *testing.F) {
	f.Add("a/b\na/c\nb\n/", "a/", "", "", "a/b", false, true, 2)
	f.Add("é\n\U0010ffff\n\U0010ffff/a", "\U0010ffff", "", "", "", true, true, 1)
	f.Add("a\nb\nc", "", "b", "a", "", false, false, 1)
	f.Add("a//b\na/\na", "a/", "a/", "a/0", "a//", true, true, 1)
	f.Fuzz(func(t *testing.T, lines, prefix, start, end, after string, reverse, groups bool, limit int) {
		keys := slices.DeleteFunc(strings.Split(lines, "\n"), func(key string) bool {
			return key == "" || (&Query{Limit: 1, Prefix: key}).Check() != nil
		})
		slices.Sort(keys)
		keys = slices.Compact(keys)
		q := Query{Prefix: prefix, Start: start, End: end, After: after, Reverse: reverse, Groups: groups, Limit: limit}
		if q.Check() == nil {
			againstNaive(t, treeOf(keys), keys, q)
		}
	})
}

// What holds a reader's lock: a page of the default length, one of groups, and a count,
// among a million keys.
func BenchmarkList(b *testing.B) {
	tree := new(Tree)
	for i := range 1_000_000 {
		tree.Load(fmt.Sprintf("key/%06d/%04d", i/10, i%10), &state.Item{})
	}
	for name, q := range map[string]Query{
		"page": {Limit: DefaultItems}, "reverse": {Limit: DefaultItems, Reverse: true}, "groups": {Prefix: "key/", Groups: true, Limit: DefaultItems},
		"most": {Limit: MaxItems},
	} {
		b.Run(name, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				at := q
				at.After = fmt.Sprintf("key/%06d/", 10_000+r.IntN(80_000))
				if entries, _ := at.Page(of(7, tree)); len(entries) != q.Limit {
					b.Fatal(len(entries))
				}
			}
		})
	}
	b.Run("count", func(b *testing.B) {
		r := rand.New(rand.NewPCG(1, 1))
		for b.Loop() {
			(&Query{Start: fmt.Sprintf("key/%06d", r.IntN(100_000))}).Counted(tree)
		}
	})
}

// of returns a state with these items.
func of(revision uint64, tree *Tree) *state.State {
	s := state.New(nil)
	s.Revision, s.Items = revision, *tree.Copy()
	return s
}
