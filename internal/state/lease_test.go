package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"raftkv/internal/txn"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// leaseKeys gives a state leases of each sort, with and without keys and deadlines.
func leaseKeys(s *State) {
	for _, c := range []Command{
		{Kind: kindGrant, lease: 10_000},
		{Kind: kindGrant, lease: 20_000, life: Lifetime{Owner: "web"}},
		{Kind: kindLeasedPut, Key: "timed", Value: []byte("value"), life: Lifetime{Kind: ForTTL, Value: 5000}},
	} {
		s.Apply(c)
	}
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 700})
	s.Apply(Command{Kind: kindLeasedPut, Key: "leased", life: Lifetime{Kind: WithLease, Value: s.Leases.Last - 2}})
	s.Apply(Command{Kind: kindGrant, lease: 30_000})
}

// Guarantee: a state with leases comes back from its file whole, and a file whose leases
// are not those that it speaks of is refused.
func TestLeasesInSnapshot(t *testing.T) {
	s := New(testkit.Peers())
	s.Term = 3
	leaseKeys(s)
	file := snapshotBytes(t, s)
	back, err := Read(bytes.NewReader(file))
	testkit.Must(t, err)
	if dumpState(back) != dumpState(s) || back.hash() != s.hash() || !bytes.Equal(snapshotBytes(t, back), file) {
		t.Fatalf("from\n%s to\n%s", dumpState(s), dumpState(back))
	}
	kinds := func(change func(kind byte, payload []byte) (byte, []byte)) error {
		sr, err := statefile.NewReader(bytes.NewReader(file))
		testkit.Must(t, err)
		var b bytes.Buffer
		w := statefile.NewWriter(&b)
		for {
			kind, payload, err := sr.Next()
			if err != nil {
				break
			}
			if kind, payload = change(kind, bytes.Clone(payload)); kind != 0 {
				testkit.Must(t, w.Record(kind, payload))
			}
		}
		testkit.Must(t, w.Finish())
		_, err = Read(&b)
		return err
	}
	without := func(drop byte) func(byte, []byte) (byte, []byte) {
		return func(kind byte, payload []byte) (byte, []byte) {
			if kind == drop {
				return 0, nil
			}
			return kind, payload
		}
	}
	for name, change := range map[string]func(byte, []byte) (byte, []byte){
		"no leases": without(leaseRecord), "no head": without(leasesRecord), "no leased items": without(leasedItemRecord),
		"another lease": func(kind byte, payload []byte) (byte, []byte) {
			if kind == leasedItemRecord {
				payload[0] += 50
			}
			return kind, payload
		},
		"another deadline": func(kind byte, payload []byte) (byte, []byte) {
			if kind == leaseRecord {
				payload[1]++
			}
			return kind, payload
		},
		"a lease twice": func(kind byte, payload []byte) (byte, []byte) {
			if kind == leaseRecord {
				payload[0] = 1
			}
			return kind, payload
		},
	} {
		if err := kinds(change); !errors.Is(err, statefile.ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Guarantee: below the level nothing of leases is in a state file or in the hash.
func TestLeasesLeaveNoTrace(t *testing.T) {
	s := New(testkit.Peers())
	s.Apply(put("k", "v", Condition{}))
	_ = s.writeRest(func(kind byte, _ []byte) error {
		if kind == leasesRecord || kind == leaseRecord {
			t.Errorf("record %d", kind)
		}
		return nil
	})
}

// Guarantee: what changes of a lease shows in the hash.
func TestLeasesAreHashed(t *testing.T) {
	base := func() *State {
		s := New(testkit.Peers())
		leaseKeys(s)
		return s
	}
	seen := map[uint64]string{base().hash(): "nothing"}
	for name, c := range map[string]Command{
		"a grant":       {Kind: kindGrant, lease: 1},
		"another grant": {Kind: kindGrant, lease: 2},
		"an owner's":    {Kind: kindGrant, lease: 2, life: Lifetime{Owner: "o"}},
		"kept":          {Kind: kindKeep, lease: 1},
		"revoked":       {Kind: kindRevoke, lease: 4},
		"bound":         {Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: WithLease, Value: 1}},
		"bound else":    {Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: WithLease, Value: 4}},
		"bound to none": {Kind: kindLeasedPut, Key: "k"},
		"timed":         {Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: ForTTL, Value: 9}},
	} {
		s := base()
		if res := s.Apply(c); res.Err != nil {
			t.Fatal(name, res.Err)
		}
		if was, ok := seen[s.hash()]; ok {
			t.Errorf("%s: the hash is that with %s", name, was)
		}
		seen[s.hash()] = name
	}
	s := base()
	s.tick(entry.Tick{Term: s.Term, Clock: s.Leases.Clock + 1})
	if was, ok := seen[s.hash()]; ok {
		t.Errorf("a tick: the hash is that with %s", was)
	}
}

