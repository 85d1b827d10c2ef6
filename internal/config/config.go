// Package config answers: what was this node told to do? It reads flags and the
// environment, checks how they fit together, and reports all that is wrong at once.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"raftkv/internal/address"
	"raftkv/internal/logging"
	"raftkv/internal/memory"
	"raftkv/internal/supervisor"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is everything that can be set on a node, with flags and environment
// variables (Parse). A field's flag is its name in lower case with dashes;
// PeerURL and Seeds are parts of --cluster.
type Config struct {
	// ID is the node's raft ID, 1 to address.MaxID. Default 1. It is used once in the
	// life of a cluster: a node that lost its disk comes back under a new one,
	// because it no longer knows whom it voted for.
	ID uint64

	// Cluster is the list of initial members, sorted by ID, and this node is
	// one of them. Default 1=http://127.0.0.1:9021. It counts at the first
	// start only; afterwards the membership in DataDir does. Empty with Join.
	Cluster []address.Peer

	// PeerURL is the URL at which the other members reach this node, taken
	// from --cluster: the URL of member ID or, with Join, this node's `id=url`
	// pair, else the id-th URL, else the last.
	PeerURL string

	// Join makes the node ask a running cluster (Seeds) for its cluster ID
	// and members instead of starting a new cluster. Default false.
	Join bool

	// Seeds are the URLs of --cluster other than PeerURL, in the order given.
	// Set only with Join. They carry no IDs: any member that answers will do.
	Seeds []string

	// Discovery is where DNS tells of the members, if --cluster says so. Cluster and Seeds
	// may be empty then, and PeerURL, until package discovery has asked.
	Discovery Discovery

	// Host is the address on which the client API listens. Default 127.0.0.1,
	// because everybody may do everything unless there is an AuthFile; 0.0.0.0 opens it up.
	Host string

	// Port is the port of the client API. Default 9121. 0 takes any free port.
	Port int

	// AllowedHosts are further names, in lower case, under which clients may
	// address this node; IP literals, localhost and the advertised name always
	// work. Default none: a browser may be tricked into using such a name.
	AllowedHosts []string

	// AllowedOrigins are the origins whose pages may call this node from a browser, as
	// browsers send them: scheme, host and, unless it is the scheme's own, port. Default
	// none: pages of other origins are refused.
	AllowedOrigins []string

	// listenPeer is the host:port where the peer server listens, for containers
	// and NAT. Default "", which is that of PeerURL: read it with PeerListener.
	listenPeer string

	// AdvertiseClientURL is what the node tells the others of its client API.
	// Default "", which is derived from other fields: read it with ClientURL.
	AdvertiseClientURL string

	// DataDir holds this node's files and nothing of anyone else. Default
	// raftkv-<id>, in the working directory.
	DataDir string

	// ClusterID keeps the nodes of different clusters apart, on the wire and
	// on disk. Default 0, which derives it from the initial members with
	// address.ClusterIDOf. Set it to tell apart two clusters that have had the same
	// members. With Join it is learned from the cluster, or the one to expect.
	ClusterID uint64

	// SnapshotCount is the number of applied commands between snapshots, 1 or
	// more. Default 100000. Fewer make the log shorter, and cost more writing.
	SnapshotCount uint64

	// heartbeatInterval is the time between heartbeats of the leader, 1ms to
	// 20s. Default 100ms; about one round trip between the members is right.
	heartbeatInterval time.Duration

	// ElectionTimeout is how long a follower waits for a leader before it
	// stands for election; raft waits one to two of these. Default 1s, at most
	// 1m. At least three HeartbeatIntervals, so that one lost heartbeat is not
	// an election; ten are better. Shorter finds a dead leader sooner and
	// mistakes a slow disk or a busy network for one more often.
	ElectionTimeout time.Duration

	// RequestTimeout is how long a request may wait for the cluster. Default
	// 5s, at most 5m. Several ElectionTimeouts survive the loss of a leader.
	RequestTimeout time.Duration

	// CheckInterval is the time between two checks that the replicas hold the
	// same data. Default 10s, 100ms to 24h, or 0 for none. It counts on the
	// node that leads.
	CheckInterval time.Duration

	// MaxValueSize is the largest value in bytes that a client may write.
	// Default 1MiB, 1 byte to 64MiB. A value passes through raft as one entry
	// and delays heartbeats while it does: raise ElectionTimeout with it.
	MaxValueSize int64

	// Quota is how many bytes of keys and values this node lets in, 0 for any
	// number. Default QuotaFromMemory, what limits.NewQuota finds that there is memory
	// for, at most 2GiB. Past it, writes that grow the store are refused.
	// Each node counts for itself what is on its way: several at once may
	// together let in more, at most as much as each still had room for.
	// The process takes two to three times as much memory, and more with
	// many small values.
	Quota int64

	// Memory is what bounds that of the process; main finds it.
	Memory memory.Limit
	// Manager is the service manager that started the process, if there is one; main finds it.
	Manager supervisor.Manager
	// MinFree is how many bytes of the disk are kept free, 0 for none. Default
	// 128MiB, and at most a third of the disk. When less is free on the leader,
	// or on so many voters that one more would cost the majority, writes that
	// make the store grow are refused on all nodes.
	MinFree int64
	// WatchHistory is how many bytes of changes are kept for watches, the newest in any case.
	// Default 64MiB, and at most a sixteenth of the memory unless it is set.
	WatchHistory int64

	// Front reads plain requests for keys with a reader of its own, which takes less
	// than net/http does. Default true.
	Front bool
	// Pprof serves profiles of the process, of its CPU and memory, under
	// /debug/pprof/ of the client API. Default false: whoever asks for one
	// slows the node down, and reads keys and values in what they show.
	Pprof bool

	Doors

	// LogLevel is debug, info, warn or error, for what the node says of itself,
	// and name=level pairs for the libraries (package logging), as in
	// info,rafthttp=debug. Default info, with the libraries from warn on.
	LogLevel string

	// LogFormat is console for people or json for machines. Default console.
	LogFormat string

	// portIgnored: RAFTKV_PORT was there, and spoke of a Kubernetes Service.
	portIgnored bool

	// Version asks for the versions to be printed; nothing else is set then.
	Version bool
}

