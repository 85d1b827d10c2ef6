package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is a node's own Prometheus registry. It is served together with the
// process's default one, in which etcd's packages register.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	inFlight prometheus.Gauge
	handler  http.Handler
}

func newMetrics(s *statusReporter, p *proposer, more ...prometheus.Collector) *metrics {
	reg := prometheus.NewRegistry()
	m := &metrics{registry: reg, requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "raftkv_request_duration_seconds",
		Help:    "Time to answer a client request, by method, route and status.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 17), // 100 µs to 6.5 s
	}, []string{"method", "route", "status"}), inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "raftkv_requests_in_flight",
		Help: "Client requests that are being served, downloads of backups included.",
	})}
	reg.MustRegister(m.requests, s.node.refusals.total)
	reg.MustRegister(more...)

	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("raftkv_term", "Current raft term.", func() float64 { return float64(s.get().Term) })
	gauge("raftkv_commit_index", "Highest log index known to be committed.", func() float64 { return float64(s.get().CommitIndex) })
	gauge("raftkv_applied_index", "Highest log index applied to the store.", func() float64 { return float64(s.get().AppliedIndex) })
	gauge("raftkv_snapshot_index", "Log index of the newest snapshot.", func() float64 { return float64(s.get().SnapshotIndex) })
	gauge("raftkv_leader", "ID of the leader, 0 if none is known.", func() float64 { return float64(s.get().Leader) })
	gauge("raftkv_is_leader", "1 if this node leads.", func() float64 {
		if s.get().Role == "leader" {
			return 1
		}
		return 0
	})
	gauge("raftkv_revision", "Revision of the store.", func() float64 { return float64(s.get().Revision) })
	gauge("raftkv_keys", "Number of keys.", func() float64 { return float64(s.get().Keys) })
	gauge("raftkv_bytes", "Size of all keys and values.", func() float64 { return float64(s.get().Bytes) })
	gauge("raftkv_diverged", "1 if the checks of the replicas keep this node from serving.", func() float64 {
		if s.kv.sound() != nil {
			return 1
		}
		return 0
	})
	gauge("raftkv_checked_index", "Log index of the newest check on which a majority agreed.", func() float64 {
		return float64(s.get().CheckedIndex)
	})
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "raftkv_checks_total",
		Help: "Checks on which a majority agreed, as applied since the start.",
	}, func() float64 { return float64(s.kv.agreement.decided.Load()) }))
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "raftkv_links_remade_total",
		Help: "Times that all connections to a peer were made anew because the link was broken.",
	}, func() float64 { return float64(s.node.links.remade.Load()) }))
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "raftkv_batch_retries_total",
		Help: "Batches proposed again because raft may have lost them.",
	}, func() float64 { return float64(p.retried()) }))

	all := prometheus.Gatherers{reg, prometheus.DefaultGatherer}
	m.handler = promhttp.HandlerFor(all, promhttp.HandlerOpts{})
	return m
}

// observe counts a request.
func (m *metrics) observe(method, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(methodLabel(method), route, strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *metrics) serve(w http.ResponseWriter, r *http.Request) error {
	m.handler.ServeHTTP(w, r)
	return nil
}
