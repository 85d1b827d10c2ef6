package watch

import (
	"raftkv/internal/changelog"
	"raftkv/internal/meter"
	"raftkv/internal/state"

	"github.com/prometheus/client_golang/prometheus"
)

// CountReset counts that a watcher had to begin again.
func (h *Hub) CountReset() { h.resets.Add(1) }

// Register adds what there is to count.
func (h *Hub) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_watchers", "Watches, and reads that wait for a change.",
		func() float64 { return float64(h.Watching()) })
	meter.Gauge(reg, "raftkv_watch_history_bytes", "What the changes kept for watches take in memory, about.",
		func() float64 {
			return float64(h.history(func(c *changelog.Log[state.Item]) int { return int(c.Bytes()) }))
		})
	meter.Gauge(reg, "raftkv_watch_history_revisions", "How many revisions' changes are kept for watches.",
		func() float64 { return float64(h.history(func(c *changelog.Log[state.Item]) int { return c.Len() })) })
	meter.Counter(reg, "raftkv_watch_resets_total", "Watches that had to begin again, because the changes since their position are not kept, or it is of another history.",
		func() float64 { return float64(h.resets.Load()) })
}

func (h *Hub) history(of func(*changelog.Log[state.Item]) int) (n int) {
	_ = h.cfg.Look(func(s *state.State) { n = of(&s.Changes) }) // none while a snapshot is loaded
	return n
}
