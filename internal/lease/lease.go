// Package lease answers: which keys go away by themselves, and when? A Table is a part
// of the replicated state: the leases, the keys that are bound to them, and the
// replicated clock by which they run out. Like the state it is pure: it reads no clock
// and has no goroutine. Package clock says how a leader moves the replicated clock.
//
// The promise is that no lease runs out before its time to live has passed since the
// request that made it or kept it alive was sent, whoever leads and however often that
// changes; time in which the cluster cannot commit does not count. So a deadline is not
// set when the request is applied, when nobody knows what time it is, but by the first
// tick behind it in the log: that was appended later than the request, and so later than
// it was sent. What a tick says advances by no more than has passed on the leader's own
// monotonic clock since the tick before was appended.
package lease

import (
	"encoding/binary"
	"raftkv/internal/problem"

	"github.com/cespare/xxhash/v2"
	"github.com/tidwall/btree"
)

// Bounds. They are decided in apply, where all replicas must decide alike, so they are
// constants for ever.
const (
	// MaxKeys is how many keys a lease holds at most.
	MaxKeys = 10_000
	// MaxLeases is how many leases there are at most, those of a single key beside them.
	MaxLeases = 1_000_000
	// MaxTTL is how long a lease lives at most without being kept alive, in ms.
	MaxTTL = 1 << 50
	// MaxOwner is how long the name of an owner is at most, in bytes.
	MaxOwner = 128
	// MaxWork bounds what one tick does, so that none takes long: it begins the time of
	// so many leases at most, and so many keys go, of which a lease without any counts as
	// one; or a single lease ends, however many keys it has.
	MaxWork = 1000
)

// Lease is one lease. It is immutable: a change makes a new one, so that a copy of the
// table may keep the old one.
type Lease struct {
	TTL uint64 // ms
	// Deadline is when it runs out, by the replicated clock, in ms. 0: the next tick
	// sets it.
	Deadline uint64
	Owner    string // who made it, and alone may name it; empty without rights
	Private  bool   // a time to live made it for a single key, with which it ends; it is not listed
	key      string // of a private one
	Keys     uint32 // how many keys are bound to it
}

// binding is a key that is bound to a lease that is not private.
type binding struct {
	id  uint64
	key string
}

// due is when a lease runs out. Those without a deadline come first.
type due struct{ deadline, id uint64 }

// Table is all leases. The zero value is an empty one.
type Table struct {
	Clock  uint64 // ms; 0 until the first tick
	Last   uint64 // the ID that was given last
	sum    uint64 // of the leases' hashes
	owners uint64 // bytes of the owners' names
	leases btree.Map[uint64, *Lease]
	listed int                    // how many are not private
	fresh  int                    // how many have no deadline
	bound  *btree.BTreeG[binding] // nil while empty
	queue  *btree.BTreeG[due]     // nil in a copy until it is changed
	said   head                   // while it is read
}

func newBound() *btree.BTreeG[binding] {
	return btree.NewBTreeGOptions(func(a, b binding) bool {
		return a.id < b.id || a.id == b.id && a.key < b.key
	}, btree.Options{NoLocks: true})
}

func newQueue() *btree.BTreeG[due] {
	return btree.NewBTreeGOptions(func(a, b due) bool {
		return a.deadline < b.deadline || a.deadline == b.deadline && a.id < b.id
	}, btree.Options{NoLocks: true})
}

// Copy returns a table that later changes of t do not touch, nor changes of the copy t, in
// time independent of the number of leases. The first change of the copy takes time in
// proportion to it, since the queue is not copied: who copies mostly only reads.
func (t *Table) Copy() Table {
	c := *t
	c.leases, c.queue = *t.leases.Copy(), nil
	if t.bound != nil {
		c.bound = t.bound.Copy()
	}
	return c
}

// Get returns a lease, nil if there is none.
func (t *Table) Get(id uint64) *Lease {
	l, _ := t.leases.Get(id)
	return l
}

// Named returns a lease that an owner may name, nil if there is none. Another owner's is
// none.
func (t *Table) Named(id uint64, owner string) *Lease {
	if l := t.Get(id); l != nil && !l.Private && l.Owner == owner {
		return l
	}
	return nil
}

// Len is how many leases there are, private ones included.
func (t *Table) Len() int { return t.leases.Len() }

// Listed is how many leases there are that are not private.
func (t *Table) Listed() int { return t.listed }

// Cost is what a lease counts for in a quota of bytes, beside its owner's name.
const Cost = 64

