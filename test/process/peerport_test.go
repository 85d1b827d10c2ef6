//go:build unix

package process

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"raftkv/internal/testkit"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// procForger makes requests of rafthttp's by hand, to node at.
type procForger struct {
	c       *procCluster
	at      int
	cluster string
}

func (c *procCluster) forger(at int) *procForger {
	c.t.Helper()
	var info struct {
		ClusterID uint64 `json:"cluster_id"`
	}
	r := procDo(c.client, "GET", procURL(c.nodes[at].peerPort)+"/raftkv/cluster", nil)
	if err := json.Unmarshal([]byte(r.body), &info); err != nil {
		c.t.Fatalf("%v: %v", r, err)
	}
	return &procForger{c, at, strconv.FormatUint(info.ClusterID, 16)}
}

// request is one as node from would make it, from URLs of which it says that
// they are its own.
func (f *procForger) request(method, path string, from uint64, urls string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(f.c.t.Context(), method, procURL(f.c.nodes[f.at].peerPort)+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Server-From", strconv.FormatUint(from, 16))
	req.Header.Set("X-Server-Version", "3.7.3")
	req.Header.Set("X-Min-Cluster-Version", "3.0.0")
	req.Header.Set("X-Etcd-Cluster-ID", f.cluster)
	req.Header.Set("X-Raft-To", strconv.Itoa(f.at))
	req.Header.Set("X-PeerURLs", urls)
	return f.c.client.Do(req)
}

// post sends a message and returns the status of the answer, 0 if it was cut off.
func (f *procForger) post(m *raftpb.Message, urls string) int {
	f.c.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.c.t.Fatal(err)
	}
	return f.status(f.request("POST", "/raft", m.GetFrom(), urls, bytes.NewReader(b)))
}

func (f *procForger) status(resp *http.Response, err error) int {
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode
}

func (f *procForger) message(typ raftpb.MessageType, from, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(uint64(f.at)), Term: new(term)}
}

// peakMemory is the most memory that node i ever had, in bytes.
func (c *procCluster) peakMemory(i int) int64 {
	c.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.nodes[i].cmd.Process.Pid))
	if err != nil {
		testkit.CannotRun(c.t, err.Error())
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(data)
	if m == nil {
		c.t.Fatalf("no VmHWM in %s", data)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return kb << 10
}

// Guarantee: whoever makes up IDs and URLs at the peer port starts no goroutines
// and makes the node dial nobody. (It was four goroutines for each ID, for ever.)
func TestProcStrangersAtThePeerPort(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	f := c.forger(1)
	trap, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer trap.Close()
	var dialed atomic.Int64
	go func() {
		for {
			conn, err := trap.Accept()
			if err != nil {
				return
			}
			dialed.Add(1)
			conn.Close()
		}
	}()
	urls := "http://" + trap.Addr().String()
	leader := c.leader()
	before := c.metric(1, "go_goroutines")
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for id := range uint64(250) {
				from := 1000 + uint64(i)*250 + id
				// To one of an earlier term it would answer.
				if got := f.post(f.message(raftpb.MsgHeartbeat, from, 1), urls); got < 400 {
					t.Errorf("a message of node %d: status %d", from, got)
				}
				if got := f.status(f.request("GET", fmt.Sprintf("/raft/stream/message/%x", from), from, urls, nil)); got < 400 {
					t.Errorf("a stream of node %d: status %d", from, got)
				}
				if got := f.status(f.request("POST", "/raft/snapshot", from, urls, strings.NewReader("12345678"))); got < 400 {
					t.Errorf("a snapshot of node %d: status %d", from, got)
				}
			}
		})
	}
	clients.Wait()
	time.Sleep(2 * time.Second) // two inquiries
	after := c.metric(1, "go_goroutines")
	t.Logf("%.0f goroutines, then %.0f", before, after)
	if after > before+100 {
		t.Errorf("%.0f goroutines became %.0f", before, after)
	}
	if n := dialed.Load(); n > 0 {
		t.Errorf("the node dialed %d times", n)
	}
	if n := c.metric(1, `raftkv_peer_refused_total{reason="sender"}`); n < 3000 {
		t.Errorf("%.0f were counted of 3000", n)
	}
	// Such metrics would be for ever, too: one for each ID.
	if body := c.do("GET", 1, "/metrics", nil).body; strings.Contains(body, `"3e8"`) || strings.Contains(body, `"7cf"`) {
		t.Error("a metric has a stranger's ID")
	}
	if lines := strings.Count(c.nodes[1].output(), "refused what came to the peer port"); lines == 0 || lines > 20 {
		t.Errorf("%d lines in the log", lines)
	}
	if now := c.leader(); now != leader {
		t.Errorf("leader %d became %d", leader, now)
	}
	c.put(2, "k", "1")
	c.wantGet(1, "k", "1")
}

