package transport

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/config"
	"raftkv/internal/peerclient"
	"raftkv/internal/peertls"
	"raftkv/internal/refusal"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"reflect"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

func TestLinkLimit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ election, want time.Duration }{
		{time.Second, 2 * time.Second},
		{time.Minute, 2 * time.Minute},
		{500*time.Millisecond + 1, time.Second + 2},
		{500 * time.Millisecond, time.Second},
		{3 * time.Millisecond, time.Second},
	} {
		if got := linkLimit(tt.election); got != tt.want {
			t.Errorf("linkLimit(%v) = %v, want %v", tt.election, got, tt.want)
		}
	}
}

func TestLinkBroken(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	never := time.Time{}
	for _, tt := range []struct {
		name   string
		l      link
		active time.Time
		now    time.Duration
		want   bool
	}{
		{"heard just now", link{heard: at(0)}, at(-time.Hour), 0, false},
		{"silent for less than the limit", link{heard: at(0)}, at(-time.Hour), limit - 1, false},
		{"silent for the limit", link{heard: at(0)}, at(-time.Hour), limit, true},
		{"silent, and rafthttp knows that its connections are gone", link{heard: at(0)}, never, limit, true},
		{"silent, and made anew since", link{heard: at(0), remade: at(limit)}, never, 10 * limit, false},
		{"silent, made anew, and a new connection is young", link{heard: at(0), remade: at(limit)}, at(3 * limit), 4*limit - 1, false},
		{"silent, made anew, and a new connection is silent too", link{heard: at(0), remade: at(limit)}, at(3 * limit), 4 * limit, true},
		{"heard again, and silent again", link{heard: at(3 * limit), remade: at(limit)}, never, 4 * limit, true},
		{"streams are missing for less than half the limit", link{heard: at(0), short: at(0)}, at(0), limit/2 - 1, false},
		{"streams are missing for half the limit", link{heard: at(limit / 2), short: at(0)}, at(0), limit / 2, true},
		{"streams are missing, made anew a moment ago", link{heard: at(limit), short: at(0), remade: at(1)}, at(0), limit, false},
		{"streams are missing, made anew a limit ago", link{heard: at(limit), short: at(0), remade: at(0)}, at(0), limit, true},
		{"streams are missing, made anew in vain twice", link{heard: at(4*limit - 1), short: at(0), remade: at(0), vain: 2}, at(0), 4*limit - 1, false},
		{"streams are missing, made anew in vain twice, long ago", link{heard: at(4 * limit), short: at(0), remade: at(0), vain: 2}, at(0), 4 * limit, true},
	} {
		if got := tt.l.broken(at(tt.now), tt.active, limit); (got != "") != tt.want {
			t.Errorf("%s: broken says %q, want broken %v", tt.name, got, tt.want)
		}
	}
}

// What a peer answers counts until it answers something else; what was made
// anew in vain is made anew ever more rarely, and no more rarely than maxVain says.
func TestLinkVain(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	now := time.Now()
	l := link{heard: now}
	var made []int // when, in limits
	for i := range 400 {
		now = now.Add(limit / 2)
		l.answered(now, 1)
		if l.broken(now, now, limit) != "" {
			l.madeAnew(now)
			made = append(made, i/2)
		}
	}
	var rests []int
	for i := 1; i < len(made); i++ {
		rests = append(rests, made[i]-made[i-1])
	}
	if want := []int{2, 4, 8, 16, 32, 64, 64}; !reflect.DeepEqual(rests, want) {
		t.Errorf("rests of %v limits, want %v", rests, want)
	}
	l.answered(now, 0)
	if l.vain != 0 || !l.short.IsZero() || l.broken(now.Add(limit/2), now, limit) != "" {
		t.Errorf("all streams are there, and %+v", l)
	}
}

// A node that has slept does not hold its own silence against others.
func TestLinkFollow(t *testing.T) {
	t.Parallel()
	ls := NewLinks(zap.NewNop(), 1, 1, time.Millisecond, time.Second)
	start := time.Now()
	ls.follow(map[uint64]string{2: "b", 3: "c"}, start, false)
	later := start.Add(time.Minute)
	ls.follow(map[uint64]string{2: "b"}, later, false)
	if ls.peers[3] != nil || ls.peers[2].broken(later, start, ls.Limit) == "" {
		t.Errorf("after a minute of silence: %+v", ls.peers)
	}
	ls.follow(map[uint64]string{2: "b"}, later, true)
	if why := ls.peers[2].broken(later, start, ls.Limit); why != "" {
		t.Errorf("after a minute of sleep: %s", why)
	}
	later = later.Add(ls.Limit)
	if ls.peers[2].broken(later, start, ls.Limit) == "" {
		t.Error("a limit after it woke, silence is still held against nobody")
	}
	ls.Hear(2)
	ls.Hear(9)
	if ls.peers[9] != nil || ls.peers[2].heard.Before(start) {
		t.Errorf("after messages from 2 and 9: %+v", ls.peers)
	}
}

