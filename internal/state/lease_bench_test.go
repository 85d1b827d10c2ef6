package state

import (
	"fmt"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/testkit"
	"testing"
)

// Each of these is done under the lock of the state, with a million leases.
func BenchmarkMillionLeases(b *testing.B) {
	s := New(testkit.Peers())
	for i := range lease.MaxLeases - 1 { // one is for a full one
		id := s.Apply(Command{Kind: kindGrant, lease: uint64(3_600_000 + i%1000)}).Lease
		s.Apply(Command{Kind: kindLeasedPut, Key: fmt.Sprint("key/", i), life: Lifetime{Kind: WithLease, Value: id}})
	}
	now := uint64(0)
	tickOn := func(ms uint64) int {
		now += ms
		return s.tick(entry.Tick{Term: s.Term, Clock: now})
	}
	for s.Leases.Agenda().Fresh {
		tickOn(1)
	}
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
	b.Run("keep", func(b *testing.B) {
		id := uint64(0)
		for b.Loop() {
			id = id%(lease.MaxLeases-1) + 1
			s.Apply(Command{Kind: kindKeep, lease: id})
		}
	})
	b.Run("tick that begins all it may", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			for id := range uint64(lease.MaxWork) {
				s.Apply(Command{Kind: kindKeep, lease: id + 1})
			}
			b.StartTimer()
			tickOn(1)
		}
	})
	b.Run("revoke of a full lease", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			id := s.Apply(Command{Kind: kindGrant, lease: 3_600_000}).Lease
			for i := range lease.MaxKeys {
				s.Apply(Command{Kind: kindLeasedPut, Key: fmt.Sprint("full/", i), life: Lifetime{Kind: WithLease, Value: id}})
			}
			b.StartTimer()
			s.Apply(Command{Kind: kindRevoke, lease: id})
		}
	})
	b.Run("tick that ends all it may", func(b *testing.B) {
		now += 4_000_000
		for b.Loop() {
			tickOn(1)
		}
	})
}
