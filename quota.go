package main

import (
	"fmt"
	"sync/atomic"
)

// quota bounds what this node lets in: the bytes of keys and values, and what
// they take in memory. It is asked before a write is proposed and never when one
// is applied: nodes may have different quotas, and must not come to different
// states.
type quota struct {
	limit uint64 // bytes; 0: none
	room  uint64 // bytes, and keyCost for each key; 0: none
	kv    *kvstore

	// By writes on their way:
	reserved atomic.Uint64 // bytes
	newKeys  atomic.Uint64
}

// reserve lets a write of a key pass, or says that there is no room for what
// the store would grow by. A write that passes holds its room until release,
// so that many at once do not exceed the quota together.
func (q *quota) reserve(key string, size int) (release func(), err error) {
	if q.limit == 0 && q.room == 0 {
		return func() {}, nil
	}
	growth := uint64(len(key) + size)
	// Far from the limits it does not matter what the key has now.
	keys := q.kv.keys.Load() + q.newKeys.Add(1)
	for held := q.reserved.Load(); q.fits(q.kv.size.Load()+held+growth, keys, 16); held = q.reserved.Load() {
		if q.reserved.CompareAndSwap(held, held+growth) {
			return func() { q.release(growth, 1) }, nil
		}
	}
	q.newKeys.Add(^uint64(0))
	u := q.kv.used(key)
	if growth <= u.old {
		return func() {}, nil // it takes no more than what it replaces
	}
	growth -= u.old
	added := uint64(1)
	if u.exists {
		added = 0
	}
	bytes, all := u.bytes+q.reserved.Add(growth), u.keys+q.newKeys.Add(added)
	if !q.fits(bytes, all, 0) {
		q.release(growth, added)
		return nil, q.refusal(u.bytes, u.keys)
	}
	return func() { q.release(growth, added) }, nil
}

func (q *quota) release(growth, keys uint64) {
	q.reserved.Add(-growth)
	q.newKeys.Add(-keys)
}

// fits reports whether so much is allowed, with one of so many parts to spare; 0:
// none.
func (q *quota) fits(bytes, keys, spare uint64) bool {
	within := func(n, limit uint64) bool {
		if spare > 0 {
			limit -= limit / spare
		}
		return n <= limit
	}
	return (q.limit == 0 || within(bytes, q.limit)) && (q.room == 0 || within(bytes+keys*keyCost, q.room))
}

func (q *quota) refusal(bytes, keys uint64) error {
	if cost := bytes + keys*keyCost; q.room > 0 && q.limit-min(q.limit, bytes) > q.room-min(q.room, cost) {
		return fmt.Errorf("%w: %d keys take about %d bytes of memory with their values, and %d are allowed, by the memory that this node has",
			errQuota, keys, cost, q.room)
	}
	return fmt.Errorf("%w: they take %d bytes, %d are allowed", errQuota, bytes, q.limit)
}

// holding is what the store holds, and one key of it.
type holding struct {
	bytes, keys uint64
	old         uint64 // of the key and its value
	exists      bool
}

func (kv *kvstore) used(key string) holding {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	u := holding{bytes: kv.state.bytes, keys: uint64(kv.state.items.Len())}
	var it *item
	if it, u.exists = kv.state.items.Get(key); u.exists {
		u.old = uint64(len(key) + len(it.value))
	}
	return u
}

// publishSize tells the quota what the state holds now. The caller holds kv.mu.
func (kv *kvstore) publishSize() {
	kv.size.Store(kv.state.bytes)
	kv.keys.Store(uint64(kv.state.items.Len()))
}
