package main

import (
	"bytes"
	"errors"
	"raftkv/internal/problem"
	"testing"
)

// Guarantee: batches of this life and of earlier ones are no sign that the
// directory is an older copy; those of later lives, and of another life with the
// same number, are.
func TestLifeIsAnothers(t *testing.T) {
	own := life{node: 1, boot: 7, nonce: 70}
	for _, tt := range []struct {
		id   batchID
		want bool
	}{
		{batchID{node: 1, boot: 7, life: 70}, false},
		{batchID{node: 1, boot: 7}, false}, // format 1 does not say
		{batchID{node: 1, boot: 6, life: 60}, false},
		{batchID{node: 1, boot: 6, life: 70}, false},
		{batchID{node: 1, boot: 7, life: 71}, true},
		{batchID{node: 1, boot: 8, life: 80}, true},
		{batchID{node: 1, boot: 8}, true},
		{batchID{node: 2, boot: 8, life: 80}, false},
	} {
		if got := own.isAnothers(tt.id); got != tt.want {
			t.Errorf("%+v: %t", tt.id, got)
		}
	}
	for _, tt := range []struct {
		w    window
		want bool
	}{
		{window{}, false},
		{window{boot: 6, low: 99, life: 60}, false},
		{window{boot: 7, low: 5, life: 70}, false},
		{window{boot: 7, low: 6, life: 70}, true}, // six were settled, five begun
		{window{boot: 7, low: 3, applied: 0b10, life: 70}, false},
		{window{boot: 7, low: 3, applied: 0b100, life: 70}, true},
		{window{boot: 7, low: 5}, false},
		{window{boot: 7, low: 6}, true},
		{window{boot: 7, life: 71}, true},
		{window{boot: 8}, true},
	} {
		if got := own.contradictedBy(tt.w, 5); got != tt.want {
			t.Errorf("%+v: %t", tt.w, got)
		}
	}
	if a, b := newLife(1, 7), newLife(1, 7); a.nonce == b.nonce || a.nonce == 0 {
		t.Errorf("lives are %+v and %+v", a, b)
	}
}

// Guarantee: of two lives with the same number, only the batches of the one that
// came first are applied; and one that does not name its life goes with either.
func TestWindowAdmitsOneLife(t *testing.T) {
	w := window{boot: 7}
	for i, tt := range []struct {
		id   batchID
		want bool
	}{
		{batchID{boot: 7, seq: 0}, true},
		{batchID{boot: 7, seq: 1, life: 70}, true},
		{batchID{boot: 7, seq: 2, life: 71}, false},
		{batchID{boot: 7, seq: 2}, true},
		{batchID{boot: 7, seq: 3, life: 70}, true},
		{batchID{boot: 8, seq: 0, life: 71}, true},
		{batchID{boot: 7, seq: 4, life: 70}, false},
	} {
		if got := w.admit(tt.id); got != tt.want {
			t.Errorf("%d: %+v: %t", i, tt.id, got)
		}
	}
}

// Guarantee: nobody is answered from an entry that is not, byte for byte, the
// batch that was sent, whatever number it bears.
func TestCheckBatch(t *testing.T) {
	for _, named := range []bool{false, true} {
		testProposer(t, func(pt *proposeTest) {
			pt.p.named.Store(named)
			pt.leaders.Set(1, 1)
			res := pt.write("a")
			offer := pt.next()
			b := pt.p.inFlight[0]
			if (b.id.life != 0) != named {
				t.Errorf("its identity is %+v", b.id)
			}
			if err := pt.p.checkBatch(b.id, bytes.Clone(b.data)); err != nil {
				t.Error(err)
			}
			other := bytes.Clone(b.data)
			other[len(other)-1] ^= 1
			if err := pt.p.checkBatch(b.id, other); !errors.Is(err, problem.ErrOldCopy) {
				t.Errorf("other bytes: %v", err)
			}
			later := b.id
			later.seq++
			if err := pt.p.checkBatch(later, b.data); !errors.Is(err, problem.ErrOldCopy) {
				t.Errorf("a batch that was not begun yet: %v", err)
			}
			offer.done(true, 1, true)
			pt.apply(b.id.seq, 1)
			pt.want(res, result{revision: 100 * b.id.seq})
			if err := pt.p.checkBatch(b.id, other); err != nil {
				t.Errorf("what came of a batch is known: %v", err)
			}
		})
	}
}
