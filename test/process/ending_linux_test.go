package process

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Guarantee: when the log's disk fails, the node ends; and every client whose request it has taken is told so, with what
// became of the request, before its connection closes.
func TestProcDiskErrorIsAnswered(t *testing.T) {
	findStrace(t)
	c := newProcCluster(t, 3, "--check-interval", "1h", "--election-timeout", "2s") // a slow sync is no reason to elect
	c.start()
	c.put(1, "k", "v")
	for round := range 2 {
		victim := c.leader() // then its successor
		if round == 0 {
			victim = victim%3 + 1 // a follower
		}
		c.failLog(victim)
		const clients = 16
		replies := make([]procReply, clients)
		var wg sync.WaitGroup
		for n := range clients {
			wg.Go(func() { replies[n] = c.do(http.MethodPut, victim, fmt.Sprintf("/k%d", n), []byte("v")) })
		}
		wg.Wait()
		for _, r := range replies {
			procWantProblem(t, "PUT at a node whose disk fails", r, 500, "internal")
			if !strings.Contains(r.body, "input/output error") || !strings.Contains(r.body, `"outcome":"unknown"`) && !strings.Contains(r.body, `"outcome":"not_applied"`) {
				t.Errorf("%v does not say why, or whether", r)
			}
		}
		if out := c.waitExit(victim, 1, procStopWithin); !strings.Contains(out, "input/output error") {
			t.Errorf("node %d does not say why it ended:\n%s", victim, procTail(out))
		}
		c.launch(victim)
		c.waitReady(victim)
		// What was said not to have happened has not.
		for n, r := range replies {
			if strings.Contains(r.body, "not_applied") && c.do(http.MethodGet, victim, fmt.Sprintf("/k%d", n), nil).status != 404 {
				t.Errorf("%v, and it is there", r)
			}
			c.do(http.MethodDelete, victim, fmt.Sprintf("/v1/kv/k%d", n), nil)
		}
	}
}

// failLog makes the next sync of a node's log take a second, in which requests gather, and fail.
func (c *procCluster) failLog(i int) {
	c.t.Helper()
	segments, err := filepath.Glob(filepath.Join(c.nodes[i].dataDir, "wal", "*.wal"))
	testkit.Must(c.t, err)
	said := filepath.Join(c.dir, fmt.Sprintf("strace%d", i))
	out, err := os.Create(said)
	testkit.Must(c.t, err)
	defer out.Close()
	cmd := exec.Command("strace", "-f", "-p", fmt.Sprint(c.nodes[i].cmd.Process.Pid), "-o", os.DevNull,
		"-P", segments[len(segments)-1], "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:delay_enter=1000000")
	cmd.Stderr = out
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	testkit.Must(c.t, procStartCmd(cmd))
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends with the node
		close(ended)
	}()
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails when it has ended, which is as good
		<-ended
	})
	procEventually(c.t, procReadyWithin, "strace is attached", func() error {
		if text, err := os.ReadFile(said); err != nil || !strings.Contains(string(text), "attached") {
			return fmt.Errorf("%s %v", text, err)
		}
		return nil
	})
}
