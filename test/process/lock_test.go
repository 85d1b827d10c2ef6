//go:build unix

package process

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// procTool is a command of the command line that runs.
type procTool struct {
	t            *testing.T
	cmd          *exec.Cmd
	stdout, said bytes.Buffer // valid once it has ended
	done         chan struct{}
}

// tool starts a command that knows the nodes of the cluster, in the cluster's directory.
func (c *procCluster) tool(t *testing.T, args ...string) *procTool {
	t.Helper()
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	return c.toolOf(t, exec.Command(bin, args...), "")
}

func (c *procCluster) toolOf(t *testing.T, cmd *exec.Cmd, stdin string, env ...string) *procTool {
	t.Helper()
	var urls []string
	for _, i := range c.ids() {
		urls = append(urls, c.url(i))
	}
	p := &procTool{t: t, cmd: cmd, done: make(chan struct{})}
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Stdin = c.dir, &p.stdout, &p.said, strings.NewReader(stdin)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "RAFTKV_ENDPOINTS=" + strings.Join(urls, ",")}, env...)
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	cmd.WaitDelay = time.Second // what a command that fails a test leaves behind keeps its output open
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the code says it all
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails when it has ended, which is as good
		<-p.done
	})
	return p
}

// exits waits for the end of a command, and checks its exit status.
func (p *procTool) exits(code int, within time.Duration) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		p.t.Fatalf("%q still runs after %v", p.cmd.Args[1:], within)
	}
	ws, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%q: exit %d (%v), want %d\n%s%s", p.cmd.Args[1:], got, ws, code, p.stdout.String(), p.said.String())
	}
}

func (p *procTool) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

const procToolWithin = 30 * time.Second // generous, as other waits here

// procLog is a file that commands under a lock append lines to: what the lock protects.
type procLog struct {
	t    *testing.T
	path string
}

func newProcLog(t *testing.T) procLog { return procLog{t, filepath.Join(t.TempDir(), "log")} }

