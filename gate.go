package main

import (
	"context"
	"maps"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
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
	open atomic.Bool // the ID is proven to be this node's

	mu   sync.Mutex
	asks map[uint64]string // peers not asked yet, and their URLs
	ok   map[uint64]bool
}

// expect sets who has to be asked.
func (g *gate) expect(proven bool, peers map[uint64]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asks, g.ok = maps.Clone(peers), make(map[uint64]bool)
	g.open.Store(proven)
}

// passes reports whether messages to and from a peer may pass.
func (g *gate) passes(id uint64) bool {
	if g.open.Load() {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ok[id]
}

func (g *gate) pass(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ok[id] = true
	delete(g.asks, id)
}

// learn adds a peer to ask.
func (g *gate) learn(id uint64, url string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ok[id] {
		g.asks[id] = url
	}
}

// forget drops a peer that has left the cluster.
func (g *gate) forget(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.asks, id)
}

func (g *gate) left() map[uint64]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.asks)
}

// passes reports whether messages to and from a peer may pass the gate.
func (a *acquaintances) passes(id uint64) bool { return a.gate.passes(id) }

// proveID asks the peers until each has answered. Once the ID is proven the
// gate is open, but a peer that was not there may still know better: then there
// are two histories, and this node, which has forgotten one, must not go on.
func (a *acquaintances) proveID(ctx context.Context) error {
	every := a.tick
	for {
		if a.store.proven() {
			a.gate.open.Store(true)
			every = askInterval
		}
		left := a.gate.left()
		delete(left, a.self.node)
		if len(left) == 0 && a.gate.open.Load() {
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
func (a *acquaintances) isAnothers(m memberInfo) bool {
	if m.Instance != 0 {
		return m.Instance != a.self.instance
	}
	return m.Match > 0 && a.applied.Get() == 0
}

// askAbout asks one peer, and lets it through unless it knows better. A peer
// that does not answer is asked again later.
func (a *acquaintances) askAbout(ctx context.Context, id uint64, url string) error {
	ctx, cancel := context.WithTimeout(ctx, peerclient.AskTimeout)
	defer cancel()
	info, err := a.askPeer(ctx, url)
	if err != nil || info.ClusterID != a.cluster {
		a.log.Debug("a peer did not say whether this node's ID is free", zap.Uint64("peer", id), zap.Error(err))
		return nil
	}
	if m, ok := info.member(a.self.node); ok && a.isAnothers(m) {
		return problem.ErrUsedID
	}
	// At the start it may not have answered yet; no message has passed since.
	if m, _ := a.store.Membership(); m.Changes == 0 && len(m.Members) > 0 {
		if err := checkSameFounders(m.Peers(), info); err != nil {
			return err
		}
	}
	a.introduce(info)
	a.gate.pass(id)
	for _, m := range info.Members {
		a.gate.learn(m.ID, m.PeerURL) // who came later may be the leader now
	}
	return nil
}