// Bytes is what the leases count for in a quota.
func (t *Table) Bytes() uint64 { return uint64(t.Len())*Cost + t.owners }

// Remaining is how much of its time a lease has left by the clock, in ms.
func (t *Table) Remaining(l *Lease) uint64 {
	if l.Deadline == 0 {
		return l.TTL
	}
	return min(l.TTL, max(l.Deadline, t.Clock)-t.Clock) // a deadline is rounded up
}

// Grant makes a lease with the next ID. The error is problem.ErrTooManyLeases.
func (t *Table) Grant(ttl uint64, owner string) (id uint64, err error) {
	if t.listed >= MaxLeases {
		return 0, problem.ErrTooManyLeases
	}
	t.Last++
	t.set(t.Last, nil, &Lease{TTL: ttl, Owner: owner})
	return t.Last, nil
}

// GrantFor makes a private lease of a key, which is bound to none.
func (t *Table) GrantFor(key string, ttl uint64, owner string) (id uint64) {
	t.Last++
	t.set(t.Last, nil, &Lease{TTL: ttl, Owner: owner, Private: true, key: key, Keys: 1})
	return t.Last
}

// Keep gives a lease its whole time again, and returns that, in ms. The error is
// problem.ErrLeaseUnknown.
func (t *Table) Keep(id uint64, owner string) (ttl uint64, err error) {
	old := t.Named(id, owner)
	if old == nil {
		return 0, problem.ErrLeaseUnknown
	}
	kept := *old
	kept.Deadline = 0
	t.set(id, old, &kept)
	return kept.TTL, nil
}

// Bind binds a key, which is bound to none, to a lease. The error is
// problem.ErrNoSuchLease or problem.ErrLeaseFull.
func (t *Table) Bind(id uint64, key, owner string) error {
	old := t.Named(id, owner)
	switch {
	case old == nil:
		return problem.ErrNoSuchLease
	case old.Keys >= MaxKeys:
		return problem.ErrLeaseFull
	}
	t.bind(id, key)
	more := *old
	more.Keys++
	t.set(id, old, &more)
	return nil
}

func (t *Table) bind(id uint64, key string) {
	if t.bound == nil {
		t.bound = newBound()
	}
	t.bound.Set(binding{id, key})
}

// Unbind frees a key of its lease. A private one ends with it.
func (t *Table) Unbind(id uint64, key string) {
	old := t.Get(id)
	if old.Private {
		t.set(id, old, nil)
		return
	}
	t.bound.Delete(binding{id, key})
	less := *old
	less.Keys--
	t.set(id, old, &less)
}

// KeysOf returns up to n keys of a lease, in their order, from one on.
func (t *Table) KeysOf(id uint64, from string, n int) (keys []string) {
	switch l := t.Get(id); {
	case l == nil || n <= 0 || l.Keys == 0:
		return nil
	case l.Private:
		return []string{l.key}
	}
	t.bound.Ascend(binding{id, from}, func(b binding) bool {
		if b.id != id || len(keys) == n {
			return false
		}
		keys = append(keys, b.key)
		return true
	})
	return keys
}

// Scan shows all leases in the order of their IDs, until each returns false.
func (t *Table) Scan(each func(id uint64, l *Lease) bool) { t.leases.Scan(each) }

// List returns up to n IDs of leases that are not private and whose owner is seen, in their
// order, from one on. It looks at no more than maxLooks leases, and returns where to go on;
// 0: at the end.
func (t *Table) List(from uint64, n int, sees func(owner string) bool) (ids []uint64, next uint64) {
	looks := 0
	t.leases.Ascend(from, func(id uint64, l *Lease) bool {
		if len(ids) == n || looks == maxLooks {
			next = id
			return false
		}
		looks++
		if !l.Private && sees(l.Owner) {
			ids = append(ids, id)
		}
		return true
	})
	return ids, next
}

// maxLooks bounds how long List takes where most leases are private, or another's.
const maxLooks = 100_000

// Revoke ends a lease, and returns the keys that were bound to it: it is for the caller
// to delete them. The error is problem.ErrLeaseUnknown.
func (t *Table) Revoke(id uint64, owner string) (keys []string, err error) {
	l := t.Named(id, owner)
	if l == nil {
		return nil, problem.ErrLeaseUnknown
	}
	return t.end(id, l), nil
}

