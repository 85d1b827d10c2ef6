package window

import (
	"math"
	"math/rand/v2"
	"testing"
)

// dumbWindow is what a window must be equal to, kept without bounds.
type dumbWindow struct {
	boot, low uint64
	done      map[uint64]bool
}

func (d *dumbWindow) admit(id Batch) bool {
	if id.Boot < d.boot {
		return false
	}
	if id.Boot > d.boot {
		*d = dumbWindow{boot: id.Boot, done: make(map[uint64]bool)}
	}
	d.low = max(d.low, id.Low)
	if id.Seq < d.low || d.done[id.Seq] {
		return false
	}
	if id.Seq >= Size {
		d.low = max(d.low, id.Seq-Size+1)
	}
	d.done[id.Seq] = true
	return true
}

func (d *dumbWindow) settled(id Batch) bool {
	return id.Boot < d.boot || id.Boot == d.boot && (id.Seq < d.low || d.done[id.Seq])
}

// Guarantee: a batch is applied at most once however often and in whatever
// order its copies come, and only what can still come is remembered.
func TestWindowAgreesWithModel(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		w, d := Window{}, dumbWindow{done: make(map[uint64]bool)}
		boot, at := uint64(0), uint64(rnd.IntN(3))
		for step := range 300 {
			if rnd.IntN(100) == 0 {
				boot++
			}
			at += uint64(rnd.IntN(3))
			if rnd.IntN(50) == 0 {
				at += uint64(rnd.IntN(200))
			}
			near := func(n int) uint64 { return at - min(at, uint64(rnd.IntN(n))) }
			id := Batch{Node: 1, Boot: boot - min(boot, uint64(rnd.IntN(20)/19)), Seq: near(90), Low: near(90)}
			if got, want := w.Admit(id), d.admit(id); got != want {
				t.Fatalf("seed %d, step %d: admit(%+v) is %v, want %v (%+v)", seed, step, id, got, want, w)
			}
			for seq := at - min(at, 150); seq < at+150; seq++ {
				for b := boot - min(boot, 1); b <= boot+1; b++ {
					id := Batch{Node: 1, Boot: b, Seq: seq}
					if got, want := w.Settled(id), d.settled(id); got != want {
						t.Fatalf("seed %d, step %d: settled(%+v) is %v, want %v (%+v)", seed, step, id, got, want, w)
					}
				}
			}
		}
	}
}

// Guarantee: the edges of the window, which random numbers may miss.
func TestWindowEdges(t *testing.T) {
	full := func() Window {
		var w Window
		for seq := range uint64(Size) {
			w.Admit(Batch{Seq: Size - 1 - seq}) // backwards: nothing is shifted out
		}
		return w
	}
	for _, tt := range []struct {
		name string
		w    Window
		id   Batch
		want bool
	}{
		{"last of an empty window", Window{}, Batch{Seq: Size - 1}, true},
		{"first after a full one", full(), Batch{Seq: Size}, true},
		{"first of a full one again", full(), Batch{Seq: 0}, false},
		{"last of a full one again", full(), Batch{Seq: Size - 1}, false},
		{"low far ahead", full(), Batch{Seq: 1000, Low: 1000}, true},
		{"low ahead of the batch", Window{}, Batch{Seq: 4, Low: 5}, false},
		{"a very large sequence", Window{}, Batch{Seq: math.MaxUint64 - Size}, true},
		{"an earlier life", Window{Boot: 2}, Batch{Boot: 1, Seq: 9}, false},
		{"a later life", full(), Batch{Boot: 1}, true},
	} {
		if got := tt.w.Admit(tt.id); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if tt.w.Admit(tt.id) {
			t.Errorf("%s: admitted again", tt.name)
		}
		if !tt.w.Settled(tt.id) {
			t.Errorf("%s: not settled", tt.name)
		}
	}
}
