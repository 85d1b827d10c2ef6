//go:build unix

package process

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"testing"
)

// Guarantee: rights are switched on by a rolling restart, and until a node has the file it
// serves nobody, unless it is told to; a node that loses the file later is closed, too, also
// after the cluster was stopped as a whole.
func TestProcRightsFailClosed(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	file := filepath.Join(t.TempDir(), "rights.yaml")
	testkit.Must(t, os.WriteFile(file, []byte("anonymous: all\n"), 0o600))
	c.start()
	if r := c.do(http.MethodPut, 1, "/v1/kv/k", []byte("v")); r.status != http.StatusCreated {
		t.Fatal(r)
	}
	plain := map[int][]string{}
	for i := 1; i <= 3; i++ {
		plain[i] = c.nodes[i].args
	}
	with := func(i int, flags ...string) {
		c.nodes[i].args = append(append([]string{}, plain[i]...), flags...)
	}
	closed := func(i int) {
		t.Helper()
		procEventually(t, procReadyWithin, fmt.Sprintf("node %d serves nobody", i), func() error {
			for _, target := range []string{"/k", "/v1/kv/k?consistency=stale", "/v1/status", "/metrics", "/readyz?verbose"} {
				if r := c.do(http.MethodGet, i, target, nil); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "--auth-file") {
					return fmt.Errorf("GET %s: %v", target, r)
				}
			}
			return nil
		})
		if r := c.do(http.MethodGet, i, "/livez", nil); r.status != http.StatusOK {
			t.Errorf("node %d: /livez: %v", i, r)
		}
		if r := c.do(http.MethodGet, i, "/readyz", nil); r.status != http.StatusServiceUnavailable {
			t.Errorf("node %d: /readyz: %v", i, r)
		}
	}
	with(1, "--auth-file", file)
	c.restartAs(1, "")
	for i := 1; i <= 3; i++ {
		c.wantGet(i, "k", "v") // as long as everybody may do everything
	}
	with(2, "--auth=off")
	c.restartAs(2, "")
	const less = "anonymous:\n- {right: [read, write], prefixes: ['']}\n- {right: status}\n"
	testkit.Must(t, os.WriteFile(file, []byte(less), 0o600))
	closed(3)
	c.wantGet(2, "k", "v")
	with(2, "--auth-file", file)
	c.restartAs(2, "")
	with(3, "--auth-file", file)
	c.restartAs(3, "")
	for i := 1; i <= 3; i++ {
		c.wantGet(i, "k", "v")
	}
	c.stop(3)
	with(3)
	c.launch(3)
	closed(3)
}
