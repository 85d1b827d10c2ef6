package suspect

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// Where this node's log stands against another's: what a node says when it is
// asked, and what follows from it.

// inquiryInterval is the least time between two questions, but for the first to a
// new leader. A sign may be forged, and then so may a thousand; a true one comes
// again.
const inquiryInterval = time.Second

const (
	// standTimeout is how long a node that is asked has for its answer.
	standTimeout = time.Second
	// standPatience is how long a new leader waits for its disk before it answers,
	// and standTick how often it looks.
	standPatience = standTimeout / 2
	standTick     = 2 * time.Millisecond
)

// Stand is what a node says of its log. Terms of entries are 0 where the log
// does not reach back so far, or where it may still change.
type Stand struct {
	ClusterID uint64 `json:"cluster_id"`
	ID        uint64 `json:"id"`
	Term      uint64 `json:"term"` // the node's current one
	Leads     bool   `json:"leads"`
	Commit    uint64 `json:"commit"` // the commit index
	// Settled: it has committed an entry of its own term, so its commit index
	// covers everything that was committed before (thesis §6.4, step 1).
	Settled bool `json:"settled"`
	// Match is the highest index that it has heard of from the node that asks,
	// in this term, and MatchTerm the term of its own entry there.
	Match     uint64 `json:"match"`
	MatchTerm uint64 `json:"match_term"`
	// EntryTerm is the term of its entry at the index asked about.
	EntryTerm uint64 `json:"entry_term"`
	// State is how far its state has come. Programs before this one leave it out.
	State *state.Standing `json:"state,omitempty"`
	// Log is how far a leader's history has come with all of its log, and Prints are
	// the fingerprints of its entries behind the index asked about.
	Log    *state.Standing `json:"log,omitempty"`
	Prints []Print         `json:"prints,omitempty"`
	// Disputes: its history and that of the node that asks are in dispute.
	Disputes bool `json:"disputes,omitempty"`
}

// history is how far the history has come that a node stands for, as another one in a
// term sees it, whose own is mine: that of its state, or of all its log if it leads and
// only that contradicts.
func (s Stand) history(term uint64, mine state.Standing) state.Standing {
	if s.Leads && s.Term == term && s.Log != nil && mine.IsOneHistoryWith(*s.State) {
		return *s.Log
	}
	return *s.State
}

// StandFor answers node's question, also about an entry at index. A leader whose
// first entry is still on its way to the disk waits for that a little.
func (d *Doubts) StandFor(ctx context.Context, node, index uint64) (s Stand, err error) {
	if err := peerclient.SenderIs(ctx, node); err != nil {
		return s, err
	}
	for began := time.Now(); ; {
		durable := false
		err = d.Call(ctx, func(rn *raft.RawNode) { s, durable = d.standNow(rn, node, index) })
		if err != nil || durable || time.Since(began) >= standPatience {
			return s, err
		}
		select {
		case <-time.After(standTick):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

// ServeStand tells another node where this one's log stands against its own.
func (d *Doubts) ServeStand(w http.ResponseWriter, r *http.Request) {
	var numbers [2]uint64
	for i, name := range []string{"node", "index"} {
		n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 64)
		if err != nil {
			http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusBadRequest)
			return
		}
		numbers[i] = n
	}
	answer, err := d.StandFor(r.Context(), numbers[0], numbers[1])
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	web.WriteJSON(w, http.StatusOK, answer)
}

// standNow is StandFor, on the raft loop. It is not durable yet while a leader's
// own disk has no entry of its term: until then, what the disk has may be about to
// be overwritten.
func (d *Doubts) standNow(rn *raft.RawNode, node, index uint64) (s Stand, durable bool) {
	st, at := rn.BasicStatus(), d.stands()
	s = Stand{
		ClusterID: d.Cluster, ID: d.ID, Term: st.GetTerm(), Commit: st.GetCommit(),
		Leads: st.RaftState == raft.StateLeader, Settled: d.CommittedTerm() == st.GetTerm(), State: &at,
		Disputes: d.disputes.with(node),
	}
	if !s.Leads {
		return s, true
	}
	log := d.standing()
	s.Log, s.Prints = &log, d.own.behind(index)
	d.askedBy(node, st.GetTerm())
	var own uint64
	rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		switch id {
		case node:
			s.Match = pr.Match
		case d.ID:
			own = pr.Match
		}
	})
	// Once an entry of this term is on the disk, so is all before it.
	if term, err := d.Log.Term(own); err != nil || term != s.Term {
		return s, false
	}
	termAt := func(i uint64) uint64 {
		term, err := d.Log.Term(i)
		if err != nil || i > own {
			return 0
		}
		return term
	}
	s.MatchTerm, s.EntryTerm = termAt(s.Match), termAt(index)
	return s, true
}