// Guarantee: what comes to the peer port takes no more memory than is set aside
// for it. (Four messages of 600 MiB took 4.2 GB.)
func TestProcHugeMessages(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	f := c.forger(1)
	send := func(n int, body func() io.Reader) {
		var clients sync.WaitGroup
		for range n {
			clients.Go(func() {
				if got := f.status(f.request("POST", "/raft", 2, "", body())); got != 0 && got < 400 {
					t.Errorf("status %d", got)
				}
			})
		}
		clients.Wait()
	}
	const size = 600 << 20
	send(4, func() io.Reader { return io.LimitReader(procZeros{}, size) }) // no length
	send(4, func() io.Reader { return io.NewSectionReader(procZeros{}, 0, size) })
	sized := make([]byte, 64<<20)
	send(4, func() io.Reader { return bytes.NewReader(sized) })
	peak := c.peakMemory(1)
	t.Logf("at most %d MiB", peak>>20)
	if limit := int64(400 << 20); peak > limit {
		t.Errorf("the node took %d MiB, more than %d", peak>>20, limit>>20)
	}
	c.put(2, "k", "1")
	c.wantGet(1, "k", "1")
}

// procZeros is as many zeros as anyone likes.
type procZeros struct{}

func (procZeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (z procZeros) ReadAt(p []byte, _ int64) (int, error) { return z.Read(p) }

// Guarantee: a forged message neither ends a node nor leaves a cluster that
// elects nobody. (One heartbeat of the last term bricked it for good.)
func TestProcForgedMessages(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "1")
	leader := c.leader()
	term := c.status(leader).Term
	for _, at := range c.ids() {
		f := c.forger(at)
		from := uint64(at%3 + 1)
		entry := func(index, term uint64) *raftpb.Entry { return &raftpb.Entry{Index: new(index), Term: new(term)} }
		forged := map[string]*raftpb.Message{
			"the last term":       f.message(raftpb.MsgHeartbeat, from, math.MaxUint64),
			"a term above all":    f.message(raftpb.MsgHeartbeat, from, 1<<48+1),
			"a leap of the term":  f.message(raftpb.MsgAppResp, from, term+1<<32+1),
			"from itself":         f.message(raftpb.MsgHeartbeat, uint64(at), term),
			"from nobody":         f.message(raftpb.MsgHeartbeat, 0, term),
			"proposal of nothing": f.message(raftpb.MsgProp, from, 0),
			"proposal of a term":  f.message(raftpb.MsgProp, from, term),
			"leadership":          f.message(raftpb.MsgTransferLeader, from, term),
			"vote without a term": f.message(raftpb.MsgVote, from, 0),
			"a short round":       f.message(raftpb.MsgHeartbeatResp, from, term),
			"a gap":               f.message(raftpb.MsgApp, from, term),
		}
		forged["a short round"].Context = []byte{1}
		forged["a gap"].Entries = []*raftpb.Entry{entry(7, term)}
		for what, m := range forged {
			if got := f.post(m, ""); got != http.StatusBadRequest {
				t.Errorf("%s at node %d: status %d", what, at, got)
			}
		}
		// rafthttp itself would panic at these.
		for _, length := range []uint64{0, math.MaxUint64} {
			head := binary.BigEndian.AppendUint64(nil, length)
			if got := f.status(f.request("POST", "/raft/snapshot", from, "", bytes.NewReader(head))); got < 400 {
				t.Errorf("a snapshot message of length %d at node %d: status %d", length, at, got)
			}
		}
	}
	for _, i := range c.ids() {
		if !c.nodes[i].running() {
			t.Fatalf("node %d ended\n%s", i, procTail(c.nodes[i].output()))
		}
		if strings.Contains(c.nodes[i].output(), "panic") {
			t.Errorf("node %d\n%s", i, procTail(c.nodes[i].output()))
		}
	}
	if now, after := c.leader(), c.status(leader).Term; now != leader || after != term {
		t.Errorf("leader %d of term %d became %d of term %d", leader, term, now, after)
	}
	c.put(c.follower(), "k", "2")
	c.wantGet(leader, "k", "2")
}

// Guarantee: a node that slept while all others were replaced comes back, with
// its old command line. None of those whom it knows is there any more.
func TestProcSleeperAmongStrangers(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3, "--snapshot-count", "20")
	c.start()
	c.put(1, "k", "before")
	c.stop(1)
	replace := func(old, id, via int) {
		t.Helper()
		c.joining(id, via)
		c.launch(id)
		c.waitReady(id)
		procEventually(t, procReadyWithin, fmt.Sprintf("node %d is a voter", id), func() error {
			if m := c.wantMember("GET", c.do("GET", id, fmt.Sprintf("/v1/members/%d", id), nil), 200); m.Role != "voter" {
				return fmt.Errorf("%+v", m)
			}
			return nil
		})
		c.nodes[old].ending = true
		if r := c.do("DELETE", id, fmt.Sprintf("/v1/members/%d", old), nil); r.status != 204 {
			t.Fatalf("DELETE of node %d: %v", old, r)
		}
		c.waitExit(old, 0, 20*time.Second)
	}
	replace(2, 4, 3)
	replace(3, 5, 4)
	for i := range 100 { // so that it needs a snapshot
		c.put(4, "k", strconv.Itoa(i))
	}
	began := time.Now()
	c.start(1)
	t.Logf("ready after %v", time.Since(began))
	c.wantGet(1, "k", "99")
	c.waitVoters(1, 1, 4, 5)
	c.kill(5)
	c.put(1, "k", "with it there is a majority")
}
