package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file answers two questions: what can be set, and is it sound. The
// config struct is the documentation; flags and environment variables are its
// front door (parseConfig), and tests set the fields instead.

// peer is one member of the cluster: its raft ID and the URL at which the
// other members reach its peer server.
type peer struct {
	ID  uint64
	URL string
}

// config is everything that can be set on a node. A field's flag is its name in
// lower case with dashes (HeartbeatInterval is --heartbeat-interval); PeerURL
// and Seeds are parts of --cluster, and each --allowed-host adds to AllowedHosts.
type config struct {
	// ID is the node's raft ID. Default 1. Never 0, and never one of the two
	// largest numbers, which raft keeps for itself. An ID is used once in the
	// life of a cluster: a node that lost its disk comes back under a new one,
	// because it no longer knows whom it voted for.
	ID uint64

	// Cluster is the list of initial members, sorted by ID, and this node is
	// one of them. Default 1=http://127.0.0.1:9021. It counts at the first
	// start only; afterwards the membership in DataDir does. Empty with Join,
	// where the running cluster says who its members are.
	Cluster []peer

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

	// Host is the address on which the client API listens. Default 127.0.0.1:
	// there is no authentication by default, so opening it up (0.0.0.0 or ::)
	// is the operator's decision.
	Host string

	// Port is the port of the client API. Default 9121. 0 takes any free port.
	// Host and Port must not be where the peer server listens (ListenPeer).
	Port int

	// AllowedHosts are further names, in lower case, under which clients may
	// address this node; IP literals, localhost and the advertised name always
	// work. Default none. Each name given is one that a browser may be tricked
	// into using, so name only those that your DNS really has for the node.
	AllowedHosts []string

	// ListenPeer is the host:port where the peer server listens. Default "",
	// which is the host and port of PeerURL. Only containers and NAT need
	// another. Read it with listenPeer.
	ListenPeer string

	// AdvertiseClientURL is what the node tells the others of its client API,
	// as http://host:port. Default "", which is derived from Host, Port and
	// PeerURL. Read it with clientURL.
	AdvertiseClientURL string

	// DataDir holds this node's files and nothing of anyone else. Default
	// raftkv-<id>, in the working directory.
	DataDir string

	// ClusterID keeps the nodes of different clusters apart, on the wire and
	// on disk. Default 0, which derives it from the initial members with
	// clusterIDOf. Set it to tell apart two clusters that have had the same
	// members, say after a restore onto the same machines. A node with Join
	// learns it from the cluster; set there, it is the one to be expected.
	ClusterID uint64

	// SnapshotCount is the number of applied commands between snapshots.
	// Default 100000, at least 1. Fewer make restarts faster and the log
	// shorter, and cost more writing and more snapshots sent to slow nodes.
	SnapshotCount uint64

	// HeartbeatInterval is the time between heartbeats of the leader, and the
	// tick of raft's clock. Default 100ms, 1ms to 20s; about one round trip
	// between the members is right. Shorter costs packets and wakeups.
	HeartbeatInterval time.Duration

	// ElectionTimeout is how long a follower waits for a leader before it
	// stands for election; raft waits one to two of these. Default 1s, at most
	// 1m. At least three HeartbeatIntervals, so that one lost heartbeat is not
	// an election; ten are better. It is rounded up to a whole number of
	// HeartbeatIntervals. Shorter finds a dead leader sooner and mistakes a
	// slow disk or a busy network for one more often.
	ElectionTimeout time.Duration

	// RequestTimeout is how long a request may wait for the cluster. Default
	// 5s, at most 5m: well below the ten minutes for which outcomes are
	// remembered, because a command proposed again later than that could
	// happen twice. Several ElectionTimeouts let requests survive the loss of
	// a leader; fewer fail sooner.
	RequestTimeout time.Duration

	// MaxValueSize is the largest value in bytes that a client may write.
	// Default 1MiB, 1 byte to 64MiB. A value passes through raft as one entry
	// and delays heartbeats while it does: raise ElectionTimeout with it.
	MaxValueSize int64

	// LogLevel is the least severe level that is logged: debug, info, warn or
	// error. Default info.
	LogLevel string

	// LogFormat is console for people or json for machines. Default console.
	LogFormat string

	// Version asks for the versions to be printed instead of a server. When
	// it is set, nothing else in the config is meant or checked.
	Version bool
}

// Bounds that validate enforces; the fields of config give the reasons.
const (
	minHeartbeatInterval = time.Millisecond
	maxHeartbeatInterval = maxElectionTimeout / minElectionHeartbeats
	maxElectionTimeout   = time.Minute
	maxRequestTimeout    = 5 * time.Minute
	maxMaxValueSize      = 64 << 20

	// minElectionHeartbeats is the least ElectionTimeout in HeartbeatIntervals.
	minElectionHeartbeats = 3
)

// maxID is the largest usable raft ID: raft takes the two above it for its own
// storage threads.
const maxID = math.MaxUint64 - 2