// naive is leases as the contract has them, without an index.
type naive struct {
	keys     map[string]uint64 // the lease of each key, 0 for none
	leases   map[uint64]*naiveLease
	last     uint64
	revision uint64
	clock    uint64
}

type naiveLease struct {
	ttl, deadline uint64
	owner         string
	private       bool
}

func (n *naive) named(id uint64, owner string) *naiveLease {
	if l := n.leases[id]; l != nil && !l.private && l.owner == owner {
		return l
	}
	return nil
}

// free ends the private lease of a key.
func (n *naive) free(key string) {
	if l := n.leases[n.keys[key]]; l != nil && l.private {
		delete(n.leases, n.keys[key])
	}
}

func (n *naive) apply(c Command) (err error) {
	switch c.Kind {
	case KindPut, kindLeasedPut:
		id := uint64(0)
		if c.life.Kind == WithLease {
			if id = c.life.Value; n.named(id, c.life.Owner) == nil {
				return problem.ErrNoSuchLease
			}
		}
		n.free(c.Key)
		if c.life.Kind == ForTTL {
			n.last++
			id = n.last
			n.leases[id] = &naiveLease{ttl: c.life.Value, owner: c.life.Owner, private: true}
		}
		n.keys[c.Key] = id
		n.revision++
	case KindDelete:
		if _, ok := n.keys[c.Key]; !ok {
			return problem.ErrNotFound
		}
		n.free(c.Key)
		delete(n.keys, c.Key)
		n.revision++
	case kindGrant:
		n.last++
		n.leases[n.last] = &naiveLease{ttl: c.lease, owner: c.life.Owner}
	case kindKeep, kindRevoke:
		l := n.named(c.lease, c.life.Owner)
		if l == nil {
			return problem.ErrLeaseUnknown
		}
		l.deadline = 0
		if c.Kind == kindRevoke {
			n.end(map[uint64]bool{c.lease: true})
		}
	}
	return nil
}

func (n *naive) end(ids map[uint64]bool) {
	gone := false
	for key, id := range n.keys {
		if id != 0 && ids[id] {
			delete(n.keys, key)
			gone = true
		}
	}
	for id := range ids {
		delete(n.leases, id)
	}
	if gone {
		n.revision++
	}
}

func (n *naive) tick(clock uint64) {
	if clock <= n.clock {
		return
	}
	n.clock = clock
	due := make(map[uint64]bool)
	for id, l := range n.leases {
		if l.deadline == 0 {
			l.deadline = clock + l.ttl + 1
		}
		if l.deadline <= clock {
			due[id] = true
		}
	}
	n.end(due)
}

