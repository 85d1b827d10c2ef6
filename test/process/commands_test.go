//go:build unix

package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// procShell runs commands of the program as a shell would, in a directory of their own.
type procShell struct {
	t   *testing.T
	dir string
	env []string
}

// shell is one in which RAFTKV_ENDPOINTS names these nodes, all of them without any.
func (c *procCluster) shell(t *testing.T, ids ...int) procShell {
	if len(ids) == 0 {
		ids = c.ids()
	}
	var urls []string
	for _, i := range ids {
		urls = append(urls, c.url(i))
	}
	return procShell{t, t.TempDir(), []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "RAFTKV_ENDPOINTS=" + strings.Join(urls, ",")}}
}

func (s procShell) with(env ...string) procShell {
	s.env = append(append([]string{}, s.env...), env...)
	return s
}

// run runs one command.
func (s procShell) run(stdin string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	bin, err := procBinary()
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = s.dir, s.env, strings.NewReader(stdin), &out, &errs, procAttr(syscall.SIGKILL)
	if err := procStartCmd(cmd); err != nil {
		s.t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("raftkv %q: %v\n%s%s", args, err, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// prints runs a command that must exit 0 and print what matches.
func (s procShell) prints(want, stdin string, args ...string) string {
	s.t.Helper()
	code, out, errs := s.run(stdin, args...)
	if code != 0 || errs != "" || !regexp.MustCompile(`(?s)^`+want+`$`).MatchString(out) {
		s.t.Errorf("raftkv %q: exit %d\n%q, want\n%q\n%s", args, code, out, want, errs)
	}
	return out
}

// fails runs a command that must exit so, print nothing, and say what matches.
func (s procShell) fails(status int, want string, args ...string) {
	s.t.Helper()
	code, out, errs := s.run("", args...)
	if code != status || out != "" || !regexp.MustCompile(want).MatchString(errs) {
		s.t.Errorf("raftkv %q: exit %d, want %d\n%s%s", args, code, status, out, errs)
	}
}

// Guarantee: each command that makes a request does with a cluster what it says, with the exit
// status that it says, on whichever node, and while one of them is down.
func TestProcCommands(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	for _, part := range []struct {
		name string
		run  func(t *testing.T, c *procCluster, s procShell)
	}{
		{"keys", procKeyCommands}, {"values", procValueCommands}, {"lists", procListCommands}, {"txn", procTxnCommand}, {"leases", procLeaseCommands},
		{"waits", procWaitingGet}, {"members", procMemberCommands}, {"one node down", procCommandsWithoutOne}, {"nobody there", procCommandsAlone},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, c, c.shell(t)) })
	}
}

func procKeyCommands(t *testing.T, c *procCluster, s procShell) {
	s.prints("", "", "put", "greeting", "hello")
	for _, i := range c.ids() {
		c.shell(t, i).prints("hello", "", "get", "greeting")
	}
	s.prints("", "", "put", "--if-revision", "1", "greeting", "hello again")
	s.fails(3, `raftkv put: "greeting": precondition_failed`, "put", "greeting", "x", "--if-absent")
	s.fails(3, `precondition_failed`, "put", "greeting", "x", "--if-revision", "1")
	s.fails(3, `precondition_failed`, "put", "nothing", "x", "--if-present")
	s.prints("hello again", "", "get", "greeting")
	s.prints(`\{"key":"greeting","value":"hello again","create_revision":1,"mod_revision":2,"version":2\}\n`, "", "get", "greeting", "-o", "json")
	s.prints(`\{"key":"once","mod_revision":3\}\n`, "", "put", "once", "x", "--if-absent", "--output", "json")
	s.fails(3, `raftkv get: "nothing": not_found`, "get", "nothing")
	s.fails(3, `precondition_failed`, "delete", "once", "--if-revision", "2")
	s.prints("", "", "delete", "once", "--if-revision", "3")
	s.fails(3, `there is no key "once"`, "delete", "once")
	s.prints("1\n", "", "add", "hits")
	s.prints("-2\n", "", "add", "hits", "-3")
	s.fails(1, `not_a_number`, "add", "greeting")
	first, second := s.prints("jobs/.*\n", "", "append", "jobs/", "one"), s.prints("jobs/.*\n", "two", "append", "jobs/")
	if second <= first {
		t.Errorf("%q is not behind %q", second, first)
	}
	s.prints("two", "", "get", strings.TrimSpace(second), "--stale", "--max-age", "30s")
	s.prints("2\n", "", "delete", "--prefix", "jobs/")
	s.prints("0\n", "", "list", "jobs/", "--count")
	s.prints("", "", "put", "short", "lived", "--ttl", "100ms")
	testkit.Eventually(t, "the key is gone", func() bool { code, _, _ := s.run("", "get", "short"); return code == 3 })
	s.fails(2, `--ttl "5"`, "put", "a", "b", "--ttl", "5")
}

