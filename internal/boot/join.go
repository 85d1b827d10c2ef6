package boot

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"slices"
	"time"

	"go.uber.org/zap"
)

// How a node finds its place in a cluster that runs: by asking the members over
// the peer listener.

// whereIs picks, of what members say, an answer that knows this node, one at
// its own URL before any other: a member that is behind does not know of a move
// yet. found is false if none knows it.
func whereIs(cfg config.Config, infos []reconfig.ClusterInfo) (info reconfig.ClusterInfo, found bool) {
	for _, i := range infos {
		m, ok := i.Member(cfg.ID)
		if ok && (!found || m.PeerURL == cfg.PeerURL) {
			info, found = i, true
		}
	}
	return info, found
}

// CheckIdentityNow is CheckIdentity, for a node that may have been down while
// the cluster's members changed: what the others know of that counts, too.
func CheckIdentityNow(ctx context.Context, cfg config.Config, id storage.Identity, reconfigured bool, ask *peerclient.Client) error {
	err := CheckIdentity(cfg, id, reconfigured)
	if err == nil || CheckIdentity(cfg, id, true) != nil {
		return err
	}
	old, _ := address.ParsePeers(id.Initial) // it was made by address.FormatPeers
	for _, info := range reconfig.AskAll(ctx, ask, Others(cfg, old), peerclient.AskTimeout) {
		if info.ClusterID == id.ClusterID && info.Changes > 0 {
			return nil
		}
	}
	return err
}

// Others returns the URLs of the peers, and of those on the command line, at
// which this node may hear of the cluster.
func Others(cfg config.Config, peers []address.Peer) []string {
	urls := slices.Clone(cfg.Seeds)
	for _, p := range slices.Concat(peers, cfg.Cluster) {
		if p.ID != cfg.ID && p.URL != cfg.PeerURL && !slices.Contains(urls, p.URL) {
			urls = append(urls, p.URL)
		}
	}
	return urls
}

// CheckAddressNow is checkPeerAddress, for a node that may have been down while
// the cluster was told of its new URL: then its own state is stale, and it goes
// by what the others say. Its log counts like its state: all nodes may start at
// once after a move, and nobody must wait for another then. Before a joining
// node has any state it goes by found.
func CheckAddressNow(ctx context.Context, cfg config.Config, log *zap.Logger, st *storage.Opened, found reconfig.ClusterInfo, ask *peerclient.Client) error {
	m := st.State.Membership
	if st.State.Index == 0 {
		m = found.Membership()
	}
	if st.OwnURL != "" {
		m = m.Clone()
		m.Members[cfg.ID] = membership.Member{ID: cfg.ID, PeerURL: st.OwnURL}
	}
	err := checkPeerAddress(cfg, m)
	if err == nil {
		return nil
	}
	urls := Others(cfg, m.Peers())
	for len(urls) > 0 {
		infos := reconfig.AskAll(ctx, ask, urls, peerclient.AskTimeout)
		infos = slices.DeleteFunc(infos, func(i reconfig.ClusterInfo) bool { return i.ClusterID != st.Identity.ClusterID })
		if info, found := whereIs(cfg, infos); found {
			return checkPeerAddress(cfg, info.Membership())
		}
		if slices.ContainsFunc(infos, func(i reconfig.ClusterInfo) bool { return slices.Contains(i.Removed, cfg.ID) }) {
			return nil // it will hear so from its peers, and end
		}
		log.Warn("waiting to hear from a member where the cluster knows this node", zap.NamedError("because", err))
		select {
		case <-time.After(askInterval):
		case <-ctx.Done():
			return problem.ErrStopping
		}
	}
	return err
}

