//go:build unix

package process

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: one node alone keeps what it acknowledged, and never shows less than that, not even in the first moments
// after a crash (raftexample answered 404 until the next election).
func TestProcSingleNode(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	if tag := c.put(1, "my-key", "hello"); tag != `"1"` {
		t.Errorf("first ETag %s, want \"1\"", tag)
	}
	c.wantGet(1, "my-key", "hello")
	if tag := c.put(1, "my-key", "hello"); tag != `"2"` {
		t.Errorf("ETag after the same value again %s, want \"2\": that is a change too", tag)
	}
	for round, end := range []func(){func() { c.kill(1) }, func() { c.stop(1) }} {
		want := fmt.Sprintf("value %d", round)
		tag := c.put(1, "my-key", want)
		end()
		c.launch(1)
		procEventually(t, procReadyWithin, "the value is back", func() error {
			r := c.do(http.MethodGet, 1, "/my-key", nil)
			if r.err != nil || r.status == http.StatusServiceUnavailable {
				return fmt.Errorf("%v", r)
			}
			if r.status != http.StatusOK || r.body != want || r.header.Get("ETag") != tag {
				t.Fatalf("after restart %d: GET: %v, ETag %s, want %q, %s", round, r, r.header.Get("ETag"), want, tag)
			}
			return nil
		})
	}
	c.waitReady(1) // a moment after the first answer
	for _, path := range []string{"/livez", "/readyz", "/readyz?verbose", "/metrics", "/v1/status", "/v1/members", "/"} {
		if r := c.do(http.MethodGet, 1, path, nil); r.status != http.StatusOK || r.body == "" {
			t.Errorf("GET %s: %v, want 200 and a body", path, r)
		}
	}
}

// Guarantee: a read on any node reflects every write acknowledged anywhere before it began.
func TestProcThreeNodesReadWhatWasWritten(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	for n := range 300 {
		value := fmt.Sprint("value ", n)
		c.put(n%3+1, "k", value)
		c.wantGet((n+1)%3+1, "k", value)
		c.wantGet((n+2)%3+1, "k", value)
	}
}

// Guarantee: a node that was away serves what was written meanwhile, and until it can, says 503 rather than 404.
func TestProcStoppedNodeCatchesUp(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "my-key", "old")
	for _, end := range []func(int){c.stop, func(i int) { c.kill(i) }} {
		for i := 1; i <= 3; i++ {
			end(i)
			value := fmt.Sprintf("written without node %d at %v", i, time.Now())
			c.put(i%3+1, "my-key", value)
			c.put(i%3+1, "new-key", value)
			c.launch(i)
			procEventually(t, procReadyWithin, "the node reads the new value", func() error {
				r := c.do(http.MethodGet, i, "/new-key", nil)
				if r.err != nil || r.status == http.StatusServiceUnavailable {
					return fmt.Errorf("%v", r)
				}
				if r.status != http.StatusOK || r.body != value {
					t.Fatalf("node %d after its restart: %v, want 503 or 200 %q", i, r, value)
				}
				return nil
			})
			c.waitReady(i)
			c.wantGet(i, "my-key", value)
		}
	}
}

