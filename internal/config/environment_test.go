//go:build unix

package config

import (
	"reflect"
	"slices"
	"testing"
)

// Guarantee: what Kubernetes sets for a Service named raftkv is no port of this server's, and nothing else is ignored.
func TestServicePort(t *testing.T) {
	for _, value := range []string{"tcp://10.0.0.7:9121", "udp://10.0.0.7:9121", "sctp://10.0.0.7:9121", "tcp://[fd00::7]:9121"} {
		c, err := Parse(nil, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		want := DefaultConfig()
		want.portIgnored = true
		if err != nil || !reflect.DeepEqual(c, want) {
			t.Errorf("RAFTKV_PORT=%s: %+v, %v; want the defaults", value, c, err)
		}
		c, err = Parse([]string{"--port", "12380"}, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		if err != nil || c.Port != 12380 || c.portIgnored {
			t.Errorf("RAFTKV_PORT=%s with --port: %+v, %v", value, c, err)
		}
		_, err = Parse(nil, mapEnv(map[string]string{"RAFTKV_ID": value}))
		wantProblems(t, err, []string{"RAFTKV_ID"})
	}
	for _, value := range []string{"http://10.0.0.7:9121", "tcp:", "tcp://", "10.0.0.7:9121", "tcp://a b", "xtcp://10.0.0.7:9121"} {
		_, err := Parse(nil, mapEnv(map[string]string{"RAFTKV_PORT": value}))
		wantProblems(t, err, []string{"RAFTKV_PORT", value})
	}
}

// Guarantee: a variable with a typing error is named, one that belongs to others is not.
func TestUnknownVariables(t *testing.T) {
	environ := []string{
		"HOME=/root", "RAFTKV=1", "raftkv_port=1", "NOT_RAFTKV_PORT=1",
		"RAFTKV_PORT=tcp://10.0.0.7:9121", "RAFTKV_SERVICE_HOST=10.0.0.7", "RAFTKV_SERVICE_PORT=9121", "RAFTKV_SERVICE_PORT_HTTP=9121",
		"RAFTKV_PORT_9121_TCP=tcp://10.0.0.7:9121", "RAFTKV_PORT_9121_TCP_PROTO=tcp", "RAFTKV_PORT_9121_TCP_PORT=9121", "RAFTKV_PORT_9121_TCP_ADDR=10.0.0.7",
		"RAFTKV_PEER_2_SERVICE_HOST=10.0.0.7", "RAFTKV_PEER_2_SERVICE_PORT=1", "RAFTKV_PEER_2_PORT=tcp://10.0.0.7:1", "RAFTKV_PEER_2_PORT_53_UDP_ADDR=10.0.0.7",
		"RAFTKV_ENDPOINTS=x", "RAFTKV_TOKEN=x", "RAFTKV_FENCE=1", "RAFTKV_KEY=x", "RAFTKV_EMPTY=",
		"RAFTKV_DATADIR=/data", "RAFTKV_PORT_9121=1", "RAFTKV_SERVICE=x", "RAFTKV_TOKENS=secret", "RAFTKV_VERSION=1.2.3", "RAFTKV_=1",
	}
	for _, s := range new(Config).Settings(new(string)) {
		environ = append(environ, envName(s.Flag)+"=x")
	}
	want := []string{"RAFTKV_", "RAFTKV_DATADIR", "RAFTKV_PORT_9121", "RAFTKV_SERVICE", "RAFTKV_TOKENS", "RAFTKV_VERSION"}
	if got := unknownVariables(environ); !slices.Equal(got, want) {
		t.Errorf("unknown are %q, want %q", got, want)
	}
}
