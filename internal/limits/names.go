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
	// maxNames is how much memory the outcomes of requests with an Idempotency-Key may
	// take, in bytes.
	maxNames = 128 << 20
	// namesShare is the part of the memory for keys and values that they may take, where
	// there is little of it: one in so many.
	namesShare = 8
)

// Names bounds the outcomes of requests with an Idempotency-Key. They are kept for as long
// as they were asked for, so when there is no room it is new ones that are refused, before
// they are proposed: nodes may have different bounds, and must not come to different
// states.
type Names struct {
	limit uint64 // bytes
	view  func(look func(*state.State))
	held  atomic.Uint64 // by requests on their way, in bytes
}

// NewNames makes the bound of a node with a quota. view lends the state.
func NewNames(q *Quota, view func(look func(*state.State))) *Names {
	n := &Names{limit: maxNames, view: view}
	if q.Room > 0 {
		n.limit = min(n.limit, q.Room/namesShare)
	}
	return n
}

// Reserve lets a request with a key pass whose outcome takes up to so many bytes, or says
// that there is no room for it. What it holds it holds until release. A repeat takes none.
func (n *Names) Reserve(k once.Key, outcome int) (release func(), err error) {
	known, used := false, uint64(0)
	n.view(func(s *state.State) { known, used = s.Once.Get(k) != nil, s.Once.Bytes() })
	if known {
		return func() {}, nil
	}
	cost := uint64(once.Cost + len(k.Owner) + len(k.Name) + outcome)
	if after := used + n.held.Add(cost); after > n.limit {
		n.held.Add(-cost)
		return nil, fmt.Errorf("%w: what came of requests with an Idempotency-Key takes %d bytes of %d; a shorter keep, as in %s, makes room sooner",
			problem.ErrOverloaded, used, n.limit, `"KEY";keep=10`)
	}
	return func() { n.held.Add(-cost) }, nil
}

// Register adds what there is to say.
func (n *Names) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_idempotency_bytes", "Bytes that the outcomes of requests with an Idempotency-Key take.", func() (bytes float64) {
		n.view(func(s *state.State) { bytes = float64(s.Once.Bytes()) })
		return bytes
	})
	meter.Gauge(reg, "raftkv_idempotency_bytes_max", "Bytes that they may take on this node.", func() float64 { return float64(n.limit) })
}
