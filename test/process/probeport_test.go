//go:build unix

package process

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Guarantee: with --listen-metrics, probes and metrics are served on a port of their own, no
// key is, and the port ends with the node.
func TestProcMetricsPort(t *testing.T) {
	c := newProcCluster(t, 1)
	url := procURL(procFreePort(t))
	c.nodes[1].args = append(c.nodes[1].args, "--listen-metrics", strings.TrimPrefix(url, "http://"))
	c.start()
	c.put(1, "secret-key", "secret-value")
	client := procClient(10 * time.Second)
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ok", "/readyz?verbose": "has a leader", "/metrics": "raftkv_is_leader 1"} {
		if r := procDo(client, http.MethodGet, url+path, nil); r.status != 200 || !strings.Contains(string(r.body), want) || strings.Contains(string(r.body), "secret") {
			t.Errorf("%s: %v, want %q", path, r, want)
		}
	}
	for _, path := range []string{"/secret-key", "/v1/kv/secret-key", "/v1/members", "/v1/snapshot"} {
		procWantProblem(t, path, procDo(client, http.MethodGet, url+path, nil), 404, "no_such_path")
	}
	c.signal(1, syscall.SIGTERM)
	c.waitExit(1, 0, 10*time.Second)
	if r := procDo(client, http.MethodGet, url+"/livez", nil); r.err == nil {
		t.Errorf("the port outlives the node: %v", r)
	}
}
