package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"raftkv/internal/address"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/testkit"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// testMembership has the voters 1 and 2, the learner 3, and has lost 9.
func testMembership() membership {
	m := newMembership(testkit.Peers())
	mem := m.members[3]
	mem.Learner = true
	m.members[3] = mem
	m.removed[9] = true
	return m
}

// withPinned is testMembership where request 7 added the learner 3, to stay one.
func withPinned() membership {
	m := testMembership()
	m.members[3] = newMember(memberChange{op: opAddLearner, id: 3, peerURL: m.members[3].PeerURL, request: 7})
	return m
}

// Guarantee: the ID for a new member is above all that were ever used, and the
// same again for the same request.
func TestFreeID(t *testing.T) {
	m := withPinned()
	if got := m.freeID(8); got != 10 {
		t.Errorf("after 1, 2, 3 and the removed 9: %d", got)
	}
	if got := m.freeID(7); got != 3 {
		t.Errorf("for the request that added 3: %d", got)
	}
	last := testMembership()
	last.removed[address.MaxID] = true
	if got := last.freeID(0); address.CheckID(got) != nil || last.members[got].ID != 0 || last.removed[got] {
		t.Errorf("with the last ID used, the next is %d", got)
	}
	if got := m.freeID(0); got != 10 {
		t.Errorf("for no request: %d", got)
	}
}

