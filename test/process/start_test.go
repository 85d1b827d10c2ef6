//go:build unix

package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/problem"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// procRun runs the binary to its end and returns its exit code and all that it printed.
func procRun(t *testing.T, env []string, args ...string) (int, string) {
	t.Helper()
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var out bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = t.TempDir(), &out, &out, procAttr(syscall.SIGKILL)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("raftkv %q still ran after 20 s\n%s", args, procTail(out.String()))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// Guarantee: a command line that cannot be right ends at once, exit 2, with all its problems in one message.
func TestProcBadFlags(t *testing.T) {
	for _, test := range []struct {
		name string
		env  []string
		args []string
		want []string // all of these are in the message
	}{
		{"id 0", nil, []string{"--id", "0"}, []string{"--id"}},
		{"id beyond the list", nil, []string{"--id", "4", "--cluster", "http://127.0.0.1:12379,http://127.0.0.1:22379"}, []string{"--id"}},
		{"port", nil, []string{"--port", "99999"}, []string{"--port"}},
		{"trailing slash", nil, []string{"--cluster", "http://127.0.0.1:12379/"}, []string{"--cluster"}},
		{"no port", nil, []string{"--cluster", "http://127.0.0.1"}, []string{"--cluster"}},
		{"no scheme", nil, []string{"--cluster", "127.0.0.1:12379"}, []string{"--cluster"}},
		{"the same URL twice", nil, []string{"--cluster", "http://127.0.0.1:12379,http://127.0.0.1:12379"}, []string{"--cluster"}},
		{"the same ID twice", nil, []string{"--cluster", "1=http://127.0.0.1:12379,1=http://127.0.0.1:22379"}, []string{"--cluster"}},
		{"clock", nil, []string{"--heartbeat-interval", "1s", "--election-timeout", "1s"}, []string{"--election-timeout", "--heartbeat-interval"}},
		{"all at once", nil, []string{"--id", "0", "--port", "-1", "--cluster", "nonsense", "--log-level", "loud", "--snapshot-count", "0",
			"--max-value-size", "many", "--request-timeout", "-5s"},
			[]string{"--id", "--port", "--cluster", "--log-level", "--snapshot-count", "--max-value-size", "--request-timeout"}},
		{"unknown flag", nil, []string{"--bogus"}, []string{"bogus"}},
		{"unknown word", nil, []string{"frobnicate"}, []string{"frobnicate"}},
		{"a flag of a command", nil, []string{"--endpoints", "http://127.0.0.1:1", "get", "k"}, []string{"--endpoints", `"get"`, "a command comes before its flags"}},
		{"stray argument", nil, []string{"--id", "1", "stray"}, []string{"stray"}},
		{"environment", []string{"RAFTKV_ID=0", "RAFTKV_PORT=x"}, nil, []string{"RAFTKV_ID", "RAFTKV_PORT"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out := procRun(t, test.env, test.args...)
			if code != 2 {
				t.Errorf("exit %d, want 2\n%s", code, procTail(out))
			}
			for _, want := range test.want {
				// Go's flag package writes -name, others --name: take both.
				if !strings.Contains(out, strings.TrimLeft(want, "-")) {
					t.Errorf("the message does not name %s:\n%s", want, procTail(out))
				}
			}
		})
	}
}

// Guarantee: every flag is an environment variable too, the flag wins; --version tells what this is.
func TestProcVersionAndEnvironment(t *testing.T) {
	code, out := procRun(t, nil, "--version")
	if code != 0 || !strings.Contains(out, "raftkv") || !regexp.MustCompile(`go1\.\d+`).MatchString(out) {
		t.Errorf("--version: exit %d\n%s", code, out)
	}
	for _, dep := range []string{`raft\S* v3\.`, `(etcd|server)\S* v3\.`} {
		if !regexp.MustCompile(dep).MatchString(out) {
			t.Errorf("--version has no match for %s:\n%s", dep, out)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	// The port of the environment is taken: exit 1 shows that it is looked at, and the flag that it loses.
	cluster := "--cluster=" + procURL(procFreePort(t))
	if code, out := procRun(t, []string{"RAFTKV_PORT=" + port}, cluster); code != 1 || !strings.Contains(out, port) {
		t.Errorf("RAFTKV_PORT=%s (taken): exit %d, want 1\n%s", port, code, procTail(out))
	}
	if code, out := procRun(t, []string{"RAFTKV_PORT=nonsense"}, cluster, "--port", port); code != 1 || !strings.Contains(out, port) {
		t.Errorf("--port %s over RAFTKV_PORT=nonsense: exit %d, want 1\n%s", port, code, procTail(out))
	}
}

// Guarantee: a port in use is exit 1, naming it, before anything is written.
func TestProcPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	other := fmt.Sprint(procFreePort(t))
	for name, args := range map[string][]string{
		"client":  {"--cluster", "http://127.0.0.1:" + other, "--port", port},
		"peer":    {"--cluster", "http://127.0.0.1:" + port, "--port", other},
		"metrics": {"--cluster", procURL(procFreePort(t)), "--port", other, "--listen-metrics", "127.0.0.1:" + port},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		code, out := procRun(t, nil, append(args, "--data-dir", dir)...)
		if code != 1 || !strings.Contains(out, port) {
			t.Errorf("%s port in use: exit %d, want 1 and the port %s in the message\n%s", name, code, port, procTail(out))
		}
		if _, err := os.Stat(filepath.Join(dir, "wal")); err == nil {
			t.Errorf("%s port in use: there is a log already", name)
		}
	}
}

// Guarantee: a data directory belongs to one node of one cluster and one process at a time.
func TestProcForeignDataDir(t *testing.T) {
	c := newProcCluster(t, 3)
	n := c.nodes[1]
	c.launch(1)
	procEventually(t, procReadyWithin, "node 1 is alive", func() error {
		if r := c.do(http.MethodGet, 1, "/livez", nil); r.status != http.StatusOK {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if c.ready(1) {
		t.Error("one of three is ready, without a leader")
	}
	second := func(what string, replace ...string) string {
		t.Helper()
		args := append(c.args(n, c.list), "--listen-peer", fmt.Sprintf("127.0.0.1:%d", procFreePort(t)))
		for at := 0; at < len(replace); at += 2 {
			for j := range args {
				if args[j] == replace[at] {
					args[j+1] = replace[at+1]
				}
			}
		}
		code, out := procRun(t, nil, args...)
		if code != 1 {
			t.Errorf("%s: exit %d, want 1\n%s", what, code, procTail(out))
		}
		return out
	}
	free := fmt.Sprint(procFreePort(t))
	if out := second("a second process", "--port", free); !strings.Contains(out, n.dataDir) {
		t.Errorf("a second process: the message does not name %s:\n%s", n.dataDir, procTail(out))
	}
	c.stop(1) // exit 0 also without a quorum
	if out := second("as node 2", "--id", "2"); !strings.Contains(out, n.dataDir) {
		t.Errorf("as node 2: the message does not name %s:\n%s", n.dataDir, procTail(out))
	}
	urls := strings.Split(c.list, ",")
	list := strings.Join([]string{urls[0], urls[1], procURL(procFreePort(t))}, ",")
	if out := second("with another list", "--cluster", list); !strings.Contains(out, urls[2]) || !strings.Contains(out, strings.Split(list, ",")[2]) {
		t.Errorf("with another list: the message does not name both:\n%s", procTail(out))
	}
	if out := second("with a shorter list", "--cluster", urls[0]); !strings.Contains(out, urls[2]) {
		t.Errorf("with a shorter list: the message does not name the old one:\n%s", procTail(out))
	}
	// None of that has hurt it.
	c.start(1, 2)
	c.put(1, "k", "1")
	c.wantGet(2, "k", "1")
}

// Guarantee: a node that lost its directory has forgotten its votes: it does not take part again under its ID.
func TestProcEmptiedDataDir(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.put(3, "k", "1")
	procEventually(t, procReadyWithin, "all have published their client URL", func() error {
		for _, m := range c.members(1).Members {
			if m.ClientURL != c.url(m.ID) {
				return fmt.Errorf("member %d: client_url %q, want %q", m.ID, m.ClientURL, c.url(m.ID))
			}
		}
		return nil
	})
	c.kill(3)
	if err := os.RemoveAll(c.nodes[3].dataDir); err != nil {
		t.Fatal(err)
	}
	for _, join := range []bool{false, true} {
		if join {
			c.nodes[3].args = append(c.nodes[3].args, "--join")
		}
		c.launch(3)
		if out := c.waitExit(3, 1, 20*time.Second); !strings.Contains(strings.ToLower(out), "new id") {
			t.Errorf("join %v: the message does not say to join under a new ID:\n%s", join, procTail(out))
		}
	}
	// The way out that the message names.
	c.remove(3, 1)
	c.addNode(4, 1)
	c.waitReady(4)
	c.wantGet(4, "k", "1")
	c.waitVoters(2, 1, 2, 4)
}

// Guarantee: nodes that were given different lists do not found a cluster together, whatever --cluster-id says: what they
// hold would never be the same.
func TestProcFoundersMustAgree(t *testing.T) {
	c := newProcCluster(t, 3, "--cluster-id", "cafe")
	c.launch(1)
	procEventually(t, procReadyWithin, "node 1 answers its peers", func() error {
		if r := procDo(c.client, "GET", procURL(c.nodes[1].peerPort)+"/raftkv/cluster", nil); r.status != 200 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	other := strings.Replace(c.list, procURL(c.nodes[3].peerPort), procURL(procFreePort(t)), 1)
	n := c.nodes[2]
	n.args = c.args(n, other)
	c.launch(2)
	out := c.waitExit(2, 1, 20*time.Second)
	for _, want := range []string{"same list", procURL(c.nodes[3].peerPort)} {
		if !strings.Contains(out, want) {
			t.Errorf("the message does not hold %q:\n%s", want, procTail(out))
		}
	}
	n.args = c.args(n, c.list)
	c.launch(2)
	c.waitReady(1, 2)
}

// Guarantee: also when they start at the same moment, and neither can tell the other yet.
func TestProcFoundersMustAgreeAtOnce(t *testing.T) {
	c := newProcCluster(t, 3, "--cluster-id", "beef")
	other := strings.Replace(c.list, procURL(c.nodes[3].peerPort), procURL(procFreePort(t)), 1)
	c.nodes[2].args = c.args(c.nodes[2], other)
	c.launch(1)
	c.launch(2)
	procEventually(t, procReadyWithin, "one of them ends", func() error {
		for i := 1; i <= 2; i++ {
			if r := c.do("PUT", i, "/k", []byte("v")); r.status == 204 {
				t.Fatalf("node %d acknowledges a write", i)
			}
			c.nodes[i].ending = true
			if n := c.nodes[i]; !n.running() {
				if n.code != 1 || !strings.Contains(n.output(), "same list") {
					t.Fatalf("node %d ended with %d\n%s", i, n.code, procTail(n.output()))
				}
				return nil
			}
		}
		return problem.ErrNotReady
	})
}
