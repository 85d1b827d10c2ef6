package config

import (
	"strings"
	"testing"
)

// peerFiles are the three flags of TLS between peers.
var peerFiles = []string{"--peer-cert-file=c", "--peer-key-file=k", "--peer-trusted-ca-file=ca"}

// Guarantee: a door that is half set is no door: the node does not start.
func TestDoorsContradict(t *testing.T) {
	for args, want := range map[string]string{
		"--cert-file=c":                               "--key-file",
		"--key-file=k":                                "--cert-file",
		"--trusted-ca-file=ca":                        "--cert-file",
		"--client-cert-auth":                          "--trusted-ca-file",
		"--client-tls=optional":                       "--cert-file",
		"--client-tls=off":                            "required, optional",
		"--peer-cert-file=c --peer-key-file=k":        "--peer-trusted-ca-file",
		"--peer-cert-file=c --peer-trusted-ca-file=k": "--peer-key-file",
		"--peer-key-file=c":                           "--peer-cert-file",
		"--peer-trusted-ca-file=c":                    "--peer-cert-file",
		"--peer-tls=optional":                         "--peer-cert-file",
		"--peer-tls=on":                               "required, optional",
		"--peer-allowed-name={id}.{id}.kv":            "{id}",
		"--peer-allowed-name=10.0.0.{id}":             "{id}",
		"--peer-allowed-name=*.kv":                    "{id}",
		"--peer-allowed-name={ID}x_.":                 "{id}",
		"--auth=maybe":                                "on, off",
		"--auth=off --auth-file=f":                    "--auth-file",
		"--audit-reads":                               "--audit-log",
		"--listen-metrics=9100":                       "host:port",
		"--listen-metrics=127.0.0.1:9121":             "client API",
		"--listen-metrics=:9121":                      "client API",
		"--listen-metrics=0.0.0.0:9021":               "peer server",
		"--cluster=https://127.0.0.1:9021":            "--peer-cert-file",
	} {
		_, err := Parse(strings.Fields(args), mapEnv(nil))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", args, err, want)
		}
	}
}

// Guarantee: with a certificate, https is what others are told; and a member is known by
// the name that the operator has chosen.
func TestDoorsFollow(t *testing.T) {
	c := mustParse(t, "--cert-file=c", "--key-file=k", "--port=12380")
	if got := c.ClientURL(12380); got != "https://127.0.0.1:12380" {
		t.Errorf("the client URL is %s", got)
	}
	c = mustParse(t, append([]string{"--cluster=https://127.0.0.1:9021", "--peer-allowed-name=kv.example"}, peerFiles...)...)
	if got := c.PeerListener(); got != "127.0.0.1:9021" {
		t.Errorf("the peer server listens on %s", got)
	}
	if c.MemberName(3) != "kv.example" || c.NamesOneMember() {
		t.Errorf("member 3 is %s, of its own: %v", c.MemberName(3), c.NamesOneMember())
	}
	c = mustParse(t, peerFiles...)
	if c.MemberName(3) != "3.raftkv" || !c.NamesOneMember() {
		t.Errorf("member 3 is %s, of its own: %v", c.MemberName(3), c.NamesOneMember())
	}
}
