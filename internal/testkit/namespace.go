package testkit

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// InNamespace runs the test once more, alone, in a namespace of its own: a network
// with only a loopback interface (unshare -n), or a tree of mounts that goes with
// it (unshare -m). It reports whether it is the one inside. env returns what the
// one inside finds in its environment besides; it is called outside, and may be nil.
func InNamespace(t *testing.T, kind string, env func() []string) bool {
	t.Helper()
	if os.Getenv("RAFTKV_TEST_NAMESPACE") == t.Name() {
		return true
	}
	NeedRoot(t)
	NeedTools(t, "unshare", "ip", "mount")
	self, err := os.Executable()
	Must(t, err)
	cmd := exec.CommandContext(t.Context(), "unshare", "--kill-child", kind, self, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "2m")
	cmd.Env = append(os.Environ(), "RAFTKV_TEST_NAMESPACE="+t.Name())
	if env != nil {
		cmd.Env = append(cmd.Env, env()...)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
	return false
}
