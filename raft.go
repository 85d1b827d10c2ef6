package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/diskhang"
	"raftkv/internal/liveness"
	"raftkv/internal/peerport"
	"raftkv/internal/problem"
	"raftkv/internal/refusal"
	"raftkv/internal/room"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/suspect"
	"raftkv/internal/transport"
	"raftkv/internal/wait"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Limits of raft's message flow.
const (
	maxSizePerMsg    = 1 << 20  // bytes of entries in one message, unless one is larger
	maxInflightMsgs  = 256      // appends on their way to one follower
	maxInflightBytes = 32 << 20 // the same in bytes
	maxApplyingBytes = 8 << 20  // committed entries handed to the apply loop at once
	maxUncommitted   = 1 << 30  // past it a leader drops proposals; the proposers' bounds are far below
	recvBuffer       = 1024     // messages from peers that wait for the raft loop
	drainMax         = 256      // events taken in before raft is asked what follows from them
)

// raftNode runs raft: it takes proposals from proposeC, and hands what is
// committed to commitC.
//
// The raft loop (run) owns the raft state machine and never waits for the
// disk or for apply. raft asks for those with messages of its own
// (AsyncStorageWrites): the persist loop and the apply loop work them off in
// order, and their answers come back as events. So while one batch is being
// fsynced, the next is gathered and the one before is applied; and a leader
// sends entries to its followers before its own disk has them (thesis
// §10.2.1). That is safe because raft counts this node's own vote for an
// entry only when the persist loop has answered.
//
// What is safe to send at once and what only after the fsync (thesis §3.8) is
// raft's decision: the former are in Ready.Messages, the latter are the
// Responses of a storage message.
type raftNode struct {
	log             *zap.Logger
	id              uint64
	url             string // at which it was started for its peers
	cluster         uint64
	tick            time.Duration
	electionTimeout time.Duration

	storage *storage.Storage
	leaders *wait.Leadership
	kv      nodeStore
	applied *wait.Index
	reads   *rounds.Reader

	proposeC <-chan rounds.Proposal   // from the proposer
	commitC  chan<- []commit          // to the apply loop
	roundC   <-chan []byte            // from the reader: contexts of ReadIndex rounds
	recvC    chan *raftpb.Message     // from peers
	callC    chan func(*raft.RawNode) // rare things that need raft's state
	appendC  chan []*raftpb.Message   // to the persist loop
	storedC  chan stored              // from the persist loop
	appliedC chan *raftpb.Message     // from the apply loop
	writtenC chan *state.State        // from the snapshot writer to the persist loop
	reports  mailbox                  // from rafthttp: what became of messages
	refusals *refusal.Refusals        // of what came to the peer port
	known    *boot.Acquaintances      // whom messages are taken from
	errorC   chan error               // from rafthttp: this node was removed

	pulse, persistPulse *liveness.Pulse // of the raft loop and of the persist loop

	transport transport.Messenger
	links     *transport.Links
	inbox     *storage.Inbox
	room      *room.Keeper
	group     *errgroup.Group
	life      context.Context // ends when the node stops, with the cause

	// What the loop last knew, for anyone to read.
	status    atomic.Pointer[contact.RaftStatus]
	contacts  contact.Contacts
	disk      *diskhang.Watch
	doubts    *suspect.Doubts
	courier   *transport.Courier
	admission peerport.Admission

	loop raftLoop
}

// nodeStore is what the raft node asks of the store. Entries go there by commitC.
type nodeStore interface {
	// isRemoved reports whether an ID was removed from the cluster.
	isRemoved(id uint64) bool
	// Fault returns nil, or why this node must not serve.
	Fault() error
	// AskForSnapshot has a snapshot of an index, or a later one, taken soon.
	AskForSnapshot(index uint64)
}

// raftLoop is the state of the raft loop; nobody else touches it.
type raftLoop struct {
	rn         *raft.RawNode
	appends    []*raftpb.Message // for the persist loop
	urgent     bool              // appends hold more than a new commit index
	term, vote uint64            // as last given to the persist loop
	outbox     *contact.Outbox
	commits    []commit            // for the apply loop
	held       []*raftpb.Message   // MsgReadIndex that must wait; see readIndex
	rounds     peerport.ReadRounds // of heartbeats that this node has sent
	// committedTerm is the term of the last entry known to be committed.
	committedTerm uint64
	// restored is the index of the newest snapshot that raft took over; its
	// configuration is from then at least.
	restored uint64
}

