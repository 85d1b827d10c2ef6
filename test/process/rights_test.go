//go:build unix

package process

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: a client is who its certificate says, by HTTP/1.1, on the fast path and handed
// over, and by HTTP/2; a token that is sent decides alone; a file that is changed is in force
// on a running node, a broken one is not, and a node does not start with it.
func TestProcRights(t *testing.T) {
	dir := t.TempDir()
	ca := newProcCA(t, dir, "clients")
	file := filepath.Join(dir, "rights.yaml")
	write := func(web string) {
		t.Helper()
		testkit.Must(t, os.WriteFile(file, fmt.Appendf(nil, `entries:
- {name: web, cert: web.example, rights: [{right: [read, write], prefixes: [%s]}]}
- {name: root, tokens: "sha256:%x", rights: all}
- {name: probe, cert: probe.example, rights: [{right: status}]}
`, web, sha256.Sum256([]byte("t-root"))), 0o600))
	}
	write("web/")
	c := newTLSCluster(t, ca, 1, "--trusted-ca-file", ca.file, "--auth-file", file)
	probe := ca.pair(-time.Hour, time.Hour, "probe.example")
	c.secure(ca.client(&probe))
	c.start()
	web, member := ca.pair(-time.Hour, time.Hour, "web.example"), ca.pair(-time.Hour, time.Hour, "1.raftkv")
	for _, http2 := range []bool{false, true} {
		for _, headers := range [][]string{nil, {"Te", "trailers"}} {
			ask := func(p string, client *http.Client, method, target string, status int, more ...string) {
				t.Helper()
				if r := procDo(client, method, c.url(1)+target, []byte("v"), append(more, headers...)...); r.status != status {
					t.Errorf("HTTP/2 %v, %q, as %s: %s %s: %v, want %d", http2, headers, p, method, target, r, status)
				}
			}
			as := c.clientBy(ca.client(&web), http2)
			ask("web", as, "PUT", "/web/k", 204)
			ask("web", as, "PUT", "/v1/kv/other/k", 403)
			ask("web", as, "GET", "/v1/status", 403)
			ask("web", as, "PUT", "/web/k", 401, "Authorization", "Bearer wrong")
			ask("web", as, "PUT", "/other/k", 204, "Authorization", "Bearer t-root")
			for name, client := range map[string]*http.Client{"nobody": c.clientBy(ca.client(nil), http2), "a member": c.clientBy(ca.client(&member), http2)} {
				ask(name, client, "PUT", "/web/k", 401)
				ask(name, client, "PUT", "/web/k", 204, "Authorization", "Bearer t-root")
			}
		}
	}

	becomes := func(what, target string, status int) {
		t.Helper()
		as := c.clientBy(ca.client(&web), false)
		testkit.Eventually(t, what, func() bool { return procDo(as, "PUT", c.url(1)+target, []byte("v")).status == status })
	}
	write("web2/")
	becomes("the new rights are in force", "/web2/k", 204)
	becomes("the old ones are not", "/web/k", 403)
	testkit.Must(t, os.WriteFile(file, []byte("anonymous: everything"), 0o600))
	testkit.Eventually(t, "the broken file is told of", func() bool {
		return strings.Contains(c.do("GET", 1, "/readyz?verbose", nil).body, "the file of rights is not in force")
	})
	becomes("the rights stay", "/web2/k", 204)
	c.stop(1)
	if code, out := procRun(t, nil, "--auth-file", file, "--data-dir", filepath.Join(dir, "none")); code != 1 || !strings.Contains(out, file) || !strings.Contains(out, "line 1") {
		t.Errorf("exit %d\n%s", code, procTail(out))
	}
}
