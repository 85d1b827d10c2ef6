package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"raftkv/internal/access"
	"raftkv/internal/address"
	"raftkv/internal/admin"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/boot"
	"raftkv/internal/checker"
	"raftkv/internal/clock"
	"raftkv/internal/config"
	"raftkv/internal/exposure"
	"raftkv/internal/leaseapi"
	"raftkv/internal/limits"
	"raftkv/internal/liveness"
	"raftkv/internal/logging"
	"raftkv/internal/observe"
	"raftkv/internal/peerclient"
	"raftkv/internal/peertls"
	"raftkv/internal/probeport"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/room"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/supervisor"
	"raftkv/internal/suspect"
	"raftkv/internal/tlsport"
	"raftkv/internal/transport"
	"raftkv/internal/txnapi"
	"raftkv/internal/watch"
	"raftkv/internal/watchapi"
	"raftkv/internal/web"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// server is one node, put together: a raftNode and a kvstore, with a proposal
// and a commit channel between them, and what serves clients and peers.
type server struct {
	cfg       config.Config
	log       *zap.Logger
	began     time.Time
	storage   *storage.Opened
	kv        *kvstore
	node      *raftNode
	reads     *rounds.Reader
	proposals *rounds.Proposer
	members   *reconfig.Members
	checker   *checker.Checker
	clock     *clock.Ticker
	live      *liveness.Monitor
	watcher   *observe.Watcher
	room      *room.Keeper
	api       *httpKVAPI
	hub       *watch.Hub
	guards    []guard // of the node's doors
	states    chan *state.State
	commitC   chan []commit
	clientURL string
	caughtUp  *atomic.Bool
	rafthttp  http.Handler // its four routes
	identify  func(http.Handler) http.Handler
	probes    *probeport.Port
	lock      io.Closer // of the data directory; here so that it is held while anything runs

	// The node's goroutines run in group, and end with life.
	group *errgroup.Group
	life  context.Context
	end   context.CancelFunc
}

const (
	stopLimit     = 8 * time.Second // of a graceful stop
	farewellLimit = time.Second     // of the last answers of a node that ends by itself
)

// openServer opens the data directory and puts a node together around
// rafthttp.
func openServer(ctx context.Context, cfg config.Config, log *zap.Logger, found reconfig.ClusterInfo, port int, ask *peerclient.Client, door *peertls.Door) (*server, error) {
	guard, err := access.Open(log, cfg.AuthFile)
	if err != nil {
		return nil, err
	}
	st, err := storage.Open(log, cfg.DataDir, storage.Bounds{Tail: cfg.Memory.Share(storage.TailWeight), Changes: cfg.Changes()}, func(id storage.Identity, reconfigured bool) error {
		return boot.CheckIdentityNow(ctx, cfg, id, reconfigured, ask)
	})
	if err != nil {
		return nil, err
	}
	if err := boot.CheckAddressNow(ctx, cfg, log, st, found, ask); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	s := newServer(cfg, log, st, port)
	s.api.guard, s.guards, s.kv.doors.File = guard, append(s.guards, guard), guard.File
	s.register(guard)
	s.members.Ask = reconfig.AskMember(ask)
	s.members.AskView = reconfig.AskView(ask)
	s.members.Who, s.members.Process = ask.Who, ask.Process
	s.room.Tell = room.Tell(ask)
	s.node.known.AskPeer = reconfig.AskCluster(ask)
	s.node.doubts.AskStand = suspect.AskStand(ask)
	s.node.links.Ask = transport.AskLink(ask)
	t, err := transport.New(cfg, log, st.Identity.ClusterID, s.node, s.node.refusals, s.node.inbox.Snapshotter, s.node.errorC, door)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	s.node.links.ActiveSince = t.ActiveSince
	s.node.links.Secure(door)
	s.identify, s.guards = door.Identify, append(s.guards, door)
	door.CheckOwn(address.Peer{ID: cfg.ID, URL: cfg.PeerURL}, s.kv.members(), log)
	s.register(door)
	s.connect(t, found)
	s.rafthttp = t
	return s, nil
}

// guard is a part that says who comes in at which door.
type guard interface {
	registrant
	Run(ctx context.Context) error
	Notes() string // lines of /readyz?verbose about what is to be seen to
}

