//go:build unix

package process

import (
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Guarantee: a pod beside a Service named raftkv starts, without --port too, and says what it ignored; values stay out of the log.
func TestProcKubernetesVariables(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0") // as the peer port: the process ends by itself
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	env := []string{
		"RAFTKV_PORT=tcp://10.0.0.7:9121", "RAFTKV_SERVICE_HOST=10.0.0.7", "RAFTKV_SERVICE_PORT=9121", "RAFTKV_PORT_9121_TCP=tcp://10.0.0.7:9121",
		"RAFTKV_DATADIR=not-to-be-told", "RAFTKV_ENDPOINTS=x",
	}
	code, out := procRun(t, env, "--cluster", "http://"+taken.Addr().String())
	if code != config.ExitFault || !strings.Contains(out, "cannot listen on") {
		t.Errorf("exit %d, want %d for the port that is taken\n%s", code, config.ExitFault, out)
	}
	for text, want := range map[string]int{`"RAFTKV_PORT"`: 1, "9121}": 1, `"RAFTKV_DATADIR"`: 1, "RAFTKV_": 2, "not-to-be-told": 0, "10.0.0.7": 0} {
		if got := strings.Count(out, text); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, want, out)
		}
	}
}

// procInNamespace is testkit.InNamespace with the program, which is built once, outside.
func procInNamespace(t *testing.T, kind string) bool {
	t.Helper()
	return testkit.InNamespace(t, kind, func() []string {
		bin, err := procBinary()
		testkit.Must(t, err)
		return []string{"RAFTKV_TEST_BINARY=" + bin}
	})
}

// Guarantee: peers speak to each other directly, whatever proxies the environment names.
func TestProcNoProxyBetweenPeers(t *testing.T) {
	if !procInNamespace(t, "-n") {
		return
	}
	// Go never asks a proxy for loopback addresses, so the peers need others; here they lead nowhere else.
	for _, args := range []string{"link set lo up", "addr add 10.77.0.1/32 dev lo", "addr add 10.77.0.2/32 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Int64
	go func() {
		for {
			conn, err := proxy.Accept()
			if err != nil {
				return
			}
			seen.Add(1)
			conn.Close()
		}
	}()
	defer proxy.Close()
	for _, name := range config.ProxyVariables {
		t.Setenv(name, "http://"+proxy.Addr().String())
	}
	for _, scheme := range []string{"http", "https"} {
		c := newProcSecure(t, 2)
		flags := func(n *procNode) []string {
			if scheme == "http" {
				return nil
			}
			return c.tlsFlags(n.id)
		}
		c.list = fmt.Sprintf("%s://10.77.0.1:%d,%s://10.77.0.2:%d", scheme, c.nodes[1].peerPort, scheme, c.nodes[2].peerPort)
		for _, n := range c.nodes {
			n.args = c.args(n, c.list, flags(n)...)
		}
		c.start()
		c.put(1, "k", "v")
		c.wantGet(2, "k", "v")
		// A third joins, so that a stream, a message and the routes of our own have all been used.
		n := c.newNode(3)
		n.args = c.args(n, fmt.Sprintf("%s,3=%s://10.77.0.1:%d", c.list, scheme, n.peerPort), append(flags(n), "--join")...)
		c.start(3)
		c.waitVoters(1, 1, 2, 3)
		if got := seen.Load(); got != 0 {
			t.Errorf("%s: the proxy was asked %d times", scheme, got)
		}
	}
	// The listener does see who asks: this is no test that cannot fail.
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}, Timeout: 5 * time.Second}
	if resp, err := client.Get("http://10.77.0.1:1/"); err == nil {
		resp.Body.Close()
	}
	if seen.Load() == 0 {
		t.Error("the proxy sees nobody")
	}
}
