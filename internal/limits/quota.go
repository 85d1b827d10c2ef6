// Package limits answers: what is refused before it costs anything? It has the
// quota of keys and values, the sum of bodies that are on their way in, and the
// numbers of connections.
package limits

import (
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/memory"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Quota bounds what this node lets in: the bytes of keys and values, and what
// they take in memory. It is asked before a write is proposed and never when one
// is applied: nodes may have different quotas, and must not come to different
// states.
type Quota struct {
	Limit uint64 // bytes; 0: none
	Room  uint64 // bytes, and memory.KeyCost for each key; 0: none
	store sizes

	// By writes on their way:
	Reserved atomic.Uint64 // bytes
	NewKeys  atomic.Uint64 // keys that they add
}

// NewQuota makes the quota of a node that holds this state at its start: what was
// asked for, or else what there is memory for. A directory that holds more than
// that may have come from a larger machine, or an earlier version: it gets a tenth
// more than it holds.
func NewQuota(log *zap.Logger, cfg config.Config, store sizes) *Quota {
	l, room := cfg.Memory, cfg.Memory.Room()
	if cfg.Quota != config.QuotaFromMemory {
		if asked := uint64(cfg.Quota); asked == 0 && l.Bytes > 0 || asked > room {
			log.Warn("--quota lets in more than there is memory for: the process may be killed, and again at each start",
				zap.Int64("quota", cfg.Quota), zap.Uint64("fits", room), zap.Stringer("limit", l))
		}
		return &Quota{Limit: uint64(cfg.Quota), store: store}
	}
	q := &Quota{Limit: min(memory.QuotaMost, room), Room: room, store: store}
	holds := store.Used("")
	bytes, keys := holds.Bytes, holds.Keys
	if cost := bytes + keys*memory.KeyCost; bytes > q.Limit || cost > q.Room {
		q.Limit, q.Room = max(q.Limit, bytes+bytes/10), max(q.Room, cost+cost/10)
		log.Warn("the data directory holds more than there is memory for; it may grow by a tenth. Delete keys, or give the process more memory",
			zap.Uint64("bytes", bytes), zap.Uint64("keys", keys), zap.Uint64("fits", room), zap.Stringer("limit", l))
	}
	return q
}

// sizes tells the quota what the store holds.
type sizes interface {
	// Size returns the bytes and keys that the store held a moment ago. It costs
	// nothing.
	Size() (bytes, keys uint64)
	// Used returns what the store holds, and one key of it.
	Used(key string) state.Holding
}

// Reserve lets a write of a key pass, or says that there is no room for what
// the store would grow by. A write that passes holds its room until release,
// so that many at once do not exceed the quota together.
func (q *Quota) Reserve(key string, size int) (release func(), err error) {
	if q.Limit == 0 && q.Room == 0 {
		return func() {}, nil
	}
	growth := uint64(len(key) + size)
	// Far from the limits it does not matter what the key has now.
	newKeys := q.NewKeys.Add(1)
	for {
		// In this order: a write that is applied in between counts twice, not never.
		held := q.Reserved.Load()
		bytes, keys := q.store.Size()
		if !q.fits(bytes+held+growth, keys+newKeys, 16) {
			break
		}
		if q.Reserved.CompareAndSwap(held, held+growth) {
			return func() { q.release(growth, 1) }, nil
		}
	}
	q.NewKeys.Add(^uint64(0))
	u := q.store.Used(key)
	if growth <= u.Old {
		return func() {}, nil // it takes no more than what it replaces
	}
	growth -= u.Old
	added := uint64(1)
	if u.Exists {
		added = 0
	}
	after, all := u.Bytes+q.Reserved.Add(growth), u.Keys+q.NewKeys.Add(added)
	if !q.fits(after, all, 0) {
		q.release(growth, added)
		return nil, q.refusal(u.Bytes, u.Keys)
	}
	return func() { q.release(growth, added) }, nil
}

func (q *Quota) release(growth, keys uint64) {
	q.Reserved.Add(-growth)
	q.NewKeys.Add(-keys)
}

// fits reports whether so many bytes and keys are allowed. With spare above 0, one
// part in spare of the quota has to be left over.
func (q *Quota) fits(bytes, keys, spare uint64) bool {
	within := func(n, limit uint64) bool {
		if spare > 0 {
			limit -= limit / spare
		}
		return n <= limit
	}
	return (q.Limit == 0 || within(bytes, q.Limit)) && (q.Room == 0 || within(bytes+keys*memory.KeyCost, q.Room))
}

func (q *Quota) refusal(bytes, keys uint64) error {
	if cost := bytes + keys*memory.KeyCost; q.Room > 0 && q.Limit-min(q.Limit, bytes) > q.Room-min(q.Room, cost) {
		return fmt.Errorf("%w: %d keys take about %d bytes of memory with their values, and %d are allowed, by the memory that this node has",
			problem.ErrQuota, keys, cost, q.Room)
	}
	return fmt.Errorf("%w: they take %d bytes, %d are allowed", problem.ErrQuota, bytes, q.Limit)
}

// Register adds what there is to say.
func (q *Quota) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_quota_bytes", "Bytes of keys and values that this node lets in; 0 is any number.",
		func() float64 { return float64(q.Limit) })
}