// raftConfig is what startRaft needs beside the node's own flags.
func raftConfig(cfg config.Config, s storage.RaftStorage, log *zap.Logger) *raft.Config {
	_, heartbeat, election := cfg.Ticks()
	return &raft.Config{
		ID:                        cfg.ID,
		ElectionTick:              election,
		HeartbeatTick:             heartbeat,
		Storage:                   s,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxSizePerMsg,
		MaxCommittedSizePerReady:  maxApplyingBytes,
		MaxUncommittedEntriesSize: maxUncommitted,
		MaxInflightMsgs:           maxInflightMsgs,
		MaxInflightBytes:          maxInflightBytes,
		// An isolated leader steps down, and a node that comes back from
		// isolation does not depose a healthy leader (thesis §6.2, §9.6).
		CheckQuorum:       true,
		PreVote:           true,
		StepDownOnRemoval: true,
		Logger:            transport.RaftLogger{SugaredLogger: log.Named("raft").Sugar()},
	}
}

// startRaft starts the raft node's goroutines. They end with ctx, or end their
// group with an error when the node cannot go on.
func (n *raftNode) startRaft(ctx context.Context, cfg config.Config) error {
	log := storage.RaftStorage{MemoryStorage: n.storage.Mem, Storage: n.storage, Want: n.kv.AskForSnapshot}
	c := raftConfig(cfg, log, n.log)
	c.Applied = n.applied.Get() // the start has applied what was known to be committed
	rn, err := raft.NewRawNode(c)
	if err != nil {
		return err
	}
	n.loop = raftLoop{rn: rn, outbox: contact.NewOutbox()}
	if err := n.doubts.Started(n.storage.Last, n.storage.Hard.GetCommit(), c.Applied); err != nil {
		return err
	}
	n.publish()
	if n.alone() {
		// Nobody to wait for: no need to sit out the election timeout.
		if err := rn.Campaign(); err != nil {
			return err
		}
	}
	n.group.Go(func() error { return n.run(ctx) })
	n.group.Go(func() error { return n.persist(ctx) })
	n.group.Go(func() error { return n.watchRemoval(ctx) })
	n.group.Go(func() error { return n.known.ProveID(ctx) })
	n.group.Go(func() error { return n.doubts.Inquire(ctx) })
	n.group.Go(func() error { return n.known.GetAcquainted(ctx) })
	return nil
}

// send passes messages on to the peers that the gate lets through.
func (n *raftNode) send(msgs []*raftpb.Message) {
	if !n.known.Gate.Open.Load() {
		msgs = slices.DeleteFunc(msgs, func(m *raftpb.Message) bool { return !n.known.Gate.Passes(m.GetTo()) })
	}
	n.transport.Send(msgs)
}

// maySend returns why a node gets no snapshot of this one's state; nil: it may.
func (n *raftNode) maySend(to uint64) error {
	if !n.known.Gate.Passes(to) {
		return transport.ErrNotSent
	}
	return n.kv.Fault() // what a node holds that has diverged must not spread
}

// alone reports whether this node is the only voter.
func (n *raftNode) alone() bool {
	_, cs, err := n.storage.Mem.InitialState()
	return err == nil && len(cs.GetVoters()) == 1 && cs.GetVoters()[0] == n.id
}

// run is the raft loop.
func (n *raftNode) run(ctx context.Context) (err error) {
	defer func() {
		// raft panics when what it is told contradicts its log. That ends
		// this node, in order, like every other fault.
		if r := recover(); r != nil {
			err = fmt.Errorf("raft cannot go on: %v; if this node has lost its data directory, remove it and join under a new ID", r)
			n.log.Error("raft cannot go on", zap.Any("because", r), zap.Stack("stack"))
		}
	}()
	ticker := time.NewTicker(n.tick)
	defer ticker.Stop()
	for {
		n.handleReady()
		// A nil channel disarms its case: the queues are offered whole, and
		// whoever takes them gets everything that has gathered meanwhile.
		var appendC chan<- []*raftpb.Message
		if n.loop.urgent {
			appendC = n.appendC
		}
		var commitC chan<- []commit
		if len(n.loop.commits) > 0 {
			commitC = n.commitC
		}
		select {
		case <-ticker.C:
			// A node that is split must not stand for the other history either.
			if leads := n.status.Load().Role == raft.StateLeader; n.disk.Ticked(n.loop.rn, leads) && !n.doubts.Split {
				n.loop.outbox.Tick()
				n.loop.rn.Tick()
			}
			n.noteNeeds()
			n.loop.urgent = len(n.loop.appends) > 0
		case <-n.loop.outbox.Due.C:
			n.send(n.loop.outbox.Flush())
		case appendC <- n.loop.appends:
			n.loop.appends, n.loop.urgent = nil, false
			n.disk.Hand()
		case commitC <- n.loop.commits:
			n.loop.commits = nil
		case m := <-n.recvC:
			n.step(m)
		case p := <-n.proposeC:
			n.propose(p)
		case s := <-n.storedC:
			n.stored(s)
		case m := <-n.appliedC:
			n.step(m)
		case c := <-n.roundC:
			n.readIndex(n.newRound(c))
		case f := <-n.callC:
			f(n.loop.rn)
		case <-n.reports.kick:
			n.reports.empty(n.loop.rn)
		case <-n.pulse.Comes():
		case <-ctx.Done():
			return nil
		}
		n.drain()
	}
}

