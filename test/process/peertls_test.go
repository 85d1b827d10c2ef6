//go:build unix

package process

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// procSecure is a cluster with TLS between its members.
type procSecure struct {
	*procCluster
	ca *testkit.CA
}

// newProcSecure lays out n nodes whose peer URLs have https, with certificates of one CA.
func newProcSecure(t *testing.T, n int, flags ...string) *procSecure {
	t.Helper()
	s := &procSecure{newProcCluster(t, n, flags...), testkit.NewCA(t)}
	s.list = strings.ReplaceAll(s.list, "http://", "https://")
	for i := 1; i <= n; i++ {
		s.nodes[i].args = s.args(s.nodes[i], s.list, s.tlsFlags(i)...)
	}
	return s
}

// tlsFlags makes the certificate of node i, and returns the flags that go with it.
func (s *procSecure) tlsFlags(i int, more ...string) []string {
	s.t.Helper()
	dir := s.tlsDir(i)
	testkit.Must(s.t, os.MkdirAll(dir, 0o700))
	cert, key, ca := s.ca.Files(dir, s.ca.Certificate(time.Hour, fmt.Sprintf("%d.raftkv", i)))
	return append([]string{"--peer-cert-file", cert, "--peer-key-file", key, "--peer-trusted-ca-file", ca}, more...)
}

func (s *procSecure) tlsDir(i int) string { return filepath.Join(s.dir, fmt.Sprintf("tls%d", i)) }

func (s *procSecure) peerURL(i int) string {
	return fmt.Sprintf("https://127.0.0.1:%d", s.nodes[i].peerPort)
}

// as returns a client that shows a certificate with these names, and demands nothing of the server.
func (s *procSecure) as(names ...string) *http.Client {
	c := procClient(5 * time.Second)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{
		InsecureSkipVerify: true, // it attacks
		Certificates:       []tls.Certificate{s.ca.Certificate(time.Hour, names...)},
	}
	s.t.Cleanup(c.CloseIdleConnections)
	return c
}

// Guarantee: with mutual TLS a cluster elects, writes, sends snapshots, takes in a new node by --join, loses one and survives
// kill -9; and nobody who is not the member that he says gets anywhere at the peer port.
func TestProcPeerTLS(t *testing.T) {
	s := newProcSecure(t, 3, "--snapshot-count", "20")
	s.start()
	want := make(map[string]string)
	for n := range 60 {
		key := fmt.Sprintf("k%d", n)
		want[key] = strconv.Itoa(n)
		s.put(n%3+1, key, want[key])
	}
	s.wantAll(want, 1, 2, 3)

	// Node 4 joins by itself, gets a snapshot, and takes the place of node 3.
	n := s.newNode(4)
	n.args = s.args(n, s.peerURL(1)+","+s.peerURL(2)+",4="+s.peerURL(4), s.tlsFlags(4, "--join")...)
	s.launch(4)
	s.waitReady(4)
	s.waitVoters(1, 1, 2, 3, 4)
	if got := s.status(4).SnapshotIndex; got == 0 {
		t.Error("node 4 got no snapshot")
	}
	s.remove(3, 4) // passed on to the leader
	s.waitExit(3, 0, procStopWithin)
	s.waitVoters(1, 1, 2, 4)
	s.wantAll(want, 1, 2, 4)

	s.kill(1, 2, 4)
	s.start(1, 2, 4)
	s.put(4, "after", "kill")
	want["after"] = "kill"
	s.wantAll(want, 1, 2, 4)
	s.attack(1)
	s.put(1, "end", "1")
	for _, i := range []int{1, 2, 4} {
		if out := s.nodes[i].output(); strings.Contains(out, "level=error") || strings.Contains(out, "\tERROR\t") {
			t.Errorf("node %d complains:\n%s", i, procTail(out))
		}
	}
}