// QuotaFromMemory stands for a quota that was not given.
const QuotaFromMemory = -1

// DefaultPeerURL is the peer URL of the only member when no --cluster is given.
const DefaultPeerURL = "http://127.0.0.1:9021"

// DefaultConfig returns the config without any flags: a cluster of one.
func DefaultConfig() Config {
	return Config{
		ID:                1,
		Cluster:           []address.Peer{{ID: 1, URL: DefaultPeerURL}},
		PeerURL:           DefaultPeerURL,
		Host:              "127.0.0.1",
		Port:              9121,
		DataDir:           "raftkv-1",
		SnapshotCount:     100000,
		heartbeatInterval: 100 * time.Millisecond,
		ElectionTimeout:   time.Second,
		RequestTimeout:    5 * time.Second,
		CheckInterval:     10 * time.Second,
		MaxValueSize:      1 << 20,
		Quota:             QuotaFromMemory,
		MinFree:           128 << 20,
		WatchHistory:      historyFromMemory,
		Front:             true,
		Doors:             defaultDoors(),
		LogLevel:          "info",
		LogFormat:         "console",
	}
}

// Settings returns all flags but --version, which is a question and not a
// setting, bound to the fields of c. The text of --cluster goes to list: what
// it means depends on --id and --join, see ResolveCluster.
func (c *Config) Settings(list *string) []Setting {
	const number, period = "a whole number", "a time with its unit, as in 100ms or 5s"
	return append([]Setting{
		row("id", "N", "this node's raft ID, used once in the life of a cluster (1)", Into(&c.ID, address.ParseID, "")),
		row("cluster", "LIST", "peer URLs: the n-th is member n, or id=url pairs (http://127.0.0.1:9021)", Into(list, ParseText, "")),
		row("cluster-size", "N", "founding members, when --cluster is dns+http://NAME:PORT (none)", Into(&c.Discovery.Size, parseFounders, "")),
		row("port", "N", "port of the client HTTP API; 0 is any free one (9121)", Into(&c.Port, strconv.Atoi, number)),
		row("join", "", "join a running cluster: --cluster is some members and this node (false)", Into(&c.Join, strconv.ParseBool, "true or false")),
		row("host", "HOST", "address of the client API; 0.0.0.0 opens it to the network (127.0.0.1)", Into(&c.Host, address.CheckHost, "")),
		row("allowed-host", "LIST", "further names for clients to use; may be repeated (none)", c.addAllowedHosts),
		row("allowed-origin", "LIST", "origins whose pages may call, as https://app.example; may be repeated (none)", c.addAllowedOrigins),
		row("listen-peer", "HOST:PORT", "where the peer server listens (as in its own peer URL)", Into(&c.listenPeer, ParseText, "")),
		row("advertise-client-url", "URL", "what others are told of the client API (host and port above, or the peer URL's host)", Into(&c.AdvertiseClientURL, address.CheckURL, "")),
		row("data-dir", "DIR", "this node's files (raftkv-<id>)", Into(&c.DataDir, ParseText, "")),
		row("cluster-id", "HEX", "keeps clusters apart (a hash of the initial members)", Into(&c.ClusterID, parseHex, "1 to 16 hexadecimal digits, not all zero")),
		row("snapshot-count", "N", "applied commands between snapshots (100000)", Into(&c.SnapshotCount, parseCount, number)),
		row("heartbeat-interval", "TIME", "time between the leader's heartbeats (100ms)", Into(&c.heartbeatInterval, time.ParseDuration, period)),
		row("election-timeout", "TIME", "silence after which a leader is elected; 3 heartbeats or more (1s)", Into(&c.ElectionTimeout, time.ParseDuration, period)),
		row("request-timeout", "TIME", "how long a request may wait for the cluster (5s)", Into(&c.RequestTimeout, time.ParseDuration, period)),
		row("check-interval", "TIME", "time between checks that all replicas hold the same; 0 for none (10s)", Into(&c.CheckInterval, time.ParseDuration, period)),
		row("max-value-size", "SIZE", "largest value: bytes, KiB or MiB, to 64MiB (1MiB)", Into(&c.MaxValueSize, parseSize, "a size in bytes, KiB, MiB or GiB, as in 1048576 or 1MiB")),
		row("quota", "SIZE", "keys and values in bytes, KiB, MiB or GiB; 0 is any number (by the memory, at most 2GiB)", Into(&c.Quota, parseSize, "a size in bytes, KiB, MiB or GiB, as in 2GiB")),
		row("min-free", "SIZE", "kept free on the disk: bytes, KiB, MiB or GiB; 0 for none (128MiB)", Into(&c.MinFree, parseSize, "a size in bytes, KiB, MiB or GiB, as in 128MiB")),
		row("watch-history", "SIZE", "changes kept for watches: bytes, KiB, MiB or GiB (64MiB, less where memory is scarce)", Into(&c.WatchHistory, parseSize, "a size in bytes, KiB, MiB or GiB, as in 64MiB")),
		row("front", "", "read plain requests for keys by the fast path, in place of net/http (true)", Into(&c.Front, strconv.ParseBool, "true or false")),
		row("pprof", "", "serve profiles under /debug/pprof/ of the client API (false)", Into(&c.Pprof, strconv.ParseBool, "true or false")),
		row("log-level", "LEVEL", "debug, info, warn or error; also for one voice: info,rafthttp=debug (info)", Into(&c.LogLevel, ParseText, "")),
		row("log-format", "FORMAT", "console or json (console)", Into(&c.LogFormat, ParseText, "")),
	}, c.Doors.settings()...)
}

