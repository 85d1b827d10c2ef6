package testkit

import (
	"os"
	"os/exec"
	"testing"
)

// What a test needs beyond Go, and how long it runs:
//
//	RAFTKV_TEST_ALL=1 a test that lacks something fails in place of being skipped
//	RAFTKV_SOAK=1     the TestSoak… run at full length, not for seconds (make soak)

// CannotRun skips a test that lacks something here. Where all tests must run,
// as before a change goes in, it fails.
func CannotRun(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("RAFTKV_TEST_ALL") != "" {
		t.Fatalf("cannot run here: %s", why)
	}
	t.Skipf("cannot run here: %s", why)
}

// NeedTools skips a test for which a program is missing.
func NeedTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			CannotRun(t, name+" is missing")
		}
	}
}

// NeedRoot skips a test that mounts, makes network namespaces or the like.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		CannotRun(t, "it takes root")
	}
}

// SoakOr returns how much of something a TestSoak… does: full under make soak,
// quick, which should take seconds, elsewhere.
func SoakOr[T any](quick, full T) T {
	if os.Getenv("RAFTKV_SOAK") != "" {
		return full
	}
	return quick
}