// attack has everybody who has no business there come to the peer port of a node.
func (s *procSecure) attack(at int) {
	s.t.Helper()
	var info struct {
		ClusterID uint64 `json:"cluster_id"`
		Term      uint64 `json:"term"`
	}
	if r := procDo(s.as("2.raftkv"), "GET", s.peerURL(at)+"/raftkv/cluster", nil); json.Unmarshal([]byte(r.body), &info) != nil {
		s.t.Fatal(r)
	}
	message := func(from uint64) []byte {
		b, err := proto.Marshal(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(from), To: new(uint64(at)), Term: new(info.Term)})
		testkit.Must(s.t, err)
		return b
	}
	cluster := strconv.FormatUint(info.ClusterID, 16)
	headers := func(from int) []string {
		return []string{"X-Server-From", strconv.Itoa(from), "X-Server-Version", "3.7.3", "X-Min-Cluster-Version", "3.0.0", "X-Etcd-Cluster-ID", cluster,
			"X-Raft-To", strconv.Itoa(at), "X-PeerURLs", "https://127.0.0.1:1", "Raftkv-Cluster-Id", cluster}
	}
	two := s.as("2.raftkv")
	for _, tt := range []struct {
		name         string
		client       *http.Client
		method, path string
		from         int
		body         []byte
		want         int // 0: no answer at all
	}{
		{"a stranger without a certificate", procClientInsecure(), "GET", "/raftkv/cluster", 2, nil, 0},
		{"a client's certificate", s.as("web.example"), "GET", "/raftkv/cluster", 2, nil, 0},
		{"a second cluster's certificate", s.as("2.other"), "POST", "/raft", 2, message(2), 0},
		{"member 2's message", two, "POST", "/raft", 2, message(2), 204},
		{"member 4's message by 2", two, "POST", "/raft", 4, message(4), 400},
		{"member 4's message inside of 2's", two, "POST", "/raft", 2, message(4), 400},
		{"member 4's stream by 2", two, "GET", "/raft/stream/message/4", 4, nil, 400},
		{"member 4's stream by 2, as 2", two, "GET", "/raft/stream/message/4", 2, nil, 400},
		{"member 4's snapshot by 2", two, "POST", "/raft/snapshot", 4, message(4), 400},
		{"member 4's link by 2", two, "GET", "/raftkv/link/4", 2, nil, 403},
		{"member 2's link", two, "GET", "/raftkv/link/2", 2, nil, 200},
		{"member 4's disk by 2", two, "POST", "/raftkv/disk", 2, []byte(`{"from":4}`), 403},
		{"member 2's disk", two, "POST", "/raftkv/disk", 2, []byte(`{"from":2}`), 200},
		{"member 4's stand by 2", two, "GET", "/raftkv/view?node=4&index=1", 2, nil, 503},
	} {
		req, err := http.NewRequest(tt.method, s.peerURL(at)+tt.path, bytes.NewReader(tt.body))
		testkit.Must(s.t, err)
		hs := headers(tt.from)
		for i := 0; i < len(hs); i += 2 {
			req.Header.Set(hs[i], hs[i+1])
		}
		status := 0
		if resp, err := tt.client.Do(req); err == nil {
			status = resp.StatusCode
			resp.Body.Close()
		}
		if status != tt.want {
			s.t.Errorf("%s: %d, want %d", tt.name, status, tt.want)
		}
	}
	// A node that joins as another, and one that is no member and passes on a change.
	join := []byte(`{"op":1,"id":9,"peer_url":"https://127.0.0.1:1"}`)
	for path, who := range map[string]*http.Client{"/raftkv/join": two, "/raftkv/member": s.as("9.raftkv")} {
		r := procDo(who, "POST", s.peerURL(at)+path, join, "Raftkv-Cluster-Id", cluster)
		if r.status == 200 && !strings.Contains(r.body, `"code":"`) {
			s.t.Errorf("%s: %v", path, r)
		}
	}
	if m := s.members(at); len(m.Members) != 3 {
		s.t.Errorf("the members are %+v", m)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.nodes[at].peerPort))
	testkit.Must(s.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /raft HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	testkit.Must(s.t, err)
	if text, _ := io.ReadAll(conn); !strings.HasPrefix(string(text), "HTTP/1.1 400 ") {
		s.t.Errorf("plain HTTP gets %q", text)
	}
}

func procClientInsecure() *http.Client {
	c := procClient(5 * time.Second)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	return c
}

// Guarantee: a node whose certificate would not do says which file is wrong, and exits 1.
func TestProcPeerTLSStart(t *testing.T) {
	s := newProcSecure(t, 1)
	other := testkit.NewCA(t)
	good := s.ca.Certificate(time.Hour, "1.raftkv")
	for what, tt := range map[string]struct {
		ca   *testkit.CA
		cert tls.Certificate
		want string
	}{
		"another CA":        {other, good, "ca.pem"},
		"another's name":    {s.ca, s.ca.Certificate(time.Hour, "2.raftkv"), `"1.raftkv"`},
		"no name of a node": {s.ca, s.ca.Certificate(time.Hour, "web.example"), "cert.pem"},
	} {
		tt.ca.Files(s.tlsDir(1), tt.cert)
		s.launch(1)
		if out := s.waitExit(1, 1, procStopWithin); !strings.Contains(out, tt.want) {
			t.Errorf("%s: %s", what, procTail(out))
		}
	}
	s.ca.Files(s.tlsDir(1), good)
	s.start(1)
}

