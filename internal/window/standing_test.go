package window

import "testing"

// Without this two histories are taken for one, or a healthy node for a stranger
// to its own cluster.
func TestStandingTellsHistoriesApart(t *testing.T) {
	type windows = map[uint64]Reach
	base := Standing{Index: 10, Changes: 2, Windows: windows{1: {3, 30, 4}, 2: {7, 70, 9}}}
	with := func(index uint64, change func(*Standing)) Standing {
		s := base
		s.Index, s.Windows = index, windows{1: base.Windows[1], 2: base.Windows[2]}
		change(&s)
		return s
	}
	for name, tt := range map[string]struct {
		other Standing
		one   bool
	}{
		"itself":                              {base, true},
		"nothing yet":                         {Standing{}, true},
		"more of everything":                  {with(11, func(s *Standing) { s.Changes, s.Windows[1] = 3, Reach{3, 30, 5} }), true},
		"another node's first batch":          {with(11, func(s *Standing) { s.Windows[3] = Reach{1, 10, 1} }), true},
		"a later life":                        {with(11, func(s *Standing) { s.Windows[1] = Reach{4, 40, 1} }), true},
		"a node that was removed":             {with(11, func(s *Standing) { s.Changes++; delete(s.Windows, 1) }), true},
		"a node that has no window any more":  {with(11, func(s *Standing) { delete(s.Windows, 1) }), false},
		"fewer changes of the members":        {with(11, func(s *Standing) { s.Changes-- }), false},
		"an earlier life":                     {with(11, func(s *Standing) { s.Windows[1] = Reach{2, 20, 40} }), false},
		"another life with the same number":   {with(11, func(s *Standing) { s.Windows[1] = Reach{3, 31, 5} }), false},
		"one that does not name itself":       {with(11, func(s *Standing) { s.Windows[1] = Reach{3, 0, 5} }), false},
		"fewer batches of the same life":      {with(11, func(s *Standing) { s.Windows[1] = Reach{3, 30, 3} }), false},
		"more, at an index before":            {with(9, func(s *Standing) { s.Windows[1] = Reach{3, 30, 5} }), false},
		"less, at an index before":            {with(9, func(s *Standing) { s.Windows[1] = Reach{3, 30, 3} }), true},
		"other changes at the same index":     {with(10, func(s *Standing) { s.Changes++ }), false},
		"another batch at the same index":     {with(10, func(s *Standing) { s.Windows[2] = Reach{7, 70, 10} }), false},
		"another node's at the same index":    {with(10, func(s *Standing) { s.Windows[3] = Reach{1, 10, 1} }), false},
		"a life that was not named until now": {with(9, func(s *Standing) { s.Windows[1] = Reach{3, 0, 3} }), true},
	} {
		if a, b := base.IsOneHistoryWith(tt.other), tt.other.IsOneHistoryWith(base); a != tt.one || b != tt.one {
			t.Errorf("%s: %t and %t, want %t", name, a, b, tt.one)
		}
	}
}
