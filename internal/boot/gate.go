package boot

import (
	"context"
	"maps"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// gate keeps a new node from taking part in raft with a peer until that peer
// has said that it knows of no other node with this ID.
//
// A node whose directory was lost and that starts again under its old ID has
// forgotten its votes and what it acknowledged: with it, the cluster could
// elect a leader that lacks acknowledged writes. What marks an ID as used is
// the instance that its node published. A peer that has applied that will say
// so; one that has not may be of use to a first start, and is no proof. So each
// peer is asked before the first message to or from it, until this node's own
// instance is in the state: then the cluster has agreed whose the ID is.
type gate struct {
	Open atomic.Bool // the ID is proven to be this node's

	mu   sync.Mutex
	asks map[uint64]string // peers not asked yet, and their URLs
	ok   map[uint64]bool
}

// Expect sets who has to be asked.
func (g *gate) Expect(proven bool, peers map[uint64]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asks, g.ok = maps.Clone(peers), make(map[uint64]bool)
	g.Open.Store(proven)
}

// Passes reports whether messages to and from a peer may pass.
func (g *gate) Passes(id uint64) bool {
	if g.Open.Load() {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ok[id]
}

func (g *gate) Pass(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ok[id] = true
	delete(g.asks, id)
}

// Learn adds a peer to ask.
func (g *gate) Learn(id uint64, url string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ok[id] {
		g.asks[id] = url
	}
}

// Forget drops a peer that has left the cluster.
func (g *gate) Forget(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.asks, id)
}

func (g *gate) left() map[uint64]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.asks)
}

// Passes reports whether messages to and from a peer may pass the gate.
func (a *Acquaintances) Passes(id uint64) bool { return a.Gate.Passes(id) }

// ProveID asks the peers until each has answered. Once the ID is proven the
// gate is open, but a peer that was not there may still know better: then there
// are two histories, and this node, which has forgotten one, must not go on.
func (a *Acquaintances) ProveID(ctx context.Context) error {
	every := a.Tick
	for {
		if a.Store.Proven() {
			a.Gate.Open.Store(true)
			every = askInterval
		}
		left := a.Gate.left()
		delete(left, a.Self.Node)
		if len(left) == 0 && a.Gate.Open.Load() {
			return nil
		}
		for id, url := range left {
			if err := a.askAbout(ctx, id, url); err != nil {
				return err
			}
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// isAnothers reports whether what a peer says of this node's ID can only be
// true of another directory: it has another instance, or the leader has seen a
// log where here is none.
func (a *Acquaintances) isAnothers(m reconfig.MemberInfo) bool {
	if m.Instance != 0 {
		return m.Instance != a.Self.Instance
	}
	return m.Match > 0 && a.Applied.Get() == 0
}

// askAbout asks one peer, and lets it through unless it knows better. A peer
// that does not answer is asked again later.
func (a *Acquaintances) askAbout(ctx context.Context, id uint64, url string) error {
	ctx, cancel := context.WithTimeout(ctx, peerclient.AskTimeout)
	defer cancel()
	info, err := a.AskPeer(ctx, url)
	if err != nil || info.ClusterID != a.Cluster {
		a.Log.Debug("a peer did not say whether this node's ID is free", zap.Uint64("peer", id), zap.Error(err))
		return nil
	}
	if m, ok := info.Member(a.Self.Node); ok && a.isAnothers(m) {
		return problem.ErrUsedID
	}
	// At the start it may not have answered yet; no message has passed since.
	if m, _ := a.Store.Membership(); m.Changes == 0 && len(m.Members) > 0 {
		if err := checkSameFounders(m.Peers(), info); err != nil {
			return err
		}
	}
	a.introduce(info)
	a.Gate.Pass(id)
	for _, m := range info.Members {
		a.Gate.Learn(m.ID, m.PeerURL) // who came later may be the leader now
	}
	return nil
}