// registrant is a part that has something to count.
type registrant interface {
	Register(reg prometheus.Registerer)
}

// newServer wires a node's parts, without a network.
func newServer(cfg config.Config, log *zap.Logger, st *storage.Opened, port int) *server {
	w, end := newWiring(cfg, log, st)
	proposals := rounds.NewProposer(log, cfg, w.number, w.proposeC, w.leaders)
	reads := rounds.NewReader(cfg, w.number, w.roundC, w.leaders, w.applied)
	kv := w.store(proposals)
	node := w.raftNode(kv, reads)
	s := &server{
		cfg: cfg, log: log, began: time.Now(), storage: st, kv: kv, node: node, reads: reads, proposals: proposals,
		group: w.group, life: w.life, end: end, states: w.states, commitC: w.commitC, clientURL: cfg.ClientURL(port), caughtUp: new(atomic.Bool),
	}
	s.members = w.members(kv, node, reads)
	s.watcher = w.watcher(kv, node, func() (bool, uint64) { return s.checker.Outstanding() })
	s.members.Version = s.watcher.Version
	s.room = room.New(log, cfg, st, kv, w.applied, w.leaders)
	node.room, st.Redo = s.room, kv.redoSnapshot
	s.checker = checker.New(checker.Config{
		Log: log, ID: cfg.ID, Interval: cfg.CheckInterval, Tick: w.tick, ElectionTimeout: cfg.ElectionTimeout,
		Store: kv, Found: kv.agreement, Leaders: w.leaders, CaughtUp: s.caughtUp, Propose: proposals.Propose, StepDown: s.members.StepDown,
	})
	s.live = liveness.New(node.pulse, node.persistPulse, kv.pulse, proposals.Pulse, reads.Pulse)
	fault := func() error { return cmp.Or(kv.Fault(), kv.doors.MayServe()) }
	fresh := &api.Freshness{Confirm: reads.Confirm, Start: reads.Start, Fault: fault, Applied: w.applied, Contacts: &node.contacts,
		Revision: kv.revision, Timeout: cfg.RequestTimeout}
	quota := limits.NewQuota(log, cfg, kv)
	admission := api.Admission{Applied: w.applied, MayWrite: node.disk.MayWrite, Room: s.room, Quota: quota, Outcomes: limits.NewOutcomes(cfg.Memory.Room(), kv.View), Level: kv.levelNow.Load}
	s.clock = clock.New(clock.Config{
		Log: log, ID: cfg.ID, View: kv.View, Leaders: w.leaders, Applied: w.applied, Call: node.call, Propose: node.propose,
	})
	commands := &api.Commands{Admission: admission, Propose: proposals.Propose, Fault: fault}
	owners := api.Owners{Look: kv.Look, Fresh: fresh}
	bodies := limits.NewBodyBudget(max(limits.BodyBudgetBytes, 4*cfg.MaxValueSize))
	s.api = &httpKVAPI{
		log: log, metrics: admin.NewMetrics(s.status),
		keys:    &api.Keys{Store: kv, Look: kv.Look, Fresh: fresh, Writes: proposals, MaxValue: cfg.MaxValueSize, Admission: admission},
		leases:  &leaseapi.Leases{Commands: commands, Owners: owners},
		txns:    &txnapi.Txns{Commands: commands, Owners: owners, Bodies: bodies, MaxValue: cfg.MaxValueSize},
		members: &admin.MembersAPI{Members: s.members, Fresh: fresh, Leaders: w.leaders, Current: kv.members, IsKey: kv.has, Differs: kv.doors.Differs},
		backups: admin.NewBackups(log, st.Identity.ClusterID, kv, fresh), bodies: bodies,
		lists:  api.NewLists(log, kv, fresh),
		origin: web.OriginGuard{Hosts: cfg.ClientHosts(port), Origins: cfg.AllowedOrigins}, profiles: cfg.Pprof,
		ends: api.Endings{Life: w.life, Disputed: node.doubts.Disputed}, open: kv.doors.MayAnswer,
	}
	may := func() error { return s.api.mayServe("", "") }
	s.hub = watch.New(watch.Config{Look: kv.Look, Revision: kv.revision, May: func() error { return cmp.Or(may(), fresh.Told()) },
		Confirm: reads.Confirm, Most: cfg.Memory.Most(watch.Most, watch.Cost)})
	s.api.keys.Hub, s.api.lists.Hub = s.hub, s.hub
	s.api.watches = &watchapi.Watches{Log: log, Hub: s.hub, Fresh: fresh, Lists: s.api.lists, Look: kv.Look, May: may, Explain: s.api.ends.Explain}
	s.api.always = append(s.api.origin.Fields(), web.Field{Name: "Raftkv-Cluster-Id", Value: strconv.FormatUint(st.Identity.ClusterID, 16)})
	about := &admin.StatusAPI{Get: s.status, Checks: s.readyChecks, Notes: s.notes}
	s.guards = append(s.guards, exposure.Of(cfg, log), kv.doors, supervisor.New(log, cfg.Manager, supervisor.Node{Alive: s.live.Check, Status: about.Line}))
	s.api.addRoutes(about, s.live)
	st.Snapshots.Register(s.api.metrics.Registry, st.Trouble.Lost.Load)
	logging.RegisterDropped(s.api.metrics.Registry, log)
	s.register(node.refusals, node.links, kv.agreement, proposals, reads, fresh, s.watcher, s.room, s.hub, quota, admission.Outcomes, cfg.Memory)
	for _, g := range s.guards {
		s.register(g)
	}
	return s
}