// drain takes in what else is waiting, so that one Ready answers all of it.
func (n *raftNode) drain() {
	for range drainMax {
		select {
		case m := <-n.recvC:
			n.step(m)
		case p := <-n.proposeC:
			n.propose(p)
		case s := <-n.storedC:
			n.stored(s)
		case m := <-n.appliedC:
			n.step(m)
		case c := <-n.roundC:
			n.readIndex(n.newRound(c))
		default:
			return
		}
	}
}

// step gives raft a message. raft's errors here mean that it has no use for
// the message, which its sender must expect.
func (n *raftNode) step(m *raftpb.Message) {
	if err := n.loop.rounds.Check(n.loop.rn, m); err != nil {
		n.refusals.Note(m.GetFrom(), err)
		return
	}
	n.contacts.Note(m, n.status.Load(), n.id, n.loop.rn)
	n.loop.outbox.Note(m, n.loop.rn)
	if n.room.DropsEntries(m) || !n.doubts.Sift(n.loop.rn, m) {
		return
	}
	n.disk.NoteAck(m, n.status.Load())
	if !n.disk.TakesIn(m) || n.goesBack(m) {
		return
	}
	if m.GetType() == raftpb.MsgReadIndex {
		n.readIndex(m)
		return
	}
	if err := n.loop.rn.Step(m); err != nil {
		n.log.Debug("raft took no notice of a message", zap.Stringer("type", m.GetType()), zap.Error(err))
	}
}

// goesBack reports whether raft would pass a message on to the node that it came
// from, which has come to lead meanwhile. That node would take it for a forged one;
// and it proposes and asks again by itself.
func (n *raftNode) goesBack(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgProp, raftpb.MsgReadIndex:
		return m.GetFrom() != raft.None && m.GetFrom() == n.loop.rn.BasicStatus().Lead
	}
	return false
}

func (n *raftNode) stored(s stored) {
	n.disk.Done()
	for _, file := range s.installed {
		// Queued before raft hears of it, so before any entry behind it.
		n.loop.commits = append(n.loop.commits, commit{install: file, applied: func() {}})
	}
	for _, m := range s.responses {
		n.step(m)
	}
}

func (n *raftNode) propose(p rounds.Proposal) {
	err := raft.ErrProposalDropped
	switch {
	case n.disk.Full():
		n.disk.Refused++
	case !n.room.Spent():
		err = n.loop.rn.Propose(p.Data)
	}
	st := n.status.Load()
	p.Done(err == nil, st.Term, st.Role == raft.StateLeader)
}

// newRound is the message with which this node asks for a round of ReadIndex.
func (n *raftNode) newRound(context []byte) *raftpb.Message {
	binary.BigEndian.PutUint64(context[rounds.RoundContext-8:], n.loop.rn.BasicStatus().GetCommit())
	return &raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: context}}}
}

// readIndex begins a round of ReadIndex, for this node or another. A leader must
// have committed an entry of its own term first (thesis §6.4, step 1); raft sees
// to that with two voters or more, but a single voter would answer with a commit
// index that may be older than what its former life acknowledged.
func (n *raftNode) readIndex(m *raftpb.Message) {
	if !n.mayAnswerReads() {
		if len(n.loop.held) < diskhang.MaxHeldReads { // whoever asked asks again
			n.loop.held = append(n.loop.held, m)
		}
		return
	}
	if err := n.loop.rn.Step(m); err != nil {
		n.log.Debug("raft began no round for reads", zap.Error(err)) // whoever asked asks again
	}
}

func (n *raftNode) mayAnswerReads() bool {
	st := n.loop.rn.BasicStatus()
	return st.RaftState != raft.StateLeader || n.loop.committedTerm == st.GetTerm()
}