// Values come and go byte for byte, whatever is in them.
func procValueCommands(t *testing.T, _ *procCluster, s procShell) {
	value := string(bytes.Repeat([]byte{0, 255, '\n', 'x'}, 50_000))
	testkit.Must(t, os.WriteFile(filepath.Join(s.dir, "file"), []byte(value), 0o600))
	for i, args := range [][]string{{"put", "v0", "-f", "file"}, {"put", "v1"}, {"put", "v2", "-"}} {
		s.prints("", value, args...)
		if code, out, errs := s.run("", "get", fmt.Sprint("v", i)); code != 0 || out != value {
			t.Errorf("%q: exit %d, %d bytes of %d\n%s", args, code, len(out), len(value), errs)
		}
	}
	s.prints("", "", "put", "v0", "")
	s.prints("", "", "get", "v0")
	for _, key := range []string{"a//b", "a/../b", "ä b?c#d", "-k", "v1/x"} {
		s.prints("", "", "put", "--", key, "of "+key)
		s.prints(regexp.QuoteMeta("of "+key), "", "get", "--", key)
		s.prints("", "", "delete", "--", key)
	}
	s.fails(1, "no such file", "put", "v0", "--file", "nowhere")
	testkit.Must(t, os.WriteFile(filepath.Join(s.dir, "large"), make([]byte, 1<<20+1), 0o600))
	s.fails(1, "too_large", "put", "v0", "--file", "large")
}