func parseCount(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

func parseHex(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 16, 64)
	if err == nil && id == 0 {
		err = errors.New("zero")
	}
	return id, err
}

// parseSize reads a number of bytes, KiB, MiB or GiB. KB and MB are refused
// rather than guessed at: half the world means 1000 by K.
func parseSize(s string) (int64, error) {
	unit := int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB"} {
		if digits, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = digits, 1<<(10*(i+1))
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 32) // times a unit, this cannot overflow
	return int64(n) * unit, err
}

// ErrHelp is returned by Parse when the user asked for the usage.
var ErrHelp = errors.New("help requested")

// Parse reads the flags in args and the variables that getenv knows (as
// os.LookupEnv does), and returns a config that is valid, or ErrHelp, or one
// error that names all problems, one a line. Nothing is printed.
func Parse(args []string, getenv func(string) (string, bool)) (Config, error) {
	c := DefaultConfig()
	list := DefaultPeerURL
	settings := c.Settings(&list)
	c.DataDir = "" // depends on the ID
	r := NewReview(0)

	if err := r.ReadFlags(args, settings, &c.Version); err != nil {
		return Config{}, err
	}
	if c.Version {
		return Config{Version: true}, nil
	}
	r.ReadEnv(getenv, settings)
	c.portIgnored = r.portIgnored

	c.readCluster(r, list, getenv)
	c.DataDir = cmp.Or(c.DataDir, fmt.Sprintf("raftkv-%d", c.ID))
	c.validate(r)
	if r.Errs != nil {
		return Config{}, errors.Join(r.Errs...)
	}
	return c, nil
}

