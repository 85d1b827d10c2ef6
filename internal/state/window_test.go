package state

import (
	"encoding/json"
	"math/rand/v2"
	"raftkv/internal/testkit"
	"reflect"
	"testing"
)

// Guarantee: whatever is applied, a state is of one history with all that it was
// before; and it tells of itself by JSON without loss.
func TestStandingOnlyGrows(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	s := New(testkit.Peers())
	lives := map[uint64]BatchID{}
	seqs := map[uint64]uint64{}
	var past []Standing
	for i := range 500 {
		node := testkit.Peers()[rnd.IntN(len(testkit.Peers()))].ID
		if l, ok := lives[node]; !ok || rnd.IntN(10) == 0 {
			lives[node], seqs[node] = BatchID{Boot: l.Boot + 1, Life: 1 + rnd.Uint64N(1<<62)}, 0
		}
		l := lives[node]
		if rnd.IntN(5) > 0 { // else the same batch again
			seqs[node] += uint64(rnd.IntN(3))
		}
		id := BatchID{Node: node, Boot: l.Boot, Life: l.Life, Seq: seqs[node], Low: seqs[node] - min(seqs[node], 5)}
		s.Index++
		s.ApplyBatch(id, []Command{{Kind: KindPut, Key: "k", Value: []byte{byte(i)}}})
		past = append(past, s.Standing())
	}
	now := past[len(past)-1]
	for i, before := range past {
		if !before.IsOneHistoryWith(now) {
			t.Fatalf("after entry %d it was %+v, in the end it is %+v", i+1, before, now)
		}
	}
	text, err := json.Marshal(now)
	if err != nil {
		t.Fatal(err)
	}
	var back Standing
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, now) {
		t.Errorf("%v: %+v, want %+v", err, back, now)
	}
}
