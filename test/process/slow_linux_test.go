package process

import (
	"os"
	"os/exec"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"testing"
	"time"
)

// slowDisk makes each fdatasync of a node take longer, until the returned
// function is called.
func (c *procCluster) slowDisk(i int, delay time.Duration) (end func()) {
	c.t.Helper()
	testkit.NeedRoot(c.t) // to trace a process that is not its child
	testkit.NeedTools(c.t, "strace")
	out := c.nodes[i].logPath + ".trace"
	cmd := exec.Command("strace", "-f", "-o", out, "-e", "trace=fdatasync", "-e", "signal=none",
		"-e", "inject=fdatasync:delay_enter="+strconv.FormatInt(delay.Microseconds(), 10), "-p", strconv.Itoa(c.nodes[i].cmd.Process.Pid))
	var said strings.Builder
	cmd.Stderr, cmd.SysProcAttr = &said, procAttr(0)
	testkit.Must(c.t, procStartCmd(cmd))
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	end = func() {
		_ = cmd.Process.Signal(os.Interrupt) // it lets go
		<-ended
	}
	c.t.Cleanup(end)
	procEventually(c.t, procReadyWithin, "strace traces", func() error {
		select {
		case <-ended:
			testkit.CannotRun(c.t, "strace cannot attach: "+said.String())
		default:
		}
		c.put(i, "is-it-slow", "v") // a node that waits for nothing makes no call
		_, err := os.Stat(out)
		if data, _ := os.ReadFile(out); err == nil && !strings.Contains(string(data), "fdatasync") {
			err = os.ErrNotExist
		}
		return err
	})
	return end
}

// Guarantee: a sync of the log over 100 ms, and a request over 1 s, are said:
// once, and then once a minute.
func TestProcSaysWhatIsSlow(t *testing.T) {
	c := newProcCluster(t, 1, "--election-timeout", "10s") // a node whose disk takes longer refuses writes
	c.start()
	before := c.nodes[1].output()
	if strings.Contains(before, "slow request") {
		t.Skip("this machine is too slow to tell: a start has slow requests")
	}
	end := c.slowDisk(1, 1100*time.Millisecond)
	for range 3 {
		c.put(1, "secret-key", "v")
	}
	end()
	out := c.nodes[1].output()
	for _, want := range []string{"slow sync of the log", `slow request	{"method": "PUT", "route": "kv", "status": 204, "took": `} {
		if got := strings.Count(out, want); got != 1 {
			t.Errorf("there are %d lines with %q, want one", got, want)
		}
	}
	if strings.Contains(out, "secret-key") {
		t.Error("the log has the key of a request")
	}
	c.stop(1)
	if out := c.nodes[1].output(); !strings.Contains(out, `"repeated": `) {
		t.Errorf("what was held back is not written at the end:\n%s", out)
	}
}