// Guarantee: leases and times to live do what they are to do, whatever comes in whatever
// order; a copy of the state, one from a file and one that replays the log in pieces are
// the same.
func TestLeasesModel(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 12))
		n := &naive{keys: map[string]uint64{}, leases: map[uint64]*naiveLease{}}
		s, replayed := New(testkit.Peers()), New(testkit.Peers())
		replay := NewReplay(replayed, 4000)
		for seq := range uint64(300) {
			e := raftpb.Entry{Index: new(seq + 1), Term: new(uint64(1))}
			if rng.IntN(5) == 0 {
				now := n.clock + rng.Uint64N(4000) - min(n.clock, 500)
				term := uint64(1)
				if rng.IntN(10) == 0 {
					term = 2 // another leader's: void
				} else {
					n.tick(now)
				}
				e.Data = entry.EncodeTick(term, now)
			} else {
				c := randomLeaseCommand(rng, n.last)
				e.Data = encodeBatch(BatchID{Node: 1, Boot: 1, Seq: seq, Low: seq}, c)
				want := n.apply(c)
				o, _, err := s.ApplyEntry(&e)
				if err != nil || !errors.Is(o.Results[0].Err, want) {
					t.Fatalf("seed %d: %+v: %v, %v, want %v", seed, c, o.Results, err, want)
				}
			}
			if _, ok, _ := entry.DecodeTick(e.Data); ok {
				testkit.Must(t, s.Replay(&e))
			}
			if id, cmds, err := DecodeBatch(e.Data); err == nil {
				_, err = replay.Batch(&e, id, cmds)
				testkit.Must(t, err)
			} else {
				_, err := replay.Entry(&e)
				testkit.Must(t, err)
			}
			if rng.IntN(30) == 0 {
				old := s.Copy()
				back, err := Read(bytes.NewReader(snapshotBytes(t, old)))
				testkit.Must(t, err)
				s = back
			}
		}
		replay.Flush()
		checkNaive(t, seed, s, n)
		if dumpState(s) != dumpState(replayed) || s.hash() != replayed.hash() {
			t.Fatalf("seed %d: replayed\n%s\nwant\n%s", seed, dumpState(replayed), dumpState(s))
		}
	}
}

func randomLeaseCommand(rng *rand.Rand, last uint64) Command {
	c := Command{Kind: []Kind{KindPut, kindLeasedPut, kindLeasedPut, kindLeasedPut, KindDelete, kindGrant, kindKeep, kindRevoke}[rng.IntN(8)]}
	owner := []string{"", "", "", "web"}[rng.IntN(4)]
	switch c.Kind {
	case kindGrant:
		c.lease, c.life.Owner = rng.Uint64N(9000), owner
	case kindKeep, kindRevoke:
		c.lease, c.life.Owner = 1+rng.Uint64N(last+1), owner
	case kindLeasedPut:
		c.life = Lifetime{Kind: txn.LifetimeKind(rng.IntN(3)), Owner: owner}
		if c.life.Value = rng.Uint64N(9000); c.life.Kind == WithLease {
			c.life.Value = 1 + rng.Uint64N(last+1)
		}
		fallthrough
	default:
		c.Key, c.Value = fmt.Sprint("k", rng.IntN(12)), nil
	}
	return c
}

func checkNaive(t *testing.T, seed uint64, s *State, n *naive) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(n.keys))
	if s.Revision != n.revision || !slices.Equal(s.Items.Keys(), keys) || s.Leases.Len() != len(n.leases) || s.Leases.Last != n.last || s.Leases.Clock != n.clock {
		t.Fatalf("seed %d: revision %d, keys %q, leases %d of %d, clock %d; want %d, %q, %d of %d, %d", seed,
			s.Revision, s.Items.Keys(), s.Leases.Len(), s.Leases.Last, s.Leases.Clock, n.revision, keys, len(n.leases), n.last, n.clock)
	}
	for key, id := range n.keys {
		if it := s.Get(key); it.Lease != id {
			t.Fatalf("seed %d: %s has lease %d, want %d", seed, key, it.Lease, id)
		}
	}
	for id, want := range n.leases {
		l := s.Leases.Get(id)
		var bound []string
		for _, key := range keys {
			if n.keys[key] == id {
				bound = append(bound, key)
			}
		}
		if l.TTL != want.ttl || l.Deadline != want.deadline || l.Owner != want.owner || l.Private != want.private ||
			int(l.Keys) != len(bound) || !slices.Equal(s.Leases.KeysOf(id, "", lease.MaxKeys), bound) {
			t.Fatalf("seed %d: lease %d is %+v, want %+v with %q", seed, id, l, want, bound)
		}
	}
	if !s.Leases.Sound() || HashItems(&s.Items) != s.Sum {
		t.Fatalf("seed %d: the sums are wrong", seed)
	}
}