// maxAsks is how often a follower asks its leader in a term at most, if all is well:
// when it hears of it, and when either has opened its streams again.
const maxAsks = 3

// askedBy notes that a follower asks the leader. One that asks again and again does not
// find what it looks for, so the leader asks it, too.
func (d *Doubts) askedBy(node, term uint64) {
	if d.asks == nil || d.asksIn != term {
		d.asks, d.asksIn = make(map[uint64]int), term
	}
	if _, known := d.asks[node]; !known && len(d.asks) >= maxPrints {
		return // so many nodes there are not
	}
	if d.asks[node]++; d.asks[node] > maxAsks {
		d.MeetAgain()
	}
}

// vouches reports whether a leader covers what this node has committed: its log
// reaches back to index, up to which this node's log is settled; or its state has
// come further; or it knows of everything that was committed, which is more than
// commit. weigh has seen that nothing there contradicts. A program that tells
// nothing of its state has never been asked to vouch: it is believed.
func (s Stand) vouches(index, commit uint64) bool {
	return s.Leads && (s.EntryTerm > 0 || s.State == nil || s.State.Index >= index || s.Settled && s.Commit >= commit)
}

// oldProgram is what is taken for the answer of a member whose program does not
// know the question: that it has nothing to say against this node.
func (d *Doubts) oldProgram(ctx context.Context, id uint64) (s Stand) {
	err := d.Call(ctx, func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		s = Stand{ClusterID: d.Cluster, ID: id, Term: st.GetTerm(), Leads: st.Lead == id, Settled: true, Commit: st.GetCommit()}
	})
	if err != nil {
		return Stand{}
	}
	return s
}

// finding is what an answer proves.
type finding int

const (
	noFinding finding = iota
	oldCopy           // this node has forgotten what it acknowledged: problem.ErrOldCopy
	histories         // there is another history beside this node's: problem.ErrHistories
)

// weigh judges by what another node has answered. commit is this node's commit
// index when it asked, index the entry that it asked about. It runs on the raft
// loop, after the answer has come. Within one term this node still holds every entry
// that it acknowledged in it, and knows that entry's term.
func (d *Doubts) weigh(rn *raft.RawNode, s Stand, commit, index uint64) finding {
	st := rn.BasicStatus()
	term := st.GetTerm()
	switch {
	case s.State != nil && !d.stands().IsOneHistoryWith(s.history(term, d.stands())):
		return histories
	case s.Leads && d.own.contradicts(s.Prints) > 0:
		mine := d.standing() // the entries that the leader does not have are of this node's history
		d.forked.Store(&mine)
		return histories
	case st.RaftState == raft.StateLeader:
		if s.Term == term && !s.Leads && s.Commit > d.Last {
			return histories
		}
		return noFinding
	case !s.Leads || s.Term < term:
		return noFinding
	case s.Term > term && s.Match > 0, s.Term == term && s.Match > d.Last:
		return oldCopy
	case s.Term > term:
		return noFinding
	case s.Settled && s.Commit < commit,
		s.MatchTerm > 0 && d.differs(rn, s.Match, s.MatchTerm),
		s.EntryTerm > 0 && d.differs(rn, index, s.EntryTerm):
		return histories
	}
	return noFinding
}

