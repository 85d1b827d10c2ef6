package wait

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: behind stop the function does not run, and never will.
func TestAfterFunc(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		ran := false
		f := func() {
			time.Sleep(time.Second)
			ran = true
		}
		AfterFunc(ctx, f)()
		stop := AfterFunc(ctx, f)
		end()
		synctest.Wait() // f is under way
		began := time.Now()
		if stop(); !ran || time.Since(began) != time.Second {
			t.Errorf("ran: %t, it was waited for for %v", ran, time.Since(began))
		}
		ran = false
		time.Sleep(time.Hour)
		if ran {
			t.Error("one that was stopped ran")
		}
	})
}