// Guarantee: conditions are decided inside the log, and an answer tells the current ETag.
func TestProcConditions(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	expect := func(what string, r procReply, status int, tag string) {
		t.Helper()
		if r.err != nil || r.status != status || r.header.Get("ETag") != tag {
			t.Errorf("%s: %v, ETag %q, want %d, %q", what, r, r.header.Get("ETag"), status, tag)
		}
	}
	for _, key := range []string{"/short", "/v1/kv/long"} {
		// DELETE of the short form is about nodes: keys are deleted in the long form only.
		long := "/v1/kv/" + strings.TrimPrefix(key[1:], "v1/kv/")
		expect("GET missing", c.do("GET", 1, key, nil), 404, "")
		expect("PUT If-Match * missing", c.do("PUT", 1, key, []byte("a"), "If-Match", "*"), 412, "")
		expect("PUT If-Match REV missing", c.do("PUT", 2, key, []byte("a"), "If-Match", `"1"`), 412, "")
		expect("DELETE missing", c.do("DELETE", 3, long, nil), 404, "")

		r := c.do("PUT", 2, key, []byte("a"), "If-None-Match", "*")
		tag := r.header.Get("ETag")
		if r.status != procCreated(key) || tag == "" {
			t.Fatalf("PUT If-None-Match *: %v, ETag %q", r, tag)
		}
		expect("GET", c.do("GET", 3, key, nil), 200, tag)
		head := c.do("HEAD", 1, key, nil)
		expect("HEAD", head, 200, tag)
		if head.body != "" || head.header.Get("Content-Length") != "1" {
			t.Errorf("HEAD: body %q, Content-Length %q", head.body, head.header.Get("Content-Length"))
		}
		r = c.do("GET", 1, key, nil, "If-None-Match", tag)
		expect("GET If-None-Match", r, 304, tag)
		r = c.do("PUT", 3, key, []byte("b"), "If-None-Match", "*")
		expect("PUT If-None-Match * again", r, 412, tag)
		procWantProblem(t, "412", r, 412, "precondition_failed")
		expect("PUT If-Match wrong", c.do("PUT", 1, key, []byte("b"), "If-Match", `"9999999"`), 412, tag)
		c.wantGet(2, key[1:], "a")

		r = c.do("PUT", 1, key, []byte("b"), "If-Match", tag)
		next := r.header.Get("ETag")
		if r.status != 204 || next == tag || next == "" {
			t.Errorf("PUT If-Match: %v, ETag %q after %q", r, next, tag)
		}
		expect("DELETE If-Match old", c.do("DELETE", 2, long, nil, "If-Match", tag), 412, next)
		expect("DELETE If-None-Match *", c.do("DELETE", 2, long, nil, "If-None-Match", "*"), 412, next)
		if r := c.do("DELETE", 2, long, nil, "If-Match", next); r.status != 204 {
			t.Errorf("DELETE If-Match: %v, want 204", r)
		}
		r = c.do("GET", 3, key, nil)
		expect("GET deleted", r, 404, "")
		procWantProblem(t, "404", r, 404, "not_found")

		for _, bad := range [][]string{
			{"If-Match", `"1", "2"`}, {"If-Match", `1`}, {"If-Match", `"1`},
			{"If-Match", `"1"`, "If-Match", `"1"`}, {"If-None-Match", "*", "If-None-Match", "*"}, {"If-Match", ""},
		} {
			procWantProblem(t, fmt.Sprint("PUT with ", bad), c.do("PUT", 1, key, []byte("b"), bad...), 400, "bad_request")
		}
		// What no ETag of this store can be never holds, and costs no log entry.
		for _, never := range []string{`W/"1"`, `"x"`, `"01"`} {
			expect("PUT If-Match "+never, c.do("PUT", 1, key, []byte("b"), "If-Match", never), 412, "")
			expect("DELETE If-Match "+never, c.do("DELETE", 2, long, nil, "If-Match", never), 412, "")
		}
	}
	// One of many wins, wherever they ask.
	won := make(chan int)
	for n := range 24 {
		go func() {
			won <- c.do("PUT", n%3+1, "/v1/kv/lock", fmt.Append(nil, n), "If-None-Match", "*").status
		}()
	}
	count := map[int]int{}
	for range 24 {
		count[<-won]++
	}
	if count[201] != 1 || count[412] != 23 {
		t.Errorf("24 PUTs with If-None-Match: *: %v, want one 201 and 23 times 412", count)
	}
}

