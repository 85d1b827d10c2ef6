package watch

import (
	"encoding/json"
	"fmt"
	"raftkv/internal/changelog"
	"raftkv/internal/list"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
)

// entryOf is what a revision changed: values of so many bytes each.
func entryOf(revision uint64, sizes ...int) *state.ChangeEntry {
	e := &state.ChangeEntry{Revision: revision}
	for i, size := range sizes {
		it := &state.Item{Value: strings.Repeat("v", size), CreateRevision: revision, ModRevision: revision, Version: 1}
		e.Changes = append(e.Changes, state.Change{Revision: revision, Key: fmt.Sprint("k", i), Item: it, Size: size + 2})
		e.Size += size + 2 + changelog.ChangeCost
	}
	return e
}

// told are the parts in which an entry is told, as lines.
func told(t *testing.T, h *Hub, e *state.ChangeEntry, f Filter, form Form) (parts []string) {
	t.Helper()
	form.Lines = true
	testkit.Must(t, h.Tell(e, &f, form, func(part []byte) error {
		for line := range strings.Lines(string(part)) {
			parts = append(parts, line)
		}
		return nil
	}))
	return parts
}

// Guarantee: a revision is told whole, in parts of bounded size unless a single change is
// larger, of which the last alone has the id; all the others say that there is more.
func TestTellInParts(t *testing.T) {
	all := NewFilter(nil, []string{""})
	for name, tt := range map[string]struct {
		sizes []int
		parts int
	}{
		"small":                 {[]int{10, 10}, 1},
		"one that is large":     {[]int{3 * PartBytes}, 1},
		"two halves":            {[]int{PartBytes/2 - 200, PartBytes/2 - 200}, 1},
		"two halves, and more":  {[]int{PartBytes / 2, PartBytes / 2}, 2},
		"large ones":            {[]int{PartBytes, PartBytes, PartBytes}, 3},
		"a large one in others": {[]int{10, 2 * PartBytes, 10, 10}, 3},
		"many":                  {make([]int, 2000), 3},
	} {
		e := entryOf(7, tt.sizes...)
		parts := told(t, &Hub{}, e, all, Form{})
		if len(parts) != tt.parts {
			t.Errorf("%s: %d parts, want %d", name, len(parts), tt.parts)
		}
		next := 0
		for i, part := range parts {
			var m struct {
				Event string
				ID    *uint64
				Data  struct {
					Revision uint64
					More     bool
					Events   []struct{ Key, Value string }
				}
			}
			testkit.Must(t, json.Unmarshal([]byte(part), &m))
			last := i == len(parts)-1
			if m.Data.More == last || (m.ID != nil) != last || m.Data.Revision != 7 || len(part) > PartBytes+100 && len(m.Data.Events) > 1 {
				t.Errorf("%s: part %d of %d bytes is %.100s", name, i, len(part), part)
			}
			for _, ev := range m.Data.Events {
				if ev.Key != fmt.Sprint("k", next) || len(ev.Value) != tt.sizes[next] {
					t.Errorf("%s: change %d is of %s, %d bytes", name, next, ev.Key, len(ev.Value))
				}
				next++
			}
		}
		if next != len(tt.sizes) {
			t.Errorf("%s: %d changes, want %d", name, next, len(tt.sizes))
		}
	}
}

// Guarantee: what is encoded for one is used for others who want the same of it, and only
// for those.
func TestTellIsShared(t *testing.T) {
	h := &Hub{}
	all := NewFilter(nil, []string{""})
	e := entryOf(7, 10, 10)
	first := told(t, h, e, all, Form{})
	mark := []byte("shared\n")
	e.Told[Form{Lines: true}.index()].Store(&mark)
	if got := told(t, h, e, all, Form{}); got[0] != "shared\n" {
		t.Errorf("it was made again: %s", got)
	}
	for name, got := range map[string][]string{
		"one of two":    told(t, h, e, NewFilter([]string{"k0"}, nil), Form{}),
		"another form":  told(t, h, e, all, Form{Form: list.Form{KeysOnly: true}}),
		"another form2": told(t, h, e, all, Form{Form: list.Form{Base64: true}}),
	} {
		if len(got) != 1 || got[0] == "shared\n" || got[0] == first[0] {
			t.Errorf("%s: %.200q", name, got)
		}
	}
	puts := all
	puts.Only([]changelog.Kind{changelog.Delete})
	if got := told(t, h, e, puts, Form{}); got != nil {
		t.Errorf("of deletions alone: %q", got)
	}
	seen := map[int]bool{}
	for i := range changelog.Forms {
		f := Form{Form: list.Form{KeysOnly: i&1 > 0, Base64: i&2 > 0}, Lines: i&4 > 0}
		if at := f.index(); at < 0 || at >= changelog.Forms || seen[at] {
			t.Errorf("%+v has the place %d", f, at)
		} else {
			seen[at] = true
		}
	}
}

// Guarantee: what is kept encoded takes no more than sharedBytes, unless the newest alone
// does; the oldest goes first.
func TestSharedFormsAreBounded(t *testing.T) {
	var s forms
	var all []*state.ChangeEntry
	filter := NewFilter(nil, []string{""})
	kept := func() (n, bytes int) {
		for _, e := range all {
			if told := e.Told[0].Load(); told != nil {
				n, bytes = n+1, bytes+cap(*told)+e.Size
			} else if n > 0 {
				t.Fatal("a newer one went before an older one")
			}
		}
		return n, bytes
	}
	for i, size := range append(slices.Repeat([]int{sharedBytes / 8}, 12), sharedBytes+1, 1) {
		all = append(all, entryOf(uint64(i), size))
		if told := s.of(all[i], &filter, Form{}); len(told) < size || string(told) != string(s.of(all[i], &filter, Form{})) {
			t.Errorf("entry %d is told in %d bytes", i, len(told))
		}
		n, bytes := kept()
		if bytes != s.bytes || n != len(s.queue) || all[i].Told[0].Load() == nil || bytes > sharedBytes && n > 1 {
			t.Errorf("with %d entries %d of %d bytes are kept, and counted as %d of %d", i+1, n, bytes, len(s.queue), s.bytes)
		}
		if i == 11 && n < 3 {
			t.Errorf("%d are kept", n)
		}
	}
}

// Guarantee: nor does what is kept encoded keep more than that of values which it leaves out,
// and which the store and the history have let go.
func TestSharedFormsKeepNoValues(t *testing.T) {
	var s forms
	filter, form := NewFilter(nil, []string{""}), Form{Form: list.Form{KeysOnly: true}}
	all, size := []*state.ChangeEntry{}, sharedBytes/8
	for i := range 20 {
		all = append(all, entryOf(uint64(i), size))
		s.of(all[i], &filter, form)
	}
	kept := 0
	for _, q := range s.queue {
		kept += q.entry.Size
	}
	if kept > sharedBytes || len(s.queue) < 5 || all[19].Told[form.index()].Load() == nil {
		t.Errorf("%d bytes of values are kept for %d encoded entries", kept, len(s.queue))
	}
}
