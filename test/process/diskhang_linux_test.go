package process

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// hangDisk makes every sync of a running node take as long as that from now on,
// until the function that it returns is called, or the node ends.
func (c *procCluster) hangDisk(i int, long time.Duration) (end func()) {
	c.t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-p", strconv.Itoa(c.nodes[i].cmd.Process.Pid), "-o", filepath.Join(c.dir, fmt.Sprint("trace", i)),
		"-e", "trace=fsync,fdatasync", "-e", fmt.Sprintf("inject=fsync,fdatasync:delay_enter=%d", long.Microseconds()))
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	if err := procStartCmd(cmd); err != nil {
		c.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // which lets the node go
		_ = cmd.Wait()
	})
	c.t.Cleanup(end)
	procEventually(c.t, procReadyWithin, fmt.Sprintf("node %d is traced", i), func() error {
		if tracer := c.traced(i); tracer != cmd.Process.Pid {
			return fmt.Errorf("by %d", tracer)
		}
		return nil
	})
	return end
}

// traced returns the process that traces all threads of a node; 0 if there is none.
func (c *procCluster) traced(i int) (tracer int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.nodes[i].cmd.Process.Pid))
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		_, after, _ := strings.Cut(string(text), "TracerPid:\t")
		line, _, _ := strings.Cut(after, "\n")
		pid, err := strconv.Atoi(line)
		if err != nil || pid == 0 {
			return 0
		}
		tracer = pid
	}
	return tracer
}

// wantHung waits until a node says that its disk hangs, and checks what it says.
func (c *procCluster) wantHung(i int) {
	c.t.Helper()
	procEventually(c.t, 10*time.Second, fmt.Sprintf("node %d says that its disk hangs", i), func() error {
		r := c.do(http.MethodGet, i, "/readyz?verbose", nil)
		if r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "FAIL has a disk that answers") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if r := c.do(http.MethodPut, i, "/refused", []byte("v")); r.status != http.StatusTooManyRequests {
		c.t.Errorf("PUT at node %d: %v, want 429", i, r)
	} else {
		procWantProblem(c.t, "PUT where the disk hangs", r, http.StatusTooManyRequests, "overloaded")
	}
	if r := c.do(http.MethodGet, i, "/livez", nil); r.status != http.StatusOK {
		c.t.Errorf("livez: %v", r)
	}
}

// waitSaid waits until a node has said that.
func (c *procCluster) waitSaid(i int, text string, within time.Duration) {
	c.t.Helper()
	procEventually(c.t, within, fmt.Sprintf("node %d says %q", i, text), func() error {
		if out := c.nodes[i].output(); !strings.Contains(out, text) {
			return fmt.Errorf("it has said:\n%s", procTail(out))
		}
		return nil
	})
}

// leftBehind is how a node ends that has not waited for its disk.
const leftBehind = "raftkv: stopped, but left a write or a sync in the data directory behind"

// Guarantee: a leader whose disk hangs under load hands leadership over, the
// others go on, its memory stays bounded, and a signal stops it in time, with
// exit status 1 and the reason.
func TestProcDiskHangsOnTheLeader(t *testing.T) {
	findStrace(t)
	c := newProcCluster(t, 3)
	c.start()
	old := c.leader()
	others := []int{old%3 + 1, (old+1)%3 + 1}
	var wg sync.WaitGroup
	var written atomic.Int64
	stop := make(chan struct{})
	value := []byte(strings.Repeat("v", 64<<10))
	for n := range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if c.do(http.MethodPut, others[n%2], fmt.Sprintf("/k%d", n), value).status == http.StatusNoContent {
						written.Add(1)
					}
				}
			}
		})
	}
	end := c.hangDisk(old, time.Minute)
	procEventually(t, 10*time.Second, "another node leads", func() error {
		for _, i := range others {
			if l := c.status(i).Leader; l == 0 || l == old {
				return fmt.Errorf("node %d says that %d leads", i, l)
			}
		}
		return nil
	})
	before := written.Load()
	c.wantHung(old)
	most := 0.0
	for began := time.Now(); time.Since(began) < testkit.SoakOr(6*time.Second, time.Minute); time.Sleep(100 * time.Millisecond) {
		most = max(most, c.metric(old, "process_resident_memory_bytes"))
	}
	close(stop)
	wg.Wait()
	t.Logf("%d writes meanwhile, %.0f MB of memory at most", written.Load()-before, most/1e6)
	if written.Load()-before < 50 {
		t.Errorf("only %d writes while the disk hung", written.Load()-before)
	}
	if most > 500e6 {
		t.Errorf("%.0f MB of memory", most/1e6)
	}
	began := time.Now()
	c.nodes[old].ending = true
	c.signal(old, syscall.SIGTERM)
	c.waitSaid(old, leftBehind, procStopWithin)
	t.Logf("it stopped after %v", time.Since(began))
	end() // strace keeps the thread that it delays, and with it the process
	c.waitExit(old, 1, 3*time.Second)
	c.start(old) // under no strace
	c.wantGet(old, "k0", string(value))
}

// Guarantee: with all disks hanging, leadership stays where it is, every node
// says so, and they go on when the disks do; a second signal ends a node at once.
func TestProcAllDisksHang(t *testing.T) {
	findStrace(t)
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "v")
	leader, term := c.leader(), c.status(1).Term
	var ends []func()
	for _, i := range c.ids() {
		ends = append(ends, c.hangDisk(i, time.Minute))
	}
	for _, i := range c.ids() {
		go c.do(http.MethodPut, i, "/k", []byte("lost"))
	}
	for _, i := range c.ids() {
		c.wantHung(i)
	}
	for _, i := range c.ids() {
		if s := c.status(i); s.Leader != leader || s.Term != term {
			t.Errorf("node %d follows %d in term %d, it was %d in term %d", i, s.Leader, s.Term, leader, term)
		}
	}
	victim := leader%3 + 1
	c.nodes[victim].ending = true
	c.signal(victim, syscall.SIGTERM)
	c.waitSaid(victim, "\tstopping\n", 5*time.Second)
	c.signal(victim, syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond)
	for _, end := range ends {
		end() // strace keeps the threads that it delays, and with them the process
	}
	c.waitExit(victim, -1, 3*time.Second)
	c.start(victim)
	c.waitReady(1, 2, 3)
	c.put(victim, "k", "w")
	c.wantGet(leader, "k", "w")
}

// Guarantee: a node whose disk hangs while it starts stops in time.
func TestProcDiskHangsAtTheStart(t *testing.T) {
	strace := findStrace(t)
	c := newProcCluster(t, 1)
	bin, err := procBinary()
	testkit.Must(t, err)
	n := c.nodes[1]
	n.args = append([]string{"-D", "-f", "-qq", "-o", filepath.Join(c.dir, "trace"),
		"-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=60000000", "--", bin}, n.args...)
	n.bin = strace
	c.launch(1)
	procEventually(t, procReadyWithin, "it listens", func() error {
		if r := c.do(http.MethodGet, 1, "/livez", nil); r.status != http.StatusOK {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	n.ending = true
	c.signal(1, syscall.SIGTERM)
	c.waitSaid(1, leftBehind, procStopWithin)
	testkit.Must(t, syscall.Kill(c.traced(1), syscall.SIGKILL))
	c.waitExit(1, 1, 3*time.Second)
}