// Guarantee: a lease holds lease.MaxKeys keys and not one more, and what it cannot take is
// as it was.
func TestLeaseFull(t *testing.T) {
	s := New(testkit.Peers())
	id := s.Apply(Command{Kind: kindGrant, lease: 1000}).Lease
	with := func(key string) Command {
		return Command{Kind: kindLeasedPut, Key: key, life: Lifetime{Kind: WithLease, Value: id}}
	}
	for i := range lease.MaxKeys {
		if res := s.Apply(with(fmt.Sprint(i))); res.Err != nil {
			t.Fatal(i, res.Err)
		}
	}
	before := s.Revision
	if res := s.Apply(with("one more")); !errors.Is(res.Err, problem.ErrLeaseFull) || s.Revision != before || s.Get("one more") != nil {
		t.Fatal(res)
	}
	if res := s.Apply(with("0")); res.Err != nil { // which it has
		t.Fatal(res)
	}
	if res := s.Apply(Command{Kind: kindRevoke, lease: id}); res.Err != nil || res.Deleted != lease.MaxKeys || s.Revision != before+2 || s.Keys() != 0 {
		t.Fatal(res, s.Keys())
	}
}

// Guarantee: a cluster that was made of a state does not give a lease's ID again that the
// old one may have given after it.
func TestLeaseIDsJump(t *testing.T) {
	for _, leases := range []int{0, 1} {
		old := New(testkit.Peers())
		old.Revision = 7
		for range leases {
			old.Apply(Command{Kind: kindGrant})
		}
		fresh := old.Copy()
		testkit.Must(t, fresh.Refound(testkit.Peers()))
		was, now := old.Apply(Command{Kind: kindGrant}).Lease, fresh.Apply(Command{Kind: kindGrant}).Lease
		if now != was+RevisionJump {
			t.Errorf("with %d leases: the old cluster gives %d, the new one %d", leases, was, now)
		}
	}
	s := New(testkit.Peers())
	s.Leases.Last = ^uint64(0) - RevisionJump + 1
	if err := s.Refound(testkit.Peers()); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Error(err)
	}
}

// Guarantee: a tick that is not whole is no command, and one of a newer kind stops the
// node.
func TestTickIsStrict(t *testing.T) {
	s := New(testkit.Peers())
	e := raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(1)), Data: entry.EncodeTick(1, 5)[:3]}
	if _, _, err := s.ApplyEntry(&e); !errors.Is(err, record.ErrMalformed) {
		t.Error(err)
	}
	e.Index, e.Data = new(uint64(2)), []byte{3, 2}
	if _, _, err := s.ApplyEntry(&e); !errors.Is(err, record.ErrUnknownCommand) {
		t.Error(err)
	}
}

func anybody(string) bool { return true }

// Guarantee: who is not seen is not shown, and takes no place of those who are.
func TestLeasesOfOthersAreNotShown(t *testing.T) {
	s := New(nil)
	for i := range 20 {
		s.Apply(Command{Kind: kindGrant, lease: 5000, life: Lifetime{Owner: []string{"", "web"}[i%2]}})
	}
	s.Apply(Command{Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: ForTTL, Value: 5000, Owner: "web"}})
	web := func(owner string) bool { return owner == "web" }
	list, next := s.ListLeases(1, 6, web)
	more, end := s.ListLeases(next, 6, web)
	list = append(list, more...)
	for i, l := range list {
		if l.ID != uint64(2*i+2) || l.Owner != "web" {
			t.Errorf("lease %d of the list is %+v", i, l)
		}
	}
	if len(list) != 10 || end != 0 {
		t.Errorf("%d leases, next %d", len(list), end)
	}
	if _, ok := s.Lease(1, web); ok {
		t.Error("another's lease is shown")
	}
	if l, ok := s.Lease(2, web); !ok || l.Owner != "web" {
		t.Errorf("the own lease is %+v, %v", l, ok)
	}
	if _, ok := s.Lease(21, anybody); ok {
		t.Error("a private lease is shown")
	}
}
