package sim

import (
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Transport is one life's access to the network, in place of rafthttp's.
type Transport[N Node] struct {
	net  *Net[N]
	life N

	mu    sync.Mutex
	peers map[types.ID]bool
}

// Transport makes the access of a life to the network. It knows no peers yet.
func (s *Net[N]) Transport(life N) *Transport[N] {
	return &Transport[N]{net: s, life: life, peers: make(map[types.ID]bool)}
}

// AddPeer has messages to a node be sent. Where it is the network knows.
func (t *Transport[N]) AddPeer(id types.ID, _ []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[id] = true
}

// RemovePeer ends what AddPeer began. A little later a peer that was removed from
// the cluster finds that out.
func (t *Transport[N]) RemovePeer(id types.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, id)
	go func() {
		time.Sleep(100 * time.Millisecond)
		t.net.hangUp(t.life, uint64(id))
	}()
}

// UpdatePeer does nothing: the network knows where a node is.
func (t *Transport[N]) UpdatePeer(types.ID, []string) {}

// Stop does nothing: a life that has ended is not on the network.
func (t *Transport[N]) Stop() {}

func (t *Transport[N]) knows(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[types.ID(id)]
}

// Send puts messages on their way, like rafthttp only to peers it knows.
func (t *Transport[N]) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		if t.knows(m.GetTo()) {
			t.net.send(t.life, proto.Clone(m).(*raftpb.Message))
		}
	}
}

// SendSnapshot streams a file to the receiver, as the snapshot route does.
func (t *Transport[N]) SendSnapshot(m *snap.Message) {
	if !t.knows(m.GetTo()) {
		m.CloseWithError(errors.New("unknown peer"))
		return
	}
	copied := proto.Clone(m.Message).(*raftpb.Message)
	go func() {
		m.CloseWithError(t.net.sendSnapshot(t.life, copied, m.ReadCloser))
	}()
}
