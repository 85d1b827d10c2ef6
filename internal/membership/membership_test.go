package membership

import (
	"errors"
	"math"
	"raftkv/internal/address"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/testkit"
	"reflect"
	"slices"
	"testing"
)

// testMembership has the voters 1 and 2, the learner 3, and has lost 9.
func testMembership() Membership {
	m := New(testkit.Peers())
	mem := m.Members[3]
	mem.Learner = true
	m.Members[3] = mem
	m.Removed[9] = true
	return m
}

// withPinned is testMembership where request 7 added the learner 3, to stay one.
func withPinned() Membership {
	m := testMembership()
	m.Members[3] = newMember(Change{Op: OpAddLearner, ID: 3, PeerURL: m.Members[3].PeerURL, Request: 7})
	return m
}

// Guarantee: the ID for a new member is above all that were ever used, and the
// same again for the same request.
func TestFreeID(t *testing.T) {
	m := withPinned()
	if got := m.FreeID(8); got != 10 {
		t.Errorf("after 1, 2, 3 and the removed 9: %d", got)
	}
	if got := m.FreeID(7); got != 3 {
		t.Errorf("for the request that added 3: %d", got)
	}
	last := testMembership()
	last.Removed[address.MaxID] = true
	if got := last.FreeID(0); address.CheckID(got) != nil || last.Members[got].ID != 0 || last.Removed[got] {
		t.Errorf("with the last ID used, the next is %d", got)
	}
	if got := m.FreeID(0); got != 10 {
		t.Errorf("for no request: %d", got)
	}
}

