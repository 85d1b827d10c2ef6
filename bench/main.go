// Bench measures raftkv beside what people would pick instead: etcd, through its
// HTTP gateway and its own gRPC client, on the same machine, in the same run and
// in turns; and beside two ceilings, a bare net/http handler and a bare fdatasync.
// docs/performance.md tells what is measured and how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// The commands with which the benchmark starts itself as one of the servers.
const (
	etcdCommand = "serve-etcd"
	bareCommand = "serve-bare"
	natsCommand = "serve-nats"
)

func main() {
	// Servers die with the thread that starts them; this one lasts.
	runtime.LockOSThread()
	// Whatever ends it, the servers' files go: a closed pipe is an error of a
	// write then, and no end without cleaning up.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == etcdCommand {
		return serveEtcd(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == bareCommand {
		return serveBare(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == natsCommand {
		return serveNATS(ctx, args[1:])
	}
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if o.from != "" {
		return drawFrom(o)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	// This process shares the cores with what it measures: its garbage may wait.
	debug.SetGCPercent(400)
	return runBench(ctx, o)
}

// options are what the command line says.
type options struct {
	rows, lanes *regexp.Regexp
	quick       bool
	verbose     bool
	growth      string // directory of the plots
	source      string
	binary      string
	dir         string
	json        string
	picture     string // file of the picture of the results
	from        string // file with results, to draw in place of measuring
	timeout     time.Duration
	settings

	flags        string // of raftkv
	kills        int
	keys         uint64
	mostKeys     uint64
	snapshotRate float64
	snapshotTime time.Duration
	largeKeys    uint64
	largeTime    time.Duration
	idleConns    int
	idleWatches  int
}

func parseOptions(args []string) (o options, err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	rows := fs.String("rows", "", "regular expression: only rows with such a name")
	lanes := fs.String("lanes", "", "regular expression: only lanes with such a name, as in 'raftkv|bare'")
	fs.BoolVar(&o.quick, "quick", false, "only the short table")
	fs.StringVar(&o.growth, "growth", "", "instead of the table, measure how cost grows, and put the plots into this directory")
	fs.BoolVar(&o.verbose, "v", false, "tell of each turn")
	fs.StringVar(&o.source, "source", "..", "directory with raftkv's source, to build it from")
	fs.StringVar(&o.binary, "raftkv", "", "program to measure instead of building it")
	fs.StringVar(&o.flags, "raftkv-flags", "", "further flags for raftkv, for experiments")
	fs.IntVar(&o.kills, "kills", 20, "how often the leader is killed")
	fs.Uint64Var(&o.keys, "keys", 1_000_000, "keys in the rows about a million")
	fs.Uint64Var(&o.mostKeys, "most-keys", 10_000_000, "keys up to which growth is measured")
	fs.Float64Var(&o.snapshotRate, "snapshot-rate", 4000, "PUTs a second beside snapshots")
	fs.DurationVar(&o.snapshotTime, "snapshot-time", 3*time.Minute, "for how long")
	fs.Uint64Var(&o.largeKeys, "large-keys", 20_000, "keys of 16 KiB, at most, in the row about the removal of large state files")
	fs.DurationVar(&o.largeTime, "large-time", 20*time.Second, "time of a turn of that row")
	fs.IntVar(&o.idleConns, "idle-conns", 10_000, "idle connections in the row about them")
	fs.IntVar(&o.idleWatches, "idle-watches", 10_000, "idle watches in the row about them")
	fs.StringVar(&o.dir, "dir", os.TempDir(), "directory for the servers' files, on the disk that is to be measured")
	fs.StringVar(&o.json, "json", "", "file for the results in JSON")
	fs.StringVar(&o.picture, "picture", "", "file for a picture of the results, SVG")
	fs.StringVar(&o.from, "from", "", "instead of measuring, take the results for the picture from a file that -json has written")
	fs.DurationVar(&o.timeout, "timeout", time.Hour, "limit for the whole run")
	fs.IntVar(&o.turns, "turns", 5, "turns of each lane")
	fs.DurationVar(&o.warm, "warm", 300*time.Millisecond, "time at the beginning of a turn that does not count")
	fs.DurationVar(&o.length, "length", 1500*time.Millisecond, "time of a turn that counts")
	fs.IntVar(&o.workersPer, "workers-per-conn", 16, "workers that share a connection of etcd's gRPC client")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.turns < 1 || o.length <= 0 || o.warm < 0 || o.workersPer < 1 || o.keys < 1 || o.largeKeys < 1 || o.largeTime <= 0 || o.idleConns < 1 || o.idleWatches < 1 {
		return o, errors.New("-turns, -length, -workers-per-conn, -keys, -large-keys, -large-time, -idle-conns and -idle-watches must be positive")
	}
	if o.from != "" && o.picture == "" {
		return o, errors.New("-from needs -picture")
	}
	if o.json != "" { // rather now than after half an hour
		if err := os.WriteFile(o.json, nil, 0o644); err != nil {
			return o, err
		}
	}
	var err2 error
	o.rows, err = regexp.Compile(*rows)
	o.lanes, err2 = regexp.Compile(*lanes)
	return o, errors.Join(err, err2)
}
