package watch

import (
	"raftkv/internal/changelog"
	"raftkv/internal/state"
	"slices"
	"strings"
)

// Filter says of which keys a watcher wants to be told.
type Filter struct {
	keys     []string // none of them has one of the prefixes
	prefixes []string // none of them begins with another
	without  [len(kindNames)]bool
}

// NewFilter returns a filter for these keys and for all that begin with one of these
// prefixes. What others cover is left out.
func NewFilter(keys, prefixes []string) Filter {
	f := Filter{}
	keys, prefixes = slices.Clone(keys), slices.Clone(prefixes)
	slices.Sort(prefixes)
	for _, p := range prefixes { // a prefix stands before what begins with it
		if n := len(f.prefixes); n == 0 || !strings.HasPrefix(p, f.prefixes[n-1]) {
			f.prefixes = append(f.prefixes, p)
		}
	}
	for _, k := range keys {
		if !f.hasPrefixOf(k) {
			f.keys = append(f.keys, k)
		}
	}
	slices.Sort(f.keys)
	f.keys = slices.Compact(f.keys)
	return f
}

// Only leaves out changes of other kinds.
func (f *Filter) Only(kinds []changelog.Kind) {
	for k := range f.without {
		f.without[k] = !slices.Contains(kinds, changelog.Kind(k))
	}
}

func (f *Filter) hasPrefixOf(key string) bool {
	return slices.ContainsFunc(f.prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// Matches reports whether a filter is for a key.
func (f *Filter) Matches(key string) bool {
	if _, ok := slices.BinarySearch(f.keys, key); ok {
		return true
	}
	return f.hasPrefixOf(key)
}

// wants reports whether a filter is for a change.
func (f *Filter) wants(c *state.Change) bool { return !f.without[c.Kind] && f.Matches(c.Key) }

// any reports whether a filter is for a change of an entry.
func (f *Filter) any(e *state.ChangeEntry) bool {
	for i := range e.Changes {
		if f.wants(&e.Changes[i]) {
			return true
		}
	}
	return false
}

// Walk shows the items for which a filter is, in the order of their keys, until each
// returns false.
func (f *Filter) Walk(s *state.State, each func(key string, it *state.Item) bool) {
	type span struct {
		from string
		one  bool // a key; else a prefix
	}
	var spans []span
	for _, k := range f.keys {
		spans = append(spans, span{k, true})
	}
	for _, p := range f.prefixes {
		spans = append(spans, span{p, false})
	}
	slices.SortFunc(spans, func(a, b span) int { return strings.Compare(a.from, b.from) })
	for _, sp := range spans {
		goesOn := true
		if sp.one {
			if it := s.Get(sp.from); it != nil {
				goesOn = each(sp.from, it)
			}
		} else {
			s.Ascend(sp.from, func(key string, it *state.Item) bool {
				if !strings.HasPrefix(key, sp.from) {
					return false
				}
				goesOn = each(key, it)
				return goesOn
			})
		}
		if !goesOn {
			return
		}
	}
}
