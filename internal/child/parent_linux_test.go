package child

import (
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Guarantee: a group in which others' programs run, which this process may not signal, counts as
// one that runs.
func TestEmptyOfOthers(t *testing.T) {
	if unix.Getuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	c, out := run(t, sh("(echo ready; exec sleep 1000) & exit 0"))
	<-c.Done()
	eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
	const nobody = 65534
	as := func(uid uintptr) {
		// The rights of one thread, unlike syscall.Setresuid.
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uid, uid, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	runtime.LockOSThread()
	as(nobody)
	err, empty := c.Signal(0), c.Empty()
	as(0)
	runtime.UnlockOSThread()
	if !errors.Is(err, syscall.EPERM) {
		t.Skipf("it may be signalled: %v", err)
	}
	if empty {
		t.Error("empty")
	}
	if err := c.End(time.Now()); err != nil {
		t.Error(err)
	}
}
