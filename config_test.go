package main

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

const (
	urlA = "http://127.0.0.1:12379"
	urlB = "http://127.0.0.1:22379"
	urlC = "http://127.0.0.1:32379"
)

// mapEnv returns a getenv that knows the given variables only.
func mapEnv(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// mustParse parses flags without any environment.
func mustParse(t *testing.T, args ...string) config {
	t.Helper()
	c, err := parseConfig(args, mapEnv(nil))
	if err != nil {
		t.Fatalf("parseConfig(%q): %v", args, err)
	}
	return c
}

// wantProblems checks that err has one line for each element of want, in that
// order, and that the line contains all the words of that element.
func wantProblems(t *testing.T, err error, want ...[]string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %d problems: %q", len(want), want)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %d problems, want %d:\n%v", len(lines), len(want), err)
	}
	for i, words := range want {
		for _, w := range words {
			if !strings.Contains(lines[i], w) {
				t.Errorf("problem %d: %s\nlacks %q", i+1, lines[i], w)
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	want := config{
		ID:                1,
		Cluster:           []peer{{1, "http://127.0.0.1:9021"}},
		PeerURL:           "http://127.0.0.1:9021",
		Host:              "127.0.0.1",
		Port:              9121,
		DataDir:           "raftkv-1",
		SnapshotCount:     100000,
		HeartbeatInterval: 100 * time.Millisecond,
		ElectionTimeout:   time.Second,
		RequestTimeout:    5 * time.Second,
		MaxValueSize:      1048576,
		LogLevel:          "info",
		LogFormat:         "console",
	}
	c := mustParse(t)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("parseConfig() = %+v\nwant %+v", c, want)
	}
	if d := defaultConfig(); !reflect.DeepEqual(d, want) {
		t.Errorf("defaultConfig() = %+v\nwant %+v", d, want)
	}
	if err := c.validate(); err != nil {
		t.Errorf("validate: %v", err)
	}
	if got := c.listenPeer(); got != "127.0.0.1:9021" {
		t.Errorf("listenPeer() = %q", got)
	}
	if got := c.clientURL(c.Port); got != "http://127.0.0.1:9121" {
		t.Errorf("clientURL() = %q", got)
	}
}

// settingTests gives each flag a value that is not its default.
var settingTests = []struct {
	flag, value string
	get         func(config) any
	want        any
}{
	{"id", "7", func(c config) any { return c.ID }, uint64(7)},
	{"cluster", "7=" + urlA, func(c config) any { return c.Cluster }, []peer{{7, urlA}}},
	{"port", "0", func(c config) any { return c.Port }, 0},
	{"join", "true", func(c config) any { return c.Join }, true},
	{"host", "[::1]", func(c config) any { return c.Host }, "::1"},
	{"allowed-host", "KV.example.com, kv2", func(c config) any { return c.AllowedHosts }, []string{"kv.example.com", "kv2"}},
	{"listen-peer", ":12379", func(c config) any { return c.listenPeer() }, ":12379"},
	{"advertise-client-url", "http://Kv:80", func(c config) any { return c.clientURL(1) }, "http://kv:80"},
	{"data-dir", "/var/lib/raftkv", func(c config) any { return c.DataDir }, "/var/lib/raftkv"},
	{"cluster-id", "0xCAFE", func(c config) any { return c.ClusterID }, uint64(0xcafe)},
	{"snapshot-count", "1", func(c config) any { return c.SnapshotCount }, uint64(1)},
	{"heartbeat-interval", "10ms", func(c config) any { return c.HeartbeatInterval }, 10 * time.Millisecond},
	{"election-timeout", "2s", func(c config) any { return c.ElectionTimeout }, 2 * time.Second},
	{"request-timeout", "1m", func(c config) any { return c.RequestTimeout }, time.Minute},
	{"max-value-size", "512KiB", func(c config) any { return c.MaxValueSize }, int64(512 << 10)},
	{"log-level", "debug", func(c config) any { return c.LogLevel }, "debug"},
	{"log-format", "json", func(c config) any { return c.LogFormat }, "json"},
}

// withContext adds what some flags need next to them to be valid.
func withContext(flag string) []string {
	switch flag {
	case "id":
		return []string{"--cluster=7=" + urlA}
	case "cluster":
		return []string{"--id=7"}
	case "join":
		return []string{"--cluster", urlA + "," + urlB}
	}
	return nil
}

func TestEachFlag(t *testing.T) {
	for _, tt := range settingTests {
		for _, args := range [][]string{
			{"--" + tt.flag + "=" + tt.value},
			{"-" + tt.flag + "=" + tt.value},
			{"--" + tt.flag, tt.value},
		} {
			if tt.flag == "join" && len(args) == 2 {
				args = args[:1]
			}
			c := mustParse(t, append(args, withContext(tt.flag)...)...)
			if got := tt.get(c); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%q: got %v, want %v", args, got, tt.want)
			}
		}
	}
}

