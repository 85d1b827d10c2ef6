package verdict

import (
	"errors"
	"raftkv/internal/problem"
	"testing"
)

// Guarantee: whoever contradicts the majority of the voters is found, a learner too; while
// a majority can still come about nobody is; and where none can, all are told so until one
// does. (Package state has the same through its commands, and copies and files.)
func TestTake(t *testing.T) {
	const h, g = 1, 2
	type report struct {
		node, hash uint64
	}
	for name, tt := range map[string]struct {
		reports    []report
		checked    bool
		diverged   []uint64
		noMajority bool
	}{
		"nobody":               {nil, false, nil, false},
		"one":                  {[]report{{1, h}}, false, nil, false},
		"two agree":            {[]report{{1, h}, {2, h}}, true, nil, false},
		"all agree":            {[]report{{1, h}, {2, h}, {3, h}}, true, nil, false},
		"two contradict":       {[]report{{1, h}, {2, g}}, false, nil, false},
		"the third tells":      {[]report{{1, h}, {2, g}, {3, h}}, true, []uint64{2}, false},
		"three minds":          {[]report{{1, h}, {2, g}, {3, 3}}, false, nil, true},
		"said two things":      {[]report{{1, h}, {1, g}, {2, h}, {3, h}}, true, []uint64{1}, false},
		"the same again":       {[]report{{1, h}, {1, h}, {2, h}}, true, nil, false},
		"a learner is no vote": {[]report{{1, h}, {9, h}}, false, nil, false},
		"a learner differs":    {[]report{{1, h}, {2, h}, {9, g}}, true, []uint64{9}, false},
		"a stranger differs":   {[]report{{1, h}, {2, h}, {77, g}}, true, nil, false},
	} {
		var c Checks
		c.Begin(5, false, []uint64{1, 2, 3})
		member := func(id uint64) bool { return id <= 3 || id == 9 }
		for _, r := range tt.reports {
			c.Take(r.node, 5, Report{Hash: r.hash}, member)
			c.Take(r.node, 4, Report{Hash: 99}, member) // on another checkpoint
		}
		if (c.Checked == 5) != tt.checked || (c.NoMajority == 5) != tt.noMajority || len(c.Diverged) != len(tt.diverged) {
			t.Errorf("%s: %+v", name, c)
		}
		for _, id := range tt.diverged {
			if !errors.Is(c.Verdict(id), problem.ErrDiverged) {
				t.Errorf("%s: node %d: %v", name, id, c.Verdict(id))
			}
		}
		if got := errors.Is(c.Verdict(3), problem.ErrNoMajority); got != tt.noMajority {
			t.Errorf("%s: no majority %v, want %v", name, got, tt.noMajority)
		}
	}
}
