//go:build unix

package process

import (
	"fmt"
	"net/http"
	"raftkv/internal/web"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// atFreePorts replaces the ports that commands name by those of a cluster and by others that are free.
func atFreePorts(t *testing.T, c *procCluster, commands []docCommand) []docCommand {
	t.Helper()
	ports := map[string]int{}
	for i, name := range map[int]string{1: "1", 2: "2", 3: "3"} {
		ports[name+"2379"], ports[name+"2380"] = c.nodes[i].peerPort, c.nodes[i].clientPort
	}
	replace := func(text string) string {
		return readmePort.ReplaceAllStringFunc(text, func(address string) string {
			port := strings.TrimPrefix(address, "127.0.0.1:")
			if ports[port] == 0 {
				ports[port] = procFreePort(t)
			}
			return fmt.Sprintf("127.0.0.1:%d", ports[port])
		})
	}
	commands = slices.Clone(commands)
	for i, cmd := range commands {
		commands[i].code, commands[i].want = replace(cmd.code), slices.Clone(cmd.want)
		for j, line := range cmd.want {
			commands[i].want[j] = replace(line)
		}
	}
	return commands
}

// Guarantee: what docs/api.md says of each request is so, over real HTTP, whether the node that is asked leads or follows:
// its commands work as they stand, print what it says, and have seen each status of its table.
func TestAPIDoc(t *testing.T) {
	wantDoc(t, "docs/api.md", func(c *procCluster, text string) {
		wantAnswered(t, c.do(http.MethodGet, 1, "/metrics", nil).body, text)
	})
}

var (
	apiRow     = regexp.MustCompile("(?m)^\\| `([A-Z, ]+) (/[^` ]*)`.*? \\| ([0-9, ]+) \\|.*\\| (.*`TestAPIDoc`.*) \\|$")
	apiCounted = regexp.MustCompile(`(?m)^raftkv_request_duration_seconds_count\{(.*)\} `)
)

// wantAnswered checks in the metrics of a node that it has answered as those rows of the document's table say that TestAPIDoc
// shows them.
func wantAnswered(t *testing.T, metrics, document string) {
	t.Helper()
	counted := make(map[string]bool)
	for _, m := range apiCounted.FindAllStringSubmatch(metrics, -1) {
		counted[m[1]] = true
	}
	rows := apiRow.FindAllStringSubmatch(document, -1)
	if len(rows) < 30 {
		t.Fatalf("the table has %d rows: is it read rightly?", len(rows))
	}
	for _, row := range rows {
		path, query, _ := strings.Cut(row[2], "?")
		for method := range strings.SplitSeq(row[1], ", ") {
			for status := range strings.SplitSeq(row[3], ", ") {
				// An ID in a path is one by its place: the label of POST /KEY is that of POST /ID.
				label := fmt.Sprintf(`method="%s",route="%s",status="%s"`, method, web.RouteLabel(method, path, query), status)
				if !counted[label] {
					t.Errorf("no command has shown %s %s answer %s", method, row[2], status)
				}
			}
		}
	}
}
