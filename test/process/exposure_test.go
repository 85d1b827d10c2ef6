//go:build unix

package process

import (
	"strings"
	"testing"
)

// Guarantee: with rights, a node does not open a port to the network on which they would be
// worth nothing: it ends at once, exit 1, and says what to do, before it opens anything.
func TestProcRightsInTheClear(t *testing.T) {
	for args, want := range map[string]string{
		"--host 0.0.0.0":                  "the client port 0.0.0.0:9121",
		"--listen-peer 0.0.0.0:9021":      "the peer port 0.0.0.0:9021",
		"--host 0.0.0.0 --listen-peer :1": "and the peer port",
	} {
		code, out := procRun(t, nil, append(strings.Fields(args), "--auth-file", "rights.yaml")...)
		if code != 1 || !strings.Contains(out, want) || !strings.Contains(out, "--insecure-tokens") || strings.Contains(out, "cannot listen") {
			t.Errorf("%s: exit %d\n%s", args, code, procTail(out))
		}
	}
}
