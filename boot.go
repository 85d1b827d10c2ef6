package main

import (
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/storage"
)

// checkPeerAddress refuses to start at another address than that at which the
// cluster knows this node.
func checkPeerAddress(cfg config.Config, m membership.Membership) error {
	me, ok := m.Members[cfg.ID]
	if !ok || cfg.PeerURL == me.PeerURL {
		return nil
	}
	return fmt.Errorf("the cluster knows node %d at %s, but --cluster gives it %s; give it %s, or tell the cluster where it is now: "+
		`curl -X PATCH -H 'Content-Type: application/json' -d '{"peer_url":"%s"}' http://A-MEMBER/v1/members/%d`,
		cfg.ID, me.PeerURL, cfg.PeerURL, me.PeerURL, cfg.PeerURL, cfg.ID)
}

// checkIdentity refuses a data directory that is not the one that the command
// line speaks of. reconfigured: members came or went since the first boot.
func checkIdentity(cfg config.Config, id storage.Identity, reconfigured bool) error {
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