// Guarantee: a value comes back byte for byte after snapshots, kill -9 and restart.
func TestProcBytesSurviveSnapshotAndKill(t *testing.T) {
	c := newProcCluster(t, 3, "--snapshot-count", "10")
	c.start()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	values := map[string]string{"raw": "\xff\xfe\x00\x80", "empty": "", "all": strings.Repeat(string(all), 40), "text": "grüße\n"}
	tags := map[string]string{}
	for key, value := range values {
		tags[key] = c.put(1, key, value)
	}
	// A snapshot waits until the log since the last one outweighs the state: so write a few times the state.
	for n := range 200 {
		c.put(n%3+1, fmt.Sprint("filler-", n%20), strings.Repeat(fmt.Sprint(n%10), 2000))
	}
	for i := 1; i <= 3; i++ {
		procEventually(t, 20*time.Second, "a snapshot was taken", func() error {
			if s := c.status(i); s.SnapshotIndex < 50 {
				return fmt.Errorf("snapshot_index %d", s.SnapshotIndex)
			}
			return nil
		})
		if files, err := os.ReadDir(filepath.Join(c.nodes[i].dataDir, "snap")); err != nil || len(files) == 0 {
			t.Errorf("node %d: snap directory: %v, %v", i, files, err)
		} else if len(files) > 20 {
			t.Errorf("node %d keeps %d files in snap/: old ones are not removed", i, len(files))
		}
	}
	c.kill(1, 2, 3)
	c.start()
	for i := 1; i <= 3; i++ {
		for key, value := range values {
			c.wantGet(i, key, value)
			if r := c.do("GET", i, "/"+key, nil); r.header.Get("ETag") != tags[key] {
				t.Errorf("node %d: ETag of %s is %s, was %s", i, key, r.header.Get("ETag"), tags[key])
			}
		}
	}
}

// Guarantee: a key is its bytes: nothing is cleaned, redirected or mixed up with a query.
func TestProcKeysAreLiteral(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	// path → key; two paths of one key must be one key, all others differ.
	paths := []struct{ path, same string }{
		{"/a", "/v1/kv/%61"}, {"/a/", "/a%2F"}, {"/a//b", "/v1/kv/a//b"}, {"/a/../b", "/v1/kv/a/..%2fb"}, {"/b", "/b"},
		{"/./a", "/v1/kv/./a"}, {"/a%20b", "/v1/kv/a%20b"}, {"/a+b", "/a%2Bb"}, {"/a%3Fb", "/v1/kv/a%3fb"}, {"/%E2%82%AC", "/v1/kv/€"},
		{"/a%25", "/v1/kv/a%25"}, {"//a", "/v1/kv//a"}, {"/v1/kv/v1/kv", "/v1/kv/v1%2Fkv"}, {"/v1/kv/metrics", "/v1/kv/%6detrics"},
		{"/v1x", "/v1/kv/v1x"}, {"/1", "/v1/kv/1"}, {"/" + strings.Repeat("k", 4096), "/v1/kv/" + strings.Repeat("k", 4096)},
	}
	for n, p := range paths {
		if r := c.do("PUT", 1, p.path, fmt.Append(nil, n)); r.status != procCreated(p.path) {
			t.Errorf("PUT %.60s: %v, want %d", p.path, r, procCreated(p.path))
		}
	}
	for n, p := range paths {
		for _, path := range []string{p.path, p.same} {
			if r := c.do("GET", 1, path, nil); r.status != 200 || r.body != fmt.Sprint(n) {
				t.Errorf("GET %.60s: %v, want 200 %q", path, r, fmt.Sprint(n))
			}
		}
	}
	for _, path := range []string{"/%00", "/a%00b", "/%ff", "/" + strings.Repeat("k", 4097), "/v1/kv/", "/v1/kv/%C0%AF",
		"/a?x=1", "/a?consistency=maybe", "/a?consistency=stale&consistency=stale", "/a?consistency=%zz", "/v1/kv/a?ttl"} {
		procWantProblem(t, "GET "+path[:min(len(path), 50)], c.do("GET", 1, path, nil), 400, "bad_request")
	}
	// The short form does not reach into the reserved segments, and says which form does.
	for _, path := range []string{"/v1", "/v1/x", "/ui/x", "/metrics", "/livez", "/readyz", "/debug/x", "/%76%31/x", "/readyz/x", "/v1%2Fx"} {
		r := c.do("PUT", 1, path, []byte("x"))
		if r.status < 400 || r.status >= 500 {
			t.Errorf("PUT %s: %v, want a refusal", path, r)
		}
		if path == "/ui/x" || path == "/debug/x" || path == "/readyz/x" {
			procWantProblem(t, "PUT "+path, r, 400, "bad_request")
			if !strings.Contains(strings.ReplaceAll(r.body, "%2F", "/"), "/v1/kv"+path) {
				t.Errorf("PUT %s: %v does not name the form that works", path, r)
			}
		}
	}
}

