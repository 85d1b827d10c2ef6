//go:build unix

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
)

// procLine is a line of the log in JSON.
type procLine struct {
	Level   string `json:"level"`
	Logger  string `json:"logger"`
	Message string `json:"msg"`
	Node    int    `json:"node"`
	Leader  int    `json:"leader"`
	Term    int    `json:"term"`
	Member  int    `json:"member"`

	Version, Revision, Cluster, Members string
}

func (l procLine) String() string { return l.Level + " " + strings.TrimSpace(l.Logger+" "+l.Message) }

// procLogReader reads what nodes say, bit by bit.
type procLogReader struct {
	c    *procCluster
	read map[int]int
}

// news returns what a node has said since the last call. A busy machine may make
// it say that something was slow; that does not count.
func (r *procLogReader) news(i int) (lines []procLine) {
	r.c.t.Helper()
	out := r.c.nodes[i].output()[r.read[i]:]
	end := strings.LastIndexByte(out, '\n') + 1
	r.read[i] += end
	for text := range strings.Lines(out[:end]) {
		var line procLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			r.c.t.Errorf("node %d: %v in %q", i, err, text)
		}
		if line.Node != i {
			r.c.t.Errorf("a line of node %d says node %d: %s", i, line.Node, text)
		}
		if !strings.HasPrefix(line.Message, "slow ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func procCount(lines []procLine, message string) (n int) {
	for _, l := range lines {
		if l.Message == message {
			n++
		}
	}
	return n
}

// Guarantee: the log of a healthy day is short. A start is a few lines that say
// what started where, and who leads; a neighbour that stops is no warning but one
// line of the leader; when the leader dies, each says who leads now.
func TestProcLogIsShort(t *testing.T) {
	c := newProcCluster(t, 3, "--log-format", "json")
	r := &procLogReader{c, make(map[int]int)}
	c.start()
	leader := c.leader()
	for _, i := range c.ids() {
		procEventually(t, procReadyWithin, "each node knows the version of all", func() error {
			if body := c.do(http.MethodGet, i, "/v1/members", nil).body; strings.Count(body, `"version":"`) != 3 {
				return errors.New(body)
			}
			return nil
		})
		lines := r.news(i)
		if len(lines) > 6 {
			t.Errorf("the start of node %d is %d lines: %v", i, len(lines), lines)
		}
		if l := lines[0]; l.Message != "starting" || l.Version == "" || l.Revision == "" {
			t.Errorf("the first line of node %d is %+v", i, l)
		}
		for _, l := range lines {
			if l.Logger != "" {
				t.Errorf("node %d at its start says %v", i, l)
			}
			if l.Message == "started" && (l.Version == "" || l.Cluster == "" || strings.Count(l.Members, "http://") != 3) {
				t.Errorf("node %d started: %+v", i, l)
			}
			if l.Message == "leader changed" && (l.Leader == 0 || l.Term == 0) {
				t.Errorf("node %d, of its leader: %+v", i, l)
			}
		}
		for _, want := range []string{"started", "leader changed", "ready"} {
			if procCount(lines, want) == 0 {
				t.Errorf("node %d does not say %q: %v", i, want, lines)
			}
		}
	}
	checkProcMetrics(t, c, leader)

	// A follower stops, and is back.
	stopped := leader%3 + 1
	other := 6 - leader - stopped
	c.stop(stopped)
	procEventually(t, procReadyWithin, "the leader misses it", func() error {
		if !strings.Contains(c.nodes[leader].output(), "member down") {
			return errors.New("not yet")
		}
		return nil
	})
	if got := r.news(leader); len(got) != 1 || got[0].Member != stopped {
		t.Errorf("the leader says of a neighbour that stopped: %v", got)
	}
	if got := r.news(other); len(got) > 0 {
		t.Errorf("a follower says of a neighbour that stopped: %v", got)
	}
	if got := r.news(stopped); len(got) != 2 || got[0].Message != "stopping" || got[1].Message != "stopped" {
		t.Errorf("who stops says %v", got)
	}
	r.read[stopped] = 0
	c.start(stopped)
	procEventually(t, procReadyWithin, "the leader finds it", func() error {
		if !strings.Contains(c.nodes[leader].output(), "member up") {
			return errors.New("not yet")
		}
		return nil
	})
	for _, i := range c.ids() {
		if got := r.news(i); len(got) > 6 || i == other && len(got) > 0 {
			t.Errorf("when a neighbour is back, node %d says %v", i, got)
		}
	}

	// The leader dies.
	c.kill(leader)
	c.waitReady(stopped, other)
	heir := 0
	procEventually(t, procReadyWithin, "another leads, and misses the old leader", func() error {
		if heir = c.leader(); heir == leader || !strings.Contains(c.nodes[heir].output()[r.read[heir]:], "member down") {
			return fmt.Errorf("node %d leads", heir)
		}
		return nil
	})
	for _, i := range []int{stopped, other} {
		got := r.news(i)
		changed := slices.DeleteFunc(slices.Clone(got), func(l procLine) bool { return l.Message != "leader changed" })
		if len(got) > 6 || len(changed) == 0 || changed[len(changed)-1].Leader != heir {
			t.Errorf("after the leader's death node %d says %v, and of leaders %+v; %d leads", i, got, changed, heir)
		}
		for _, l := range got {
			if l.Logger != "" {
				t.Errorf("after the leader's death node %d says %v", i, l)
			}
		}
	}
}

// checkProcMetrics looks for what only a real node can tell.
func checkProcMetrics(t *testing.T, c *procCluster, leader int) {
	t.Helper()
	body := c.do(http.MethodGet, leader, "/metrics", nil).body
	for _, want := range []string{"\nraftkv_build_info{go=\"go1.", "\nraftkv_members_reachable{role=\"voter\"} 3\n",
		"\nraftkv_request_duration_seconds_count{method=\"GET\",route=\"members\",status=\"200\"}", "\nraftkv_log_lines_dropped_total 0\n"} {
		if !strings.Contains("\n"+body, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	if free := c.metric(leader, "raftkv_disk_free_bytes"); !(free > 1<<20) {
		t.Errorf("%v bytes are free", free)
	}
	if quota := c.metric(leader, "raftkv_quota_bytes"); quota < 1<<20 {
		t.Errorf("the quota is %v", quota)
	}
}

// Guarantee: a library is heard when it is asked for, and a bad level is a wrong
// command line, with all that is wrong in it.
func TestProcLogLevel(t *testing.T) {
	c := newProcCluster(t, 2, "--log-level", "warn,rafthttp=debug")
	c.start()
	for _, i := range c.ids() {
		if out := c.nodes[i].output(); !strings.Contains(out, "\trafthttp\t") || strings.Contains(out, "\traft\t") || strings.Contains(out, "leader changed") {
			t.Errorf("at warn,rafthttp=debug node %d says\n%s", i, procTail(out))
		}
	}
	code, out := procRun(t, nil, "--log-level", "loud,disk=debug,raft=quiet", "--port", "x")
	if code != 2 {
		t.Errorf("exit %d, want 2\n%s", code, out)
	}
	for _, want := range []string{`"loud"`, `"disk=debug"`, `"raft=quiet"`, "--port"} {
		if !strings.Contains(out, want) {
			t.Errorf("a bad --log-level: no word of %s in\n%s", want, out)
		}
	}
}

// Guarantee: a program that was built in a repository names its commit.
func TestProcVersionNamesTheCommit(t *testing.T) {
	testkit.NeedTools(t, "git")
	head, err := exec.Command("git", "rev-parse", "--verify", "HEAD").Output()
	if err != nil {
		t.Skip("these sources are in no repository")
	}
	bin, err := procBuild("raftkv-with-vcs", "-buildvcs=true")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "--version").Output()
	if want := "revision " + strings.TrimSpace(string(head)); err != nil || !strings.Contains(string(out), want) {
		t.Errorf("--version prints %q, %v; want %q", out, err, want)
	}
	if code, out := procRun(t, nil, "--version"); code != 0 || !strings.Contains(out, "unknown revision") && !strings.Contains(out, "revision ") {
		t.Errorf("--version: exit %d\n%s", code, out)
	}
}
