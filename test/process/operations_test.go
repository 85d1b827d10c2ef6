//go:build unix

package process

import (
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Guarantee: what docs/operations.md has an operator do works as it stands there, and each metric that it names is in
// docs/metrics.md, which TestMetricsAreDocumented holds against the program.
func TestOperationsDoc(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole clusters")
	}
	testkit.NeedTools(t, "bash", "curl", "jq")
	t.Parallel()
	markdown, err := os.ReadFile("docs/operations.md")
	testkit.Must(t, err)
	metrics, err := os.ReadFile("docs/metrics.md")
	testkit.Must(t, err)
	names := regexp.MustCompile("`(raftkv_[a-z_]+)`").FindAllStringSubmatch(string(markdown), -1)
	for _, name := range names {
		if !strings.Contains(string(metrics), "| `"+name[1]+"` |") {
			t.Errorf("docs/operations.md names the metric %s, which docs/metrics.md does not have", name[1])
		}
	}
	if len(names) < 10 {
		t.Errorf("docs/operations.md names %d metrics: are they read rightly?", len(names))
	}

	// Its ports are moved, so that no other document waits for it: 12379 and 12380 become 12579 and 12580.
	text := strings.NewReplacer("2379", "2579", "2380", "2580").Replace(string(markdown))
	commands, err := docCommands(text)
	testkit.Must(t, err)
	ports := make(map[string]bool)
	for _, m := range regexp.MustCompile(`\b[1-6]25(?:79|80)\b`).FindAllString(text, -1) {
		ports[m] = true
	}
	for port := range ports {
		awaitPort(t, port)
	}
	bin, err := procBinary()
	testkit.Must(t, err)
	dir := t.TempDir()
	testkit.Must(t, os.Symlink(bin, filepath.Join(dir, "raftkv")))
	start := time.Now()
	out, err := runDoc(t, "docs/operations.md", commands, dir, 3*time.Minute)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d commands in %v", len(commands), time.Since(start))
}
