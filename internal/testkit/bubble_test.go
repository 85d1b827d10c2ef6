package testkit

import (
	"sync"
	"testing"
	"time"
)

// Guarantee: timers of a bubble that fall due together do not end the race
// detector. Without the one processor it dies.
func TestBubbleTimersUnderRace(t *testing.T) {
	for range 20 {
		InBubble(t, func(t *testing.T) {
			var wg sync.WaitGroup
			for range 32 {
				wg.Go(func() {
					ticks := time.NewTicker(time.Millisecond)
					defer ticks.Stop()
					for range 500 {
						time.Sleep(time.Millisecond)
						select {
						case <-ticks.C:
						default:
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