// countingTransport counts what is done to its peers.
type countingTransport struct {
	did []string
}

func (c *countingTransport) Send([]*raftpb.Message) {}

func (c *countingTransport) SendSnapshot(*snap.Message) {}

func (c *countingTransport) UpdatePeer(types.ID, []string) {}

func (c *countingTransport) Stop() {}

func (c *countingTransport) RemovePeer(id types.ID) { c.did = append(c.did, "remove "+id.String()) }

func (c *countingTransport) AddPeer(id types.ID, urls []string) {
	c.did = append(c.did, "add "+id.String()+" at "+urls[0])
}

// newOneLink makes the links of a node that has one peer.
func newOneLink(tr PeerDirectory) *Links {
	ls := NewLinks(zap.NewNop(), 1, 7, time.Millisecond, time.Second)
	ls.Transport, ls.connected = tr, map[uint64]string{2: "http://127.0.0.1:1"}
	ls.ActiveSince, ls.Unreachable = func(uint64) time.Time { return time.Time{} }, func(uint64) {}
	ls.follow(ls.connected, time.Now(), false)
	return ls
}

// Connections are made anew with a peer's newest URL; not while a snapshot is
// on its way there, and not for one that has left.
func TestLinkRemakes(t *testing.T) {
	t.Parallel()
	tr := &countingTransport{}
	ls := newOneLink(tr)
	lost := 0
	ls.Unreachable = func(uint64) { lost++ }
	first, second := ls.Receives(2), ls.Receives(2)
	for range 2 {
		if ls.remake(2) {
			t.Error("connections were made anew with a snapshot on its way")
		}
		first()
		first = func() {}
	}
	second()
	ls.connected[2] = "http://127.0.0.1:2"
	if !ls.remake(2) || ls.remake(3) {
		t.Error("of the peers 2 and 3, not 2 alone was made anew")
	}
	if want := []string{"remove 2", "add 2 at http://127.0.0.1:2"}; !reflect.DeepEqual(tr.did, want) {
		t.Errorf("the transport was told %q, want %q", tr.did, want)
	}
	if lost != 1 {
		t.Errorf("raft hears %d times that what was sent is lost, want once", lost)
	}
	if len(ls.receiving) != 0 {
		t.Errorf("still noted as receivers: %v", ls.receiving)
	}
}

// A peer that says nothing is made anew once; one whose process has ended, or
// that answers, never; one that lacks streams again and again, ever more rarely.
func TestLinkWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ask  func(context.Context) (int, error)
		want uint64
	}{
		{"it answers", func(context.Context) (int, error) { return 0, nil }, 0},
		{"its process has ended", func(context.Context) (int, error) {
			return 0, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}, 0},
		{"nothing comes", func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }, 1},
		{"a stream is missing", func(context.Context) (int, error) { return 1, nil }, 4}, // after 0.5, 2.5, 6.5 and 14.5 limits or a little more
	} {
		synctest.Test(t, func(t *testing.T) {
			tr := &countingTransport{}
			ls := newOneLink(tr)
			ls.Ask = func(ctx context.Context, _ string, _, _ uint64) (int, error) { return tt.ask(ctx) }
			ls.Group = new(errgroup.Group)
			ctx, cancel := context.WithTimeout(t.Context(), 20*ls.Limit)
			defer cancel()
			testkit.Must(t, ls.Watch(ctx))
			testkit.Must(t, ls.Group.Wait())
			if got := ls.remade.Load(); got != tt.want || len(tr.did) != int(2*tt.want) {
				t.Errorf("%s: counted %d, the transport was told %q; want %d", tt.name, got, tr.did, tt.want)
			}
		})
	}
}