func TestEachVariable(t *testing.T) {
	for _, tt := range settingTests {
		env := mapEnv(map[string]string{envName(tt.flag): tt.value})
		c, err := parseConfig(withContext(tt.flag), env)
		if err != nil {
			t.Errorf("%s=%s: %v", envName(tt.flag), tt.value, err)
			continue
		}
		if got := tt.get(c); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s=%s: got %v, want %v", envName(tt.flag), tt.value, got, tt.want)
		}
	}
}

func TestFlagWins(t *testing.T) {
	for _, tt := range settingTests {
		env := mapEnv(map[string]string{envName(tt.flag): "@"}) // bad for most, and not looked at
		c, err := parseConfig(append(withContext(tt.flag), "--"+tt.flag+"="+tt.value), env)
		if err != nil {
			t.Errorf("--%s=%s over %s=@: %v", tt.flag, tt.value, envName(tt.flag), err)
			continue
		}
		if got := tt.get(c); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("--%s=%s over %s=@: got %v, want %v", tt.flag, tt.value, envName(tt.flag), got, tt.want)
		}
	}
}

func TestSettingTestsAreComplete(t *testing.T) {
	var c config
	var list string
	tested := map[string]bool{"version": true} // TestVersion
	for _, tt := range settingTests {
		tested[tt.flag] = true
	}
	for _, s := range c.settings(&list) {
		if !tested[s.flag] {
			t.Errorf("settingTests lacks --%s", s.flag)
		}
		if !strings.Contains(usage(), "\n  --"+s.flag+" ") {
			t.Errorf("usage lacks --%s", s.flag)
		}
	}
}

func TestEnvironment(t *testing.T) {
	c, err := parseConfig(nil, mapEnv(map[string]string{
		"RAFTKV_PORT":         "",      // empty is unset
		"RAFTKV_VERSION":      "1.2.3", // an image's label, not a question
		"RAFTKV_SERVICE_HOST": "10.0.0.7",
		"RAFTKV_ENDPOINTS":    "http://127.0.0.1:1", // the client's
	}))
	if err != nil || !reflect.DeepEqual(c, defaultConfig()) {
		t.Errorf("got %+v, %v; want the defaults", c, err)
	}

	_, err = parseConfig([]string{"--log-level", "loud"}, mapEnv(map[string]string{
		"RAFTKV_PORT":             "tcp://10.0.0.7:9121",
		"RAFTKV_ELECTION_TIMEOUT": "200ms",
		"RAFTKV_JOIN":             "maybe",
	}))
	wantProblems(t, err,
		[]string{`RAFTKV_PORT "tcp://10.0.0.7:9121"`, "0 to 65535", "enableServiceLinks"},
		[]string{`RAFTKV_JOIN "maybe"`, "true or false"},
		[]string{"RAFTKV_ELECTION_TIMEOUT 200ms", "--heartbeat-interval 100ms", "300ms"},
		[]string{`--log-level "loud"`, "debug, info, warn or error"},
	)
}

