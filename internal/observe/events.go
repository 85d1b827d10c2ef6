// Package observe answers: what does an operator want to be told? It follows the
// leader, the members and what is overdue, and says each change once, in the log and
// in metrics.
package observe

import (
	"context"
	"raftkv/internal/contact"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/wait"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// What a node says of its cluster: who leads, that nobody does, which members
// are up as the leader sees it, and who came and went. docs/log.md lists it all.

const (
	// leaderlessEvery is how often a node says that there is still no leader.
	leaderlessEvery = 30 * time.Second
	// firstElections is how many election timeouts a node that starts gives the
	// others before it says that there is no leader: an election takes up to two.
	firstElections = 3
	// handoverPart is the part of an election timeout for which a leader may be
	// missing without a word, since leadership that is handed over is not lost.
	handoverPart = 10
	// firstContact is how many election timeouts a new leader gives a member to
	// be heard from, if it has never been.
	firstContact = 2
)

// Config is what a Watcher needs of others.
type Config struct {
	Log             *zap.Logger
	ID              uint64
	ElectionTimeout time.Duration
	Leaders         *wait.Leadership
	// Call runs a function where the state of raft is, and returns when it is done.
	Call func(ctx context.Context, f func(*raft.RawNode)) error
	// Contacts is who was heard from, and when.
	Contacts *contact.Contacts
	Members  func() membership.Membership
	// AskVersion asks the member at a URL for its program's version.
	AskVersion func(ctx context.Context, peerURL string) (string, error)
	// ToCheck says whether there is anything that no check has covered, and which
	// check was the newest that was decided.
	ToCheck func() (pending bool, checked uint64)
	// CheckInterval is the time between checks; 0: this node expects none.
	CheckInterval time.Duration
}

// Watcher says what becomes of the cluster, and keeps the last view of it for
// the metrics.
type Watcher struct {
	Config

	view     atomic.Pointer[clusterView]
	versions versions
	checks   overdue

	// Of run alone:
	leader, term uint64               // as last said
	lostAt       time.Time            // since when there is no leader; zero: there is one
	ledSince     time.Time            // since when this node leads; zero: it does not
	near         map[uint64]*sighting // of the other members, while this node leads
}

// New returns a watcher that has said nothing yet.
func New(c Config) *Watcher {
	return &Watcher{Config: c, checks: overdue{interval: c.CheckInterval}}
}

// clusterView is how a node saw the cluster when it last looked.
type clusterView struct {
	leads   bool
	commit  uint64
	members map[uint64]memberView // as only the leader knows; empty elsewhere
}

type memberView struct {
	learner bool
	near    bool // heard from within an election timeout
	match   uint64
	heard   time.Time // zero: never
}

// lag returns how many committed entries a member lacks.
func (v clusterView) lag(id uint64) uint64 { return v.commit - min(v.commit, v.members[id].match) }

// sighting is what the leader has said of a member.
type sighting struct {
	since  time.Time // when the leader first looked at it
	met    bool      // it was heard from at some time while this node led
	silent int       // looks in a row at which it was not
	downAt time.Time // when it was last heard from, if it was said to be down; else zero
}

// Run looks at the cluster four times in an election timeout, and when the leader
// changes. It returns nil when ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	look := time.NewTicker(w.ElectionTimeout / 4)
	defer look.Stop()
	w.lostAt = time.Now()
	leaderless := time.NewTimer(firstElections * w.ElectionTimeout)
	defer leaderless.Stop()
	for {
		leader, term, changed := w.Leaders.Get()
		switch {
		case leader == 0 && w.lostAt.IsZero():
			w.lostAt = time.Now()
			leaderless.Reset(w.ElectionTimeout / handoverPart)
		case leader != 0:
			leaderless.Stop()
			w.sayLeader(leader, term)
		}
		select {
		case <-changed:
		case <-look.C:
			w.look(ctx)
		case <-leaderless.C:
			w.sayLeaderless(ctx)
			leaderless.Reset(leaderlessEvery)
		case <-ctx.Done():
			return nil
		}
	}
}

