package process

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Clusters whose members are found by DNS: each node in a network namespace of its own, and
// a DNS server between them.

// testDNS answers what names say, by who asks.
type testDNS struct {
	mu    sync.Mutex
	names func(from netip.Addr) map[string][]string // addresses by name
	asked int
}

func (d *testDNS) set(names func(from netip.Addr) map[string][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names, d.asked = names, 0
}

func (d *testDNS) answer(query []byte, from netip.Addr) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, fmt.Errorf("%v, %d questions", err, len(m.Questions))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	q := m.Questions[0]
	addrs, known := d.names(from)[strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")]
	m.Response, m.Additionals = true, nil
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, Type: q.Type}, // of no time to live
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
			})
		}
	}
	return m.Pack()
}

// openIn opens a UDP port in a node's network namespace.
func (l *netLab) openIn(id int, addr string) net.PacketConn {
	l.t.Helper()
	type opened struct {
		conn net.PacketConn
		err  error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // it ends with this goroutine, and its namespace with it
		var o opened
		there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", l.holders[id]))
		if err == nil {
			err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
			_ = there.Close()
		}
		if o.err = err; err == nil {
			o.conn, o.err = net.ListenPacket("udp", addr)
		}
		done <- o
	}()
	o := <-done
	testkit.Must(l.t, o.err)
	l.t.Cleanup(func() { _ = o.conn.Close() })
	return o.conn
}

// newDNSLab is a netLab whose nodes ask a DNS server of the test's. All have the same peer port.
func newDNSLab(t *testing.T, n int, hosts string) (*netLab, *testDNS) {
	t.Helper()
	lab := newNetLab(t, n)
	testkit.NeedTools(t, "unshare", "mount")
	const server = "10.99.0.254"
	lab.in(0, "ip", "addr", "add", server+"/24", "dev", "br0")
	dns := &testDNS{names: func(netip.Addr) map[string][]string { return nil }}
	conn := lab.openIn(0, server+":53")
	go func() {
		buf := make([]byte, 4096)
		for {
			k, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, err := dns.answer(buf[:k], from.(*net.UDPAddr).AddrPort().Addr().Unmap()); err == nil {
				_, _ = conn.WriteTo(reply, from) // who asks asks again
			}
		}
	}()
	resolv := filepath.Join(lab.dir, "resolv.conf")
	testkit.Must(t, os.WriteFile(resolv, []byte("nameserver "+server+"\noptions timeout:1\n"), 0o644))
	bin, err := procBinary()
	testkit.Must(t, err)
	for i, id := range lab.ids() {
		lab.nodes[id].peerPort = lab.nodes[1].peerPort
		script := fmt.Sprintf("#!/bin/sh\nexport HOSTNAME='%s'\nexec nsenter --net=/proc/%d/ns/net unshare --mount sh -c 'mount --bind %s /etc/resolv.conf && exec %s \"$@\"' sh \"$@\"\n",
			strings.ReplaceAll(hosts, "N", strconv.Itoa(i)), lab.holders[id], resolv, bin)
		testkit.Must(t, os.WriteFile(lab.nodes[id].bin, []byte(script), 0o755))
	}
	return lab, dns
}

// give has a node be started with these flags beside those that all have.
func (l *netLab) give(id int, flags ...string) {
	n := l.nodes[id]
	n.args = append([]string{"--port", strconv.Itoa(n.clientPort), "--data-dir", n.dataDir}, flags...)
}