// end ends a lease.
func (t *Table) end(id uint64, l *Lease) (keys []string) {
	keys = t.KeysOf(id, "", MaxKeys)
	if !l.Private {
		for _, key := range keys {
			t.bound.Delete(binding{id, key})
		}
	}
	t.set(id, l, nil)
	return keys
}

// Tick moves the clock on. Leases without a deadline get theirs, and then those that are
// due end, in the order of their deadlines: the keys that were bound to them are
// returned, for the caller to delete. A tick that would turn the clock back does nothing.
func (t *Table) Tick(clock uint64) (keys []string) {
	if clock < t.Clock {
		return nil
	}
	t.Clock = clock
	t.enqueue()
	for _, id := range t.upTo(0, 0) {
		old := t.Get(id)
		begun := *old
		begun.Deadline = max(clock, clock+min(old.TTL, MaxTTL)+1) // a tick's milliseconds are rounded down
		t.set(id, old, &begun)
	}
	work := 0
	for _, id := range t.upTo(1, clock) {
		l := t.Get(id)
		cost := max(1, int(l.Keys))
		if work > 0 && work+cost > MaxWork {
			break
		}
		work += cost
		keys = append(keys, t.end(id, l)...)
	}
	return keys
}

// enqueue builds the queue of a table that has none. It is called before a change alone:
// readers share the table with each other.
func (t *Table) enqueue() {
	if t.queue != nil {
		return
	}
	t.queue = newQueue()
	t.leases.Scan(func(id uint64, l *Lease) bool {
		t.queue.Set(due{l.Deadline, id})
		return true
	})
}

// upTo returns up to MaxWork leases whose deadlines are within two, in their order.
func (t *Table) upTo(from, to uint64) (ids []uint64) {
	t.queue.Ascend(due{deadline: from}, func(d due) bool {
		if d.deadline > to || len(ids) == MaxWork {
			return false
		}
		ids = append(ids, d.id)
		return true
	})
	return ids
}

// next returns the lease that runs out next, of those that have a deadline.
func (t *Table) next() (first due, ok bool) {
	if t.queue == nil {
		t.leases.Scan(func(id uint64, l *Lease) bool {
			if l.Deadline > 0 && (!ok || l.Deadline < first.deadline) {
				first, ok = due{l.Deadline, id}, true
			}
			return true
		})
		return first, ok
	}
	t.queue.Ascend(due{deadline: 1}, func(d due) bool {
		first, ok = d, true
		return false
	})
	return first, ok
}

// Agenda is what a leader's ticks are for.
type Agenda struct {
	Clock uint64 // ms
	// Fresh: some lease has no deadline yet.
	Fresh bool
	// Full: a tick that came now would have as much to do as it may.
	Full bool
	// Next is the next deadline, in ms; 0: there is none.
	Next uint64
}

// Agenda returns what there is to do, in constant time but for a copy that was not changed.
func (t *Table) Agenda() Agenda {
	a := Agenda{Clock: t.Clock, Fresh: t.fresh > 0, Full: t.fresh >= MaxWork}
	if first, ok := t.next(); ok {
		a.Next = first.deadline
	}
	return a
}

// set puts a lease in place of old, either of which may be nil.
func (t *Table) set(id uint64, old, now *Lease) {
	t.enqueue()
	if old != nil {
		t.count(id, old, -1)
		if now == nil || now.Deadline != old.Deadline {
			t.queue.Delete(due{old.Deadline, id})
		}
	}
	if now == nil {
		t.leases.Delete(id)
		return
	}
	t.count(id, now, 1)
	t.leases.Set(id, now)
	if old == nil || now.Deadline != old.Deadline {
		t.queue.Set(due{now.Deadline, id})
	}
}

// count takes a lease into the sums, or with sign -1 out of them.
func (t *Table) count(id uint64, l *Lease, sign int) {
	t.sum += uint64(sign) * hash(id, l)
	t.owners += uint64(sign * len(l.Owner))
	if !l.Private {
		t.listed += sign
	}
	if l.Deadline == 0 {
		t.fresh += sign
	}
}

// hash is one lease's part of the sum. Its keys are hashed with their items.
func hash(id uint64, l *Lease) uint64 {
	var b [40]byte
	binary.LittleEndian.PutUint64(b[0:], id)
	binary.LittleEndian.PutUint64(b[8:], l.TTL)
	binary.LittleEndian.PutUint64(b[16:], l.Deadline)
	binary.LittleEndian.PutUint64(b[24:], xxhash.Sum64String(l.Owner))
	if l.Private {
		b[32] = 1
	}
	return xxhash.Sum64(b[:])
}
