//go:build unix

package process

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/openapi/openapitest"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	procReadyWithin = 30 * time.Second // generous: two cores, and perhaps the race detector
	procStopWithin  = 10 * time.Second // what a graceful stop may take
	procPoll        = 20 * time.Millisecond
)

// procBinary builds the server once for all tests of the run.
var procBinary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("RAFTKV_TEST_BINARY"); bin != "" {
		return filepath.Abs(bin)
	}
	return procBuild("raftkv-under-test")
})

// procFront is a flag: a variable of the environment would be taken from the nodes.
var procFront = flag.Bool("front", true, "let net/http alone serve the nodes' clients, if false")

// procBuildDir returns where the programs of a run go.
func procBuildDir() (string, error) {
	// go test removes the directory of the test binary when it is done: the one place that needs no clean-up.
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if dir := filepath.Dir(self); strings.Contains(dir, "go-build") {
		return dir, nil
	}
	return os.MkdirTemp("", "raftkv-test-")
}

// procBuild builds the server, with more arguments for go build than usual.
func procBuild(name string, more ...string) (string, error) {
	dir, err := procBuildDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, name)
	args := append([]string{"build", "-buildvcs=false", "-o", bin}, more...)
	if os.Getenv("RAFTKV_TEST_RACE") == "1" {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, ".")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
}

// procThread runs functions on one OS thread that never ends: the kernel's parent-death signal is tied to the thread
// that started a child, not to the process.
var procThread = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func procStartCmd(cmd *exec.Cmd) error {
	done := make(chan error)
	procThread() <- func() { done <- cmd.Start() }
	return <-done
}

// procFreePort returns a port that nobody listens on. It stays below the range of outgoing connections, so that no
// client takes it while its node is down, and is held by a file lock against other test processes.
func procFreePort(t testing.TB) int {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "raftkv-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		port := 13000 + rand.IntN(9000)
		lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			lock.Close()
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			lock.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { lock.Close() })
		return port
	}
	t.Fatal("no free port")
	return 0
}

func procURL(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

type procNode struct {
	id                   int
	peerPort, clientPort int
	dataDir, logPath     string
	args                 []string
	env                  []string // variables besides those of the test
	bin                  string   // another build than the one under test

	cmd      *exec.Cmd
	logStart int64         // where the output of the present run begins
	done     chan struct{} // closed when the present run has ended
	code     int           // its exit code, -1 for a signal; valid after done
	ending   bool          // the test ended it, or expects it to end
}

func (n *procNode) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// output is what the present or last run of the node has printed.
func (n *procNode) output() string {
	data, err := os.ReadFile(n.logPath)
	if err != nil || int64(len(data)) < n.logStart {
		return ""
	}
	return string(data[n.logStart:])
}

// procCluster is a set of server processes that belong to one test. Node IDs count from 1.
type procCluster struct {
	t      testing.TB
	dir    string
	nodes  map[int]*procNode
	flags  []string // for every node
	list   string   // the --cluster of the first nodes
	client *http.Client
	scheme string // of the client ports; "" is http

	// clientPorts are those whose answers are described; what a proxy adds to them is not.
	clientPorts sync.Map
	oldToo      bool // some of its nodes run another program, with other answers
}

// newProcCluster lays out n nodes with free ports and data directories. It starts none of them.
func newProcCluster(t testing.TB, n int, flags ...string) *procCluster {
	t.Helper()
	if _, err := procBinary(); err != nil {
		t.Fatal(err)
	}
	c := &procCluster{t: t, dir: t.TempDir(), nodes: map[int]*procNode{}, flags: flags}
	c.client = c.newClient(10 * time.Second)
	var urls []string
	for id := 1; id <= n; id++ {
		urls = append(urls, procURL(c.newNode(id).peerPort))
	}
	c.list = strings.Join(urls, ",")
	for _, node := range c.nodes {
		node.args = c.args(node, c.list)
	}
	t.Cleanup(c.close)
	return c
}

func procClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		Proxy:               nil,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     30 * time.Second,
	}}
}

// newClient is procClient for clients of the cluster: each answer has to be one that the OpenAPI document describes.
func (c *procCluster) newClient(timeout time.Duration) *http.Client {
	client := procClient(timeout)
	client.Transport = procDescribed{c, client.Transport, openapitest.Transport(c.t, client.Transport)}
	return client
}

// procDescribed is the transport of such a client.
type procDescribed struct {
	c              *procCluster
	plain, checked http.RoundTripper
}

func (d procDescribed) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, described := d.c.clientPorts.Load(r.URL.Port()); !described || d.c.oldToo {
		return d.plain.RoundTrip(r)
	}
	return d.checked.RoundTrip(r)
}

func (d procDescribed) CloseIdleConnections() { d.plain.(*http.Transport).CloseIdleConnections() }