// handleReady passes on what raft wants done.
func (n *raftNode) handleReady() {
	for n.loop.rn.HasReady() {
		rd := n.loop.rn.Ready()
		if rd.SoftState != nil || !raft.IsEmptyHardState(rd.HardState) {
			n.publish()
		}
		for _, rs := range rd.ReadStates {
			n.reads.Confirmed(rs.RequestCtx, rs.Index)
		}
		n.route(rd.Messages)
		if len(n.loop.held) > 0 && n.mayAnswerReads() {
			held := n.loop.held
			n.loop.held = nil
			for _, m := range held {
				if !n.goesBack(m) {
					n.readIndex(m)
				}
			}
		}
	}
}

// route sorts raft's messages: to the disk, to the state machine, to the peers.
func (n *raftNode) route(msgs []*raftpb.Message) {
	var out []*raftpb.Message
	for _, m := range msgs {
		n.loop.rounds.Sent(m)
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			n.append(m)
		case m.GetTo() == raft.LocalApplyThread:
			n.commit(m)
		case m.GetType() == raftpb.MsgSnap:
			n.courier.Deliver(n.loop.rn, m)
		default:
			n.disk.Tag(m)
			out = n.loop.outbox.Add(out, m, n.loop.rn)
		}
	}
	if len(out) > 0 {
		n.send(out)
	}
}

// append queues a storage message. A new commit index alone does not wake the
// persist loop but goes with what comes next, or at the next tick: it needs no
// fsync, since a node that starts again learns it from the others (thesis §3.8).
// Where nothing comes behind it, it gets one all the same (Storage.Rest).
func (n *raftNode) append(m *raftpb.Message) {
	n.loop.restored = max(n.loop.restored, m.GetSnapshot().GetMetadata().GetIndex())
	n.doubts.Appended(m)
	n.loop.appends = append(n.loop.appends, m)
	n.disk.Queue(m)
	n.loop.urgent = n.loop.urgent || !n.onlyCommits(m)
	if m.Term != nil {
		n.loop.term, n.loop.vote = m.GetTerm(), m.GetVote()
	}
	if n.status.Load().Role == raft.StateLeader {
		n.loop.outbox.Appended(m.GetEntries())
	}
}

// onlyCommits reports whether a storage message says no more than a new commit index.
func (n *raftNode) onlyCommits(m *raftpb.Message) bool {
	if len(m.GetEntries()) > 0 || m.GetSnapshot() != nil {
		return false
	}
	for _, resp := range m.GetResponses() {
		if resp.GetType() != raftpb.MsgStorageAppendResp {
			return false
		}
	}
	return m.Term == nil || m.GetTerm() == n.loop.term && m.GetVote() == n.loop.vote
}

func (n *raftNode) commit(m *raftpb.Message) {
	entries := m.GetEntries()
	n.loop.committedTerm = entries[len(entries)-1].GetTerm()
	n.loop.commits = append(n.loop.commits, commit{entries: entries, applied: func() {
		for _, resp := range m.GetResponses() {
			select {
			case n.appliedC <- resp:
			case <-n.life.Done():
			}
		}
	}})
}

// publish tells the others what raft knows of leader and term.
func (n *raftNode) publish() {
	st := n.loop.rn.BasicStatus()
	now := &contact.RaftStatus{Term: st.GetTerm(), Commit: st.GetCommit(), Leader: st.Lead, Role: st.RaftState}
	n.status.Store(now)
	n.leaders.Set(st.Lead, st.GetTerm())
	n.contacts.NoteMajority(now, n.id, n.loop.rn)
}

// call runs f on the raft loop and returns when it is done.
func (n *raftNode) call(ctx context.Context, f func(*raft.RawNode)) error {
	done := make(chan struct{})
	completed := false
	select {
	case n.callC <- func(rn *raft.RawNode) {
		defer close(done) // raft may panic, which ends the node
		f(rn)
		completed = true
	}:
	case <-n.life.Done():
		return problem.ErrStopping
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	if !completed {
		return problem.ErrStopping
	}
	return nil
}

// serveRaft lets the peers in, and returns when l has ended. It serves rafthttp's
// four routes, behind the guard of the peer port, and our own.
func (n *raftNode) serveRaft(l *stoppableListener, rafthttp http.Handler, guard peerport.Config, own map[string]http.HandlerFunc) error {
	mux := http.NewServeMux()
	peerport.New(guard, rafthttp).Routes(mux)
	for pattern, h := range own {
		mux.HandleFunc(pattern, h)
	}
	return l.serve(peerport.WithoutBrowsers(n.url, guard.Identify(mux)), nil)
}