// waits checks that a node has said what it waits for, and has founded nothing.
func (l *netLab) waits(id int, words ...string) {
	l.t.Helper()
	procEventually(l.t, procReadyWithin, fmt.Sprintf("node %d waits", id), func() error {
		for _, w := range words {
			if !strings.Contains(l.nodes[id].output(), w) {
				return fmt.Errorf("it does not say %q", w)
			}
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(l.nodes[id].dataDir, "wal")); err == nil {
		l.t.Errorf("node %d has founded a cluster", id)
	}
}

// Guarantee: pods of a StatefulSet that know their host's name, a DNS name and a size make one
// cluster, none before all are there; one beyond the size joins; one that lost its disk is
// refused, and comes back under the ID that it is given then.
func TestProcDiscoverySet(t *testing.T) {
	t.Parallel()
	lab, dns := newDNSLab(t, 4, "raftkv-N")
	pods := func(ordinals ...int) {
		names := map[string][]string{}
		for _, o := range ordinals {
			names[fmt.Sprintf("raftkv-%d.peers.example", o)] = []string{labAddr(o + 1)}
		}
		dns.set(func(netip.Addr) map[string][]string { return names })
	}
	list := fmt.Sprintf("dns+http://peers.example:%d", lab.nodes[1].peerPort)
	url := func(o int) string { return fmt.Sprintf("http://raftkv-%d.peers.example:%d", o, lab.nodes[1].peerPort) }
	for _, id := range lab.ids() {
		lab.give(id, "--cluster", list, "--cluster-size=3")
	}
	pods(0, 1)
	for _, id := range []int{1, 2, 3} {
		lab.launch(id)
	}
	lab.waits(1, "waiting until all founding members", url(2)+" does not answer")
	lab.waits(2, "waiting until all founding members")
	lab.waits(3, "waiting until DNS names the members", "raftkv-2.peers.example")
	pods(0, 1, 2, 3)
	lab.waitReady(1, 2, 3)
	lab.put(1, "k", "v")
	lab.wantGet(3, "k", "v")

	lab.start(4)
	procEventually(t, procReadyWithin, "the fourth pod is a voter", func() error {
		return wantMember(lab.procCluster, 1, 4, url(3))
	})

	// The directories count from now on, whatever the size is said to be.
	lab.kill(1, 3)
	for _, id := range []int{1, 3} {
		lab.give(id, "--cluster", list, "--cluster-size=4")
	}
	lab.start(1, 3)
	lab.wantGet(3, "k", "v")

	lab.kill(2)
	testkit.Must(t, os.RemoveAll(lab.nodes[2].dataDir))
	lab.launch(2)
	out := lab.waitExit(2, config.ExitFault, procReadyWithin)
	pair := list + ",NEW-ID=" + url(1)
	if !strings.Contains(out, "node 2 was part of this cluster before") || !strings.Contains(out, pair) {
		t.Fatalf("a pod without its disk says:\n%s", procTail(out))
	}
	if r := lab.do(http.MethodDelete, 1, "/2", nil); r.status != http.StatusNoContent {
		t.Fatalf("DELETE /2: %v", r)
	}
	lab.give(2, "--cluster", strings.Replace(pair, "NEW-ID", "12", 1), "--cluster-size=3")
	lab.start(2)
	lab.wantGet(2, "k", "v")
	procEventually(t, procReadyWithin, "the pod is a voter under its new ID", func() error {
		return wantMember(lab.procCluster, 1, 12, url(1))
	})
}

// wantMember says how a voter is not in the list that a node gives.
func wantMember(c *procCluster, via, id int, peerURL string) error {
	r := c.do(http.MethodGet, via, fmt.Sprintf("/v1/members/%d", id), nil)
	if r.status != http.StatusOK || !strings.Contains(r.body, `"peer_url":"`+peerURL+`"`) || !strings.Contains(r.body, `"role":"voter"`) {
		return fmt.Errorf("%v", r)
	}
	return nil
}

// Guarantee: nodes to which DNS answers differently found nothing, and say so; when it answers
// all of them alike they are one cluster, which starts again without DNS.
func TestProcDiscoveryAnswersDiffer(t *testing.T) {
	t.Parallel()
	lab, dns := newDNSLab(t, 4, "web")
	const name = "raftkv.example"
	list := fmt.Sprintf("dns+http://%s:%d", name, lab.nodes[1].peerPort)
	for _, id := range lab.ids() {
		lab.give(id, "--id", strconv.Itoa(id), "--cluster", list, "--cluster-size=3")
	}
	answer := func(first, others []string) {
		dns.set(func(from netip.Addr) map[string][]string {
			if from.String() == labAddr(1) {
				return map[string][]string{name: first}
			}
			return map[string][]string{name: others}
		})
	}
	one, two, three, four := labAddr(1), labAddr(2), labAddr(3), labAddr(4)
	answer([]string{one, two, four}, []string{three, two})
	lab.launch(1)
	lab.launch(2)
	lab.waits(1, "waiting until all founding members")
	lab.waits(2, "waiting until DNS names the members", "it names 2, and --cluster-size is 3")
	// 1, 2 and 4 are a majority of the one list, 2 and 3 of the other.
	answer([]string{one, two, four}, []string{three, two, one})
	lab.waits(2, "do not agree, so nothing was founded")
	for _, id := range []int{1, 2} {
		if out := lab.waitExit(id, config.ExitFault, procReadyWithin); !strings.Contains(out, "do not agree, so nothing was founded") {
			t.Fatalf("node %d says:\n%s", id, procTail(out))
		}
	}
	answer([]string{one, three, two}, []string{three, two, one})
	for _, id := range []int{1, 2, 3} {
		lab.launch(id)
	}
	lab.waitReady(1, 2, 3)
	lab.put(2, "k", "v")

	lab.stop(1)
	dns.set(func(netip.Addr) map[string][]string { return nil })
	lab.start(1)
	lab.wantGet(1, "k", "v")
	dns.mu.Lock()
	defer dns.mu.Unlock()
	if dns.asked != 0 {
		t.Errorf("DNS was asked %d times by a cluster that has started", dns.asked)
	}
}
