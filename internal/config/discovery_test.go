package config

import (
	"raftkv/internal/address"
	"reflect"
	"strings"
	"testing"
)

const (
	dnsPods    = "dns+http://raftkv-peers:12379"
	dnsAddrs   = "dns+http://raftkv.example:12379"
	dnsRecords = "dns+http://_raftkv-peer._tcp.raftkv.example"
)

func onHost(name string) func(string) (string, bool) {
	return mapEnv(map[string]string{"HOSTNAME": name})
}

func podURL(ordinal string) string { return "http://raftkv-" + ordinal + ".raftkv-peers:12379" }

// Guarantee: in a StatefulSet ID, own URL and founders follow from the name of the host, the
// DNS name and the size alone, so that all pods have the same list without an answer of DNS.
func TestDiscoveryInASet(t *testing.T) {
	founders := []address.Peer{{ID: 1, URL: podURL("0")}, {ID: 2, URL: podURL("1")}, {ID: 3, URL: podURL("2")}}
	seeds := []string{podURL("0"), podURL("1"), podURL("2")}
	for _, tt := range []struct {
		host, cluster string
		id            uint64
		url           string
		founders      []address.Peer
		seeds         []string
	}{
		{"raftkv-0", dnsPods, 1, podURL("0"), founders, nil},
		{"RaftKV-2.raftkv-peers.default.svc", "DNS+HTTP://RaftKV-Peers:12379", 3, podURL("2"), founders, nil},
		{"raftkv-3", dnsPods, 4, podURL("3"), nil, seeds},
		{"raftkv-10", dnsPods, 11, podURL("10"), nil, seeds},
		// A pod that lost its disk comes back under another ID, and the others stay what they were.
		{"raftkv-1", dnsPods + ",12=" + podURL("1"), 12, podURL("1"), nil, []string{podURL("0"), podURL("2")}},
		{"raftkv-0", dnsPods + ",12=" + podURL("1"), 1, podURL("0"), founders, nil},
		{"raftkv-9", "4=" + podURL("9") + "," + dnsPods, 4, podURL("9"), nil, seeds},
	} {
		c, err := Parse([]string{"--cluster", tt.cluster, "--cluster-size=3"}, onHost(tt.host))
		if err != nil {
			t.Errorf("%s, %s: %v", tt.host, tt.cluster, err)
			continue
		}
		if c.ID != tt.id || c.PeerURL != tt.url || c.Join != (tt.founders == nil) ||
			!reflect.DeepEqual(c.Cluster, tt.founders) || !reflect.DeepEqual(c.Seeds, tt.seeds) {
			t.Errorf("%s, %s: member %d at %s, founders %v, seeds %v", tt.host, tt.cluster, c.ID, c.PeerURL, c.Cluster, c.Seeds)
		}
	}
}

// Guarantee: with --id, and with SRV records, what DNS has to say stays open, and the host's
// name counts only where no ID is given.
func TestDiscoveryByAnswer(t *testing.T) {
	for _, tt := range []struct {
		host, cluster, id string
		want              uint64
		set, url          string
		join              bool
	}{
		{"raftkv-1", dnsAddrs, "2", 2, "", "", false},
		{"web", dnsAddrs, "2", 2, "", "", false},
		{"web", dnsAddrs + ",2=" + urlA, "2", 2, "", urlA, false},
		{"web", dnsAddrs + ",4=" + urlA, "4", 4, "", urlA, true},
		{"web", dnsRecords, "3", 3, "", "", false},
		{"raftkv-1", dnsRecords, "", 2, "raftkv", "", false},
		{"raftkv-3", dnsRecords, "", 4, "raftkv", "", true},
		{"raftkv-1", dnsRecords + ",12=http://raftkv-1.x:1", "", 12, "raftkv", "http://raftkv-1.x:1", true},
	} {
		args := []string{"--cluster", tt.cluster, "--cluster-size=3"}
		if tt.id != "" {
			args = append(args, "--id", tt.id)
		}
		c, err := Parse(args, onHost(tt.host))
		if err != nil {
			t.Errorf("%s %q: %v", tt.host, args, err)
			continue
		}
		if c.ID != tt.want || c.Discovery.Set != tt.set || c.PeerURL != tt.url || c.Join != tt.join || c.Cluster != nil {
			t.Errorf("%s %q: %+v", tt.host, args, c)
		}
	}
	if got := mustParse(t, "--id=1", "--cluster", dnsAddrs, "--cluster-size=1").PeerListener(); got != "raftkv.example:12379" {
		t.Errorf("the peer listener is at %q before the URL is known", got)
	}
}