func TestAllowedHostRepeats(t *testing.T) {
	c := mustParse(t, "--allowed-host", "a,b", "--allowed-host=c", "--allowed-host", "A")
	if want := []string{"a", "b", "c"}; !reflect.DeepEqual(c.AllowedHosts, want) {
		t.Errorf("got %q, want %q", c.AllowedHosts, want)
	}
}

func TestHelp(t *testing.T) {
	env := mapEnv(map[string]string{"RAFTKV_PORT": "x"})
	for _, args := range [][]string{{"--help"}, {"-h"}, {"--bogus", "--port", "x", "-help"}} {
		if _, err := parseConfig(args, env); !errors.Is(err, errHelp) {
			t.Errorf("%q: got %v, want errHelp", args, err)
		}
	}
}

func TestVersion(t *testing.T) {
	env := mapEnv(map[string]string{"RAFTKV_PORT": "x"})
	c, err := parseConfig([]string{"--id", "0", "--version"}, env)
	if err != nil || !c.Version {
		t.Errorf("got %+v, %v", c, err)
	}
	_, err = parseConfig([]string{"--version=1"}, env)
	if err != nil {
		t.Error(err)
	}
	_, err = parseConfig([]string{"--version=no"}, mapEnv(nil))
	wantProblems(t, err, []string{`--version "no"`, "true or false"})
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := parseConfig([]string{
		"--bogus", "value", "--bogus2=value", "---", "extra",
		"--port", "70000", "--snapshot-count=0", "--host", "http://x",
		"--cluster", "http://127.0.0.1:1/,x=http://127.0.0.1:2",
		"--join=perhaps", "--data-dir=", "--log-format", "xml",
		"--request-timeout", "1s", "--request-timeout", "2s",
		"--cluster-id", "0x0", "--id",
	}, mapEnv(map[string]string{"RAFTKV_MAX_VALUE_SIZE": "64KB"}))
	wantProblems(t, err,
		[]string{"unknown flag", `"--bogus"`},
		[]string{"unknown flag", `"--bogus2=value"`},
		[]string{"malformed", `"---"`},
		[]string{"unexpected argument", `"extra"`},
		[]string{"--id", "expected a value"},
		[]string{`--join "perhaps"`, "true or false"},
		[]string{`--host "http://x"`, "IP address or a DNS name"},
		[]string{`--data-dir ""`, "not empty"},
		[]string{`--cluster-id "0x0"`, "hexadecimal"},
		[]string{"--request-timeout", "2 times", `"1s" "2s"`, "once"},
		[]string{`RAFTKV_MAX_VALUE_SIZE "64KB"`, "KiB or MiB"},
		[]string{"--cluster, item 1", `"http://127.0.0.1:1/"`, "trailing slash", urlForm},
		[]string{"--cluster, item 2", `ID "x"`, "whole number"},
		[]string{"--port 70000", "0 to 65535"},
		[]string{"--snapshot-count 0", "1 or more"},
		[]string{`--log-format "xml"`, "console or json"},
	)
}

func TestArgumentsAfterProblems(t *testing.T) {
	tests := []struct {
		args []string
		want [][]string
	}{
		{[]string{"--join", "false", "--cluster", urlA + "," + urlB},
			[][]string{{"unexpected argument", `"false"`, "--join=false"}}},
		{[]string{"a", "--port", "x", "b"},
			[][]string{{`"a"`}, {`"b"`}, {`--port "x"`}}},
		{[]string{"--", "--port", "x"},
			[][]string{{`unexpected argument "--port"`}, {`unexpected argument "x"`}}},
		{[]string{"--port", "1", "--=", "-"},
			[][]string{{`malformed flag "--="`}, {`unexpected argument "-"`}}},
		{[]string{"--bogus", "--port", "x"},
			[][]string{{`"--bogus"`}, {`--port "x"`}}},
		{[]string{"new\nline"},
			[][]string{{`"new\nline"`}}},
	}
	for _, tt := range tests {
		_, err := parseConfig(tt.args, mapEnv(nil))
		wantProblems(t, err, tt.want...)
	}
}

