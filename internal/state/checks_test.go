package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"raftkv/internal/address"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"reflect"
	"slices"
	"testing"
)

// checkState has the voters 1 to n, and the learner 9.
func checkState(n int) *State {
	var peers []address.Peer
	for id := range n {
		peers = append(peers, address.Peer{ID: uint64(id + 1), URL: fmt.Sprintf("http://h:%d", id+1)})
	}
	s := New(peers)
	s.Membership.Members[9] = membership.Member{ID: 9, PeerURL: "http://h:9", Learner: true}
	s.Index = 10
	return s
}

// Guarantee: the majority of the voters is right, those who differ from it are
// named, and when there can be no majority all are to stop. In nothing else do
// the checks accuse anyone.
func TestVerdict(t *testing.T) {
	const h, g, f = 100, 200, 300
	void := Report{Void: true}
	says := func(node, hash uint64) func(*State) {
		return func(s *State) { s.report(node, s.Checks.Index, Report{Hash: hash}) }
	}
	next := func(s *State) { s.Index++; s.checkpoint(false) }
	remove := func(id uint64) func(*State) {
		return func(s *State) {
			if changed, err := s.ApplyChange(membership.Change{Op: membership.OpRemove, ID: id}); !changed {
				t.Fatal(err)
			}
		}
	}
	voided := func(node uint64) func(*State) { return func(s *State) { s.report(node, s.Checks.Index, void) } }
	for _, tt := range []struct {
		name       string
		voters     int
		steps      []func(*State)
		decided    bool
		diverged   []uint64
		noMajority bool
	}{
		{"no report", 3, nil, false, nil, false},
		{"one of three", 3, []func(*State){says(1, h)}, false, nil, false},
		{"two of three agree", 3, []func(*State){says(1, h), says(2, h)}, true, nil, false},
		{"all agree", 3, []func(*State){says(1, h), says(2, h), says(3, h)}, true, nil, false},
		{"two of three differ", 3, []func(*State){says(1, h), says(2, g)}, false, nil, false},
		{"the third decides", 3, []func(*State){says(1, h), says(2, g), says(3, h)}, true, []uint64{2}, false},
		{"one differs late", 3, []func(*State){says(1, h), says(2, h), says(3, g)}, true, []uint64{3}, false},
		{"three of three differ", 3, []func(*State){says(1, h), says(2, g), says(3, f)}, false, nil, true},
		{"two of two differ", 2, []func(*State){says(1, h), says(2, g)}, false, nil, true},
		{"one of two", 2, []func(*State){says(1, h)}, false, nil, false},
		{"one alone", 1, []func(*State){says(1, h)}, true, nil, false},
		{"one alone trusts itself not", 1, []func(*State){voided(1)}, false, nil, true},
		{"one of three trusts itself not", 3, []func(*State){voided(1), says(2, h), says(3, h)}, true, []uint64{1}, false},
		{"one of three trusts itself not, late", 3, []func(*State){says(2, h), says(3, h), voided(1)}, true, []uint64{1}, false},
		{"one of two trusts itself not", 2, []func(*State){voided(1), says(2, h)}, false, nil, true},
		{"two of three trust themselves not", 3, []func(*State){voided(1), voided(2)}, false, nil, true},
		{"four: two and two", 4, []func(*State){says(1, h), says(2, h), says(3, g), says(4, g)}, false, nil, true},
		{"four: two and one", 4, []func(*State){says(1, h), says(2, h), says(3, g)}, false, nil, false},
		{"four: three and one", 4, []func(*State){says(1, h), says(2, h), says(3, g), says(4, h)}, true, []uint64{3}, false},
		{"five: two down", 5, []func(*State){says(1, h), says(2, h), says(3, h)}, true, nil, false},
		{"five: two wrong in two ways", 5, []func(*State){says(1, h), says(2, g), says(3, f), says(4, h), says(5, h)}, true, []uint64{2, 3}, false},
		{"five: no hash can get there", 5, []func(*State){says(1, h), says(2, g), says(3, f), says(4, 400)}, false, nil, true},
		{"a learner does not vote", 3, []func(*State){says(9, g), says(1, h)}, false, nil, false},
		{"a learner makes no majority", 2, []func(*State){says(9, h), says(1, h)}, false, nil, false},
		{"a learner differs", 3, []func(*State){says(9, g), says(1, h), says(2, h)}, true, []uint64{9}, false},
		{"a learner differs late", 3, []func(*State){says(1, h), says(2, h), says(9, g)}, true, []uint64{9}, false},
		{"a learner prevents nothing", 3, []func(*State){says(1, h), says(9, g), says(2, h), says(3, h)}, true, []uint64{9}, false},
		{"a stranger", 3, []func(*State){says(7, g), says(1, h), says(2, h)}, true, nil, false},
		{"twice the same", 3, []func(*State){says(1, h), says(1, h)}, false, nil, false},
		{"two words", 3, []func(*State){says(1, h), says(1, g), says(2, h), says(3, h)}, true, []uint64{1}, false},
		{"two words, late", 3, []func(*State){says(1, h), says(2, h), says(2, g)}, true, []uint64{2}, false},
		{"two words are no vote", 3, []func(*State){says(1, h), says(1, g), says(2, g)}, false, nil, false},
		{"a removed voter still counts for the check", 3, []func(*State){remove(3), says(1, h), says(2, g)}, false, nil, false},
		{"a removed voter need not be found", 3, []func(*State){says(3, g), remove(3), says(1, h), says(2, h)}, true, nil, false},
		{"who is removed is forgotten", 3, []func(*State){says(1, h), says(2, h), says(3, g), remove(3)}, true, nil, false},
		{"a report on the former check", 3, []func(*State){next, func(s *State) { s.report(1, 10, Report{Hash: g}) }, says(1, h), says(2, h)}, true, nil, false},
		{"found stays found", 3, []func(*State){says(1, h), says(2, h), says(3, g), next, says(1, f), says(2, f), says(3, f)}, true, []uint64{3}, false},
		{"undecided is no fault", 3, []func(*State){says(1, h), next, next}, false, nil, false},
		{"a contradiction that lasts", 3, []func(*State){says(1, h), says(2, g), next}, false, nil, true},
		{"a contradiction that is settled", 3, []func(*State){says(1, h), says(2, g), next, says(1, h), says(2, g), says(3, h)}, true, []uint64{2}, false},
		{"its own distrust contradicts nobody", 3, []func(*State){says(1, h), voided(2), next}, false, nil, false},
		{"agreement after none", 2, []func(*State){says(1, h), says(2, g), next, says(1, h), says(2, h)}, true, nil, false},
		{"none after none", 2, []func(*State){says(1, h), says(2, g), next, says(1, h)}, false, nil, true},
	} {
		s := checkState(tt.voters)
		s.checkpoint(false)
		for i, step := range tt.steps {
			step(s)
			// A node that has the state from a snapshot goes on in the same way.
			if i%2 == 0 {
				r, err := Read(bytes.NewReader(snapshotBytes(t, s)))
				if err != nil {
					t.Fatal(err)
				}
				if r.hash() != s.hash() {
					t.Fatalf("%s: step %d: what was read is %+v, not %+v", tt.name, i, r.Checks, s.Checks)
				}
				s = r
			}
		}
		c := &s.Checks
		if got := !c.Undecided(); got != tt.decided {
			t.Errorf("%s: decided is %v: %+v", tt.name, got, c)
		}
		if got := slices.Sorted(maps.Keys(c.Diverged)); !slices.Equal(got, tt.diverged) {
			t.Errorf("%s: diverged are %v, want %v", tt.name, got, tt.diverged)
		}
		if (c.NoMajority != 0) != tt.noMajority {
			t.Errorf("%s: no majority is %v: %+v", tt.name, !tt.noMajority, c)
		}
		for id := uint64(1); id < 10; id++ {
			var want error
			if tt.noMajority {
				want = problem.ErrNoMajority
			}
			if slices.Contains(tt.diverged, id) {
				want = problem.ErrDiverged
			}
			if got := c.Verdict(id); !errors.Is(got, want) {
				t.Errorf("%s: node %d: %v, want %v", tt.name, id, got, want)
			}
		}
	}
}

