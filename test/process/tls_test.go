//go:build unix

package process

import (
	"os"
	"raftkv/internal/testkit"
	"strings"
	"testing"
)

// tlsDocCluster begins the part of docs/tls.md that needs TLS between members.
const tlsDocCluster = "\n## Three members\n"

// Guarantee: what docs/tls.md has its reader do works as it stands there.
func TestTLSDoc(t *testing.T) {
	testkit.NeedTools(t, "jq")
	markdown, err := os.ReadFile("docs/tls.md")
	testkit.Must(t, err)
	text, _, found := strings.Cut(string(markdown), tlsDocCluster)
	if !found {
		t.Fatalf("there is no %q", strings.TrimSpace(tlsDocCluster))
	}
	runTutorial(t, text)
}