func TestBadValues(t *testing.T) {
	tests := []struct {
		args []string
		want []string
	}{
		{[]string{"--id=0"}, []string{"--id 0", "1 or more"}},
		{[]string{"--id=-1"}, []string{`--id "-1"`, "1 or more"}},
		{[]string{"--id=18446744073709551614"}, []string{"--id 18446744073709551614", "at most 18446744073709551613"}},
		{[]string{"--id=18446744073709551615"}, []string{"--id 18446744073709551615", "at most 18446744073709551613"}},
		{[]string{"--id=18446744073709551616"}, []string{`--id "18446744073709551616"`}},
		{[]string{"--id=2"}, []string{"--id 2 is not in --cluster", "1=http://127.0.0.1:9021", "--join"}},
		{[]string{"--port=-1"}, []string{"--port -1"}},
		{[]string{"--port=http"}, []string{`--port "http"`}},
		{[]string{"--port=9021"}, []string{"--port 9021", "127.0.0.1:9021", "another port"}},
		{[]string{"--port=9021", "--host=0.0.0.0"}, []string{"--port 9021", "0.0.0.0:9021"}},
		{[]string{"--port=9021", "--host=localhost"}, []string{"--port 9021", "localhost:9021"}},
		{[]string{"--listen-peer=:9121"}, []string{"--port 9121", ":9121"}},
		{[]string{"--listen-peer=9121"}, []string{`--listen-peer "9121"`, "host:port"}},
		{[]string{"--listen-peer=a:0"}, []string{`--listen-peer "a:0"`, "1 to 65535"}},
		{[]string{"--listen-peer=a/b:1"}, []string{`--listen-peer "a/b:1"`, "DNS name"}},
		{[]string{"--host=a:1"}, []string{`--host "a:1"`, "DNS name"}},
		{[]string{"--host=fe80::1%eth0"}, []string{`--host "fe80::1%eth0"`, "zone"}},
		{[]string{"--allowed-host=a,*.b,c:80"}, []string{"--allowed-host", `"*.b"`, `"c:80"`, "DNS name"}},
		{[]string{"--allowed-host=a,"}, []string{"--allowed-host", `""`}},
		{[]string{"--advertise-client-url=kv:80"}, []string{`--advertise-client-url "kv:80"`, "no scheme", "http://host:port"}},
		{[]string{"--advertise-client-url=http://127.0.0.1:9021"}, []string{"--advertise-client-url", "peer URL"}},
		{[]string{"--cluster-id=xyz"}, []string{`--cluster-id "xyz"`, "hexadecimal"}},
		{[]string{"--cluster-id=11112222333344445"}, []string{`--cluster-id "11112222333344445"`}},
		{[]string{"--heartbeat-interval=100"}, []string{`--heartbeat-interval "100"`, "unit"}},
		{[]string{"--heartbeat-interval=1us"}, []string{"--heartbeat-interval 1µs", "1ms to 20s"}},
		{[]string{"--heartbeat-interval=2000000h"}, []string{"--heartbeat-interval 2000000h", "1ms to 20s"}},
		{[]string{"--heartbeat-interval=500ms"}, []string{"--election-timeout 1s", "--heartbeat-interval 500ms", "1.5s"}},
		{[]string{"--election-timeout=61s"}, []string{"--election-timeout 1m1s", "1m0s"}},
		{[]string{"--election-timeout=-1s"}, []string{"--election-timeout -1s", "more than 0"}},
		{[]string{"--request-timeout=0s"}, []string{"--request-timeout 0s", "more than 0"}},
		{[]string{"--request-timeout=6m"}, []string{"--request-timeout 6m", "at most 5m"}},
		{[]string{"--max-value-size=0"}, []string{"--max-value-size 0", "64MiB"}},
		{[]string{"--max-value-size=65MiB"}, []string{"--max-value-size 68157440", "64MiB"}},
		{[]string{"--max-value-size=99999999999MiB"}, []string{"--max-value-size", "64MiB"}},
		{[]string{"--max-value-size=1.5MiB"}, []string{`--max-value-size "1.5MiB"`}},
		{[]string{"--log-level=INFO"}, []string{`--log-level "INFO"`}},
		{[]string{"--cluster="}, []string{`--cluster ""`, "not empty"}},
		{[]string{"--cluster=" + urlA + ","}, []string{"--cluster, item 2", "is empty"}},
		{[]string{"--cluster=" + urlA + "," + urlA}, []string{"--cluster", urlA, "twice"}},
		{[]string{"--cluster=1=" + urlA + ",1=" + urlB}, []string{"--cluster", "ID 1 twice", urlA, urlB}},
		{[]string{"--cluster=0=" + urlA}, []string{"--cluster, item 1", `ID "0"`, "1 or more"}},
		{[]string{"--cluster=1=" + urlA + "," + urlB}, []string{"--cluster mixes", `"1=` + urlA + `"`, `"` + urlB + `"`}},
		{[]string{"--cluster=" + urlA + "?a=b"}, []string{"--cluster, item 1", "query"}},
		{[]string{"--join"}, []string{"--join", defaultPeerURL, "running member"}},
		{[]string{"--join", "--id=4", "--cluster=1=" + urlA + ",2=" + urlB}, []string{"--cluster", "4=http://", "--id 4"}},
		{[]string{"--join", "--id=2", "--cluster=" + urlA + ",3=" + urlB}, []string{"--cluster", "2=http://", "--id 2"}},
		{[]string{"--join", "--id=2", "--cluster=" + urlA + "," + urlA}, []string{"--cluster", "twice"}},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			_, err := parseConfig(tt.args, mapEnv(nil))
			wantProblems(t, err, tt.want)
		})
	}
}

