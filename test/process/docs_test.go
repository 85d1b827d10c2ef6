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

// runDocBesideOthers runs the commands of a document in a directory that has the program and nothing else. The document
// has the README's ports, which are moved to others that begin with the four digits of peer and client, so that no other
// document waits for it.
func runDocBesideOthers(t *testing.T, path, peer, client string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts whole clusters")
	}
	testkit.NeedTools(t, "bash", "curl", "jq")
	t.Parallel()
	markdown, err := os.ReadFile(path)
	testkit.Must(t, err)
	root, err := os.Getwd()
	testkit.Must(t, err)
	text := strings.NewReplacer("2379", peer, "2380", client, "checkout=$PWD", "checkout="+docQuote(root)).Replace(string(markdown))
	commands, err := docCommands(text)
	testkit.Must(t, err)
	ports := make(map[string]bool)
	for _, port := range regexp.MustCompile(`\b[1-6](?:`+peer+`|`+client+`)\b`).FindAllString(text, -1) {
		ports[port] = true
	}
	for port := range ports {
		awaitPort(t, port)
	}
	bin, err := procBinary()
	testkit.Must(t, err)
	dir := t.TempDir()
	testkit.Must(t, os.Symlink(bin, filepath.Join(dir, "raftkv")))
	start := time.Now()
	out, err := runDoc(t, path, commands, dir, 3*time.Minute)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d commands in %v", len(commands), time.Since(start))
}

// Guarantee: what docs/operations.md has an operator do works as it stands there.
func TestOperationsDoc(t *testing.T) {
	runDocBesideOthers(t, "docs/operations.md", "2579", "2580")
}

// Guarantee: a program in a module of its own uses package client as docs/client.md has it.
func TestClientDoc(t *testing.T) {
	testkit.NeedTools(t, "go")
	runDocBesideOthers(t, "docs/client.md", "2679", "2680")
}

// Guarantee: each metric that docs/operations.md names is in docs/metrics.md, which TestMetricsAreDocumented holds against
// the program.
func TestOperationsNameMetrics(t *testing.T) {
	page, err := os.ReadFile("docs/operations.md")
	testkit.Must(t, err)
	metrics, err := os.ReadFile("docs/metrics.md")
	testkit.Must(t, err)
	names := regexp.MustCompile("`(raftkv_[a-z_]+)`").FindAllStringSubmatch(string(page), -1)
	for _, name := range names {
		if !strings.Contains(string(metrics), "| `"+name[1]+"` |") {
			t.Errorf("docs/operations.md names the metric %s, which docs/metrics.md does not have", name[1])
		}
	}
	if len(names) < 10 {
		t.Errorf("docs/operations.md names %d metrics: are they read rightly?", len(names))
	}
}
