package exposure

import (
	"context"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	tls     = " --cert-file=c --key-file=k"
	peerTLS = " --peer-cert-file=c --peer-key-file=k --peer-trusted-ca-file=ca"
	rights  = " --auth-file=a"
	open    = " --host=0.0.0.0"
	peers   = " --listen-peer=10.0.0.1:12379"
)

func parse(t *testing.T, args string) config.Config {
	t.Helper()
	cfg, err := config.Parse(strings.Fields(args), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return cfg
}

// Guarantee: a node says what of it is open to the network, and nothing of what is not; with
// rights it does not start where they would be worth nothing, unless it is told to.
func TestOpenings(t *testing.T) {
	for _, tt := range []struct {
		args  string
		open  string // names, in the order in which they are said
		fault string // a part of the error; "": none
	}{
		{"", "", ""},
		{"--host=localhost --listen-peer=[::1]:12379", "", ""},
		{"--host=127.0.0.2", "", ""},
		{open, "client_plain no_rights", ""},
		{"--host=node.example", "client_plain no_rights", ""},
		{"--listen-peer=:12379", "peer_plain", ""},
		{open + peers, "client_plain no_rights peer_plain", ""},
		{open + tls, "no_rights", ""},
		{tls + " --client-tls=optional", "client_optional", ""},
		{peerTLS + " --peer-tls=optional", "peer_optional", ""},
		{peers + peerTLS, "", ""},
		{rights, "", ""},
		{rights + tls + " --client-tls=optional" + peerTLS + " --peer-tls=optional", "client_optional peer_optional", ""},
		{rights + open, "client_plain", "the client port 0.0.0.0:9121 is"},
		{rights + open + tls, "", ""},
		{rights + open + tls + " --client-tls=optional", "client_optional", "the client port"},
		{rights + peers, "peer_plain", "the peer port 10.0.0.1:12379 is"},
		{rights + peers + peerTLS, "", ""},
		{rights + peers + peerTLS + " --peer-tls=optional", "peer_optional", "the peer port"},
		{rights + open + tls + peers + peerTLS, "", ""},
		{rights + open + peers + " --insecure-tokens", "client_plain peer_plain", ""},
	} {
		logs, said := observer.New(zapcore.DebugLevel)
		e := Of(parse(t, tt.args), zap.New(logs))
		err := e.Check()
		if (err != nil) != (tt.fault != "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.fault)
		}
		reg := prometheus.NewPedanticRegistry()
		e.Register(reg)
		families, err := reg.Gather()
		if err != nil || len(families) != 1 || len(families[0].GetMetric()) != len(openings) {
			t.Fatalf("%q: %v, %v", tt.args, families, err)
		}
		value := make(map[string]float64)
		for _, m := range families[0].GetMetric() {
			value[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
		e.say()
		got, want, notes := testkit.Messages(said), strings.Fields(tt.open), ""
		if strings.Contains(tt.args, "insecure") {
			if n := len(got) - 1; n < 0 || !strings.Contains(got[n], "--insecure-tokens") {
				t.Errorf("%q: it says %q", tt.args, got)
			} else {
				got = got[:n]
			}
		}
		var meant []string
		for _, o := range openings {
			is := slices.Contains(want, o.name)
			if is {
				meant = append(meant, o.means)
				notes += "note " + o.means + "\n"
			}
			if (value[o.name] == 1) != is || (value[o.name] == 0) == is {
				t.Errorf("%q: %s is %v", tt.args, o.name, value[o.name])
			}
		}
		if !slices.Equal(got, meant) || e.Notes() != notes {
			t.Errorf("%q: it says %q and notes %q, want %q", tt.args, got, e.Notes(), meant)
		}
	}
}

// Guarantee: what is open is said at the start, and again every hour.
func TestSaidHourly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, said := observer.New(zapcore.WarnLevel)
		e := Of(parse(t, peers), zap.New(logs))
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		for _, tt := range []struct {
			pass time.Duration
			want int
		}{{0, 1}, {time.Hour - 1, 1}, {1, 2}, {24 * time.Hour, 26}} {
			time.Sleep(tt.pass)
			synctest.Wait()
			if got := said.Len(); got != tt.want {
				t.Errorf("after another %v it was said %d times, want %d", tt.pass, got, tt.want)
			}
		}
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
