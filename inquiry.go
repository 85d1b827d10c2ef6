package main

import (
	"context"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// Where this node's log stands against another's: what a node says when it is
// asked, and what follows from it.

// inquiryInterval is the least time between two questions. A sign may be forged,
// and then so may a thousand; a true one comes again.
const inquiryInterval = time.Second

// standTimeout is how long a node that is asked has for its answer.
const standTimeout = time.Second

// stand is what a node says of its log. Terms of entries are 0 where the log
// does not reach back so far, or where it may still change.
type stand struct {
	ClusterID uint64 `json:"cluster_id"`
	ID        uint64 `json:"id"`
	Term      uint64 `json:"term"`
	Leads     bool   `json:"leads"`
	Commit    uint64 `json:"commit"`
	// Settled: it has committed an entry of its own term, so its commit index
	// covers everything that was committed before (thesis §6.4, step 1).
	Settled bool `json:"settled"`
	// Match is the highest index that it has heard of from the node that asks,
	// in this term, and MatchTerm the term of its own entry there.
	Match     uint64 `json:"match"`
	MatchTerm uint64 `json:"match_term"`
	// EntryTerm is the term of its entry at the index asked about.
	EntryTerm uint64 `json:"entry_term"`
}

// standFor answers node's question, also about an entry at index.
func (d *doubts) standFor(ctx context.Context, node, index uint64) (s stand, err error) {
	err = d.call(ctx, func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		s = stand{
			ClusterID: d.cluster, ID: d.id, Term: st.GetTerm(), Commit: st.GetCommit(),
			Leads: st.RaftState == raft.StateLeader, Settled: d.committedTerm() == st.GetTerm(),
		}
		if !s.Leads {
			return
		}
		var own uint64
		rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			switch id {
			case node:
				s.Match = pr.Match
			case d.id:
				own = pr.Match
			}
		})
		// Once an entry of this term is on the disk, so is all before it.
		if term, err := d.log.Term(own); err != nil || term != s.Term {
			return
		}
		termAt := func(i uint64) uint64 {
			term, err := d.log.Term(i)
			if err != nil || i > own {
				return 0
			}
			return term
		}
		s.MatchTerm, s.EntryTerm = termAt(s.Match), termAt(index)
	})
	return s, err
}

// vouches reports whether a leader's log covers an index that this node has
// committed. weigh has seen that it has no other entry there.
func (s stand) vouches(commit uint64) bool {
	return s.Leads && (s.EntryTerm > 0 || s.Settled && s.Commit >= commit)
}

// oldProgram is what is taken for the answer of a member whose program does not
// know the question: that it has nothing to say against this node.
func (d *doubts) oldProgram(ctx context.Context, id uint64) (s stand) {
	err := d.call(ctx, func(rn *raft.RawNode) {
		st := rn.BasicStatus()
		s = stand{ClusterID: d.cluster, ID: id, Term: st.GetTerm(), Leads: st.Lead == id, Settled: true, Commit: st.GetCommit()}
	})
	if err != nil {
		return stand{}
	}
	return s
}

// finding is what an answer proves.
type finding int

const (
	noFinding finding = iota
	oldCopy           // this node has forgotten what it acknowledged: errOldCopy
	histories         // there is another history beside this node's: errHistories
)

// weigh judges by what another node has answered. commit is this node's commit
// index when it asked, index the entry that it asked about. It runs on the raft
// loop, after the answer has come: what this node has acknowledged in a term it
// has, and knows the term of, for as long as the term lasts.
func (d *doubts) weigh(rn *raft.RawNode, s stand, commit, index uint64) finding {
	st := rn.BasicStatus()
	term := st.GetTerm()
	switch {
	case st.RaftState == raft.StateLeader:
		if s.Term == term && !s.Leads && s.Commit > d.last {
			return histories
		}
		return noFinding
	case !s.Leads || s.Term < term:
		return noFinding
	case s.Term > term && s.Match > 0, s.Term == term && s.Match > d.last:
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

// inquire looks into the signs. Also without any, it asks the first leader that
// this life hears from: where a copy was put back, the sooner that shows, the
// less has been promised anew.
func (d *doubts) inquire(ctx context.Context) error {
	met := false
	for {
		leader, _, changed := d.leaders.get()
		first := make(chan sign, 1)
		if !met && leader != 0 && leader != d.id {
			first <- sign{from: leader}
		}
		var s sign
		select {
		case s = <-d.signs:
		case s = <-first:
		case <-changed:
			continue
		case <-ctx.Done():
			return nil
		}
		found, answered := d.lookInto(ctx, s)
		met = met || answered && s.from == leader
		switch found {
		case oldCopy:
			return errOldCopy
		case histories:
			d.divide()
		}
		select {
		case <-time.After(inquiryInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// lookInto asks a sign's sender, at the URL at which the cluster knows it.
func (d *doubts) lookInto(ctx context.Context, s sign) (found finding, answered bool) {
	mem, ok := d.members().members[s.from]
	if !ok {
		return noFinding, false
	}
	var commit uint64
	err := d.call(ctx, func(rn *raft.RawNode) {
		commit = rn.BasicStatus().GetCommit()
		if s.index == 0 {
			s.index = d.settled(rn)
		}
	})
	if err != nil {
		return noFinding, false
	}
	asking, cancel := context.WithTimeout(ctx, standTimeout)
	defer cancel()
	answer, err := d.askStand(asking, mem.PeerURL, d.id, s.index)
	if err == nil && answer == (stand{}) {
		answer = d.oldProgram(ctx, s.from)
	}
	if err != nil || answer.ID != s.from || answer.ClusterID != d.cluster {
		d.say.Debug("a member did not say where its log stands", zap.Uint64("member", s.from), zap.Error(err))
		return noFinding, false
	}
	err = d.call(ctx, func(rn *raft.RawNode) {
		found = d.weigh(rn, answer, commit, s.index)
		st := rn.BasicStatus()
		switch {
		case found == histories && st.RaftState != raft.StateLeader:
			d.split = true
		case found == noFinding && answer.vouches(commit) && answer.Term == st.GetTerm():
			d.vouched = answer.Term
		}
	})
	if found != noFinding {
		d.say.Error("another member's log contradicts this node's", zap.Uint64("member", s.from),
			zap.Any("its log", answer), zap.Uint64("own commit index", commit), zap.Uint64("about entry", s.index))
	}
	return found, err == nil
}
