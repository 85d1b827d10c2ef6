package process

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Guarantee: what a failed sync left in the page cache, where it looks as if the disk had it, is written again and
// synced before a start counts it. Without this a node acknowledges, or counts towards a majority, what the next power
// failure takes.
func TestProcFailedSyncIsWrittenAgain(t *testing.T) {
	strace := findStrace(t)
	bin, err := procBinary()
	testkit.Must(t, err)
	c := newProcCluster(t, 1)
	n := c.nodes[1]
	plain := n.args
	segment := filepath.Join(n.dataDir, "wal", "0000000000000000-0000000000000000.wal")
	n.bin, n.args = strace, slices.Concat([]string{"-D", "-f", "-o", filepath.Join(c.dir, "trace1"), "-P", segment,
		"-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=20+", "--", bin}, plain)
	c.start()
	var marker string
	for i := range 200 {
		marker = fmt.Sprintf("marker-%03d-", i)
		if r := c.do(http.MethodPut, 1, "/key", []byte(marker)); r.status != http.StatusNoContent {
			break
		}
	}
	said := c.waitExit(1, config.ExitFault, procReadyWithin)
	if !strings.Contains(said, "input/output error") {
		t.Errorf("the node does not say why it ended:\n%s", procTail(said))
	}
	if log, err := os.ReadFile(segment); err != nil || !strings.Contains(string(log), marker) {
		t.Fatalf("the write whose sync failed is not in the log; %v", err)
	}

	trace := filepath.Join(c.dir, "trace2")
	n.bin, n.args = strace, slices.Concat(straceArgs(trace, 0), []string{bin}, plain)
	c.start()
	if r := c.do(http.MethodGet, 1, "/key", nil); r.status != http.StatusOK || !strings.HasPrefix(r.body, "marker-") {
		t.Errorf("GET: %v", r)
	}
	c.kill(1)
	var calls []tracedCall
	procEventually(t, procReadyWithin, "the trace is complete", func() error {
		text, err := os.ReadFile(trace)
		if err == nil && !regexp.MustCompile(fmt.Sprintf(`(?m)^%d .*\+\+\+ killed by SIGKILL`, n.cmd.Process.Pid)).Match(text) {
			err = fmt.Errorf("the end of the process is missing")
		}
		calls = parseTrace(string(text))
		return err
	})
	written := slices.IndexFunc(calls, func(c tracedCall) bool {
		return c.isWrite() && c.file == segment && strings.Contains(c.args, marker) && c.result > 0
	})
	if written < 0 {
		t.Fatalf("the start did not write %q again", marker)
	}
	synced := slices.IndexFunc(calls[written:], func(s tracedCall) bool {
		return s.isSync() && s.file == segment && s.begin >= calls[written].end
	})
	// The mark is the first thing that claims it.
	claimed := slices.IndexFunc(calls, func(c tracedCall) bool { return c.isWrite() && strings.HasSuffix(c.file, "/mark") })
	if synced < 0 || claimed < 0 || calls[written+synced].end > calls[claimed].begin {
		t.Errorf("it was written again by call %d, synced by %d behind that, and counted by %d", written, synced, claimed)
	}
}
