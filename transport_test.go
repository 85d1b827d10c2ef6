package main

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/listening"
	"raftkv/internal/peerclient"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"raftkv/internal/wait"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// peerWatch sees what comes in at a node's peer listener.
type peerWatch struct {
	noStreams atomic.Bool // refuse the long-lived streams, so that rafthttp has to do without

	mu    sync.Mutex
	count map[string]int             // requests, by route
	conns map[string]map[string]bool // connections, by route
}

var peerRoutes = []string{"/raft/stream/", "/raft/snapshot", "/raft/probing", "/raft"}

func (w *peerWatch) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, route := range peerRoutes {
			if !strings.HasPrefix(r.URL.Path, route) || strings.HasPrefix(r.URL.Path, "/raftkv/") {
				continue
			}
			w.mu.Lock()
			w.count[route]++
			if w.conns[route] == nil {
				w.conns[route] = make(map[string]bool)
			}
			w.conns[route][r.RemoteAddr] = true
			w.mu.Unlock()
			if route == "/raft/stream/" && w.noStreams.Load() {
				http.Error(rw, "not now", http.StatusServiceUnavailable)
				return
			}
			break
		}
		h.ServeHTTP(rw, r)
	})
}

// seen returns how many requests came on a route, and on how many connections.
func (w *peerWatch) seen(route string) (requests, conns int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[route], len(w.conns[route])
}

// wireNode is a node with its real transport, in this process.
type wireNode struct {
	*server
	watch *peerWatch
	stop  func() error
}

// startWire starts n nodes over real connections. adapt sees each before it
// starts.
func startWire(t *testing.T, n int, adapt func(*wireNode)) []*wireNode {
	t.Helper()
	log := zap.NewNop()
	var listeners []*stoppableListener
	var peers []address.Peer
	for i := range n {
		l, err := listen("127.0.0.1:0", listening.PeerServer(log))
		testkit.Must(t, err)
		listeners = append(listeners, l)
		peers = append(peers, address.Peer{ID: uint64(i + 1), URL: fmt.Sprintf("http://127.0.0.1:%d", l.port())})
	}
	var nodes []*wireNode
	for i, l := range listeners {
		cfg := config.DefaultConfig()
		cfg.ID, cfg.Cluster, cfg.PeerURL, cfg.DataDir = peers[i].ID, peers, peers[i].URL, t.TempDir()
		clients, err := listen("127.0.0.1:0", listening.ClientServer(cfg.RequestTimeout, log))
		testkit.Must(t, err)
		ask := peerclient.New()
		found, err := boot.PrepareDir(t.Context(), cfg, log, ask)
		testkit.Must(t, err)
		s, err := openServer(t.Context(), cfg, log, found, clients.port(), ask, nil)
		testkit.Must(t, err)
		w := &wireNode{server: s, watch: &peerWatch{count: make(map[string]int), conns: make(map[string]map[string]bool)}}
		w.rafthttp = w.watch.wrap(w.rafthttp)
		adapt(w)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.run(ctx, clients, l) }()
		w.stop = sync.OnceValue(func() error { cancel(); return <-done })
		t.Cleanup(func() {
			if err := w.stop(); err != nil {
				t.Errorf("node %d: %v", cfg.ID, err)
			}
		})
		nodes = append(nodes, w)
	}
	return nodes
}

func (w *wireNode) put(t *testing.T, key, value string) {
	t.Helper()
	if res := w.proposals.Propose(t.Context(), state.EncodeWrite(state.KindPut, state.Condition{}, key, []byte(value))); res.Err != nil {
		t.Fatalf("put on node %d: %v", w.cfg.ID, res.Err)
	}
}

