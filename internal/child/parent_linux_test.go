package child

import (
	"errors"
	"raftkv/internal/testkit"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Guarantee: a group in which others' programs run, which this process may not signal, counts as
// one that runs.
func TestEmptyOfOthers(t *testing.T) {
	testkit.NeedRoot(t) // to become somebody else
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

// Guarantee: to end a command ends what has a process group of its own below it, as what
// timeout(1) runs has, but not what nobody waits for any more.
func TestEndBelow(t *testing.T) {
	const deaf = `trap '' TERM; echo ready $$; while :; do sleep 0.05; done`
	pids := func(text string) (all []int) {
		for _, line := range strings.Fields(strings.ReplaceAll(text, "ready", "")) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			all = append(all, pid)
		}
		return all
	}
	lives := func(pid int) bool {
		return slices.ContainsFunc(processes(), func(p process) bool { return p.pid == pid && !p.ended })
	}
	c, out := run(t, sh("timeout 1000 sh -c \"$0\"; exit 7", deaf))
	eventually(t, "ready", func() bool { return len(pids(out())) == 1 })
	inner := pids(out())[0]
	if below := Below(c.Group()); len(below) != 1 {
		t.Fatalf("groups %v below %d", below, c.Group())
	}
	if err := c.End(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if lives(inner) {
		t.Error("what timeout runs goes on")
	}

	c, out = run(t, sh("(setsid sh -c \"$0\" &); sleep 1000", deaf))
	eventually(t, "ready", func() bool { return len(pids(out())) == 1 })
	daemon := pids(out())[0]
	defer func() { _ = syscall.Kill(daemon, syscall.SIGKILL) }()
	if err := c.End(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if !lives(daemon) {
		t.Error("what has gone its own way was ended")
	}
}