// Guarantee: each membership change ends as section 4.1 says; asking again is
// done, and nothing that would stop the cluster gets through.
func TestCheckMemberChange(t *testing.T) {
	one := New(testkit.Peers()[:1])
	one.Members[3] = Member{ID: 3, PeerURL: "http://c:3", Learner: true}
	for _, tt := range []struct {
		name string
		m    Membership
		c    Change
		done bool
		err  error
	}{
		{"add", testMembership(), Change{Op: OpAdd, ID: 4, PeerURL: "http://d:4"}, false, nil},
		{"add again", testMembership(), Change{Op: OpAdd, ID: 2, PeerURL: "http://b:2"}, true, nil},
		{"add a learner again", testMembership(), Change{Op: OpAdd, ID: 3, PeerURL: "http://c:3"}, true, nil},
		{"add under another URL", testMembership(), Change{Op: OpAdd, ID: 2, PeerURL: "http://d:4"}, false, problem.ErrMemberExists},
		{"add under another's URL", testMembership(), Change{Op: OpAdd, ID: 4, PeerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"swap URLs", testMembership(), Change{Op: OpAdd, ID: 1, PeerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"add a removed ID", testMembership(), Change{Op: OpAdd, ID: 9, PeerURL: "http://d:4"}, false, problem.ErrMemberRemoved},
		{"add a removed ID under a used URL", testMembership(), Change{Op: OpAdd, ID: 9, PeerURL: "http://b:2"}, false, problem.ErrMemberRemoved},
		{"promote", testMembership(), Change{Op: OpPromote, ID: 3}, false, nil},
		{"promote a voter", testMembership(), Change{Op: OpPromote, ID: 2}, true, nil},
		{"promote nobody", testMembership(), Change{Op: OpPromote, ID: 4}, false, problem.ErrMemberUnknown},
		{"promote a removed ID", testMembership(), Change{Op: OpPromote, ID: 9}, false, problem.ErrMemberUnknown},
		{"remove", testMembership(), Change{Op: OpRemove, ID: 2}, false, nil},
		{"remove a learner", testMembership(), Change{Op: OpRemove, ID: 3}, false, nil},
		{"remove again", testMembership(), Change{Op: OpRemove, ID: 9}, true, nil},
		{"remove nobody", testMembership(), Change{Op: OpRemove, ID: 4}, false, problem.ErrMemberUnknown},
		{"remove the last voter", one, Change{Op: OpRemove, ID: 1}, false, problem.ErrLastVoter},
		{"remove the learner of a last voter", one, Change{Op: OpRemove, ID: 3}, false, nil},
		{"no operation", testMembership(), Change{Op: 0, ID: 2}, false, record.ErrUnknownCommand},
		{"a new operation", testMembership(), Change{Op: LastOp + 1, ID: 2}, false, record.ErrUnknownCommand},
		{"another leader", testMembership(), Change{Op: OpLead, ID: 2}, false, record.ErrUnknownCommand},
		{"add a voter", testMembership(), Change{Op: OpAddVoter, ID: 4, PeerURL: "http://d:4"}, false, nil},
		{"add a voter again", testMembership(), Change{Op: OpAddVoter, ID: 2, PeerURL: "http://b:2"}, true, nil},
		{"add a learner as a voter", testMembership(), Change{Op: OpAddVoter, ID: 3, PeerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"add to stay, what is to become a voter", testMembership(), Change{Op: OpAddLearner, ID: 3, PeerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"add a learner to stay again", withPinned(), Change{Op: OpAddLearner, ID: 3, PeerURL: "http://c:3"}, true, nil},
		{"add by the request that did", withPinned(), Change{Op: OpAddVoter, ID: 3, PeerURL: "http://c:3", Request: 7}, true, nil},
		{"add by another request", withPinned(), Change{Op: OpAddVoter, ID: 3, PeerURL: "http://c:3", Request: 8}, false, problem.ErrMemberExists},
		{"promote what is pinned", withPinned(), Change{Op: OpPromote, ID: 3}, true, nil},
		{"make a voter of what is pinned", withPinned(), Change{Op: OpMakeVoter, ID: 3}, false, nil},
		{"make a voter a voter", testMembership(), Change{Op: OpMakeVoter, ID: 2}, true, nil},
		{"make a voter a voter elsewhere", testMembership(), Change{Op: OpMakeVoter, ID: 2, PeerURL: "http://d:4"}, false, nil},
		{"make a learner", testMembership(), Change{Op: OpMakeLearner, ID: 2}, false, nil},
		{"make a learner stay", testMembership(), Change{Op: OpMakeLearner, ID: 3}, false, nil},
		{"make a learner stay again", withPinned(), Change{Op: OpMakeLearner, ID: 3}, true, nil},
		{"make a learner at another's URL", testMembership(), Change{Op: OpMakeLearner, ID: 3, PeerURL: "http://b:2"}, false, problem.ErrMemberExists},
		{"make a learner of the last voter", one, Change{Op: OpMakeLearner, ID: 1}, false, problem.ErrLastVoter},
		{"make a learner of nobody", testMembership(), Change{Op: OpMakeLearner, ID: 4}, false, problem.ErrMemberUnknown},
		{"move", testMembership(), Change{Op: OpMove, ID: 2, PeerURL: "http://d:4"}, false, nil},
		{"move again", testMembership(), Change{Op: OpMove, ID: 2, PeerURL: "http://b:2"}, true, nil},
		{"move to another's URL", testMembership(), Change{Op: OpMove, ID: 2, PeerURL: "http://c:3"}, false, problem.ErrMemberExists},
		{"move nowhere", testMembership(), Change{Op: OpMove, ID: 2}, false, problem.ErrBadPeerURL},
		{"move to another spelling", testMembership(), Change{Op: OpMove, ID: 2, PeerURL: "http://D:4"}, false, problem.ErrBadPeerURL},
		{"move a removed ID", testMembership(), Change{Op: OpMove, ID: 9, PeerURL: "http://d:4"}, false, problem.ErrMemberUnknown},
	} {
		before := tt.m.Clone()
		done, err := tt.m.Check(tt.c)
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
		"", "d:4", "http://d", "http://d:4/", "http://d:4/x", "http://:4", "http://d:0", "http://d:99999", "ftp://d:4", "https://d:4/", "https://d",
		"http://u@d:4", "http://d:4?", "http://d:4#", "http://d:4 ", "unix://d:4", "http://d:4,http://e:5", "http://\x00:4",
	} {
		if done, err := testMembership().Check(Change{Op: OpAdd, ID: 4, PeerURL: url}); done || !errors.Is(err, problem.ErrBadPeerURL) {
			t.Errorf("%q: %v, %v", url, done, err)
		}
	}
}

// Guarantee: at a host and port there is one member, by whatever scheme; and a member may
// change its own scheme.
func TestCheckKnowsOnePlace(t *testing.T) {
	m := New([]address.Peer{{ID: 1, URL: "http://a:1"}, {ID: 2, URL: "https://b:2"}})
	for _, url := range []string{"http://a:1", "https://a:1", "http://b:2", "https://b:2"} {
		if _, err := m.Check(Change{Op: OpAdd, ID: 4, PeerURL: url}); !errors.Is(err, problem.ErrMemberExists) {
			t.Errorf("%s for another member: %v", url, err)
		}
	}
	for id, url := range map[uint64]string{1: "https://a:1", 2: "http://b:2"} {
		if done, err := m.Check(Change{Op: OpMove, ID: id, PeerURL: url}); done || err != nil {
			t.Errorf("%s for member %d: %v, %v", url, id, done, err)
		}
	}
}

// Guarantee: an ID that raft cannot have does not get into the membership: raft
// would not have it, so every node would stop over the difference, at every start.
func TestCheckRefusesBadIDs(t *testing.T) {
	for _, id := range []uint64{0, math.MaxUint64 - 1, math.MaxUint64} {
		if done, err := testMembership().Check(Change{Op: OpAdd, ID: id, PeerURL: "http://d:4"}); done || err == nil {
			t.Errorf("ID %d can be added", id)
		}
	}
}

// Guarantee: a change does what it says and nothing else.
func TestApplyMemberChange(t *testing.T) {
	m := testMembership()
	m.Apply(Change{Op: OpAdd, ID: 4, PeerURL: "http://d:4"})
	if got := m.Members[4]; got != (Member{ID: 4, PeerURL: "http://d:4", Learner: true}) {
		t.Fatalf("added %+v", got)
	}
	m.Members[4] = Member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121", Learner: true}
	m.Apply(Change{Op: OpPromote, ID: 4})
	if got := m.Members[4]; got != (Member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121"}) {
		t.Fatalf("promoted %+v", got)
	}
	for _, tt := range []struct {
		c    Change
		want Member
	}{
		{Change{Op: OpMove, ID: 4, PeerURL: "http://e:5", Request: 9}, Member{ID: 4, PeerURL: "http://e:5", ClientURL: "http://d:9121"}},
		{Change{Op: OpMakeLearner, ID: 4}, Member{ID: 4, PeerURL: "http://e:5", ClientURL: "http://d:9121", Learner: true, Pinned: true}},
		{Change{Op: OpMakeVoter, ID: 4, PeerURL: "http://d:4"}, Member{ID: 4, PeerURL: "http://d:4", ClientURL: "http://d:9121"}},
		{Change{Op: OpAddVoter, ID: 5, PeerURL: "http://e:5", Request: 9}, Member{ID: 5, PeerURL: "http://e:5", Added: 9}},
		{Change{Op: OpAddLearner, ID: 6, PeerURL: "http://f:6"}, Member{ID: 6, PeerURL: "http://f:6", Learner: true, Pinned: true}},
	} {
		m.Apply(tt.c)
		if got := m.Members[tt.c.ID]; got != tt.want {
			t.Fatalf("%v: %+v, want %+v", tt.c, got, tt.want)
		}
	}
	delete(m.Members, 5)
	m.Changes = 2
	m.Apply(Change{Op: OpRemove, ID: 1})
	if _, ok := m.Members[1]; ok || !m.Removed[1] || m.Changes != 3 || !slices.Equal(m.Voters(), []uint64{2, 4}) {
		t.Fatalf("after the removal %+v", m)
	}
}

// Guarantee: a copy of the membership that a handler holds does not change.
func TestMembershipClone(t *testing.T) {
	m := testMembership()
	c := m.Clone()
	m.Apply(Change{Op: OpRemove, ID: 2})
	if !reflect.DeepEqual(c, testMembership()) {
		t.Fatalf("the copy became %+v", c)
	}
}

// Guarantee: a change comes out of the log as it was proposed; one of a newer
// version stops the node, and rubbish is told apart from it.
func TestMemberChangeEncoding(t *testing.T) {
	for _, c := range []Change{
		{Op: OpAdd, ID: 4, PeerURL: "http://d:4", Request: 1},
		{Op: OpPromote, ID: math.MaxUint64, Request: math.MaxUint64},
		{Op: OpRemove},
		{Op: OpMakeLearner, ID: 4, PeerURL: "http://d:4"},
		{Op: LastOp, ID: 4, PeerURL: "http://d:4"},
	} {
		b := c.encode()
		if got, err := DecodeChange(b); err != nil || got != c {
			t.Errorf("%+v came back as %+v, %v", c, got, err)
		}
		if cc := c.ConfChange(); cc.GetNodeId() != c.ID || !slices.Equal(cc.GetContext(), b) {
			t.Errorf("%+v is %v to raft", c, cc)
		}
	}
	for _, tt := range []struct {
		data []byte
		want error
	}{
		{nil, record.ErrMalformed},
		{[]byte{byte(OpAdd)}, record.ErrMalformed},
		{[]byte{byte(OpAdd), 1}, record.ErrMalformed},
		{[]byte{byte(OpAdd), 0x80}, record.ErrMalformed},
		{[]byte{0, 1, 1}, record.ErrUnknownCommand},
		{[]byte{byte(LastOp) + 1, 1, 1}, record.ErrUnknownCommand},
	} {
		if _, err := DecodeChange(tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%x: %v, want %v", tt.data, err, tt.want)
		}
	}
}

// Guarantee: decoding a membership change never panics.
func FuzzDecodeMemberChange(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(Change{Op: OpAdd, ID: 4, PeerURL: "http://d:4", Request: 1}.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeChange(data)
		if err != nil {
			if !errors.Is(err, record.ErrMalformed) && !errors.Is(err, record.ErrUnknownCommand) {
				t.Fatal(err)
			}
			return
		}
		if again, err := DecodeChange(c.encode()); err != nil || again != c {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
	})
}
