package suspect

import (
	"context"
	"errors"
	"io"
	"log"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"raftkv/internal/window"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Node 1 leads in term 2. It has committed entries up to 9, and its log ends with
// entries that only it has, up to 12. If nodes 2 and 3 have elected another leader
// meanwhile, they commit entries of their own behind 9, and node 1 does not know it.
var (
	committed = state.Standing{Index: 9, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 3}}}
	ownTail   = state.Standing{Index: 12, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 6}}}
	others    = state.Standing{Index: 14, Windows: map[uint64]window.Reach{1: {Boot: 1, Life: 10, End: 3}, 2: {Boot: 1, Life: 20, End: 5}}}
)

// deposedDoubts are those of such a node 1, and begun is how often they were told of a
// dispute.
func deposedDoubts(t *testing.T, answers map[string]Stand) (d *Doubts, m membership.Membership, begun *int) {
	begun = new(int)
	d = New(Config{
		Leaders: wait.NewLeadership(), Say: zap.NewNop(), ID: 1, Cluster: 7,
		Call: func(_ context.Context, f func(*raft.RawNode)) error {
			f(quietRaft(t, 1, raft.NewMemoryStorage(), 0))
			return nil
		},
		Standing: func() state.Standing { return committed },
		StandingWith: func(tail []*raftpb.Entry) state.Standing {
			if len(tail) == 0 {
				return committed
			}
			return ownTail
		},
		Dispute: func() { *begun++ },
		AskStand: func(_ context.Context, url string, _, _ uint64) (Stand, error) {
			answer, ok := answers[url]
			if !ok {
				return Stand{}, errors.New("it is down")
			}
			return answer, nil
		},
	})
	d.Appended(testkit.AppendMessage(2, 1, 9, entriesOf(10, 2, "a", "b", "c")...))
	m = membership.Membership{Members: make(map[uint64]membership.Member)}
	for id, url := range map[uint64]string{1: "a", 2: "b", 3: "c"} {
		m.Members[id] = membership.Member{ID: id, PeerURL: url}
	}
	return d, m, begun
}

// A leader that was deposed and does not know it asks the others. Without this it takes
// what a later leader has lawfully put in place of its own last entries for another
// history, and accuses itself, or them.
func TestDeposedLeaderAccusesNobody(t *testing.T) {
	answer := func(id, term uint64, s state.Standing) Stand {
		return Stand{ClusterID: 7, ID: id, Term: term, Commit: s.Index, State: &s}
	}
	for name, tt := range map[string]struct {
		leader, term uint64 // as node 1 believes
		answers      map[string]Stand
		found        finding
		disputed     bool
	}{
		"both are of a later term":     {1, 2, map[string]Stand{"b": answer(2, 3, others), "c": answer(3, 3, others)}, noFinding, false},
		"one is, the other is down":    {1, 2, map[string]Stand{"b": answer(2, 3, others)}, noFinding, false},
		"one is, the other is behind":  {1, 2, map[string]Stand{"b": answer(2, 3, others), "c": answer(3, 2, committed)}, noFinding, false},
		"it hears of it while it asks": {2, 3, map[string]Stand{"b": answer(2, 3, others), "c": answer(3, 3, others)}, noFinding, false},
		"it leads in a later term":     {1, 3, map[string]Stand{"b": answer(2, 4, others), "c": answer(3, 4, others)}, noFinding, false},
		// What is committed in its own term, or before, its log has to have.
		"both are of its term":        {1, 2, map[string]Stand{"b": answer(2, 2, others), "c": answer(3, 2, others)}, histories, false},
		"both are of an earlier term": {1, 2, map[string]Stand{"b": answer(2, 1, others), "c": answer(3, 1, others)}, histories, false},
		"one is, the other is away":   {1, 2, map[string]Stand{"b": answer(2, 2, others)}, noFinding, true},
	} {
		t.Run(name, func(t *testing.T) {
			d, m, begun := deposedDoubts(t, tt.answers)
			d.Leaders.Set(tt.leader, tt.term)
			for look := range disputeLooks + 1 {
				found, _ := d.meetFollowers(t.Context(), m)
				if found != tt.found || d.Split != (found == histories) {
					t.Fatalf("look %d: found %d, want %d; split: %t", look, found, tt.found, d.Split)
				}
			}
			if err := d.Disputed(); errors.Is(err, problem.ErrDisputed) != tt.disputed || (*begun > 0) != tt.disputed {
				t.Errorf("disputed: %v, told %d times; want %t", err, *begun, tt.disputed)
			}
			for _, id := range m.Voters() {
				if d.disputes.won(id) {
					t.Errorf("node %d is accused", id)
				}
			}
		})
	}
}

