package observe

import (
	"raftkv/internal/membership"
	"raftkv/internal/meter"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Register adds what there is to count.
func (w *Watcher) Register(reg prometheus.Registerer) {
	reg.MustRegister(memberCollector{w})
	meter.Counter(reg, "raftkv_leader_changes_total", "Leaders that this node has heard of: others than before, or in another term.",
		func() float64 { return float64(w.Leaders.HeardOf()) })
	meter.Gauge(reg, "raftkv_check_overdue_seconds", "By how much a check of the replicas is late, 0 if it is not.",
		func() float64 { return w.checks.seconds(time.Now()) })
}

// memberCollector tells of the members: how many there are, on every node; and
// on the leader, each one's reachability and lag. It goes by the watcher's last
// look, so that it never waits.
type memberCollector struct{ w *Watcher }

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
	count := map[string]int{"voter": 0, "learner": 0}
	for _, mem := range c.w.Members().Members {
		count[mem.Role()]++
	}
	for role, n := range count {
		gauge(membersDesc, float64(n), role)
	}
	v := c.w.view.Load()
	if v == nil || !v.leads {
		return
	}
	near := map[string]int{"voter": 0, "learner": 0}
	for id, mem := range v.members {
		role, up := membership.RoleName(mem.learner), 0.0
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
