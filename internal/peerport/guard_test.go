package peerport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/entry"
	"raftkv/internal/peerclient"
	"raftkv/internal/refusal"
	"raftkv/internal/room"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// acquainted stands in for package boot: it knows the members, and lets all of them in.
type acquainted struct {
	members map[uint64]bool
	term    uint64 // the highest that a member told of
}

func (a *acquainted) Knows(id uint64) bool { return a.members[id] }

func (a *acquainted) Passes(uint64) bool { return true }

func (a *acquainted) Ask() {}

func (a *acquainted) HighestTerm() uint64 { return a.term }

func (a *acquainted) Claim(uint64, string, string) {}

// guardedNode is node 1 of three, in term 5, behind a guard, with somebody in
// place of rafthttp who notes what comes through.
type guardedNode struct {
	*Guard
	url     string
	known   *acquainted
	status  atomic.Pointer[contact.RaftStatus]
	trouble snapshots.Trouble
	through chan *http.Request
	bodies  chan []byte
}

func newGuardedNode(t *testing.T) *guardedNode {
	t.Helper()
	g := &guardedNode{
		known: &acquainted{members: map[uint64]bool{1: true, 2: true, 3: true}}, trouble: snapshots.Trouble{Log: zap.NewNop()},
		through: make(chan *http.Request, 1000), bodies: make(chan []byte, 1000),
	}
	g.status.Store(&contact.RaftStatus{Term: 5, Role: raft.StateFollower})
	links := transport.NewLinks(zap.NewNop(), 1, 0xc1, time.Millisecond, time.Second)
	g.Guard = New(Config{
		Log: zap.NewNop(), ID: 1, Cluster: 0xc1, Dir: t.TempDir(), Refusals: refusal.NewRefusals(zap.NewNop()), HoldStreams: links.HoldStreams,
		Admission: &Admission{ID: 1, IsRemoved: func(id uint64) bool { return id == 4 }, Known: g.known, Role: g.status.Load},
		KeepFree:  func() int64 { return room.SnapshotReserve }, NotStored: g.trouble.NotStored,
	}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		g.through <- r
		g.bodies <- body
		w.WriteHeader(http.StatusNoContent)
	}))
	mux := http.NewServeMux()
	g.Routes(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	g.url = s.URL
	return g
}

// post sends a body as node 2 would, and returns the status of the answer.
func (g *guardedNode) send(t *testing.T, method, path string, body io.Reader, headers ...string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, body)
	testkit.Must(t, err)
	req.Header.Set("X-Server-From", types.ID(2).String())
	req.Header.Set("X-Server-Version", "3.7.3")
	req.Header.Set("X-Min-Cluster-Version", "3.0.0")
	req.Header.Set("X-Etcd-Cluster-ID", types.ID(0xc1).String())
	req.Header.Set("X-PeerURLs", "http://203.0.113.1:80")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0 // it was cut off
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func encoded(t *testing.T, m *raftpb.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	testkit.Must(t, err)
	return b
}

func heartbeatOf(from, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), To: new(uint64(1)), From: new(from), Term: new(term)}
}

