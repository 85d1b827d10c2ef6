package suspect

import (
	"raftkv/internal/state"
	"testing"
)

// Without this a healthy node is accused because others are down, or one of a lost
// history goes on because nobody says so.
func TestWhoIsOut(t *testing.T) {
	common := state.Standing{Index: 5, Windows: map[uint64]state.WindowStanding{1: {Boot: 1, Life: 10, End: 1}}}
	mine := state.Standing{Index: 9, Windows: map[uint64]state.WindowStanding{1: {Boot: 1, Life: 10, End: 1}, 2: {Boot: 1, Life: 20, End: 3}}}
	theirs := state.Standing{Index: 9, Windows: map[uint64]state.WindowStanding{1: {Boot: 1, Life: 10, End: 1}, 2: {Boot: 1, Life: 21, End: 3}}}
	for name, tt := range map[string]struct {
		voters int
		others []state.Standing // of voters 3, 4, ...; those that are left are not known
		out    bool
	}{
		"the third is with it":                 {3, []state.Standing{mine}, false},
		"the third is with the other":          {3, []state.Standing{theirs}, true},
		"the third is down":                    {3, nil, false},
		"the third can be of both, all known":  {3, []state.Standing{common}, true},
		"two of five are with it":              {5, []state.Standing{mine}, false},
		"two and two of five":                  {5, []state.Standing{mine, theirs}, false},
		"three of five are with the other":     {5, []state.Standing{theirs, theirs}, true},
		"three of five are with it":            {5, []state.Standing{mine, mine, theirs}, false},
		"there are but two":                    {2, nil, true},
		"four, of which two are with each":     {4, []state.Standing{mine, theirs}, true},
		"four, of which one is down":           {4, []state.Standing{theirs}, false},
		"four, of which three are not with it": {4, []state.Standing{theirs, theirs}, true},
	} {
		states := map[uint64]state.Standing{1: mine, 2: theirs}
		var voters []uint64
		for id := range uint64(tt.voters) {
			voters = append(voters, id+1)
		}
		for i, s := range tt.others {
			states[uint64(3+i)] = s
		}
		if got := isOut(voters, states, mine, theirs); got != tt.out {
			t.Errorf("%s: %t", name, got)
		}
	}
}