// Guarantee: each membership change ends as section 4.1 says; asking again is
// done, and nothing that would stop the cluster gets through.
func TestCheckMemberChange(t *testing.T) {
	one := newMembership(testkit.Peers()[:1])
	one.members[3] = member{ID: 3, PeerURL: "http://c:3", Learner: true}
	for _, tt := range []struct {
		name string
		m    membership
		c    memberChange
		done bool
		err  error
	}{
		{"add", testMembership(), memberChange{op: opAdd, id: 4, peerURL: "http://d:4"}, false, nil},
		{"add again", testMembership(), memberChange{op: opAdd, id: 2, peerURL: "http://b:2"}, true, nil},
		{"add a learner again", testMembership(), memberChange{op: opAdd, id: 3, peerURL: "http://c:3"}, true, nil},
		{"add under another URL", testMembership(), memberChange{op: opAdd, id: 2, peerURL: "http://d:4"}, false, problem.ErrMemberExists},
		{"add under another's URL", testMembership(), memberChange{op: opAdd, id: 4, peerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"swap URLs", testMembership(), memberChange{op: opAdd, id: 1, peerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"add a removed ID", testMembership(), memberChange{op: opAdd, id: 9, peerURL: "http://d:4"}, false, problem.ErrMemberRemoved},
		{"add a removed ID under a used URL", testMembership(), memberChange{op: opAdd, id: 9, peerURL: "http://b:2"}, false, problem.ErrMemberRemoved},
		{"promote", testMembership(), memberChange{op: opPromote, id: 3}, false, nil},
		{"promote a voter", testMembership(), memberChange{op: opPromote, id: 2}, true, nil},
		{"promote nobody", testMembership(), memberChange{op: opPromote, id: 4}, false, problem.ErrMemberUnknown},
		{"promote a removed ID", testMembership(), memberChange{op: opPromote, id: 9}, false, problem.ErrMemberUnknown},
		{"remove", testMembership(), memberChange{op: opRemove, id: 2}, false, nil},
		{"remove a learner", testMembership(), memberChange{op: opRemove, id: 3}, false, nil},
		{"remove again", testMembership(), memberChange{op: opRemove, id: 9}, true, nil},
		{"remove nobody", testMembership(), memberChange{op: opRemove, id: 4}, false, problem.ErrMemberUnknown},
		{"remove the last voter", one, memberChange{op: opRemove, id: 1}, false, problem.ErrLastVoter},
		{"remove the learner of a last voter", one, memberChange{op: opRemove, id: 3}, false, nil},
		{"no operation", testMembership(), memberChange{op: 0, id: 2}, false, record.ErrUnknownCommand},
		{"a new operation", testMembership(), memberChange{op: lastOp + 1, id: 2}, false, record.ErrUnknownCommand},
		{"another leader", testMembership(), memberChange{op: opLead, id: 2}, false, record.ErrUnknownCommand},
		{"add a voter", testMembership(), memberChange{op: opAddVoter, id: 4, peerURL: "http://d:4"}, false, nil},
		{"add a voter again", testMembership(), memberChange{op: opAddVoter, id: 2, peerURL: "http://b:2"}, true, nil},
		{"add a learner as a voter", testMembership(), memberChange{op: opAddVoter, id: 3, peerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"add to stay, what is to become a voter", testMembership(), memberChange{op: opAddLearner, id: 3, peerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"add a learner to stay again", withPinned(), memberChange{op: opAddLearner, id: 3, peerURL: "http://c:3"}, true, nil},
		{"add by the request that did", withPinned(), memberChange{op: opAddVoter, id: 3, peerURL: "http://c:3", request: 7}, true, nil},
		{"add by another request", withPinned(), memberChange{op: opAddVoter, id: 3, peerURL: "http://c:3", request: 8}, false, problem.ErrMemberExists},
		{"promote what is pinned", withPinned(), memberChange{op: opPromote, id: 3}, true, nil},
		{"make a voter of what is pinned", withPinned(), memberChange{op: opMakeVoter, id: 3}, false, nil},
		{"make a voter a voter", testMembership(), memberChange{op: opMakeVoter, id: 2}, true, nil},
		{"make a voter a voter elsewhere", testMembership(), memberChange{op: opMakeVoter, id: 2, peerURL: "http://d:4"}, false, nil},
		{"make a learner", testMembership(), memberChange{op: opMakeLearner, id: 2}, false, nil},
		{"make a learner stay", testMembership(), memberChange{op: opMakeLearner, id: 3}, false, nil},
		{"make a learner stay again", withPinned(), memberChange{op: opMakeLearner, id: 3}, true, nil},
		{"make a learner at another's URL", testMembership(), memberChange{op: opMakeLearner, id: 3, peerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"make a learner of the last voter", one, memberChange{op: opMakeLearner, id: 1}, false, problem.ErrLastVoter},
		{"make a learner of nobody", testMembership(), memberChange{op: opMakeLearner, id: 4}, false, problem.ErrMemberUnknown},
		{"move", testMembership(), memberChange{op: opMove, id: 2, peerURL: "http://d:4"}, false, nil},
		{"move again", testMembership(), memberChange{op: opMove, id: 2, peerURL: "http://b:2"}, true, nil},
		{"move to another's URL", testMembership(), memberChange{op: opMove, id: 2, peerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"move nowhere", testMembership(), memberChange{op: opMove, id: 2}, false, problem.ErrBadPeerURL},
		{"move to another spelling", testMembership(), memberChange{op: opMove, id: 2, peerURL: "http://D:4"}, false, problem.ErrBadPeerURL},
		{"move a removed ID", testMembership(), memberChange{op: opMove, id: 9, peerURL: "http://d:4"}, false, problem.ErrMemberUnknown},
	} {
		before := tt.m.clone()
		done, err := tt.m.check(tt.c)
		if done != tt.done || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("%s: %v, %v; want %v, %v", tt.name, done, err, tt.done, tt.err)
		}
		if !reflect.DeepEqual(tt.m, before) {
			t.Errorf("%s: asking changed the membership", tt.name)
		}
	}
}

// Guarantee: a URL that rafthttp would panic on does not get into the
// membership, whoever put it into the log.
func TestCheckRefusesBadURLs(t *testing.T) {
	for _, url := range []string{
		"", "d:4", "http://d", "http://d:4/", "http://d:4/x", "http://:4", "http://d:0", "http://d:99999", "ftp://d:4", "https://d:4",
		"http://u@d:4", "http://d:4?", "http://d:4#", "http://d:4 ", "unix://d:4", "http://d:4,http://e:5", "http://\x00:4",
	} {
		if done, err := testMembership().check(memberChange{op: opAdd, id: 4, peerURL: url}); done || !errors.Is(err, problem.ErrBadPeerURL) {
			t.Errorf("%q: %v, %v", url, done, err)
		}
	}
}

// Guarantee: an ID that raft cannot have does not get into the membership: raft
// would not have it, so every node would stop over the difference, at every start.
func TestCheckRefusesBadIDs(t *testing.T) {
	for _, id := range []uint64{0, math.MaxUint64 - 1, math.MaxUint64} {
		if done, err := testMembership().check(memberChange{op: opAdd, id: id, peerURL: "http://d:4"}); done || err == nil {
			t.Errorf("ID %d can be added", id)
		}
	}
}

// Guarantee: a change does what it says and nothing else.
func TestApplyMemberChange(t *testing.T) {
	m := testMembership()
	m.apply(memberChange{op: opAdd, id: 4, peerURL: "http://d:4"})
	if got := m.members[4]; got != (member{ID: 4, PeerURL: "http://d:4", Learner: true}) {
		t.Fatalf("added %+v", got)
	}
	m.members[4] = member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121", Learner: true}
	m.apply(memberChange{op: opPromote, id: 4})
	if got := m.members[4]; got != (member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121"}) {
		t.Fatalf("promoted %+v", got)
	}
	for _, tt := range []struct {
		c    memberChange
		want member
	}{
		{memberChange{op: opMove, id: 4, peerURL: "http://e:5", request: 9}, member{ID: 4, PeerURL: "http://e:5", ClientURL: "http://d:9121"}},
		{memberChange{op: opMakeLearner, id: 4}, member{ID: 4, PeerURL: "http://e:5", ClientURL: "http://d:9121", Learner: true, Pinned: true}},
		{memberChange{op: opMakeVoter, id: 4, peerURL: "http://d:4"}, member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121"}},
		{memberChange{op: opAddVoter, id: 5, peerURL: "http://e:5", request: 9}, member{ID: 5, PeerURL: "http://e:5", Added: 9}},
		{memberChange{op: opAddLearner, id: 6, peerURL: "http://f:6"}, member{ID: 6, PeerURL: "http://f:6", Learner: true, Pinned: true}},
	} {
		m.apply(tt.c)
		if got := m.members[tt.c.id]; got != tt.want {
			t.Fatalf("%v: %+v, want %+v", tt.c, got, tt.want)
		}
	}
	delete(m.members, 5)
	m.changes = 2
	m.apply(memberChange{op: opRemove, id: 1})
	if _, ok := m.members[1]; ok || !m.removed[1] || m.changes != 3 || !slices.Equal(m.voters(), []uint64{2, 4}) {
		t.Fatalf("after the removal %+v", m)
	}
}

// Guarantee: the members in the replicated state are raft's, after any changes
// in any order; there is always a voter; an ID and a URL are used once.
func TestMembershipAgreesWithRaft(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		m := newMembership(testkit.Peers()[:1+rnd.IntN(3)])
		mem := raft.NewMemoryStorage()
		err := mem.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(uint64(1)), Term: new(uint64(1)), ConfState: m.confState(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		rn, err := raft.NewRawNode(&raft.Config{
			ID: 1000, ElectionTick: 10, HeartbeatTick: 1, Storage: mem, MaxSizePerMsg: 1, MaxInflightMsgs: 1,
			Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &state{membership: m, windows: make(map[uint64]window)}
		removed := make(map[uint64]bool)
		for range 200 {
			c := memberChange{op: changeOp(1 + rnd.IntN(int(lastOp))), id: 1 + uint64(rnd.IntN(12)), request: rnd.Uint64N(50)}
			if c.op.adds() || rnd.IntN(2) == 0 {
				c.peerURL = fmt.Sprintf("http://h:%d", 1+rnd.IntN(12))
			}
			cc := c.confChange()
			changed, _ := s.applyMemberChange(c)
			if !changed {
				cc.NodeId = new(raft.None)
			} else if c.op == opRemove {
				removed[c.id] = true
			}
			if got, want := rn.ApplyConfChange(cc), s.membership.confState(); !proto.Equal(got, want) {
				t.Fatalf("seed %d: after %+v raft has %v, the state %v", seed, c, got, want)
			}
			urls := make(map[string]bool)
			for id, mem := range s.membership.members {
				if removed[id] || urls[mem.PeerURL] || mem.ID != id {
					t.Fatalf("seed %d: after %+v the members are %+v", seed, c, s.membership)
				}
				urls[mem.PeerURL] = true
			}
			if len(s.membership.voters()) == 0 || !reflect.DeepEqual(s.membership.removed, removed) {
				t.Fatalf("seed %d: after %+v the members are %+v", seed, c, s.membership)
			}
		}
	}
}

// Guarantee: a copy of the membership that a handler holds does not change.
func TestMembershipClone(t *testing.T) {
	m := testMembership()
	c := m.clone()
	m.apply(memberChange{op: opRemove, id: 2})
	if !reflect.DeepEqual(c, testMembership()) {
		t.Fatalf("the copy became %+v", c)
	}
}

// Guarantee: a change comes out of the log as it was proposed; one of a newer
// version stops the node, and rubbish is told apart from it.
func TestMemberChangeEncoding(t *testing.T) {
	for _, c := range []memberChange{
		{op: opAdd, id: 4, peerURL: "http://d:4", request: 1},
		{op: opPromote, id: math.MaxUint64, request: math.MaxUint64},
		{op: opRemove},
		{op: opMakeLearner, id: 4, peerURL: "http://d:4"},
		{op: lastOp, id: 4, peerURL: "http://d:4"},
	} {
		b := c.encode()
		if got, err := decodeMemberChange(b); err != nil || got != c {
			t.Errorf("%+v came back as %+v, %v", c, got, err)
		}
		if cc := c.confChange(); cc.GetNodeId() != c.id || !slices.Equal(cc.GetContext(), b) {
			t.Errorf("%+v is %v to raft", c, cc)
		}
	}
	for _, tt := range []struct {
		data []byte
		want error
	}{
		{nil, record.ErrMalformed},
		{[]byte{byte(opAdd)}, record.ErrMalformed},
		{[]byte{byte(opAdd), 1}, record.ErrMalformed},
		{[]byte{byte(opAdd), 0x80}, record.ErrMalformed},
		{[]byte{0, 1, 1}, record.ErrUnknownCommand},
		{[]byte{byte(lastOp) + 1, 1, 1}, record.ErrUnknownCommand},
	} {
		if _, err := decodeMemberChange(tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%x: %v, want %v", tt.data, err, tt.want)
		}
	}
}

// Guarantee: decoding a membership change never panics.
func FuzzDecodeMemberChange(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(memberChange{op: opAdd, id: 4, peerURL: "http://d:4", request: 1}.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeMemberChange(data)
		if err != nil {
			if !errors.Is(err, record.ErrMalformed) && !errors.Is(err, record.ErrUnknownCommand) {
				t.Fatal(err)
			}
			return
		}
		if again, err := decodeMemberChange(c.encode()); err != nil || again != c {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