// Guarantee: replicas that hold the same never accuse each other, whoever
// reports when, how often, and whatever else happens.
func TestNoFalseAlarm(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		s := checkState(1 + rnd.IntN(5))
		hashes := make(map[uint64]uint64) // by checkpoint
		for range 200 {
			s.Index++
			switch n := rnd.IntN(20); {
			case n == 0:
				s.checkpoint(rnd.IntN(2) == 0)
				hashes[s.Index] = s.Checks.Own.Hash()
			case n == 1:
				_, _ = s.ApplyChange(membership.Change{Op: membership.Op(1 + rnd.IntN(3)), ID: 1 + uint64(rnd.IntN(12)), PeerURL: fmt.Sprint("http://g:", 1+s.Index)})
			case n < 6:
				s.Apply(randomCommand(rnd, s.Revision))
			default:
				if all := membership.SortedKeys(hashes); len(all) > 0 { // old ones too
					at := all[len(all)-1-min(len(all)-1, rnd.IntN(3))]
					s.report(1+uint64(rnd.IntN(12)), at, Report{Hash: hashes[at]})
				}
			}
			if len(s.Checks.Diverged) > 0 || s.Checks.NoMajority != 0 {
				t.Fatalf("seed %d: %+v", seed, s.Checks)
			}
		}
	}
}

