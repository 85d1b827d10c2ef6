package state

import (
	"encoding/binary"
	"raftkv/internal/changelog"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/once"
	"raftkv/internal/record"
	"raftkv/internal/txn"
)

// Lifetime says when a key that is written goes away by itself.
type Lifetime = txn.Lifetime

// The kinds of a lifetime.
const (
	forEver   = txn.ForEver
	ForTTL    = txn.ForTTL
	WithLease = txn.WithLease
)

// AppendLeasedPutHead appends a put of a key with a lifetime up to its value, which ends it.
func AppendLeasedPutHead(b []byte, c Condition, life Lifetime, key string) []byte {
	b = c.AppendTo(append(b, byte(kindLeasedPut)))
	b = record.AppendString(txn.AppendLife(b, life), life.Owner)
	return record.AppendString(b, key)
}

// LeasedPutOverhead is how much longer than key, owner and value such a put is at most.
const LeasedPutOverhead = WriteOverhead + 1 + 2*binary.MaxVarintLen64

func decodeLeasedPut(r *record.Reader, c *Command) (err error) {
	if c.condition, err = txn.ReadCondition(r); err != nil {
		return err
	}
	if c.life, err = txn.ReadLife(r); err != nil {
		return err
	}
	c.life.Owner = string(r.Bytes())
	c.Key, c.Value = string(r.Bytes()), r.B
	return nil
}

// EncodeGrant encodes the wish for a lease of ttl, in ms.
func EncodeGrant(ttl uint64, owner string) []byte {
	return record.AppendString(record.AppendUvarints([]byte{byte(kindGrant)}, ttl), owner)
}

// EncodeKeep encodes the wish that a lease gets its whole time again.
func EncodeKeep(id uint64, owner string) []byte {
	return record.AppendString(record.AppendUvarints([]byte{byte(kindKeep)}, id), owner)
}

// EncodeRevoke encodes the wish that a lease ends now, with its keys.
func EncodeRevoke(id uint64, owner string) []byte {
	return record.AppendString(record.AppendUvarints([]byte{byte(kindRevoke)}, id), owner)
}

// decodeLease reads the fields of all commands about a lease itself.
func decodeLease(r *record.Reader, c *Command) error {
	c.lease, c.life.Owner = r.Uvarint(), string(r.Bytes())
	r.End()
	return nil
}

func (s *State) grant(c Command) Result {
	s.beginLeases()
	id, err := s.Leases.Grant(c.lease, c.life.Owner)
	return Result{Err: err, Lease: id, TTL: c.lease}
}

// beginLeases makes the first lease's ID one that no cluster has given from whose state
// this one was made: while there was none, they tell each other apart by the jumps of
// the revision.
func (s *State) beginLeases() { s.Leases.Begin(s.Revision - s.Revision%RevisionJump) }

func (s *State) keep(c Command) Result {
	ttl, err := s.Leases.Keep(c.lease, c.life.Owner)
	return Result{Err: err, Lease: c.lease, TTL: ttl}
}

func (s *State) revoke(c Command) Result {
	keys, err := s.Leases.Revoke(c.lease, c.life.Owner)
	if err != nil {
		return Result{Err: err}
	}
	return Result{Deletion: s.drop(changelog.Delete, keys), Deleted: len(keys)}
}

// drop deletes keys that are bound to no lease any more, in one revision, and returns
// the store's.
func (s *State) drop(why changelog.Kind, keys []string) (revision uint64) {
	if len(keys) > 0 {
		s.Revision++
	}
	for _, key := range keys {
		s.remove(why, key)
	}
	return s.Revision
}

// bind gives a key its lifetime, in place of that which it had with old, and returns
// the lease. The error is problem.ErrNoSuchLease or problem.ErrLeaseFull, after which
// nothing has changed.
func (s *State) bind(key string, life Lifetime, old *Item) (id uint64, err error) {
	if life.Kind == WithLease {
		if old != nil && old.Lease == life.Value && s.Leases.Named(life.Value, life.Owner) != nil {
			return life.Value, nil
		}
		if err := s.Leases.Bind(life.Value, key, life.Owner); err != nil {
			return 0, err
		}
		id = life.Value
	}
	if old != nil && old.Lease != 0 {
		s.Leases.Unbind(old.Lease, key)
	}
	if life.Kind == ForTTL {
		s.beginLeases()
		id = s.Leases.GrantFor(key, life.Value, life.Owner)
	}
	return id, nil
}

// tick applies a tick, and returns how many keys went. A leader appends its ticks
// itself, so one of another term was lost and found: what it says may be of the past.
func (s *State) tick(t entry.Tick) (gone int) {
	if t.Term != s.Term || t.Clock <= s.Leases.Clock {
		return 0
	}
	keys := s.Leases.Tick(t.Clock)
	s.drop(changelog.Expire, keys)
	s.Once.Tick(t.Clock, max(0, once.MaxDropped-len(keys)))
	return len(keys)
}

// leasePart is the leases. The keys that are bound to them are hashed with their items.
var leasePart = tablePart(leasesRecord, leaseRecord, func(s *State) table { return &s.Leases },
	func(from, to *State) { to.Leases = from.Leases.Copy() })

// Leased is what there is to say of a lease.
type Leased struct {
	ID, TTL, Remaining uint64 // TTL and Remaining in ms
	Keys               uint32 // how many are bound to it
	Owner              string
}

// Lease returns a lease that is not private and whose owner is seen. False: there is none.
func (s *State) Lease(id uint64, sees func(owner string) bool) (Leased, bool) {
	l := s.Leases.Get(id)
	if l == nil || l.Private || !sees(l.Owner) {
		return Leased{}, false
	}
	return s.leased(id, l), true
}

func (s *State) leased(id uint64, l *lease.Lease) Leased {
	return Leased{id, l.TTL, s.Leases.Remaining(l), l.Keys, l.Owner}
}

// ListLeases returns up to n leases whose owner is seen, in the order of their IDs, from one
// on, and where to go on; 0: at the end.
func (s *State) ListLeases(from uint64, n int, sees func(owner string) bool) (list []Leased, next uint64) {
	ids, next := s.Leases.List(from, n, sees)
	for _, id := range ids {
		list = append(list, s.leased(id, s.Leases.Get(id)))
	}
	return list, next
}

// Left is txn.Left.
type Left = txn.Left

// Left returns what an item of s has left of its time.
func (s *State) Left(it *Item) (left Left) {
	if it.Lease == 0 {
		return left
	}
	l := s.Leases.Get(it.Lease)
	if l == nil {
		return left // the item is older than s
	}
	if !l.Private {
		left.Lease = it.Lease
	}
	left.Goes, left.Millis = true, s.Leases.Remaining(l)
	return left
}
