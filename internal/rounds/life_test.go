package rounds

import (
	"bytes"
	"errors"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"testing"
)

// Guarantee: batches of this life and of earlier ones are no sign that the
// directory is an older copy; those of later lives, and of another life with the
// same number, are.
func TestLifeIsAnothers(t *testing.T) {
	own := Life{node: 1, boot: 7, nonce: 70}
	for _, tt := range []struct {
		id   state.BatchID
		want bool
	}{
		{state.BatchID{Node: 1, Boot: 7, Life: 70}, false},
		{state.BatchID{Node: 1, Boot: 7}, false}, // format 1 does not say
		{state.BatchID{Node: 1, Boot: 6, Life: 60}, false},
		{state.BatchID{Node: 1, Boot: 6, Life: 70}, false},
		{state.BatchID{Node: 1, Boot: 7, Life: 71}, true},
		{state.BatchID{Node: 1, Boot: 8, Life: 80}, true},
		{state.BatchID{Node: 1, Boot: 8}, true},
		{state.BatchID{Node: 2, Boot: 8, Life: 80}, false},
	} {
		if got := own.isAnothers(tt.id); got != tt.want {
			t.Errorf("%+v: %t", tt.id, got)
		}
	}
	for _, tt := range []struct {
		w    state.Window
		want bool
	}{
		{state.Window{}, false},
		{state.Window{Boot: 6, Low: 99, Life: 60}, false},
		{state.Window{Boot: 7, Low: 5, Life: 70}, false},
		{state.Window{Boot: 7, Low: 6, Life: 70}, true}, // six were settled, five begun
		{state.Window{Boot: 7, Low: 3, Applied: 0b10, Life: 70}, false},
		{state.Window{Boot: 7, Low: 3, Applied: 0b100, Life: 70}, true},
		{state.Window{Boot: 7, Low: 5}, false},
		{state.Window{Boot: 7, Low: 6}, true},
		{state.Window{Boot: 7, Life: 71}, true},
		{state.Window{Boot: 8}, true},
	} {
		if got := own.contradictedBy(tt.w, 5); got != tt.want {
			t.Errorf("%+v: %t", tt.w, got)
		}
	}
	if a, b := NewLife(1, 7), NewLife(1, 7); a.nonce == b.nonce || a.nonce == 0 {
		t.Errorf("lives are %+v and %+v", a, b)
	}
}

// Guarantee: nobody is answered from an entry that is not, byte for byte, the
// batch that was sent, whatever number it bears.
func TestCheckBatch(t *testing.T) {
	for _, named := range []bool{false, true} {
		testProposer(t, func(pt *proposeTest) {
			pt.p.Named.Store(named)
			pt.leaders.Set(1, 1)
			res := pt.write("a")
			offer := pt.next()
			b := pt.p.inFlight[0]
			if (b.id.Life != 0) != named {
				t.Errorf("its identity is %+v", b.id)
			}
			if err := pt.p.CheckBatch(b.id, bytes.Clone(b.data)); err != nil {
				t.Error(err)
			}
			other := bytes.Clone(b.data)
			other[len(other)-1] ^= 1
			if err := pt.p.CheckBatch(b.id, other); !errors.Is(err, problem.ErrOldCopy) {
				t.Errorf("other bytes: %v", err)
			}
			later := b.id
			later.Seq++
			if err := pt.p.CheckBatch(later, b.data); !errors.Is(err, problem.ErrOldCopy) {
				t.Errorf("a batch that was not begun yet: %v", err)
			}
			offer.Done(true, 1, true)
			pt.apply(b.id.Seq, 1)
			pt.want(res, state.Result{Revision: 100 * b.id.Seq})
			if err := pt.p.CheckBatch(b.id, other); err != nil {
				t.Errorf("what came of a batch is known: %v", err)
			}
		})
	}
}
