package doors

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

var (
	plain  = config.Doors{ClientTLS: config.Required, PeerTLS: config.Required, Auth: config.AuthOn}
	rights = config.Doors{ClientTLS: config.Required, PeerTLS: config.Required, Auth: config.AuthOn, AuthFile: "rights.yaml"}
	off    = config.Doors{ClientTLS: config.Required, PeerTLS: config.Required, Auth: config.AuthOff}
)

// Guarantee: what nodes publish is read for ever, and a newer program may say more.
func TestEncodingIsForever(t *testing.T) {
	for want, d := range map[string]Doors{
		"":                             {},
		"01":                           {Clients: Required},
		"0002":                         {Peers: Optional},
		"000001":                       {Dials: true},
		"02010102":                     {Clients: Optional, Peers: Required, Dials: true, Rights: Off},
		"00000003":                     {Rights: Lacking},
		"0000000105":                   {Rights: HasFile, File: 5},
		"0101010105":                   {Clients: Required, Peers: Required, Dials: true, Rights: HasFile, File: 5},
		"01010101ffffffffffffffffff01": {Clients: Required, Peers: Required, Dials: true, Rights: HasFile, File: math.MaxUint64},
	} {
		if got := hex.EncodeToString([]byte(d.Encode())); got != want {
			t.Errorf("%+v is written as %s, want %s", d, got, want)
		}
		if got, ok := decode(d.Encode()); !ok || got != d {
			t.Errorf("%+v is read as %+v, %v", d, got, ok)
		}
		if len(d.Encode()) > membership.MaxDoors {
			t.Errorf("%+v is longer than the state takes", d)
		}
	}
	if d, ok := decode("\x01\x02\x01\x01\x05\x07more"); !ok || d != (Doors{Required, Optional, true, HasFile, 5}) {
		t.Errorf("a newer program's are read as %+v, %v", d, ok)
	}
	if d, ok := decode("\x09\x09\x09\x09"); !ok || !strings.Contains(d.Clients.String()+d.Rights.String(), "newer") {
		t.Errorf("a newer program's are read as %+v, %v", d, ok)
	}
	if _, ok := decode("\x01\x80"); ok {
		t.Error("what is cut short is read")
	}
	if HashOf([32]byte{1, 2, 0, 0, 0, 0, 0, 0, 9}) != 0x201 {
		t.Error("a file has another hash")
	}
}

// Guarantee: flags become the doors that they ask for.
func TestDoorsOfFlags(t *testing.T) {
	all := rights
	all.CertFile, all.ClientTLS, all.PeerCertFile, all.PeerTLS = "c", config.Optional, "p", config.Required
	for _, tt := range []struct {
		flags config.Doors
		want  Doors
	}{
		{plain, Doors{}},
		{rights, Doors{Rights: HasFile, File: 7}},
		{off, Doors{Rights: Off}},
		{all, Doors{Clients: Optional, Peers: Required, Dials: true, Rights: HasFile, File: 7}},
	} {
		if got := Of(&tt.flags, File{Hash: 7}); got != tt.want {
			t.Errorf("%+v are %+v, want %+v", tt.flags, got, tt.want)
		}
	}
	if got, want := Of(&rights, File{Hash: 7, Everybody: true}), (Doors{Rights: Everybody, File: 7}); got != want {
		t.Errorf("with a file that gives everybody all they are %+v, want %+v", got, want)
	}
}

// Guarantee: rights are switched on without a moment in which a node serves nobody: first each
// node gets a file that gives everybody all, then the file changes, in any order.
func TestRightsAreSwitchedOn(t *testing.T) {
	c := newCluster(t)
	everybody := File{Hash: 1, Everybody: true}
	for id := uint64(1); id <= 3; id++ {
		c.start(id, rights).File = func() File { return everybody }
		c.look(0)
		c.serves("the file is on its way", 1, 2, 3)
	}
	for id := uint64(1); id <= 3; id++ {
		c.keep[id].File = func() File { return File{Hash: 2} }
		c.look(0)
		c.serves("the rights are on their way", 1, 2, 3)
	}
	c.start(2, plain)
	c.serves("one has lost its file", 1, 3)
}

