package transport

import (
	"context"
	"net"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/refusal"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// heardRaft passes on what comes in.
type heardRaft struct {
	deafRaft
	heard chan *raftpb.Message
}

func newHeardRaft() heardRaft {
	return heardRaft{deafRaft{new(atomic.Int64)}, make(chan *raftpb.Message, 1000)}
}

func (r heardRaft) Process(_ context.Context, m *raftpb.Message) error { r.heard <- m; return nil }

// wiredPeers is the transport of one node, behind a listener.
type wiredPeers struct {
	*Peers
	raft     heardRaft
	refusals *refusal.Refusals
	links    *Links
	url      string
}

// wirePeers makes the transports of n nodes that know each other. adapt may change a node's flags.
func wirePeers(t *testing.T, n int, adapt func(*config.Config), serve func(*config.Config, net.Listener, *Links) net.Listener) []*wiredPeers {
	t.Helper()
	var all []*wiredPeers
	for i := range n {
		cfg := config.DefaultConfig()
		cfg.ID = uint64(i + 1)
		adapt(&cfg)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		w := &wiredPeers{raft: newHeardRaft(), refusals: refusal.NewRefusals(zap.NewNop()), url: "http://" + l.Addr().String()}
		cfg.PeerURL = w.url
		w.links = NewLinks(zap.NewNop(), cfg.ID, 7, time.Millisecond, time.Second)
		w.Peers, err = New(cfg, zap.NewNop(), 7, w.raft, w.refusals, nil, make(chan error, 1))
		testkit.Must(t, err)
		w.links.Transport, w.links.ActiveSince, w.links.Unreachable = w.Peers, w.ActiveSince, func(uint64) {}
		server := &http.Server{Handler: w.links.HoldStreams(w.Peers), ConnContext: web.ConnContext}
		go func() { _ = server.Serve(web.HangUpListener{Listener: serve(&cfg, l, w.links)}) }()
		t.Cleanup(func() { w.Stop(); testkit.Must(t, server.Close()) })
		all = append(all, w)
	}
	for i, w := range all {
		for j, other := range all {
			if i != j {
				w.AddPeer(types.ID(j+1), []string{other.url})
				w.links.connected[uint64(j+1)] = other.url
			}
		}
	}
	return all
}

func plain(*config.Config) {}

func bare(_ *config.Config, l net.Listener, _ *Links) net.Listener { return l }

// sendUntil sends a message until it has come.
func sendUntil(t *testing.T, from, to *wiredPeers, m *raftpb.Message) {
	t.Helper()
	testkit.Eventually(t, "a message to come", func() bool {
		from.Send([]*raftpb.Message{m})
		select {
		case <-to.raft.heard:
			return true
		case <-time.After(10 * time.Millisecond):
			return false
		}
	})
}

func heartbeat(from, to uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(to), Term: new(uint64(1))}
}

// Guarantee: on a stream that was dialed to a peer, nobody else can speak.
func TestPeersKnowTheSender(t *testing.T) {
	t.Parallel()
	nodes := wirePeers(t, 3, plain, bare)
	one, two := nodes[0], nodes[1]
	sendUntil(t, two, one, heartbeat(2, 1))
	testkit.Eventually(t, "both streams", func() bool {
		return one.links.streamsOf(2) == streamsPerPeer && two.links.streamsOf(1) == streamsPerPeer
	})
	before := one.refusals.Count(refusal.RefusedSender)
	for _, m := range []*raftpb.Message{
		heartbeat(3, 1),
		{Type: raftpb.MsgApp.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(uint64(1)), Index: new(uint64(9))},
		{Type: raftpb.MsgReadIndex.Enum(), From: new(uint64(3)), To: new(uint64(1))}, // passed on for node 3
	} {
		two.Send([]*raftpb.Message{m})
	}
	testkit.Eventually(t, "two refusals", func() bool { return one.refusals.Count(refusal.RefusedSender) == before+2 })
	for passed := false; !passed; {
		switch m := <-one.raft.heard; {
		case m.GetType() == raftpb.MsgReadIndex:
			passed = true
		case m.GetFrom() != 2: // of the heartbeats some may be late
			t.Errorf("node 1 took %v of node 2", m)
		}
	}
}

// Guarantee: a peer that is made anew leaves the connections to others alone, and
// gets its own again.
func TestPeersAreMadeAnewAlone(t *testing.T) {
	t.Parallel()
	nodes := wirePeers(t, 3, plain, bare)
	one := nodes[0]
	for i, other := range nodes[1:] {
		sendUntil(t, one, other, heartbeat(1, uint64(i+2)))
		testkit.Eventually(t, "streams", func() bool { return one.links.streamsOf(uint64(i+2)) == streamsPerPeer })
	}
	testkit.Eventually(t, "connections to 2", func() bool { return !one.ActiveSince(2).IsZero() && !one.ActiveSince(3).IsZero() })
	since2, since3, old := one.ActiveSince(2), one.ActiveSince(3), one.get(2)
	if !one.links.remake(2) {
		t.Fatal("it was not made anew")
	}
	sendUntil(t, one, nodes[1], heartbeat(1, 2))
	testkit.Eventually(t, "a new connection to 2", func() bool { return one.ActiveSince(2).After(since2) })
	testkit.Eventually(t, "new streams of 2", func() bool { return one.links.streamsOf(2) == streamsPerPeer })
	if got := one.ActiveSince(3); !got.Equal(since3) {
		t.Errorf("the connections to 3 are of %v, not of %v", got, since3)
	}
	if one.get(2) == old {
		t.Error("it has the transport that it had")
	}
}

// A snapshot for a node that is no peer fails at once, and after the end nobody is
// taken in.
func TestPeersUnknown(t *testing.T) {
	t.Parallel()
	one := wirePeers(t, 1, plain, bare)[0]
	m := snap.NewMessage(heartbeat(1, 9), http.NoBody, 0)
	one.SendSnapshot(m)
	if ok := <-m.CloseNotify(); ok {
		t.Error("it went")
	}
	one.UpdatePeer(9, []string{"http://127.0.0.1:1"})
	one.RemovePeer(9)
	one.Stop()
	one.AddPeer(2, []string{"http://127.0.0.1:1"})
	if one.get(2) != nil {
		t.Error("a peer was taken in after the end")
	}
}

// streamsOf counts the kinds of streams that a peer reads from this node.
func (ls *Links) streamsOf(id uint64) int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	kinds := make(map[string]bool)
	for s := range ls.streams[id] {
		kinds[s.kind] = true
	}
	return len(kinds)
}