// Guarantee: certificates and CA of the members are replaced, one after the other as docs/security.md says, while clients write, and
// no write fails; at the end the old CA is trusted no more.
func TestProcPeerTLSReload(t *testing.T) {
	s := newProcSecure(t, 3)
	s.start()
	load := s.startUpgradeLoad(8, 1, 2, 3)
	next := testkit.NewCA(t)
	both := append(s.ca.PEM(), next.PEM()...)
	everywhere := func(what string, change func(i int)) {
		for i := 1; i <= 3; i++ {
			const reloads = `raftkv_certificate_reloads_total{door="peer",result="ok"}`
			before := s.metric(i, reloads)
			change(i)
			procEventually(t, 20*time.Second, what+" in force", func() error {
				if s.metric(i, reloads) == before {
					return errors.New("not yet")
				}
				return nil
			})
		}
	}
	everywhere("both CAs", func(i int) {
		testkit.Must(t, os.WriteFile(filepath.Join(s.tlsDir(i), "ca.pem"), both, 0o600))
	})
	everywhere("certificates of the next CA", func(i int) {
		// The certificate and the key are written one after the other, and read in between perhaps.
		c := next.Certificate(time.Hour, fmt.Sprintf("%d.raftkv", i))
		tmp := t.TempDir()
		cert, key, _ := next.Files(tmp, c)
		for _, f := range []string{cert, key} {
			testkit.Must(t, os.Rename(f, filepath.Join(s.tlsDir(i), filepath.Base(f))))
		}
	})
	everywhere("the next CA alone", func(i int) {
		testkit.Must(t, os.WriteFile(filepath.Join(s.tlsDir(i), "ca.pem"), next.PEM(), 0o600))
	})
	time.Sleep(3 * time.Second) // connections are made anew one after the other
	acked := load.stop()
	for _, f := range load.failed {
		t.Error(f)
	}
	t.Logf("%d writes", len(acked))
	s.wantAll(acked, 1, 2, 3)
	if r := procDo(s.as("2.raftkv"), "GET", s.peerURL(1)+"/raftkv/who", nil); r.err == nil {
		t.Errorf("a certificate of the old CA comes in: %v", r)
	}
}

// Guarantee: a running cluster goes over to TLS between its members, and back, in three rounds each, while clients that move on
// see no failed request.
func TestProcPeerTLSSwitch(t *testing.T) {
	s := &procSecure{newProcCluster(t, 3, "--check-interval", "500ms"), testkit.NewCA(t)}
	plainList := s.list
	secureList := strings.ReplaceAll(plainList, "http://", "https://")
	s.start()
	load := s.startUpgradeLoad(8, 1, 2, 3)
	s.wantAgreement("plain", state.ProgramLevel, 1, 2, 3)
	restart := func(list string, more func(i int) []string) {
		t.Helper()
		for i := 1; i <= 3; i++ {
			s.nodes[i].args = s.args(s.nodes[i], list, more(i)...)
			s.stop(i)
			s.start(i)
		}
	}
	scheme := func(to string) {
		t.Helper()
		for i := 1; i <= 3; i++ {
			url := fmt.Sprintf("%s://127.0.0.1:%d", to, s.nodes[i].peerPort)
			patch := fmt.Appendf(nil, `{"peer_url":%q}`, url)
			procEventually(t, procReadyWithin, "PATCH "+url, func() error { // until all have said what they can
				if r := s.do("PATCH", i%3+1, fmt.Sprintf("/v1/members/%d", i), patch, "Content-Type", "application/json"); r.status != 200 && r.status != 204 {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
		}
	}
	optional := func(i int) []string { return s.tlsFlags(i, "--peer-tls=optional") }

	// Before all can do it, no URL becomes https.
	if r := s.do("PATCH", 1, "/v1/members/2", fmt.Appendf(nil, `{"peer_url":%q}`, s.peerURL(2)), "Content-Type", "application/json"); r.status < 400 {
		t.Errorf("a peer URL became https in a cluster that cannot do it: %v", r)
	}
	restart(plainList, optional)
	scheme("https")
	procEventually(t, 20*time.Second, "all streams are secured", func() error { return s.plainStreams() })
	s.kill(2) // with the old URL in its flags it comes back all the same
	s.start(2)
	restart(secureList, func(i int) []string { return s.tlsFlags(i) })
	if r := procDo(procClient(5*time.Second), "GET", fmt.Sprintf("http://127.0.0.1:%d/raftkv/who", s.nodes[1].peerPort), nil); r.status != 400 {
		t.Errorf("without optional, plain HTTP gets %v", r)
	}
	s.wantAgreement("secured", state.ProgramLevel, 1, 2, 3)

	restart(secureList, optional)
	scheme("http")
	restart(plainList, func(int) []string { return nil })
	s.wantAgreement("plain again", state.ProgramLevel, 1, 2, 3)
	acked := load.stop()
	for _, f := range load.failed {
		t.Error(f)
	}
	t.Logf("%d writes", len(acked))
	s.wantAll(acked, 1, 2, 3)
}

// plainStreams says which nodes have said nothing yet of making the connections to both others anew.
func (s *procSecure) plainStreams() error {
	for i := 1; i <= 3; i++ {
		if n := strings.Count(s.nodes[i].output(), "the connections to a peer were made anew"); n < 2 {
			return fmt.Errorf("node %d: %d peers", i, n)
		}
	}
	return nil
}
