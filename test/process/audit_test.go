//go:build unix

package process

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	secretToken = "s3cr3t-t0ken-7f9a"
	secretValue = "s3cr3t-va1ue-7f9a"
)

// secretly gives a cluster rights, of which secretToken has all, an audit log of everything,
// and a log of everything.
func (c *procCluster) secretly() (auditLog func(i int) string) {
	c.t.Helper()
	rights := filepath.Join(c.dir, "rights.yaml")
	text := fmt.Sprintf(`entries:
  - name: deployer
    tokens: ["sha256:%x"]
    rights: all
anonymous:
  - {right: [read, write], prefixes: ["open/"]}
`, sha256.Sum256([]byte(secretToken)))
	if err := os.WriteFile(rights, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	file := func(i int) string { return filepath.Join(c.dir, fmt.Sprintf("audit%d.log", i)) }
	for i, n := range c.nodes {
		n.args = append(n.args, "--auth-file", rights, "--audit-log", file(i), "--audit-reads", "--log-level", "debug", "--pprof")
	}
	return func(i int) string {
		text, err := os.ReadFile(file(i))
		if err != nil {
			c.t.Fatal(err)
		}
		return string(text)
	}
}

// Guarantee: no token and no value gets into the log of a node, at its most talkative, into its
// audit log, into what a client is told of an error, or into the process's command line.
func TestProcSecretsStaySecret(t *testing.T) {
	c := newProcCluster(t, 1)
	auditLog := c.secretly()
	c.start()
	client := procClient(10 * time.Second)
	told := ""
	ask := func(method, path, body string, headers ...string) {
		t.Helper()
		r := procDo(client, method, c.url(1)+path, []byte(body), headers...)
		if r.err != nil {
			t.Errorf("%s %s: %v", method, path, r.err)
		}
		if told += fmt.Sprintln(r.header); r.status >= 400 {
			told += r.body
		}
	}
	const right = "Bearer " + secretToken
	for _, authorization := range []string{
		right, "", "Bearer x" + secretToken, "Basic " + secretToken, secretToken, "bearer  " + secretToken, "Bearer " + secretToken + " x", "Bearer " + strings.Repeat(secretToken, 50),
	} {
		var who []string
		if authorization != "" {
			who = []string{"Authorization", authorization}
		}
		json := append([]string{"Content-Type", "application/json"}, who...)
		for _, path := range []string{"/open/k", "/app/k", "/v1/kv/app/k", "/v1/kv?key=app/k"} {
			ask("PUT", path, secretValue, who...)
			ask("PUT", path, secretValue, append([]string{"If-Match", `"999999"`}, who...)...)
			ask("PUT", path, secretValue, append([]string{"Idempotency-Key", "once"}, who...)...)
			ask("PUT", path, secretValue+"x", append([]string{"Idempotency-Key", "once"}, who...)...) // 422
			ask("PUT", path, strings.Repeat(secretValue, 1<<17), who...)                              // too large
			ask("GET", path, "", who...)
		}
		ask("POST", "/v1/kv?prefix=jobs/", secretValue, who...)
		ask("POST", "/v1/txn", `{"if":[{"key":"app/k","value":"`+secretValue+`"}],"then":[{"put":{"key":"app/k","value":"`+secretValue+`"}}]}`, json...)
		ask("POST", "/v1/txn", `{"then":[{"put":{"key":"app/k","value":"`+secretValue+`","ttl":"never"}}]}`, json...)
		ask("POST", "/v1/txn", `{"then":[{"put":{"key":"app/k","value":{"`+secretValue+`":1}}}]}`, json...)
		ask("POST", "/v1/txn", `{"then":[{"put":{"key":"app/k","value":"`+secretValue, json...)
		ask("POST", "/v1/add?key=app/k", "1", who...) // what is there is no number
		ask("GET", "/v1/kv?prefix=app/", "", who...)
		ask("GET", "/v1/members", "", who...)
		ask("GET", "/v1/watch?after_revision=x", "", who...)
		ask("DELETE", "/v1/members/9", "", who...)
		ask("GET", "/nothing/here?token="+secretToken, "", who...)
	}
	// What no client library sends.
	for _, head := range []string{
		"PUT /app/raw HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + right + "\r\nAuthorization: " + right + "\r\nContent-Length: 17\r\n\r\n" + secretValue,
		"PUT /app/raw HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + right + "\r\nContent-Length: x\r\n\r\n" + secretValue,
		"PUT /app/raw HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization : " + right + "\r\n\r\n",
		"PUT /app/raw HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + right + "\x00\r\n\r\n",
		"Authorization: " + right + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.url(1), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, head)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			body, _ := io.ReadAll(resp.Body) // it may be cut off
			told += string(body)
		}
		_ = conn.Close()
	}
	if r := procDo(client, "GET", c.url(1)+"/v1/kv/app/k", nil, "Authorization", right); r.body != secretValue+"x" && r.body != secretValue {
		t.Errorf("the value is not there: %v", r)
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.nodes[1].cmd.Process.Pid))
	if err != nil {
		t.Log(err) // not everywhere
	}
	c.signal(1, syscall.SIGTERM)
	c.waitExit(1, 0, 10*time.Second)
	for what, text := range map[string]string{"log": c.nodes[1].output(), "audit log": auditLog(1), "answers": told, "command line": string(command)} {
		for _, secret := range []string{"s3cr3t-t0ken", "s3cr3t-va1ue"} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("the %s has it: …%s…", what, text[max(0, i-300):min(len(text), i+100)])
			}
		}
	}
	if text := auditLog(1); strings.Count(text, "\n") < 100 || !strings.Contains(text, `"name":"deployer"`) || !strings.Contains(text, `"code":"unauthenticated"`) {
		t.Errorf("the audit log: %s", procTail(text))
	}
}

// Guarantee: an audit log that cannot be written at the start is exit 1, before anything is
// made; a full disk later is said, and stops nobody; - is stdout, where nothing else goes.
func TestProcAuditLog(t *testing.T) {
	dir := t.TempDir()
	for file, want := range map[string]string{"data/audit.log": "outside of the data directory", "none/audit.log": "no such file", ".": "not a directory", "/dev/full": "a device"} {
		if file[0] != '/' {
			file = filepath.Join(dir, file)
		}
		code, out := procRun(t, nil, "--data-dir", filepath.Join(dir, "data"), "--audit-log", file)
		if code != 1 || !strings.Contains(out, want) || !strings.Contains(out, "--audit-log") {
			t.Errorf("%s: exit %d\n%s", file, code, procTail(out))
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("there is a data directory")
	}

	c := newProcCluster(t, 1)
	c.nodes[1].args = append(c.nodes[1].args, "--audit-log", "-", "--log-format", "json")
	c.start()
	c.put(1, "a", "1")
	c.signal(1, syscall.SIGTERM)
	c.waitExit(1, 0, 10*time.Second)
	var events []string
	for text := range strings.SplitSeq(c.nodes[1].output(), "\n") {
		var line struct{ Event string }
		if json.Unmarshal([]byte(text), &line) == nil && line.Event != "" {
			events = append(events, line.Event)
		}
	}
	if got := strings.Join(events, " "); got != "start request stop" {
		t.Errorf("on stdout there is %s\n%s", got, procTail(c.nodes[1].output()))
	}
}
