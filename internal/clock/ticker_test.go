package clock

import (
	"context"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"testing"
	"time"
)

// Guarantee: a leader for which nothing goes away by itself wakes up no more often than it
// looks whether something does.
func TestIdleLeaderRests(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		st := state.New(testkit.Peers())
		st.Level, st.Term = state.ProgramLevel, 3
		looks := 0
		leaders := wait.NewLeadership()
		leaders.Set(1, 3)
		ticker := New(Config{ID: 1, Leaders: leaders, View: func(look func(*state.State)) {
			looks++
			look(st)
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		testkit.Must(t, ticker.Run(ctx))
		if most := int(10 * time.Second / lookEvery); looks < most/2 || looks > most+1 {
			t.Errorf("in ten seconds it looked %d times, want at most %d", looks, most+1)
		}
	})
}
