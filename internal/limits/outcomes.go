package limits

import (
	"fmt"
	"raftkv/internal/meter"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/state"
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
)

// Outcomes bounds the outcomes of requests with an Idempotency-Key. They are kept for as long
// as they were asked for, so when there is no room it is new ones that are refused, before
// they are proposed: nodes may have different bounds, and must not come to different
// states.
type Outcomes struct {
	limit uint64 // bytes
	view  func(look func(*state.State))
	held  atomic.Uint64 // by requests on their way, in bytes
}

// NewOutcomes makes the bound of a node that has room for so many bytes of keys and values
// in its memory, whatever its quota. view lends the state.
func NewOutcomes(room uint64, view func(look func(*state.State))) *Outcomes {
	return &Outcomes{limit: min(maxOutcomes, room/outcomesShare), view: view}
}

// Known reports whether this node knows what came of a request.
func (o *Outcomes) Known(k once.Key) (known bool) {
	o.view(func(s *state.State) { known = s.Once.Get(k) != nil })
	return known
}

// Reserve lets a request with a key pass whose outcome takes up to so many bytes, or says
// that there is no room for it. What it holds it holds until release. A repeat takes none.
func (o *Outcomes) Reserve(k once.Key, outcome int) (release func(), err error) {
	known, used := false, uint64(0)
	o.view(func(s *state.State) { known, used = s.Once.Get(k) != nil, s.Once.Bytes() })
	if known {
		return func() {}, nil
	}
	cost := uint64(once.Cost + len(k.Owner) + len(k.Name) + outcome)
	if after := used + o.held.Add(cost); after > o.limit {
		o.held.Add(-cost)
		return nil, fmt.Errorf("%w: what came of requests with an Idempotency-Key takes %d bytes of %d; a shorter keep, as in %s, makes room sooner",
			problem.ErrOverloaded, used, o.limit, `"KEY";keep=10`)
	}
	return func() { o.held.Add(-cost) }, nil
}

// Register adds what there is to say.
func (o *Outcomes) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_idempotency_bytes", "Bytes that the outcomes of requests with an Idempotency-Key take.", func() (bytes float64) {
		o.view(func(s *state.State) { bytes = float64(s.Once.Bytes()) })
		return bytes
	})
	meter.Gauge(reg, "raftkv_idempotency_bytes_max", "Bytes that they may take on this node.", func() float64 { return float64(o.limit) })
}