// Names of the flags, for the flag set and for the error texts alike.
const (
	flagID                 = "id"
	flagCluster            = "cluster"
	flagPort               = "port"
	flagJoin               = "join"
	flagHost               = "host"
	flagAllowedHost        = "allowed-host"
	flagListenPeer         = "listen-peer"
	flagAdvertiseClientURL = "advertise-client-url"
	flagDataDir            = "data-dir"
	flagClusterID          = "cluster-id"
	flagSnapshotCount      = "snapshot-count"
	flagHeartbeatInterval  = "heartbeat-interval"
	flagElectionTimeout    = "election-timeout"
	flagRequestTimeout     = "request-timeout"
	flagMaxValueSize       = "max-value-size"
	flagLogLevel           = "log-level"
	flagLogFormat          = "log-format"
	flagVersion            = "version"
)

const defaultPeerURL = "http://127.0.0.1:9021"

// errHelp is returned by parseConfig when the user asked for help: print
// usage() to standard output and exit 0.
var errHelp = errors.New("help requested")

// defaultConfig returns the config of `raftkv` without any flags: a sound
// cluster of one.
func defaultConfig() config {
	return config{
		ID:                1,
		Cluster:           []peer{{ID: 1, URL: defaultPeerURL}},
		PeerURL:           defaultPeerURL,
		Host:              "127.0.0.1",
		Port:              9121,
		DataDir:           defaultDataDir(1),
		SnapshotCount:     100000,
		HeartbeatInterval: 100 * time.Millisecond,
		ElectionTimeout:   time.Second,
		RequestTimeout:    5 * time.Second,
		MaxValueSize:      1 << 20,
		LogLevel:          "info",
		LogFormat:         "console",
	}
}

func defaultDataDir(id uint64) string { return fmt.Sprintf("raftkv-%d", id) }

// usage returns the text of --help.
func usage() string {
	return `raftkv is a replicated key-value server. With flags alone it is the server;
with a command word first, as in "raftkv get my-key", it is the client.

Usage:
  raftkv [flags]

Flags (default in parentheses):
  --id N                       this node's raft ID; used once in the life of a
                               cluster (1)
  --cluster LIST               peer URLs, comma separated: the n-th is member n,
                               or id=url pairs (http://127.0.0.1:9021)
  --port N                     port of the client HTTP API; 0 is any free one (9121)
  --join                       join a running cluster; --cluster then lists some of
                               its members and this node's own URL (false)
  --host HOST                  address of the client API; 0.0.0.0 opens it to the
                               network (127.0.0.1)
  --allowed-host LIST          further names under which clients address this node,
                               comma separated; may be repeated (none)
  --listen-peer HOST:PORT      where the peer server listens, when that is not its
                               peer URL (host and port of its own peer URL)
  --advertise-client-url URL   what the others are told of the client API
                               (http://HOST:PORT; with an unspecified host, the
                               peer URL's host)
  --data-dir DIR               this node's files (raftkv-<id>)
  --cluster-id HEX             keeps clusters apart (a hash of the initial members)
  --snapshot-count N           applied commands between snapshots (100000)
  --heartbeat-interval TIME    time between the leader's heartbeats (100ms)
  --election-timeout TIME      silence after which a new leader is elected; at least
                               3 heartbeats (1s)
  --request-timeout TIME       how long a request may wait for the cluster (5s)
  --max-value-size SIZE        largest value: bytes, KiB or MiB, to 64MiB (1MiB)
  --log-level LEVEL            debug, info, warn or error (info)
  --log-format FORMAT          console or json (console)
  --version                    print the versions and exit
  --help                       print this and exit

Each flag but the last two can also be set in the environment: --data-dir is
RAFTKV_DATA_DIR. The flag wins. An empty variable counts as not set.

Examples:
  A cluster of one, for a first try:
    raftkv

  The first of three members, and the others likewise with --id 2 and --id 3:
    raftkv --id 1 --port 12380 \
      --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379

  A fourth, once a member has been told of it (POST /4 with its peer URL):
    raftkv --id 4 --port 42380 --join \
      --cluster http://127.0.0.1:12379,4=http://127.0.0.1:42379
`
}

// parseConfig reads the flags in args and the variables that getenv knows (as
// os.LookupEnv does), and returns a config that is valid. It returns errHelp
// when help is asked for, and otherwise one error that names all problems, one
// a line. Nothing is printed.
func parseConfig(args []string, getenv func(string) (string, bool)) (config, error) {
	c := defaultConfig()
	c.DataDir = "" // depends on the ID, which is not known yet
	clusterList := defaultPeerURL
	settings := c.settings(&clusterList)

	r := newReview()
	given, err := r.readArgs(args, settings)
	if err != nil {
		return config{}, err
	}
	for _, s := range settings {
		r.assign(s, given[s.flag], getenv)
	}
	if c.Version {
		// Somebody who asks which version this is may be hunting a problem
		// with the rest.
		return config{Version: true}, nil
	}

	if c.DataDir == "" {
		c.DataDir = defaultDataDir(c.ID)
	}
	r.resolveCluster(&c, clusterList)
	r.check(&c)
	if err := r.err(); err != nil {
		return config{}, err
	}
	return c, nil
}

// validate reports all problems of the config in one error, one a line, with
// the values and the relations between them. It is for configs that were not
// made by parseConfig, which does the same.
func (c *config) validate() error {
	r := newReview()
	r.check(c)
	return r.err()
}

