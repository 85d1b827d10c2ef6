package storage

import (
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/testkit"
	"testing"
	"time"
)

// slowDisk takes a time for each write.
type slowDisk struct{ each time.Duration }

func (d slowDisk) Write(b []byte) (int, error) {
	time.Sleep(d.each)
	return len(b), nil
}

// Guarantee: a snapshot leaves most of the time to requests; less of it when a
// follower waits for the snapshot, and none when the log grows too fast or the
// disk is slow, or a snapshot would never be done.
func TestSnapshotPace(t *testing.T) {
	const each, block, size = 4 * time.Millisecond, 1 << 20, 64 << 20
	for name, c := range map[string]struct {
		awaited bool
		grown   int64
		block   int
		want    time.Duration // for each write
	}{
		"at leisure":       {block: block, want: each * (1 + paceRest)},
		"awaited":          {block: block, awaited: true, want: each * (1 + paceAwaited)},
		"much is written":  {block: block, grown: size/4 + 1, want: each},
		"both":             {block: block, awaited: true, grown: size/4 + 1, want: each},
		"on a slow disk":   {block: 1 << 10, want: each},
		"slow and awaited": {block: 1 << 10, awaited: true, want: each},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.InBubble(t, func(t *testing.T) {
				var tail logTail
				tail.Awaited.Store(c.awaited)
				tail.Grown.Store(c.grown)
				began := time.Now()
				w := snapshots.NewRestingWriter(t.Context(), slowDisk{each}, func() time.Duration { return tail.snapshotPace(size) }, func() bool { return false })
				const writes = 8
				for range writes {
					if n, err := w.Write(make([]byte, c.block)); n != c.block || err != nil {
						t.Fatal(n, err)
					}
				}
				if got := time.Since(began); got != writes*c.want {
					t.Errorf("%v a write, want %v", got/writes, c.want)
				}
			})
		})
	}
}
