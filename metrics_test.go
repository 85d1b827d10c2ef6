//go:build unix

package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/access"
	"raftkv/internal/certs"
	"raftkv/internal/front"
	"raftkv/internal/issue"
	"raftkv/internal/membership"
	"raftkv/internal/reconfig"
	"raftkv/internal/testkit"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
)

// gathered returns a node's own metrics by name.
func gathered(t *testing.T, s *server) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := s.api.metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		got[f.GetName()] = f
	}
	return got
}

// valueOfMetric returns a metric's value, by its labels as "name=value".
func valueOfMetric(t *testing.T, s *server, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range gathered(t, s)[name].GetMetric() {
		if slices.Equal(labelsOf(m), labels) {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Errorf("node %d has no metric %s%v", s.cfg.ID, name, labels)
	return 0
}

func labelsOf(m *dto.Metric) (labels []string) {
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	return labels
}

// testCertificates are those of a door, as a node with TLS has them.
func testCertificates(t *testing.T) *certs.Keeper {
	t.Helper()
	ca, _, err := issue.NewCA("CA", time.Now(), time.Now().Add(time.Hour))
	testkit.Must(t, err)
	pair, err := ca.Issue(issue.Request{Server: true, From: time.Now(), Until: ca.Cert.NotAfter})
	testkit.Must(t, err)
	files := certs.Files{Cert: filepath.Join(t.TempDir(), "cert"), Key: filepath.Join(t.TempDir(), "key")}
	testkit.Must(t, pair.Write(files.Cert, files.Key))
	k, err := certs.New(certs.Config{Door: "client", Files: files})
	testkit.Must(t, err)
	return k
}

// testGuard is that of a node with rights.
func testGuard(t *testing.T) *access.Guard {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rights.yaml")
	testkit.Must(t, os.WriteFile(file, []byte("anonymous: all\n"), 0o600))
	g, err := access.Open(zap.NewNop(), file)
	testkit.Must(t, err)
	return g
}

// Guarantee: docs/metrics.md has every metric with its type and labels and no
// other, the alerts and the dashboard of deploy/ name metrics that there are, and Prometheus' linter finds
// nothing in them.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	row := regexp.MustCompile("(?m)^\\| `(raftkv_\\w+)` \\| (\\w+) \\| ([\\w, ]*?) ?\\|")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2] + " " + strings.Join(slices.Sorted(strings.SplitSeq(m[3], ", ")), " ")
	}
	simulate(t, 3, func(c *simCluster) {
		leader := c.Nodes[c.Leader()].Life
		time.Sleep(time.Second)
		leader.api.metrics.Observe(http.MethodGet, "kv", 200, time.Millisecond)
		leader.register(leader.api.audit, front.New(zap.NewNop(), front.Limits{}, nil, nil)) // as server.run does
		leader.register(testGuard(t))
		leader.register(tlsport.NewDoor(tlsport.New(tlsport.Config{Door: "client"}), testCertificates(t)))
		found := make(map[string]string)
		var families []*dto.MetricFamily
		for name, f := range gathered(t, leader) {
			var labels []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				labels = append(labels, l.GetName())
			}
			found[name] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, " ")
			families = append(families, f)
		}
		for name, is := range found {
			if documented[name] != is {
				t.Errorf("docs/metrics.md says that %s is %q, it is %q", name, documented[name], is)
			}
		}
		for name := range documented {
			if _, ok := found[name]; !ok {
				t.Errorf("docs/metrics.md has %s, and there is no such metric", name)
			}
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("the linter says %v, %v", problems, err)
		}
		others, err := prometheus.DefaultGatherer.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range others {
			found[f.GetName()] = "etcd's"
		}
		for _, file := range []string{"deploy/prometheus/alerts.yaml", "deploy/prometheus/tests.yaml", "deploy/grafana/raftkv.json"} {
			text, err := os.ReadFile(file)
			testkit.Must(t, err)
			names := regexp.MustCompile(`\b(raftkv|etcd|process)_\w+`).FindAllString(string(text), -1)
			for _, name := range names {
				name = strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
				if found[name] == "" {
					t.Errorf("%s asks for %s, and there is no such metric", file, name)
				}
			}
			if len(names) < 20 {
				t.Errorf("%s asks for %d metrics", file, len(names))
			}
		}
	})
}

