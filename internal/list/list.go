// Package list answers: which keys are in a range, and how are they told? It walks the
// tree of items in pages, in groups and whole, and puts items into JSON. It is pure: it
// knows neither locks nor HTTP, and whoever calls it sees to it that the tree does not
// change meanwhile.
package list

import (
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/btree"
)

const (
	// MaxItems bounds the items and groups of a page.
	MaxItems = 10_000
	// DefaultItems is the bound of a page that asks for none.
	DefaultItems = 1000
	// Delimiter is what ends the name of a group.
	Delimiter = "/"
)

// Tree holds the items by their keys.
type Tree = btree.Map[string, *state.Item]

// Query says which keys are meant, and what is to be told of them.
type Query struct {
	Prefix  string // of all keys
	Start   string // the least key; empty: there is none
	End     string // what all keys are below; empty: nothing
	After   string // what comes behind this key in the order of the list; empty: all
	Reverse bool   // from the last key to the first

	Count  bool // of the keys, and nothing else
	Groups bool // keys that go on behind the next Delimiter are told as one group
	Limit  int  // of items and groups in a page
	Form
}

// Check returns problem.ErrBadRequest if a query is none.
func (q *Query) Check() error {
	for _, f := range []struct{ name, text string }{{"prefix", q.Prefix}, {"start", q.Start}, {"end", q.End}, {"start_after", q.After}} {
		switch {
		case len(f.text) > config.MaxKeyBytes:
			return fmt.Errorf("%w: %s has %d bytes, a key has at most %d", problem.ErrBadRequest, f.name, len(f.text), config.MaxKeyBytes)
		case !utf8.ValidString(f.text):
			return fmt.Errorf("%w: %s is not valid UTF-8", problem.ErrBadRequest, f.name)
		case strings.IndexByte(f.text, 0) >= 0:
			return fmt.Errorf("%w: %s has a NUL byte", problem.ErrBadRequest, f.name)
		}
	}
	if q.End != "" && q.Start > q.End {
		return fmt.Errorf("%w: start, %q, is behind end, %q", problem.ErrBadRequest, web.Clip(q.Start), web.Clip(q.End))
	}
	if q.Limit < 1 || q.Limit > MaxItems {
		return fmt.Errorf("%w: limit is %d, not 1 to %d", problem.ErrBadRequest, q.Limit, MaxItems)
	}
	return nil
}

// span is a range of keys: from from on, and below to, unless that is empty.
type span struct{ from, to string }

// span returns where the keys of a query lie.
func (q *Query) span() span {
	s := span{max(q.Prefix, q.Start), least(q.End, behind(q.Prefix))}
	switch {
	case q.After == "":
	case q.Reverse:
		// All keys of a group are at or behind its name, so this passes over it.
		s.to = least(s.to, q.After)
	case q.Groups && q.groupOf(q.After) == q.After:
		s.from = max(s.from, behind(q.After))
	default:
		s.from = max(s.from, q.After+"\x00") // nothing lies between the two
	}
	return s
}

// least returns the lesser of two ends, of which an empty one is behind all keys.
func least(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return min(a, b)
}

// behind returns the least text behind all that begin with prefix; empty: there is
// none. A key is UTF-8, which has no byte 0xff.
func behind(prefix string) string {
	if prefix == "" {
		return ""
	}
	last := len(prefix) - 1
	return prefix[:last] + string([]byte{prefix[last] + 1})
}

// groupOf returns the name of the group to which a key belongs; empty: it stands for
// itself.
func (q *Query) groupOf(key string) string {
	rest, ok := strings.CutPrefix(key, q.Prefix)
	if !ok {
		return ""
	}
	i := strings.Index(rest, Delimiter)
	if i < 0 {
		return ""
	}
	return key[:len(q.Prefix)+i+len(Delimiter)]
}

// walk shows the items of a span in order, or against it, until each returns false.
func (s span) walk(tree *Tree, reverse bool, each func(key string, it *state.Item) bool) {
	up := func(key string, it *state.Item) bool { return (s.to == "" || key < s.to) && each(key, it) }
	down := func(key string, it *state.Item) bool {
		return key >= s.from && (key == s.to || each(key, it)) // the tree begins with a key that is the end
	}
	switch {
	case !reverse:
		tree.Ascend(s.from, up)
	case s.to == "":
		tree.Reverse(down)
	default:
		tree.Descend(s.to, down)
	}
}

// Walk shows all items of a query in its order, until each returns false. Limit and
// Groups mean nothing here.
func (q *Query) Walk(tree *Tree, each func(key string, it *state.Item) bool) {
	whole := *q
	whole.Groups = false
	whole.span().walk(tree, q.Reverse, each)
}

// Entry is an item with its key, or the name of a group, which has no item.
type Entry struct {
	Key  string
	Item *state.Item
	Left state.Left // what the item has left of its time
}

// Page returns the first Limit items and groups of a query, and whether there are
// more. It takes one search in the tree, and one more for each group.
func (q *Query) Page(s *state.State) (entries []Entry, more bool) {
	group, at := "", q.span()
	each := func(key string, it *state.Item) bool {
		if len(entries) == q.Limit {
			more = true
			return false
		}
		if q.Groups {
			group = q.groupOf(key)
		}
		if group != "" {
			entries = append(entries, Entry{Key: group})
			return false
		}
		entries = append(entries, Entry{Key: key, Item: it, Left: s.Left(it)})
		return true
	}
	for {
		at.walk(&s.Items, q.Reverse, each)
		if group == "" || more {
			return entries, more
		}
		if q.Reverse {
			at.to = group
		} else {
			at.from = behind(group)
		}
		group = ""
	}
}

// Counted returns how many keys a query has. It takes a few searches in the tree,
// however many there are.
func (q *Query) Counted(tree *Tree) int {
	s := q.span()
	n := below(tree, s.from)
	if s.to == "" {
		return tree.Len() - n
	}
	return max(0, below(tree, s.to)-n)
}

// below returns how many keys of the tree are less than key.
func below(tree *Tree, key string) int {
	return sort.Search(tree.Len(), func(i int) bool {
		at, _, _ := tree.GetAt(i)
		return at >= key
	})
}
