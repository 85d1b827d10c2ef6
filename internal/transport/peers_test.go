package transport

import (
	"bytes"
	"context"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peertls"
	"raftkv/internal/refusal"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
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

// wirePeers makes the transports of n nodes that know each other.
func wirePeers(t *testing.T, n int) []*wiredPeers {
	return wireWith(t, n, func(*config.Config) *peertls.Door { return nil })
}

// wireWith is wirePeers with the doors that open opens.
func wireWith(t *testing.T, n int, open func(*config.Config) *peertls.Door) []*wiredPeers {
	t.Helper()
	var all []*wiredPeers
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		cfg := config.DefaultConfig()
		cfg.ID, cfg.PeerURL, cfg.DataDir = uint64(i+1), "http://"+l.Addr().String(), t.TempDir()
		door := open(&cfg)
		w := &wiredPeers{raft: newHeardRaft(), refusals: refusal.NewRefusals(zap.NewNop()), url: cfg.PeerURL}
		w.links = NewLinks(zap.NewNop(), cfg.ID, 7, time.Millisecond, time.Second)
		w.Peers, err = New(cfg, zap.NewNop(), 7, w.raft, w.refusals, nil, make(chan error, 1), door)
		testkit.Must(t, err)
		w.links.Transport, w.links.ActiveSince, w.links.Unreachable = w.Peers, w.ActiveSince, func(uint64) {}
		w.links.Secure(door)
		server := &http.Server{Handler: w.links.HoldStreams(w.Peers), ConnContext: web.ConnContext}
		go func() { _ = server.Serve(web.HangUpListener{Listener: door.Listen(l)}) }()
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
	nodes := wirePeers(t, 3)
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
	nodes := wirePeers(t, 3)
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
	one := wirePeers(t, 1)[0]
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

// Guarantee: with TLS, messages, snapshots' routes and streams go as without, and to whom they are meant for alone.
func TestPeersOverTLS(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	names := map[uint64]string{1: "1.raftkv", 2: "2.raftkv", 3: "3.raftkv"}
	doors := make(map[uint64]*peertls.Door)
	nodes := wireTLSPeers(t, 3, ca, names, doors)
	one, two := nodes[0], nodes[1]
	sendUntil(t, one, two, heartbeat(1, 2))
	testkit.Eventually(t, "streams", func() bool {
		return one.links.streamsOf(2) == streamsPerPeer && two.links.streamsOf(1) == streamsPerPeer
	})
	// What was dialed to member 2 demands its name: member 3 at its address gets nothing.
	one.RemovePeer(2)
	testkit.Eventually(t, "the streams to end", func() bool { return two.links.streamsOf(1) == 0 })
	before := len(nodes[2].raft.heard)
	one.AddPeer(2, []string{nodes[2].url})
	for range 20 {
		one.Send([]*raftpb.Message{heartbeat(1, 2)})
		time.Sleep(5 * time.Millisecond)
	}
	if got := len(nodes[2].raft.heard); got != before || nodes[2].links.streamsOf(1) != streamsPerPeer {
		t.Errorf("node 3 was told %d messages for node 2", got-before)
	}
	if !one.ActiveSince(2).IsZero() {
		t.Error("there are connections to node 2 where node 3 is")
	}
}

// Guarantee: after a change of the CAs the connections to each peer are made anew, and take the next CA; a snapshot on its way is left alone.
func TestPeersFollowTheirCertificates(t *testing.T) {
	t.Parallel()
	ca, next := testkit.NewCA(t), testkit.NewCA(t)
	names := map[uint64]string{1: "1.raftkv", 2: "2.raftkv", 3: "3.raftkv"}
	doors := make(map[uint64]*peertls.Door)
	dirs := make(map[uint64]string)
	nodes := wireTLSPeersIn(t, 3, ca, names, doors, dirs)
	for _, w := range nodes {
		ctx, cancel := context.WithCancel(context.Background())
		w.links.Ask = func(context.Context, string, uint64, uint64) (int, error) { return 0, nil }
		w.links.Group = new(errgroup.Group)
		w.links.Group.Go(func() error { return w.links.Watch(ctx) })
		t.Cleanup(func() { cancel(); testkit.Must(t, w.links.Group.Wait()) })
	}
	all := func(what string) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			for i, w := range nodes {
				for j := range nodes {
					if i != j && (w.links.streamsOf(uint64(j+1)) != streamsPerPeer || w.ActiveSince(uint64(j+1)).IsZero()) {
						return false
					}
				}
			}
			return true
		})
	}
	all("streams")
	one := nodes[0]
	old2, old3 := one.get(2), one.get(3)
	done := one.links.Receives(2)
	both := append(ca.PEM(), next.PEM()...)
	for _, dir := range dirs { // first both CAs everywhere, with the certificates that there were
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), both, 0o600))
	}
	for _, w := range nodes {
		testkit.Eventually(t, "the connections to be made anew", func() bool {
			return w == one && one.get(3) != old3 || w != one && len(w.links.outdatedNow()) == 0
		})
	}
	if one.get(2) != old2 {
		t.Error("connections were made anew with a snapshot on its way")
	}
	done()
	testkit.Eventually(t, "the connections to be made anew", func() bool { return one.get(2) != old2 })
	for id, dir := range dirs { // then certificates of the next one, and both CAs
		next.Files(dir, next.Certificate(time.Hour, names[id]))
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), both, 0o600))
	}
	for id, dir := range dirs { // then the next CA alone
		testkit.Eventually(t, "the certificate", func() bool { f, _ := doors[id].Files(); return fileHas(t, f.Cert, filepath.Join(dir, "cert.pem")) })
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), next.PEM(), 0o600))
	}
	for id, dir := range dirs {
		testkit.Eventually(t, "the CA", func() bool { f, _ := doors[id].Files(); return fileHas(t, f.CA, filepath.Join(dir, "ca.pem")) })
	}
	for _, w := range nodes {
		testkit.Eventually(t, "the connections to be made anew", func() bool { return len(w.links.outdatedNow()) == 0 })
	}
	all("streams of the next CA")
	sendUntil(t, one, nodes[1], heartbeat(1, 2))
}