// listenPeer returns the host:port where the peer server listens.
func (c config) listenPeer() string {
	if c.ListenPeer != "" {
		return c.ListenPeer
	}
	return hostPortOf(c.PeerURL)
}

// clientURL returns what the node tells the others of its client API, given
// the port on which that really listens (Port may be 0).
func (c config) clientURL(port int) string {
	if c.AdvertiseClientURL != "" {
		return c.AdvertiseClientURL
	}
	host := c.Host
	if isUnspecified(host) {
		// The others reach this machine under its peer URL, so that host is
		// the best guess for its clients as well.
		host, _, _ = net.SplitHostPort(hostPortOf(c.PeerURL))
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// ticks translates the two durations into raft's clock: how long a tick is,
// and how many of them are a heartbeat and an election timeout. The config
// must be valid.
func (c config) ticks() (tick time.Duration, heartbeatTicks, electionTicks int) {
	tick = c.HeartbeatInterval
	// Rounded up: an election may come late, but not sooner than was asked.
	return tick, 1, int((c.ElectionTimeout + tick - 1) / tick)
}

// formatPeers returns the canonical text of a list of members, sorted by ID:
// "1=http://127.0.0.1:12379,2=http://127.0.0.1:22379". --cluster accepts it.
func formatPeers(peers []peer) string {
	var parts []string
	for _, p := range sortedPeers(peers) {
		parts = append(parts, fmt.Sprintf("%d=%s", p.ID, p.URL))
	}
	return strings.Join(parts, ",")
}

// clusterIDOf derives the cluster ID from the initial members. All of them
// must arrive at the same number, in any order of the list and in every
// version of this program, so it must never change. It is never 0.
func clusterIDOf(peers []peer) uint64 {
	h := sha256.New()
	for _, p := range sortedPeers(peers) {
		fmt.Fprintf(h, "%d=%s\n", p.ID, p.URL)
	}
	// 0 means "not set" elsewhere.
	return max(1, binary.BigEndian.Uint64(h.Sum(nil)))
}

func sortedPeers(peers []peer) []peer {
	return slices.SortedFunc(slices.Values(peers), func(a, b peer) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.URL, b.URL))
	})
}

// setting is one flag, and how its text gets into a config.
type setting struct {
	flag     string
	isSwitch bool // may be given without a value
	list     bool // may be given more than once; set gets all values, joined by commas
	noEnv    bool // cannot be given as an environment variable
	set      func(string) error
}

// settings returns all flags, in the order of the documentation, bound to the
// fields of c. The text of --cluster goes to clusterList: what it means
// depends on --id and --join, see resolveCluster.
func (c *config) settings(clusterList *string) []setting {
	return []setting{
		{flag: flagID, set: setUint(&c.ID)},
		{flag: flagCluster, set: setString(clusterList)},
		{flag: flagPort, set: setPort(&c.Port)},
		{flag: flagJoin, isSwitch: true, set: setBool(&c.Join)},
		{flag: flagHost, set: setHost(&c.Host)},
		{flag: flagAllowedHost, list: true, set: setHosts(&c.AllowedHosts)},
		{flag: flagListenPeer, set: setString(&c.ListenPeer)},
		{flag: flagAdvertiseClientURL, set: setClientURL(&c.AdvertiseClientURL)},
		{flag: flagDataDir, set: setString(&c.DataDir)},
		{flag: flagClusterID, set: setHex(&c.ClusterID)},
		{flag: flagSnapshotCount, set: setUint(&c.SnapshotCount)},
		{flag: flagHeartbeatInterval, set: setDuration(&c.HeartbeatInterval)},
		{flag: flagElectionTimeout, set: setDuration(&c.ElectionTimeout)},
		{flag: flagRequestTimeout, set: setDuration(&c.RequestTimeout)},
		{flag: flagMaxValueSize, set: setSize(&c.MaxValueSize)},
		{flag: flagLogLevel, set: setString(&c.LogLevel)},
		{flag: flagLogFormat, set: setString(&c.LogFormat)},
		// RAFTKV_VERSION is what images like to call the version they contain.
		{flag: flagVersion, isSwitch: true, noEnv: true, set: setBool(&c.Version)},
	}
}

// envName returns the environment variable of a flag.
func envName(flag string) string {
	return "RAFTKV_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// The set functions turn the text of a flag into a value, and their errors say
// what was expected. They refuse what has no meaning at all; review.check then
// looks at what the values mean.

func setString(p *string) func(string) error {
	return func(s string) error { *p = s; return nil }
}

func setBool(p *bool) func(string) error {
	return func(s string) (err error) {
		if *p, err = strconv.ParseBool(s); err != nil {
			return errors.New("expected true or false")
		}
		return nil
	}
}

func setUint(p *uint64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return errors.New("expected a whole number, 1 or more")
		}
		*p = n
		return nil
	}
}

func setHex(p *uint64) func(string) error {
	return func(s string) error {
		digits := strings.TrimPrefix(strings.ToLower(s), "0x")
		n, err := strconv.ParseUint(digits, 16, 64)
		if err != nil || n == 0 {
			return errors.New("expected 1 to 16 hexadecimal digits, not all 0, as in 8f3a01c2d4e5b697")
		}
		*p = n
		return nil
	}
}

