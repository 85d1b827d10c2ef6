package state

import (
	"bytes"
	"errors"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"strings"
	"testing"
)

// Guarantee: what a node says of its doors is kept with it, of whoever has published the
// ID's instance, up to the bound and not past it; and goes with the member.
func TestDoorsArePublished(t *testing.T) {
	if membership.MaxDoors != 256 {
		t.Fatal("nodes of two versions would come to different states")
	}
	s := New(testkit.Peers())
	say := func(member, instance uint64, doors string) string {
		c, err := DecodeCommand(EncodeDoors(member, instance, doors))
		testkit.Must(t, err)
		s.Apply(c)
		return s.Membership.Members[member].Doors
	}
	if got := say(1, 0, "\x01"); got != "" {
		t.Errorf("a node without an instance says %x", got)
	}
	s.Apply(Command{Kind: KindAnnounce, Member: 1, Instance: 5, level: DoorsLevel, clientURL: "http://x"})
	if got := say(1, 6, "\x01"); got != "" {
		t.Errorf("another instance says %x", got)
	}
	if got := say(1, 5, "\x01\x02"); got != "\x01\x02" {
		t.Errorf("it says %x", got)
	}
	if got := say(1, 5, strings.Repeat("d", membership.MaxDoors+1)); got != "\x01\x02" {
		t.Errorf("more than the bound: %x", got)
	}
	if got := say(1, 5, strings.Repeat("d", membership.MaxDoors)); len(got) != membership.MaxDoors {
		t.Errorf("up to the bound: %x", got)
	}
	s.Apply(Command{Kind: KindAnnounce, Member: 1, Instance: 5, level: DoorsLevel, clientURL: "http://y"})
	if m := s.Membership.Members[1]; len(m.Doors) != membership.MaxDoors || m.ClientURL != "http://y" {
		t.Errorf("after an announcement: %+v", m)
	}
	if say(9, 5, "\x01"); len(s.Membership.Members) != len(testkit.Peers()) {
		t.Error("who is no member became one")
	}
	if changed, err := s.ApplyChange(membership.Change{Op: membership.OpRemove, ID: 1}); !changed || s.Membership.Members[1] != (membership.Member{}) {
		t.Error(err)
	}
}

// Guarantee: below the level nothing of it is in a state file or in the hash: a state in
// which nobody has published doors is what it was for programs that do not know any.
func TestDoorsLeaveNoTrace(t *testing.T) {
	plain, cleared := fullState([]int{1, 2, 3}), fullState([]int{1, 2, 3})
	plain.Membership.Publish(1, 5, "http://x", OnceLevel)
	cleared.Membership.Publish(1, 5, "http://x", OnceLevel)
	cleared.Membership.PublishDoors(1, 5, "\x01")
	if cleared.hash() == plain.hash() || bytes.Equal(snapshotBytes(t, cleared), snapshotBytes(t, plain)) {
		t.Error("doors leave no trace at all")
	}
	cleared.Membership.PublishDoors(1, 5, "")
	if cleared.hash() != plain.hash() || !bytes.Equal(snapshotBytes(t, cleared), snapshotBytes(t, plain)) {
		t.Error("no doors leave a trace")
	}
}

// Guarantee: a peer URL with https is taken from the level on, and refused below it, as by
// programs that do not know it; alike for each change that has a URL, and for no other.
func TestHTTPSNeedsTheLevel(t *testing.T) {
	for _, level := range []uint64{0, OnceLevel, DoorsLevel} {
		for name, c := range map[string]membership.Change{
			"move":         {Op: membership.OpMove, ID: 3, PeerURL: "https://c:9"},
			"make voter":   {Op: membership.OpMakeVoter, ID: 3, PeerURL: "https://c:9"},
			"make learner": {Op: membership.OpMakeLearner, ID: 3, PeerURL: "https://c:9"},
			"add":          {Op: membership.OpAdd, ID: 4, PeerURL: "https://d:9"},
			"add voter":    {Op: membership.OpAddVoter, ID: 4, PeerURL: "https://d:9"},
			"add learner":  {Op: membership.OpAddLearner, ID: 4, PeerURL: "https://d:9"},
			"first add":    {Op: 1, ID: 4, PeerURL: "https://d:9"},
			"promote":      {Op: membership.OpPromote, ID: 2, PeerURL: "https://c:9"},
		} {
			s := New(testkit.Peers())
			mem := s.Membership.Members[2]
			mem.Learner = true
			s.Membership.Members[2], s.Level = mem, level
			changed, err := s.ApplyChange(c)
			if want := level >= DoorsLevel; changed != want || errors.Is(err, problem.ErrBadPeerURL) == want {
				t.Errorf("%s at level %d: %v, %v", name, level, changed, err)
			}
		}
		s := New(testkit.Peers())
		s.Level = level
		if changed, err := s.ApplyChange(membership.Change{Op: membership.OpRemove, ID: 3, PeerURL: "https://c:9"}); !changed {
			t.Errorf("a removal, whose URL says nothing, at level %d: %v", level, err)
		}
	}
}