// Guarantee: what a newer program goes by closes those that have no file, since nobody here
// knows what it means.
func TestNewerRightsClose(t *testing.T) {
	for _, tt := range []struct {
		goesBy Rights
		closes bool
	}{{NoRights, false}, {HasFile, true}, {Off, false}, {Lacking, true}, {Everybody, false}, {Everybody + 1, true}} {
		c := newCluster(t)
		c.st.Membership.PublishDoors(1, 101, Doors{Rights: tt.goesBy}.Encode())
		c.note()
		if got := c.keep[2].MayServe() != nil; got != tt.closes {
			t.Errorf("a member that goes by %v closes others: %v", tt.goesBy, got)
		}
	}
}

// cluster is a state of three members, and a keeper for each.
type cluster struct {
	*testing.T
	st   *state.State
	keep map[uint64]*Keeper
	said int // how often something was published
	fail error
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{T: t, st: state.New(testkit.Peers()), keep: make(map[uint64]*Keeper)}
	c.st.Level = state.DoorsLevel
	for id := range c.st.Membership.Members {
		c.st.Membership.Publish(id, 100+id, "http://x", state.DoorsLevel)
		c.start(id, plain)
	}
	return c
}

// start starts a member with flags, as if anew.
func (c *cluster) start(id uint64, flags config.Doors) *Keeper {
	k := New(zap.NewNop(), id, 100+id, flags)
	k.Members = func() membership.Membership { return c.st.Membership.Clone() }
	k.Level = func() uint64 { return c.st.Level }
	k.Propose = func(_ context.Context, cmd []byte) state.Result {
		if c.fail != nil {
			return state.Result{Err: c.fail}
		}
		command, err := state.DecodeCommand(cmd)
		if err != nil {
			c.Errorf("proposed %x: %v", cmd, err)
		}
		c.said++
		res := c.st.Apply(command)
		c.note()
		return res
	}
	k.Note(&c.st.Membership)
	c.keep[id] = k
	return k
}

func (c *cluster) note() {
	for _, k := range c.keep {
		k.Note(&c.st.Membership)
	}
}

// look has all members look, some time later.
func (c *cluster) look(later time.Duration) {
	now := time.Unix(0, 0).Add(later)
	for id := uint64(1); id <= 3; id++ {
		c.keep[id].look(c.Context(), now)
	}
}

