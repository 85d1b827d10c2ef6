package testkit

import (
	"testing"
)

// Must ends the test if err is not nil. Only the test's own goroutine may call it.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