// Inquire looks into the signs. Also without any, it asks each leader that this
// node hears from, and on the leader the others: where a copy was put back, the
// sooner that shows, the less has been promised anew.
func (d *Doubts) Inquire(ctx context.Context) error {
	var (
		seen, met leaderInTerm // the leader, and the last one that has answered for all
		pending   *sign
		next      = time.Now() // the earliest time of the next question
		asked     = next       // the time of the last
	)
	for {
		leader, term, changed := d.Leaders.Get()
		if now := (leaderInTerm{leader, term}); now != seen {
			// A new leader need not wait: without its answer nothing is acknowledged.
			seen, pending = now, nil
			clear(d.goals)
			if soon := asked.Add(d.Tick); soon.Before(next) {
				next = soon
			}
		}
		if pending == nil && leader != 0 && seen != met {
			pending = &sign{from: leader}
		}
		signs, due := d.signs, (<-chan time.Time)(nil)
		if pending != nil {
			signs, due = nil, time.After(time.Until(next))
		}
		select {
		case s := <-signs:
			pending = &s
			continue
		case <-d.reopened:
			met = leaderInTerm{}
			clear(d.goals)
			continue
		case <-changed:
			continue
		case <-due:
		case <-ctx.Done():
			return nil
		}
		asked = time.Now()
		next = asked.Add(inquiryInterval)
		found, forAll := d.lookInto(ctx, *pending)
		if forAll && pending.from == seen.id {
			met = seen
		}
		pending = nil
		switch found {
		case oldCopy:
			return problem.ErrOldCopy
		case histories:
			d.Divide()
			return nil // it takes part in nothing any more that an answer could change
		}
	}
}

// lookInto asks a sign's sender, at the URL at which the cluster knows it; of this
// node, all the others. forAll: what was asked covers all that this node has.
func (d *Doubts) lookInto(ctx context.Context, s sign) (found finding, forAll bool) {
	m := d.Members()
	if s.from == d.ID {
		return d.meetFollowers(ctx, m)
	}
	url := d.URLOf(s.from)
	if url == "" {
		return noFinding, false
	}
	var commit uint64
	before := d.stands()
	err := d.Call(ctx, func(rn *raft.RawNode) {
		commit = rn.BasicStatus().GetCommit()
		if s.index == 0 {
			s.index = d.settled(rn)
		}
	})
	if err != nil {
		return noFinding, false
	}
	answer, ok := d.ask(ctx, s.from, url, s.index)
	if !ok {
		_ = d.Call(ctx, func(rn *raft.RawNode) { d.notAnswered(rn, s.from) }) // else the node ends
		return noFinding, false
	}
	var mine, theirs state.Standing
	vouched := false
	err = d.Call(ctx, func(rn *raft.RawNode) {
		d.silent = silence{}
		found, mine = d.weigh(rn, answer, commit, s.index), d.stands()
		if answer.State != nil {
			theirs = answer.history(rn.BasicStatus().GetTerm(), mine)
		}
		if found == noFinding && answer.vouches(s.index, commit) && answer.Term == rn.BasicStatus().GetTerm() {
			d.vouch(leaderInTerm{s.from, answer.Term})
			vouched = true
		}
	})
	if err != nil {
		return noFinding, false
	}
	if vouched {
		d.disputes.settleAll() // a majority can commit behind this leader
	}
	if found == noFinding {
		d.disputes.settle(s.from)
		return noFinding, answer.State == nil || answer.State.Index >= before.Index
	}
	if found == histories && answer.State != nil {
		states := statesOf(d.askAll(ctx, m, s.from))
		states[d.ID], states[s.from] = mine, theirs
		if !d.loses(m, s.from, states) {
			return noFinding, false // its sender has not vouched, and is asked again
		}
	}
	d.Say.Error("another member's log contradicts this node's", zap.Uint64("member", s.from),
		zap.Any("its log", answer), zap.Uint64("own commit index", commit), zap.Uint64("about entry", s.index))
	return found, d.part(ctx, found)
}

