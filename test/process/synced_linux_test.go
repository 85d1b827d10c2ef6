package process

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	syncedOneByOne = 8
	syncedAtOnce   = 64
	// slowSync is what a sync takes longer on the slow nodes: long enough that an answer that does not wait for it is
	// early each time, and not by chance.
	slowSync = 10 * time.Millisecond
)

// straceArgs trace a process and its threads, as its child (-D), so that the process itself is who is signalled and
// waited for. --seccomp-bpf spares all other calls the cost. The file lists each call with its time, its duration and
// the files behind its descriptors; no batch of the test is longer than -s.
func straceArgs(out string, delay time.Duration) []string {
	args := []string{"-D", "-f", "--seccomp-bpf", "-ttt", "-T", "-y", "-s", "100000", "-o", out, "-e", "signal=kill",
		"-e", "trace=write,writev,pwrite64,pwritev,fsync,fdatasync"}
	if delay > 0 {
		args = append(args, "-e", fmt.Sprintf("inject=fdatasync:delay_enter=%d", delay.Microseconds()))
	}
	return append(args, "--")
}

// findStrace returns the path of an strace that works, or skips the test.
func findStrace(t *testing.T) string {
	t.Helper()
	testkit.NeedTools(t, "strace")
	strace := "strace"
	out := filepath.Join(t.TempDir(), "trace")
	said, err := exec.Command(strace, append(straceArgs(out, slowSync), "true")...).CombinedOutput()
	trace, _ := os.ReadFile(out)
	if err != nil || !regexp.MustCompile(`\+\+\+ exited with 0 \+\+\+\n$`).Match(trace) {
		testkit.CannotRun(t, fmt.Sprintf("strace cannot trace (a container needs the capability SYS_PTRACE; strace 5.3 or later): %v\n%s%s", err, said, trace))
	}
	return strace
}

// tracedCluster is a cluster whose nodes run under strace.
type tracedCluster struct {
	*procCluster
	mu   sync.Mutex
	acks []acknowledged
}

// newTracedCluster makes three nodes, of which the second and the third have slow disks.
func newTracedCluster(t *testing.T) *tracedCluster {
	t.Helper()
	strace := findStrace(t)
	// Traced processes are slow: no election because of that.
	c := &tracedCluster{procCluster: newProcCluster(t, 3, "--election-timeout", "2s", "--request-timeout", "20s")}
	bin, err := procBinary()
	testkit.Must(t, err)
	for i, n := range c.nodes {
		delay := time.Duration(0)
		if i > 1 {
			delay = slowSync
		}
		n.bin, n.args = strace, slices.Concat(straceArgs(c.tracePath(i), delay), []string{bin}, n.args)
	}
	return c
}

func (c *tracedCluster) tracePath(i int) string {
	return filepath.Join(c.dir, fmt.Sprintf("trace%d", i))
}

// lead makes a node the leader.
func (c *tracedCluster) lead(i int) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, fmt.Sprintf("node %d leads", i), func() error {
		if c.leader() == i {
			return nil
		}
		return fmt.Errorf("asked to: %v", c.do(http.MethodPost, i, "/v1/leader", fmt.Appendf(nil, `{"id":%d}`, i)))
	})
}

// write puts a value that nobody has written before, and notes the answer.
func (c *tracedCluster) write(via int) error {
	marker := rand.Text()
	r := c.do(http.MethodPut, via, "/"+marker[:2], []byte("value-"+marker))
	if r.err != nil || r.status != http.StatusNoContent {
		return fmt.Errorf("PUT at node %d: %v, want 204", via, r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks = append(c.acks, acknowledged{via, marker, r.header.Get("ETag")})
	return nil
}

// writeAtOnce has many clients write, each once, through one node or another.
func (c *tracedCluster) writeAtOnce(vias ...int) {
	c.t.Helper()
	var wg sync.WaitGroup
	for n := range syncedAtOnce {
		wg.Go(func() {
			if err := c.write(vias[n%len(vias)]); err != nil {
				c.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// traces ends the nodes and returns what they did.
func (c *tracedCluster) traces() map[int][]tracedCall {
	c.t.Helper()
	c.kill(c.ids()...)
	nodes := map[int][]tracedCall{}
	for i, n := range c.nodes {
		ended := regexp.MustCompile(fmt.Sprintf(`(?m)^%d .* \+\+\+ killed by SIGKILL \+\+\+\n`, n.cmd.Process.Pid))
		procEventually(c.t, procReadyWithin, fmt.Sprintf("the trace of node %d is complete", i), func() error {
			text, err := os.ReadFile(c.tracePath(i))
			if err == nil && !ended.Match(text) {
				err = fmt.Errorf("%d bytes without the end of the process", len(text))
			}
			if err == nil {
				nodes[i] = parseTrace(string(text))
			}
			return err
		})
	}
	return nodes
}

// Guarantee: when a write is acknowledged, a majority has it on disk, as the system calls of all nodes show: before the
// answer leaves for the client, two of three have completed a sync of the log that they began after they had written
// the value there. Without this a power cut takes acknowledged writes.
func TestProcAcknowledgedIsSynced(t *testing.T) {
	t.Parallel()
	c := newTracedCluster(t)
	c.start()
	// With the first node in the lead an answer must wait for a slow follower, with the third for its own slow disk.
	for _, leads := range []struct{ leader, follower int }{{1, 2}, {3, 1}} {
		c.lead(leads.leader)
		for _, via := range []int{leads.leader, leads.follower} {
			for range syncedOneByOne {
				testkit.Must(t, c.write(via))
			}
		}
		c.writeAtOnce(leads.leader, leads.follower)
	}
	nodes := c.traces()

	var margins []int64
	for _, ack := range c.acks {
		margin, err := checkSynced(nodes, ack)
		if err != nil {
			t.Error(err)
			continue
		}
		margins = append(margins, margin)
	}
	if len(margins) > 0 {
		slices.Sort(margins)
		t.Logf("%d answers left %d µs or more after a majority had synced, half of them %d µs or more",
			len(margins), margins[0], margins[len(margins)/2])
	}
}