// Guarantee: what cannot be done is refused with its code before it touches anything.
func TestProcRefusals(t *testing.T) {
	c := newProcCluster(t, 1, "--max-value-size", "1KiB", "--allowed-host", "kv.example.org")
	c.start()
	c.put(1, "k", strings.Repeat("v", 1024))
	procWantProblem(t, "large PUT", c.do("PUT", 1, "/k", make([]byte, 1025)), 413, "too_large")
	procWantProblem(t, "large PUT", c.do("PUT", 1, "/v1/kv/k", make([]byte, 10<<20)), 413, "too_large")
	for _, m := range []string{"PATCH", "OPTIONS", "MOVE"} {
		r := c.do(m, 1, "/k", nil)
		procWantProblem(t, m, r, 405, "method_not_allowed")
		if r.header.Get("Allow") == "" {
			t.Errorf("%s: 405 without Allow", m)
		}
	}
	for _, m := range []string{"POST", "DELETE"} {
		for _, path := range []string{"/my-key", "/03", "/0x3", "/-1", "/+1", "/1/", "/18446744073709551616", "/1e3", "/%31%20"} {
			r := c.do(m, 1, path, []byte("http://127.0.0.1:9999"))
			procWantProblem(t, m+" "+path, r, 400, "bad_request")
			if !strings.Contains(r.body, "/v1/kv/") {
				t.Errorf("%s %s: %v does not name the right form", m, path, r)
			}
		}
	}
	port := fmt.Sprint(":", c.nodes[1].clientPort)
	for host, ok := range map[string]bool{
		"127.0.0.1" + port: true, "localhost" + port: true, "[::1]" + port: true, "kv.example.org" + port: true, "kv.example.org": true, "10.1.2.3": true,
		"evil.example" + port: false, "localhost.evil.example": false, "kv.example.org.evil.example": false,
	} {
		for _, m := range []string{"GET", "PUT"} {
			r := c.do(m, 1, "/k", []byte("v"), "Host", host)
			if ok && r.status/100 != 2 {
				t.Errorf("%s with Host %s: %v, want 2xx", m, host, r)
			} else if !ok {
				procWantProblem(t, m+" with Host "+host, r, 421, "wrong_host")
			}
		}
	}
	// What checks the health of a node may speak HTTP/1.0, without a Host.
	for _, path := range []string{"/readyz", "/livez", "/v1/status", "/k"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.url(1), "http://"))
		testkit.Must(t, err)
		testkit.Must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		testkit.Must(t, err)
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") {
			t.Errorf("GET %s without Host: %q, %v, want 200", path, answer, err)
		}
		testkit.Must(t, conn.Close())
	}
	c.put(1, "k", "v")
	r := c.do("PUT", 1, "/k", []byte("evil"), "Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example")
	procWantProblem(t, "cross-site PUT", r, 403, "cross_origin")
	c.wantGet(1, "k", "v")
	r = c.do("GET", 1, "/k", nil)
	if r.header.Get("Content-Type") != "application/octet-stream" || r.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers of a value: %v", r.header)
	}
}

// procCreated is the status of a PUT that creates a key: the short form knows only 204.
func procCreated(path string) int {
	if strings.HasPrefix(path, "/v1/kv/") {
		return http.StatusCreated
	}
	return http.StatusNoContent
}
