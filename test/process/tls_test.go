//go:build unix

package process

import (
	"os"
	"raftkv/internal/testkit"
	"testing"
)

// Guarantee: what docs/tls.md has its reader do works as it stands there.
func TestTLSDoc(t *testing.T) {
	testkit.NeedTools(t, "jq")
	markdown, err := os.ReadFile("docs/tls.md")
	testkit.Must(t, err)
	runTutorial(t, string(markdown))
}
