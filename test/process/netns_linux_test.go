package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// netLab is a cluster of processes, each in a network namespace of its own, with
// a bridge between them. The namespaces have no names: they end with the
// processes that hold them, and those with the test.
type netLab struct {
	*procCluster
	holders map[int]int // the process that holds a node's namespace; 0 is the bridge's
}

func newNetLab(t testing.TB, n int, flags ...string) *netLab {
	t.Helper()
	testkit.NeedRoot(t)
	testkit.NeedTools(t, "ip", "iptables", "nsenter", "sleep")
	c := newProcCluster(t, n, flags...)
	lab := &netLab{procCluster: c, holders: map[int]int{0: holdNetwork(t)}}
	lab.in(0, "ip", "link", "add", "br0", "type", "bridge")
	lab.in(0, "ip", "link", "set", "br0", "up")
	var urls []string
	for _, id := range c.ids() {
		lab.holders[id] = holdNetwork(t)
		port := fmt.Sprint("port", id)
		lab.in(0, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(lab.holders[id]))
		lab.in(0, "ip", "link", "set", port, "master", "br0", "up")
		lab.in(id, "ip", "addr", "add", labAddr(id)+"/24", "dev", "eth0")
		lab.in(id, "ip", "link", "set", "eth0", "up")
		lab.in(id, "ip", "link", "set", "lo", "up")
		urls = append(urls, lab.peerURL(id))
	}
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range c.ids() {
		node := c.nodes[id]
		node.args = c.args(node, strings.Join(urls, ","))
		node.bin = filepath.Join(c.dir, fmt.Sprint("in-network-", id))
		script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=/proc/%d/ns/net '%s' \"$@\"\n", lab.holders[id], bin)
		if err := os.WriteFile(node.bin, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lab.dialInside()
	return lab
}

// holdNetwork makes a network namespace that lasts as long as the test, and
// returns the process that holds it.
func holdNetwork(t testing.TB) int {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = procAttr(syscall.SIGKILL)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	if err := procStartCmd(cmd); err != nil {
		testkit.CannotRun(t, "no network namespace: "+err.Error())
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

func labAddr(id int) string { return fmt.Sprintf("10.99.0.%d", id) }

func (l *netLab) peerURL(id int) string {
	return fmt.Sprintf("http://%s:%d", labAddr(id), l.nodes[id].peerPort)
}

// in runs a command in a node's namespace.
func (l *netLab) in(id int, command ...string) string {
	l.t.Helper()
	args := append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", l.holders[id])}, command...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// dialInside has the cluster's client dial each node from within its namespace.
// A socket belongs to the one that its thread was in when it was made.
func (l *netLab) dialInside() {
	holders := map[string]int{}
	for id, node := range l.nodes {
		holders[strconv.Itoa(node.clientPort)] = l.holders[id]
		holders[strconv.Itoa(node.peerPort)] = l.holders[id]
	}
	dial := func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", holders[port]))
		if err != nil {
			return nil, err
		}
		defer there.Close()
		runtime.LockOSThread() // until it is back; else the thread ends with this goroutine
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return nil, err
		}
		defer home.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		return conn, err
	}
	l.client.Transport.(procDescribed).plain.(*http.Transport).DialContext = dial
}

// cut drops what one node sends to another, in this direction only.
func (l *netLab) cut(from, to int) {
	l.t.Helper()
	l.in(to, "iptables", "-w", "-A", "INPUT", "-s", labAddr(from), "-j", "DROP")
}

// sever cuts both directions.
func (l *netLab) sever(a, b int) {
	l.t.Helper()
	l.cut(a, b)
	l.cut(b, a)
}

// heal ends all cuts.
func (l *netLab) heal() {
	l.t.Helper()
	for _, id := range l.ids() {
		l.in(id, "iptables", "-w", "-F")
	}
}