// serves checks which members serve clients.
func (c *cluster) serves(when string, want ...uint64) {
	c.Helper()
	var got []uint64
	for id := uint64(1); id <= 3; id++ {
		err := c.keep[id].MayServe()
		if err == nil {
			got = append(got, id)
		} else if !errors.Is(err, problem.ErrNotReady) || !strings.Contains(err.Error(), "--auth-file") || !strings.Contains(err.Error(), "--auth=off") {
			c.Errorf("%s: member %d says: %v", when, id, err)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.Errorf("%s: %v serve, want %v", when, got, want)
	}
}

// Guarantee: nothing is published below the level, nor by a plain cluster; what has changed
// is, once, and tried again until it is.
func TestPublishes(t *testing.T) {
	c := newCluster(t)
	if c.look(0); c.said != 0 {
		t.Errorf("a plain cluster said %d things", c.said)
	}
	c.st.Level = state.DoorsLevel - 1
	k := c.start(1, rights)
	file := uint64(5)
	k.File = func() File { return File{Hash: file} }
	if c.look(0); c.said != 0 || c.st.Membership.Members[1].Doors != "" {
		t.Error("something is published below the level")
	}
	c.st.Level, c.fail = state.DoorsLevel, problem.ErrNoLeader
	c.look(0)
	c.fail = nil
	c.look(0)
	c.look(0)
	if d, _ := published(c.st.Membership.Members[1]); c.said != 3 || d != (Doors{Rights: HasFile, File: 5}) { // and that two lack it
		t.Errorf("%d things are said, of member 1 %+v", c.said, d)
	}
	file = 6
	c.look(0)
	if d, _ := published(c.st.Membership.Members[1]); c.said != 4 || d.File != 6 {
		t.Errorf("after a reload %d things are said, of member 1 %+v", c.said, d)
	}
	c.start(1, off)
	c.look(0)
	if d, _ := published(c.st.Membership.Members[1]); d != (Doors{Rights: Off}) {
		t.Errorf("without rights %+v", d)
	}
	other := New(zap.NewNop(), 1, 999, rights) // an old copy of the directory
	other.Members, other.Level = k.Members, k.Level
	other.look(t.Context(), time.Now()) // Propose is nil: it would panic
}

// Guarantee: a node without an auth file in a cluster that has rights serves nobody, in
// whatever order nodes are restarted; not even if all of them lose the file at once, and
// until somebody says on each node that it is meant.
func TestFailsClosed(t *testing.T) {
	c := newCluster(t)
	c.serves("a plain cluster", 1, 2, 3)
	c.start(1, rights)
	c.look(0)
	c.serves("one has rights", 1)
	c.start(2, off)
	c.serves("one is told to serve", 1, 2)
	c.look(0)
	c.start(2, rights)
	c.start(3, rights)
	c.look(0)
	c.serves("all have rights", 1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		c.start(id, plain)
		c.look(0)
		c.look(0)
	}
	c.serves("all have lost them")
	if d, _ := published(c.st.Membership.Members[1]); d.Rights != Lacking {
		t.Errorf("who lacks them publishes %+v", d)
	}
	for id := uint64(1); id <= 3; id++ {
		c.start(id, plain)
	}
	c.look(0)
	c.serves("and are restarted")
	for id := uint64(1); id <= 3; id++ {
		c.start(id, off)
	}
	c.look(0)
	c.serves("they are told to serve", 1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		c.start(id, plain)
		c.look(0)
	}
	c.serves("it is a plain cluster again", 1, 2, 3)

	c.start(1, rights)
	c.look(0)
	c.serves("member 1 has rights", 1)
	c.start(2, plain)
	c.start(3, plain)
	if _, err := c.st.ApplyChange(membership.Change{Op: membership.OpRemove, ID: 1}); err != nil {
		t.Fatal(err)
	}
	delete(c.keep, 1)
	c.note()
	if c.keep[2].MayServe() == nil {
		t.Error("the member with rights is gone, and those that lacked them serve by themselves")
	}
}

// Guarantee: a node that was restarted without its auth file is closed from its first
// moment, before it has looked at anything, though it is alone.
func TestFailsClosedAlone(t *testing.T) {
	c := newCluster(t)
	c.st.Membership = membership.New([]address.Peer{{ID: 1, URL: "http://a:1"}})
	c.st.Membership.Publish(1, 101, "http://x", state.DoorsLevel)
	c.start(1, rights).look(t.Context(), time.Now())
	k := c.start(1, plain)
	for range 3 {
		if err := k.MayServe(); err == nil || !strings.Contains(err.Error(), "itself") {
			t.Errorf("it serves: %v", err)
		}
		k.look(t.Context(), time.Now())
	}
}

// Guarantee: who differs is named once it has for over a minute, and no longer than it does.
func TestDiffers(t *testing.T) {
	c := newCluster(t)
	c.start(2, off)
	c.look(0)
	c.look(0)
	c.look(Patience)
	k := c.keep[1]
	if got := k.Differs(2); got != "" || k.Notes() != "" {
		t.Errorf("after a minute member 2 is said to differ in %q", got)
	}
	c.look(Patience + 1)
	if got := k.Differs(2); got != "rights: off, here none" {
		t.Errorf("past a minute member 2 is said to differ in %q", got)
	}
	if got := k.Notes(); got != "note member 2 lets others in otherwise than this node: rights: off, here none\n" || k.Differs(3) != "" || k.Differs(1) != "" {
		t.Errorf("the notes are %q", got)
	}
	if got := c.keep[2].late(); fmt.Sprint(got) != "[1 3]" {
		t.Errorf("to member 2 differ %v", got)
	}
	c.start(2, plain)
	c.look(Patience + 2)
	c.look(Patience + 2)
	if k.Notes() != "" || len(k.differ) != 0 {
		t.Errorf("they agree again, and the notes are %q", k.Notes())
	}
	// Another file is another difference, as is a member that has never said a thing none.
	for id, file := range map[uint64]uint64{1: 5, 2: 6, 3: 5} {
		c.start(id, rights).File = func() File { return File{Hash: file} }
	}
	if _, err := c.st.ApplyChange(membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}); err != nil {
		t.Fatal(err)
	}
	c.look(0)
	c.look(0)
	c.look(Patience + 1)
	if got := c.keep[1].Notes(); got != "note member 2 lets others in otherwise than this node: another auth file\n" {
		t.Errorf("the notes are %q", got)
	}
	if _, err := c.st.ApplyChange(membership.Change{Op: membership.OpRemove, ID: 2}); err != nil {
		t.Fatal(err)
	}
	c.keep[1].look(t.Context(), time.Unix(0, 0).Add(2*Patience))
	if got := c.keep[1].Notes(); got != "" {
		t.Errorf("of who was removed: %q", got)
	}
}

