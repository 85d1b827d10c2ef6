//go:build unix

package process

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"syscall"
	"testing"
)

// nginx between clients and a node, as people set it up: one that keeps what it may, and one that compresses.

// startNginx starts an nginx with these server blocks, and waits until it listens on the ports.
func startNginx(t *testing.T, servers string, ports ...int) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin") // Debian has it there, out of people's way
	testkit.NeedTools(t, "nginx")
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;" // who may look into the test's directory
	}
	testkit.Must(t, os.WriteFile(conf, fmt.Appendf(nil, `daemon off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log; %[2]s
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	proxy_cache_path %[1]s/cache keys_zone=kept:1m;
%[3]s
}
`, dir, user, servers), 0o600))
	cmd := exec.Command("nginx", "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.SysProcAttr = procAttr(syscall.SIGTERM)
	testkit.Must(t, procStartCmd(cmd))
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // by the signal
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // fails when it has ended, which is as good
		<-ended
	})
	for _, port := range ports {
		procEventually(t, procReadyWithin, "nginx listens", func() error {
			select {
			case <-ended:
				log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
				t.Fatalf("nginx has ended: %s", log)
			default:
			}
			return procDo(http.DefaultClient, "GET", procURL(port)+"/livez", nil).err
		})
	}
}

// Guarantee: a cache between clients and a node serves no value, and no absence of one, that is not the newest, however
// it was told to keep answers; and it serves the node's state as it is.
func TestProcCacheBetween(t *testing.T) {
	port := procFreePort(t)
	c := newProcCluster(t, 1)
	startNginx(t, fmt.Sprintf(`server {
	listen 127.0.0.1:%d;
	proxy_cache kept;
	proxy_cache_valid 200 1m;
	proxy_cache_valid any 1m;
	add_header X-Cache $upstream_cache_status always;
	location / { proxy_pass %s; }
}`, port, c.url(1)), port)
	c.start()
	via := func(method, path string, body []byte, headers ...string) procReply {
		t.Helper()
		r := procDo(c.client, method, procURL(port)+path, body, headers...)
		if r.err != nil || r.header.Get("X-Cache") == "HIT" {
			t.Fatalf("%s %s: %v, cache %q", method, path, r, r.header.Get("X-Cache"))
		}
		return r
	}
	var applied string
	for n := range 5 {
		path := fmt.Sprintf("/k%d", n)
		if r := via("GET", path, nil); r.status != 404 {
			t.Fatalf("GET of no key: %v", r)
		}
		for m := range 3 {
			value := fmt.Sprint("value ", n, m)
			tag := c.put(1, path[1:], value)
			for _, target := range []string{path, "/v1/kv" + path, path + "?consistency=stale"} {
				if r := via("GET", target, nil); r.status != 200 || r.body != value || r.header.Get("ETag") != tag {
					t.Fatalf("GET %s by way of the cache: %v, ETag %s; want %q, %s", target, r, r.header.Get("ETag"), value, tag)
				}
			}
			// A condition is no matter of the cache's.
			if r := via("PUT", path, []byte("lost"), "If-Match", `"999999"`); r.status != 412 || r.header.Get("ETag") != tag {
				t.Fatalf("PUT If-Match by way of the cache: %v", r)
			}
		}
		now := via("GET", "/v1/status", nil).body
		if _, now, _ = strings.Cut(now, `"applied_index":`); now == applied {
			t.Fatalf("the status of a while ago: %s", now)
		}
		applied = now
		via("GET", "/metrics", nil)
		via("GET", "/v1/members", nil)
		via("GET", "/readyz", nil)
		via("GET", "/v1/nothing", nil)
	}
}

// Guarantee: what a proxy that compresses makes of a tag still tells that the value is unchanged, and a write under it is
// refused with the reason and the tag as it should be.
func TestProcCompressionBetween(t *testing.T) {
	port := procFreePort(t)
	c := newProcCluster(t, 1)
	startNginx(t, fmt.Sprintf(`server {
	listen 127.0.0.1:%d;
	gzip on;
	gzip_types *;
	location / { proxy_pass %s; }
}`, port, c.url(1)), port)
	c.start()
	strong := c.put(1, "k", strings.Repeat("a value that gets shorter ", 10))
	via := func(method string, headers ...string) procReply {
		return procDo(c.client, method, procURL(port)+"/k", []byte("other"), append(headers, "Accept-Encoding", "gzip")...)
	}
	r := via("GET")
	weak := r.header.Get("ETag")
	if r.status != 200 || r.header.Get("Content-Encoding") != "gzip" || weak != "W/"+strong {
		t.Fatalf("GET by way of the proxy: %v, ETag %s, %s; want one that it has weakened", r, weak, r.header.Get("Content-Encoding"))
	}
	for _, list := range []string{weak, strong, `"0", ` + weak} {
		if r := via("GET", "If-None-Match", list); r.status != http.StatusNotModified || !strings.Contains(r.header.Get("Cache-Control"), "no-cache") {
			t.Errorf("GET If-None-Match: %s: %v, want 304, with its Cache-Control", list, r)
		}
	}
	r = via("PUT", "If-Match", weak)
	procWantProblem(t, "PUT under a weak tag", r, 412, "precondition_failed")
	if r.header.Get("ETag") != strong || !strings.Contains(r.body, "weak") {
		t.Errorf("PUT under a weak tag: %v, ETag %s; want the reason, and %s", r, r.header.Get("ETag"), strong)
	}
	if r := via("PUT", "If-Match", r.header.Get("ETag")); r.status != http.StatusNoContent {
		t.Errorf("PUT under the tag that it was told: %v", r)
	}
}