// Guarantee: the leader tells of each member whether it is reachable and what it
// lacks; every node how many there are, whether it hears the leader, and how
// often that changed.
func TestMetricsOfMembers(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		old := c.Leader()
		time.Sleep(time.Second)
		down := c.Followers()[0]
		if got := valueOfMetric(t, c.Nodes[old].Life, "raftkv_members_reachable", "role=voter"); got != 3 {
			t.Errorf("%v of 3 voters are reachable", got)
		}
		for _, name := range []string{"raftkv_member_lag_entries", "raftkv_member_reachable", "raftkv_members_reachable"} {
			if got := gathered(t, c.Nodes[down].Life)[name]; got != nil {
				t.Errorf("a follower tells what only the leader knows: %v", got)
			}
		}
		c.Crash(down)
		for range 20 {
			c.Put(old, "k", c.Value())
		}
		time.Sleep(3 * time.Second)
		s := c.Nodes[old].Life
		member := fmt.Sprintf("member=%d", down)
		if got := valueOfMetric(t, s, "raftkv_member_reachable", member, "role=voter"); got != 0 {
			t.Errorf("a node that is down is reachable: %v", got)
		}
		if got := valueOfMetric(t, s, "raftkv_member_lag_entries", member, "role=voter"); got < 20 {
			t.Errorf("it lacks %v entries, want 20 or more", got)
		}
		if got := valueOfMetric(t, s, "raftkv_member_lag_entries", fmt.Sprintf("member=%d", old), "role=voter"); got != 0 {
			t.Errorf("the leader lacks %v entries", got)
		}
		if got := valueOfMetric(t, s, "raftkv_members_reachable", "role=voter"); got != 2 {
			t.Errorf("%v of 3 voters are reachable, one is down", got)
		}
		for _, id := range c.Up() {
			s := c.Nodes[id].Life
			if got := valueOfMetric(t, s, "raftkv_members", "role=voter"); got != 3 {
				t.Errorf("%v voters", got)
			}
			if got := valueOfMetric(t, s, "raftkv_leader_contact_seconds"); got > 0.5 {
				t.Errorf("node %d last heard from the leader %v s ago", id, got)
			}
		}
		changes := valueOfMetric(t, s, "raftkv_leader_changes_total")
		c.Start(down)
		c.awaitPublished(1, 2, 3)
		c.mustChange(old, reconfig.Request{Op: membership.OpLead, ID: down})
		time.Sleep(time.Second)
		if got := valueOfMetric(t, s, "raftkv_leader_changes_total"); got != changes+1 {
			t.Errorf("the leader changed once, and %v times were counted", got-changes)
		}
		if got := gathered(t, s)["raftkv_member_lag_entries"]; got != nil {
			t.Errorf("a former leader still tells of lags: %v", got)
		}
		// Nothing is heard by who is cut off.
		c.Net.Isolate(old, down, c.Followers()[0], c.Followers()[1])
		time.Sleep(10 * time.Second)
		if got := valueOfMetric(t, s, "raftkv_leader_contact_seconds"); got < 9 || got > 11 {
			t.Errorf("cut off for 10 s, it last heard from the leader %v s ago", got)
		}
	})
}

// Guarantee: a check that does not come is overdue, after three intervals.
func TestMetricsCheckOverdue(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		c.awaitPublished(1, 2, 3)
		for range 30 {
			c.Put(leader, "k", c.Value())
			time.Sleep(2 * time.Second)
		}
		s := c.Nodes[leader].Life
		time.Sleep(15 * time.Second) // for the check of the last one
		if got := valueOfMetric(t, s, "raftkv_check_overdue_seconds"); got != 0 {
			t.Errorf("while checks are made one is overdue by %v s", got)
		}
		for _, id := range c.Followers() {
			c.Crash(id)
		}
		time.Sleep(40 * time.Second)
		kv := s.kv
		kv.mu.Lock()
		kv.agreement.Worked.Store(kv.state.Index + 1) // as if it had been committed
		kv.mu.Unlock()
		time.Sleep(31 * time.Second)
		if got := valueOfMetric(t, s, "raftkv_check_overdue_seconds"); got <= 0 || got > 2 {
			t.Errorf("31 s after a change that was not checked one is overdue by %v s, want about 1", got)
		}
	})
}