// Without this a header that anyone can make up starts goroutines for ever, has
// the node dial any URL, or makes rafthttp panic.
func TestPeerGuardSenders(t *testing.T) {
	g := newGuardedNode(t)
	hb := encoded(t, heartbeatOf(2, 5))
	batch := statetest.Batch(state.BatchID{Node: 3, Boot: 1}, state.EncodeWrite(state.KindPut, state.Condition{}, "k", nil))
	forwarded := string(encoded(t, &raftpb.Message{Type: raftpb.MsgProp.Enum(), To: new(uint64(1)), From: new(uint64(3)), Entries: []*raftpb.Entry{{Data: batch}}}))
	cases := map[string]struct {
		method, path string
		headers      []string
		status       int
		kind         refusal.Kind
	}{
		"message of a member":   {"POST", "/raft", nil, 204, refusal.NotHostile},
		"stream of a member":    {"GET", "/raft/stream/message/2", nil, 204, refusal.NotHostile},
		"other cluster":         {"POST", "/raft", []string{"X-Etcd-Cluster-ID", "c2"}, 204, refusal.NotHostile},           // rafthttp says so
		"removed":               {"GET", "/raft/stream/msgapp/4", []string{"X-Server-From", "4"}, 204, refusal.NotHostile}, // likewise
		"stranger's message":    {"POST", "/raft", []string{"X-Server-From", "1000"}, 503, refusal.RefusedSender},
		"stranger's stream":     {"GET", "/raft/stream/message/1000", []string{"X-Server-From", "1000"}, 503, refusal.RefusedSender},
		"stranger's snapshot":   {"POST", "/raft/snapshot", []string{"X-Server-From", "1000"}, 503, refusal.RefusedSender},
		"nobody":                {"POST", "/raft", []string{"X-Server-From", ""}, 400, refusal.RefusedAddress},
		"ID 0":                  {"POST", "/raft", []string{"X-Server-From", "0"}, 400, refusal.RefusedAddress},
		"itself":                {"POST", "/raft", []string{"X-Server-From", "1"}, 400, refusal.RefusedAddress},
		"stream of itself":      {"GET", "/raft/stream/message/1", []string{"X-Server-From", "1"}, 400, refusal.RefusedAddress},
		"a version that is not": {"POST", "/raft", []string{"X-Server-Version", "three"}, 400, refusal.RefusedMalformed},
		"and the other":         {"GET", "/raft/stream/message/2", []string{"X-Min-Cluster-Version", "3.7.99999999999999999999"}, 400, refusal.RefusedMalformed},
		"another's stream":      {"GET", "/raft/stream/message/3", nil, 400, refusal.RefusedAddress},
		"another's message":     {"POST", "/raft", []string{"X-Server-From", "3"}, 400, refusal.RefusedSender},
		"a proposal passed on":  {"POST", "/raft", []string{"body", forwarded}, 204, refusal.NotHostile},
		"probing":               {"GET", "/raft/probing", []string{"X-Server-From", "1000"}, 204, refusal.NotHostile},
	}
	for name, c := range cases {
		before, body := g.Refusals.Count(c.kind), hb
		if len(c.headers) > 0 && c.headers[0] == "body" {
			body, c.headers = []byte(c.headers[1]), nil
		}
		if got := g.send(t, c.method, c.path, bytes.NewReader(body), c.headers...); got != c.status {
			t.Errorf("%s: status %d, want %d", name, got, c.status)
		}
		if now := g.Refusals.Count(c.kind); c.kind != refusal.NotHostile && now != before+1 {
			t.Errorf("%s: %d refusals counted of %q", name, now-before, c.kind)
		}
		for len(g.through) > 0 {
			if r := <-g.through; c.path != "/raft/probing" && r.Header.Get("X-PeerURLs") != "" {
				t.Errorf("%s: rafthttp sees %q", name, r.Header.Get("X-PeerURLs"))
			}
		}
	}
}

// Without this one request takes as much memory as its sender likes. The largest
// lawful message passes, one byte more does not.
func TestPeerGuardMessageSize(t *testing.T) {
	g := newGuardedNode(t)
	m := heartbeatOf(2, 5)
	m.Context = make([]byte, maxMessageBytes-100)
	m.Context = make([]byte, maxMessageBytes-100+maxMessageBytes-proto.Size(m))
	body := encoded(t, m)
	if len(body) != maxMessageBytes {
		t.Fatalf("%d bytes, not %d", len(body), maxMessageBytes)
	}
	if got := g.send(t, "POST", "/raft", bytes.NewReader(body)); got != 204 {
		t.Fatalf("the largest message: status %d", got)
	}
	if got := <-g.bodies; !bytes.Equal(got, body) {
		t.Error("it was changed")
	}
	if got := g.send(t, "POST", "/raft", bytes.NewReader(append(body, 0))); got != 413 && got != 0 {
		t.Errorf("one byte more: status %d", got)
	}
	if got := g.send(t, "POST", "/raft", io.MultiReader(bytes.NewReader(encoded(t, heartbeatOf(2, 5))))); got != 411 {
		t.Errorf("a message without a length: status %d", got)
	}
	// The largest value that a node may take travels, in a batch of its own.
	value := make([]byte, config.MaxValueLimit)
	batch := entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 2, Boot: 1}), state.EncodeWrite(state.KindPut, state.Condition{}, strings.Repeat("k", config.MaxKeyBytes), value))
	app := &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(uint64(1)), From: new(uint64(2)), Term: new(uint64(5)),
		Index: new(uint64(7)), LogTerm: new(uint64(5)), Entries: []*raftpb.Entry{{Index: new(uint64(8)), Term: new(uint64(5)), Data: batch}}}
	if size := proto.Size(app); size > maxMessageBytes {
		t.Errorf("the largest value makes a message of %d bytes", size)
	}
}

