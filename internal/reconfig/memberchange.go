// Package reconfig answers: how does a change of the members, or of the leader, get
// made? It finds the leader for a change, waits until the change is safe (thesis §4),
// proposes it, and tells what became of it. The rules of what may change are in
// package membership; who may join is asked by package boot.
package reconfig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"raftkv/internal/address"
	"raftkv/internal/contact"
	"raftkv/internal/doors"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/wait"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// Request asks for a membership change, or with membership.OpLead for another
// leader. Any node takes it; the leader decides, because only the leader knows
// who is reachable.
type Request struct {
	Op membership.Op `json:"op"` // any but membership.OpPromote
	// ID is 0 if the leader is to choose: the ID of a new member, or who is to
	// lead.
	ID      uint64 `json:"id"`
	PeerURL string `json:"peer_url,omitempty"` // of a new member, or the new one of a member
	Force   bool   `json:"force,omitempty"`    // even if the cluster could lose its majority
	// Request is the same in every try of a request that leaves the ID of a
	// new member to the leader, so that it adds one member and not two.
	Request uint64 `json:"request,omitempty"`
}

// Reply is the leader's answer to another node.
type Reply struct {
	// ID is the member that was changed or added, or that leads.
	ID uint64 `json:"id"`
	// Index: the state reflects the change from this index on.
	Index uint64 `json:"index"`
	// Code is empty on success, else the code of an error, a problem of
	// package problem; Detail is its text.
	Code   string `json:"code,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// memberStore is what a change of the members needs of the state.
type memberStore interface {
	// Membership returns the members as applied here, and the index at which
	// they were so.
	Membership() (m membership.Membership, index uint64)
	// Fault returns nil, or why this node must not serve.
	Fault() error
}

// Config is what a Members needs of others.
type Config struct {
	Log             *zap.Logger
	ID              uint64
	Cluster         uint64
	Timeout         time.Duration // of a request
	ElectionTimeout time.Duration
	Store           memberStore
	// Call runs a function where the state of raft is, and returns when it is done.
	Call    func(ctx context.Context, f func(*raft.RawNode)) error
	Leaders *wait.Leadership
	// Contacts is who was heard from, and when.
	Contacts *contact.Contacts
	// Confirm makes sure that this node knows of everything that was committed.
	Confirm      func(ctx context.Context) error
	AppliedIndex *wait.Index
	Outcomes     *wait.Outcomes
	Level        func() uint64   // of the cluster, as applied here
	Life         context.Context // ends when the node stops, with the cause
	// Ask passes a request to the leader at PeerURL.
	Ask func(ctx context.Context, peerURL string, cluster uint64, r Request) (Reply, error)
	// AskView asks the leader at PeerURL how it sees the members.
	AskView func(ctx context.Context, peerURL string) (map[uint64]View, error)
	// Version is that of a member's program, as far as this node knows.
	Version func(id uint64) string
	// Who asks which process a URL leads to, and Process is this one; package peerclient.
	Who     func(ctx context.Context, peerURL string) (peerclient.Process, error)
	Process peerclient.Process
}

// Members carries out membership changes.
type Members struct {
	Config

	// turn holds one token: raft takes one change at a time and drops
	// others without a word, so they queue here.
	turn chan struct{}
	// waiting wakes nobody; its length tells a promotion to step aside.
	waiting chan struct{}
}

// New returns what makes changes; Run must run for them to be finished.
func New(c Config) *Members {
	return &Members{Config: c, turn: make(chan struct{}, 1), waiting: make(chan struct{}, maxWaitingChanges)}
}

const (
	maxWaitingChanges = 64
	// promotionLag is how many entries a learner may be behind its leader, which
	// replicates to it, to be made a voter: it then needs no more than a moment
	// to count for the majority (thesis §4.2.1).
	promotionLag = 100
	// lastWords is how long messages of a node that has died may be under way.
	lastWords = 100 * time.Millisecond
)

// Change carries out a membership change, on whichever node it was asked for,
// and returns the member's ID once this node has applied it too. A change that
// was made before is done: so it may be tried again until the answer is known.
func (ms *Members) Change(ctx context.Context, r Request) (id uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, ms.Timeout)
	defer cancel()
	if r.Op.Adds() && r.ID == 0 {
		r.Request = max(rand.Uint64(), 1)
	}
	handed := false
	for {
		leader, _, changed := ms.Leaders.Get()
		if leader != 0 {
			reply, err := ms.at(ctx, leader, r)
			if err == nil {
				return reply.ID, ms.applied(ctx, r, reply)
			}
			if handed && (errors.Is(err, problem.ErrInProgress) || errors.Is(err, problem.ErrOverloaded)) {
				err = problem.ErrOutcomeUnknown // it did not happen this time, but may have before
			}
			if !retryable(err) {
				return 0, err
			}
			handed = handed || errors.Is(err, problem.ErrOutcomeUnknown)
		}
		pause := time.NewTimer(ms.ElectionTimeout / 10)
		select {
		case <-changed:
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			if handed {
				return 0, problem.ErrOutcomeUnknown
			}
			return 0, problem.ErrNoLeader
		case <-ms.Life.Done():
			pause.Stop()
			if r.Op == membership.OpRemove && r.ID == ms.ID && errors.Is(context.Cause(ms.Life), problem.ErrRemoved) {
				return r.ID, nil // that is what was asked for
			}
			return 0, problem.ErrStopping
		}
		pause.Stop()
	}
}

// retryable reports whether another try, perhaps at another leader, may end better.
func retryable(err error) bool {
	return errors.Is(err, problem.ErrElsewhere) || errors.Is(err, problem.ErrOutcomeUnknown) || errors.Is(err, problem.ErrNoLeader)
}

// at asks the leader, which may be this node.
func (ms *Members) at(ctx context.Context, leader uint64, r Request) (Reply, error) {
	if leader == ms.ID {
		return ms.lead(ctx, r)
	}
	m, _ := ms.Store.Membership()
	mem, ok := m.Members[leader]
	if !ok {
		return Reply{}, problem.ErrElsewhere // this node is behind
	}
	reply, err := ms.Ask(ctx, mem.PeerURL, ms.Cluster, r)
	if err != nil {
		ms.Log.Info("the leader did not answer a membership request", zap.Uint64("leader", leader), zap.Error(err))
		return Reply{}, problem.ErrOutcomeUnknown
	}
	err = problem.FromCode(reply.Code, reply.Detail)
	if errors.Is(err, problem.ErrStopping) {
		err = problem.ErrElsewhere // another will lead
	}
	return reply, err
}

// Serve answers another node's request. Any member may pass one on, about any.
func (ms *Members) Serve(ctx context.Context, r Request) Reply {
	m, _ := ms.Store.Membership()
	if err := peerclient.SenderIsOne(ctx, func(id uint64) bool { return m.Members[id].ID != 0 }); err != nil {
		return Reply{Code: problem.CodeOf(problem.ErrElsewhere), Detail: err.Error()} // it may be a member that this node has not heard of
	}
	ctx, cancel := context.WithTimeout(ctx, ms.Timeout)
	defer cancel()
	reply, err := ms.lead(ctx, r)
	if err != nil {
		return Reply{Code: problem.CodeOf(err), Detail: err.Error()}
	}
	return reply
}

// ServeJoin has a node added that wants to join, whoever leads.
func (ms *Members) ServeJoin(ctx context.Context, r Request) Reply {
	if err := peerclient.SenderIs(ctx, r.ID); err != nil {
		return Reply{Code: problem.CodeOf(problem.ErrBadRequest), Detail: err.Error()}
	}
	id, err := ms.Change(ctx, Request{Op: membership.OpAdd, ID: r.ID, PeerURL: r.PeerURL})
	if err != nil {
		return Reply{Code: problem.CodeOf(err), Detail: err.Error()}
	}
	return Reply{ID: id}
}

// applied waits until this node's own state reflects the change. A node that
// has just been removed may never see it happen.
func (ms *Members) applied(ctx context.Context, r Request, reply Reply) error {
	if r.Op == membership.OpRemove && r.ID == ms.ID {
		return nil
	}
	if r.Op == membership.OpLead {
		return ms.knowsLeader(ctx, reply.ID)
	}
	select {
	case <-ms.AppliedIndex.Channel(reply.Index):
		return nil
	case <-ctx.Done():
		return problem.ErrOutcomeUnknown
	case <-ms.Life.Done():
		return problem.ErrOutcomeUnknown
	}
}

// lead carries out a request on the leader.
func (ms *Members) lead(ctx context.Context, r Request) (Reply, error) {
	select {
	case ms.waiting <- struct{}{}:
		defer func() { <-ms.waiting }()
	default:
		return Reply{}, problem.ErrOverloaded
	}
	select {
	case ms.turn <- struct{}{}:
		defer func() { <-ms.turn }()
	case <-ctx.Done():
		return Reply{}, problem.ErrInProgress
	case <-ms.Life.Done():
		return Reply{}, problem.ErrStopping
	}
	if r.Op == membership.OpLead {
		return ms.MoveLeader(ctx, r.ID)
	}
	for {
		reply, err := ms.makeChange(ctx, r)
		// An ID that was free a moment ago may have gone to a change that was
		// on its way by then; the next one is as good.
		taken := errors.Is(err, problem.ErrMemberExists) || errors.Is(err, problem.ErrMemberRemoved)
		if !taken || r.ID != 0 || !ms.stillFree(ctx, r) {
			return reply, err
		}
	}
}

// stillFree reports whether a request without an ID can be tried again, now
// that the ID chosen for it is taken.
func (ms *Members) stillFree(ctx context.Context, r Request) bool {
	m, _ := ms.Store.Membership()
	_, err := m.Check(membership.Change{Op: r.Op, ID: m.FreeID(r.Request), PeerURL: r.PeerURL, Request: r.Request})
	return err == nil && ctx.Err() == nil
}

// makeChange makes one change, of the membership as it is now.
func (ms *Members) makeChange(ctx context.Context, r Request) (Reply, error) {
	m, index, err := ms.freshMembership(ctx)
	if err != nil {
		return Reply{}, err
	}
	c := membership.Change{Op: r.Op, ID: r.ID, PeerURL: r.PeerURL, Request: r.Request}
	if c.Op.Adds() && c.ID == 0 {
		c.ID = m.FreeID(c.Request)
	}
	if c.PeerURL != "" {
		canonical, err := address.CheckPeerURL(c.PeerURL)
		if err != nil {
			return Reply{}, fmt.Errorf("%w: %w", problem.ErrBadPeerURL, err)
		}
		if canonical != c.PeerURL {
			return Reply{}, fmt.Errorf("%w: expected %s", problem.ErrBadPeerURL, canonical)
		}
	}
	done, err := m.Check(c)
	if err != nil || done {
		return Reply{ID: c.ID, Index: index}, err
	}
	if err := doors.CheckURL(m, ms.Level(), c); err != nil {
		return Reply{}, err
	}
	if c.PeerURL != "" {
		if err := ms.checkOneNode(ctx, m, c.ID, c.PeerURL); err != nil {
			return Reply{}, err
		}
	}
	if !r.Force {
		if err := ms.guard(ctx, m, c); err != nil {
			return Reply{}, err
		}
	}
	if c.ID == ms.ID && len(m.Voters()) > 1 {
		return Reply{}, ms.HandOver(ctx)
	}
	index, err = ms.commit(ctx, c)
	return Reply{ID: c.ID, Index: index}, err
}

// freshMembership returns the membership as this leader has to judge by: with
// everything applied that was committed before it came to lead. Else a former
// leader's change could be overlooked.
func (ms *Members) freshMembership(ctx context.Context) (membership.Membership, uint64, error) {
	if leader, _, _ := ms.Leaders.Get(); leader != ms.ID {
		return membership.Membership{}, 0, problem.ErrElsewhere
	}
	if ms.Store.Fault() != nil {
		return membership.Membership{}, 0, problem.ErrElsewhere // it is giving up leadership
	}
	if err := ms.Confirm(ctx); err != nil {
		return membership.Membership{}, 0, problem.ErrNoLeader
	}
	m, index := ms.Store.Membership()
	return m, index, nil
}

// guard refuses a change of the voters after which fewer of them are reachable
// than the cluster then needs for a majority. A node may have died a moment ago, so
// what counts is an answer to a round of heartbeats that begins with the check. It
// waits a little before it says no.
func (ms *Members) guard(ctx context.Context, m membership.Membership, c membership.Change) error {
	after := m.Clone()
	after.Apply(c)
	voters := after.Voters()
	if slices.Equal(voters, m.Voters()) {
		return nil
	}
	select {
	case <-time.After(min(lastWords, ms.ElectionTimeout/10)):
	case <-ctx.Done():
		return problem.ErrInProgress
	}
	asked := time.Now()
	if err := ms.Confirm(ctx); err != nil {
		return problem.ErrNoLeader
	}
	tick := time.NewTicker(ms.ElectionTimeout / 50)
	defer tick.Stop()
	for {
		n := ms.countHeard(voters, asked)
		if n > len(voters)/2 {
			return nil
		}
		if time.Since(asked) >= ms.ElectionTimeout {
			return fmt.Errorf("%w: %d of %d voters would be reachable", problem.ErrWouldLose, n, len(voters))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return problem.ErrInProgress
		case <-ms.Life.Done():
			return problem.ErrStopping
		}
	}
}

// countHeard returns how many of the nodes this one has had a raft message from
// since then, itself included.
func (ms *Members) countHeard(ids []uint64, since time.Time) (n int) {
	for _, id := range ids {
		if id == ms.ID || ms.Contacts.Last(id).After(since) {
			n++
		}
	}
	return n
}

// commit proposes a change and waits until it is applied. raft drops a change
// without a word while an earlier one is not applied yet, so it is proposed
// again; the second of two does nothing.
func (ms *Members) commit(ctx context.Context, c membership.Change) (index uint64, err error) {
	if c.Request == 0 {
		c.Request = max(rand.Uint64(), 1)
	}
	outcome, cancel := ms.Outcomes.Register(c.Request)
	defer cancel()
	for {
		err := ms.propose(ctx, c)
		if err != nil {
			return 0, err
		}
		again := time.NewTimer(ms.ElectionTimeout / 2)
		select {
		case err := <-outcome:
			again.Stop()
			return ms.AppliedIndex.Get(), err
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return 0, problem.ErrOutcomeUnknown
		case <-ms.Life.Done():
			again.Stop()
			return 0, problem.ErrOutcomeUnknown
		}
	}
}

// propose hands a change to raft. What raft does not take is tried again by
// commit, or by the node that asked.
func (ms *Members) propose(ctx context.Context, c membership.Change) error {
	leads := false
	err := ms.Call(ctx, func(rn *raft.RawNode) {
		if leads = rn.BasicStatus().RaftState == raft.StateLeader; leads {
			err := rn.ProposeConfChange(c.ConfChange())
			if err != nil {
				ms.Log.Debug("raft did not take a membership change", zap.Error(err))
			}
		}
	})
	if err != nil {
		return problem.ErrOutcomeUnknown
	}
	if !leads {
		return problem.ErrOutcomeUnknown // an earlier try may still be committed
	}
	return nil
}

// View is what only the leader knows of a member.
type View struct {
	Reachable bool   `json:"reachable"` // heard from within the last election timeout
	Match     uint64 `json:"match"`     // the highest index that its log is known to share
	// Version is that of the member's program, empty if the leader does not know it.
	Version string `json:"version,omitempty"`
}

// LeaderView returns how this node, as the leader, sees the members; nothing
// if it does not lead.
func (ms *Members) LeaderView(ctx context.Context) map[uint64]View {
	view := make(map[uint64]View)
	err := ms.Call(ctx, func(rn *raft.RawNode) {
		for id, p := range rn.Status().Progress {
			near := id == ms.ID || time.Since(ms.Contacts.Last(id)) <= ms.ElectionTimeout
			view[id] = View{Reachable: near, Match: p.Match, Version: ms.Version(id)}
		}
	})
	if err != nil {
		return nil
	}
	return view
}

// View returns how the leader sees the members; nil if it cannot be asked.
func (ms *Members) View(ctx context.Context) map[uint64]View {
	leader, _, _ := ms.Leaders.Get()
	if leader == ms.ID {
		return ms.LeaderView(ctx)
	}
	m, _ := ms.Store.Membership()
	mem, ok := m.Members[leader]
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ms.ElectionTimeout)
	defer cancel()
	view, err := ms.AskView(ctx, mem.PeerURL)
	if err != nil {
		ms.Log.Debug("the leader did not say how it sees the members", zap.Error(err))
	}
	return view
}

// Run makes learners voters once they have caught up, while this node leads.
func (ms *Members) Run(ctx context.Context) error {
	tick := time.NewTicker(ms.ElectionTimeout / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if leader, _, _ := ms.Leaders.Get(); leader == ms.ID {
				ms.promote(ctx)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// promote makes one learner that has caught up a voter. It gives way to
// requests: a person's change goes first.
func (ms *Members) promote(ctx context.Context) {
	id, err := ms.readyLearner(ctx)
	if err != nil || id == 0 || len(ms.waiting) > 0 {
		return
	}
	select {
	case ms.turn <- struct{}{}:
		defer func() { <-ms.turn }()
	default:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ms.Timeout)
	defer cancel()
	ms.Log.Debug("a learner has caught up and becomes a voter", zap.Uint64("member", id))
	if _, err := ms.commit(ctx, membership.Change{Op: membership.OpPromote, ID: id}); err != nil {
		ms.Log.Warn("promotion did not go through; trying again", zap.Uint64("member", id), zap.Error(err))
	}
}

// readyLearner returns a learner that can become a voter: it has caught up, and
// it has published its instance, which binds the ID to its directory, so that it
// cannot come back with an empty one as if it had never voted.
func (ms *Members) readyLearner(ctx context.Context) (id uint64, err error) {
	m, _ := ms.Store.Membership()
	err = ms.Call(ctx, func(rn *raft.RawNode) {
		st := rn.Status()
		for i, p := range st.Progress {
			recent := time.Since(ms.Contacts.Last(i)) <= ms.ElectionTimeout
			if p.IsLearner && recent && !m.Members[i].Pinned && m.Members[i].Instance != 0 && p.State == tracker.StateReplicate && p.Match+promotionLag >= st.GetCommit() {
				id = i
			}
		}
	})
	return id, err
}

// checkOneNode refuses a URL, for the member id, that leads to another member.
// Nobody has to answer: a member may be added before it runs.
func (ms *Members) checkOneNode(ctx context.Context, m membership.Membership, id uint64, peerURL string) error {
	if ms.Who == nil {
		return nil
	}
	found := peerclient.Processes(ctx, []string{peerURL}, ms.Who)
	process, ok := found[peerURL]
	if !ok {
		return nil
	}
	var urls []string
	for _, mem := range m.Sorted() {
		if mem.ID != id && mem.ID != ms.ID {
			urls = append(urls, mem.PeerURL)
		}
	}
	at := peerclient.Processes(ctx, urls, ms.Who)
	if me, ok := m.Members[ms.ID]; ok && ms.ID != id {
		at[me.PeerURL] = ms.Process
	}
	for _, mem := range m.Sorted() {
		if mem.ID != id && at[mem.PeerURL] == process {
			return fmt.Errorf("%w: %s leads to member %d, which is at %s", problem.ErrSameNode, peerURL, mem.ID, mem.PeerURL)
		}
	}
	return nil
}
