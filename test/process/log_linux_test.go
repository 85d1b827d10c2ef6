package process

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pipeLog makes a pipe of one page the log of a node, and returns the end at
// which it is read.
func pipeLog(t *testing.T, n *procNode) *os.File {
	t.Helper()
	bin, err := procBinary()
	testkit.Must(t, err)
	path := filepath.Join(t.TempDir(), "log")
	testkit.Must(t, syscall.Mkfifo(path, 0o600))
	both, err := os.OpenFile(path, os.O_RDWR, 0) // for writing too, or it waits for a writer
	testkit.Must(t, err)
	t.Cleanup(func() { both.Close() })
	const setPipeSize = 1031 // F_SETPIPE_SZ
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, both.Fd(), setPipeSize, 4096)
	if errno != 0 {
		t.Fatal(errno)
	}
	n.bin = "sh"
	n.args = slices.Concat([]string{"-c", `p=$0; exec "$@" 2>"$p"`, path, bin}, n.args)
	return both
}

// Guarantee: a log that nobody reads stops nothing: the node serves, leads and
// stops in order, and says how many lines were lost when it is read again.
func TestProcLogThatNobodyReads(t *testing.T) {
	c := newProcCluster(t, 3, "--log-level", "debug")
	log := pipeLog(t, c.nodes[1])
	c.start()
	// Whoever leads, the log of the first grows with each write and election.
	for n := range 3 {
		for i := range 100 {
			c.put(n+1, fmt.Sprintf("k%d", i), "v")
		}
		r := c.do(http.MethodPost, n+1, "/v1/leader", fmt.Appendf(nil, `{"id":1}`))
		if r.status != http.StatusOK {
			t.Errorf("leadership for the first node: %v", r)
		}
	}
	if r := c.do(http.MethodGet, 1, "/readyz", nil); r.status != http.StatusOK {
		t.Errorf("readyz: %v", r)
	}
	buffer := make([]byte, 4096)
	n, err := log.Read(buffer)
	if err != nil || n < 2048 {
		t.Fatalf("the pipe was not full: %d bytes, %v", n, err)
	}
	c.nodes[1].ending = true
	c.signal(1, syscall.SIGTERM) // with the pipe full again
	c.waitExit(1, 0, procStopWithin)
}

// Guarantee: a closed log ends nobody: lines are lost, and the node goes on.
func TestProcLogThatIsClosed(t *testing.T) {
	c := newProcCluster(t, 3)
	log := pipeLog(t, c.nodes[1])
	go func() {
		buffer := make([]byte, 4096)
		for {
			if n, err := log.Read(buffer); err != nil || strings.Contains(string(buffer[:n]), "\tready\t") {
				log.Close()
				return
			}
		}
	}()
	c.start()
	procEventually(t, procReadyWithin, "the log is closed", func() error {
		if _, err := log.Stat(); err == nil {
			return fmt.Errorf("it is open")
		}
		return nil
	})
	c.kill(2) // of which there is something to say
	time.Sleep(500 * time.Millisecond)
	c.start(2)
	c.put(1, "k", "v")
	c.stop(1)
}

// Guarantee: a hang-up is an orderly stop, as the other signals are, unless the
// node was started so that it outlives its terminal.
func TestProcHangUp(t *testing.T) {
	// A process inherits what its parent ignores, as under nohup, but not what that catches.
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)
	c := newProcCluster(t, 3)
	bin, err := procBinary()
	testkit.Must(t, err)
	n := c.nodes[3]
	n.bin, n.args = "nohup", slices.Concat([]string{bin}, n.args)
	c.start()
	for i := 1; i <= 2; i++ {
		c.nodes[i].ending = true
		c.signal(i, syscall.SIGHUP)
		if out := c.waitExit(i, 0, procStopWithin); !regexp.MustCompile(`\tstopping\n(.*\n)*.*\tstopped\n$`).MatchString(out) {
			t.Errorf("node %d did not stop in order:\n%s", i, procTail(out))
		}
		c.start(i)
	}
	c.signal(3, syscall.SIGHUP)
	c.put(3, "k", "v")
	c.wantGet(3, "k", "v")
	c.stop(3)
}