// A leader that was deposed and does not know it is asked, by a node that has followed
// it and now follows another. Without this that node takes the entries that it has
// overwritten, and has acknowledged before, for a sign of another history.
func TestDeposedLeaderIsNotAccused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Stand)
		found  finding
	}{
		"it leads in an earlier term":       {func(*Stand) {}, noFinding},
		"and knows that it does not":        {func(s *Stand) { s.Leads, s.Log, s.Prints = false, nil, nil }, noFinding},
		"and stands in the later one":       {func(s *Stand) { s.Term, s.Leads, s.Log, s.Prints = 3, false, nil, nil }, noFinding},
		"in the same term it is another":    {func(s *Stand) { s.Term, s.Match, s.Commit, s.EntryTerm = 3, 0, 14, 0 }, histories},
		"its entries are of the same term":  {func(s *Stand) { s.Prints = prints(entriesOf(10, 3, "a", "b", "c")) }, histories},
		"what it has committed is another":  {func(s *Stand) { s.State = &ownTail }, histories},
		"it has heard of more in this term": {func(s *Stand) { s.Term, s.Log, s.Match, s.Commit, s.EntryTerm = 3, nil, 15, 14, 0 }, oldCopy},
	} {
		t.Run(name, func(t *testing.T) {
			// Node 2 acknowledged entries of term 2 up to 15. Its log now ends at 14.
			entries := append(entriesOf(1, 1, "", "", "", "", ""), entriesOf(6, 2, "", "", "", "")...)
			entries = append(entries, entriesOf(10, 3, "", "v", "w", "x", "y")...)
			disk := raft.NewMemoryStorage()
			testkit.Must(t, disk.SetHardState(&raftpb.HardState{Term: new(uint64(3)), Commit: new(uint64(14))}))
			testkit.Must(t, disk.Append(entries))
			d := New(Config{
				Say: zap.NewNop(), ID: 2, Cluster: 7, Log: disk, Standing: func() state.Standing { return others },
				StandingWith: func([]*raftpb.Entry) state.Standing { return others },
			})
			testkit.Must(t, d.Started(14, 14, 14))
			answer := Stand{
				ClusterID: 7, ID: 1, Term: 2, Leads: true, Commit: 9, Settled: true, Match: 15, MatchTerm: 2, EntryTerm: 2,
				State: &committed, Log: &ownTail, Prints: prints(entriesOf(10, 2, "a", "b", "c")),
			}
			tt.change(&answer)
			if found := d.weigh(quietRaft(t, 2, disk, 14), answer, 14, 12); found != tt.found {
				t.Errorf("found %d, want %d", found, tt.found)
			}
			if d.forked.Load() != nil && tt.found == noFinding {
				t.Error("its own log is taken for a fork")
			}
		})
	}
}

// prints are the fingerprints of entries.
func prints(entries []*raftpb.Entry) []Print {
	var l ownLog
	l.add(entries)
	return l.behind(0)
}

// quietRaft is a node of raft that logs nothing.
func quietRaft(t *testing.T, id uint64, on raft.Storage, applied uint64) *raft.RawNode {
	t.Helper()
	rn, err := raft.NewRawNode(&raft.Config{
		ID: id, ElectionTick: 10, HeartbeatTick: 1, Storage: on, Applied: applied, MaxInflightMsgs: 1,
		Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
	})
	testkit.Must(t, err)
	return rn
}
