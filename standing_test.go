package main

import (
	"encoding/json"
	"math/rand/v2"
	"raftkv/internal/testkit"
	"reflect"
	"testing"
)

// Without this two histories are taken for one, or a healthy node for a stranger
// to its own cluster.
func TestStandingTellsHistoriesApart(t *testing.T) {
	type windows = map[uint64]windowStanding
	base := standing{Index: 10, Changes: 2, Windows: windows{1: {3, 30, 4}, 2: {7, 70, 9}}}
	with := func(index uint64, change func(*standing)) standing {
		s := base
		s.Index, s.Windows = index, windows{1: base.Windows[1], 2: base.Windows[2]}
		change(&s)
		return s
	}
	for name, tt := range map[string]struct {
		other standing
		one   bool
	}{
		"itself":                              {base, true},
		"nothing yet":                         {standing{}, true},
		"more of everything":                  {with(11, func(s *standing) { s.Changes, s.Windows[1] = 3, windowStanding{3, 30, 5} }), true},
		"another node's first batch":          {with(11, func(s *standing) { s.Windows[3] = windowStanding{1, 10, 1} }), true},
		"a later life":                        {with(11, func(s *standing) { s.Windows[1] = windowStanding{4, 40, 1} }), true},
		"a node that was removed":             {with(11, func(s *standing) { s.Changes++; delete(s.Windows, 1) }), true},
		"a node that has no window any more":  {with(11, func(s *standing) { delete(s.Windows, 1) }), false},
		"fewer changes of the members":        {with(11, func(s *standing) { s.Changes-- }), false},
		"an earlier life":                     {with(11, func(s *standing) { s.Windows[1] = windowStanding{2, 20, 40} }), false},
		"another life with the same number":   {with(11, func(s *standing) { s.Windows[1] = windowStanding{3, 31, 5} }), false},
		"one that does not name itself":       {with(11, func(s *standing) { s.Windows[1] = windowStanding{3, 0, 5} }), false},
		"fewer batches of the same life":      {with(11, func(s *standing) { s.Windows[1] = windowStanding{3, 30, 3} }), false},
		"more, at an index before":            {with(9, func(s *standing) { s.Windows[1] = windowStanding{3, 30, 5} }), false},
		"less, at an index before":            {with(9, func(s *standing) { s.Windows[1] = windowStanding{3, 30, 3} }), true},
		"other changes at the same index":     {with(10, func(s *standing) { s.Changes++ }), false},
		"another batch at the same index":     {with(10, func(s *standing) { s.Windows[2] = windowStanding{7, 70, 10} }), false},
		"another node's at the same index":    {with(10, func(s *standing) { s.Windows[3] = windowStanding{1, 10, 1} }), false},
		"a life that was not named until now": {with(9, func(s *standing) { s.Windows[1] = windowStanding{3, 0, 3} }), true},
	} {
		if a, b := base.isOneHistoryWith(tt.other), tt.other.isOneHistoryWith(base); a != tt.one || b != tt.one {
			t.Errorf("%s: %t and %t, want %t", name, a, b, tt.one)
		}
	}
}

// Guarantee: whatever is applied, a state is of one history with all that it was
// before; and it tells of itself by JSON without loss.
func TestStandingOnlyGrows(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	s := newState(testkit.Peers())
	lives := map[uint64]batchID{}
	seqs := map[uint64]uint64{}
	var past []standing
	for i := range 500 {
		node := testkit.Peers()[rnd.IntN(len(testkit.Peers()))].ID
		if l, ok := lives[node]; !ok || rnd.IntN(10) == 0 {
			lives[node], seqs[node] = batchID{boot: l.boot + 1, life: 1 + rnd.Uint64N(1<<62)}, 0
		}
		l := lives[node]
		if rnd.IntN(5) > 0 { // else the same batch again
			seqs[node] += uint64(rnd.IntN(3))
		}
		id := batchID{node: node, boot: l.boot, life: l.life, seq: seqs[node], low: seqs[node] - min(seqs[node], 5)}
		s.index++
		s.applyBatch(id, []command{{kind: kindPut, key: "k", value: []byte{byte(i)}}})
		past = append(past, s.standing())
	}
	now := past[len(past)-1]
	for i, before := range past {
		if !before.isOneHistoryWith(now) {
			t.Fatalf("after entry %d it was %+v, in the end it is %+v", i+1, before, now)
		}
	}
	text, err := json.Marshal(now)
	if err != nil {
		t.Fatal(err)
	}
	var back standing
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, now) {
		t.Errorf("%v: %+v, want %+v", err, back, now)
	}
}

// Without this a healthy node is accused because others are down, or one of a lost
// history goes on because nobody says so.
func TestWhoIsOut(t *testing.T) {
	common := standing{Index: 5, Windows: map[uint64]windowStanding{1: {1, 10, 1}}}
	mine := standing{Index: 9, Windows: map[uint64]windowStanding{1: {1, 10, 1}, 2: {1, 20, 3}}}
	theirs := standing{Index: 9, Windows: map[uint64]windowStanding{1: {1, 10, 1}, 2: {1, 21, 3}}}
	for name, tt := range map[string]struct {
		voters int
		others []standing // of voters 3, 4, ...; those that are left are not known
		out    bool
	}{
		"the third is with it":                 {3, []standing{mine}, false},
		"the third is with the other":          {3, []standing{theirs}, true},
		"the third is down":                    {3, nil, false},
		"the third can be of both, all known":  {3, []standing{common}, true},
		"two of five are with it":              {5, []standing{mine}, false},
		"two and two of five":                  {5, []standing{mine, theirs}, false},
		"three of five are with the other":     {5, []standing{theirs, theirs}, true},
		"three of five are with it":            {5, []standing{mine, mine, theirs}, false},
		"there are but two":                    {2, nil, true},
		"four, of which two are with each":     {4, []standing{mine, theirs}, true},
		"four, of which one is down":           {4, []standing{theirs}, false},
		"four, of which three are not with it": {4, []standing{theirs, theirs}, true},
	} {
		states := map[uint64]standing{1: mine, 2: theirs}
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
