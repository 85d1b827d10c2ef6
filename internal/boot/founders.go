package boot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/discovery"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/storage"
	"raftkv/internal/walfile"
	"slices"
	"time"

	"go.uber.org/zap"
)

// A cluster whose members DNS names is founded by all of them or by none.
//
// A list that people type is the same on all nodes, or they have made a mistake. An answer
// of DNS changes by itself. Two nodes that found a cluster each with their own list would
// be two clusters, and a client's writes would go to either. So a node says on the peer port
// with whom it founds (peerclient.Client.SayFounders), keeps to that as long as it lives, and
// writes nothing before all of these have said the same, or one of them is a member of just
// that cluster already: it would not be if they had not agreed.

// Discover has DNS asked for the members if cfg says so, at a first start until it names
// them. Later the data directory counts, and DNS is asked only for what that
// does not tell. It reports false if ctx has ended.
func Discover(ctx context.Context, cfg config.Config, log *zap.Logger) (config.Config, bool) {
	return discover(ctx, cfg, log, new(net.Resolver))
}

func discover(ctx context.Context, cfg config.Config, log *zap.Logger, dns discovery.Resolver) (config.Config, bool) {
	if !cfg.Discovery.Given() {
		return cfg, true
	}
	// An error comes again in PrepareDir, which says it.
	if booted, _ := storage.Booted(cfg.DataDir); booted {
		cfg = recall(cfg)
		if cfg.PeerURL != "" && cfg.Join && len(cfg.Seeds) == 0 {
			cfg = discovery.Once(ctx, cfg, log, dns)
		}
	} else {
		log.Info("first start: the members are those that DNS names",
			zap.Stringer("cluster", cfg.Discovery), zap.Int("cluster-size", cfg.Discovery.Size), zap.Uint64("id", cfg.ID))
	}
	if cfg.PeerURL == "" || !cfg.Join && len(cfg.Cluster) == 0 {
		var err error
		if cfg, err = discovery.Members(ctx, cfg, log, dns); err != nil {
			return cfg, false
		}
	}
	return cfg, discovery.OwnName(ctx, cfg, log, dns) == nil
}

// recall returns cfg with what the data directory says of the first start.
func recall(cfg config.Config) config.Config {
	var id storage.Identity
	if err := json.Unmarshal(walfile.Metadata(filepath.Join(cfg.DataDir, "wal")), &id); err != nil {
		return cfg // Open says what is wrong there
	}
	if id.Initial == "" && !cfg.Join && cfg.PeerURL != "" {
		// It has joined, and became none of the founders when --cluster-size was raised.
		founders := cfg.Cluster
		cfg.Join, cfg.Cluster = true, nil
		cfg.Found(founders)
	}
	founders, err := address.ParsePeers(id.Initial)
	if err != nil {
		return cfg // it is empty
	}
	if !cfg.Join {
		cfg.Cluster = address.SortedPeers(founders)
	}
	if at := slices.IndexFunc(founders, func(p address.Peer) bool { return p.ID == cfg.ID }); at >= 0 {
		cfg.PeerURL = cmp.Or(cfg.PeerURL, founders[at].URL)
	}
	return cfg
}

// agree waits until this node may found the cluster of cfg.Cluster. When another has another
// list either may be the one that is wrong, so both have to end and ask DNS again. This node
// answers for a while longer, for the other to hear it.
func agree(ctx context.Context, cfg config.Config, log *zap.Logger, ask *peerclient.Client) error {
	ask.SayFounders(address.FormatPeers(cfg.Cluster))
	said, at := "", time.Time{}
	var differ error
	var end <-chan time.Time
	for {
		missing, err := askFounders(ctx, cfg, ask)
		switch {
		case errors.Is(err, errDiffer) && differ == nil:
			differ, end = err, time.After(hearFor)
			log.Error("this node ends soon, for all to ask DNS again", zap.Error(err))
		case errors.Is(err, errDiffer):
		case err != nil || missing == "":
			return err
		case missing != said || time.Since(at) >= sayEvery:
			said, at = missing, time.Now()
			log.Warn("waiting until all founding members are there and agree", zap.String("founders", address.FormatPeers(cfg.Cluster)), zap.String("because", missing))
		}
		select {
		case <-time.After(askInterval):
		case <-end:
			return differ
		case <-ctx.Done():
			return problem.ErrStopping
		}
	}
}