func (c *procCluster) newNode(id int) *procNode {
	name := fmt.Sprintf("node%d", id)
	node := &procNode{
		id: id, peerPort: procFreePort(c.t), clientPort: procFreePort(c.t),
		dataDir: filepath.Join(c.dir, name), logPath: filepath.Join(c.dir, name+".log"),
	}
	c.nodes[id] = node
	c.clientPorts.Store(strconv.Itoa(node.clientPort), true)
	return node
}

func (c *procCluster) args(n *procNode, list string, more ...string) []string {
	args := []string{"--id", strconv.Itoa(n.id), "--cluster", list, "--port", strconv.Itoa(n.clientPort), "--data-dir", n.dataDir}
	return slices.Concat(args, c.flags, more)
}

func (c *procCluster) url(i int) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", cmp.Or(c.scheme, "http"), c.nodes[i].clientPort)
}

func (c *procCluster) ids() []int { return slices.Sorted(maps.Keys(c.nodes)) }

// launch starts node i with its command line and returns at once.
func (c *procCluster) launch(i int) {
	c.t.Helper()
	n := c.nodes[i]
	if n.running() {
		c.t.Fatalf("node %d runs already", i)
	}
	bin, err := procBinary()
	if err != nil {
		c.t.Fatal(err)
	}
	args := n.args
	switch {
	case n.bin != "":
		bin = n.bin
	case !*procFront:
		args = append(slices.Clip(args), "--front=false")
	}
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintf(log, "=== %s raftkv %s\n", time.Now().Format("15:04:05.000"), strings.Join(args, " "))
	if info, err := log.Stat(); err == nil {
		n.logStart = info.Size()
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = c.dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "RAFTKV_") })
	cmd.Env = append(cmd.Env, n.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	if err := procStartCmd(cmd); err != nil {
		c.t.Fatal(err)
	}
	done := make(chan struct{})
	n.cmd, n.done, n.ending = cmd, done, false
	go func() {
		_ = cmd.Wait() // the code says it all
		n.code = cmd.ProcessState.ExitCode()
		close(done)
	}()
}

// start starts the nodes, all of them if none is named, and waits until they are ready.
func (c *procCluster) start(ids ...int) {
	c.t.Helper()
	if len(ids) == 0 {
		ids = c.ids()
	}
	for _, i := range ids {
		c.launch(i)
	}
	for _, i := range ids {
		c.waitReady(i)
	}
}

func (c *procCluster) signal(i int, sig syscall.Signal) {
	c.t.Helper()
	n := c.nodes[i]
	if !n.running() {
		c.t.Fatalf("node %d does not run\n%s", i, procTail(n.output()))
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Fatal(err)
	}
}

// stop ends node i as an operator does: it has to exit 0 within ten seconds.
func (c *procCluster) stop(i int) {
	c.t.Helper()
	c.nodes[i].ending = true
	c.signal(i, syscall.SIGTERM)
	c.waitExit(i, 0, procStopWithin)
}

// kill ends the nodes as a power cut does, all of them before it waits for any.
func (c *procCluster) kill(ids ...int) {
	c.t.Helper()
	for _, i := range ids {
		c.nodes[i].ending = true
		c.signal(i, syscall.SIGKILL)
	}
	for _, i := range ids {
		<-c.nodes[i].done
	}
}

func (c *procCluster) pause(i int) { c.t.Helper(); c.signal(i, syscall.SIGSTOP) }

func (c *procCluster) resume(i int) { c.t.Helper(); c.signal(i, syscall.SIGCONT) }

// waitExit waits until node i has ended by itself, checks its exit code and returns what it printed.
func (c *procCluster) waitExit(i, code int, within time.Duration) string {
	c.t.Helper()
	n := c.nodes[i]
	n.ending = true
	select {
	case <-n.done:
	case <-time.After(within):
		_ = n.cmd.Process.Signal(syscall.SIGQUIT) // the goroutines go to its log
		select {
		case <-n.done:
		case <-time.After(2 * time.Second):
		}
		c.t.Fatalf("node %d still runs after %v, it should have exited %d", i, within, code)
	}
	if n.code != code {
		c.t.Fatalf("node %d exited %d, want %d\n%s", i, n.code, code, procTail(n.output()))
	}
	return n.output()
}

func (c *procCluster) ready(i int) bool {
	return c.do(http.MethodGet, i, "/readyz", nil).status == http.StatusOK
}

func (c *procCluster) waitReady(ids ...int) {
	c.t.Helper()
	for _, i := range ids {
		procEventually(c.t, procReadyWithin, fmt.Sprintf("node %d is ready", i), func() error {
			if !c.nodes[i].running() {
				c.t.Fatalf("node %d exited %d before it was ready\n%s", i, c.nodes[i].code, procTail(c.nodes[i].output()))
			}
			if r := c.do(http.MethodGet, i, "/readyz", nil); r.status != http.StatusOK {
				return fmt.Errorf("/readyz: %v", r)
			}
			return nil
		})
	}
}