// Guarantee: the keeper looks every second, and ends with its node.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		k := c.start(1, rights)
		var file, said atomic.Uint64
		k.File = func() File { return File{Hash: file.Load()} }
		propose := k.Propose
		k.Propose = func(ctx context.Context, cmd []byte) state.Result {
			said.Add(1)
			return propose(ctx, cmd)
		}
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- k.Run(ctx) }()
		synctest.Wait()
		if said.Load() != 1 {
			t.Errorf("%d things are said at once", said.Load())
		}
		file.Store(2)
		time.Sleep(lookEvery)
		synctest.Wait()
		if said.Load() != 2 {
			t.Errorf("%d things are said after a second", said.Load())
		}
		end()
		testkit.Must(t, <-ended)
	})
}

// Guarantee: a member gets a URL with https only once all members can reach it, and one with
// http only if it answers there, and all members dial it.
func TestCheckURL(t *testing.T) {
	can := Doors{Peers: Optional, Dials: true}
	for name, tt := range map[string]struct {
		level uint64
		doors []Doors // of members 1 to 3
		c     membership.Change
		want  error
		says  string
	}{
		"all can":                       {7, []Doors{can, can, can}, membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "https://a:1"}, nil, ""},
		"the level":                     {6, []Doors{can, can, can}, membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "https://a:1"}, problem.ErrUpgrading, "level 7"},
		"one cannot":                    {7, []Doors{can, can, {}}, membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "https://a:1"}, problem.ErrUpgrading, "member 3 has no certificate"},
		"the member cannot":             {7, []Doors{{}, can, can}, membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "https://a:1"}, problem.ErrUpgrading, "member 1"},
		"a new one":                     {7, []Doors{can, can, can}, membership.Change{Op: membership.OpAdd, ID: 9, PeerURL: "https://d:1"}, nil, ""},
		"a new one, and one cannot":     {7, []Doors{can, {}, can}, membership.Change{Op: membership.OpAddVoter, ID: 9, PeerURL: "https://d:1"}, problem.ErrUpgrading, "member 2"},
		"http":                          {0, make([]Doors, 3), membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "http://a:1"}, nil, ""},
		"a role":                        {0, make([]Doors, 3), membership.Change{Op: membership.OpMakeVoter, ID: 1}, nil, ""},
		"a removal":                     {0, make([]Doors, 3), membership.Change{Op: membership.OpRemove, ID: 1, PeerURL: "https://a:1"}, nil, ""},
		"back":                          {7, []Doors{can, can, can}, membership.Change{Op: membership.OpMove, ID: 2, PeerURL: "http://b:1"}, nil, ""},
		"back too early":                {7, []Doors{can, {Peers: Required, Dials: true}, can}, membership.Change{Op: membership.OpMove, ID: 2, PeerURL: "http://b:1"}, problem.ErrBadPeerURL, "member 2 takes nothing but TLS"},
		"back, and one dials TLS alone": {7, []Doors{can, {Peers: Required, Dials: true}, can}, membership.Change{Op: membership.OpMove, ID: 1, PeerURL: "http://a:2"}, problem.ErrBadPeerURL, "member 2 dials nobody without TLS"},
		"a new one that nobody dials":   {7, []Doors{can, {Peers: Required, Dials: true}, can}, membership.Change{Op: membership.OpAdd, ID: 9, PeerURL: "http://d:1"}, problem.ErrBadPeerURL, "member 2 dials nobody without TLS"},
	} {
		m := membership.New([]address.Peer{{ID: 1, URL: "http://a:1"}, {ID: 2, URL: "https://b:1"}, {ID: 3, URL: "http://c:1"}})
		for i, d := range tt.doors {
			id := uint64(i + 1)
			m.Publish(id, 100, "http://x", state.DoorsLevel)
			m.PublishDoors(id, 100, d.Encode())
		}
		err := CheckURL(m, tt.level, tt.c)
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %v with %q", name, err, tt.want, tt.says)
		}
		m.Apply(membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://e:1"}) // it has not started
		if err := CheckURL(m, tt.level, tt.c); (err == nil) != (tt.want == nil && !strings.HasPrefix(tt.c.PeerURL, "https") || tt.c.Op == membership.OpRemove) {
			t.Errorf("%s, with a member that has not started: %v", name, err)
		}
	}
}