func (l procLog) lines() []string {
	b, err := os.ReadFile(l.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func (l procLog) waitFor(prefix string) {
	l.t.Helper()
	procEventually(l.t, procToolWithin, "a line "+prefix, func() error {
		if !slices.ContainsFunc(l.lines(), func(line string) bool { return strings.HasPrefix(line, prefix) }) {
			return fmt.Errorf("there is none")
		}
		return nil
	})
}

// worker is a script that says all the time which fencing token it works with, and cleans
// up at TERM in a way that is seen.
func (l procLog) worker(name string) []string {
	script := fmt.Sprintf(`trap 'echo "cleaned %s" >>%[2]q; exit 0' TERM; while :; do echo "%[1]s $RAFTKV_FENCE" >>%[2]q; sleep 0.01; done`, name, l.path)
	return []string{"sh", "-c", script}
}

// deaf is a worker that ignores TERM, whose work is done by a child of it.
func (l procLog) deaf(name string) []string {
	script := fmt.Sprintf(`trap '' TERM; (while :; do echo "%s $RAFTKV_FENCE" >>%q; sleep 0.01; done) & wait`, name, l.path)
	return []string{"sh", "-c", script}
}

// wantFenced checks that no two have worked at the same time: all lines of a fencing
// token stand together, and later ones are larger.
func (l procLog) wantFenced(atLeast int) {
	l.t.Helper()
	last, seen := uint64(0), 0
	for _, line := range l.lines() {
		name, text, _ := strings.Cut(line, " ")
		if name == "cleaned" {
			continue
		}
		fence, err := strconv.ParseUint(text, 10, 64)
		if err != nil || fence < last {
			l.t.Fatalf("line %q behind token %d:\n%s", line, last, procTail(strings.Join(l.lines(), "\n")))
		}
		if fence > last {
			last, seen = fence, seen+1
		}
	}
	if seen < atLeast {
		l.t.Errorf("%d holders, want %d:\n%s", seen, atLeast, procTail(strings.Join(l.lines(), "\n")))
	}
}

// Guarantee: of all commands that run under one lock, one runs at a time, whichever nodes they ask. The
// exit status is the command's, and it gets the fencing token, and no other.
func TestProcLock(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	counter := filepath.Join(t.TempDir(), "counter")
	if err := os.WriteFile(counter, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const shells = 6
	var all sync.WaitGroup
	for range shells {
		p := c.tool(t, "lock", "counter", "--", "sh", "-c", fmt.Sprintf(`n=$(cat %[1]q); sleep 0.05; echo $((n+1)) >%[1]q`, counter))
		all.Go(func() { <-p.done })
	}
	all.Wait()
	if b, err := os.ReadFile(counter); err != nil || string(b) != fmt.Sprintln(shells) {
		t.Errorf("%q, %v: want %d", b, err, shells)
	}
	if r := c.do(http.MethodGet, 1, "/v1/kv/lock/counter", nil); r.status != http.StatusNotFound {
		t.Errorf("the key is still there: %v", r)
	}
	if r := c.do(http.MethodGet, 1, "/v1/leases", nil); !strings.Contains(r.body, `"leases":[]`) {
		t.Errorf("a lease is still there: %v", r)
	}

	for code, script := range map[int]string{0: "exit 0", 7: "exit 7", 143: "kill -TERM $$"} {
		c.tool(t, "lock", "codes", "--", "sh", "-c", script).exits(code, procToolWithin)
	}
	c.tool(t, "lock", "codes", "--", "no-such-program-at-all").exits(127, procToolWithin)
	c.tool(t, "lock", "codes", "--", counter).exits(126, procToolWithin)
	c.tool(t, "lock", "codes", "--").exits(2, procToolWithin)
	c.tool(t, "lock", "codes").exits(2, procToolWithin)
	c.tool(t, "lock", "codes", "--ttl", "1s", "--", "true").exits(2, procToolWithin)
	c.tool(t, "lock", "codes", "--grace", "6s", "--", "true").exits(2, procToolWithin)

	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	env := exec.Command(bin, "lock", "env", "--keep-token", "--", "sh", "-c", `cat; echo "$RAFTKV_KEY $RAFTKV_FENCE $RAFTKV_TOKEN"`)
	p := c.toolOf(t, env, "stdin\n", "RAFTKV_TOKEN=secret")
	p.exits(0, procToolWithin)
	if got := p.stdout.String(); !strings.HasPrefix(got, "stdin\nlock/env ") || !strings.HasSuffix(got, " secret\n") {
		t.Errorf("%q", got)
	}
	env = exec.Command(bin, "lock", "env", "--", "sh", "-c", `echo "$RAFTKV_TOKEN."`)
	p = c.toolOf(t, env, "", "RAFTKV_TOKEN=secret")
	if p.exits(0, procToolWithin); p.stdout.String() != ".\n" {
		t.Errorf("the command got the token: %q", p.stdout.String())
	}
}

// Guarantee: who does not get a lock in time says who has it, exit 3; a signal reaches the command, and
// frees the lock; a holder in curl and one in the shell mean the same key.
func TestProcLockHeld(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	log := newProcLog(t)
	holder := c.tool(t, append([]string{"lock", "a/b", "--"}, log.worker("first")...)...)
	log.waitFor("first")
	for _, wait := range []string{"0s", "300ms"} {
		p := c.tool(t, "lock", "a/b", "--wait", wait, "--", "false")
		if p.exits(3, procToolWithin); !strings.Contains(p.said.String(), ":"+strconv.Itoa(holder.cmd.Process.Pid)) {
			t.Errorf("--wait %s: %q, want who has it", wait, p.said.String())
		}
	}
	if r := c.do(http.MethodPut, 1, "/v1/kv/lock/a/b", []byte("curl"), "If-None-Match", "*"); r.status != http.StatusPreconditionFailed {
		t.Errorf("curl: %v", r)
	}
	waiter := c.tool(t, append([]string{"lock", "a/b", "--"}, log.worker("second")...)...)
	holder.signal(syscall.SIGTERM)
	holder.exits(0, procToolWithin) // as the script does
	log.waitFor("second")
	waiter.signal(syscall.SIGINT)
	waiter.exits(130, procToolWithin)
	log.wantFenced(2)

	// Nobody there is no "no".
	c.kill(1)
	c.tool(t, "lock", "a/b", "--wait", "500ms", "--timeout", "1s", "--", "true").exits(1, procToolWithin)
}

// Guarantee: a command whose raftkv is stopped or killed has ended before another one can get its
// lock, with all that it has started. Once it goes on, raftkv tells that the lock was lost: exit 4.
func TestProcLockStopped(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	log := newProcLog(t)
	stopped := c.tool(t, append([]string{"lock", "l", "--ttl", "2s", "--"}, log.worker("stopped")...)...)
	log.waitFor("stopped")
	killed := c.tool(t, append([]string{"lock", "l", "--ttl", "2s", "--"}, log.deaf("killed")...)...)
	stopped.signal(syscall.SIGSTOP)
	log.waitFor("killed")
	if !slices.Contains(log.lines(), "cleaned stopped") {
		t.Error("the command of the one that was stopped had no time to clean up")
	}
	stopped.signal(syscall.SIGCONT)
	stopped.exits(4, procToolWithin)

	third := c.tool(t, append([]string{"lock", "l", "--ttl", "2s", "--"}, log.worker("third")...)...)
	killed.signal(syscall.SIGKILL)
	<-killed.done
	log.waitFor("third")
	third.signal(syscall.SIGTERM)
	third.exits(0, procToolWithin)
	log.wantFenced(3)
}

// Guarantee: when no node answers for too long, a command gets TERM with time to clean up, and has
// ended when its lock is over: exit 4. One node that hangs is not that.
func TestProcLockLost(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	log := newProcLog(t)
	polite := c.tool(t, append([]string{"lock", "polite", "--ttl", "4s", "--"}, log.worker("polite")...)...)
	deafLog := newProcLog(t)
	deaf := c.tool(t, append([]string{"lock", "deaf", "--ttl", "4s", "--"}, deafLog.deaf("deaf")...)...)
	log.waitFor("polite")
	deafLog.waitFor("deaf")

	leader := c.leader()
	c.pause(leader)
	time.Sleep(5 * time.Second) // longer than the locks would last alone
	select {
	case <-polite.done:
		t.Fatalf("a lock was lost with one node: %s", polite.said.String())
	case <-deaf.done:
		t.Fatalf("a lock was lost with one node: %s", deaf.said.String())
	default:
	}
	for _, i := range c.ids() {
		if i != leader {
			c.pause(i)
		}
	}
	paused := time.Now()
	polite.exits(4, 6*time.Second)
	deaf.exits(4, max(time.Second, 6*time.Second-time.Since(paused)))
	if !slices.Contains(log.lines(), "cleaned polite") {
		t.Errorf("the command had no time to clean up: %s", polite.said.String())
	}
	size := len(deafLog.lines())
	time.Sleep(50 * time.Millisecond)
	if len(deafLog.lines()) != size {
		t.Error("what the command has started goes on")
	}
	for _, i := range c.ids() {
		c.resume(i)
	}
	c.waitReady(c.ids()...)
	again := newProcLog(t)
	p := c.tool(t, append([]string{"lock", "deaf", "--"}, again.worker("again")...)...)
	again.waitFor("again")
	p.signal(syscall.SIGTERM)
	p.exits(0, procToolWithin)
}

// Guarantee: one candidate leads at a time; who looks sees who it is; the next one leads when the
// first has ended.
func TestProcElect(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	log := newProcLog(t)
	watcher := c.tool(t, "elect", "sched", "--observe")
	first := c.tool(t, append([]string{"elect", "sched", "--value", "node a", "--"}, log.worker("a")...)...)
	log.waitFor("a")
	second := c.tool(t, append([]string{"elect", "sched", "--value", "node b", "--"}, log.worker("b")...)...)
	procEventually(t, procToolWithin, "the leader is a", func() error {
		if r := c.do(http.MethodGet, 2, "/v1/kv/leader/sched", nil); r.body != "node a" {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.tool(t, "elect", "sched", "--wait", "200ms", "--", "true").exits(3, procToolWithin)
	first.signal(syscall.SIGTERM)
	first.exits(0, procToolWithin)
	log.waitFor("b")
	second.signal(syscall.SIGTERM)
	second.exits(0, procToolWithin)
	procEventually(t, procToolWithin, "nobody leads", func() error {
		if r := c.do(http.MethodGet, 2, "/v1/kv/leader/sched", nil); r.status != http.StatusNotFound {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	time.Sleep(100 * time.Millisecond) // for the watch to hear of it
	watcher.signal(syscall.SIGTERM)
	watcher.exits(0, procToolWithin)
	log.wantFenced(2)
	if got := watcher.stdout.String(); !strings.Contains(got, "\tnode a\n") || !strings.Contains(got, "\tnode b\n") || !strings.HasSuffix(got, "0\t\n") {
		t.Errorf("observed %q", got)
	}
}
