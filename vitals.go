package main

import (
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics to alert on; docs/metrics.md has all of them, and what to look for.

// lineDropper is a log that drops lines rather than wait for whoever reads them.
type lineDropper interface{ Dropped() uint64 }

// addVitals registers what a node, put together, tells of itself and, leading,
// of the others.
func (m *metrics) addVitals(s *server) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	counter := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
	}

	b := thisBuild()
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "raftkv_build_info", Help: "1; the labels tell what program this is.",
		ConstLabels: prometheus.Labels{"version": b.version, "revision": b.revision, "go": b.goVersion},
	}, func() float64 { return 1 }))

	m.registry.MustRegister(memberCollector{s})
	counter("raftkv_leader_changes_total", "Leaders that this node has heard of: others than before, or in another term.",
		func() float64 { return float64(s.node.leaders.heardOf()) })
	gauge("raftkv_leader_contact_seconds", "Time since the leader, or on the leader a majority, was last heard from; 0 on a lone node, NaN if never.",
		func() float64 {
			ms, ok := s.api.status.leaderContact()
			if !ok {
				return math.NaN()
			}
			return float64(ms) / 1000
		})
	gauge("raftkv_check_overdue_seconds", "By how much a check of the replicas is late, 0 if it is not.",
		func() float64 { return s.watcher.checks.seconds(time.Now()) })

	m.registry.MustRegister(m.inFlight)
	gauge("raftkv_commands_queued", "Commands that wait to be proposed.",
		func() float64 { commands, _ := s.proposals.backlog(); return float64(commands) })
	gauge("raftkv_commands_queued_bytes", "Size of the commands that wait to be proposed.",
		func() float64 { _, size := s.proposals.backlog(); return float64(size) })
	gauge("raftkv_reads_waiting", "Linearizable reads that wait for the leader's word, or for this node to catch up.",
		func() float64 { return float64(s.reads.backlog()) })

	st := &s.storage.snapshots
	gauge("raftkv_snapshot_timestamp_seconds", "When the newest snapshot was written, 0 if there is none.",
		func() float64 { return float64(st.at.Load()) / 1e9 })
	gauge("raftkv_snapshot_bytes", "Size of the newest snapshot.", func() float64 { return float64(st.bytes.Load()) })
	gauge("raftkv_snapshot_duration_seconds", "How long this node's last own snapshot took to write, 0 if it wrote none since its start.",
		func() float64 { return time.Duration(st.took.Load()).Seconds() })
	for what, n := range map[string]func() uint64{"written": st.written.Load, "sent": st.sent.Load, "installed": st.installed.Load} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "raftkv_snapshots_total", Help: "Snapshots written by this node, sent to another, or installed from another.",
			ConstLabels: prometheus.Labels{"what": what},
		}, func() float64 { return float64(n()) }))
	}
	for what, n := range map[string]func() uint64{"write": st.unwritten.Load, "send": st.unsent.Load, "store": s.storage.trouble.lost.Load} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "raftkv_snapshot_failures_total", Help: "Snapshots that could not be written, not be sent, or not be stored when another node sent them.",
			ConstLabels: prometheus.Labels{"what": what},
		}, func() float64 { return float64(n()) }))
	}

	counter("raftkv_log_lines_dropped_total", "Lines of the log that nobody took in time.", func() float64 {
		if d, ok := s.log.Core().(lineDropper); ok {
			return float64(d.Dropped())
		}
		return 0
	})
}

// heardOf returns how many changes of the leader this node has seen.
func (l *leadership) heardOf() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// backlog returns what waits to be proposed.
func (p *proposer) backlog() (commands, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue), p.queued
}

// backlog returns how many readers wait.
func (r *reader) backlog() (readers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting != nil {
		readers = r.waiting.readers
	}
	for _, round := range r.rounds {
		readers += round.readers
	}
	return readers
}

// memberCollector tells of the members: how many there are, on every node; and
// on the leader, each one's reachability and lag. It goes by the watcher's last
// look, so that it never waits.
type memberCollector struct{ s *server }

var (
	membersDesc = prometheus.NewDesc("raftkv_members", "Members by role.", []string{"role"}, nil)
	upDesc      = prometheus.NewDesc("raftkv_members_reachable",
		"Members by role that the leader has heard from within an election timeout, itself included; on the leader only.", []string{"role"}, nil)
	reachDesc = prometheus.NewDesc("raftkv_member_reachable",
		"1 if the leader has heard from a member within an election timeout; on the leader only.", []string{"member", "role"}, nil)
	lagDesc = prometheus.NewDesc("raftkv_member_lag_entries",
		"Committed entries of the log that a member is not known to have; on the leader only.", []string{"member", "role"}, nil)
)

func (c memberCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{membersDesc, upDesc, reachDesc, lagDesc} {
		ch <- d
	}
}

func (c memberCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	m, _ := c.s.kv.membership()
	count := map[string]int{"voter": 0, "learner": 0}
	for _, mem := range m.members {
		count[roleName(mem.Learner)]++
	}
	for role, n := range count {
		gauge(membersDesc, float64(n), role)
	}
	v := c.s.watcher.view.Load()
	if v == nil || !v.leads {
		return
	}
	near := map[string]int{"voter": 0, "learner": 0}
	for id, mem := range v.members {
		role, up := roleName(mem.learner), 0.0
		if mem.near {
			near[role]++
			up = 1
		}
		gauge(reachDesc, up, strconv.FormatUint(id, 10), role)
		gauge(lagDesc, float64(v.lag(id)), strconv.FormatUint(id, 10), role)
	}
	for role, n := range near {
		gauge(upDesc, float64(n), role)
	}
}

func roleName(learner bool) string {
	if learner {
		return "learner"
	}
	return "voter"
}