func setPort(p *int) func(string) error {
	return func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return errors.New("expected a port number from 0 to 65535")
		}
		*p = n
		return nil
	}
}

func setDuration(p *time.Duration) func(string) error {
	return func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return errors.New("expected a time with its unit, as in 100ms or 5s")
		}
		*p = d
		return nil
	}
}

func setSize(p *int64) func(string) error {
	return func(s string) error {
		n, err := parseSize(s)
		if err != nil {
			return err
		}
		*p = n
		return nil
	}
}

func setHost(p *string) func(string) error {
	return func(s string) error {
		// The brackets belong to host:port, but people copy them along.
		if inner, ok := strings.CutPrefix(s, "["); ok {
			s = strings.TrimSuffix(inner, "]")
		}
		host, err := checkHost(s)
		if err != nil {
			return err
		}
		*p = host
		return nil
	}
}

func setHosts(p *[]string) func(string) error {
	return func(list string) error {
		var hosts []string
		var errs []string
		for s := range strings.SplitSeq(list, ",") {
			host, err := checkHost(strings.TrimSpace(s))
			if err != nil {
				errs = append(errs, fmt.Sprintf("%q: %v", s, err))
			} else if !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
		if errs != nil {
			return errors.New(strings.Join(errs, "; "))
		}
		*p = hosts
		return nil
	}
}

func setClientURL(p *string) func(string) error {
	return func(s string) error {
		u, err := canonicalURL(s)
		if err != nil {
			return fmt.Errorf("this URL %w; %s", err, urlForm)
		}
		*p = u
		return nil
	}
}

// parseSize reads a number of bytes, KiB or MiB. KB and MB are refused rather
// than guessed at: half the world means 1000 by K.
func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	if d, ok := strings.CutSuffix(s, "KiB"); ok {
		digits, unit = d, 1<<10
	} else if d, ok := strings.CutSuffix(s, "MiB"); ok {
		digits, unit = d, 1<<20
	}
	n, err := strconv.ParseUint(digits, 10, 32) // times a unit, this cannot overflow
	if err != nil {
		return 0, errors.New("expected a size in bytes, KiB or MiB, up to 64MiB, as in 1048576, 512KiB or 1MiB")
	}
	return int64(n) * unit, nil
}

// review collects the problems of one config, so that the user hears of all of
// them at once.
type review struct {
	env  map[string]string // flags that came from the environment: flag to variable
	bad  map[string]bool   // flags that have a problem of their own
	errs []error
}

func newReview() *review {
	return &review{env: map[string]string{}, bad: map[string]bool{}}
}

func (r *review) err() error { return errors.Join(r.errs...) }

// name returns how the user gave a flag, or would.
func (r *review) name(flag string) string {
	if env, ok := r.env[flag]; ok {
		return env
	}
	return "--" + flag
}

// reject notes that a flag has a value that no other flag could make right.
// The rest says what was expected.
func (r *review) reject(flag string, value any, format string, args ...any) {
	if s, ok := value.(string); ok {
		value = strconv.Quote(s)
	}
	r.add(flag, fmt.Errorf("%s %v: %w", r.name(flag), value, fmt.Errorf(format, args...)))
}

// add notes a problem of a flag in the words of err.
func (r *review) add(flag string, err error) {
	r.bad[flag] = true
	r.errs = append(r.errs, err)
}

// clash notes that values of several flags do not fit together, unless one of
// them is known to be bad, in which case this is only its echo.
func (r *review) clash(flags []string, format string, args ...any) {
	if !slices.ContainsFunc(flags, func(f string) bool { return r.bad[f] }) {
		r.errs = append(r.errs, fmt.Errorf(format, args...))
	}
}

// readArgs returns the values of each flag in args. It goes on after a
// problem, where the flag package alone would stop. Its only error is errHelp.
func (r *review) readArgs(args []string, settings []setting) (map[string][]string, error) {
	given := map[string][]string{}
	fs := newFlagSet(settings, given)
	for {
		err := fs.Parse(args)
		rest := fs.Args()
		switch {
		case errors.Is(err, flag.ErrHelp):
			return nil, errHelp
		case err == nil && len(rest) == 0:
			return given, nil
		case err == nil:
			r.errs = append(r.errs, fmt.Errorf(
				"unexpected argument %q: expected only flags, as --name value or --name=value (and --join=false)", rest[0]))
			rest = rest[1:]
		case len(rest) == len(args) || strings.HasPrefix(err.Error(), "bad flag syntax"):
			// The flag package does not step over these by itself.
			r.errs = append(r.errs, fmt.Errorf("malformed flag %q: expected --name value or --name=value", rest[0]))
			rest = rest[1:]
		default:
			rest = r.badFlag(fs, args[len(args)-len(rest)-1], rest)
		}
		args = rest
	}
}

