package testkit

import (
	"testing"
	"time"
)

// Eventually polls: these nodes live in real time.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("half a minute has gone by without: %s", what)
		}
	}
}
