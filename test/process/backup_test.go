//go:build unix

package process

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// procCounter writes 1, 2, 3 … to one key, until it is stopped.
type procCounter struct {
	key           string
	asked, acked  atomic.Int64 // the last value that was sent, and acknowledged
	stop, stopped chan struct{}
}

// count starts a counter on node i.
func (c *procCluster) count(i int, key string) *procCounter {
	k := &procCounter{key: key, stop: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(k.stopped)
		for n := int64(1); ; n++ {
			select {
			case <-k.stop:
				return
			default:
			}
			k.asked.Store(n)
			if r := c.do(http.MethodPut, i, "/"+key, fmt.Append(nil, n)); r.status == http.StatusNoContent {
				k.acked.Store(n)
			}
		}
	}()
	return k
}

func (k *procCounter) end() {
	close(k.stop)
	<-k.stopped
}

// procField is the value of a line of raftkv inspect.
func procField(t *testing.T, out, name string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + ` +(.*)$`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no line %q in\n%s", name, out)
	}
	return m[1]
}

func procCommand(t *testing.T, want int, args ...string) string {
	t.Helper()
	code, out := procRun(t, nil, args...)
	if code != want {
		t.Fatalf("raftkv %s: exit %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return out
}

// Guarantee: a backup taken under load from a follower restores into a fresh cluster, with what was acknowledged before it
// began, the same on every node, and with revisions above all that the old cluster gave.
func TestProcBackupRestores(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	binary := string([]byte{0, 255, 10, 13, 128, 0})
	c.put(1, "binary", binary)
	for i := range 200 {
		c.put(i%3+1, fmt.Sprintf("fixed/%d", i), fmt.Sprint("value ", i))
	}
	follower := c.follower()
	var counters []*procCounter
	for i := range 6 {
		counters = append(counters, c.count(i%3+1, fmt.Sprint("counter/", i)))
	}
	time.Sleep(200 * time.Millisecond) // of load
	before := make([]int64, len(counters))
	for i, k := range counters {
		before[i] = k.acked.Load()
	}
	r := c.do(http.MethodGet, follower, "/v1/snapshot", nil)
	after := make([]int64, len(counters))
	for i, k := range counters {
		after[i] = k.asked.Load()
	}
	revision, err := strconv.ParseUint(r.header.Get("Raftkv-Revision"), 10, 64)
	if r.err != nil || r.status != http.StatusOK || err != nil || r.header.Get("Raftkv-Consistency") != "linearizable" {
		t.Fatalf("GET /v1/snapshot: %d, %v, %v, %v", r.status, r.err, err, r.header)
	}
	if h := c.do(http.MethodHead, follower, "/v1/snapshot?consistency=stale", nil); h.status != 200 || h.body != "" || h.header.Get("Raftkv-Revision") == "" {
		t.Errorf("HEAD: %v %v", h, h.header)
	}
	for _, k := range counters {
		k.end()
	}
	file := filepath.Join(t.TempDir(), "backup.state")
	if err := os.WriteFile(file, []byte(r.body), 0o600); err != nil {
		t.Fatal(err)
	}
	text := procCommand(t, 0, "inspect", file)
	if got := procField(t, text, "  revision"); got != fmt.Sprint(revision) {
		t.Errorf("the file is of revision %s, its header says %d", got, revision)
	}
	for i := range c.ids() {
		c.stop(i + 1)
	}

	fresh := newProcCluster(t, 3)
	var sums, clusters []string
	for _, i := range fresh.ids() {
		n := fresh.nodes[i]
		procCommand(t, 0, "restore", file, "--data-dir", n.dataDir, "--id", fmt.Sprint(i), "--cluster", fresh.list)
		out := procCommand(t, 0, "inspect", n.dataDir)
		sums, clusters = append(sums, procField(t, out, "  sha256")), append(clusters, procField(t, out, "cluster"))
		if procField(t, out, "  keys") != procField(t, text, "  keys") || procField(t, out, "  bytes") != procField(t, text, "  bytes") {
			t.Errorf("the backup:\n%s\nrestored:\n%s", text, out)
		}
	}
	if len(slices.Compact(sums)) != 1 || len(slices.Compact(clusters)) != 1 {
		t.Errorf("the nodes differ: %v %v", sums, clusters)
	}
	fresh.start()
	for _, i := range fresh.ids() {
		fresh.wantGet(i, "binary", binary)
		for n := range 200 {
			fresh.wantGet(i, fmt.Sprintf("fixed/%d", n), fmt.Sprint("value ", n))
		}
		for n, k := range counters {
			r := fresh.do(http.MethodGet, i, "/"+k.key, nil)
			if got, err := strconv.ParseInt(r.body, 10, 64); err != nil || got < before[n] || got > after[n] {
				t.Errorf("node %d: %s is %v, want %d to %d", i, k.key, r, before[n], after[n])
			}
		}
	}
	tag := fresh.put(2, "new", "1")
	if got, err := strconv.ParseUint(strings.Trim(tag, `"`), 10, 64); err != nil || got <= revision+1_000_000_000 {
		t.Errorf("a new write has the ETag %s; the backup was of revision %d", tag, revision)
	}
	fresh.kill(1, 2, 3)
	fresh.start() // with the same command lines
	fresh.wantGet(3, "new", "1")
}

// Guarantee: a file that is not a whole backup is refused, and nothing is made of it.
func TestProcDamagedBackup(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	for i := range 50 {
		c.put(1, fmt.Sprint("key/", i), strings.Repeat("value ", 1000))
	}
	whole := []byte(c.do(http.MethodGet, 1, "/v1/snapshot", nil).body)
	dir := t.TempDir()
	file, to := filepath.Join(dir, "file"), filepath.Join(dir, "to")
	for what, b := range map[string][]byte{
		"empty": nil, "cut in the middle": whole[:len(whole)/2], "cut at the end": whole[:len(whole)-1], "twice": append(slices.Clone(whole), whole...),
		"flipped": append(append(slices.Clone(whole[:70000]), whole[70000]^1), whole[70001:]...), "newer": append([]byte("RKVSTATE\xff"), whole[9:]...),
		"not a backup": []byte("<html>"),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		out := procCommand(t, 1, "restore", file, "--data-dir", to)
		if _, err := os.Stat(to); !os.IsNotExist(err) || !strings.Contains(out, file) {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		procCommand(t, 1, "inspect", file)
	}
}

// Guarantee: when the majority is gone for good, the survivor goes on as a cluster of its own with its old command line,
// does not mingle with what is left of the old one, and grows back to three.
func TestProcRecover(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	for i := range 100 {
		c.put(i%3+1, fmt.Sprintf("key/%d", i), fmt.Sprint("value ", i))
	}
	last := c.put(1, "last", "before")
	c.wantGet(1, "last", "before") // so node 1 has it
	c.kill(2, 3)
	c.kill(1)
	n := c.nodes[1]
	was := procField(t, procCommand(t, 0, "inspect", n.dataDir), "cluster")
	out := procCommand(t, 1, "recover", "--data-dir", n.dataDir)
	for _, want := range []string{"MAY BE LOST", "node 2 at " + procURL(c.nodes[2].peerPort), "node 3 at", "reaches entry", "last written", "Nothing was done"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	out = procCommand(t, 0, "recover", "--data-dir", n.dataDir, "--force-new-cluster")
	if _, err := os.Stat(n.dataDir + ".before-recovery-1/wal"); err != nil || !strings.Contains(out, "MAY BE LOST") || !strings.Contains(out, "before-recovery-1") {
		t.Errorf("%v\n%s", err, out)
	}
	if now := procField(t, procCommand(t, 0, "inspect", n.dataDir), "cluster"); now == was {
		t.Errorf("the cluster is still %s", now)
	}
	c.start(1)
	c.waitVoters(1, 1)
	c.wantGet(1, "last", "before")
	for i := range 100 {
		c.wantGet(1, fmt.Sprintf("key/%d", i), fmt.Sprint("value ", i))
	}
	old, err := strconv.ParseUint(strings.Trim(last, `"`), 10, 64)
	tag := c.put(1, "last", "after")
	if now, err2 := strconv.ParseUint(strings.Trim(tag, `"`), 10, 64); err != nil || err2 != nil || now <= old+1_000_000_000 {
		t.Errorf("ETag %s after %s", tag, last)
	}

	// The others come back from the dead: a majority of the old cluster, which reaches the survivor at its old place.
	term := c.status(1).Term
	c.launch(2)
	c.launch(3)
	procEventually(t, procReadyWithin, "the old ones have a leader", func() error {
		if s := c.status(2); s.Leader != 2 && s.Leader != 3 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	for i := range 20 { // for two seconds
		c.put(1, "last", fmt.Sprint("after ", i))
		c.wantGet(1, "last", fmt.Sprint("after ", i))
		time.Sleep(100 * time.Millisecond)
	}
	c.wantGet(2, "last", "before")
	if s := c.status(1); s.Leader != 1 || s.Term != term {
		t.Errorf("the survivor was disturbed: %+v, its term was %d", s, term)
	}
	c.waitVoters(1, 1)
	c.kill(2, 3)

	for _, i := range []int{2, 3} {
		n := c.nodes[i]
		if err := os.RemoveAll(n.dataDir); err != nil {
			t.Fatal(err)
		}
		if r := c.do(http.MethodPost, 1, fmt.Sprint("/", i), []byte(procURL(n.peerPort))); r.status != http.StatusNoContent {
			t.Fatalf("POST /%d: %v", i, r)
		}
		n.args = c.args(n, c.list, "--join")
		c.start(i)
	}
	c.waitVoters(1, 1, 2, 3)
	c.put(3, "last", "again three")
	c.kill(1)
	procEventually(t, procReadyWithin, "the two others go on", func() error {
		if r := c.do(http.MethodGet, 2, "/last", nil); r.status != http.StatusOK || r.body != "again three" {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.wantGet(3, "key/42", "value 42")
	c.start(1)
}

// Guarantee: inspect works beside a running node, and tells a sound directory from a damaged one.
func TestProcInspect(t *testing.T) {
	c := newProcCluster(t, 1, "--snapshot-count", "200", "--check-interval", "0") // so that the log ends with a write
	c.start()
	k := c.count(1, "counter")
	for range 5 {
		out := procCommand(t, 0, "inspect", c.nodes[1].dataDir)
		if procField(t, out, "in use") == "" || procField(t, out, "node") != "1" {
			t.Error(out)
		}
	}
	k.end()
	c.wantGet(1, "counter", fmt.Sprint(k.acked.Load()))
	status := c.status(1)
	c.stop(1)
	dir := c.nodes[1].dataDir
	out := procCommand(t, 0, "inspect", dir)
	if strings.Contains(out, "in use") || !strings.Contains(out, fmt.Sprintf("\n  index          %d\n", status.AppliedIndex)) {
		t.Errorf("applied was %d:\n%s", status.AppliedIndex, out)
	}
	snaps, err := filepath.Glob(filepath.Join(dir, "snap", "*.state"))
	if err != nil || len(snaps) != 1 {
		t.Fatal(snaps, err)
	}
	data, err := os.ReadFile(snaps[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 8
	if err := os.WriteFile(snaps[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := procCommand(t, 1, "inspect", dir); !strings.Contains(procField(t, out, "DAMAGED"), snaps[0]) || procField(t, out, "node") != "1" {
		t.Error(out)
	}
	if out := procCommand(t, 1, "recover", "--force-new-cluster", "--data-dir", dir); !strings.Contains(out, snaps[0]) {
		t.Error(out)
	}
}

// procDial asks for a backup and reads no more of it than that it has begun.
func procDial(t *testing.T, port int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "GET /v1/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	const begun = "HTTP/1.1 200 OK"
	status := make([]byte, len(begun))
	if _, err := io.ReadFull(conn, status); err != nil || string(status) != begun {
		t.Fatalf("asked for a backup: %q, %v", status, err)
	}
	return conn
}

// Guarantee: a reader that takes nothing of its backup stalls no write and is cut off after half a minute, and does not
// keep a node from stopping.
func TestProcSlowBackupReader(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	for i := range 40 { // more than the sockets' buffers hold
		c.put(1, fmt.Sprint("large/", i), strings.Repeat(fmt.Sprint("x", i), 1<<18))
	}
	port := c.nodes[1].clientPort
	conn := procDial(t, port)
	var slowest time.Duration
	began := time.Now()
	for i := 0; time.Since(began) < 29*time.Second; i++ {
		start := time.Now()
		c.put(1, "small", fmt.Sprint(i))
		slowest = max(slowest, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
	if strings.Contains(c.nodes[1].output(), "broke off") {
		t.Error("it was cut off too soon")
	}
	if slowest > 2*time.Second {
		t.Errorf("a write took %v", slowest)
	}
	procEventually(t, 20*time.Second, "the reader is cut off", func() error {
		if !strings.Contains(c.nodes[1].output(), "broke off") {
			return fmt.Errorf("after %v it is not", time.Since(began))
		}
		return nil
	})
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn) // how a connection ends differs
	if len(got) == 0 || bytes.HasSuffix(got, []byte("0\r\n\r\n")) {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-20):])
	}
	t.Logf("cut off after %v and %d bytes; the slowest write took %v", time.Since(began), len(got), slowest)

	procDial(t, port)
	procDial(t, port)
	if r := c.do(http.MethodGet, 1, "/v1/snapshot", nil); r.status != http.StatusTooManyRequests {
		t.Errorf("a third backup beside two: %d", r.status)
	}
	start := time.Now()
	c.stop(1)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}
