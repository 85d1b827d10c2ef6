package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"raftkv/internal/audit"
	"raftkv/internal/boot"
	"raftkv/internal/cli"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/exposure"
	"raftkv/internal/limits"
	"raftkv/internal/listening"
	"raftkv/internal/logging"
	"raftkv/internal/memory"
	"raftkv/internal/peertls"
	"raftkv/internal/probeport"
	"raftkv/internal/problem"
	"raftkv/internal/storage"
	"raftkv/internal/storage/walroom"
	"raftkv/internal/supervisor"
	"raftkv/internal/tlsport"
	"raftkv/internal/version"
	"runtime/debug"
	"strings"
	"syscall"

	"go.uber.org/zap"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // under nohup a closed terminal is no reason to stop
		signal.Notify(signals, syscall.SIGHUP)
	}
	if isServer(os.Args[1:]) {
		if err := config.LeaveProxies(); err != nil {
			fmt.Fprintf(os.Stderr, "raftkv: environment: %v\n", err)
			os.Exit(config.ExitFault)
		}
		// Without this the runtime ends the process when the reader of stdout or
		// stderr has gone. A command ends then, as others do; a server only
		// loses lines of its log.
		signal.Ignore(syscall.SIGPIPE)
	}
	go func() {
		<-signals
		// This one asks for a graceful stop. A second one ends the process at
		// once: when the stop begins, it is no longer caught.
		signal.Stop(signals)
		cancel()
	}()
	os.Exit(run(ctx, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: with a command word first that command, else the server.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) int {
	if !isServer(args) {
		return cli.Run(ctx, args, env, stdin, stdout, stderr)
	}
	return runServer(ctx, args, env, stdout, stderr)
}

// isServer reports whether no command word comes first.
func isServer(args []string) bool { return len(args) == 0 || strings.HasPrefix(args[0], "-") }

// runServer is the server. It returns when the node has stopped. What it writes
// to stderr, the log, waits for nobody (logging.Queue).
func runServer(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	lines := logging.NewQueue(stderr)
	defer func() { _ = lines.Close() }() // it never fails
	cfg, err := config.Parse(args, env)
	switch {
	case errors.Is(err, config.ErrHelp):
		fmt.Fprint(stdout, cli.Usage())
		return config.ExitOK
	case err != nil:
		lines.Last(fmt.Appendf(nil, "raftkv: %v\nRun raftkv --help for the flags; a command comes before its flags.\n", err))
		return config.ExitUsage
	case cfg.Version:
		fmt.Fprint(stdout, version.This().Text())
		return config.ExitOK
	}
	log := logging.New(cfg.ID, cfg.LogFormat, cfg.LogLevel, lines)
	lines.ReportLost(log)
	defer zap.RedirectStdLog(log)() // where packages write what they have no logger for
	b := version.This()
	log.Info("starting", zap.String("version", b.Version), zap.String("revision", b.Revision), zap.String("go", b.GoVersion),
		zap.Uint64("id", cfg.ID), zap.String("data-dir", cfg.DataDir))
	config.WarnEnvironment(cfg, os.Environ(), log)
	goLimit := debug.SetMemoryLimit(-1) // asks
	cfg.Memory, cfg.Manager = memory.FindLimit(os.DirFS("/"), goLimit), supervisor.Find(env, os.Getpid())
	memory.SetLimit(cfg.Memory, goLimit)
	memory.WarnScarce(cfg.Memory, log)
	go memory.TuneGC(ctx)
	if err = exposure.Of(cfg, log).Check(); err == nil {
		err = stopWithin(ctx, stopLimit, func(serving func()) error { return runNode(ctx, cfg, log, serving) })
	}
	_ = log.Sync() // writes what was held back as a repeat; nobody is left to tell of an error
	if errors.Is(err, problem.ErrRemoved) {
		log.Info("this node was removed from the cluster and has stopped; its data directory is of no more use",
			zap.Uint64("id", cfg.ID), zap.String("data-dir", cfg.DataDir))
		return config.ExitOK
	}
	if err != nil {
		log.Debug("stopped", zap.Error(err))
		lines.Last(fmt.Appendf(nil, "raftkv: %v\n", err))
		return config.ExitFault
	}
	log.Info("stopped")
	return config.ExitOK
}

// runNode opens the listeners, so that a port in use is found before anything
// else happens, then the data directory, calls serving, and serves until ctx ends
// or the node cannot go on.
func runNode(ctx context.Context, cfg config.Config, log *zap.Logger, serving func()) (err error) {
	probes, err := probeport.Open(cfg.ListenMetrics, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, probes.Close()) }()
	cfg, known := boot.Discover(ctx, cfg, log)
	if !known {
		return nil // by a signal, while it was waiting for DNS
	}
	trail, err := audit.Open(cfg, os.Stdout, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, trail.Close()) }()
	door, err := tlsport.ForClients(cfg.Doors, log)
	if err != nil {
		return err
	}
	clients, err := listenForClients(cfg, door, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clients.close()) }()
	ask, peerDoor, err := peertls.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	peers, err := listenForPeers(cfg.PeerListener(), listening.PeerServer(log), ask, peerDoor)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peers.close()) }()
	peers.limitTo(limits.PeerConns(durable.MaxFiles()), log.Named("peer-http"), "")
	lock, err := storage.Lock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() {
		if !errors.Is(err, errLeftBehind) { // else somebody still writes there
			err = errors.Join(err, lock.Close())
		}
	}()

	walroom.FitSegments(log, cfg.DataDir)
	found, err := boot.PrepareDir(ctx, cfg, log, ask)
	if errors.Is(err, problem.ErrStopping) {
		return nil // by a signal, while it was waiting to join
	}
	if err != nil {
		return err
	}
	s, err := openServer(ctx, cfg, log, found, clients.port(), ask, peerDoor)
	if errors.Is(err, problem.ErrStopping) {
		return nil // likewise, while it was waiting to hear where the cluster knows it
	}
	if err != nil {
		return err
	}
	s.lock, s.probes, s.api.audit = lock, probes, trail
	s.secure(door)
	serving()
	return s.run(ctx, clients, peers)
}