func TestClusterList(t *testing.T) {
	three := []peer{{1, urlA}, {2, urlB}, {3, urlC}}
	tests := []struct {
		id, list string
		want     []peer
		own      string
	}{
		{"2", urlA + "," + urlB + "," + urlC, three, urlB},
		{"2", urlA + ", " + urlB + ", " + urlC, three, urlB},
		{"3", "3=" + urlC + ",1=" + urlA + ",2=" + urlB, three, urlC},
		{"10", "10=HTTP://LocalHost:0123,9=" + urlA, []peer{{9, urlA}, {10, "http://localhost:123"}}, "http://localhost:123"},
	}
	for _, tt := range tests {
		c := mustParse(t, "--id", tt.id, "--cluster", tt.list)
		if !reflect.DeepEqual(c.Cluster, tt.want) || c.PeerURL != tt.own || c.Seeds != nil {
			t.Errorf("--id %s --cluster %s: got %v, own %s, seeds %v", tt.id, tt.list, c.Cluster, c.PeerURL, c.Seeds)
		}
		if want := "raftkv-" + tt.id; c.DataDir != want {
			t.Errorf("DataDir = %q, want %q", c.DataDir, want)
		}
	}
}

func TestJoinList(t *testing.T) {
	tests := []struct {
		name, id, list, own string
		seeds               []string
	}{
		{"pair first", "2", "2=" + urlA + "," + urlB + "," + urlC, urlA, []string{urlB, urlC}},
		{"pair wins over position", "1", urlB + ",1=" + urlA, urlA, []string{urlB}},
		{"id-th", "2", urlC + "," + urlA + "," + urlB, urlA, []string{urlC, urlB}},
		{"last", "9", urlC + "," + urlB + "," + urlA, urlA, []string{urlC, urlB}},
		{"largest", "18446744073709551613", urlC + "," + urlA, urlA, []string{urlC}},
		{"seeds as pairs", "9", "1=" + urlC + ",2=" + urlB + "," + urlA, urlA, []string{urlC, urlB}},
		{"all pairs", "9", "9=" + urlA + ",1=" + urlB, urlA, []string{urlB}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustParse(t, "--join", "--id", tt.id, "--cluster", tt.list)
			if c.PeerURL != tt.own || !reflect.DeepEqual(c.Seeds, tt.seeds) || c.Cluster != nil {
				t.Errorf("own %s, seeds %q, members %v", c.PeerURL, c.Seeds, c.Cluster)
			}
		})
	}
}

