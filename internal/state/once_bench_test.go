package state

import (
	"fmt"
	"raftkv/internal/entry"
	"raftkv/internal/once"
	"raftkv/internal/testkit"
	"testing"
)

// Each of these is done under the lock of the state, with as many requests as a table may
// hold.
func BenchmarkFullOnce(b *testing.B) {
	s := New(testkit.Peers())
	now, n := uint64(0), 0
	fill := func() {
		for ; s.Once.Bytes() < 128<<20; n++ {
			s.Apply(under(fmt.Sprintf("%032x", n), once.TenSeconds, put(fmt.Sprint("key/", n%1000), "value", Condition{})))
			if n%5000 == 0 {
				now++
				s.tick(entry.Tick{Term: s.Term, Clock: now})
			}
		}
	}
	fill()
	b.ReportMetric(float64(s.Once.Len()), "requests")
	b.Run("copy", func(b *testing.B) {
		for b.Loop() {
			s.Copy()
		}
	})
	b.Run("checkpoint", func(b *testing.B) {
		for b.Loop() {
			s.checkpoint(true)
			s.Checks.Own = nil
		}
	})
	b.Run("put", func(b *testing.B) {
		c := put("key", "value", Condition{})
		for b.Loop() {
			s.Apply(c)
		}
	})
	b.Run("put under a key", func(b *testing.B) {
		for b.Loop() {
			n++
			s.Apply(Command{Kind: kindOnce, once: &onceFields{key: once.Key{Name: fmt.Sprintf("%032x", n)}, class: once.TenMinutes, inner: put("key", "value", Condition{})}})
		}
	})
	b.Run("tick that drops all it may", func(b *testing.B) {
		now += 20_000
		for b.Loop() {
			now++
			if before := s.Once.Len(); s.tick(entry.Tick{Term: s.Term, Clock: now}) != 0 || before-s.Once.Len() < once.MaxDropped {
				b.StopTimer()
				fill()
				now += 20_000
				b.StartTimer()
			}
		}
	})
}
