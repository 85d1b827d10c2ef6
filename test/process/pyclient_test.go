//go:build unix

package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"testing"
)

// Guarantee: a client can be written from docs/api.md alone. The one in Python gets through a leader and a follower what it
// should, and the next node when one is down.
func TestPythonClient(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	testkit.NeedTools(t, "python3")
	want, err := os.ReadFile("test/process/testdata/use_client.txt")
	testkit.Must(t, err)
	c := newProcCluster(t, 3)
	c.start()
	leader, follower := c.url(c.leader()), c.url(c.follower())
	nobody := procURL(procFreePort(t))
	for name, endpoints := range map[string][]string{"leader": {leader}, "follower": {follower, leader}, "next": {nobody, follower}} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-I", "-B", "test/process/testdata/use_client.py", filepath.Join("docs", "examples"), name + "/"}, endpoints...)
			cmd := exec.Command("python3", args...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if string(out) != string(want) {
				t.Errorf("it printed\n%s\ninstead of\n%s", out, want)
			}
		})
	}
}