// slowly sends the head of a request and then nothing.
func (g *guardedNode) slowly(t *testing.T, path string, length int, body []byte) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	testkit.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-Server-From: 2\r\nX-Server-Version: 3.7.3\r\n"+
		"X-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: c1\r\nContent-Length: %d\r\n\r\n%s", path, length, body)
	testkit.Must(t, err)
	return conn
}

// held waits until so much of a semaphore is taken that n more does not fit, and
// n-1 does.
func held(t *testing.T, what string, sem interface {
	TryAcquire(int64) bool
	Release(int64)
}, n int64,
) {
	t.Helper()
	testkit.Eventually(t, what, func() bool {
		if n > 1 {
			if !sem.TryAcquire(n - 1) {
				return false
			}
			sem.Release(n - 1)
		}
		if sem.TryAcquire(n) {
			sem.Release(n)
			return false
		}
		return true
	})
}

// Without this many requests take as much memory as their sender likes: what is
// announced counts, and small messages, as votes are, have a place of their own.
func TestPeerGuardSum(t *testing.T) {
	g := newGuardedNode(t)
	const rest = maxIncomingBytes - maxMessageBytes
	g.slowly(t, "/raft", maxMessageBytes, nil)
	held(t, "the largest message to have its place", g.large, rest+1)
	m := heartbeatOf(2, 5)
	m.Context = make([]byte, 2<<20)
	for size, want := range map[int]int{rest: 204, rest + 1: 503} {
		m.Context = make([]byte, size-100)
		m.Context = make([]byte, 2*size-100-proto.Size(m))
		if body := encoded(t, m); len(body) != size {
			t.Fatalf("%d bytes, not %d", len(body), size)
		} else if got := g.send(t, "POST", "/raft", bytes.NewReader(body)); got != want && (got != 0 || want == 204) {
			t.Errorf("%d bytes beside the largest message: status %d, want %d", size, got, want)
		}
	}
	if got := g.send(t, "POST", "/raft", bytes.NewReader(encoded(t, heartbeatOf(2, 5)))); got != 204 {
		t.Errorf("a heartbeat beside large messages: status %d", got)
	}
	var conns []net.Conn
	for range maxSmallMessages {
		conns = append(conns, g.slowly(t, "/raft", 100, nil))
	}
	held(t, "all small places to be taken", g.small, 1)
	if got := g.send(t, "POST", "/raft", bytes.NewReader(encoded(t, heartbeatOf(2, 5)))); got != 503 {
		t.Errorf("one small message too many: status %d", got)
	}
	testkit.Must(t, conns[0].Close())
	testkit.Eventually(t, "the place of one that broke off", func() bool {
		return g.send(t, "POST", "/raft", bytes.NewReader(encoded(t, heartbeatOf(2, 5)))) == 204
	})
}

// Without this a body of two bytes an entry takes fifty times its size when it
// is decoded.
func TestPeerGuardEntries(t *testing.T) {
	g := newGuardedNode(t)
	empty := bytes.Repeat([]byte{fieldEntries<<3 | 2, 0}, maxIncomingBytes/entryBytes+1)
	if got := g.send(t, "POST", "/raft", bytes.NewReader(append(encoded(t, heartbeatOf(2, 5)), empty...))); got != 503 {
		t.Errorf("%d empty entries: status %d", len(empty)/2, got)
	}
	for _, body := range [][]byte{
		{fieldResponses<<3 | 2, 0},
		{fieldSnapshot<<3 | 2, 0},
		{0xff},
	} {
		if got := g.send(t, "POST", "/raft", bytes.NewReader(append(encoded(t, heartbeatOf(2, 5)), body...))); got != 400 {
			t.Errorf("a message that ends in %x: status %d", body, got)
		}
	}
	held(t, "all to be released", g.large, maxIncomingBytes+1)
	held(t, "all to be released", g.small, maxSmallMessages+1)
}

