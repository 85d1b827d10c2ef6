package suspect

import (
	"context"
	"errors"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/window"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Without this a healthy node is accused because others are down, or one of a lost
// history goes on because nobody says so.
func TestWhoIsOut(t *testing.T) {
	common := state.Standing{Index: 5, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 1}}}
	mine := state.Standing{Index: 9, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 1}, 2: {Boot: 1, Life: 20, End: 3}}}
	theirs := state.Standing{Index: 9, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 1}, 2: {Boot: 1, Life: 21, End: 3}}}
	for name, tt := range map[string]struct {
		voters int
		others []state.Standing // of voters 3, 4, ...; those that are left are not known
		out    bool
	}{
		"the third is with it":                 {3, []state.Standing{mine}, false},
		"the third is with the other":          {3, []state.Standing{theirs}, true},
		"the third is down":                    {3, nil, false},
		"the third can be of both, all known":  {3, []state.Standing{common}, true},
		"two of five are with it":              {5, []state.Standing{mine}, false},
		"two and two of five":                  {5, []state.Standing{mine, theirs}, false},
		"three of five are with the other":     {5, []state.Standing{theirs, theirs}, true},
		"three of five are with it":            {5, []state.Standing{mine, mine, theirs}, false},
		"there are but two":                    {2, nil, true},
		"four, of which two are with each":     {4, []state.Standing{mine, theirs}, true},
		"four, of which one is down":           {4, []state.Standing{theirs}, false},
		"four, of which three are not with it": {4, []state.Standing{theirs, theirs}, true},
	} {
		states := map[uint64]state.Standing{1: mine, 2: theirs}
		var voters []uint64
		for id := range uint64(tt.voters) {
			voters = append(voters, id+1)
		}
		for i, s := range tt.others {
			states[uint64(3+i)] = s
		}
		if got := isOut(voters, states, mine, theirs); got != tt.out {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// A leader that meets a voter which still reads its log asks again, and a dispute
// begins at the second look, ends when a majority is with one side, and is told once.
// Without this a leader can call itself ready beside a history of which it was told
// too early, or one that is slow to answer unsettles a healthy one.
func TestDisputeBeginsAndEnds(t *testing.T) {
	windows := func(life uint64) map[uint64]window.Reach {
		return map[uint64]window.Reach{1: {Boot: 1, Life: life, End: 3}}
	}
	empty := state.Standing{Index: 1}
	mine, theirs := state.Standing{Index: 9, Windows: windows(10)}, state.Standing{Index: 47, Windows: windows(11)}
	answers, told := make(map[string]Stand), 0
	d := New(Config{
		Leaders:      wait.NewLeadership(),
		Call:         func(_ context.Context, f func(*raft.RawNode)) error { f(nil); return nil },
		StandingWith: func([]*raftpb.Entry) state.Standing { return mine }, Dispute: func() { told++ },
		Say: zap.NewNop(), ID: 1, Cluster: 7, Standing: func() state.Standing { return mine },
		AskStand: func(_ context.Context, url string, _, _ uint64) (Stand, error) {
			answer, ok := answers[url]
			if !ok {
				return Stand{}, errors.New("it is down")
			}
			return answer, nil
		},
	})
	m := membership.Membership{Members: make(map[uint64]membership.Member)}
	for id, url := range map[uint64]string{1: "a", 2: "b", 3: "c"} {
		m.Members[id] = membership.Member{ID: id, PeerURL: url}
	}
	look := func(wantAll bool, want error) {
		t.Helper()
		found, forAll := d.meetFollowers(t.Context(), m)
		if found != noFinding || forAll != wantAll || !errors.Is(d.Disputed(), want) {
			t.Fatalf("found %d, for all: %t, disputed: %v; want %t, %v", found, forAll, d.Disputed(), wantAll, want)
		}
	}
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 47, State: &empty}
	look(false, nil) // it has not read its log yet
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 60, State: &theirs}
	look(false, nil) // the third may be slow
	look(false, problem.ErrDisputed)
	look(false, problem.ErrDisputed)
	answers["c"] = Stand{ClusterID: 7, ID: 3, Commit: 9, State: &mine}
	look(true, nil) // a majority is with this one
	delete(answers, "c")
	look(false, nil)
	look(false, problem.ErrDisputed)
	answers["c"] = Stand{ClusterID: 7, ID: 3, Commit: 9, State: &mine}
	delete(answers, "b")
	look(true, nil) // the other one is gone, and a majority is with this one
	delete(answers, "c")
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 60, State: &theirs}
	look(false, nil)
	mine.Index++ // a majority acknowledges what this one leads with, and only answers slowly
	look(false, nil)
	mine.Index++
	look(false, nil)
	look(false, nil)
	look(false, problem.ErrDisputed)
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 47, State: &mine}
	look(false, nil) // it began anew, and has not got what it knows to be committed
	clear(d.goals)   // as when it opens its streams again
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 9, State: &mine}
	look(true, nil)
	answers["b"] = Stand{ClusterID: 7, ID: 2, Commit: 9, State: &mine, Disputes: true}
	look(false, nil) // it has found what its state does not show
	look(false, problem.ErrDisputed)
	if told != 4 {
		t.Errorf("told of %d disputes, want 4", told)
	}
}
