//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/reconfig"
	"raftkv/internal/refusal"
	"raftkv/internal/suspect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// simNet is the network between the nodes of a simulation. It delays every
// message, and so reorders them; it may drop and duplicate; it can cut any
// direction of any link.
type simNet struct {
	t *testing.T

	mu        sync.Mutex
	rng       *rand.Rand
	nodes     map[uint64]*server
	drop, dup float64
	spoil     float64               // how often a snapshot breaks off, or comes with a bit flipped
	notes     atomic.Int64          // of disks, that were heard
	transfers int                   // snapshots that were sent
	empty     int                   // appends without entries that were sent
	midway    func(from, to uint64) // called, if not nil, in the middle of each
	slowest   time.Duration
	cut       map[[2]uint64]bool // from, to
	leaders   map[uint64]uint64  // by term: who was seen to lead
	twoLead   bool
}

const simDelay = 2 * time.Millisecond

func newSimNet(t *testing.T, seed uint64) *simNet {
	return &simNet{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), nodes: make(map[uint64]*server), slowest: simDelay,
		cut: make(map[[2]uint64]bool), leaders: make(map[uint64]uint64),
	}
}

// Forget has the network take what follows for another history, in which others
// may lead in the same terms.
func (s *simNet) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.leaders)
}

func (s *simNet) attach(srv *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[srv.cfg.ID] = srv
}

func (s *simNet) detach(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, id)
}

// Isolate cuts a node off in both directions.
func (s *simNet) Isolate(id uint64, from ...uint64) {
	for _, other := range from {
		s.Sever(id, other)
		s.Sever(other, id)
	}
}

// Sever cuts one direction of a link.
func (s *simNet) Sever(from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[[2]uint64{from, to}] = true
}

// Disturb sets how bad the network is.
func (s *simNet) Disturb(drop, dup float64, slowest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop, s.dup, s.slowest = drop, dup, slowest
}

// SpoilSnapshots sets how often one breaks off, and how often it is damaged.
func (s *simNet) SpoilSnapshots(p float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoil = p
}

func (s *simNet) Heal() {
	s.Disturb(0, 0, simDelay)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.cut)
}

func (s *simNet) EmptyAppends() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.empty
}

// checkLeaders reports two leaders of one term (thesis §3.4, election safety).
func (s *simNet) checkLeaders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.twoLead {
		s.t.Error("two nodes led in the same term")
	}
}

// simTransport is one life's access to the network.
type simTransport struct {
	net *simNet
	srv *server // whose it is; set before the node starts

	mu    sync.Mutex
	peers map[types.ID]bool
}

func (s *simNet) Transport(srv *server) *simTransport {
	return &simTransport{net: s, srv: srv, peers: make(map[types.ID]bool)}
}

func (t *simTransport) AddPeer(id types.ID, _ []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[id] = true
}

func (t *simTransport) RemovePeer(id types.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, id)
	go func() {
		time.Sleep(100 * time.Millisecond)
		t.net.hangUp(t.srv, uint64(id))
	}()
}

// hangUp tells a removed node so, as rafthttp does when that node finds its
// connection closed and dials again.
func (s *simNet) hangUp(by *server, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target := s.nodes[id]
	if target == nil || s.cut[[2]uint64{id, by.cfg.ID}] || !by.kv.isRemoved(id) {
		return
	}
	select {
	case target.node.errorC <- errors.New("hung up"):
	default:
	}
}

// SendSnapshot streams a file into the receiver's snap directory, as the
// snapshot route does.
func (t *simTransport) SendSnapshot(m *snap.Message) {
	t.mu.Lock()
	known := t.peers[types.ID(m.GetTo())]
	t.mu.Unlock()
	if !known {
		m.CloseWithError(errors.New("unknown peer"))
		return
	}
	copied := proto.Clone(m.Message).(*raftpb.Message)
	go func() {
		m.CloseWithError(t.net.sendSnapshot(t.srv, copied, m.ReadCloser))
	}()
}

func (s *simNet) sendSnapshot(sender *server, m *raftpb.Message, file io.Reader) error {
	s.mu.Lock()
	delay := time.Duration(s.rng.Int64N(int64(s.slowest))) + time.Microsecond
	lost := s.rng.Float64() < s.drop
	spoiled := s.rng.Float64() < s.spoil
	broken := spoiled && s.rng.IntN(2) == 0
	flipped := spoiled && !broken
	at := s.rng.Int64N(150) // no file is shorter
	midway := s.midway
	s.transfers++
	s.mu.Unlock()
	time.Sleep(delay)
	target, err := s.Reach(sender.cfg.ID, simURL(m.GetTo()))
	if err == nil && lost {
		err = errors.New("lost")
	}
	if err != nil {
		sender.node.ReportUnreachable(m.GetTo())
		return err
	}
	switch {
	case broken:
		file = io.MultiReader(io.LimitReader(file, at), iotest.ErrReader(errors.New("broke off")))
	case flipped:
		file = &flipReader{file, at}
	case midway != nil:
		file = io.MultiReader(io.LimitReader(file, 64), readerFunc(func([]byte) (int, error) {
			midway(sender.cfg.ID, m.GetTo())
			return 0, io.EOF
		}), file)
	}
	if _, err := target.node.inbox.SaveDBFrom(file, m.GetSnapshot().GetMetadata().GetIndex()); err != nil {
		return err
	}
	return target.node.Process(context.Background(), m)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// flipReader flips a bit of the byte at an offset.
type flipReader struct {
	io.Reader
	left int64
}

func (r *flipReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.left >= 0 && r.left < int64(n) {
		p[r.left] ^= 0x10
	}
	r.left -= int64(n)
	return n, err
}

func (t *simTransport) UpdatePeer(types.ID, []string) {}

func (t *simTransport) Stop() {}

// Send puts messages on their way, like rafthttp only to peers it knows.
func (t *simTransport) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		t.mu.Lock()
		known := t.peers[types.ID(m.GetTo())]
		t.mu.Unlock()
		if known {
			t.net.send(t.srv, proto.Clone(m).(*raftpb.Message))
		}
	}
}