// Guarantee: a request has a route, one of a few, whatever its key; requests in
// flight are counted while they are.
func TestMetricsOfRequests(t *testing.T) {
	at := newAPITest(t)
	at.watches()
	covered := make(map[string]bool)
	for target, want := range map[string]string{
		"GET /k": "kv", "PUT /v1/kv/a/b": "kv", "DELETE /v1/kv/x": "kv", "GET /v1/kv": "list", "GET /v1": "other", "GET /v1/nothing": "other", "GET /ui/x": "other",
		"POST /4": "member", "DELETE /4": "member", "PATCH /v1/members/4": "member", "GET /v1/members": "members", "GET /v1/leases": "leases", "PUT /v1/leases/7": "lease", "POST /v1/leader": "leader",
		"POST /v1/add": "add", "POST /v1/txn": "txn", "POST /v1/kv": "list", "GET /v1/status": "status", "GET /v1/snapshot": "snapshot", "GET /v1/errors": "errors", "GET /v1/openapi.yaml": "openapi", "GET /livez": "livez", "GET /readyz": "readyz", "GET /metrics": "metrics",
		"POST /v1/watch": "watch", "GET /k?wait=1ms": "poll", "GET /v1/kv?after_revision=9&wait=1ms": "poll",
		"GET /debug/pprof/heap": "pprof", "GET /debug/x": "other", "GET /": "help", "BREW /k": "kv",
	} {
		method, path, _ := strings.Cut(target, " ")
		target, query, _ := strings.Cut(path, "?")
		if got := web.RouteLabel(method, target, query); got != want || !slices.Contains(web.RouteLabels, got) {
			t.Errorf("%s is route %q, want %q", target, got, want)
		}
		if covered[want] = true; method == "GET" && want != "snapshot" { // which breaks off without a connection
			at.do(method, path, "")
		}
	}
	if len(covered) != len(web.RouteLabels) {
		t.Errorf("routes %v, want all of %v", slices.Sorted(maps.Keys(covered)), web.RouteLabels)
	}
	at.do("BREW", "/k", "")
	for i := range 50 {
		at.do("GET", fmt.Sprintf("/key-%d", i), "")
	}
	seen := make(map[string]bool)
	s := at.a.metrics.Registry
	families, err := s.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "raftkv_requests_in_flight" && f.GetMetric()[0].GetGauge().GetValue() != 0 {
			t.Error("requests that have ended are in flight")
		}
		if f.GetName() != "raftkv_request_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			seen[m.GetLabel()[1].GetValue()] = true
			if m.GetLabel()[0].GetValue() == "BREW" {
				t.Error("a made-up method is a label")
			}
		}
	}
	for route := range seen {
		if !slices.Contains(web.RouteLabels, route) {
			t.Errorf("there is a route %q", route)
		}
	}
	if len(seen) < 7 || !seen["kv"] || !seen["other"] {
		t.Errorf("only the routes %v were counted", slices.Sorted(maps.Keys(seen)))
	}
	// While one is served.
	at.a.keys.Fresh.Confirm = func(ctx context.Context) error {
		families, err := s.Gather()
		for _, f := range families {
			if f.GetName() == "raftkv_requests_in_flight" && f.GetMetric()[0].GetGauge().GetValue() != 1 {
				t.Error("a request that is being served is not in flight")
			}
		}
		return err
	}
	at.do("GET", "/k", "")
}

// Guarantee: each resource that there is has a label of its own.
func TestRoutesHaveLabels(t *testing.T) {
	at := newAPITest(t)
	seen := make(map[string]string)
	for path, methods := range at.a.routes {
		for method := range methods {
			label := web.RouteLabel(method, "/"+path, "")
			if label == "other" || !slices.Contains(web.RouteLabels, label) || seen[label] != "" && seen[label] != path {
				t.Errorf("%s /%s has the label %q, as %q", method, path, label, seen[label])
			}
			seen[label] = path
		}
	}
	if len(seen) == 0 {
		t.Error("there are no routes")
	}
}
