//go:build unix

package main

import (
	"context"
	"os"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/logging"
	"raftkv/internal/reconfig"
	"raftkv/internal/room"
	"raftkv/internal/sim"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/suspect"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// simCluster is a simulated cluster of servers, and how they are set up.
type simCluster struct {
	*sim.Cluster[*server]
	tweak func(*config.Config)
	log   func(id uint64) *zap.Logger // nil: nobody reads it
	wire  func(*server)               // changes a node before it starts; nil: does not
	notes atomic.Int64                // of disks, that were heard
}

type simPlace = sim.Place[*server]

// simulate runs a test in a bubble with n nodes up, and ends it with the
// global check.
func simulate(t *testing.T, n int, test func(c *simCluster)) {
	t.Helper()
	simulateWith(t, n, nil, test)
}

func simulateWith(t *testing.T, n int, tweak func(*config.Config), test func(c *simCluster)) {
	t.Helper()
	simulateSet(t, n, func(c *simCluster) { c.tweak = tweak }, test)
}

// simulateLogged is simulateWith, with a logger for each node.
func simulateLogged(t *testing.T, n int, tweak func(*config.Config), log func(id uint64) *zap.Logger, test func(c *simCluster)) {
	t.Helper()
	simulateSet(t, n, func(c *simCluster) { c.tweak, c.log = tweak, log }, test)
}

// simulateSet is simulate, on a cluster of which set has set what is to be so
// from the start.
func simulateSet(t *testing.T, n int, set func(*simCluster), test func(c *simCluster)) {
	t.Helper()
	sim.Run(t, func(cluster *sim.Cluster[*server]) {
		c := newSimCluster(cluster)
		set(c)
		c.Found(n)
		test(c)
	})
}

// newSimCluster has the nodes of a cluster be servers.
func newSimCluster(cluster *sim.Cluster[*server]) *simCluster {
	c := &simCluster{Cluster: cluster}
	c.Open = c.open
	return c
}

func (c *simCluster) config(n *simPlace) config.Config {
	cfg := config.DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.PeerURL, cfg.Join = n.ID, n.Dir, sim.URL(n.ID), n.Join
	if n.URL != "" {
		cfg.PeerURL = n.URL
	}
	if !n.Join {
		cfg.Cluster = c.Peers
	}
	if c.tweak != nil {
		c.tweak(&cfg)
	}
	return cfg
}

// logger is that of a node. RAFTKV_SIM_LOG shows what all say.
func (c *simCluster) logger(id uint64) *zap.Logger {
	switch {
	case c.log != nil:
		return c.log(id)
	case os.Getenv("RAFTKV_SIM_LOG") != "":
		return logging.New(0, "console", "debug", os.Stderr).With(zap.Uint64("node", id))
	}
	return zap.NewNop()
}

// open is openServer on the simulated disk and network.
func (c *simCluster) open(n *simPlace) (*server, error) {
	cfg, log := c.config(n), c.logger(n.ID)
	if old, err := storage.Booted(n.Dir); err != nil {
		return nil, err
	} else if !old {
		if err := c.firstStart(n, log); err != nil {
			return nil, err
		}
	}
	st, err := storage.Open(log, n.Dir, storage.Bounds{Changes: cfg.Changes()}, func(id storage.Identity, reconfigured bool) error {
		return boot.CheckIdentity(cfg, id, reconfigured)
	})
	if err != nil {
		return nil, err
	}
	if cfg.SnapshotCount < 1000 { // a test that wants snapshots wants them sent, too
		st.Tail.Limit = int64(cfg.SnapshotCount) * storage.EntryWeight
	}
	st.Wal = n.Disk.Under(st.Wal)
	srv := newServer(cfg, log, st, 9121)
	c.routes(srv)
	if c.wire != nil {
		c.wire(srv)
	}
	srv.connect(c.Net.Transport(srv), c.found(n.ID))
	return srv, nil
}

func (c *simCluster) firstStart(n *simPlace, log *zap.Logger) error {
	id := storage.Identity{Format: storage.DirFormat, Node: n.ID, Instance: storage.NewInstance(), ClusterID: address.ClusterIDOf(c.Peers)}
	if n.Join {
		return storage.Create(log, n.Dir, id, state.First(nil))
	}
	id.Initial = address.FormatPeers(c.Peers)
	return storage.Create(log, n.Dir, id, state.First(c.Peers))
}

// routes stands in for the peer routes by which a node asks others.
func (c *simCluster) routes(srv *server) {
	id := srv.cfg.ID
	srv.members.Ask = func(ctx context.Context, url string, _ uint64, r reconfig.Request) (reconfig.Reply, error) {
		time.Sleep(sim.Delay)
		other, err := c.Net.Reach(id, url)
		if err != nil {
			return reconfig.Reply{}, err
		}
		return other.members.Serve(ctx, r), nil
	}
	srv.members.AskView = func(ctx context.Context, url string) (map[uint64]reconfig.View, error) {
		other, err := c.Net.Reach(id, url)
		if err != nil {
			return nil, err
		}
		return other.members.LeaderView(ctx), nil
	}
	srv.node.known.AskPeer = func(_ context.Context, url string) (reconfig.ClusterInfo, error) {
		time.Sleep(sim.Delay)
		other, err := c.Net.Reach(id, url)
		if err != nil {
			return reconfig.ClusterInfo{}, err
		}
		return other.clusterInfo(context.Background()), nil
	}
	srv.node.doubts.AskStand = func(ctx context.Context, url string, node, index uint64) (suspect.Stand, error) {
		time.Sleep(sim.Delay)
		other, err := c.Net.Reach(id, url)
		if err != nil {
			return suspect.Stand{}, err
		}
		answer, err := other.node.doubts.StandFor(ctx, node, index)
		time.Sleep(sim.Delay)
		return answer, err
	}
	srv.room.Tell = func(_ context.Context, url string, _ uint64, n room.Note) error {
		time.Sleep(sim.Delay)
		other, err := c.Net.Reach(id, url)
		if err == nil {
			other.room.Hear(n)
			c.notes.Add(1)
		}
		return err
	}
}

// found is what a joining node learns from its seeds.
func (c *simCluster) found(id uint64) reconfig.ClusterInfo {
	for other, srv := range c.Net.Running() {
		info := srv.clusterInfo(context.Background())
		if _, ok := info.Member(id); ok && other != id {
			return info
		}
	}
	return reconfig.ClusterInfo{}
}
