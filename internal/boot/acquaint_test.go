package boot

import (
	"fmt"
	"net"
	"raftkv/internal/address"
	"raftkv/internal/contact"
	"raftkv/internal/membership"
	"raftkv/internal/peerport"
	"raftkv/internal/reconfig"
	"raftkv/internal/wait"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

func testURL(id uint64) string { return fmt.Sprintf("http://10.0.0.%d:2380", id) }

// notedTransport notes which peers it was told of.
type notedTransport struct {
	mu    sync.Mutex
	peers map[uint64]string
}

func (n *notedTransport) AddPeer(id types.ID, urls []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peers[uint64(id)] == "" {
		n.peers[uint64(id)] = urls[0]
	}
}

func (n *notedTransport) UpdatePeer(id types.ID, urls []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peers[uint64(id)] != "" {
		n.peers[uint64(id)] = urls[0]
	}
}

func (n *notedTransport) RemovePeer(id types.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.peers, uint64(id))
}

func learnedURL(id uint64) string { return fmt.Sprintf("http://10.1.%d.%d:2380", id>>8, id&0xff) }

// Who is learned of is bounded, is let go after a silence, and becomes the
// state's business when that knows of it.
func TestAcquaintancesLearned(t *testing.T) {
	peers := &notedTransport{peers: make(map[uint64]string)}
	m := membership.New([]address.Peer{{ID: 1, URL: testURL(1)}, {ID: 2, URL: testURL(2)}})
	m.Removed[3] = true
	a := NewAcquaintances(Config{Self: Self{Node: 1}})
	a.Settle(peers, m)
	for what, ok := range map[string]bool{
		"itself":    a.learn(1, learnedURL(1)),
		"a member":  a.learn(2, learnedURL(2)),
		"removed":   a.learn(3, learnedURL(3)),
		"ID 0":      a.learn(0, learnedURL(0)),
		"a bad URL": a.learn(5, "http://10.1.0.5"),
	} {
		if ok {
			t.Errorf("%s: learned", what)
		}
	}
	for i := range uint64(maxLearned) {
		if id := 100 + i; !a.learn(id, learnedURL(id)) || !a.Knows(id) || peers.peers[id] != learnedURL(id) {
			t.Fatalf("node %d was not learned", id)
		}
	}
	if a.learn(99, learnedURL(99)) || a.Knows(99) || peers.peers[99] != "" {
		t.Error("one more than the bound was learned")
	}

	// The state gets to know some of them, one at another URL, one that is gone.
	m = m.Clone()
	m.Members[100] = membership.Member{ID: 100, PeerURL: learnedURL(100)}
	m.Members[101] = membership.Member{ID: 101, PeerURL: learnedURL(201)}
	m.Removed[102] = true
	if gone := a.Settle(peers, m); !slices.Equal(gone, []uint64{102}) {
		t.Errorf("gone: %v", gone)
	}
	if !a.Knows(100) || !a.Knows(101) || a.Knows(102) || peers.peers[101] != learnedURL(201) {
		t.Errorf("peers %v", peers.peers)
	}
	if len(a.Learned) != maxLearned-3 {
		t.Errorf("%d are left", len(a.Learned))
	}

	now := time.Now()
	for _, l := range a.Learned {
		l.heard = now
	}
	a.Learned[103].heard = now.Add(-time.Second)
	if ids := a.silent(now.Add(learnedFor - time.Second - 1)); len(ids) != 0 {
		t.Errorf("let go of too early: %v", ids)
	}
	if ids := a.silent(now.Add(learnedFor - time.Second)); !slices.Equal(ids, []uint64{103}) || a.Knows(103) {
		t.Errorf("silent: %v", ids)
	}

	// The state gets to know one just when it is let go.
	a = NewAcquaintances(Config{Self: Self{Node: 1}})
	a.Settle(peers, m)
	a.learn(7, learnedURL(7))
	if ids := a.silent(time.Now().Add(learnedFor)); !slices.Equal(ids, []uint64{7}) {
		t.Errorf("silent: %v", ids)
	}
	m = m.Clone()
	m.Members[7] = membership.Member{ID: 7, PeerURL: learnedURL(7)}
	a.Settle(peers, m)
	a.part(7)
	if peers.peers[7] != learnedURL(7) {
		t.Error("a member was taken out of the transport")
	}
}