// joinCluster asks the seeds for the cluster until this node is a member of it,
// then makes the data directory. A node that the cluster does not know is added
// on the way. A crash between the two loses nothing: the next start finds the
// node added, and its ID not used yet.
func joinCluster(ctx context.Context, cfg config.Config, log *zap.Logger, ask *peerclient.Client) (reconfig.ClusterInfo, error) {
	for {
		infos := reconfig.AskAll(ctx, ask, cfg.Seeds, peerclient.AskTimeout)
		if err := checkSeeds(cfg, infos); err != nil {
			return reconfig.ClusterInfo{}, err
		}
		if info, found := whereIs(cfg, infos); found {
			if err := checkPeerAddress(cfg, info.Membership()); err != nil {
				return info, err
			}
			id := storage.Identity{Format: storage.DirFormat, Node: cfg.ID, Instance: storage.NewInstance(), ClusterID: info.ClusterID}
			return info, storage.Create(log, cfg.DataDir, id, state.First(nil))
		}
		why := errors.New("no member of the cluster answers")
		if len(infos) > 0 {
			var fatal bool
			if why, fatal = addSelf(ctx, cfg, infos[0], ask); fatal {
				return reconfig.ClusterInfo{}, why
			}
		}
		if why == nil {
			log.Info("the cluster did not know this node; it has added itself, as a learner that becomes a voter once it has caught up",
				zap.Uint64("id", cfg.ID), zap.String("peer-url", cfg.PeerURL))
			continue
		}
		log.Warn("waiting to join", zap.NamedError("because", why))
		select {
		case <-time.After(askInterval):
		case <-ctx.Done():
			return reconfig.ClusterInfo{}, problem.ErrStopping
		}
	}
}

// checkSeeds refuses to join what the seeds say of the cluster.
func checkSeeds(cfg config.Config, infos []reconfig.ClusterInfo) error {
	for _, info := range infos {
		if cfg.ClusterID != 0 && info.ClusterID != cfg.ClusterID {
			return fmt.Errorf("--cluster leads to cluster %x, but --cluster-id is %x", info.ClusterID, cfg.ClusterID)
		}
		if info.ClusterID != infos[0].ClusterID {
			return fmt.Errorf("--cluster names nodes of two clusters, %x and %x", infos[0].ClusterID, info.ClusterID)
		}
		if err := errors.Join(refuseUsedID(cfg, info), CheckJoinLevel(info)); err != nil {
			return err
		}
	}
	return nil
}

// addSelf asks members to have this node added. fatal: to ask again is no use.
func addSelf(ctx context.Context, cfg config.Config, info reconfig.ClusterInfo, ask *peerclient.Client) (err error, fatal bool) {
	r := reconfig.Request{Op: membership.OpAdd, ID: cfg.ID, PeerURL: cfg.PeerURL}
	for _, seed := range cfg.Seeds {
		err = func() error {
			ctx, cancel := context.WithTimeout(ctx, cfg.RequestTimeout+peerclient.AskTimeout)
			defer cancel()
			reply, err := reconfig.AskJoin(ctx, ask, seed, info.ClusterID, r)
			return errors.Join(err, problem.FromCode(reply.Code, reply.Detail))
		}()
		switch {
		case err == nil:
			return nil, false
		case errors.Is(err, problem.ErrMemberExists), errors.Is(err, problem.ErrMemberRemoved):
			return fmt.Errorf("the cluster does not take in node %d at %s: %w", cfg.ID, cfg.PeerURL, err), true
		}
	}
	return fmt.Errorf("the cluster does not know node %d at %s yet, and did not add it: %w", cfg.ID, cfg.PeerURL, err), false
}

// checkFounders refuses to found a cluster whose list has one node twice, under
// two names. It sees who runs already; the last of them to start sees all.
func checkFounders(ctx context.Context, cfg config.Config, ask *peerclient.Client) error {
	var urls []string
	for _, p := range cfg.Cluster {
		if p.ID != cfg.ID {
			urls = append(urls, p.URL)
		}
	}
	at := peerclient.Processes(ctx, urls, ask.Who)
	at[cfg.PeerURL] = ask.Process
	seen := make(map[peerclient.Process]address.Peer)
	for _, p := range cfg.Cluster {
		process, ok := at[p.URL]
		if !ok {
			continue
		}
		if q, twice := seen[process]; twice {
			return fmt.Errorf("--cluster names one node twice: %s and %s lead to the same process; give each member a URL of its own", q.URL, p.URL)
		}
		seen[process] = p
	}
	return nil
}