// Guarantee: what would leave the members in doubt is refused at once, with what is missing.
func TestDiscoveryRefused(t *testing.T) {
	for _, tt := range []struct {
		host  string
		args  []string
		words []string
	}{
		{"raftkv-0", []string{"--cluster", dnsPods}, []string{"--cluster-size", "founding members"}},
		{"raftkv-0", []string{"--cluster", dnsPods, "--cluster-size=0"}, []string{"--cluster-size", "1 to 64"}},
		{"raftkv-0", []string{"--cluster", dnsPods, "--cluster-size=65"}, []string{"--cluster-size", "1 to 64"}},
		{"raftkv-0", []string{"--cluster", dnsPods, "--cluster-size=three"}, []string{"1 to 64"}},
		{"web", []string{"--cluster", dnsAddrs, "--cluster-size=3"}, []string{"--id", `"web"`, "ordinal"}},
		{"raftkv-01", []string{"--cluster", dnsAddrs, "--cluster-size=3"}, []string{"--id", "ordinal"}},
		{"web", []string{"--id=4", "--cluster", dnsAddrs, "--cluster-size=3"}, []string{"own URL", "4=http://"}},
		{"web", []string{"--id=2", "--join", "--cluster", dnsAddrs, "--cluster-size=3"}, []string{"own URL", "2=http://"}},
		{"raftkv-0", []string{"--cluster", dnsPods + "," + dnsAddrs, "--cluster-size=3"}, []string{"one dns+http"}},
		{"raftkv-0", []string{"--cluster", dnsPods + "," + urlA, "--cluster-size=3"}, []string{"id=url"}},
		{"raftkv-0", []string{"--cluster", dnsPods + ",3=" + urlA, "--cluster-size=3"}, []string{"above 3"}},
		{"raftkv-0", []string{"--cluster", "dns+ftp://raftkv:1", "--cluster-size=3"}, []string{"dns+https://"}},
		{"raftkv-0", []string{"--cluster", "dns+http://raftkv", "--cluster-size=3"}, []string{"port"}},
		{"raftkv-0", []string{"--cluster", "dns+http://10.0.0.1:1", "--cluster-size=3"}, []string{"not an address"}},
		{"raftkv-0", []string{"--cluster", "dns+http://raftkv:1/path", "--cluster-size=3"}, []string{"raftkv:1"}},
		{"raftkv-0", []string{"--cluster", dnsRecords + ":12379", "--cluster-size=3"}, []string{"without a port"}},
		{"raftkv-0", []string{"--cluster", "dns+http://_raftkv-peer.raftkv", "--cluster-size=3"}, []string{"_tcp"}},
		{"raftkv-0", []string{"--cluster", "dns+https://raftkv:1", "--cluster-size=3"}, []string{"--peer-cert-file"}},
		{"raftkv-0", []string{"--cluster", "dns+https://_a._tcp.raftkv", "--cluster-size=3"}, []string{"--peer-cert-file"}},
		{"raftkv-0", []string{"--cluster", dnsPods, "--cluster-size=3", "--port=12379", "--host=0.0.0.0", "--listen-peer=:12379"}, []string{"--port"}},
		{strings.Repeat("x", 60) + "-0", []string{"--cluster", "dns+http://" + strings.Repeat("y.", 100) + "z:1", "--cluster-size=3"}, []string{"shorter"}},
		{"raftkv-0", []string{"--cluster", urlA, "--cluster-size=1"}, []string{"only with a dns+http"}},
	} {
		_, err := Parse(tt.args, onHost(tt.host))
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) { wantProblems(t, err, tt.words) })
	}
}