// A peer whose scheme has changed is made anew, so that its streams move; another move
// leaves them.
func TestLinkSchemes(t *testing.T) {
	t.Parallel()
	tr := &countingTransport{}
	ls := newOneLink(tr)
	ls.ActiveSince = func(uint64) time.Time { return time.Unix(1, 0) }
	at := func(url string) membership.Membership {
		return membership.Membership{Members: map[uint64]membership.Member{2: {ID: 2, PeerURL: url}}}
	}
	for _, tt := range []struct {
		url  string
		anew bool
	}{
		{"http://127.0.0.1:2", false}, {"https://127.0.0.1:2", true}, {"https://127.0.0.1:3", false}, {"http://127.0.0.1:3", true},
	} {
		tr.did = nil
		if moved := ls.Connect(at(tt.url)); moved[2] != tt.url {
			t.Errorf("%s: moved %v", tt.url, moved)
		}
		ls.renewOne(time.Now().Add(time.Hour))
		if (len(tr.did) == 2) != tt.anew || tt.anew && tr.did[1] != "add 2 at "+tt.url {
			t.Errorf("%s: the transport was told %q", tt.url, tr.did)
		}
	}
}

// Connections are made anew of one peer after the other: when the one before is
// connected again, or has had its time.
func TestLinkRenewsOneByOne(t *testing.T) {
	t.Parallel()
	tr := &countingTransport{}
	ls := newOneLink(tr)
	ls.connected = map[uint64]string{2: "http://127.0.0.1:2", 3: "http://127.0.0.1:3", 4: "http://127.0.0.1:4"}
	var active atomic.Uint64
	ls.ActiveSince = func(id uint64) time.Time {
		if id == active.Load() {
			return time.Unix(1, 0)
		}
		return time.Time{}
	}
	now := time.Now()
	step := func(at time.Time, want int) {
		t.Helper()
		ls.renewOne(at)
		if len(tr.did) != want {
			t.Errorf("the transport was told %q, want %d orders", tr.did, want)
		}
	}
	step(now, 0)
	done := ls.Receives(2)
	ls.Renew()
	step(now, 2) // 3
	step(now, 2)
	active.Store(3)
	step(now, 4) // 4
	step(now.Add(ls.Limit-1), 4)
	step(now.Add(ls.Limit), 4) // 2 gets a snapshot
	done()
	step(now.Add(ls.Limit), 6)
	step(now.Add(time.Hour), 6)
	if want := "add 2 at http://127.0.0.1:2"; tr.did[5] != want {
		t.Errorf("the transport was told %q", tr.did)
	}
	ls.connected[5] = "http://127.0.0.1:5"
	ls.Connect(membership.Membership{Members: map[uint64]membership.Member{6: {ID: 6, PeerURL: "http://127.0.0.1:6"}}})
	if !ls.outdated[6] {
		t.Error("who comes after a change may have been made before it")
	}
}

func fileHas(t *testing.T, name, as string) bool {
	want, err := os.ReadFile(as)
	testkit.Must(t, err)
	got, err := os.ReadFile(name)
	return err == nil && bytes.HasPrefix(got, want)
}

func (ls *Links) outdatedNow() map[uint64]bool {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	return maps.Clone(ls.outdated)
}

func wireTLSPeers(t *testing.T, n int, ca *testkit.CA, names map[uint64]string, doors map[uint64]*peertls.Door) []*wiredPeers {
	return wireTLSPeersIn(t, n, ca, names, doors, make(map[uint64]string))
}

// wireTLSPeersIn is wirePeers with TLS. It notes the doors, and where their files are.
func wireTLSPeersIn(t *testing.T, n int, ca *testkit.CA, names map[uint64]string, doors map[uint64]*peertls.Door, dirs map[uint64]string) []*wiredPeers {
	return wireWith(t, n, func(cfg *config.Config) *peertls.Door {
		dirs[cfg.ID] = t.TempDir()
		cfg.PeerCertFile, cfg.PeerKeyFile, cfg.PeerTrustedCAFile = ca.Files(dirs[cfg.ID], ca.Certificate(time.Hour, names[cfg.ID]))
		cfg.PeerURL = strings.Replace(cfg.PeerURL, "http:", "https:", 1)
		_, d, err := peertls.Open(t.Context(), *cfg, zap.NewNop())
		testkit.Must(t, err)
		doors[cfg.ID] = d
		return d
	})
}