// addNode adds node i through the API of node via and starts it with --join.
func (c *procCluster) addNode(i, via int) {
	c.t.Helper()
	n := c.newNode(i)
	n.args = c.args(n, c.list+fmt.Sprintf(",%d=%s", i, procURL(n.peerPort)), "--join")
	if r := c.do(http.MethodPost, via, fmt.Sprintf("/%d", i), []byte(procURL(n.peerPort))); r.status != http.StatusNoContent {
		c.t.Fatalf("POST /%d at node %d: %v, want 204", i, via, r)
	}
	c.launch(i)
}

// close kills what still runs, and reports what only the logs tell: crashes, races, nodes that ended by themselves.
func (c *procCluster) close() {
	for _, i := range c.ids() {
		n := c.nodes[i]
		if n.cmd == nil {
			continue
		}
		if !n.running() && !n.ending {
			c.t.Errorf("node %d ended by itself, exit code %d", i, n.code)
		}
		_ = n.cmd.Process.Kill() // fails when it has ended, which is as good
		<-n.done
	}
	c.client.CloseIdleConnections()
	for _, i := range c.ids() {
		log, err := os.ReadFile(c.nodes[i].logPath)
		if err != nil {
			continue
		}
		if at := procCrash.FindIndex(log); at != nil {
			c.t.Errorf("node %d crashed:\n%s", i, log[at[0]:min(len(log), at[0]+4000)])
		}
		if c.t.Failed() {
			c.t.Logf("node %d, end of its log:\n%s", i, procTail(string(log)))
		}
	}
}

var procProbe = regexp.MustCompile(`^/(livez|readyz|metrics|v1/status|v1/members)`)

var procCrash = regexp.MustCompile(`(?m)^(panic: |fatal error: |WARNING: DATA RACE|\[signal )`)

func procTail(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// procEventually polls until check returns nil.
func procEventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", within, what, err)
		}
		time.Sleep(procPoll)
	}
}

// procReply is an answer; err is set when there was none.
type procReply struct {
	status int
	header http.Header
	body   string
	err    error
}

func (r procReply) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return fmt.Sprintf("%d %q", r.status, r.body[:min(len(r.body), 300)])
}

// code is the stable code of a problem+json answer.
func (r procReply) code() string {
	var p struct{ Code string }
	if r.err != nil || json.Unmarshal([]byte(r.body), &p) != nil {
		return ""
	}
	return p.Code
}

// procDo sends one request. Headers come as name, value, name, value; Host is set as one of them.
func procDo(client *http.Client, method, url string, body []byte, headers ...string) procReply {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return procReply{err: err}
	}
	for h := range slices.Chunk(headers, 2) {
		if h[0] == "Host" {
			req.Host = h[1]
			continue
		}
		req.Header.Add(h[0], h[1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return procReply{err: err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return procReply{status: resp.StatusCode, header: resp.Header, body: string(data), err: err}
}

func (c *procCluster) do(method string, i int, path string, body []byte, headers ...string) procReply {
	start := time.Now()
	r := procDo(c.client, method, c.url(i)+path, body, headers...)
	// Nothing may wait for long that does not need the cluster: probes must answer when all else is stuck.
	if took := time.Since(start); took > 4*time.Second && procProbe.MatchString(path) {
		c.t.Errorf("%s %s at node %d took %v: %v", method, path, i, took, r)
	}
	return r
}

// procRefused tells that no connection came about: the request was never sent.
func procRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// put has to succeed; it returns the ETag.
func (c *procCluster) put(i int, key, value string) string {
	c.t.Helper()
	r := c.do(http.MethodPut, i, "/"+key, []byte(value))
	if r.err != nil || r.status != http.StatusNoContent || r.header.Get("ETag") == "" {
		c.t.Fatalf("PUT /%s at node %d: %v, ETag %q, want 204 and an ETag", key, i, r, r.header.Get("ETag"))
	}
	return r.header.Get("ETag")
}

// wantGet reads a key and compares.
func (c *procCluster) wantGet(i int, key, want string) {
	c.t.Helper()
	if r := c.do(http.MethodGet, i, "/"+key, nil); r.err != nil || r.status != http.StatusOK || r.body != want {
		c.t.Fatalf("GET /%s at node %d: %v, want 200 %q", key, i, r, want)
	}
}

// procWantProblem checks a problem+json answer to the last member.
func procWantProblem(t testing.TB, what string, r procReply, status int, code string) {
	t.Helper()
	var p struct {
		Type, Title, Detail, Code, Outcome string
		Status                             int
		Retry                              *bool
	}
	if r.err != nil || r.status != status {
		t.Errorf("%s: %v, want %d %s", what, r, status, code)
		return
	}
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("%s: Content-Type %q, want application/problem+json", what, ct)
	}
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Errorf("%s: %v in %q", what, err, r.body)
		return
	}
	if p.Status != status || p.Code != code || p.Title == "" || p.Type == "" || p.Detail == "" || p.Outcome == "" || p.Retry == nil {
		t.Errorf("%s: %s, want status %d, code %q, and type, title, detail, outcome and retry", what, r.body, status, code)
	}
}
