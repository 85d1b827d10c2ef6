//go:build unix

package process

import (
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// runDocBesideOthers runs the commands of a document in a directory that has the program and nothing else, with free ports
// in place of those that the document names: 12379, 22380 and so on.
func runDocBesideOthers(t *testing.T, path string) {
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
	ports := make(map[string]string)
	text := regexp.MustCompile(`\b[1-6]23(?:79|80)\b`).ReplaceAllStringFunc(string(markdown), func(port string) string {
		if ports[port] == "" {
			ports[port] = strconv.Itoa(procFreePort(t))
		}
		return ports[port]
	})
	if port := regexp.MustCompile(`\}23(?:79|80)\b`).FindString(text); port != "" {
		t.Fatalf("%s puts a port together, with %s at its end, so that it cannot be replaced", path, port)
	}
	commands, err := docCommands(strings.Replace(text, "checkout=$PWD", "checkout="+docQuote(root), 1))
	testkit.Must(t, err)
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
	runDocBesideOthers(t, "docs/operations.md")
}

// Guarantee: a program in a module of its own uses package client as docs/client.md has it.
func TestClientDoc(t *testing.T) {
	testkit.NeedTools(t, "go")
	runDocBesideOthers(t, "docs/client.md")
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