// ResolveCluster sets Cluster, or Seeds with Join, and PeerURL from the items
// of --cluster.
func (c *Config) ResolveCluster(list []address.Peer) error {
	c.Cluster, c.PeerURL = nil, ""
	if c.Join {
		return c.resolveJoin(list)
	}
	byPosition := list[0].ID == 0
	for i, p := range list {
		if (p.ID == 0) != byPosition {
			return errors.New("expected id=url pairs or bare URLs, not a mixture (only --join takes that)")
		}
		if byPosition {
			p.ID = uint64(i + 1)
		}
		c.Cluster = append(c.Cluster, p)
		if p.ID == c.ID {
			c.PeerURL = p.URL
		}
	}
	c.Cluster = address.SortedPeers(c.Cluster)
	return nil
}

// resolveJoin splits the list into this node's own URL and the seeds.
func (c *Config) resolveJoin(list []address.Peer) error {
	own := slices.IndexFunc(list, func(p address.Peer) bool { return p.ID == c.ID })
	if own < 0 {
		own = int(min(c.ID, uint64(len(list)))) - 1
		if list[own].ID != 0 {
			return fmt.Errorf("expected also this node's own URL, as in %d=http://127.0.0.1:12379", c.ID)
		}
	}
	c.PeerURL = list[own].URL
	for _, p := range slices.Delete(list, own, own+1) {
		c.Seeds = append(c.Seeds, p.URL)
	}
	return nil
}

// validate notes all problems of the values in c, and of how they fit together.
func (c *Config) validate(r *Review) {
	r.Check("id", c.ID, address.CheckID(c.ID))
	r.Check("port", c.Port, within(c.Port, 0, math.MaxUint16))
	_, err := address.CheckHost(c.Host)
	r.Check("host", c.Host, err)
	for _, host := range c.AllowedHosts {
		_, err := address.CheckHost(host)
		r.Check("allowed-host", host, err)
	}
	for _, origin := range c.AllowedOrigins {
		r.Check("allowed-origin", origin, checkOrigin(origin))
	}
	if c.listenPeer != "" {
		r.Check("listen-peer", c.listenPeer, address.CheckListen(c.listenPeer))
	}
	r.Check("snapshot-count", c.SnapshotCount, within(c.SnapshotCount, 1, math.MaxUint64))
	r.Check("heartbeat-interval", c.heartbeatInterval, within(c.heartbeatInterval, time.Millisecond, 20*time.Second))
	r.Check("election-timeout", c.ElectionTimeout, within(c.ElectionTimeout, time.Millisecond, time.Minute))
	r.Check("request-timeout", c.RequestTimeout, within(c.RequestTimeout, time.Millisecond, 5*time.Minute))
	if c.CheckInterval != 0 {
		r.Check("check-interval", c.CheckInterval, within(c.CheckInterval, 100*time.Millisecond, 24*time.Hour))
	}
	r.Check("max-value-size", c.MaxValueSize, within(c.MaxValueSize, 1, MaxValueLimit))
	c.checkLogLevel(r)
	r.Check("log-format", c.LogFormat, oneOf(c.LogFormat, "console", "json"))
	c.Doors.validate(r)
	c.validateRelations(r)
}

