//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// Guarantee: the configurations in deploy/proxies are those of docs/proxies.md, which are run.
func TestDeployProxies(t *testing.T) {
	for file, lang := range map[string]string{"nginx.conf": "nginx", "haproxy.cfg": "haproxy"} {
		text, err := os.ReadFile(filepath.Join("deploy/proxies", file))
		testkit.Must(t, err)
		if head, conf, _ := strings.Cut(string(text), "\n"); conf != docBlock(t, "docs/proxies.md", lang) || !strings.HasPrefix(head, "# ") {
			t.Errorf("%s is not what docs/proxies.md has", file)
		}
	}
}

// promtool runs it, and returns what it prints.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	testkit.NeedTools(t, "promtool")
	out, err := exec.Command("promtool", args...).CombinedOutput()
	return string(out), err
}

// Guarantee: each alert fires when it should, at the bound, and none on a sound cluster.
func TestDeployAlerts(t *testing.T) {
	const rules, tests = "deploy/prometheus/alerts.yaml", "deploy/prometheus/tests.yaml"
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", rules}, {"test", "rules", tests}} {
		if out, err := promtool(t, args...); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
	text, err := os.ReadFile(rules)
	testkit.Must(t, err)
	tested, err := os.ReadFile(tests)
	testkit.Must(t, err)
	for line := range strings.SplitSeq(string(text), "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "- alert: "); ok {
			for _, when := range []string{"alertname: " + name + "\n", "{alertname: " + name + ", eval_time: 10m, exp_alerts: []}"} {
				if !strings.Contains(string(tested), when) {
					t.Errorf("no test says %q", when)
				}
			}
		}
	}
}

// Guarantee: Prometheus can answer all that the dashboard asks, and no panel lies over another.
func TestDeployDashboard(t *testing.T) {
	text, err := os.ReadFile("deploy/grafana/raftkv.json")
	testkit.Must(t, err)
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	testkit.Must(t, json.Unmarshal(text, &board))
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	taken, ids, n := map[[2]int]string{}, map[int]bool{}, 0
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("%s has the ID of another panel", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x > 23 {
					t.Fatalf("%s lies over %q, or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			n++
			if !strings.Contains(q.Expr, `job="$job"`) {
				t.Errorf("%s asks for all clusters: %s", p.Title, q.Expr)
			}
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", "raftkv").Replace(q.Expr)
			fmt.Fprintf(&rules, "  - record: dashboard:query:%d\n    expr: %q\n", n, expr)
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	testkit.Must(t, os.WriteFile(file, []byte(rules.String()), 0o600))
	if out, err := promtool(t, "check", "rules", file); err != nil || n < 20 {
		t.Errorf("%d queries: %v\n%s", n, err, out)
	}
}

// Guarantee: the services of the compose file are one cluster by their settings: the same
// members for all, and each of them one.
func TestDeployCompose(t *testing.T) {
	text, err := os.ReadFile("deploy/compose.yaml")
	testkit.Must(t, err)
	var file struct {
		Services map[string]struct {
			Hostname    string            `yaml:"hostname"`
			Environment map[string]string `yaml:"environment"`
			StopGrace   string            `yaml:"stop_grace_period"`
		} `yaml:"services"`
	}
	testkit.Must(t, yaml.Unmarshal(text, &file))
	members := map[string]bool{}
	for name, s := range file.Services {
		cfg, err := config.Parse(nil, func(v string) (string, bool) {
			value, ok := s.Environment[v]
			return value, ok
		})
		testkit.Must(t, err)
		if len(cfg.Cluster) != 3 || address.HostOfURL(cfg.PeerURL) != name || s.Hostname != name || !slices.Contains(cfg.AllowedHosts, name) || s.StopGrace != "15s" {
			t.Errorf("%s: %+v", name, cfg)
		}
		for v := range maps.Keys(s.Environment) {
			if !strings.HasPrefix(v, "RAFTKV_") {
				t.Errorf("%s sets %s", name, v)
			}
		}
		members[address.FormatPeers(cfg.Cluster)] = true
	}
	if len(members) != 1 || len(file.Services) != 3 {
		t.Errorf("the services have %d lists of members", len(members))
	}
}