// newFlagSet returns a silent flag set that collects texts in given, and
// judges none of them.
func newFlagSet(settings []setting, given map[string][]string) *flag.FlagSet {
	fs := flag.NewFlagSet("raftkv", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for _, s := range settings {
		collect := func(value string) error {
			given[s.flag] = append(given[s.flag], value)
			return nil
		}
		if s.isSwitch {
			fs.BoolFunc(s.flag, "", collect)
		} else {
			fs.Func(s.flag, "", collect)
		}
	}
	return fs
}

// badFlag notes a flag that is not known or that lacks its value, and returns
// the arguments with which to go on.
func (r *review) badFlag(fs *flag.FlagSet, arg string, rest []string) []string {
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	if fs.Lookup(name) != nil {
		r.add(name, fmt.Errorf("--%s: expected a value after it", name))
		return rest
	}
	r.errs = append(r.errs, fmt.Errorf("unknown flag %q: expected one of those in raftkv --help", arg))
	if !hasValue && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		rest = rest[1:] // most likely its value, and no problem of its own
	}
	return rest
}

// assign sets one flag from its values on the command line or else from the
// environment. With neither, the default stays.
func (r *review) assign(s setting, values []string, getenv func(string) (string, bool)) {
	if env := envName(s.flag); len(values) == 0 && !s.noEnv {
		// Empty is unset: compose files and unit files write RAFTKV_X=${X}.
		if v, ok := getenv(env); ok && v != "" {
			values = []string{v}
			r.env[s.flag] = env
		}
	}
	if len(values) == 0 {
		return
	}
	if len(values) > 1 && !s.list {
		r.add(s.flag, fmt.Errorf("--%s is given %d times, with the values %q: expected once", s.flag, len(values), values))
		return
	}
	value := strings.Join(values, ",")
	if value == "" {
		r.reject(s.flag, value, "expected a value that is not empty")
		return
	}
	if err := s.set(value); err != nil {
		r.reject(s.flag, value, "%w%s", err, r.hint(s.flag, value))
	}
}

// hint explains RAFTKV_PORT=tcp://10.0.0.7:9121, which nobody remembers to
// have set: Kubernetes does, in every pod next to a Service called raftkv.
func (r *review) hint(flag, value string) string {
	if flag == flagPort && r.env[flag] != "" && strings.HasPrefix(value, "tcp://") {
		return " (Kubernetes sets this for a Service named raftkv: give --port, or set enableServiceLinks: false in the pod)"
	}
	return ""
}

// clusterEntry is one item of --cluster.
type clusterEntry struct {
	pos int // counts from 1
	// The id is 0 for a bare URL.
	peer
}

// resolveCluster sets Cluster, or Seeds with Join, and PeerURL from the text of
// --cluster.
func (r *review) resolveCluster(c *config, list string) {
	entries := r.parseCluster(list)
	if r.bad[flagJoin] {
		return // what the list means is not known
	}
	c.Cluster, c.PeerURL = nil, ""
	if c.Join {
		r.resolveJoin(c, entries)
	} else {
		r.resolveStart(c, entries)
	}
}

// parseCluster reads the text of --cluster and returns the items that are in
// order.
func (r *review) parseCluster(list string) []clusterEntry {
	var entries []clusterEntry
	var peers []peer
	pos := 0
	for item := range strings.SplitSeq(list, ",") {
		pos++
		p, err := parsePeer(strings.TrimSpace(item))
		if err != nil {
			r.add(flagCluster, fmt.Errorf("%s, item %d: %w", r.name(flagCluster), pos, err))
			continue
		}
		entries = append(entries, clusterEntry{pos, p})
		peers = append(peers, p)
	}
	r.checkDuplicates(peers)
	return entries
}

// parsePeer reads `id=url` or a bare URL, for which the ID is 0.
func parsePeer(item string) (peer, error) {
	before, after, isPair := strings.Cut(item, "=")
	if !isPair || strings.Contains(before, "://") { // a "=" inside of a URL is the URL's problem
		u, err := checkPeerURL(item)
		return peer{URL: u}, err
	}
	id, err := strconv.ParseUint(before, 10, 64)
	if err == nil {
		err = checkID(id)
	} else {
		err = errors.New("expected a whole number, 1 or more")
	}
	if err != nil {
		return peer{}, fmt.Errorf("ID %q of %q: %w", before, item, err)
	}
	u, err := checkPeerURL(after)
	return peer{ID: id, URL: u}, err
}

// resolveStart makes the initial members of the list: all with their IDs, or
// all by position.
func (r *review) resolveStart(c *config, entries []clusterEntry) {
	isPair := func(e clusterEntry) bool { return e.ID != 0 }
	isBare := func(e clusterEntry) bool { return e.ID == 0 }
	pair, bare := slices.IndexFunc(entries, isPair), slices.IndexFunc(entries, isBare)
	if pair >= 0 && bare >= 0 {
		r.add(flagCluster, fmt.Errorf(
			"%s mixes the pair \"%d=%s\" with the bare URL %q: expected all of one kind (only --join takes both)",
			r.name(flagCluster), entries[pair].ID, entries[pair].URL, entries[bare].URL))
		return
	}
	for _, e := range entries {
		if bare >= 0 {
			e.ID = uint64(e.pos)
		}
		c.Cluster = append(c.Cluster, e.peer)
		if e.ID == c.ID {
			c.PeerURL = e.URL
		}
	}
	c.Cluster = sortedPeers(c.Cluster)
}

