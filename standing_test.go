package main

import (
	"encoding/json"
	"math/rand/v2"
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
	s := newState(testPeers)
	lives := map[uint64]life{}
	seqs := map[uint64]uint64{}
	var past []standing
	for i := range 500 {
		node := testPeers[rnd.IntN(len(testPeers))].ID
		if l, ok := lives[node]; !ok || rnd.IntN(10) == 0 {
			lives[node], seqs[node] = newLife(node, l.boot+1), 0
		}
		l := lives[node]
		if rnd.IntN(5) > 0 { // else the same batch again
			seqs[node] += uint64(rnd.IntN(3))
		}
		id := batchID{node: node, boot: l.boot, life: l.nonce, seq: seqs[node], low: seqs[node] - min(seqs[node], 5)}
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