// The four routes of rafthttp are in use, each for what it is there for, and
// connections are kept: not one for each message.
func TestTransportRoutes(t *testing.T) {
	t.Parallel()
	nodes := startWire(t, 3, func(w *wireNode) {
		w.watch.noStreams.Store(true)
		w.node.links.Limit = time.Hour // streams are missing on purpose
		w.storage.Tail.Limit = 4 * storage.EntryWeight
	})
	// Without streams, everything goes by single requests.
	for i := range 50 {
		nodes[0].put(t, "k", fmt.Sprint(i))
	}
	for _, w := range nodes {
		testkit.Eventually(t, "many requests on /raft", func() bool { n, _ := w.watch.seen("/raft"); return n >= 50 })
		if n, conns := w.watch.seen("/raft"); conns > n/3 {
			t.Errorf("node %d: %d requests on /raft came on %d connections", w.cfg.ID, n, conns)
		}
	}
	for _, w := range nodes {
		w.watch.noStreams.Store(false)
	}
	// With streams, single requests come no more, and the streams stay.
	settled := func() (requests, streams int) {
		for _, w := range nodes {
			n, _ := w.watch.seen("/raft")
			s, _ := w.watch.seen("/raft/stream/")
			requests, streams = requests+n, streams+s
		}
		return requests, streams
	}
	testkit.Eventually(t, "messages to go by the streams alone", func() bool {
		was, streams := settled()
		for i := range 200 {
			nodes[i%3].put(t, "k", fmt.Sprint(i))
		}
		is, now := settled()
		return was == is && streams == now && streams >= 12 // two for each direction of each link
	})
	// How many connections these take is rafthttp's affair: a probe of its streams
	// keeps none.
	for _, w := range nodes {
		testkit.Eventually(t, "probes", func() bool { n, _ := w.watch.seen("/raft/probing"); return n >= 4 })
	}

	// A follower that hears nothing for longer than the log in memory reaches
	// back gets a snapshot, on the route for it.
	leader, _, _ := nodes[0].node.leaders.Get()
	lag, other := nodes[leader%3], nodes[(leader+1)%3]
	lag.node.transport.(*transport.Peers).Pause()
	before := lag.storage.SnapIndex.Load()
	testkit.Eventually(t, "the log in memory to move on", func() bool {
		other.put(t, "k", "after")
		last, err := lag.storage.Mem.LastIndex() // it may hold more than it has applied
		testkit.Must(t, err)
		for _, w := range nodes {
			if first, err := w.storage.Mem.FirstIndex(); w != lag && (err != nil || first <= last+1) {
				return false
			}
		}
		return true
	})
	lag.node.transport.(*transport.Peers).Resume()
	testkit.Eventually(t, "the snapshot to be installed", func() bool { return lag.storage.SnapIndex.Load() > before })
	if n, _ := lag.watch.seen("/raft/snapshot"); n == 0 {
		t.Error("it did not come on /raft/snapshot")
	}
	lag.put(t, "k", "end")
	testkit.Eventually(t, "the same state everywhere", func() bool {
		for _, w := range nodes {
			if it, _ := w.kv.Get("k"); it == nil || string(it.Value) != "end" {
				return false
			}
		}
		return true
	})
}

// Without this a node that was added since the newest snapshot waits long for
// one that knows it, written at leisure.
func TestSnapshotForANewMemberIsAwaited(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		kv := newTestStore()
		kv.wanted = make(chan struct{}, 1)
		s := &storage.Storage{Recorded: new(wait.Index)}
		c := transport.NewCourier(transport.CourierConfig{Tick: time.Second, Members: kv, Storage: s, Life: life})
		snapshotOf := func(index uint64, voters ...uint64) {
			s.Newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
				Index: new(index), ConfState: &raftpb.ConfState{Voters: voters}}})
			s.Recorded.Advance(index)
		}
		snapshotOf(1, 1)
		got := make(chan *raftpb.Snapshot)
		go func() {
			snap, err := c.SnapshotWith(2)
			if err != nil {
				t.Error(err)
			}
			got <- snap
		}()
		for range 2 { // when the writing begins it is set back, and it must come again
			time.Sleep(c.Tick)
			synctest.Wait()
			if !s.Tail.Awaited.Swap(false) {
				t.Error("it is not awaited")
			}
		}
		snapshotOf(2, 1, 2)
		if snap := <-got; snap.GetMetadata().GetIndex() != 2 {
			t.Errorf("got %v", snap)
		}
	})
}