// loses judges between this node's history and a member's, which contradict each
// other: it reports whether this node's is out. If neither is, the two dispute.
func (d *Doubts) loses(m membership.Membership, other uint64, states map[uint64]state.Standing) bool {
	mine, theirs, voters := states[d.ID], states[other], m.Voters()
	switch {
	case isOut(voters, states, mine, theirs):
		d.disputes.settleAll()
		return true
	case isOut(voters, states, theirs, mine):
		if d.disputes.win(other) {
			d.Say.Error("a member holds another history than the majority, and will serve nothing: remove it, and join under a new ID with an empty data directory",
				zap.Uint64("member", other), zap.Any("its state", theirs), zap.Any("own state", mine))
		}
	case d.disputes.goesOn(other, mine.Index):
		// A majority acknowledges what this node leads with: the others are slow to
		// answer, and the next look tells.
	default:
		d.disputed(other, mine, theirs)
	}
	return false
}

// disputed counts a look at which neither this node's history is out nor a member's.
func (d *Doubts) disputed(other uint64, mine, theirs state.Standing) {
	if d.disputes.note(other) {
		d.Say.Error(problem.ErrDisputed.Error(), zap.Uint64("member", other), zap.Any("its state", theirs), zap.Any("own state", mine))
		d.Dispute()
	}
}

// stands is how far the history has come that this node stands for: that of its state,
// or of its log if that is proven to be of another history than a leader's.
func (d *Doubts) stands() state.Standing {
	at := d.Standing()
	if f := d.forked.Load(); f != nil && f.Index > at.Index {
		return *f
	}
	return at
}

// part has the raft loop know what was found, and reports whether it does. A leader
// whose history is out gives leadership up.
func (d *Doubts) part(ctx context.Context, found finding) bool {
	return d.Call(ctx, func(rn *raft.RawNode) {
		if found == histories {
			d.Split = true
			d.resign(rn)
		}
	}) == nil
}

// vouch lets pass what a leader sends, and what it has sent.
func (d *Doubts) vouch(leader leaderInTerm) {
	d.vouched, d.givenUp = leader, 0
	held := d.held
	d.held = nil
	for _, m := range held {
		if m.GetFrom() == leader.id && m.GetTerm() == leader.term {
			d.Again(m)
		}
	}
}

// ask asks a member where its log stands against this node's, also at an index.
func (d *Doubts) ask(ctx context.Context, id uint64, url string, index uint64) (answer Stand, ok bool) {
	asking, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	answer, err := d.AskStand(asking, url, d.ID, index)
	if err == nil && answer.ID == 0 && answer.ClusterID == 0 {
		answer = d.oldProgram(ctx, id)
	}
	if err != nil || answer.ID != id || answer.ClusterID != d.Cluster {
		d.Say.Debug("a member did not say where its log stands", zap.Uint64("member", id), zap.Error(err))
		return Stand{}, false
	}
	return answer, true
}

