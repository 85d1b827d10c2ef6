//go:build unix

package process

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

const frontServed = `raftkv_front_requests_total{result="served"}`

// frontClients write a value and read it back, with two plain requests. Each is a program
// that gets the URL of a key and the value, and prints what it reads.
var frontClients = map[string][]string{
	"curl":              {"sh", "-c", `curl -sS --fail -X PUT --data-binary "$2" "$1" && curl -sS --fail "$1"`, "sh"},
	"curl, one process": {"sh", "-c", `curl -sS --fail -X PUT -d "$2" "$1" --next -sS --fail "$1"`, "sh"},
	"http.client": {"python3", "-c", `
import http.client, sys, urllib.parse
url = urllib.parse.urlsplit(sys.argv[1])
c = http.client.HTTPConnection(url.netloc)
c.request("PUT", url.path, sys.argv[2].encode())
a = c.getresponse(); a.read(); assert a.status == 201, a.status
c.request("GET", url.path)
sys.stdout.write(c.getresponse().read().decode())`},
	"urllib": {"python3", "-c", `
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], sys.argv[2].encode(), method="PUT")).read()
sys.stdout.write(urllib.request.urlopen(sys.argv[1]).read().decode())`},
	"fetch": {"node", "-e", `
const [url, value] = process.argv.slice(1);
(async () => {
	const put = await fetch(url, {method: "PUT", body: value});
	if (put.status !== 201) throw put.status;
	process.stdout.write(await (await fetch(url)).text());
})()`},
}

// Guarantee: the plain requests of the usual clients are served by the front, each of
// them, also by way of nginx; and all of them work without it.
func TestProcFrontClients(t *testing.T) {
	for _, fronted := range []bool{true, false} {
		if fronted && !*procFront {
			continue
		}
		t.Run(fmt.Sprintf("front=%v", fronted), func(t *testing.T) {
			var flags []string
			if !fronted && *procFront {
				flags = []string{"--front=false"} // which the test's own flag adds itself
			}
			c := newProcCluster(t, 1, flags...)
			c.start()
			// rises runs a client, and checks that the front has served both its requests.
			rises := func(t *testing.T, base string, client func(url, value string) (string, error)) {
				t.Helper()
				var before float64
				if fronted {
					before = c.metric(1, frontServed)
				}
				key, value := "/v1/kv/"+strings.ReplaceAll(t.Name(), "/", "."), "the value of "+t.Name()
				if got, err := client(base+key, value); err != nil || got != value {
					t.Fatalf("it has read %q, want %q; %v", got, value, err)
				}
				if !fronted {
					return
				}
				if served := c.metric(1, frontServed) - before; served != 2 {
					t.Errorf("the front has served %v of its requests, want its PUT and its GET", served)
				}
			}
			inGo := func(url, value string) (string, error) {
				client := c.newClient(10 * time.Second)
				defer client.CloseIdleConnections()
				if r := procDo(client, http.MethodPut, url, []byte(value)); r.status != http.StatusCreated {
					return "", fmt.Errorf("PUT: %v", r)
				}
				r := procDo(client, http.MethodGet, url, nil)
				return r.body, r.err
			}
			t.Run("Go", func(t *testing.T) { rises(t, c.url(1), inGo) })
			for name, command := range frontClients {
				t.Run(name, func(t *testing.T) {
					if _, err := exec.LookPath("node"); command[0] == "node" && err != nil {
						t.Skip("cannot run here: node is missing, which nothing else needs") // where all tests must run, too
					}
					testkit.NeedTools(t, command[0], "curl")
					rises(t, c.url(1), func(url, value string) (string, error) { return frontRun(t, command, url, value) })
				})
			}
			t.Run("nginx", func(t *testing.T) {
				url := frontNginx(t, c)
				// nginx has asked whether the node is ready, by a connection that net/http
				// has got and nginx has kept.
				c.stop(1)
				c.start()
				rises(t, url, inGo)
			})
			if all := c.do(http.MethodGet, 1, "/metrics", nil).body; strings.Contains(all, "raftkv_front") != fronted {
				t.Errorf("there are metrics of the front: %v", !fronted)
			}
		})
	}
}

// frontRun runs a client's program, and returns what it prints.
func frontRun(t *testing.T, command []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), procReadyWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], args...)...)
	cmd.Env = append(os.Environ(), "NO_PROXY=*", "no_proxy=*")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, said.String())
	}
	return string(out), err
}

// frontNginx starts nginx in front of the one node, as docs/proxies.md has it for three.
func frontNginx(t *testing.T, c *procCluster) (url string) {
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	testkit.NeedTools(t, "nginx")
	three := &procCluster{t: t, nodes: map[int]*procNode{1: c.nodes[1], 2: c.nodes[1], 3: c.nodes[1]}}
	return newProcProxy(t, three, "nginx", nginxAround, func(file string) []string { return []string{"nginx", "-c", file, "-e", "stderr"} }).url
}
