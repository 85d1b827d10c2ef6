package state

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"github.com/tidwall/btree"
)

// The hash of a state, by which replicas compare theirs. It covers all that a
// state file holds. Most of that is items, too many to look at each time, so
// their part is kept up to date with every change: it is the sum, modulo 2^64,
// of the hash of each item, in whatever order they came.
//
// A change takes away the hash of the old item as it is in memory then, not as
// it was when it was added. So an item that was altered behind the store's back
// leaves its mark in the sum as soon as the key is written or deleted; until
// then only a full recomputation sees it.
//
// Members of a cluster may run different versions, so the definition may never
// change: TestHashIsForever has its values. What is new in a state is a record,
// or a field at the end of one, that is left out while it says nothing.

// itemHash is one item's part of the sum. Key and value are hashed by
// themselves first, so that no byte can pass from one to the other.
func itemHash(key string, it *Item) uint64 {
	var b [48]byte
	binary.LittleEndian.PutUint64(b[0:], xxhash.Sum64String(key))
	binary.LittleEndian.PutUint64(b[8:], xxhash.Sum64String(it.Value))
	binary.LittleEndian.PutUint64(b[16:], it.CreateRevision)
	binary.LittleEndian.PutUint64(b[24:], it.ModRevision)
	binary.LittleEndian.PutUint64(b[32:], it.Version)
	if it.Lease == 0 {
		return xxhash.Sum64(b[:40])
	}
	binary.LittleEndian.PutUint64(b[40:], it.Lease)
	return xxhash.Sum64(b[:])
}

// HashItems computes the sum from the items alone.
func HashItems(items *btree.Map[string, *Item]) (sum uint64) {
	items.Scan(func(key string, it *Item) bool {
		sum += itemHash(key, it)
		return true
	})
	return sum
}

// hashRest is the hash of all but the items.
func (s *State) hashRest() uint64 {
	d := xxhash.New()
	var b []byte
	// The writer cannot fail, so neither can this.
	_ = s.writeRest(func(kind byte, payload []byte) error {
		b = binary.AppendUvarint(append(b[:0], kind), uint64(len(payload)))
		b = append(b, payload...)
		_, err := d.Write(b)
		return err
	})
	return d.Sum64()
}

// stateHash puts together the hash of a state: of its items (their sum and
// their number), and of the rest, in which the index is.
func stateHash(rest, sum, keys uint64) uint64 {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[0:], rest)
	binary.LittleEndian.PutUint64(b[8:], sum)
	binary.LittleEndian.PutUint64(b[16:], keys)
	return xxhash.Sum64(b[:])
}
