package main

import (
	"raftkv/internal/state"
)

func (kv *kvstore) Used(key string) state.Holding {
	kv.mu.RLock()
	defer kv.mu.RUnlock()
	return kv.state.Holding(key)
}

// Size implements sizes.
func (kv *kvstore) Size() (bytes, keys uint64) { return kv.sizeNow.Load(), kv.keysNow.Load() }

// publishSize tells the quota what the state holds now. The caller holds kv.mu.
func (kv *kvstore) publishSize() {
	kv.sizeNow.Store(kv.state.Bytes)
	kv.keysNow.Store(kv.state.Keys())
}
