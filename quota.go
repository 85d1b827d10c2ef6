package main

import (
	"fmt"
	"sync/atomic"
)

// quota bounds the bytes of keys and values that this node lets in. It is
// asked before a write is proposed and never when one is applied: nodes may
// have different quotas, and must not come to different states.
type quota struct {
	limit    uint64 // bytes; 0: none
	kv       *kvstore
	reserved atomic.Uint64 // by writes on their way
}

// reserve lets a write of a key pass, or says that there is no room for what
// the store would grow by. A write that passes holds its room until release,
// so that many at once do not exceed the quota together.
func (q *quota) reserve(key string, size int) (release func(), err error) {
	if q.limit == 0 {
		return func() {}, nil
	}
	growth := uint64(len(key) + size)
	// Far from the limit it does not matter what the key has now.
	for held := q.reserved.Load(); q.kv.size.Load()+held+growth <= q.limit-q.limit/16; held = q.reserved.Load() {
		if q.reserved.CompareAndSwap(held, held+growth) {
			return func() { q.reserved.Add(-growth) }, nil
		}
	}
	used, old := q.kv.used(key)
	if growth <= old {
		return func() {}, nil // it takes no more than what it replaces
	}
	growth -= old
	if used+q.reserved.Add(growth) > q.limit {
		q.reserved.Add(-growth)
		return nil, fmt.Errorf("%w: they take %d bytes, %d are allowed", errQuota, used, q.limit)
	}
	return func() { q.reserved.Add(-growth) }, nil
}

// used returns the bytes of all keys and values, and those of one key and its
// value.
func (kv *kvstore) used(key string) (all, one uint64) {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	if it, ok := kv.state.items.Get(key); ok {
		one = uint64(len(key) + len(it.value))
	}
	return kv.state.bytes, one
}