// hearFor is how long a node answers yet when founding members do not agree. It is longer
// than one round of agree takes.
const hearFor = 5 * time.Second

var errDiffer = errors.New("the founding members do not agree, so nothing was founded")

// sayEvery is the time between two lines of the log that say what a node waits for.
const sayEvery = 10 * time.Second

// founder is what one that is asked says.
type founder struct {
	url, founds string
	process     peerclient.Process
	err         error
}

// askFounders asks all founding members once. It returns what is missing, empty if this
// node may found, or an error if it must not.
func askFounders(ctx context.Context, cfg config.Config, ask *peerclient.Client) (missing string, err error) {
	ours := address.FormatPeers(cfg.Cluster)
	cluster := cmp.Or(cfg.ClusterID, address.ClusterIDOf(cfg.Cluster))
	var others []string
	for _, p := range cfg.Cluster {
		if p.ID != cfg.ID {
			others = append(others, p.URL)
		}
	}
	infos := reconfig.AskAll(ctx, ask, others, peerclient.AskTimeout)
	for _, info := range infos {
		if info.ClusterID != cluster {
			return "", errOtherFounders(cfg, info.ClusterID, cluster)
		}
	}
	if len(infos) > 0 {
		return "", nil // PrepareDir looks at what they say, and Acquaintances ask the others
	}
	for _, f := range askEach(ctx, append(others, cfg.PeerURL), ask) {
		switch {
		case f.url == cfg.PeerURL && f.err == nil && f.process != ask.Process:
			return "", fmt.Errorf("this node is to be member %d at %s, but another process answers there: is --id right? The members are %s", cfg.ID, f.url, ours)
		case f.url == cfg.PeerURL:
			// It need not be able to reach itself.
		case f.err != nil:
			missing = cmp.Or(missing, fmt.Sprintf("%s does not answer: %v", f.url, f.err))
		case f.founds == "":
			missing = cmp.Or(missing, f.url+" does not say yet with whom it founds a cluster")
		case f.founds != ours:
			return "", fmt.Errorf("%w: for this node they are %s, for %s they are %s; "+
				"give all nodes the same --cluster and --cluster-size, and see that DNS answers all of them alike", errDiffer, ours, f.url, f.founds)
		}
	}
	return missing, nil
}

// askEach asks these URLs at once whom they lead to, and returns what they say in their order.
func askEach(ctx context.Context, urls []string, ask *peerclient.Client) []founder {
	ctx, cancel := context.WithTimeout(ctx, peerclient.AskTimeout)
	defer cancel()
	said := make([]founder, len(urls))
	done := make(chan struct{})
	for i, u := range urls {
		go func() {
			said[i].url = u
			said[i].process, said[i].founds, said[i].err = ask.WhoFounds(ctx, u)
			done <- struct{}{}
		}()
	}
	for range urls {
		<-done
	}
	return said
}

// errOtherFounders: what DNS names is another cluster.
func errOtherFounders(cfg config.Config, theirs, ours uint64) error {
	return fmt.Errorf("%s names a node of cluster %x, and this one would be %x. --cluster-size is the number with which the cluster "+
		"was founded, and stays what it was when nodes are added; to join a running cluster, use --join", cfg.Discovery, theirs, ours)
}

// newIDOf says how a node in a set gets another ID than its ordinal gives it.
func newIDOf(cfg config.Config) string {
	if cfg.Discovery.Set == "" {
		return ""
	}
	return fmt.Sprintf(" (which this host gets by a pair in --cluster, as in %s,NEW-ID=%s)", cfg.Discovery, cfg.PeerURL)
}