// sayLeader says who leads, if that is news.
func (w *Watcher) sayLeader(leader, term uint64) {
	if leader != w.leader || term != w.term {
		fields := []zap.Field{logging.News, zap.Uint64("leader", leader), zap.Uint64("term", term), zap.Bool("this-node", leader == w.ID)}
		if !w.lostAt.IsZero() {
			fields = append(fields, zap.Duration("after", time.Since(w.lostAt)))
		}
		w.Log.Info("leader changed", fields...)
	}
	w.leader, w.term, w.lostAt = leader, term, time.Time{}
}

// sayLeaderless says that there is no leader, and whom of the voters this node
// hears; without a majority of them there will be none.
func (w *Watcher) sayLeaderless(ctx context.Context) {
	_, term, _ := w.Leaders.Get()
	fields := []zap.Field{logging.News, zap.Duration("for", time.Since(w.lostAt)), zap.Uint64("term", term), zap.Uint64("last-leader", w.leader)}
	if since := firstElections * w.ElectionTimeout; time.Since(w.lostAt) >= since {
		// By then every voter that is up has asked this node for its vote, or was asked.
		m := w.Members()
		heard := w.Contacts.Since(time.Now().Add(-since))
		var silent []uint64
		for _, id := range m.Voters() {
			if id != w.ID && !slices.Contains(heard, id) {
				silent = append(silent, id)
			}
		}
		fields = append(fields, zap.Int("voters", len(m.Voters())), zap.Uint64s("silent", silent))
	}
	w.Log.Warn("no leader: nothing can be written, and nothing read but by ?consistency=stale", fields...)
}

// look takes a view of the cluster, and says what has changed since the last.
func (w *Watcher) look(ctx context.Context) {
	v := clusterView{members: make(map[uint64]memberView)}
	now := time.Now()
	err := w.Call(ctx, func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		v.leads, v.commit = st.RaftState == raft.StateLeader, st.GetCommit()
		if !v.leads {
			return
		}
		rn.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
			at := w.Contacts.Last(id)
			v.members[id] = memberView{
				learner: kind == raft.ProgressTypeLearner, near: id == w.ID || now.Sub(at) <= w.ElectionTimeout, match: p.Match, heard: at,
			}
		})
	})
	if err != nil {
		return // stopping
	}
	w.view.Store(&v)
	pending, checked := w.ToCheck()
	w.checks.look(now, pending, checked)
	if !v.leads {
		w.ledSince, w.near = time.Time{}, nil
		w.versions.forgetAll()
		return
	}
	if w.ledSince.IsZero() {
		w.ledSince, w.near = now, make(map[uint64]*sighting)
	}
	for id := range w.near {
		if _, ok := v.members[id]; !ok {
			delete(w.near, id)
			w.versions.forget(id)
		}
	}
	for _, id := range membership.SortedKeys(v.members) {
		if id != w.ID {
			w.noteMember(id, v, now)
		}
	}
}

// noteMember says that a member is up or down, if that is news. A member is down
// when two looks in a row found that nothing was heard from it for an election
// timeout: after a pause of this node itself, messages may still wait.
func (w *Watcher) noteMember(id uint64, v clusterView, now time.Time) {
	m := v.members[id]
	c := w.near[id]
	if c == nil {
		c = &sighting{since: now}
		w.near[id] = c
	}
	if m.near {
		if !c.downAt.IsZero() {
			w.Log.Info("member up", logging.News, zap.Uint64("member", id), zap.Duration("after", now.Sub(c.downAt)), zap.Uint64("lag", v.lag(id)))
		}
		*c = sighting{since: c.since, met: true}
		return
	}
	c.silent++
	met := c.met || !m.heard.IsZero()
	if !c.downAt.IsZero() || c.silent < 2 || !met && now.Sub(c.since) < firstContact*w.ElectionTimeout {
		return
	}
	c.downAt = c.since
	if met {
		c.downAt = m.heard
	}
	w.versions.forget(id)
	w.Log.Warn("member down", logging.News, zap.Uint64("member", id), zap.String("role", membership.RoleName(m.learner)),
		zap.Bool("ever-heard", met), zap.Duration("silent", now.Sub(c.downAt)), zap.Uint64("lag", v.lag(id)))
}
