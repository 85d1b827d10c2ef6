//go:build unix

package process

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// docBlock returns the one block of a Markdown file that is fenced as lang.
func docBlock(t *testing.T, file, lang string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?ms)^```"+lang+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	if len(m) != 1 {
		t.Fatalf("%s has %d blocks of %s, want 1", file, len(m), lang)
	}
	return m[0][1]
}

// procProxy is a real proxy in front of a cluster of three nodes, with the configuration of docs/proxies.md.
type procProxy struct {
	t      *testing.T
	c      *procCluster
	url    string
	dir    string
	client *http.Client
}

// newProcProxy starts a proxy: around adds to the configuration what only this test needs, and command runs the file.
func newProcProxy(t *testing.T, c *procCluster, lang string, around func(dir, conf string) string, command func(file string) []string) *procProxy {
	t.Helper()
	port := procFreePort(t)
	p := &procProxy{t: t, c: c, url: procURL(port), dir: t.TempDir(), client: procClient(20 * time.Second)}
	conf := docBlock(t, "docs/proxies.md", lang)
	for from, to := range map[string]int{"8080": port, "12380": c.nodes[1].clientPort, "22380": c.nodes[2].clientPort, "32380": c.nodes[3].clientPort} {
		from = "127.0.0.1:" + from
		if !strings.Contains(conf, from) {
			t.Fatalf("the configuration lacks %s", from)
		}
		conf = strings.ReplaceAll(conf, from, fmt.Sprintf("127.0.0.1:%d", to))
	}
	file, logFile := filepath.Join(p.dir, "proxy.conf"), filepath.Join(p.dir, "log")
	if err := os.WriteFile(file, []byte(around(p.dir, conf)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args := command(file)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, procAttr(syscall.SIGKILL)
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it has a session, and so a group, of its own
		_ = cmd.Wait()
		if out, err := os.ReadFile(logFile); err == nil && t.Failed() {
			t.Logf("%s:\n%s", lang, procTail(string(out)))
		}
	})
	procEventually(t, procReadyWithin, lang+" serves", func() error {
		if r := p.do(http.MethodGet, "/readyz", nil); r.status != http.StatusOK {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	return p
}

func (p *procProxy) do(method, path string, body []byte, headers ...string) procReply {
	return procDo(p.client, method, p.url+path, body, headers...)
}

// wantLiteralKeys checks that each path is a key of its own, the same as without the proxy.
func (p *procProxy) wantLiteralKeys() {
	p.t.Helper()
	paths := []string{
		"/a/b", "/a//b", "/a///b", "/a/./b", "/x/../a/b", "/a/b/", "/a/b/..", "/v1/kv//a", "/v1/kv/a/../b", "/v1/kv/a",
		"/a%2F%2Fc", "/a/%2E%2E/d", "/a%20b", "/a+b", "/a%3Fb", "/a%23b", "/a%25b", "/%C3%BC", "/a;b=c", "/a:b@c", "/a%5Cb", "/~a", "/a%7Cb",
		"/v1/kv/" + url.PathEscape(strings.Repeat("\u00fc", 4096/2)),
	}
	for _, path := range paths {
		if r := p.do(http.MethodPut, path, []byte(path)); r.status/100 != 2 { // of several paths of one key the first creates it
			p.t.Errorf("PUT %.60s: %v", path, r)
		}
	}
	for _, path := range paths {
		for name, r := range map[string]procReply{"the proxy": p.do(http.MethodGet, path, nil), "a node": p.c.do(http.MethodGet, 1, path, nil)} {
			if r.status != http.StatusOK || r.body != path {
				p.t.Errorf("GET %.60s at %s: %v", path, name, r)
			}
		}
	}
	// %2F is /, with the proxy as without.
	if r := p.do(http.MethodGet, "/a%2Fb", nil); r.body != "/a/b" {
		p.t.Errorf("GET /a%%2Fb: %v", r)
	}
}

// wantConditions checks what ETags do.
func (p *procProxy) wantConditions() {
	p.t.Helper()
	first := p.do(http.MethodPut, "/etag", []byte("1")).header.Get("ETag")
	for _, test := range []struct {
		method, header, tag string
		want                int
	}{
		{http.MethodGet, "If-None-Match", first, http.StatusNotModified},
		{http.MethodPut, "If-None-Match", "*", http.StatusPreconditionFailed},
		{http.MethodPut, "If-Match", `"1000000"`, http.StatusPreconditionFailed},
		{http.MethodPut, "If-Match", first, http.StatusNoContent},
		{http.MethodPut, "If-Match", first, http.StatusPreconditionFailed},
		{http.MethodGet, "If-None-Match", first, http.StatusOK},
	} {
		r := p.do(test.method, "/etag", nil, test.header, test.tag)
		direct := p.c.do(http.MethodGet, 1, "/etag", nil).header.Get("ETag")
		if r.status != test.want || r.header.Get("ETag") != direct || first == "" {
			p.t.Errorf("%s with %s %s: %v, ETag %s, want %d and %s", test.method, test.header, test.tag, r, r.header.Get("ETag"), test.want, direct)
		}
	}
}

// wantBodies checks the largest value, one beyond, and that answers come whole and as the node gave them.
func (p *procProxy) wantBodies() {
	p.t.Helper()
	large := bytes.Repeat([]byte{0, 1, 0xff, '\n'}, 1<<18)
	if r := p.do(http.MethodPut, "/large", large); r.status != http.StatusNoContent {
		p.t.Errorf("PUT of %d bytes: %v", len(large), r)
	}
	if r := p.do(http.MethodGet, "/large", nil); r.body != string(large) {
		p.t.Errorf("GET of %d bytes: %d, %d bytes", len(large), r.status, len(r.body))
	}
	procWantProblem(p.t, "a value that is too large", p.do(http.MethodPut, "/large", append(large, 0)), http.StatusRequestEntityTooLarge, "too_large")
	procWantProblem(p.t, "no such key", p.do(http.MethodGet, "/nothing", nil), http.StatusNotFound, "not_found")
	procWantProblem(p.t, "another name", p.do(http.MethodGet, "/large", nil, "Host", "attacker.example"), http.StatusMisdirectedRequest, "wrong_host")
	if r := p.do(http.MethodHead, "/large", nil); r.status != http.StatusOK || r.header.Get("Content-Length") != fmt.Sprint(len(large)) {
		p.t.Errorf("HEAD: %v, %v", r, r.header)
	}
	backup := filepath.Join(p.dir, "backup")
	if r := p.do(http.MethodGet, "/v1/snapshot", nil); r.status != http.StatusOK || os.WriteFile(backup, []byte(r.body), 0o600) != nil {
		p.t.Errorf("GET /v1/snapshot: %v", r)
	}
	if code, out := procRun(p.t, nil, "inspect", backup); code != config.ExitOK {
		p.t.Errorf("the backup: exit %d\n%s", code, out)
	}
}

// wantOneNodeLess checks that a node is stopped, and started again, without a failed request.
func (p *procProxy) wantOneNodeLess() {
	p.t.Helper()
	requests := func(when string) {
		p.t.Helper()
		for n := range 40 {
			key, value := fmt.Sprintf("/%s/%d", when, n), fmt.Sprint(n)
			if r := p.do(http.MethodPut, key, []byte(value)); r.status != http.StatusNoContent {
				p.t.Errorf("%s: PUT %s: %v", when, key, r)
			}
			if r := p.do(http.MethodGet, key, nil); r.status != http.StatusOK || r.body != value {
				p.t.Errorf("%s: GET %s: %v", when, key, r)
			}
		}
	}
	p.c.stop(1)
	requests("stopped")
	p.c.start(1)
	requests("back")
}

// nginxAround makes a whole configuration of nginx of what goes into its http block.
func nginxAround(dir, conf string) string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n" // its workers write below dir
	}
	return fmt.Sprintf("%sdaemon off;\nworker_processes 1;\npid %[2]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+
		"client_body_temp_path %[2]s/body;\nproxy_temp_path %[2]s/proxy;\nfastcgi_temp_path %[2]s/f;\nuwsgi_temp_path %[2]s/u;\nscgi_temp_path %[2]s/s;\n%[3]s}\n",
		user, dir, conf)
}

// Guarantee: with the lines of docs/proxies.md, nginx and HAProxy change nothing: keys, conditions, values, errors.
func TestProcProxies(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	c := newProcCluster(t, 3)
	c.start()
	t.Run("nginx", func(t *testing.T) {
		testkit.NeedTools(t, "nginx")
		p := newProcProxy(t, c, "nginx", nginxAround, func(file string) []string { return []string{"nginx", "-c", file, "-e", "stderr"} })
		p.wantLiteralKeys()
		p.wantConditions()
		p.wantBodies()
		p.wantOneNodeLess()
	})
	t.Run("haproxy", func(t *testing.T) {
		testkit.NeedTools(t, "haproxy")
		socket := filepath.Join(t.TempDir(), "s")
		around := func(_, conf string) string {
			return fmt.Sprintf("global\n    stats socket %s level admin\n\n%s", socket, conf)
		}
		p := newProcProxy(t, c, "haproxy", around, func(file string) []string { return []string{"haproxy", "-db", "-f", file} })
		p.wantLiteralKeys()
		p.wantConditions()
		p.wantBodies()
		wantHAProxySees(t, socket, "UP", "UP", "UP")
		c.stop(1)
		wantHAProxySees(t, socket, "DOWN", "UP", "UP")
		c.start(1)
		wantHAProxySees(t, socket, "UP", "UP", "UP")
		p.wantOneNodeLess()
	})
	// The shortest health check there is, in HTTP/1.0 and without a Host.
	t.Run("haproxy-plain-httpchk", func(t *testing.T) {
		testkit.NeedTools(t, "haproxy")
		socket := filepath.Join(t.TempDir(), "s")
		around := func(_, conf string) string {
			plain := regexp.MustCompile(`(?m)^ *http-check send .*\n`).ReplaceAllString(conf, "")
			plain = strings.Replace(plain, "option httpchk\n", "option httpchk GET /readyz\n", 1)
			return fmt.Sprintf("global\n    stats socket %s level admin\n\n%s", socket, plain)
		}
		newProcProxy(t, c, "haproxy", around, func(file string) []string { return []string{"haproxy", "-db", "-f", file} })
		wantHAProxySees(t, socket, "UP", "UP", "UP")
	})
}

// wantHAProxySees waits until HAProxy says this of its servers.
func wantHAProxySees(t *testing.T, socket string, want ...string) {
	t.Helper()
	procEventually(t, procReadyWithin, fmt.Sprintf("HAProxy sees %v", want), func() error {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "show stat\n"); err != nil {
			return err
		}
		stat, err := io.ReadAll(conn)
		if err != nil {
			return err
		}
		var got []string
		for line := range strings.Lines(string(stat)) {
			// pxname, svname, …, the 18th is the state: "UP 1/2" while it changes.
			if f := strings.Split(line, ","); len(f) > 18 && f[0] == "raftkv" && f[1] != "BACKEND" {
				got = append(got, strings.Fields(f[17])[0])
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("it sees %v", got)
		}
		return nil
	})
}