// TestValidate covers what parseConfig cannot produce.
func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		edit func(*config)
		want [][]string
	}{
		{"no members", func(c *config) { c.Cluster = nil }, [][]string{{"--cluster is empty"}}},
		{"own URL differs", func(c *config) { c.PeerURL = urlA }, [][]string{{urlA, "member 1", defaultPeerURL}}},
		{"not canonical", func(c *config) { c.Cluster[0].URL = "http://LOCALHOST:1"; c.PeerURL = "http://LOCALHOST:1" },
			[][]string{{"--cluster", "canonical form", "http://localhost:1"}}},
		{"join", func(c *config) { c.Join = true; c.PeerURL = ""; c.Seeds = []string{urlA, urlA} },
			[][]string{{"--cluster", `""`, "is empty"}, {urlA, "twice"}}},
		{"member IDs", func(c *config) { c.Cluster = append(c.Cluster, peer{0, urlA}, peer{math.MaxUint64, urlB}) },
			[][]string{{"ID 0"}, {"ID 18446744073709551615"}}},
		{"no host", func(c *config) { c.Host = "" }, [][]string{{`--host ""`}}},
		{"allowed host", func(c *config) { c.AllowedHosts = []string{"Kv"} }, [][]string{{`--allowed-host "Kv"`, "kv"}}},
		{"client URL", func(c *config) { c.AdvertiseClientURL = "http://kv:1/" }, [][]string{{"--advertise-client-url", "trailing slash"}}},
		{"no data dir", func(c *config) { c.DataDir = "" }, [][]string{{`--data-dir ""`}}},
		{"zero", func(c *config) { *c = config{} }, [][]string{
			{"--id 0"}, {"--cluster is empty"}, {`--host ""`}, {"--heartbeat-interval 0s"}, {"--election-timeout 0s"},
			{"--request-timeout 0s"}, {`--data-dir ""`}, {"--snapshot-count 0"}, {"--max-value-size 0"},
			{`--log-level ""`}, {`--log-format ""`}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := defaultConfig()
			tt.edit(&c)
			wantProblems(t, c.validate(), tt.want...)
		})
	}
}

func TestSoundAddresses(t *testing.T) {
	for _, args := range [][]string{
		{"--port=9021", "--host=127.0.0.2"},                     // another address, same port
		{"--port=9021", "--listen-peer=127.0.0.1:9022"},         // the peer URL is a NAT's
		{"--port=9121", "--cluster=http://kv.example.com:9121"}, // only the DNS knows
		{"--host=::", "--port=0"},
	} {
		mustParse(t, args...)
	}
}

func TestClientURL(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{nil, "http://127.0.0.1:5"},
		{[]string{"--host=kv.example.com"}, "http://kv.example.com:5"},
		{[]string{"--host=::1"}, "http://[::1]:5"},
		{[]string{"--host=0.0.0.0", "--cluster=http://10.0.0.7:1"}, "http://10.0.0.7:5"},
		{[]string{"--host=::", "--cluster=http://[2001:db8::7]:1"}, "http://[2001:db8::7]:5"},
		{[]string{"--host=0.0.0.0", "--advertise-client-url=http://kv:80"}, "http://kv:80"},
	}
	for _, tt := range tests {
		c := mustParse(t, tt.args...)
		if got := c.clientURL(5); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.args, got, tt.want)
		}
	}
}

