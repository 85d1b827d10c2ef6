//go:build unix

package liveness

import (
	"errors"
	"raftkv/internal/testkit"
	"testing"
)

// The bound, at it and one past it, and what is no reason to start a node again.
func TestPulse(t *testing.T) {
	p := NewPulse("some")
	ask := func(n int) {
		for range n {
			p.Ask()
		}
	}
	ask(StuckAfter) // the first is waiting to be taken, the others are owed
	if p.Stuck() {
		t.Error("stuck one too early")
	}
	if ask(1); !p.Stuck() {
		t.Error("not stuck")
	}
	<-p.Comes()
	if ask(1); p.Stuck() {
		t.Error("stuck when it has come round")
	}
	for _, reason := range []int32{WaitsForDisk, LoadingSnapshot} {
		testkit.Must(t, p.Excused(reason, func() error {
			if p.Loading() {
				t.Error("loading, from the first moment")
			}
			if ask(2 * StuckAfter); p.Stuck() {
				t.Errorf("stuck, with the excuse %d", reason)
			}
			if p.Loading() != (reason == LoadingSnapshot) {
				t.Errorf("loading is %t, with the excuse %d", p.Loading(), reason)
			}
			return nil
		}))
		if p.Stuck() || p.Loading() {
			t.Error("what was owed with an excuse counts without")
		}
		if ask(StuckAfter - 1); p.Stuck() {
			t.Error("stuck too early after an excuse")
		}
		if ask(1); !p.Stuck() {
			t.Error("not stuck after an excuse")
		}
	}
	failed := errors.New("failed")
	if err := p.Excused(WaitsForDisk, func() error { return failed }); err != failed {
		t.Error(err)
	}
	if (*Pulse)(nil).Comes() != nil || (*Pulse)(nil).Excused(WaitsForDisk, func() error { return failed }) != failed {
		t.Error("a loop without a pulse does not run as ever")
	}
}
