//go:build unix

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Guarantee: what Kubernetes sets for a Service named raftkv is no port of this server's, and nothing else is ignored.
func TestServicePort(t *testing.T) {
	for _, value := range []string{"tcp://10.0.0.7:9121", "udp://10.0.0.7:9121", "sctp://10.0.0.7:9121", "tcp://[fd00::7]:9121"} {
		c, err := parseConfig(nil, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		want := defaultConfig()
		want.PortIgnored = true
		if err != nil || !reflect.DeepEqual(c, want) {
			t.Errorf("RAFTKV_PORT=%s: %+v, %v; want the defaults", value, c, err)
		}
		c, err = parseConfig([]string{"--port", "12380"}, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		if err != nil || c.Port != 12380 || c.PortIgnored {
			t.Errorf("RAFTKV_PORT=%s with --port: %+v, %v", value, c, err)
		}
		_, err = parseConfig(nil, mapEnv(map[string]string{"RAFTKV_ID": value}))
		wantProblems(t, err, []string{"RAFTKV_ID"})
	}
	for _, value := range []string{"http://10.0.0.7:9121", "tcp:", "tcp://", "10.0.0.7:9121", "tcp://a b", "xtcp://10.0.0.7:9121"} {
		_, err := parseConfig(nil, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		wantProblems(t, err, []string{"RAFTKV_PORT", value})
	}
}

// Guarantee: a variable with a typing error is named, one that belongs to others is not.
func TestUnknownVariables(t *testing.T) {
	environ := []string{
		"HOME=/root", "RAFTKV=1", "raftkv_port=1", "NOT_RAFTKV_PORT=1",
		"RAFTKV_PORT=tcp://10.0.0.7:9121", "RAFTKV_SERVICE_HOST=10.0.0.7", "RAFTKV_SERVICE_PORT=9121", "RAFTKV_SERVICE_PORT_HTTP=9121",
		"RAFTKV_PORT_9121_TCP=tcp://10.0.0.7:9121", "RAFTKV_PORT_9121_TCP_PROTO=tcp", "RAFTKV_PORT_9121_TCP_PORT=9121", "RAFTKV_PORT_9121_TCP_ADDR=10.0.0.7",
		"RAFTKV_PEER_2_SERVICE_HOST=10.0.0.7", "RAFTKV_PEER_2_SERVICE_PORT=1", "RAFTKV_PEER_2_PORT=tcp://10.0.0.7:1", "RAFTKV_PEER_2_PORT_53_UDP_ADDR=10.0.0.7",
		"RAFTKV_ENDPOINTS=x", "RAFTKV_TOKEN=x", "RAFTKV_FENCE=1", "RAFTKV_KEY=x", "RAFTKV_EMPTY=",
		"RAFTKV_DATADIR=/data", "RAFTKV_PORT_9121=1", "RAFTKV_SERVICE=x", "RAFTKV_TOKENS=secret", "RAFTKV_VERSION=1.2.3", "RAFTKV_=1",
	}
	for _, s := range new(config).settings(new(string)) {
		environ = append(environ, envName(s.flag)+"=x")
	}
	want := []string{"RAFTKV_", "RAFTKV_DATADIR", "RAFTKV_PORT_9121", "RAFTKV_SERVICE", "RAFTKV_TOKENS", "RAFTKV_VERSION"}
	if got := unknownVariables(environ); !slices.Equal(got, want) {
		t.Errorf("unknown are %q, want %q", got, want)
	}
}

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
	if code != exitFault || !strings.Contains(out, "cannot listen on") {
		t.Errorf("exit %d, want %d for the port that is taken\n%s", code, exitFault, out)
	}
	for text, want := range map[string]int{`"RAFTKV_PORT"`: 1, "9121}": 1, `"RAFTKV_DATADIR"`: 1, "RAFTKV_": 2, "not-to-be-told": 0, "10.0.0.7": 0} {
		if got := strings.Count(out, text); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, want, out)
		}
	}
}

// procInNamespace runs the test once more, alone, in a namespace of its own: a network with only a loopback interface
// (unshare -n), or a tree of mounts that goes with it (unshare -m). It reports whether it is the one inside.
func procInNamespace(t *testing.T, kind string) bool {
	t.Helper()
	if os.Getenv("RAFTKV_TEST_NAMESPACE") == t.Name() {
		return true
	}
	needRoot(t)
	needTools(t, "unshare", "ip", "mount")
	bin, err := procBinary() // built once, out here
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", kind, self, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "2m")
	cmd.Env = append(os.Environ(), "RAFTKV_TEST_NAMESPACE="+t.Name(), "RAFTKV_TEST_BINARY="+bin)
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v\n%s", err, out.String())
	}
	return false
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
	for _, name := range proxyVariables {
		t.Setenv(name, "http://"+proxy.Addr().String())
	}
	c := newProcCluster(t, 2)
	c.list = fmt.Sprintf("http://10.77.0.1:%d,http://10.77.0.2:%d", c.nodes[1].peerPort, c.nodes[2].peerPort)
	for _, n := range c.nodes {
		n.args = c.args(n, c.list)
	}
	c.start()
	c.put(1, "k", "v")
	c.wantGet(2, "k", "v")
	// A third joins, so that a stream, a message and the routes of our own have all been used.
	n := c.newNode(3)
	n.args = c.args(n, fmt.Sprintf("%s,3=http://10.77.0.1:%d", c.list, n.peerPort), "--join")
	c.start(3)
	c.waitVoters(1, 1, 2, 3)
	if got := seen.Load(); got != 0 {
		t.Errorf("the proxy was asked %d times", got)
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