func TestTicks(t *testing.T) {
	tests := []struct {
		heartbeat, election string
		tick                time.Duration
		electionTicks       int
	}{
		{"100ms", "1s", 100 * time.Millisecond, 10},
		{"100ms", "1001ms", 100 * time.Millisecond, 11},
		{"100ms", "300ms", 100 * time.Millisecond, 3},
		{"1ms", "1m", time.Millisecond, 60000},
	}
	for _, tt := range tests {
		c := mustParse(t, "--heartbeat-interval", tt.heartbeat, "--election-timeout", tt.election)
		tick, heartbeatTicks, electionTicks := c.ticks()
		if tick != tt.tick || heartbeatTicks != 1 || electionTicks != tt.electionTicks {
			t.Errorf("%s, %s: got %v, %d, %d", tt.heartbeat, tt.election, tick, heartbeatTicks, electionTicks)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "1048576": 1 << 20, "512KiB": 512 << 10, "64MiB": 64 << 20,
		"": -1, "KiB": -1, "-1": -1, "1 MiB": -1, "1MB": -1, "1M": -1, "1GiB": -1, "0x10": -1, "1MiBKiB": -1,
	} {
		got, err := parseSize(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestFormatPeers(t *testing.T) {
	peers := []peer{{10, urlC}, {2, urlB}}
	const want = "2=" + urlB + ",10=" + urlC
	if got := formatPeers(peers); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if peers[0].ID != 10 {
		t.Error("the argument was sorted")
	}
	c := mustParse(t, "--id=2", "--cluster", want)
	if got := formatPeers(c.Cluster); got != want {
		t.Errorf("read back: got %s, want %s", got, want)
	}
}

// TestClusterID holds the numbers that are on people's disks: a change here
// makes all of them refuse to start.
func TestClusterID(t *testing.T) {
	tests := []struct {
		peers []peer
		want  uint64
	}{
		{[]peer{{1, defaultPeerURL}}, 0x0fbc1e76dedfe996},
		{[]peer{{1, urlA}, {2, urlB}, {3, urlC}}, 0x18b7f6f2253f42e8},
		{[]peer{{3, urlC}, {1, urlA}, {2, urlB}}, 0x18b7f6f2253f42e8},
	}
	seen := map[uint64]bool{}
	for _, tt := range tests {
		got := clusterIDOf(tt.peers)
		if got != tt.want {
			t.Errorf("clusterIDOf(%v) = %#x, want %#x", tt.peers, got, tt.want)
		}
		seen[got] = true
	}
	seen[clusterIDOf([]peer{{2, urlA}, {1, urlB}, {3, urlC}})] = true
	if len(seen) != 3 {
		t.Errorf("got %d cluster IDs of 3 clusters", len(seen))
	}
}

var peerURLTests = []struct {
	raw, want string // want is the canonical URL, or "" for an error
	problem   string
}{
	{raw: urlA, want: urlA},
	{raw: "HTTP://LocalHost:012379", want: "http://localhost:12379"},
	{raw: "http://kv_1.example.com:1", want: "http://kv_1.example.com:1"},
	{raw: "http://3f2a:65535", want: "http://3f2a:65535"},
	{raw: "http://[::1]:1234", want: "http://[::1]:1234"},
	{raw: "http://[0:0:0::0001]:1234", want: "http://[::1]:1234"},
	{raw: "http://[2001:DB8::A]:1", want: "http://[2001:db8::a]:1"},

	{raw: "", problem: "is empty"},
	{raw: urlA + "/", problem: "trailing slash"},
	{raw: urlA + "/raft", problem: "a path"},
	{raw: urlA + "//", problem: "a path"},
	{raw: urlA + "?", problem: "query"},
	{raw: urlA + "?a=b", problem: "query"},
	{raw: urlA + "#", problem: "fragment"},
	{raw: urlA + "#x", problem: "fragment"},
	{raw: "http://me@127.0.0.1:1", problem: "user name"},
	{raw: "http://me:pw@127.0.0.1:1", problem: "user name"},
	{raw: "http://@127.0.0.1:1", problem: "user name"},
	{raw: "127.0.0.1:1", problem: "no scheme"},
	{raw: "localhost:1", problem: "no scheme"},
	{raw: "http:127.0.0.1:1", problem: "no scheme"},
	{raw: "//127.0.0.1:1", problem: "no scheme"},
	{raw: "://127.0.0.1:1", problem: "cannot be parsed"},
	{raw: "https://127.0.0.1:1", problem: "TLS"},
	{raw: "unix://127.0.0.1:1", problem: `scheme "unix"`},
	{raw: "http://127.0.0.1", problem: "no port"},
	{raw: "http://127.0.0.1:", problem: "no port"},
	{raw: "http://[::1]", problem: "no port"},
	{raw: "http://127.0.0.1:0", problem: "1 to 65535"},
	{raw: "http://127.0.0.1:65536", problem: "1 to 65535"},
	{raw: "http://127.0.0.1:http", problem: "cannot be parsed"},
	{raw: "http://127.0.0.1:+1", problem: "cannot be parsed"},
	{raw: "http://:1", problem: "no host"},
	{raw: "http://", problem: "no host"},
	{raw: "http:a://b:1", problem: "no host"},
	{raw: "http://0.0.0.0:1", problem: "address to listen on"},
	{raw: "http://[::]:1", problem: "address to listen on"},
	{raw: "http://[::ffff:0.0.0.0]:1", problem: "address to listen on"},
	{raw: "http://0:1", problem: "bad host"},
	{raw: "http://127.1:1", problem: "bad host"},
	{raw: "http://0x7f000001:1", problem: "bad host"},
	{raw: "http://300.0.0.1:1", problem: "bad host"},
	{raw: "http://a..b:1", problem: "bad host"},
	{raw: "http://a.b.:1", problem: "bad host"},
	{raw: "http://-a:1", problem: "bad host"},
	{raw: "http://*:1", problem: "bad host"},
	{raw: "http://" + strings.Repeat("a", 64) + ":1", problem: "bad host"},
	{raw: "http://%61:1", problem: "cannot be parsed"},
	{raw: "http://%C3%A4:1", problem: "bad host"},
	{raw: "http://[fe80::1%25eth0]:1", problem: "zone"},
	{raw: "http://ä:1", problem: "not printable ASCII"},
	{raw: " " + urlA, problem: "not printable ASCII"},
	{raw: urlA + "\n", problem: "not printable ASCII"},
	{raw: "http://\x00\xff:1", problem: "not printable ASCII"},
	{raw: urlA + "," + urlB, problem: "cannot be parsed"},
	{raw: "http://" + strings.Repeat("a.", 200) + "b:1", problem: "longer than"},
}

func TestCheckPeerURL(t *testing.T) {
	for _, tt := range peerURLTests {
		got, err := checkPeerURL(tt.raw)
		if tt.want != "" {
			if err != nil || got != tt.want {
				t.Errorf("checkPeerURL(%q) = %q, %v; want %q", tt.raw, got, err, tt.want)
			}
			continue
		}
		if err == nil {
			t.Errorf("checkPeerURL(%q) = %q; want an error with %q", tt.raw, got, tt.problem)
		} else if !strings.Contains(err.Error(), tt.problem) || !strings.Contains(err.Error(), urlForm) {
			t.Errorf("checkPeerURL(%q): %v\nlacks %q or %q", tt.raw, err, tt.problem, urlForm)
		}
	}
}

// FuzzCheckPeerURL checks that whatever is accepted is a URL that rafthttp does
// not panic on, and is the only spelling of itself.
func FuzzCheckPeerURL(f *testing.F) {
	for _, tt := range peerURLTests {
		f.Add(tt.raw)
	}
	f.Add("http://::1:1234")
	f.Add("http://[127.0.0.1]:1")
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := checkPeerURL(raw)
		if err != nil {
			if msg := err.Error(); strings.Contains(msg, "\n") || len(msg) > 10*maxURLLen {
				t.Fatalf("not a line of text: %q", msg)
			}
			return
		}
		urls, err := types.NewURLs([]string{got})
		if err != nil {
			t.Fatalf("%q became %q, which rafthttp refuses: %v", raw, got, err)
		}
		if s := urls.String(); s != got {
			t.Fatalf("%q became %q, which rafthttp changes to %q", raw, got, s)
		}
		if again, err := checkPeerURL(got); err != nil || again != got {
			t.Fatalf("%q became %q, and that %q, %v", raw, got, again, err)
		}
		if got == "" || !strings.HasPrefix(got, "http://") || strings.HasSuffix(got, "/") {
			t.Fatalf("%q became %q", raw, got)
		}
	})
}
