package limits

import (
	"fmt"
	"raftkv/internal/meter"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxOutcomes is how much memory the outcomes of requests with an Idempotency-Key may
	// take, in bytes.
	maxOutcomes = 128 << 20
	// outcomesShare is the part of the memory for keys and values that they may take, where
	// there is little of it: one in so many.
	outcomesShare = 8
	// ownerShare is the part of all outcomes that those of one owner may take: one in so
	// many. Nobody can keep everybody else from writing for as long as outcomes are kept.
	ownerShare = 2
)

// Outcomes bounds the outcomes of requests with an Idempotency-Key. They are kept for as long
// as they were asked for, so when there is no room it is new ones that are refused, before
// they are proposed: nodes may have different bounds, and must not come to different
// states.
type Outcomes struct {
	limit uint64 // bytes
	view  func(look func(*state.State))
	held  atomic.Uint64 // by requests on their way, in bytes

	mu   sync.Mutex
	each map[string]uint64 // of that, by owner
}

// NewOutcomes makes the bound of a node that has room for so many bytes of keys and values
// in its memory, whatever its quota. view lends the state.
func NewOutcomes(room uint64, view func(look func(*state.State))) *Outcomes {
	return &Outcomes{limit: min(maxOutcomes, room/outcomesShare), view: view, each: make(map[string]uint64)}
}

// Known reports whether this node knows what came of a request.
func (o *Outcomes) Known(k once.Key) (known bool) {
	o.view(func(s *state.State) { known = s.Once.Get(k) != nil })
	return known
}

// Reserve lets a request with a key pass whose outcome takes up to so many bytes, or says
// that there is no room for it. What it holds it holds until release. A repeat takes none.
// shared says that there are owners, of whom none may take all the room.
func (o *Outcomes) Reserve(k once.Key, outcome int, shared bool) (release func(), err error) {
	known, used, own := false, uint64(0), uint64(0)
	o.view(func(s *state.State) { known, used, own = s.Once.Get(k) != nil, s.Once.Bytes(), s.Once.BytesOf(k.Owner) })
	if known {
		return func() {}, nil
	}
	cost := uint64(once.Cost + len(k.Owner) + len(k.Name) + outcome)
	if after := used + o.held.Add(cost); after > o.limit {
		o.held.Add(-cost)
		return nil, fmt.Errorf("%w: what came of requests with an Idempotency-Key takes %d bytes of %d; a shorter keep, as in %s, makes room sooner",
			problem.ErrOverloaded, used, o.limit, `"KEY";keep=10`)
	}
	if !shared {
		return func() { o.held.Add(-cost) }, nil
	}
	if held := o.hold(k.Owner, cost); own+held > o.limit/ownerShare {
		o.held.Add(-cost)
		o.hold(k.Owner, -cost)
		return nil, fmt.Errorf("%w: what came of your requests with an Idempotency-Key takes %d bytes of the %d that one owner may have; a shorter keep, as in %s, makes room sooner",
			problem.ErrOverloaded, own, o.limit/ownerShare, `"KEY";keep=10`)
	}
	return func() { o.held.Add(-cost); o.hold(k.Owner, -cost) }, nil
}

// hold changes by how much the requests of an owner on their way hold, and returns how much
// that is now.
func (o *Outcomes) hold(owner string, change uint64) (held uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if held = o.each[owner] + change; held == 0 {
		delete(o.each, owner)
	} else {
		o.each[owner] = held
	}
	return held
}

// Register adds what there is to say.
func (o *Outcomes) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_idempotency_bytes", "Bytes that the outcomes of requests with an Idempotency-Key take.", func() (bytes float64) {
		o.view(func(s *state.State) { bytes = float64(s.Once.Bytes()) })
		return bytes
	})
	meter.Gauge(reg, "raftkv_idempotency_bytes_max", "Bytes that they may take on this node.", func() float64 { return float64(o.limit) })
}