// A message that does not come to its end gives its place back.
func TestPeerGuardSlowMessage(t *testing.T) {
	g := newGuardedNode(t)
	g.readLimit = 50 * time.Millisecond
	conn := g.slowly(t, "/raft", 100, []byte("only so much"))
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("%v, %.40q", err, answer)
	}
	held(t, "its place", g.small, maxSmallMessages+1)
}

// snapshotBody is what comes on the snapshot route: a message and a file.
func snapshotUpload(t *testing.T, from, term uint64, file io.Reader) io.Reader {
	t.Helper()
	m := testkit.SnapMessage(4, 100, &raftpb.ConfState{Voters: []uint64{1, 2, 3}})
	m.To, m.From, m.Term = new(uint64(1)), new(from), new(term)
	b := encoded(t, m)
	head := []byte{0, 0, 0, 0, 0, 0, byte(len(b) >> 8), byte(len(b))}
	return io.MultiReader(bytes.NewReader(head), bytes.NewReader(b), file)
}

// endless is a file that goes on until it is closed.
type endless struct {
	io.Reader
	stop context.CancelFunc
}

func newEndless() endless {
	ctx, stop := context.WithCancel(context.Background())
	return endless{readerFunc(func(p []byte) (int, error) {
		select {
		case <-time.After(time.Millisecond):
			return min(len(p), 100), nil
		case <-ctx.Done():
			return 0, io.EOF
		}
	}), stop}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// One snapshot comes in at a time. A newer one takes its place; another of the
// same term, which only a forger has, does not; and a new term ends it.
func TestUploadsOneAtATime(t *testing.T) {
	g := newGuardedNode(t)
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	upload := func(from, term uint64) (file endless, status chan int) {
		file, status = newEndless(), make(chan int, 1)
		t.Cleanup(file.stop)
		all.Go(func() {
			status <- g.send(t, "POST", "/raft/snapshot", snapshotUpload(t, from, term, file), "X-Server-From", types.ID(from).String())
		})
		return file, status
	}
	answer := func(status chan int) int {
		t.Helper()
		select {
		case got := <-status:
			return got
		case <-time.After(20 * time.Second):
			t.Fatal("an upload goes on")
			return 0
		}
	}
	current := func(from, term uint64) {
		t.Helper()
		testkit.Eventually(t, fmt.Sprintf("the snapshot of node %d in term %d to come in", from, term), func() bool {
			g.uploads.mu.Lock()
			defer g.uploads.mu.Unlock()
			return g.uploads.current != nil && g.uploads.current.from == from && g.uploads.current.term == term
		})
	}
	_, first := upload(2, 5)
	current(2, 5)
	old, status := upload(3, 4)
	if got := answer(status); got != http.StatusConflict && got != 0 {
		t.Errorf("a snapshot of an earlier term than the node's: status %d", got)
	}
	old.stop()
	_, status = upload(3, 5)
	if got := answer(status); got != 503 && got != 0 {
		t.Errorf("another one of the same term: status %d", got)
	}
	_, again := upload(2, 5) // its sender knows that the first has failed
	testkit.Eventually(t, "the first one to end", func() bool { return len(first) > 0 })
	current(2, 5)
	later, newer := upload(3, 6)
	testkit.Eventually(t, "the second one to end", func() bool { return len(again) > 0 })
	current(3, 6)
	for _, s := range []chan int{first, again} {
		if got := answer(s); got == 204 {
			t.Error("a snapshot that was broken off was taken")
		}
	}
	g.status.Store(&contact.RaftStatus{Term: 7, Role: raft.StateFollower})
	if got := answer(newer); got == 204 {
		t.Error("a snapshot was taken although a later term had begun")
	}
	later.stop()
	last, status := upload(2, 7)
	current(2, 7)
	last.stop()
	if got := answer(status); got != 204 {
		t.Errorf("a snapshot alone: status %d", got)
	}
}

// A snapshot ends where the disk ends, less what the log needs.
func TestUploadsRoom(t *testing.T) {
	const least = room.SnapshotReserve + 2*roomEvery
	for free, want := range map[uint64]int{least: 204, least - 1: 507} {
		g := newGuardedNode(t)
		g.uploads.freeSpace = func(string) (uint64, error) { return free, nil }
		if got := g.send(t, "POST", "/raft/snapshot", snapshotUpload(t, 2, 5, strings.NewReader("file"))); got != want {
			t.Errorf("%d bytes are free: status %d, want %d", free, got, want)
		}
	}
	g := newGuardedNode(t)
	free := uint64(least + 3*roomEvery)
	g.uploads.freeSpace = func(string) (uint64, error) { free -= roomEvery; return free, nil }
	file := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	if got := g.send(t, "POST", "/raft/snapshot", snapshotUpload(t, 2, 5, file)); got == 204 {
		t.Error("a file without an end was taken")
	}
	if g.Refusals.Count(refusal.RefusedRoom) == 0 || g.trouble.Lost.Load() != 1 {
		t.Error("it was not counted")
	}
	if err := g.trouble.Present(); err != nil {
		t.Errorf("it counts as a snapshot of the node's own that failed: %v", err)
	}
}

// What comes before the file is bounded, and is a snapshot message of who sends it.
func TestUploadsMessage(t *testing.T) {
	g := newGuardedNode(t)
	head := func(size int) io.Reader {
		return io.MultiReader(bytes.NewReader([]byte{0, 0, 0, 0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}),
			bytes.NewReader(make([]byte, size)))
	}
	for size, want := range map[int]int{maxSnapshotMessage: 400, maxSnapshotMessage + 1: 413} {
		if got := g.send(t, "POST", "/raft/snapshot", head(size)); got != want {
			t.Errorf("a message of %d bytes: status %d, want %d", size, got, want)
		}
	}
	if got := g.send(t, "POST", "/raft/snapshot", snapshotUpload(t, 3, 5, strings.NewReader("file"))); got != 400 {
		t.Errorf("a snapshot of node 3 from node 2: status %d", got)
	}
	if got := g.send(t, "POST", "/raft/snapshot", strings.NewReader("short")); got != 400 {
		t.Errorf("a message that breaks off: status %d", got)
	}
}

// Guarantee: no lawful term is refused, and the bounds are where they are said
// to be.
func TestAdmitTerm(t *testing.T) {
	cases := []struct {
		term, own uint64
		ok        bool
	}{
		{1, 0, true},
		{1 << 32, 0, true},
		{1<<32 + 1, 0, false},
		{5 + 1<<32, 5, true},
		{6 + 1<<32, 5, false},
		{1, 1 << 48, true},
		{1 << 48, 1<<48 - 1, true},
		{1<<48 + 1, 1 << 48, false},
		{1<<64 - 1, 1<<64 - 1, false},
	}
	for _, c := range cases {
		if err := checkTerm(c.term, c.own); (err == nil) != c.ok {
			t.Errorf("term %d in term %d: %v", c.term, c.own, err)
		}
	}
	// A term that members told of counts like one's own.
	g := newGuardedNode(t)
	m := heartbeatOf(2, 5+MaxTermLeap+1)
	if err := g.Admission.Admit(m); err == nil {
		t.Error("a leap was admitted")
	}
	g.known.term = 6
	if err := g.Admission.Admit(m); err != nil {
		t.Error(err)
	}
}

// The context of a read is bounded.
func TestAdmitReadContext(t *testing.T) {
	for size, ok := range map[int]bool{24: true, maxReadContext: true, maxReadContext + 1: false} {
		m := &raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), To: new(uint64(1)), From: new(uint64(2)), Entries: []*raftpb.Entry{{Data: make([]byte, size)}}}
		if err := checkMessage(m); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Guarantee: who was removed has no use of its certificate, and who is a member, has several
// names of which one is, or shows none, is served.
func TestForMembers(t *testing.T) {
	a := &Admission{ID: 1, IsRemoved: func(id uint64) bool { return id == 4 }}
	h := a.ForMembers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, tt := range []struct {
		ids    []uint64 // of the certificate; nil: nothing is proven
		status int
	}{{nil, http.StatusNoContent}, {[]uint64{2}, http.StatusNoContent}, {[]uint64{4}, http.StatusForbidden}, {[]uint64{4, 5}, http.StatusNoContent}} {
		ctx := t.Context()
		if tt.ids != nil {
			ctx = peerclient.WithSender(ctx, func(is func(uint64) bool) error {
				if slices.ContainsFunc(tt.ids, is) {
					return nil
				}
				return errors.New("not that one")
			})
		}
		w := httptest.NewRecorder()
		h(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/raftkv/view", nil))
		if w.Code != tt.status {
			t.Errorf("certificate of %v: %d, want %d", tt.ids, w.Code, tt.status)
		}
	}
}
