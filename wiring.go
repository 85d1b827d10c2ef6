package main

import (
	"context"
	"raftkv/internal/boot"
	"raftkv/internal/checker"
	"raftkv/internal/config"
	"raftkv/internal/diskhang"
	"raftkv/internal/doors"
	"raftkv/internal/liveness"
	"raftkv/internal/observe"
	"raftkv/internal/peerport"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/refusal"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/suspect"
	"raftkv/internal/transport"
	"raftkv/internal/wait"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// wiring is what the parts of one node have in common, while they are put
// together: what they were told, the channels between them, and how they end.
type wiring struct {
	cfg    config.Config
	log    *zap.Logger
	st     *storage.Opened
	tick   time.Duration
	number rounds.Life // tells this life of the node from all others

	proposeC chan rounds.Proposal // proposer to raft loop
	commitC  chan []commit        // raft loop to apply loop
	roundC   chan []byte          // reader to raft loop
	states   chan *state.State    // apply loop to snapshot writer
	leaders  *wait.Leadership     // as raft has it
	applied  *wait.Index          // as the store has it

	life  context.Context // ends when the node does, with the cause
	group *errgroup.Group // the goroutines of the node
}

func newWiring(cfg config.Config, log *zap.Logger, st *storage.Opened) (w *wiring, end context.CancelFunc) {
	life, end := context.WithCancel(context.Background())
	group, life := errgroup.WithContext(life)
	tick, _, _ := cfg.Ticks()
	return &wiring{
		cfg: cfg, log: log, st: st, tick: tick, number: rounds.NewLife(cfg.ID, st.Boot),
		proposeC: make(chan rounds.Proposal),
		commitC:  make(chan []commit),
		roundC:   make(chan []byte),
		states:   make(chan *state.State, 1),
		leaders:  wait.NewLeadership(),
		applied:  wait.NewIndex(st.State.Index),
		life:     life, group: group,
	}, end
}

// store makes the state machine, as the data directory has it.
func (w *wiring) store(proposals *rounds.Proposer) *kvstore {
	kv := &kvstore{
		log: w.log, pulse: liveness.NewPulse("apply"),
		self:      boot.Self{Node: w.cfg.ID, Instance: w.st.Identity.Instance},
		proposals: proposals, applied: w.applied, revision: wait.NewLevel(w.st.State.Revision), conf: wait.NewOutcomes(),
		snapshots: w.states, writer: make(chan struct{}, 1), wanted: make(chan struct{}, 1),
		due:        snapshots.Policy{Every: w.cfg.SnapshotCount, Bytes: w.st.Due.Bytes, Commands: w.st.Due.Commands},
		state:      w.st.State,
		agreement:  checker.NewAgreement(w.log, w.cfg.ID, w.st.Worked, w.st.State.Checks.Checked),
		toldBefore: w.st.Storage.Hard.GetCommit(),
		doors:      doors.New(w.log, w.cfg.ID, w.st.Identity.Instance, w.cfg.Doors),
	}
	kv.doors.Members, kv.doors.Level, kv.doors.Propose = kv.members, kv.levelNow.Load, proposals.Propose
	kv.agreement.Note(&kv.state.Checks)
	kv.publish()
	return kv
}

// raftNode makes what runs raft, and the parts that it asks on its way.
func (w *wiring) raftNode(kv *kvstore, reads *rounds.Reader) *raftNode {
	cfg, cluster := w.cfg, w.st.Identity.ClusterID
	n := &raftNode{
		pulse: liveness.NewPulse("raft"), persistPulse: liveness.NewPulse("persist"),
		log: w.log, id: cfg.ID, url: cfg.PeerURL, cluster: cluster, tick: w.tick, electionTimeout: cfg.ElectionTimeout,
		storage: w.st.Storage, leaders: w.leaders, kv: kv, applied: w.applied, reads: reads,
		proposeC: w.proposeC, commitC: w.commitC, roundC: w.roundC,
		recvC:    make(chan *raftpb.Message, recvBuffer),
		callC:    make(chan func(*raft.RawNode)),
		appendC:  make(chan []*raftpb.Message),
		storedC:  make(chan stored),
		appliedC: make(chan *raftpb.Message),
		writtenC: make(chan *state.State),
		reports:  mailbox{kick: make(chan struct{}, 1)},
		errorC:   make(chan error, 1), // rafthttp does not wait
		links:    transport.NewLinks(w.log, cfg.ID, cluster, w.tick, cfg.ElectionTimeout),
		refusals: refusal.NewRefusals(w.log),
		inbox:    storage.NewInbox(w.log, w.st.Storage),
		group:    w.group, life: w.life,
	}
	n.links.Opened = func() { n.doubts.MeetAgain() }
	n.links.Group, n.links.Unreachable = w.group, n.ReportUnreachable
	n.known = boot.NewAcquaintances(boot.Config{
		Log: w.log, Self: kv.self, Cluster: cluster, Tick: w.tick, ElectionTimeout: cfg.ElectionTimeout, Seeds: boot.Others(cfg, nil),
		Store: kv, Applied: w.applied, Contacts: &n.contacts, Role: n.status.Load,
	})
	n.admission = peerport.Admission{ID: cfg.ID, IsRemoved: kv.isRemoved, Known: n.known, Role: n.status.Load}
	n.courier = transport.NewCourier(transport.CourierConfig{
		Log: w.log, Storage: w.st.Storage, Tick: w.tick, ElectionTimeout: cfg.ElectionTimeout, Life: w.life, Group: w.group,
		MayGet: n.maySend, Members: kv, Receives: n.links.Receives, Later: n.reports.put,
	})
	n.doubts = suspect.New(suspect.Config{
		Say: w.log, ID: cfg.ID, Cluster: cluster, Log: w.st.Mem, Call: n.call, Leaders: w.leaders, Refusals: n.refusals,
		Members: kv.members, URLOf: n.known.URL, Asked: w.number.Asked, Standing: kv.standing, StandingWith: kv.standingWith, Again: n.step,
		Divide: func() {
			kv.agreement.Divide()
			kv.proposals.Release(problem.ErrHistories)
			reads.Release(problem.ErrHistories)
		},
		Dispute: func() {
			kv.proposals.Release(problem.ErrDisputed)
			reads.Release(problem.ErrDisputed)
		},
		Tick: w.tick, ElectionTimeout: cfg.ElectionTimeout, CommittedTerm: func() uint64 { return n.loop.committedTerm },
	})
	n.disk = diskhang.New(w.log, cfg.ID, w.tick, cfg.ElectionTimeout, &n.contacts)
	return n
}

// members makes what changes the members and the leader.
func (w *wiring) members(kv *kvstore, n *raftNode, reads *rounds.Reader) *reconfig.Members {
	return reconfig.New(reconfig.Config{
		Log: w.log, ID: w.cfg.ID, Cluster: w.st.Identity.ClusterID, Timeout: w.cfg.RequestTimeout,
		ElectionTimeout: w.cfg.ElectionTimeout, Store: kv, Call: n.call, Leaders: w.leaders, Contacts: &n.contacts,
		Confirm: reads.Confirm, AppliedIndex: w.applied, Outcomes: kv.conf, Level: kv.levelNow.Load, Life: w.life,
	})
}

// watcher makes what tells the operator what has changed.
func (w *wiring) watcher(kv *kvstore, n *raftNode, toCheck func() (pending bool, checked uint64)) *observe.Watcher {
	return observe.New(observe.Config{
		Log: w.log, ID: w.cfg.ID, ElectionTimeout: w.cfg.ElectionTimeout, Call: n.call, Leaders: w.leaders, Contacts: &n.contacts,
		Members: kv.members,
		AskVersion: func(ctx context.Context, peerURL string) (string, error) {
			info, err := n.known.AskPeer(ctx, peerURL)
			return info.Version, err
		},
		ToCheck: toCheck, CheckInterval: w.cfg.CheckInterval,
	})
}
