package transport

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"raftkv/internal/certs"
	"raftkv/internal/config"
	"raftkv/internal/refusal"
	"strings"
	"sync"
	"time"

	etcdtransport "go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// One rafthttp.Transport for each peer.
//
// rafthttp can have all peers in one. But it does not say then from whom a message
// came, its certificates are those that it was started with, and while it lets one
// peer go nothing goes to the others. With a transport of its own a peer has its
// own name in TLS, is made anew without the others, and what comes down the
// streams that were dialed to it has its ID.

// Door is the TLS of a node towards its peers; package peertls.
type Door interface {
	// CheckURL says why this node does not dial a URL; nil: it does.
	CheckURL(url string) error
	// Copy makes the files that Files names, in the data directory.
	Copy(dataDir string) error
	// Files names files with the certificate, the private key and the CAs in force;
	// ok is false if there are none.
	Files() (f certs.Files, ok bool)
	// MemberName is the name that the certificate of a member has.
	MemberName(id uint64) string
	// KnowMembers tells where the members are, and OnChange has f called after each
	// change of the certificates in force.
	KnowMembers(members func() map[uint64]string)
	OnChange(f func())
}

// Peers carries raft's messages to the members, and hands what comes in to the
// transport of the member that it comes from. It is the production Messenger.
type Peers struct {
	make      func(to types.ID, raft rafthttp.Raft) (*rafthttp.Transport, error)
	log       *zap.Logger
	node      rafthttp.Raft
	refusals  *refusal.Refusals
	door      Door
	strangers *peer // answers whoever is no peer, and has none

	mu      sync.RWMutex // held for reading while messages are passed on, which does not wait
	peers   map[types.ID]*peer
	failed  map[types.ID]string // peers whose transport could not be made, and is to be soon
	stopped bool
}

// makeAgain is the time between two tries to make the transport of a peer.
const makeAgain = time.Second

// peer is the transport of one peer.
type peer struct {
	*rafthttp.Transport
	handler http.Handler // its four routes
}

// New makes the production transport of a node, which is secured as door wants it. It puts the snapshots
// that come in where snapshots says, and tells removed when a peer says that this
// node was removed.
func New(cfg config.Config, log *zap.Logger, cluster uint64, n rafthttp.Raft, refusals *refusal.Refusals, snapshots *snap.Snapshotter, removed chan error, door Door) (*Peers, error) {
	urls, err := types.NewURLs([]string{cfg.PeerURL})
	if err != nil {
		return nil, err
	}
	id := types.ID(cfg.ID)
	p := &Peers{log: log, node: n, refusals: refusals, door: door, peers: make(map[types.ID]*peer), failed: make(map[types.ID]string)}
	p.make = func(to types.ID, raft rafthttp.Raft) (*rafthttp.Transport, error) {
		t := &rafthttp.Transport{
			TLSInfo:     tlsInfo(door, to),
			Logger:      log.Named("rafthttp"),
			DialTimeout: time.Second + cfg.ElectionTimeout,
			ID:          id,
			URLs:        urls,
			ClusterID:   types.ID(cluster),
			Raft:        raft,
			Snapshotter: snapshots,
			ServerStats: stats.NewServerStats(id.String(), id.String()),
			LeaderStats: stats.NewLeaderStats(log, id.String()),
			ErrorC:      removed,
		}
		return t, t.Start()
	}
	if err := door.Copy(cfg.DataDir); err != nil {
		return nil, err
	}
	p.strangers, err = p.start(id, n)
	return p, err
}

// tlsInfo is by what rafthttp secures what it dials to a peer.
func tlsInfo(door Door, to types.ID) etcdtransport.TLSInfo {
	files, ok := door.Files()
	if !ok {
		return etcdtransport.TLSInfo{}
	}
	return etcdtransport.TLSInfo{CertFile: files.Cert, KeyFile: files.Key, TrustedCAFile: files.CA, ServerName: door.MemberName(uint64(to))}
}

func (p *Peers) start(to types.ID, raft rafthttp.Raft) (*peer, error) {
	t, err := p.make(to, raft)
	if err != nil {
		return nil, err
	}
	return &peer{t, t.Handler()}, nil
}

// AddPeer implements PeerDirectory. A peer that is there stays as it is. One whose URL
// this node does not dial gets no messages.
func (p *Peers) AddPeer(id types.ID, urls []string) {
	if p.get(id) != nil {
		return
	}
	if err := p.door.CheckURL(urls[0]); err != nil {
		p.log.Warn("no connections to a peer", zap.Uint64("peer", uint64(id)), zap.Error(err))
		return
	}
	// Not under the lock: it reads files, and the raft loop sends meanwhile.
	one, err := p.start(id, onePeer{p.node, uint64(id), p.refusals})
	p.mu.Lock()
	taken := p.stopped || p.peers[id] != nil
	switch {
	case taken:
	case err != nil:
		p.log.Error("no connections to a peer yet", zap.Uint64("peer", uint64(id)), zap.Error(err))
		p.failed[id] = urls[0]
		time.AfterFunc(makeAgain, func() { p.addAgain(id) })
	default:
		p.peers[id] = one
		one.AddPeer(id, urls)
	}
	p.mu.Unlock()
	if taken && one != nil {
		one.Stop()
	}
}