// resolveJoin splits the list into this node's own URL and the seeds.
func (r *review) resolveJoin(c *config, entries []clusterEntry) {
	own := ownEntry(c.ID, entries)
	if own < 0 {
		r.clash([]string{flagCluster, flagID},
			"%s has no URL that can be this node's own: expected a pair as in %d=http://127.0.0.1:12379, with %s %d",
			r.name(flagCluster), c.ID, r.name(flagID), c.ID)
		// The problem is named; check need not find it once more.
		r.bad[flagCluster] = true
		return
	}
	c.PeerURL = entries[own].URL
	for i, e := range entries {
		if i != own {
			c.Seeds = append(c.Seeds, e.URL)
		}
	}
}

// ownEntry returns the index of the joining node's own item: its pair, else
// the id-th item, else the last; or -1 when that is the pair of another node.
func ownEntry(id uint64, entries []clusterEntry) int {
	pair := slices.IndexFunc(entries, func(e clusterEntry) bool { return e.ID == id })
	if pair >= 0 {
		return pair
	}
	i := slices.IndexFunc(entries, func(e clusterEntry) bool { return uint64(e.pos) == id })
	if i < 0 {
		i = len(entries) - 1
	}
	if i >= 0 && entries[i].ID != 0 {
		return -1
	}
	return i
}

// check notes all problems of the values in c.
func (r *review) check(c *config) {
	if err := checkID(c.ID); err != nil {
		r.reject(flagID, c.ID, "%w", err)
	}
	if c.Join {
		r.checkJoin(c)
	} else {
		r.checkStart(c)
	}
	r.checkAddresses(c)
	r.checkClock(c)
	r.checkStore(c)
	r.checkLog(c)
}

// checkID says whether an ID can be the ID of a raft node.
func checkID(id uint64) error {
	switch {
	case id == 0:
		return errors.New("expected 1 or more, because raft uses 0 for no node")
	case id > maxID:
		return fmt.Errorf("expected at most %d, because raft keeps the larger ones for itself", uint64(maxID))
	}
	return nil
}

// checkStart notes problems of the initial members.
func (r *review) checkStart(c *config) {
	if r.bad[flagCluster] {
		return // known, and the list is not complete
	}
	if len(c.Cluster) == 0 {
		r.add(flagCluster, fmt.Errorf("%s is empty: expected at least this node's own peer URL", r.name(flagCluster)))
		return
	}
	for _, p := range c.Cluster {
		if err := checkID(p.ID); err != nil {
			r.add(flagCluster, fmt.Errorf("%s: ID %d: %w", r.name(flagCluster), p.ID, err))
		}
		r.checkCanonical(p.URL)
	}
	r.checkDuplicates(c.Cluster)
	own := slices.IndexFunc(c.Cluster, func(p peer) bool { return p.ID == c.ID })
	switch {
	case own < 0:
		r.clash([]string{flagID, flagCluster, flagJoin}, "%s %d is not in %s %q: expected one of its members, or --join",
			r.name(flagID), c.ID, r.name(flagCluster), formatPeers(c.Cluster))
	case c.PeerURL != c.Cluster[own].URL:
		r.clash([]string{flagID, flagCluster}, "own peer URL %q is not that of member %d in %s %q: expected the same",
			c.PeerURL, c.ID, r.name(flagCluster), formatPeers(c.Cluster))
	}
}

// checkJoin notes problems of the node's own URL and of the seeds.
func (r *review) checkJoin(c *config) {
	if r.bad[flagCluster] || r.bad[flagID] {
		return // known, and without both it is not clear which URL is whose
	}
	r.checkCanonical(c.PeerURL)
	peers := []peer{{URL: c.PeerURL}}
	for _, u := range c.Seeds {
		r.checkCanonical(u)
		peers = append(peers, peer{URL: u})
	}
	r.checkDuplicates(peers)
	if len(c.Seeds) == 0 {
		r.clash([]string{flagCluster}, "%s with only this node's own URL %q in %s: expected also the URL of a running member",
			r.name(flagJoin), c.PeerURL, r.name(flagCluster))
	}
}

// checkCanonical notes a URL of the cluster that is not as checkPeerURL
// returns it: two spellings of one URL must not look like two members.
func (r *review) checkCanonical(raw string) {
	u, err := checkPeerURL(raw)
	if err == nil && u != raw {
		err = fmt.Errorf("peer URL %q: expected its canonical form, %s", raw, u)
	}
	if err != nil {
		r.add(flagCluster, fmt.Errorf("%s: %w", r.name(flagCluster), err))
	}
}

// checkDuplicates notes members that share an ID or a URL. An ID of 0 is one
// that is not known.
func (r *review) checkDuplicates(peers []peer) {
	for i, p := range peers {
		for _, q := range peers[:i] {
			if p.ID == q.ID && p.ID != 0 {
				r.add(flagCluster, fmt.Errorf("%s has the ID %d twice, with %s and %s: expected a different ID for each member",
					r.name(flagCluster), p.ID, q.URL, p.URL))
			}
			if p.URL == q.URL {
				r.add(flagCluster, fmt.Errorf("%s has the URL %q twice: expected a different URL for each member",
					r.name(flagCluster), p.URL))
			}
		}
	}
}