// notes are what is not wrong with a node, and should be seen to.
func (s *server) notes() string {
	text := s.room.Notes()
	for _, g := range s.guards {
		text += g.Notes()
	}
	return text
}

// register adds what the parts have to count.
func (s *server) register(parts ...registrant) {
	for _, part := range parts {
		part.Register(s.api.metrics.Registry)
	}
}

// connect gives the node its transport, and tells that of the members: those
// of the replicated state, or, before a joining node has any, those found.
func (s *server) connect(t transport.Messenger, found reconfig.ClusterInfo) {
	s.node.transport, s.node.links.Transport, s.node.courier.Send = t, t, t.SendSnapshot
	m := s.storage.State.Membership.Clone()
	if s.storage.State.Index == 0 {
		for _, mem := range found.Members {
			m.Members[mem.ID] = mem.Member()
		}
	}
	s.node.addPeers(m)
	s.node.known.Gate.Expect(s.kv.Proven(), s.node.links.URLs())
}

// start starts the node's goroutines; doc.go lists them.
func (s *server) start() error {
	ctx, group := s.life, s.group
	if err := s.proposals.CheckWindow(s.storage.State.Window(s.cfg.ID)); err != nil {
		return err
	}
	if err := s.node.startRaft(ctx, s.cfg); err != nil {
		return err
	}
	group.Go(func() error { return s.kv.readCommits(ctx, s.commitC, s.node.reconfigure) })
	group.Go(func() error { return s.proposals.Run(ctx) })
	group.Go(func() error { return s.reads.Run(ctx) })
	group.Go(func() error { return s.storage.WriteSnapshots(ctx, s.states, s.kv.writer, s.node.writtenC) })
	group.Go(func() error { return s.storage.Mark.Run(ctx) })
	group.Go(func() error { return s.storage.Watch(ctx) })
	group.Go(func() error { return s.members.Run(ctx) })
	group.Go(func() error { return s.room.Run(ctx) })
	group.Go(func() error { return s.checker.Report(ctx) })
	group.Go(func() error { return s.checker.Lead(ctx) })
	group.Go(func() error { return s.clock.Run(ctx) })
	group.Go(func() error { return s.hub.Run(ctx) })
	group.Go(func() error { return s.watcher.Run(ctx) })
	group.Go(func() error { return s.watcher.AskVersions(ctx) })
	group.Go(func() error { return s.takePart(ctx) })
	group.Go(func() error { return s.live.Run(ctx) })
	for _, g := range s.guards {
		group.Go(func() error { return g.Run(ctx) })
	}
	follow := audit.Expiries{ID: s.cfg.ID, Leaders: s.node.leaders, Revision: s.kv.revision, Look: s.kv.Look}
	group.Go(func() error { return s.api.audit.FollowExpiries(ctx, follow) })
	return nil
}