// validateRelations notes values that are sound each, and contradict each other.
func (c *Config) validateRelations(r *Review) {
	least := 3 * c.heartbeatInterval
	if r.Sound("heartbeat-interval", "election-timeout") && c.ElectionTimeout < least {
		r.Check("election-timeout", c.ElectionTimeout, fmt.Errorf("expected three times %s, %v", r.Name("heartbeat-interval"), least))
	}
	if !r.Sound("id", "join", "cluster") {
		return // the members are not known
	}
	if c.Discovery.Given() {
		c.validateDiscovery(r)
	} else if c.Join && len(c.Seeds) == 0 {
		r.Check("cluster", c.PeerURL, fmt.Errorf("expected also the URL of a running member, because of %s", r.Name("join")))
	}
	if !c.Discovery.Given() && !c.Join && !slices.Contains(c.Cluster, address.Peer{ID: c.ID, URL: c.PeerURL}) {
		r.Check("id", c.ID, fmt.Errorf("expected a member in %s %s, or --join", r.Name("cluster"), address.FormatPeers(c.Cluster)))
	}
	c.validateDoors(r)
	if r.Sound("host", "port", "listen-peer") && address.SameListener(address.JoinHostPort(c.Host, c.Port), c.PeerListener()) {
		r.Check("port", c.Port, fmt.Errorf("expected another one, because the peer server listens on %s", c.PeerListener()))
	}
}

// MaxKeyBytes is the length of the longest key, in bytes.
const MaxKeyBytes = 4096

// MaxValueLimit is the largest --max-value-size.
const MaxValueLimit = 64 << 20

func within[T cmp.Ordered](v, least, most T) error {
	if v < least || v > most {
		return fmt.Errorf("expected %v to %v", least, most)
	}
	return nil
}

func oneOf(v string, options ...string) error {
	if !slices.Contains(options, v) {
		return fmt.Errorf("expected one of %s", strings.Join(options, ", "))
	}
	return nil
}

// checkLogLevel notes everything that is wrong with --log-level.
func (c *Config) checkLogLevel(r *Review) {
	_, problems := logging.ParseLevels(c.LogLevel)
	for item := range strings.SplitSeq(c.LogLevel, ",") {
		r.Check("log-level", item, problems[item])
		delete(problems, item) // once, if it stands there twice
	}
}

// PeerListener returns the host:port where the peer server listens.
func (c Config) PeerListener() string {
	if c.listenPeer != "" {
		return c.listenPeer
	}
	if c.PeerURL == "" { // not known yet
		return address.JoinHostPort(c.Discovery.Name, c.Discovery.Port)
	}
	return address.HostPortOf(c.PeerURL)
}

// ClientURL returns what the node tells the others of its client API, given
// the port on which that really listens (Port may be 0).
func (c Config) ClientURL(port int) string {
	if c.AdvertiseClientURL != "" {
		return c.AdvertiseClientURL
	}
	host := c.Host
	if address.IsUnspecified(host) {
		// The others reach this machine there; its clients may, too.
		host, _, _ = net.SplitHostPort(address.HostPortOf(c.PeerURL))
	}
	if c.CertFile != "" {
		return "https://" + address.JoinHostPort(host, port)
	}
	return "http://" + address.JoinHostPort(host, port)
}

// Ticks translates the two durations into raft's clock: how long a tick is,
// and how many of them are a heartbeat and an election timeout.
func (c Config) Ticks() (tick time.Duration, heartbeatTicks, electionTicks int) {
	tick = c.heartbeatInterval
	// Rounded up: an election may come late, but not sooner than was asked.
	return tick, 1, int((c.ElectionTimeout + tick - 1) / tick)
}

// Exit statuses.
const (
	ExitOK    = 0 // stopped as asked: by a signal, or removed from the cluster
	ExitFault = 1 // could not start or not go on
	ExitUsage = 2 // the command line is wrong
	ExitNo    = 3 // of a command: not found, a condition did not hold, not got
)
