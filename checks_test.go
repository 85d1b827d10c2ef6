package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"raftkv/internal/address"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// checkState has the voters 1 to n, and the learner 9.
func checkState(n int) *state {
	var peers []address.Peer
	for id := range n {
		peers = append(peers, address.Peer{ID: uint64(id + 1), URL: fmt.Sprintf("http://h:%d", id+1)})
	}
	s := newState(peers)
	s.membership.members[9] = member{ID: 9, PeerURL: "http://h:9", Learner: true}
	s.index = 10
	return s
}

// Guarantee: the majority of the voters is right, those who differ from it are
// named, and when there can be no majority all are to stop. In nothing else do
// the checks accuse anyone.
func TestVerdict(t *testing.T) {
	const h, g, f = 100, 200, 300
	void := report{void: true}
	says := func(node, hash uint64) func(*state) {
		return func(s *state) { s.report(node, s.checks.index, report{hash: hash}) }
	}
	next := func(s *state) { s.index++; s.checkpoint(false) }
	remove := func(id uint64) func(*state) {
		return func(s *state) {
			if changed, err := s.applyMemberChange(memberChange{op: opRemove, id: id}); !changed {
				t.Fatal(err)
			}
		}
	}
	voided := func(node uint64) func(*state) { return func(s *state) { s.report(node, s.checks.index, void) } }
	for _, tt := range []struct {
		name       string
		voters     int
		steps      []func(*state)
		decided    bool
		diverged   []uint64
		noMajority bool
	}{
		{"no report", 3, nil, false, nil, false},
		{"one of three", 3, []func(*state){says(1, h)}, false, nil, false},
		{"two of three agree", 3, []func(*state){says(1, h), says(2, h)}, true, nil, false},
		{"all agree", 3, []func(*state){says(1, h), says(2, h), says(3, h)}, true, nil, false},
		{"two of three differ", 3, []func(*state){says(1, h), says(2, g)}, false, nil, false},
		{"the third decides", 3, []func(*state){says(1, h), says(2, g), says(3, h)}, true, []uint64{2}, false},
		{"one differs late", 3, []func(*state){says(1, h), says(2, h), says(3, g)}, true, []uint64{3}, false},
		{"three of three differ", 3, []func(*state){says(1, h), says(2, g), says(3, f)}, false, nil, true},
		{"two of two differ", 2, []func(*state){says(1, h), says(2, g)}, false, nil, true},
		{"one of two", 2, []func(*state){says(1, h)}, false, nil, false},
		{"one alone", 1, []func(*state){says(1, h)}, true, nil, false},
		{"one alone trusts itself not", 1, []func(*state){voided(1)}, false, nil, true},
		{"one of three trusts itself not", 3, []func(*state){voided(1), says(2, h), says(3, h)}, true, []uint64{1}, false},
		{"one of three trusts itself not, late", 3, []func(*state){says(2, h), says(3, h), voided(1)}, true, []uint64{1}, false},
		{"one of two trusts itself not", 2, []func(*state){voided(1), says(2, h)}, false, nil, true},
		{"two of three trust themselves not", 3, []func(*state){voided(1), voided(2)}, false, nil, true},
		{"four: two and two", 4, []func(*state){says(1, h), says(2, h), says(3, g), says(4, g)}, false, nil, true},
		{"four: two and one", 4, []func(*state){says(1, h), says(2, h), says(3, g)}, false, nil, false},
		{"four: three and one", 4, []func(*state){says(1, h), says(2, h), says(3, g), says(4, h)}, true, []uint64{3}, false},
		{"five: two down", 5, []func(*state){says(1, h), says(2, h), says(3, h)}, true, nil, false},
		{"five: two wrong in two ways", 5, []func(*state){says(1, h), says(2, g), says(3, f), says(4, h), says(5, h)}, true, []uint64{2, 3}, false},
		{"five: no hash can get there", 5, []func(*state){says(1, h), says(2, g), says(3, f), says(4, 400)}, false, nil, true},
		{"a learner does not vote", 3, []func(*state){says(9, g), says(1, h)}, false, nil, false},
		{"a learner makes no majority", 2, []func(*state){says(9, h), says(1, h)}, false, nil, false},
		{"a learner differs", 3, []func(*state){says(9, g), says(1, h), says(2, h)}, true, []uint64{9}, false},
		{"a learner differs late", 3, []func(*state){says(1, h), says(2, h), says(9, g)}, true, []uint64{9}, false},
		{"a learner prevents nothing", 3, []func(*state){says(1, h), says(9, g), says(2, h), says(3, h)}, true, []uint64{9}, false},
		{"a stranger", 3, []func(*state){says(7, g), says(1, h), says(2, h)}, true, nil, false},
		{"twice the same", 3, []func(*state){says(1, h), says(1, h)}, false, nil, false},
		{"two words", 3, []func(*state){says(1, h), says(1, g), says(2, h), says(3, h)}, true, []uint64{1}, false},
		{"two words, late", 3, []func(*state){says(1, h), says(2, h), says(2, g)}, true, []uint64{2}, false},
		{"two words are no vote", 3, []func(*state){says(1, h), says(1, g), says(2, g)}, false, nil, false},
		{"a removed voter still counts for the check", 3, []func(*state){remove(3), says(1, h), says(2, g)}, false, nil, false},
		{"a removed voter need not be found", 3, []func(*state){says(3, g), remove(3), says(1, h), says(2, h)}, true, nil, false},
		{"who is removed is forgotten", 3, []func(*state){says(1, h), says(2, h), says(3, g), remove(3)}, true, nil, false},
		{"a report on the former check", 3, []func(*state){next, func(s *state) { s.report(1, 10, report{hash: g}) }, says(1, h), says(2, h)}, true, nil, false},
		{"found stays found", 3, []func(*state){says(1, h), says(2, h), says(3, g), next, says(1, f), says(2, f), says(3, f)}, true, []uint64{3}, false},
		{"undecided is no fault", 3, []func(*state){says(1, h), next, next}, false, nil, false},
		{"a contradiction that lasts", 3, []func(*state){says(1, h), says(2, g), next}, false, nil, true},
		{"a contradiction that is settled", 3, []func(*state){says(1, h), says(2, g), next, says(1, h), says(2, g), says(3, h)}, true, []uint64{2}, false},
		{"its own distrust contradicts nobody", 3, []func(*state){says(1, h), voided(2), next}, false, nil, false},
		{"agreement after none", 2, []func(*state){says(1, h), says(2, g), next, says(1, h), says(2, h)}, true, nil, false},
		{"none after none", 2, []func(*state){says(1, h), says(2, g), next, says(1, h)}, false, nil, true},
	} {
		s := checkState(tt.voters)
		s.checkpoint(false)
		for i, step := range tt.steps {
			step(s)
			// A node that has the state from a snapshot goes on in the same way.
			if i%2 == 0 {
				r, err := readState(bytes.NewReader(snapshotBytes(t, s)))
				if err != nil {
					t.Fatal(err)
				}
				if r.hash() != s.hash() {
					t.Fatalf("%s: step %d: what was read is %+v, not %+v", tt.name, i, r.checks, s.checks)
				}
				s = r
			}
		}
		c := &s.checks
		if got := !c.undecided(); got != tt.decided {
			t.Errorf("%s: decided is %v: %+v", tt.name, got, c)
		}
		if got := slices.Sorted(maps.Keys(c.diverged)); !slices.Equal(got, tt.diverged) {
			t.Errorf("%s: diverged are %v, want %v", tt.name, got, tt.diverged)
		}
		if (c.noMajority != 0) != tt.noMajority {
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
			if got := c.verdict(id); !errors.Is(got, want) {
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
			s.index++
			switch n := rnd.IntN(20); {
			case n == 0:
				s.checkpoint(rnd.IntN(2) == 0)
				hashes[s.index] = s.checks.own.hash()
			case n == 1:
				_, _ = s.applyMemberChange(memberChange{op: changeOp(1 + rnd.IntN(3)), id: 1 + uint64(rnd.IntN(12)), peerURL: fmt.Sprint("http://g:", 1+s.index)})
			case n < 6:
				s.apply(randomCommand(rnd, s.revision))
			default:
				if all := sortedKeys(hashes); len(all) > 0 { // old ones too
					at := all[len(all)-1-min(len(all)-1, rnd.IntN(3))]
					s.report(1+uint64(rnd.IntN(12)), at, report{hash: hashes[at]})
				}
			}
			if len(s.checks.diverged) > 0 || s.checks.noMajority != 0 {
				t.Fatalf("seed %d: %+v", seed, s.checks)
			}
		}
	}
}

// Guarantee: a copy of the state keeps its checks.
func TestChecksCopy(t *testing.T) {
	s := checkState(3)
	s.checkpoint(true)
	s.report(1, 10, report{hash: 1})
	c := s.copy()
	want := c.hash()
	s.report(2, 10, report{hash: 1})
	s.report(3, 10, report{hash: 2})
	s.index++
	s.checkpoint(false)
	if c.hash() != want || c.checks.own != nil {
		t.Errorf("the copy became %+v", c.checks)
	}
}

// Guarantee: a hash is of the state that the commands before the checkpoint have
// left, also those of the same entry, and not of what follows.
func TestCheckpointWithinAnEntry(t *testing.T) {
	at := func(cmds ...command) *ownCheck {
		s := checkState(3)
		s.applyBatch(batchID{node: 1, boot: 1}, cmds)
		return s.checks.own
	}
	p, q, check := put("k", "v", condition{}), put("k", "w", condition{}), command{kind: kindCheckpoint, full: true}
	if at(p, check, q).hash() != at(p, check).hash() {
		t.Error("what follows gets into the hash")
	}
	if at(p, check).hash() == at(check).hash() || at(p, check).hash() == at(q, check).hash() {
		t.Error("what comes before does not get into the hash")
	}
	if own := at(p, check, q); hashItems(own.items) != own.sum {
		t.Error("what follows gets into the copy")
	}
}

// Guarantee: the cluster's level is what all members have published, never
// sinks, and rises too when the one who held it down leaves.
func TestLevel(t *testing.T) {
	says := func(node, level uint64) func(*state) {
		return func(s *state) {
			s.apply(command{kind: kindAnnounce, member: node, instance: node, level: level, clientURL: "http://x"})
		}
	}
	change := func(c memberChange) func(*state) {
		return func(s *state) {
			if changed, err := s.applyMemberChange(c); !changed {
				t.Fatal(err)
			}
		}
	}
	add := change(memberChange{op: opAdd, id: 4, peerURL: "http://d:4"})
	remove := func(id uint64) func(*state) { return change(memberChange{op: opRemove, id: id}) }
	old := func(s *state) { s.apply(command{kind: kindPublish, member: 3, instance: 3, clientURL: "http://x"}) }
	for _, tt := range []struct {
		name  string
		steps []func(*state)
		want  uint64
	}{
		{"nobody", nil, 0},
		{"two of three", []func(*state){says(1, 2), says(2, 2)}, 0},
		{"all", []func(*state){says(1, 2), says(2, 2), says(3, 2)}, 2},
		{"one is behind", []func(*state){says(1, 2), says(2, 1), says(3, 2)}, 1},
		{"it is upgraded", []func(*state){says(1, 2), says(2, 1), says(3, 2), says(2, 2)}, 2},
		{"it is removed", []func(*state){says(1, 2), says(2, 1), says(3, 2), remove(2)}, 2},
		{"one has not said it before", []func(*state){says(1, 2), says(2, 2), old}, 0},
		{"one has not started yet", []func(*state){add, says(1, 2), says(2, 2), says(3, 2)}, 0},
		{"one joins", []func(*state){says(1, 2), says(2, 2), says(3, 2), add}, 2},
		{"one is set back", []func(*state){says(1, 2), says(2, 2), says(3, 2), says(3, 1)}, 2},
		{"one is ahead", []func(*state){says(1, 2), says(2, 9), says(3, 2)}, 2},
		{"a stranger", []func(*state){says(8, 2), says(1, 2), says(2, 2)}, 0},
		{"another directory", []func(*state){says(1, 2), says(2, 2), says(3, 1), func(s *state) {
			s.apply(command{kind: kindAnnounce, member: 3, instance: 99, level: 2})
		}}, 1},
	} {
		s := newState(testkit.Peers())
		for _, step := range tt.steps {
			step(s)
		}
		if s.level != tt.want {
			t.Errorf("%s: level %d, want %d", tt.name, s.level, tt.want)
		}
		if r, err := readState(bytes.NewReader(snapshotBytes(t, s))); err != nil || r.level != s.level || !reflect.DeepEqual(r.membership, s.membership) {
			t.Errorf("%s: read back as %+v, %v", tt.name, r, err)
		}
	}
}

// Guarantee: a directory whose log has a command of a newer version is refused
// as it is, whether the command was committed or not.
func TestStorageNewerCommandIsRefused(t *testing.T) {
	for _, commit := range []uint64{2, 3} {
		dir := newDisk(t)
		o := openDisk(t, dir)
		entries := someEntries(2, 2, 3, 10)
		entries[1].Data = appendCommand(appendBatchHeader(nil, batchID{node: 1, boot: 1}), []byte{99})
		testkit.Must(t, o.append([]*raftpb.Message{storageAppend(2, 3, commit, entries...)}))
		crash := crashed(t, dir)
		before := diskSums(t, crash)
		if _, err := openStorage(zap.NewNop(), crash, anyIdentity); !errors.Is(err, durable.ErrNewer) ||
			!strings.Contains(err.Error(), "entry 3") || !strings.Contains(err.Error(), "upgrade this node") {
			t.Errorf("committed to %d: %v", commit, err)
		}
		wantUnchanged(t, crash, before)
	}
}

// Guarantee: a program that does not know the cluster's commands says so before
// it takes part, and one that learns it later stops.
func TestLevelOfTheFuture(t *testing.T) {
	s := newState(testkit.Peers())
	s.level = programLevel + 1
	_, err := readState(bytes.NewReader(snapshotBytes(t, s)))
	if !errors.Is(err, durable.ErrNewer) || !bytes.Contains([]byte(err.Error()), []byte("upgrade this node")) {
		t.Errorf("reading it: %v", err)
	}
	if err := checkJoinLevel(clusterInfo{Level: programLevel + 1}); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("joining: %v", err)
	}
	if err := checkJoinLevel(clusterInfo{Level: programLevel}); err != nil {
		t.Errorf("joining: %v", err)
	}
	kv := newTestStore()
	if err := kv.checkLevel(); err != nil {
		t.Error(err)
	}
	kv.state.level = programLevel + 1
	if err := kv.checkLevel(); err == nil {
		t.Error("it goes on")
	}
}