// secure gives the node the door of its client port, before it is started.
func (s *server) secure(door *tlsport.Door) {
	s.api.origin.Serves = door.Serves
	s.guards = append(s.guards, door)
	s.register(door)
}

// takePart waits until the node has caught up, then publishes its client URL
// and its level, which also marks its ID as used.
func (s *server) takePart(ctx context.Context) error {
	for s.reads.Confirm(ctx) != nil {
		if ctx.Err() != nil {
			return nil
		}
	}
	s.caughtUp.Store(true)
	s.log.Info("ready", zap.String("client-url", s.clientURL))
	for ctx.Err() == nil {
		m, _ := s.kv.Membership()
		if me, ok := m.Members[s.cfg.ID]; !ok || (me.ClientURL == s.clientURL && me.Level == state.ProgramLevel && s.kv.Proven()) {
			return nil
		}
		s.proposals.Propose(ctx, state.EncodeAnnounce(s.cfg.ID, s.storage.Identity.Instance, state.ProgramLevel, s.clientURL))
		select {
		case <-time.After(s.node.tick):
		case <-ctx.Done():
		}
	}
	return nil
}

// run serves until ctx ends or the node cannot go on, then stops in order. The
// node's own life outlasts ctx by the graceful stop.
func (s *server) run(ctx context.Context, clients, peers *stoppableListener) error {
	defer s.end()
	if err := s.start(); err != nil {
		s.node.transport.Stop()
		return s.remember(errors.Join(err, s.storage.Close()))
	}
	s.register(s.api.audit)
	if clients.front != nil {
		s.register(clients.front)
	}
	s.group.Go(func() error { return s.node.serveRaft(peers, s.rafthttp, s.guardConfig(), s.peerRoutes()) })
	s.group.Go(func() error { return s.node.links.Watch(s.life) })
	s.group.Go(func() error { return clients.serve(s.api, plainRequests{s.api}) })
	s.probes.Serve(s.api.routes, s.api.mayServe)
	s.sayStarted(clients.Addr().String(), peers.Addr().String())

	limit := stopLimit
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
		began := time.Now()
		s.drain(clients)
		limit = max(stopLimit-time.Since(began), stopReserve)
	case <-s.life.Done(): // a part of the node has failed, or it was removed
		s.finish(clients, farewellLimit) // whose requests get to know which
	}
	s.end()
	// Streams between peers are endless, so they are cut, not awaited.
	cerr := errors.Join(clients.close(), peers.close(), s.probes.Close())
	return s.remember(errors.Join(s.awaitEnd(limit), cerr))
}

// remember writes down why the node has ended, if its next start has to know.
func (s *server) remember(ended error) error {
	if errors.Is(ended, problem.ErrOldCopy) {
		return errors.Join(ended, storage.NoteOldCopy(s.cfg.DataDir))
	}
	return ended
}

// closeStorage closes the log once all goroutines have ended, and why. What
// still waited for the persist loop, if that has not failed, goes in before.
func (s *server) closeStorage(ended error) error {
	if ended == nil {
		ended = s.storage.Append(s.node.loop.appends)
	}
	return errors.Join(ended, s.storage.Close())
}

// drain is the graceful part of a stop: refuse new requests, hand over
// leadership, and let those in flight finish; under a new leader their batches
// are proposed again.
func (s *server) drain(clients *stoppableListener) {
	began := time.Now()
	s.api.stop()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if m, _ := s.kv.Membership(); len(m.Voters()) > 1 {
		if _, err := s.members.Transfer(ctx, 0); err != nil {
			s.log.Warn("stopping without a successor", zap.Error(err))
		}
	}
	limit := stopLimit - time.Since(began)
	if s.node.disk.Hanging.Load() {
		limit -= stopReserve
	}
	s.finish(clients, limit)
}

// finish lets the requests in flight come to their end.
func (s *server) finish(clients *stoppableListener, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s.api.stop()
	if err := clients.shutdown(ctx, lameDuck); err != nil {
		s.log.Warn("some requests did not finish in time", zap.Error(err))
	}
}