func (s *simNet) send(sender *server, m *raftpb.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if typ := m.GetType(); typ == raftpb.MsgApp || typ == raftpb.MsgHeartbeat {
		if was, ok := s.leaders[m.GetTerm()]; ok && was != m.GetFrom() {
			s.twoLead = true
		}
		s.leaders[m.GetTerm()] = m.GetFrom()
		if typ == raftpb.MsgApp && len(m.GetEntries()) == 0 {
			s.empty++
		}
	}
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
	}
	lost := s.rng.Float64() < s.drop
	for range copies {
		delay := time.Duration(s.rng.Int64N(int64(s.slowest))) + time.Microsecond
		go func() {
			time.Sleep(delay)
			s.arrive(sender, proto.Clone(m).(*raftpb.Message), lost)
		}()
	}
}

// arrive delivers a message, and reports what became of it as rafthttp does.
func (s *simNet) arrive(sender *server, m *raftpb.Message, lost bool) {
	s.mu.Lock()
	target := s.nodes[m.GetTo()]
	lost = lost || target == nil || s.cut[[2]uint64{m.GetFrom(), m.GetTo()}]
	s.mu.Unlock()
	err := errors.New("lost")
	if !lost {
		err = target.node.Process(context.Background(), m)
	}
	var refused refusal.Refusal
	if errors.As(err, &refused) && refused.Kind == refusal.RefusedSender {
		// Its streams and single requests say where it is, and come from there.
		from := sender.cfg.PeerURL
		target.node.known.Claim(m.GetFrom(), from, address.HostPortOf(from))
	}
	if errors.As(err, &refused) && refused.Status == http.StatusForbidden {
		select {
		case sender.node.errorC <- err:
		default:
		}
	}
	if err != nil && lost {
		sender.node.ReportUnreachable(m.GetTo())
	}
}

// Reach returns the node at a peer URL, if a request from one gets there.
func (s *simNet) Reach(from uint64, url string) (*server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, srv := range s.nodes {
		if srv.cfg.PeerURL == url && !s.cut[[2]uint64{from, id}] && !s.cut[[2]uint64{id, from}] {
			return srv, nil
		}
	}
	return nil, errors.New("unreachable")
}

// asker stands in for the peer route of membership requests.
func (s *simNet) asker(from uint64) func(context.Context, string, uint64, reconfig.Request) (reconfig.Reply, error) {
	return func(ctx context.Context, url string, _ uint64, r reconfig.Request) (reconfig.Reply, error) {
		time.Sleep(simDelay)
		srv, err := s.Reach(from, url)
		if err != nil {
			return reconfig.Reply{}, err
		}
		return srv.members.Serve(ctx, r), nil
	}
}

func (s *simNet) viewer(from uint64) func(context.Context, string) (map[uint64]reconfig.View, error) {
	return func(ctx context.Context, url string) (map[uint64]reconfig.View, error) {
		srv, err := s.Reach(from, url)
		if err != nil {
			return nil, err
		}
		return srv.members.LeaderView(ctx), nil
	}
}

// stander stands in for the peer route that tells where a log stands.
func (s *simNet) stander(from uint64) func(context.Context, string, uint64, uint64) (suspect.Stand, error) {
	return func(ctx context.Context, url string, node, index uint64) (suspect.Stand, error) {
		time.Sleep(simDelay)
		srv, err := s.Reach(from, url)
		if err != nil {
			return suspect.Stand{}, err
		}
		answer, err := srv.node.doubts.StandFor(ctx, node, index)
		time.Sleep(simDelay)
		return answer, err
	}
}

// informer stands in for the peer route that tells of the cluster.
func (s *simNet) informer(from uint64) func(context.Context, string) (reconfig.ClusterInfo, error) {
	return func(_ context.Context, url string) (reconfig.ClusterInfo, error) {
		time.Sleep(simDelay)
		srv, err := s.Reach(from, url)
		if err != nil {
			return reconfig.ClusterInfo{}, err
		}
		return srv.clusterInfo(context.Background()), nil
	}
}

// found is what a joining node learns from its seeds.
func (s *simNet) found(id uint64) reconfig.ClusterInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, srv := range s.nodes {
		info := srv.clusterInfo(context.Background())
		if _, ok := info.Member(id); ok && other != id {
			return info
		}
	}
	return reconfig.ClusterInfo{}
}
