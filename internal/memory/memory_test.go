package memory

import (
	"testing"
)

// Without this a small store is collected all the time, or a large one takes
// twice its size.
func TestGCPercent(t *testing.T) {
	for _, live := range []uint64{0, 1, 1 << 20, 5 << 20, 20 << 20, 40 << 20, 100 << 20, 1 << 30, 1 << 40} {
		p := gcPercent(live)
		garbage := live * uint64(p) / 100
		switch {
		case p < garbagePercent || p > garbageMost:
			t.Errorf("%d bytes live: %d %%", live, p)
		case garbage < garbageLeast && p < garbageMost:
			t.Errorf("%d bytes live: %d %%, only %d bytes of garbage", live, p, garbage)
		case garbage > 2*garbageLeast && p != garbagePercent:
			t.Errorf("%d bytes live: %d %%, %d bytes of garbage", live, p, garbage)
		}
	}
}