// askAll asks the voters but this node and one other how far they have come, and
// returns what they have answered.
func (d *Doubts) askAll(ctx context.Context, m membership.Membership, but uint64) map[uint64]Stand {
	var (
		mu    sync.Mutex
		asked sync.WaitGroup
	)
	answers := make(map[uint64]Stand)
	for _, id := range m.Voters() {
		if id == d.ID || id == but {
			continue
		}
		asked.Go(func() {
			answer, ok := d.ask(ctx, id, m.Members[id].PeerURL, 0)
			if !ok {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers[id] = answer
		})
	}
	asked.Wait()
	return answers
}

// statesOf is how far the states have come of those that know the question.
func statesOf(answers map[uint64]Stand) map[uint64]state.Standing {
	states := make(map[uint64]state.Standing)
	for id, answer := range answers {
		if answer.State != nil {
			states[id] = *answer.State
		}
	}
	return states
}

// meetFollowers compares a new leader's state with those of the others. If it is
// of a history that a majority does not share, its followers wait for ever for it
// to vouch; so it has to leave.
func (d *Doubts) meetFollowers(ctx context.Context, m membership.Membership) (found finding, forAll bool) {
	leader, term, _ := d.Leaders.Get()
	answers := d.askAll(ctx, m, d.ID)
	states := statesOf(answers)
	var known, all state.Standing // of this node, by its state and by all its log
	if err := d.Call(ctx, func(*raft.RawNode) { known, all = d.Standing(), d.standing() }); err != nil {
		return noFinding, false
	}
	forAll = 1+len(answers) > len(m.Voters())/2 && d.whole(answers)
	with := 0 // this one's history, this node among them
	for _, id := range m.Voters() {
		theirs, answered := states[id]
		mine := known // or all the log, if only that contradicts
		// In a later term another leader may lawfully have overwritten this log's end.
		if answered && leader == d.ID && answers[id].Term <= term && known.IsOneHistoryWith(theirs) {
			mine = all
		}
		states[d.ID] = mine
		switch {
		case id == d.ID:
			with++
		case !answered:
		case mine.IsOneHistoryWith(theirs) && answers[id].Disputes:
			forAll = false // it knows of entries that this node does not stand for
			d.disputed(id, mine, theirs)
		case mine.IsOneHistoryWith(theirs):
			with++
			d.disputes.settle(id)
		case d.loses(m, id, states):
			d.Say.Error("this node's state is of another history than the majority's", zap.Uint64("member", id),
				zap.Any("its state", theirs), zap.Any("own state", mine))
			return histories, d.part(ctx, histories)
		default:
			forAll = forAll && d.disputes.won(id)
		}
	}
	if with > len(m.Voters())/2 {
		d.disputes.settleAll() // they can commit, also when the other one does not answer any more
	}
	return noFinding, forAll
}

// whole reports whether the states cover what their nodes knew to be committed when
// they first answered: one that has just started reads its log, and shows only then
// what it holds.
func (d *Doubts) whole(answers map[uint64]Stand) bool {
	whole := true
	for id, answer := range answers {
		if _, again := d.goals[id]; !again {
			d.goals[id] = answer.Commit
		}
		whole = whole && (answer.State == nil || answer.State.Index >= d.goals[id])
	}
	return whole
}

// isOut reports whether, of two states that are not of one history, mine is to go:
// a majority of the voters is with theirs, or all voters are known and no majority
// is with mine. Until that shows, nobody is accused; a leader that has not vouched
// commits nothing, and confirms no read, meanwhile. A voter is with a state if its
// own can be of one history with that and not with the other.
func isOut(voters []uint64, states map[uint64]state.Standing, mine, theirs state.Standing) bool {
	var forMine, forTheirs, unknown int
	for _, id := range voters {
		s, known := states[id]
		withMine, withTheirs := s.IsOneHistoryWith(mine), s.IsOneHistoryWith(theirs)
		switch {
		case !known:
			unknown++
		case withMine && !withTheirs:
			forMine++
		case withTheirs && !withMine:
			forTheirs++
		}
	}
	majority := len(voters)/2 + 1
	return forTheirs >= majority || unknown == 0 && forMine < majority
}

// AskStand asks the node at a URL where its log stands against node's, also at an
// index. A program that does not know the question answers another; so all is zero.
func AskStand(ask *peerclient.Client) func(ctx context.Context, peerURL string, node, index uint64) (Stand, error) {
	return func(ctx context.Context, peerURL string, node, index uint64) (answer Stand, err error) {
		err = ask.Get(ctx, fmt.Sprintf("%s%s?node=%d&index=%d", peerURL, peerclient.ViewPath, node, index), 0, &answer)
		return answer, err
	}
}
