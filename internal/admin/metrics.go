package admin

import (
	"net/http"
	"raftkv/internal/meter"
	"raftkv/internal/version"
	"raftkv/internal/web"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Metrics is a node's own Prometheus registry. It is served together with the
// process's default one, in which etcd's packages register.
type Metrics struct {
	Registry *prometheus.Registry
	requests *prometheus.HistogramVec
	InFlight prometheus.Gauge
	handler  http.Handler
}

// NewMetrics makes the metrics of what clients ask, and of what a node says of
// itself. The parts of the node register their own.
func NewMetrics(status func() NodeStatus) *Metrics {
	reg := prometheus.NewRegistry()
	m := &Metrics{Registry: reg, requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "raftkv_request_duration_seconds",
		Help:    "Time to answer a client request, by method, route and status.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 17), // 100 µs to 6.5 s
	}, []string{"method", "route", "status"}), InFlight: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "raftkv_requests_in_flight",
		Help: "Client requests that are being served, downloads of backups included.",
	})}
	reg.MustRegister(m.requests, m.InFlight)
	b := version.This()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "raftkv_build_info", Help: "1; the labels tell what program this is.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go": b.GoVersion},
	}, func() float64 { return 1 }))

	of := func(name, help string, value func(NodeStatus) uint64) {
		meter.Gauge(reg, name, help, func() float64 { return float64(value(status())) })
	}
	flag := func(name, help string, value func(NodeStatus) bool) {
		of(name, help, func(s NodeStatus) uint64 {
			if value(s) {
				return 1
			}
			return 0
		})
	}
	of("raftkv_term", "Current raft term.", func(s NodeStatus) uint64 { return s.Term })
	of("raftkv_commit_index", "Highest log index known to be committed.", func(s NodeStatus) uint64 { return s.CommitIndex })
	of("raftkv_applied_index", "Highest log index applied to the store.", func(s NodeStatus) uint64 { return s.AppliedIndex })
	of("raftkv_snapshot_index", "Log index of the newest snapshot.", func(s NodeStatus) uint64 { return s.SnapshotIndex })
	of("raftkv_leader", "ID of the leader, 0 if none is known.", func(s NodeStatus) uint64 { return s.Leader })
	flag("raftkv_is_leader", "1 if this node leads.", func(s NodeStatus) bool { return s.Role == "leader" })
	of("raftkv_revision", "Revision of the store.", func(s NodeStatus) uint64 { return s.Revision })
	of("raftkv_keys", "Number of keys.", func(s NodeStatus) uint64 { return s.Keys })
	of("raftkv_bytes", "Size of all keys and values.", func(s NodeStatus) uint64 { return s.Bytes })
	flag("raftkv_diverged", "1 if the checks of the replicas keep this node from serving.", func(s NodeStatus) bool { return s.Diverged })
	flag("raftkv_disputed", "1 if another member's history contradicts this node's, and it is not known which one the majority keeps.", func(s NodeStatus) bool { return s.Disputed })
	of("raftkv_checked_index", "Log index of the newest check on which a majority agreed.", func(s NodeStatus) uint64 { return s.CheckedIndex })

	m.handler = promhttp.HandlerFor(prometheus.Gatherers{reg, prometheus.DefaultGatherer}, promhttp.HandlerOpts{})
	return m
}

// Observe counts a request.
func (m *Metrics) Observe(method, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(web.MethodLabel(method), route, strconv.Itoa(status)).Observe(took.Seconds())
}

// slowRequestAfter is how long a request may take before an operator should hear
// of it. One that waits for an election takes longer, at the default election
// timeout.
const slowRequestAfter = time.Second

// Count counts a request, and says in log if it was slow. Which key it was of is nobody's
// business there. How long a download takes is up to who takes it.
func (m *Metrics) Count(log *zap.Logger, method, route string, status int, took time.Duration) {
	m.Observe(method, route, status, took)
	if took > slowRequestAfter && !web.Lasts(route) {
		log.Warn("slow request", zap.String("method", web.MethodLabel(method)), zap.String("route", route),
			zap.Int("status", status), zap.Duration("took", took))
	}
}

// Serve answers GET /metrics. Its error is always nil.
func (m *Metrics) Serve(w http.ResponseWriter, r *http.Request) error {
	m.handler.ServeHTTP(w, r)
	return nil
}
