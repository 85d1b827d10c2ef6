package config

import (
	"errors"
	"raftkv/internal/address"
	"reflect"
	"strings"
	"testing"
	"time"
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
func mustParse(t *testing.T, args ...string) Config {
	t.Helper()
	c, err := Parse(args, mapEnv(nil))
	if err != nil {
		t.Fatalf("Parse(%q): %v", args, err)
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
	want := Config{
		ID:                1,
		Cluster:           []address.Peer{{ID: 1, URL: "http://127.0.0.1:9021"}},
		PeerURL:           "http://127.0.0.1:9021",
		Host:              "127.0.0.1",
		Port:              9121,
		DataDir:           "raftkv-1",
		SnapshotCount:     100000,
		heartbeatInterval: 100 * time.Millisecond,
		ElectionTimeout:   time.Second,
		RequestTimeout:    5 * time.Second,
		CheckInterval:     10 * time.Second,
		MaxValueSize:      1048576,
		Quota:             QuotaFromMemory,
		MinFree:           128 << 20,
		WatchHistory:      historyFromMemory,
		Front:             true,
		Doors:             Doors{ClientTLS: "required", PeerAllowedName: "{id}.raftkv", PeerTLS: "required", Auth: "on"},
		LogLevel:          "info",
		LogFormat:         "console",
	}
	c := mustParse(t)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Parse() = %+v\nwant %+v", c, want)
	}
	if d := DefaultConfig(); !reflect.DeepEqual(d, want) {
		t.Errorf("DefaultConfig() = %+v\nwant %+v", d, want)
	}
	if got := c.PeerListener(); got != "127.0.0.1:9021" {
		t.Errorf("peerListener() = %q", got)
	}
	if got := c.ClientURL(c.Port); got != "http://127.0.0.1:9121" {
		t.Errorf("clientURL() = %q", got)
	}
}

// settingTests gives each flag a value that is not its default.
var settingTests = []struct {
	flag, value string
	get         func(Config) any
	want        any
}{
	{"id", "7", func(c Config) any { return c.ID }, uint64(7)},
	{"cluster", "7=" + urlA, func(c Config) any { return c.Cluster }, []address.Peer{{ID: 7, URL: urlA}}},
	{"cluster-size", "3", func(c Config) any { return c.Discovery.Size }, 3},
	{"port", "0", func(c Config) any { return c.Port }, 0},
	{"join", "true", func(c Config) any { return c.Join }, true},
	{"host", "::1", func(c Config) any { return c.Host }, "::1"},
	{"allowed-origin", "HTTPS://App.example:443, http://localhost:80,http://[::1]:8080", func(c Config) any { return c.AllowedOrigins },
		[]string{"https://app.example", "http://localhost", "http://[::1]:8080"}},
	{"allowed-host", "KV.example.com, kv2", func(c Config) any { return c.AllowedHosts }, []string{"kv.example.com", "kv2"}},
	{"listen-peer", ":12379", func(c Config) any { return c.PeerListener() }, ":12379"},
	{"advertise-client-url", "http://Kv:80", func(c Config) any { return c.ClientURL(1) }, "http://kv:80"},
	{"data-dir", "/var/lib/raftkv", func(c Config) any { return c.DataDir }, "/var/lib/raftkv"},
	{"cluster-id", "CAFE", func(c Config) any { return c.ClusterID }, uint64(0xcafe)},
	{"snapshot-count", "1", func(c Config) any { return c.SnapshotCount }, uint64(1)},
	{"heartbeat-interval", "10ms", func(c Config) any { return c.heartbeatInterval }, 10 * time.Millisecond},
	{"election-timeout", "2s", func(c Config) any { return c.ElectionTimeout }, 2 * time.Second},
	{"request-timeout", "1m", func(c Config) any { return c.RequestTimeout }, time.Minute},
	{"check-interval", "0s", func(c Config) any { return c.CheckInterval }, time.Duration(0)},
	{"max-value-size", "512KiB", func(c Config) any { return c.MaxValueSize }, int64(512 << 10)},
	{"quota", "3GiB", func(c Config) any { return c.Quota }, int64(3 << 30)},
	{"min-free", "0", func(c Config) any { return c.MinFree }, int64(0)},
	{"watch-history", "1MiB", func(c Config) any { return c.Changes() }, int64(1 << 20)},
	{"front", "false", func(c Config) any { return c.Front }, false},
	{"pprof", "true", func(c Config) any { return c.Pprof }, true},
	{"log-level", "debug", func(c Config) any { return c.LogLevel }, "debug"},
	{"log-format", "json", func(c Config) any { return c.LogFormat }, "json"},
	{"cert-file", "c.pem", func(c Config) any { return c.CertFile }, "c.pem"},
	{"key-file", "k.pem", func(c Config) any { return c.KeyFile }, "k.pem"},
	{"trusted-ca-file", "ca.pem", func(c Config) any { return c.TrustedCAFile }, "ca.pem"},
	{"client-cert-auth", "true", func(c Config) any { return c.ClientCertAuth }, true},
	{"client-tls", "optional", func(c Config) any { return c.ClientTLS }, "optional"},
	{"peer-cert-file", "c.pem", func(c Config) any { return c.PeerCertFile }, "c.pem"},
	{"peer-key-file", "k.pem", func(c Config) any { return c.PeerKeyFile }, "k.pem"},
	{"peer-trusted-ca-file", "ca.pem", func(c Config) any { return c.PeerTrustedCAFile }, "ca.pem"},
	{"peer-allowed-name", "Node-{id}.kv.example", func(c Config) any { return c.MemberName(7) }, "node-7.kv.example"},
	{"peer-tls", "optional", func(c Config) any { return c.PeerTLS }, "optional"},
	{"auth-file", "rights.yaml", func(c Config) any { return c.AuthFile }, "rights.yaml"},
	{"auth", "off", func(c Config) any { return c.Auth }, "off"},
	{"insecure-tokens", "true", func(c Config) any { return c.InsecureTokens }, true},
	{"audit-log", "-", func(c Config) any { return c.AuditLog }, "-"},
	{"audit-reads", "true", func(c Config) any { return c.AuditReads }, true},
	{"listen-metrics", "127.0.0.1:9100", func(c Config) any { return c.ListenMetrics }, "127.0.0.1:9100"},
}

// withContext adds what some flags need next to them to be valid.
func withContext(flag string) []string {
	switch flag {
	case "id":
		return []string{"--cluster=7=" + urlA}
	case "cluster":
		return []string{"--id=7"}
	case "cluster-size":
		return []string{"--id=1", "--cluster=dns+http://raftkv.example:12379"}
	case "join":
		return []string{"--cluster", urlA + "," + urlB}
	case "cert-file":
		return []string{"--key-file=k"}
	case "key-file":
		return []string{"--cert-file=c"}
	case "trusted-ca-file", "client-tls":
		return []string{"--cert-file=c", "--key-file=k"}
	case "client-cert-auth":
		return []string{"--cert-file=c", "--key-file=k", "--trusted-ca-file=ca"}
	case "peer-cert-file":
		return []string{"--peer-key-file=k", "--peer-trusted-ca-file=ca"}
	case "peer-key-file":
		return []string{"--peer-cert-file=c", "--peer-trusted-ca-file=ca"}
	case "peer-trusted-ca-file":
		return []string{"--peer-cert-file=c", "--peer-key-file=k"}
	case "peer-tls":
		return []string{"--peer-cert-file=c", "--peer-key-file=k", "--peer-trusted-ca-file=ca"}
	case "audit-reads":
		return []string{"--audit-log=a"}
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
			if tt.value == "true" && len(args) == 2 { // a switch takes no value
				args = args[:1]
			}
			if tt.value == "false" && len(args) == 2 { // nor this way
				continue
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
		c, err := Parse(withContext(tt.flag), env)
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
		c, err := Parse(append(withContext(tt.flag), "--"+tt.flag+"="+tt.value), env)
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
	tested := map[string]bool{"version": true} // TestVersion
	for _, tt := range settingTests {
		tested[tt.flag] = true
	}
	for _, s := range new(Config).Settings(new(string)) {
		if !tested[s.Flag] {
			t.Errorf("settingTests lacks --%s", s.Flag)
		}
	}
}

func TestEnvironment(t *testing.T) {
	c, err := Parse(nil, mapEnv(map[string]string{
		"RAFTKV_PORT":         "",      // empty is unset
		"RAFTKV_VERSION":      "1.2.3", // an image's label, not a question
		"RAFTKV_SERVICE_HOST": "10.0.0.7",
		"RAFTKV_ENDPOINTS":    "http://127.0.0.1:1", // the client's
	}))
	if err != nil || !reflect.DeepEqual(c, DefaultConfig()) {
		t.Errorf("got %+v, %v; want the defaults", c, err)
	}

	_, err = Parse([]string{"--log-level", "loud"}, mapEnv(map[string]string{
		"RAFTKV_PORT":             "tcp",
		"RAFTKV_ELECTION_TIMEOUT": "200ms",
		"RAFTKV_JOIN":             "maybe",
	}))
	wantProblems(t, err,
		[]string{`RAFTKV_PORT "tcp"`, "whole number"},
		[]string{`RAFTKV_JOIN "maybe"`, "true or false"},
		[]string{`--log-level "loud"`, "debug, info, warn, error"},
		[]string{`RAFTKV_ELECTION_TIMEOUT "200ms"`, "--heartbeat-interval", "300ms"},
	)
}

func TestAllowedHostRepeats(t *testing.T) {
	c := mustParse(t, "--allowed-host", "a,b", "--allowed-host=c", "--allowed-host", "A")
	if want := []string{"a", "b", "c", "a"}; !reflect.DeepEqual(c.AllowedHosts, want) {
		t.Errorf("got %q, want %q", c.AllowedHosts, want)
	}
}

func TestHelp(t *testing.T) {
	env := mapEnv(map[string]string{"RAFTKV_PORT": "x"})
	for _, args := range [][]string{{"--help"}, {"-h"}, {"--bogus", "--port", "x", "-help"}, {"--h"}, {"-h=1"}, {"--help=false"}} {
		if _, err := Parse(args, env); !errors.Is(err, ErrHelp) {
			t.Errorf("%q: got %v, want errHelp", args, err)
		}
	}
	for _, args := range [][]string{{"-hots"}, {"---h"}, {"--data-dir", "-h"}, {"--", "-h"}} {
		if _, err := Parse(args, env); errors.Is(err, ErrHelp) {
			t.Errorf("%q asks for help", args)
		}
	}
}

func TestVersion(t *testing.T) {
	env := mapEnv(map[string]string{"RAFTKV_PORT": "x"})
	c, err := Parse([]string{"--id", "0", "--version"}, env)
	if err != nil || !c.Version {
		t.Errorf("got %+v, %v", c, err)
	}
	_, err = Parse([]string{"--version=1"}, env)
	if err != nil {
		t.Error(err)
	}
	_, err = Parse([]string{"--version=no"}, mapEnv(nil))
	wantProblems(t, err, []string{`"no"`, "-version"})
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]string{
		"--bogus", "---", "extra",
		"--port", "70000", "--snapshot-count=0", "--host", "http://x",
		"--cluster", "http://127.0.0.1:1/,x=http://127.0.0.1:2",
		"--join=perhaps", "--data-dir=", "--log-format", "xml",
		"--request-timeout", "1s", "--request-timeout", "2s",
		"--cluster-id", "0x0", "--id",
	}, mapEnv(map[string]string{"RAFTKV_MAX_VALUE_SIZE": "64KB"}))
	wantProblems(t, err,
		[]string{"unknown flag", "--bogus"},
		[]string{"bad flag syntax", "---"},
		[]string{"unexpected argument", `"extra"`},
		[]string{`--host "http://x"`, "IP address or a DNS name"},
		[]string{`--join "perhaps"`, "true or false"},
		[]string{`--data-dir ""`, "expected a value"},
		[]string{"--request-timeout", "only once"},
		[]string{`--cluster-id "0x0"`, "hexadecimal"},
		[]string{"needs an argument", "-id"},
		[]string{`RAFTKV_MAX_VALUE_SIZE "64KB"`, "KiB, MiB or GiB"},
		[]string{"--cluster", `"http://127.0.0.1:1/"`, "expected only http://127.0.0.1:1", `ID "x"`},
		[]string{`--port "70000"`, "0 to 65535"},
		[]string{`--snapshot-count "0"`, "expected 1 to"},
		[]string{`--log-format "xml"`, "console, json"},
	)
}

func TestArgumentsAfterProblems(t *testing.T) {
	tests := []struct {
		args []string
		want [][]string
	}{
		{[]string{"a", "--port", "x", "b"}, [][]string{{`"a"`}, {`--port "x"`}, {`"b"`}}},
		{[]string{"--", "--port"}, [][]string{{`unexpected argument "--port"`}}},
		{[]string{"--port", "1", "--=", "-"}, [][]string{{"bad flag syntax: --="}, {`unexpected argument "-"`}}},
		{[]string{"--bogus", "--port", "x"}, [][]string{{"-bogus"}, {`--port "x"`}}},
		{[]string{"-1", "-port", "y", "-x", "1"}, [][]string{{`unexpected argument "-1"`}, {`--port "y"`}, {"-x"}, {`unexpected argument "1"`}}},
		{[]string{"-prot=1", "-hots", "-é"}, [][]string{{"unknown flag: -prot"}, {"unknown flag: -hots"}, {"unknown flag: -é"}}},
		{[]string{"new\nline"}, [][]string{{`"new\nline"`}}},
	}
	for _, tt := range tests {
		_, err := Parse(tt.args, mapEnv(nil))
		wantProblems(t, err, tt.want...)
	}
}

func TestBadValues(t *testing.T) {
	tests := []struct {
		args string // separated by spaces
		want []string
	}{
		{"--id=0", []string{`--id "0"`, "expected 1 to"}},
		{"--id=-1", []string{`--id "-1"`, "expected 1 to"}},
		{"--id=18446744073709551614", []string{"--id", "to 18446744073709551613"}},
		{"--id=18446744073709551616", []string{"--id", "to 18446744073709551613"}},
		{"--id=2", []string{`--id "2"`, "1=http://127.0.0.1:9021", "--join"}},
		{"--port=-1", []string{`--port "-1"`, "0 to 65535"}},
		{"--port=http", []string{`--port "http"`, "number"}},
		{"--port=9021", []string{`--port "9021"`, "127.0.0.1:9021", "another"}},
		{"--port=9021 --host=0.0.0.0", []string{`--port "9021"`, "127.0.0.1:9021"}},
		{"--listen-peer=:9121", []string{`--port "9121"`, ":9121"}},
		{"--listen-peer=9121", []string{`--listen-peer "9121"`, "host:port"}},
		{"--listen-peer=a:0", []string{`--listen-peer "a:0"`, "host:port"}},
		{"--listen-peer=", []string{`--listen-peer ""`}},
		{"--host=a:1", []string{`--host "a:1"`, "DNS name"}},
		{"--host=fe80::1%eth0", []string{`--host "fe80::1%eth0"`}},
		{"--allowed-origin=*", []string{"--allowed-origin", `"*"`, "https://app.example"}},
		{"--allowed-origin=https://a,null", []string{"--allowed-origin", `"null"`}},
		{"--allowed-origin=https://a/", []string{`"https://a/"`, "without a path"}},
		{"--allowed-origin=https://*.a", []string{`"https://*.a"`}},
		{"--allowed-origin=ftp://a", []string{`"ftp://a"`}},
		{"--allowed-origin=https://u@a", []string{`"https://u@a"`}},
		{"--allowed-origin=app.example", []string{`"app.example"`}},
		{"--allowed-origin=https://a,", []string{"--allowed-origin", `""`}},
		{"--allowed-host=a,*.b", []string{"--allowed-host", `"*.b"`, "DNS name"}},
		{"--allowed-host=a,", []string{"--allowed-host", `""`}},
		{"--advertise-client-url=kv:80", []string{`--advertise-client-url "kv:80"`, "http://host:port"}},
		{"--cluster-id=xyz", []string{`--cluster-id "xyz"`, "hexadecimal"}},
		{"--cluster-id=11112222333344445", []string{`--cluster-id "11112222333344445"`}},
		{"--heartbeat-interval=100", []string{`--heartbeat-interval "100"`, "unit"}},
		{"--heartbeat-interval=1us", []string{`--heartbeat-interval "1µs"`, "1ms to 20s"}},
		{"--heartbeat-interval=2000000h", []string{"--heartbeat-interval", "1ms to 20s"}},
		{"--heartbeat-interval=500ms", []string{`--election-timeout "1s"`, "--heartbeat-interval", "1.5s"}},
		{"--election-timeout=61s", []string{`--election-timeout "1m1s"`, "to 1m0s"}},
		{"--request-timeout=0s", []string{`--request-timeout "0s"`}},
		{"--request-timeout=6m", []string{`--request-timeout "6m0s"`, "to 5m0s"}},
		{"--check-interval=10", []string{`--check-interval "10"`, "unit"}},
		{"--check-interval=99ms", []string{`--check-interval "99ms"`, "100ms to 24h"}},
		{"--check-interval=-1s", []string{`--check-interval "-1s"`, "100ms to 24h"}},
		{"--max-value-size=0", []string{`--max-value-size "0"`}},
		{"--max-value-size=65MiB", []string{`--max-value-size "68157440"`, "67108864"}},
		{"--quota=2GB", []string{`--quota "2GB"`, "GiB"}},
		{"--log-level=INFO", []string{`--log-level "INFO"`}},
		{"--cluster=", []string{`--cluster ""`, "value"}},
		{"--cluster=" + urlA + ",", []string{"--cluster", `peer URL ""`}},
		{"--cluster=" + urlA + "," + urlA, []string{"--cluster", urlA + " twice"}},
		{"--cluster=1=" + urlA + ",1=" + urlB, []string{"--cluster", "ID 1 twice"}},
		{"--cluster=0=" + urlA, []string{"--cluster", `ID "0"`, "expected 1 to"}},
		{"--cluster=1=" + urlA + "," + urlB, []string{"--cluster", "1=" + urlA + "," + urlB, "mixture"}},
		{"--cluster=" + urlA + "?a=b", []string{"--cluster", "expected 1 to"}},
		{"--join", []string{"--cluster", DefaultPeerURL, "running member", "--join"}},
		{"--join --id=4 --cluster=1=" + urlA + ",2=" + urlB, []string{"--cluster", "4=http://"}},
		{"--join --id=2 --cluster=" + urlA + ",3=" + urlB, []string{"--cluster", "2=http://"}},
		{"--join --id=2 --cluster=" + urlA + "," + urlA, []string{"--cluster", "twice"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			_, err := Parse(strings.Fields(tt.args), mapEnv(nil))
			wantProblems(t, err, tt.want)
		})
	}
}

func TestClusterList(t *testing.T) {
	three := []address.Peer{{ID: 1, URL: urlA}, {ID: 2, URL: urlB}, {ID: 3, URL: urlC}}
	tests := []struct {
		id, list string
		want     []address.Peer
		own      string
	}{
		{"2", urlA + "," + urlB + "," + urlC, three, urlB},
		{"2", urlA + ", " + urlB + ", " + urlC, three, urlB},
		{"3", "3=" + urlC + ",1=" + urlA + ",2=" + urlB, three, urlC},
		{"10", "10=HTTP://LocalHost:123,9=" + urlA, []address.Peer{{ID: 9, URL: urlA}, {ID: 10, URL: "http://localhost:123"}}, "http://localhost:123"},
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
		if got := c.ClientURL(5); got != tt.want {
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
		tick, heartbeatTicks, electionTicks := c.Ticks()
		if tick != tt.tick || heartbeatTicks != 1 || electionTicks != tt.electionTicks {
			t.Errorf("%s, %s: got %v, %d, %d", tt.heartbeat, tt.election, tick, heartbeatTicks, electionTicks)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "1048576": 1 << 20, "512KiB": 512 << 10, "64MiB": 64 << 20,
		"": -1, "KiB": -1, "-1": -1, "1 MiB": -1, "1MB": -1, "1M": -1, "2GiB": 2 << 30, "0x10": -1, "1MiBKiB": -1,
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

// Guarantee: of --log-level, everything that is not understood is named.
func TestLogLevelFlag(t *testing.T) {
	_, err := Parse([]string{"--log-level", "loud,raft=,rafthttp=debug,rafthttp=info,disk=info,info,warn", "--log-format", "xml"}, mapEnv(nil))
	wantProblems(t, err,
		[]string{`--log-level "loud"`, "debug, info, warn, error"},
		[]string{`--log-level "raft="`, "debug, info, warn, error"},
		[]string{`--log-level "rafthttp=info"`, "once"},
		[]string{`--log-level "disk=info"`, "raft, rafthttp, snap, wal"},
		[]string{`--log-level "info"`, "one level"},
		[]string{`--log-level "warn"`, "one level"},
		[]string{"--log-format"})
	if _, err := Parse([]string{"--log-level", "info,"}, mapEnv(nil)); err == nil {
		t.Error("a comma at the end is taken")
	}
}
