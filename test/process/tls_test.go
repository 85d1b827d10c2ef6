//go:build unix

package process

import (
	"os"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"testing"
)

// Guarantee: what docs/tls.md has its reader do works as it stands there.
func TestTLSDoc(t *testing.T) {
	testkit.NeedTools(t, "jq")
	markdown, err := os.ReadFile("docs/tls.md")
	testkit.Must(t, err)
	// Its ports are moved, so that no other document waits for it: 12379 and 12380 become 12479 and 12480.
	text := builtBefore(t, strings.NewReplacer("2379", "2479", "2380", "2480").Replace(string(markdown)))
	runTutorialAt(t, "docs/tls.md", text, new(sync.Mutex), text)
}