// checkAddresses notes problems of where the node listens and of what it says
// about that.
func (r *review) checkAddresses(c *config) {
	if c.Port < 0 || c.Port > 65535 {
		r.reject(flagPort, c.Port, "expected a port number from 0 to 65535")
	}
	if _, err := checkHost(c.Host); err != nil {
		r.reject(flagHost, c.Host, "%w", err)
	}
	for _, h := range c.AllowedHosts {
		if got, err := checkHost(h); err != nil {
			r.reject(flagAllowedHost, h, "%w", err)
		} else if got != h {
			r.reject(flagAllowedHost, h, "expected its canonical form, %s", got)
		}
	}
	if c.ListenPeer != "" {
		if err := checkListen(c.ListenPeer); err != nil {
			r.reject(flagListenPeer, c.ListenPeer, "%w", err)
		}
	}
	if c.AdvertiseClientURL != "" {
		if _, err := canonicalURL(c.AdvertiseClientURL); err != nil {
			r.reject(flagAdvertiseClientURL, c.AdvertiseClientURL, "this URL %w; %s", err, urlForm)
		}
	}
	r.checkCollisions(c)
}

// checkCollisions notes when clients and peers would be sent to one place.
func (r *review) checkCollisions(c *config) {
	if c.AdvertiseClientURL != "" && c.AdvertiseClientURL == c.PeerURL {
		r.clash([]string{flagAdvertiseClientURL, flagCluster, flagID, flagJoin},
			"%s %q is also this node's peer URL in %s: expected another host or port",
			r.name(flagAdvertiseClientURL), c.AdvertiseClientURL, r.name(flagCluster))
	}
	client := net.JoinHostPort(c.Host, strconv.Itoa(c.Port))
	if sameListener(client, c.listenPeer()) {
		flags := []string{flagHost, flagPort, flagListenPeer}
		if c.ListenPeer == "" {
			flags = append(flags, flagCluster, flagID, flagJoin) // they make the peer URL
		}
		r.clash(flags,
			"%s %d: clients at %s would meet the peer server, which listens on %s: expected another port",
			r.name(flagPort), c.Port, client, c.listenPeer())
	}
}

// checkClock notes problems of the durations.
func (r *review) checkClock(c *config) {
	if c.HeartbeatInterval < minHeartbeatInterval || c.HeartbeatInterval > maxHeartbeatInterval {
		r.reject(flagHeartbeatInterval, c.HeartbeatInterval, "expected %v to %v", minHeartbeatInterval, maxHeartbeatInterval)
	}
	if c.ElectionTimeout <= 0 || c.ElectionTimeout > maxElectionTimeout {
		r.reject(flagElectionTimeout, c.ElectionTimeout, "expected more than 0 and at most %v", maxElectionTimeout)
	}
	if least := minElectionHeartbeats * c.HeartbeatInterval; c.ElectionTimeout < least {
		r.clash([]string{flagElectionTimeout, flagHeartbeatInterval},
			"%s %v is too short for %s %v: expected at least %d times as long, %v",
			r.name(flagElectionTimeout), c.ElectionTimeout,
			r.name(flagHeartbeatInterval), c.HeartbeatInterval, minElectionHeartbeats, least)
	}
	if c.RequestTimeout <= 0 || c.RequestTimeout > maxRequestTimeout {
		r.reject(flagRequestTimeout, c.RequestTimeout, "expected more than 0 and at most %v", maxRequestTimeout)
	}
}

// checkStore notes problems of what is kept, and where.
func (r *review) checkStore(c *config) {
	if c.DataDir == "" || strings.Contains(c.DataDir, "\x00") {
		r.reject(flagDataDir, c.DataDir, "expected the path of a directory")
	}
	if c.SnapshotCount < 1 {
		r.reject(flagSnapshotCount, c.SnapshotCount, "expected 1 or more")
	}
	if c.MaxValueSize < 1 || c.MaxValueSize > maxMaxValueSize {
		r.reject(flagMaxValueSize, c.MaxValueSize, "expected 1 byte to 64MiB (%d)", maxMaxValueSize)
	}
}

// checkLog notes problems of the logger's settings.
func (r *review) checkLog(c *config) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		r.reject(flagLogLevel, c.LogLevel, "expected debug, info, warn or error")
	}
	if !slices.Contains([]string{"console", "json"}, c.LogFormat) {
		r.reject(flagLogFormat, c.LogFormat, "expected console or json")
	}
}

// urlForm ends the message about a bad URL.
const urlForm = "expected the form http://host:port, as in http://127.0.0.1:12379"

// maxURLLen is enough for the longest DNS name, and keeps junk that is posted
// to the API out of the log and the store.
const maxURLLen = 300

// checkPeerURL returns the canonical form of a peer URL: http, lower case, an
// IP address in its shortest form, a port, and nothing else. Or it returns an
// error that says what is wrong with it.
//
// It is strict because rafthttp panics on a URL with a path or without a port,
// and because a URL that one node accepts is put into the log for all of them.
func checkPeerURL(raw string) (string, error) {
	u, err := canonicalURL(raw)
	if err != nil {
		return "", fmt.Errorf("peer URL %.*q %w; %s", maxURLLen, raw, err, urlForm)
	}
	return u, nil
}

