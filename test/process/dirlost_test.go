//go:build unix

package process

import (
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/storage/dirwatch"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: a node whose files are removed or renamed under it ends within a second or little more, exit 1, and says
// why. Without this it goes on to acknowledge what is gone at the next start.
func TestProcDirectoryLost(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(dir string) error{
		"removed":      os.RemoveAll,
		"renamed":      func(dir string) error { return os.Rename(dir, dir+".moved") },
		"log removed":  func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) },
		"mark removed": func(dir string) error { return os.Remove(filepath.Join(dir, "mark")) },
		"segment removed": func(dir string) error {
			return os.Remove(filepath.Join(dir, "wal", "0000000000000000-0000000000000000.wal"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newProcCluster(t, 1)
			c.start()
			if r := c.do(http.MethodPut, 1, "/k", []byte("v")); r.status != http.StatusNoContent {
				t.Fatalf("PUT: %v", r)
			}
			time.Sleep(2 * dirwatch.Interval) // it has looked at what there is, and goes on
			testkit.Must(t, do(c.nodes[1].dataDir))
			out := c.waitExit(1, config.ExitFault, procStopWithin)
			for _, want := range []string{"changed under the running node", c.nodes[1].dataDir} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in what it said:\n%s", want, procTail(out))
				}
			}
		})
	}
}