// What a stranger says makes this node ask at no other address than the
// stranger's, however many say what.
func TestAcquaintancesClaims(t *testing.T) {
	a := &Acquaintances{wake: make(chan struct{}, 1)}
	for _, c := range []struct{ urls, from, want string }{
		{"http://10.0.0.9:2380", "10.0.0.9:4711", "http://10.0.0.9:2380"},
		{"http://victim.example:80,http://10.0.0.9:2380", "10.0.0.9:4711", "http://10.0.0.9:80"},
		{"http://node9:2380", "[2001:db8::9]:4711", "http://[2001:db8::9]:2380"},
		{"http://node9:2380", "[fe80::9%eth0]:4711", ""},
		{"http://node9:0", "10.0.0.9:4711", ""},
		{"http://node9", "10.0.0.9:4711", ""},
		{"", "10.0.0.9:4711", ""},
		{"http://node9:2380", "@", ""},
	} {
		a.Claim(9, c.urls, c.from)
		got := ""
		for _, cl := range a.takeClaims() {
			got = cl.url
		}
		if got != c.want {
			t.Errorf("%q from %s: asked at %q, want %q", c.urls, c.from, got, c.want)
		}
		select {
		case <-a.wake:
		default:
			t.Errorf("%q from %s: the members are not asked", c.urls, c.from)
		}
	}
	for i := range maxClaims + 1 {
		a.Claim(9, "http://node9:2380", net.JoinHostPort(fmt.Sprintf("10.0.1.%d", i), "4711"))
		if want := min(i+1, maxClaims); len(a.claims) != want {
			t.Fatalf("%d claims after %d addresses", len(a.claims), i+1)
		}
	}
	a.Claim(10, "http://node9:2380", "10.0.1.64:4712")
	if len(a.claims) != maxClaims {
		t.Errorf("%d claims", len(a.claims))
	}
	if n := len(a.takeClaims()); n != maxClaimsAsked {
		t.Errorf("%d are asked at one time", n)
	}
	if n := len(a.takeClaims()); n != 0 {
		t.Errorf("%d are asked later", n)
	}
}

// A stranger's own word counts only for this cluster, gone on, with this node in
// it.
func TestAcquaintancesVouch(t *testing.T) {
	a := NewAcquaintances(Config{Self: Self{1, 111}, Applied: new(wait.Index)})
	m := membership.New([]address.Peer{{ID: 1, URL: testURL(1)}})
	m.Changes = 2
	a.Settle(&notedTransport{peers: make(map[uint64]string)}, m)
	good := func() reconfig.ClusterInfo {
		return reconfig.ClusterInfo{Changes: 3, Members: []reconfig.MemberInfo{{ID: 1, Instance: 111}, {ID: 9}}}
	}
	cases := map[string]struct {
		change func(*reconfig.ClusterInfo)
		ok     bool
	}{
		"good":               {func(*reconfig.ClusterInfo) {}, true},
		"no change since":    {func(i *reconfig.ClusterInfo) { i.Changes = 2 }, false},
		"not itself":         {func(i *reconfig.ClusterInfo) { i.Members = i.Members[:1] }, false},
		"not this node":      {func(i *reconfig.ClusterInfo) { i.Members = i.Members[1:] }, false},
		"another's instance": {func(i *reconfig.ClusterInfo) { i.Members[0].Instance = 112 }, false},
	}
	for name, c := range cases {
		info := good()
		c.change(&info)
		if a.vouches(info, 9) != c.ok {
			t.Errorf("%s: %v", name, !c.ok)
		}
	}
	if good := good(); a.vouches(good, 10) {
		t.Error("it vouches for another stranger")
	}
}

// Only a node that has heard of no leader for long asks strangers.
func TestAcquaintancesLonely(t *testing.T) {
	contacts := &contact.Contacts{}
	var role *contact.RaftStatus
	a := NewAcquaintances(Config{ElectionTimeout: time.Second, Contacts: contacts, Role: func() *contact.RaftStatus { return role }})
	long, short := time.Now().Add(-lonelyAfter*time.Second), time.Now().Add(-lonelyAfter*time.Second+500*time.Millisecond)
	leaderless, led := &contact.RaftStatus{}, &contact.RaftStatus{Leader: 2}
	for name, c := range map[string]struct {
		began time.Time
		heard *time.Time
		st    *contact.RaftStatus
		want  bool
	}{
		"never, for long":           {long, nil, leaderless, true},
		"never, since a short time": {short, nil, leaderless, false},
		"not for long":              {long, &long, leaderless, true},
		"a moment ago":              {long, &short, leaderless, false},
		"led":                       {long, &long, led, false},
		"the only voter":            {long, new(time.Time), leaderless, false},
		"not started":               {long, nil, nil, false},
	} {
		contacts.Leader, role = c.heard, c.st
		if got := a.lonely(c.began); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Without this one forged answer makes this node take over a term of no return.
func TestAcquaintancesTerm(t *testing.T) {
	a := NewAcquaintances(Config{})
	a.noteTerm(6)
	a.noteTerm(5)
	if got := a.HighestTerm(); got != 6 {
		t.Errorf("term %d, want 6", got)
	}
	a.noteTerm(1<<64 - 1)
	if got := a.HighestTerm(); got != peerport.MaxTerm {
		t.Errorf("a member's word makes it term %d", got)
	}
}