// The answer to a peer says how many of its streams are missing; that of a
// program that does not know the question, that it is there.
func TestLinkRoute(t *testing.T) {
	t.Parallel()
	ls := NewLinks(zap.NewNop(), 1, 7, time.Millisecond, time.Second)
	ls.follow(map[uint64]string{2: "b"}, time.Now(), false)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+LinkPath+"{id}", ls.Serve)
	hold := make(chan struct{})
	entered := make(chan struct{})
	mux.Handle("/raft/stream/", ls.HoldStreams(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-hold
	})))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	c := peerclient.New()
	want := func(self uint64, missing int) {
		t.Helper()
		if got, err := AskLink(c)(t.Context(), srv.URL, 7, self); err != nil || got != missing {
			t.Errorf("node %d is told that %d streams are missing, %v; want %d", self, got, err, missing)
		}
	}
	stream := func(path string) {
		go func() {
			if resp, err := http.Get(srv.URL + path); err == nil {
				resp.Body.Close()
			}
		}()
		<-entered
	}
	want(2, 2)
	want(3, 0) // no peer
	stream("/raft/stream/msgapp/2")
	want(2, 1)
	stream("/raft/stream/msgapp/2") // the same again
	want(2, 1)
	stream("/raft/stream/message/3")
	want(2, 1)
	stream("/raft/stream/message/2")
	want(2, 0)
	for range 4 {
		hold <- struct{}{}
	}
	testkit.Eventually(t, "the streams to end", func() bool { return ls.missing(2) == 2 })
	for path, status := range map[string]int{LinkPath + "2": http.StatusPreconditionFailed, LinkPath + "x": http.StatusPreconditionFailed} {
		resp, err := http.Get(srv.URL + path)
		testkit.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("GET %s without the cluster's ID: %s, want %d", path, resp.Status, status)
		}
	}
	if missing, err := AskLink(c)(t.Context(), srv.URL+"/not-known", 7, 2); missing != 0 || err != nil {
		t.Errorf("a program without the route: %d streams are missing, %v", missing, err)
	}
	srv.Close()
	if _, err := AskLink(c)(t.Context(), srv.URL, 7, 2); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a node that has ended: %v, want that the connection was refused", err)
	}
}

// A writer that TCP holds up, because nobody reads, must not hold up this node
// while it lets the peer go.
func TestLinkBlockedWriter(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	var lost atomic.Int64 // messages for which there was no room
	ls := newOneLink(nil)
	ls.Limit = time.Hour // no help from the kernel
	cfg := config.DefaultConfig()
	cfg.ID, cfg.PeerURL = 1, "http://"+l.Addr().String()
	tr, err := New(cfg, zap.NewNop(), 7, deafRaft{&lost}, refusal.NewRefusals(zap.NewNop()), nil, make(chan error, 1), (*peertls.Door)(nil))
	testkit.Must(t, err)
	defer tr.Stop()
	ls.Transport = tr
	tr.AddPeer(2, []string{ls.connected[2]})
	server := &http.Server{Handler: ls.HoldStreams(tr), ConnContext: web.ConnContext}
	go func() { _ = server.Serve(web.HangUpListener{Listener: l}) }()
	defer func() { testkit.Must(t, server.Close()) }()

	conn, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	defer conn.Close()
	req, err := http.NewRequest(http.MethodGet, "http://"+l.Addr().String()+"/raft/stream/message/2", nil)
	testkit.Must(t, err)
	refusal, err := http.Get(req.URL.String()) // without a version; it names its own
	testkit.Must(t, err)
	testkit.Must(t, refusal.Body.Close())
	speaks := refusal.Header.Get("X-Server-Version")
	for name, value := range map[string]string{"X-Server-From": "2", "X-Server-Version": speaks,
		"X-Min-Cluster-Version": speaks, "X-Etcd-Cluster-Id": "7", "X-Raft-To": "1"} {
		req.Header.Set(name, value)
	}
	testkit.Must(t, req.Write(conn))
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), req)
	testkit.Must(t, err)
	send := func(size int) {
		entry := &raftpb.Entry{Data: make([]byte, size)}
		tr.Send([]*raftpb.Message{{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: []*raftpb.Entry{entry}}})
	}
	// Until the writer has the stream, messages go elsewhere.
	came := make(chan error)
	go func() { _, err := resp.Body.Read(make([]byte, 1)); came <- err }()
	for waiting := true; waiting; {
		send(1)
		select {
		case err := <-came:
			testkit.Must(t, err)
			waiting = false
		case <-time.After(time.Millisecond):
		}
	}
	// Until its queue is full, because it writes no more. The failures of what
	// went elsewhere are fewer.
	for before := lost.Load(); lost.Load() < before+1000; {
		send(64 << 10)
	}
	done := make(chan bool)
	go func() { done <- ls.remake(2) }()
	tr.Send([]*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), To: new(uint64(3))}}) // does not wait
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the peer cannot be let go while the writer is held up")
		testkit.Must(t, conn.Close())
		<-done
	}
}

// deafRaft takes messages, does nothing with them, and counts complaints.
type deafRaft struct{ unreachable *atomic.Int64 }

func (deafRaft) Process(context.Context, *raftpb.Message) error { return nil }

func (deafRaft) IsIDRemoved(uint64) bool { return false }

func (r deafRaft) ReportUnreachable(uint64) { r.unreachable.Add(1) }

func (deafRaft) ReportSnapshot(uint64, raft.SnapshotStatus) {}