// Guarantee: a copy of the state keeps its checks.
func TestChecksCopy(t *testing.T) {
	s := checkState(3)
	s.checkpoint(true)
	s.report(1, 10, Report{Hash: 1})
	c := s.Copy()
	want := c.hash()
	s.report(2, 10, Report{Hash: 1})
	s.report(3, 10, Report{Hash: 2})
	s.Index++
	s.checkpoint(false)
	if c.hash() != want || c.Checks.Own != nil {
		t.Errorf("the copy became %+v", c.Checks)
	}
}

// Guarantee: a hash is of the state that the commands before the checkpoint have
// left, also those of the same entry, and not of what follows.
func TestCheckpointWithinAnEntry(t *testing.T) {
	at := func(cmds ...Command) *OwnCheck {
		s := checkState(3)
		s.ApplyBatch(BatchID{Node: 1, Boot: 1}, cmds)
		return s.Checks.Own
	}
	p, q, check := put("k", "v", Condition{}), put("k", "w", Condition{}), Command{Kind: kindCheckpoint, full: true}
	if at(p, check, q).Hash() != at(p, check).Hash() {
		t.Error("what follows gets into the hash")
	}
	if at(p, check).Hash() == at(check).Hash() || at(p, check).Hash() == at(q, check).Hash() {
		t.Error("what comes before does not get into the hash")
	}
	if own := at(p, check, q); HashItems(own.Items) != own.Sum {
		t.Error("what follows gets into the copy")
	}
}

// Guarantee: the cluster's level is what all members have published, never
// sinks, and rises too when the one who held it down leaves.
func TestLevel(t *testing.T) {
	says := func(node, level uint64) func(*State) {
		return func(s *State) {
			s.Apply(Command{Kind: KindAnnounce, Member: node, Instance: node, level: level, clientURL: "http://x"})
		}
	}
	change := func(c membership.Change) func(*State) {
		return func(s *State) {
			if changed, err := s.ApplyChange(c); !changed {
				t.Fatal(err)
			}
		}
	}
	add := change(membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"})
	remove := func(id uint64) func(*State) { return change(membership.Change{Op: membership.OpRemove, ID: id}) }
	old := func(s *State) { s.Apply(Command{Kind: KindPublish, Member: 3, Instance: 3, clientURL: "http://x"}) }
	for _, tt := range []struct {
		name  string
		steps []func(*State)
		want  uint64
	}{
		{"nobody", nil, 0},
		{"two of three", []func(*State){says(1, 2), says(2, 2)}, 0},
		{"all", []func(*State){says(1, 2), says(2, 2), says(3, 2)}, 2},
		{"one is behind", []func(*State){says(1, 2), says(2, 1), says(3, 2)}, 1},
		{"it is upgraded", []func(*State){says(1, 2), says(2, 1), says(3, 2), says(2, 2)}, 2},
		{"it is removed", []func(*State){says(1, 2), says(2, 1), says(3, 2), remove(2)}, 2},
		{"one has not said it before", []func(*State){says(1, 2), says(2, 2), old}, 0},
		{"one has not started yet", []func(*State){add, says(1, 2), says(2, 2), says(3, 2)}, 0},
		{"one joins", []func(*State){says(1, 2), says(2, 2), says(3, 2), add}, 2},
		{"one is set back", []func(*State){says(1, 2), says(2, 2), says(3, 2), says(3, 1)}, 2},
		{"one is ahead", []func(*State){says(1, 2), says(2, 9), says(3, 2)}, 2},
		{"a stranger", []func(*State){says(8, 2), says(1, 2), says(2, 2)}, 0},
		{"another directory", []func(*State){says(1, 2), says(2, 2), says(3, 1), func(s *State) {
			s.Apply(Command{Kind: KindAnnounce, Member: 3, Instance: 99, level: 2})
		}}, 1},
	} {
		s := New(testkit.Peers())
		for _, step := range tt.steps {
			step(s)
		}
		if s.Level != tt.want {
			t.Errorf("%s: level %d, want %d", tt.name, s.Level, tt.want)
		}
		if r, err := Read(bytes.NewReader(snapshotBytes(t, s))); err != nil || r.Level != s.Level || !reflect.DeepEqual(r.Membership, s.Membership) {
			t.Errorf("%s: read back as %+v, %v", tt.name, r, err)
		}
	}
}