func procListCommands(t *testing.T, c *procCluster, s procShell) {
	for i := range 12 {
		c.put(1, fmt.Sprintf("l/%02d", i), fmt.Sprint("value ", i))
	}
	c.put(1, "l/dir/a", "x")
	c.put(1, "l/dir/b", "two\nlines")
	s.prints(`l/00     value 0\nl/01     value 1\n.*l/dir/a  x\nl/dir/b  "two\\nlines"\n`, "", "list", "l/")
	s.prints("l/dir/b\nl/dir/a\nl/11\n", "", "list", "l/", "--keys-only", "--reverse", "--limit", "3")
	s.prints("14\n", "", "list", "l/", "--count")
	s.prints("l/00  value 0\n.*l/11  value 11\nl/dir/\n", "", "list", "l/", "--delimiter", "/")
	s.prints("l/10\nl/11\n", "", "list", "l/", "--start", "l/10", "--end", "l/dir", "--keys-only", "--one-revision")
	out := s.prints(".*", "", "list", "l/", "--output", "json")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	var last struct{ Key, Value string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 14 || last.Key != "l/dir/b" || last.Value != "two\nlines" {
		t.Errorf("%d lines, the last is %+v, %v", len(lines), last, err)
	}
	s.prints("", "", "list", "nothing/")
	s.prints("14\n", "", "delete", "--prefix", "l/")
}

func procTxnCommand(_ *testing.T, _ *procCluster, s procShell) {
	const swap = `{"if":[{"key":"t/a","exists":false}],"then":[{"put":{"key":"t/a","value":"1"}},{"add":{"key":"t/n","delta":"2"}},{"get":{"key":"t/a"}}],"else":[{"get":{"key":"t/a"}}]}`
	s.prints("put t/a\nadd t/n 2\nget t/a 1\n", swap, "txn")
	code, out, errs := s.run(swap, "txn", "--output", "json", "-")
	if code != 3 || !regexp.MustCompile(`^\{"succeeded":false,"revision":\d+,"results":\[\{"get":\{"key":"t/a","value":"1".*\}\}\]\}\n$`).MatchString(out) || !strings.Contains(errs, `"exit":3`) {
		s.t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	s.prints("2", "", "get", "t/n")
	if code, _, errs := s.run(`{"then":[{"get":{"kye":"a"}}]}`, "txn"); code != 2 || !strings.Contains(errs, "kye") {
		s.t.Errorf("exit %d\n%s", code, errs)
	}
}

func procLeaseCommands(t *testing.T, _ *procCluster, s procShell) {
	id := strings.TrimSpace(s.prints(`\d+\n`, "", "lease", "grant", "30s"))
	s.prints("", "", "put", "s/1", "here", "--lease", id)
	s.prints("30s\n", "", "lease", "keep", id)
	s.prints("lease +"+id+"\ntime +30s\nexpires in +\\S+\nkeys +1\n  s/1\n", "", "lease", "show", id)
	s.prints("LEASE.*\n"+id+" +30s .*", "", "lease", "list")
	s.prints(`\{"id":`+id+`,"ttl_seconds":30,.*"key_count":1\}\n`, "", "lease", "list", "-o", "json")
	s.prints("", "", "lease", "revoke", id)
	s.fails(3, "not_found", "get", "s/1")
	for _, args := range [][]string{{"keep"}, {"show"}, {"revoke"}} {
		s.fails(3, "raftkv lease "+args[0]+": .*no_such_lease", "lease", args[0], id)
	}
	s.fails(3, "no_such_lease", "put", "s/1", "x", "--lease", id)
	short := strings.TrimSpace(s.prints(`\d+\n`, "", "lease", "grant", "1s"))
	testkit.Eventually(t, "the lease has run out", func() bool { code, _, _ := s.run("", "lease", "show", short); return code == 3 })
}

// A key that is not there is waited for, and the wait ends.
func procWaitingGet(t *testing.T, c *procCluster, s procShell) {
	done := make(chan string, 1)
	go func() {
		code, out, errs := s.run("", "get", "w/later", "--wait", "30s")
		done <- fmt.Sprint(code, out, errs)
	}()
	time.Sleep(200 * time.Millisecond) // not needed to pass: it makes it likely that the command waits
	c.put(2, "w/later", "came")
	if got := <-done; got != "0came" {
		t.Errorf("got %q", got)
	}
	begin := time.Now()
	s.fails(3, "not_found", "get", "w/never", "--wait", "300ms")
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("it waited %v", took)
	}
}

func procMemberCommands(t *testing.T, c *procCluster, s procShell) {
	leader := c.leader()
	s.prints("ID +ROLE .*\n1 .*\n2 .*\n3 .*\n", "", "member", "list")
	s.prints(fmt.Sprintln(leader), "", "leader")
	next := leader%3 + 1
	s.prints(fmt.Sprintln(next), "", "leader", "move", strconv.Itoa(next))
	s.prints(fmt.Sprintln(next), "", "leader", "move", strconv.Itoa(next))
	s.prints(fmt.Sprintln(next), "", "leader")
	var moved struct{ Leader int }
	if err := json.Unmarshal([]byte(s.prints(".*", "", "leader", "move", "-o", "json")), &moved); err != nil || moved.Leader == next || moved.Leader == 0 {
		t.Errorf("%+v, %v", moved, err)
	}

	url := procURL(procFreePort(t))
	s.prints("4\n", "", "member", "add", url, "--id", "4", "--role", "learner")
	s.fails(1, "member_exists", "member", "add", procURL(procFreePort(t)), "--id", "4")
	other := procURL(procFreePort(t))
	s.prints("ID .*\n4 +learner .*"+other+" .*", "", "member", "update", "4", "--peer-url", other)
	s.prints("ID .*\n4 +voter .*", "", "member", "promote", "4")
	s.fails(3, "no member has this ID", "member", "promote", "9")
	s.prints("", "", "member", "remove", "4")
	s.prints("", "", "member", "remove", "4")
	s.fails(3, "not_found", "member", "remove", "9")
	s.fails(1, "member_removed", "member", "add", url, "--id", "4")

	var nodes []struct {
		ID     int
		Ready  bool
		Status struct{ Role string }
	}
	if err := json.Unmarshal([]byte(s.prints(".*", "", "status", "--output", "json")), &nodes); err != nil || len(nodes) != 3 || nodes[0].ID != 1 || !nodes[2].Ready {
		t.Errorf("%+v, %v", nodes, err)
	}
	table := s.prints("ID +ENDPOINT +ROLE .*\n1 .*\n2 .*\n3 .*\n", "", "status")
	if strings.Count(table, " leader ") != 1 || strings.Count(table, " follower ") != 2 {
		t.Errorf("%s", table)
	}
	c.shell(t, 2).prints("ID .*\n1 +- +voter .*\n2 +http.*\n3 +- +voter .*\n", "", "status")
}

// With one node down commands do as before, and status says which.
func procCommandsWithoutOne(t *testing.T, c *procCluster, s procShell) {
	c.kill(1)
	for i := range 3 {
		s.prints("", "", "put", "down", fmt.Sprint(i))
		s.prints(fmt.Sprint(i), "", "get", "down")
		s.prints(fmt.Sprintln(i+1), "", "add", "down/n")
	}
	c.leader()
	code, out, errs := s.run("", "status")
	if code != 1 || !regexp.MustCompile(`(?m)^- +`+c.url(1)+` +no answer`).MatchString(out) || !strings.Contains(errs, "raftkv status: "+c.url(1)) {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	c.launch(1)
	c.waitReady(1)
}

// Where nobody answers, an error says so, at the end of the time that was given.
func procCommandsAlone(t *testing.T, _ *procCluster, s procShell) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	url := "http://" + l.Addr().String()
	testkit.Must(t, l.Close())
	alone := s.with("RAFTKV_ENDPOINTS="+url, "RAFTKV_TIMEOUT=1s")
	begin := time.Now()
	alone.fails(1, "raftkv put: .*"+url, "put", "a", "b")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	alone.fails(1, "raftkv list: .*"+url, "list")
	if code, out, errs := alone.run("", "status"); code != 1 || !strings.Contains(out, "no answer") || !strings.Contains(errs, url) {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// Guarantee: commands speak TLS with the files that curl takes, and show a token of a file or of
// the environment, never over plain HTTP to another machine.
func TestProcCommandsThroughDoors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newProcCA(t, dir, "clients")
	file := filepath.Join(dir, "rights.yaml")
	testkit.Must(t, os.WriteFile(file, fmt.Appendf(nil, `entries:
- {name: web, cert: web.example, rights: [{right: [read, write], prefixes: [web/]}]}
- {name: root, tokens: "sha256:%x", rights: all}
`, sha256.Sum256([]byte("t-root"))), 0o600))
	c := newTLSCluster(t, ca, 1, "--trusted-ca-file", ca.file, "--auth-file", file)
	root := ca.pair(-time.Hour, time.Hour, "probe.example")
	c.secure(ca.client(&root))
	c.launch(1)
	token := filepath.Join(dir, "token")
	testkit.Must(t, os.WriteFile(token, []byte("t-root\n"), 0o600))
	s := c.shell(t)
	testkit.Eventually(t, "the node serves", func() bool {
		code, _, _ := s.run("", "status", "--cacert", ca.file, "--token-file", token)
		return code == 0
	})
	s.fails(1, "certificate", "get", "web/k", "--timeout", "1s")
	s.fails(1, "unauthenticated", "get", "web/k", "--cacert", ca.file)
	s.with("RAFTKV_TOKEN=t-root", "RAFTKV_CACERT="+ca.file).prints("", "", "put", "web/k", "v")
	s.with("RAFTKV_TOKEN=wrong").prints("v", "", "get", "web/k", "--cacert", ca.file, "--token-file", token)
	s.with("RAFTKV_TOKEN=wrong", "RAFTKV_CACERT="+ca.file).fails(1, "unauthenticated", "get", "web/k")
	certFile, keyFile := ca.files("web", "web.example")
	s.prints("v", "", "get", "web/k", "--cacert", ca.file, "--cert", certFile, "--key", keyFile)
	s.fails(1, "forbidden", "put", "other", "v", "--cacert", ca.file, "--cert", certFile, "--key", keyFile)
	s.with("RAFTKV_TOKEN=t-root").fails(1, "https or to a loopback", "get", "a", "--endpoints", "http://192.0.2.1:9121")
}