// canonicalURL does the work of checkPeerURL, for the URLs of clients as well.
// Its error goes on where "the URL" was the subject.
func canonicalURL(raw string) (string, error) {
	if err := checkURLText(raw); err != nil {
		return "", err
	}
	u, err := url.Parse(raw)
	if err != nil {
		var parseErr *url.Error
		if errors.As(err, &parseErr) {
			err = parseErr.Err // without the URL, which the caller names
		}
		return "", fmt.Errorf("cannot be parsed: %w", err)
	}
	if err := checkURLParts(u); err != nil {
		return "", err
	}
	return canonicalHostPort(u)
}

// checkURLText finds what is wrong with the text of a URL, before it is parsed.
func checkURLText(raw string) error {
	unusual := func(r rune) bool { return r <= ' ' || r > '~' }
	switch {
	case raw == "":
		return errors.New("is empty")
	case len(raw) > maxURLLen:
		return fmt.Errorf("is longer than %d bytes", maxURLLen)
	case strings.ContainsFunc(raw, unusual):
		return errors.New("contains a character that is not printable ASCII")
	case !strings.Contains(raw, "://"):
		return errors.New("has no scheme")
	case strings.Contains(raw, "#"): // here, because url.Parse drops an empty one
		return errors.New("has a fragment")
	}
	return nil
}

// checkURLParts finds the parts of a URL that should not be there.
func checkURLParts(u *url.URL) error {
	switch {
	case u.Scheme == "https":
		return errors.New("has the scheme https, and TLS for peers or clients is not built yet")
	case u.Scheme != "http":
		return fmt.Errorf("has the scheme %q", u.Scheme)
	case u.User != nil:
		return errors.New("contains a user name")
	case u.RawQuery != "" || u.ForceQuery:
		return errors.New("has a query")
	case u.Path == "/":
		return errors.New("has a trailing slash")
	case u.Path != "":
		return errors.New("has a path")
	}
	return nil
}

// canonicalHostPort checks the host and port of u, and puts a URL together
// from them alone.
func canonicalHostPort(u *url.URL) (string, error) {
	name := u.Hostname()
	if name == "" {
		return "", errors.New("has no host")
	}
	if strings.HasPrefix(u.Host, "[") != strings.Contains(name, ":") {
		return "", errors.New("has brackets in the wrong place: they belong around an IPv6 address")
	}
	host, err := checkHost(name)
	if err != nil {
		return "", fmt.Errorf("has a bad host %q: %w", name, err)
	}
	if isUnspecified(host) {
		return "", fmt.Errorf("has the host %s, which is an address to listen on, not one to reach a node at", host)
	}
	if u.Port() == "" {
		return "", errors.New("has no port")
	}
	port, err := checkPort(u.Port())
	if err != nil {
		return "", fmt.Errorf("has a bad port: %w", err)
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// checkHost returns the canonical form of an IP address or a DNS name. Names
// may contain underscores, as those of containers do.
func checkHost(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return "", errors.New("expected an address without a zone, which means nothing on another machine")
		}
		return addr.String(), nil
	}
	name := strings.ToLower(host)
	labels := strings.Split(name, ".")
	// "0" and "10.1" are addresses to some resolvers, and names to others.
	_, err := strconv.ParseUint(labels[len(labels)-1], 0, 64)
	if err == nil || len(name) > 253 || slices.ContainsFunc(labels, isBadLabel) {
		return "", errors.New("expected an IP address or a DNS name, without scheme and port")
	}
	return name, nil
}

// isBadLabel says whether a part of a name, in lower case, cannot be in DNS.
func isBadLabel(label string) bool {
	unusual := func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_')
	}
	return label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
		strings.ContainsFunc(label, unusual)
}

// checkPort returns the canonical form of a port that a node can be reached at.
func checkPort(port string) (string, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("expected a port from 1 to 65535, not %q", port)
	}
	return strconv.FormatUint(n, 10), nil
}

// checkListen checks a host:port to listen on; no host means all addresses.
func checkListen(hostPort string) error {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return errors.New("expected host:port, as in 0.0.0.0:12379")
	}
	if host != "" {
		if _, err := checkHost(host); err != nil {
			return err
		}
	}
	_, err = checkPort(port)
	return err
}

// sameListener says whether two host:port surely are one place to listen on.
// It does not ask the DNS: two names for one address are found when the second
// server cannot listen.
func sameListener(a, b string) bool {
	aHost, aPort, errA := net.SplitHostPort(a)
	bHost, bPort, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || aPort != bPort || aPort == "0" {
		return false
	}
	return isUnspecified(aHost) || isUnspecified(bHost) || listenHost(aHost) == listenHost(bHost)
}

// listenHost returns the address behind the one name that we know.
func listenHost(host string) string {
	if host == "localhost" {
		return "127.0.0.1"
	}
	return host
}

// isUnspecified says whether a host means all addresses of the machine.
func isUnspecified(host string) bool {
	if host == "" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsUnspecified()
}

// hostPortOf returns the host:port of a URL that checkPeerURL has returned.
func hostPortOf(peerURL string) string { return strings.TrimPrefix(peerURL, "http://") }