// addAgain adds a peer whose transport could not be made, unless it has gone.
func (p *Peers) addAgain(id types.ID) {
	p.mu.Lock()
	url, ok := p.failed[id]
	delete(p.failed, id)
	p.mu.Unlock()
	if ok {
		p.AddPeer(id, []string{url})
	}
}

// UpdatePeer implements PeerDirectory. Connections that there are stay.
func (p *Peers) UpdatePeer(id types.ID, urls []string) {
	if p.get(id) == nil || p.door.CheckURL(urls[0]) != nil {
		p.RemovePeer(id)
		p.AddPeer(id, urls) // which says why not, if it does not
		return
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if one := p.peers[id]; one != nil {
		one.UpdatePeer(id, urls)
	}
}

// RemovePeer implements PeerDirectory. It may wait for a write to the peer; what
// goes to others does not.
func (p *Peers) RemovePeer(id types.ID) {
	p.mu.Lock()
	one := p.peers[id]
	delete(p.peers, id)
	delete(p.failed, id)
	p.mu.Unlock()
	if one != nil {
		one.Stop()
	}
}

// Send implements Messenger.
func (p *Peers) Send(msgs []*raftpb.Message) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for i, m := range msgs {
		if one := p.peers[types.ID(m.GetTo())]; one != nil {
			one.Send(msgs[i : i+1])
		}
	}
}

// SendSnapshot implements Messenger.
func (p *Peers) SendSnapshot(m *snap.Message) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	one := p.peers[types.ID(m.GetTo())]
	if one == nil {
		m.CloseWithError(ErrNotSent)
		return
	}
	one.SendSnapshot(m)
}

// Stop implements Messenger. No peer can be added after it.
func (p *Peers) Stop() {
	p.mu.Lock()
	all := []*peer{p.strangers}
	for _, one := range p.peers {
		all = append(all, one)
	}
	p.peers, p.failed, p.stopped = nil, nil, true
	p.mu.Unlock()
	var ended sync.WaitGroup
	for _, one := range all {
		ended.Go(one.Stop)
	}
	ended.Wait()
}

// Pause has all that goes to the peers, and comes down the streams dialed to them,
// be dropped, until Resume. Tests cut a node off with it.
func (p *Peers) Pause() { p.each((*rafthttp.Transport).Pause) }

// Resume ends what Pause began.
func (p *Peers) Resume() { p.each((*rafthttp.Transport).Resume) }

func (p *Peers) each(f func(*rafthttp.Transport)) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, one := range p.peers {
		f(one.Transport)
	}
}

// ActiveSince is since when there is a connection to a peer; zero: there is none.
func (p *Peers) ActiveSince(id uint64) time.Time {
	one := p.get(types.ID(id))
	if one == nil {
		return time.Time{}
	}
	return one.ActiveSince(types.ID(id))
}

func (p *Peers) get(id types.ID) *peer {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.peers[id]
}

// StreamPath is where a peer opens a stream; its kind and the peer's ID follow.
const StreamPath = "/raft/stream/"

// SenderOf returns the ID of the node that a request of rafthttp's says it comes
// from. A stream says it twice.
func SenderOf(r *http.Request) (uint64, error) {
	text := r.Header.Get("X-Server-From")
	id, err := types.IDFromString(text)
	if err != nil {
		return 0, fmt.Errorf("%.100q is not the ID of a peer", text)
	}
	if strings.HasPrefix(r.URL.Path, StreamPath) && path.Base(r.URL.Path) != id.String() {
		return 0, fmt.Errorf("node %d asks for the stream of %.100q", id, path.Base(r.URL.Path))
	}
	return uint64(id), nil
}

// ServeHTTP serves rafthttp's four routes.
func (p *Peers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	one := p.strangers
	if id, err := SenderOf(r); err == nil {
		if known := p.get(types.ID(id)); known != nil {
			one = known
		}
	}
	one.handler.ServeHTTP(w, r)
}

// CheckSender refuses a message that names another sender than the node that it
// comes from. Proposals and reads alone are passed on for others.
func CheckSender(m *raftpb.Message, from uint64) error {
	switch m.GetType() {
	case raftpb.MsgProp, raftpb.MsgReadIndex:
		return nil
	}
	if m.GetFrom() == from {
		return nil
	}
	// StatusForbidden would end the sender: rafthttp takes it for a removal.
	return refusal.Refusal{Status: http.StatusBadRequest, Kind: refusal.RefusedSender,
		Reason: fmt.Sprintf("node %d sends a %s message of node %d", from, m.GetType(), m.GetFrom())}
}

// onePeer is this node's raft, as the transport of one peer sees it.
type onePeer struct {
	rafthttp.Raft
	id       uint64
	refusals *refusal.Refusals
}

// Process takes what the peer sent, on a stream that was dialed to it or by itself.
func (r onePeer) Process(ctx context.Context, m *raftpb.Message) error {
	if err := CheckSender(m, r.id); err != nil {
		r.refusals.Note(r.id, err)
		return err
	}
	return r.Raft.Process(ctx, m)
}
