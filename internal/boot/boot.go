// Package boot answers: may this node start here, and as whom? A used ID, a wiped
// disk, a list of members that is not the cluster's and an address that has moved
// are found before anything is changed, or at the latest before this node votes. It
// also knows whom this node believes to be a member while its own log is behind.
package boot

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/walroom"
	"slices"
	"time"

	"go.uber.org/zap"
)

// checkPeerAddress refuses to start at another address than that at which the
// cluster knows this node. While members are switched to TLS, or back, both schemes
// lead to it.
func checkPeerAddress(cfg config.Config, m membership.Membership) error {
	me, ok := m.Members[cfg.ID]
	if !ok || cfg.PeerURL == me.PeerURL {
		return nil
	}
	if cfg.PeerTLS == config.Optional && address.HostPortOf(cfg.PeerURL) == address.HostPortOf(me.PeerURL) {
		return nil
	}
	return fmt.Errorf("the cluster knows node %d at %s, but --cluster gives it %s; give it %s, or tell the cluster where it is now: "+
		`curl -X PATCH -H 'Content-Type: application/json' -d '{"peer_url":"%s"}' http://A-MEMBER/v1/members/%d`,
		cfg.ID, me.PeerURL, cfg.PeerURL, me.PeerURL, cfg.PeerURL, cfg.ID)
}

// CheckIdentity refuses a data directory that is not the one that the command
// line speaks of. reconfigured: members came or went since the first boot.
func CheckIdentity(cfg config.Config, id storage.Identity, reconfigured bool) error {
	if id.Node != cfg.ID {
		return fmt.Errorf("data directory %s belongs to node %d, but --id is %d; use the directory of node %d, or an empty one",
			cfg.DataDir, id.Node, cfg.ID, cfg.ID)
	}
	if cfg.ClusterID != 0 && id.ClusterID != cfg.ClusterID {
		return fmt.Errorf("data directory %s belongs to cluster %x, but --cluster-id is %x; leave the flag out, or use an empty directory",
			cfg.DataDir, id.ClusterID, cfg.ClusterID)
	}
	now := address.FormatPeers(cfg.Cluster)
	if id.Initial == "" || cfg.Join || reconfigured || now == id.Initial {
		return nil
	}
	return fmt.Errorf("data directory %s was first started with --cluster %s, and no member was added or removed since, "+
		"but now --cluster is %s. To go on with the old cluster, give its list; to start another, use an empty --data-dir; "+
		"to change the members, use POST and DELETE on the running cluster", cfg.DataDir, id.Initial, now)
}

// PrepareDir makes the data directory if this is the node's first start, and
// returns what the cluster says of itself, if that had to be asked.
func PrepareDir(ctx context.Context, cfg config.Config, log *zap.Logger, ask *peerclient.Client) (reconfig.ClusterInfo, error) {
	old, err := storage.Booted(cfg.DataDir)
	if err == nil && old {
		err = storage.CheckOldCopy(cfg.DataDir)
	}
	if err != nil {
		return reconfig.ClusterInfo{}, err
	}
	if old && cfg.Join {
		// It may have stopped before it got anything from the cluster.
		info, _ := whereIs(cfg, reconfig.AskAll(ctx, ask, cfg.Seeds, peerclient.AskTimeout))
		return info, CheckJoinLevel(info)
	}
	if old {
		return reconfig.ClusterInfo{}, nil
	}
	if err := storage.CheckInterrupted(cfg.DataDir); err != nil {
		return reconfig.ClusterInfo{}, err
	}
	if err := storage.CheckNew(cfg.DataDir); err != nil {
		return reconfig.ClusterInfo{}, err
	}
	if err := walroom.CheckFirstRoom(cfg.DataDir, durable.DiskOf); err != nil {
		return reconfig.ClusterInfo{}, err
	}
	if cfg.Join {
		return joinCluster(ctx, cfg, log, ask)
	}
	if cfg.Discovery.Given() {
		if err := agree(ctx, cfg, log, ask); err != nil {
			return reconfig.ClusterInfo{}, err
		}
	}
	if err := checkFounders(ctx, cfg, ask); err != nil {
		return reconfig.ClusterInfo{}, err
	}
	id := storage.Identity{Format: storage.DirFormat, Node: cfg.ID, Instance: storage.NewInstance(), ClusterID: cfg.ClusterID, Initial: address.FormatPeers(cfg.Cluster)}
	if id.ClusterID == 0 {
		id.ClusterID = address.ClusterIDOf(cfg.Cluster)
	}
	var others []string
	for _, p := range cfg.Cluster {
		if p.ID != cfg.ID {
			others = append(others, p.URL)
		}
	}
	for _, info := range reconfig.AskAll(ctx, ask, others, peerclient.AskTimeout) {
		if info.ClusterID != id.ClusterID && cfg.Discovery.Given() {
			return info, errOtherFounders(cfg, info.ClusterID, id.ClusterID)
		}
		if info.ClusterID != id.ClusterID {
			return info, fmt.Errorf("--cluster names a node of another cluster, %x; this one would be %x. "+
				"To join a running cluster, use --join", info.ClusterID, id.ClusterID)
		}
		if err := errors.Join(refuseUsedID(cfg, info), checkSameFounders(cfg.Cluster, info)); err != nil {
			return info, err
		}
	}
	return reconfig.ClusterInfo{}, storage.Create(log, cfg.DataDir, id, state.First(cfg.Cluster))
}

// checkSameFounders refuses to found a cluster with another list of members than
// a peer has, which --cluster-id allows: every node begins with its own, and the
// replicas would never hold the same.
func checkSameFounders(ours []address.Peer, info reconfig.ClusterInfo) error {
	theirs := info.Membership().Peers()
	if info.Changes > 0 || len(theirs) == 0 || address.FormatPeers(theirs) == address.FormatPeers(ours) {
		return nil
	}
	return fmt.Errorf("--cluster was %s at the first start, but a peer was started with %s; "+
		"give all of them the same list, and those that had another an empty data directory", address.FormatPeers(ours), address.FormatPeers(theirs))
}

// askInterval is how long a node waits before it asks its peers again.
const askInterval = time.Second

// refuseUsedID: a node that comes back under an ID that was used before, with
// an empty directory, has forgotten its votes and what it acknowledged. With
// it the cluster could elect a leader that lacks acknowledged writes.
func refuseUsedID(cfg config.Config, info reconfig.ClusterInfo) error {
	if slices.Contains(info.Removed, cfg.ID) {
		return fmt.Errorf("node %d was removed from this cluster, and an ID is used once: join under a new ID%s", cfg.ID, newIDOf(cfg))
	}
	m, ok := info.Member(cfg.ID)
	if ok && (m.Instance != 0 || m.Match > 0) {
		return fmt.Errorf("data directory %s is empty, but node %d was part of this cluster before: an ID is used once. "+
			"If its disk is lost, remove it (DELETE /%d) and join under a new ID%s; if not, give its data directory",
			cfg.DataDir, cfg.ID, cfg.ID, newIDOf(cfg))
	}
	return nil
}

// CheckJoinLevel refuses to join a cluster whose commands this program does not
// know: it would stop at the first of them.
func CheckJoinLevel(info reconfig.ClusterInfo) error {
	if info.Level > state.ProgramLevel {
		return state.ErrLevel(info.Level)
	}
	return nil
}

// Self is who this node is: its ID, and the instance of its data directory.
type Self struct{ Node, Instance uint64 }
