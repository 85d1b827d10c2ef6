package address

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

// Peer URLs in their plain form.
const (
	urlA = "http://127.0.0.1:12379"
	urlB = "http://127.0.0.1:22379"
	urlC = "http://127.0.0.1:32379"
)

func TestFormatPeers(t *testing.T) {
	peers := []Peer{{ID: 10, URL: urlC}, {ID: 2, URL: urlB}}
	const want = "2=" + urlB + ",10=" + urlC
	if got := FormatPeers(peers); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if peers[0].ID != 10 {
		t.Error("the argument was sorted")
	}
	back, err := ParsePeers(want)
	if got := FormatPeers(back); err != nil || got != want {
		t.Errorf("read back: got %s, %v, want %s", got, err, want)
	}
}

// TestClusterID holds the numbers that are on people's disks: a change here
// makes all of them refuse to start.
func TestClusterID(t *testing.T) {
	tests := []struct {
		peers []Peer
		want  uint64
	}{
		{[]Peer{{ID: 1, URL: "http://127.0.0.1:9021"}}, 0x0fbc1e76dedfe996},
		{[]Peer{{ID: 1, URL: urlA}, {ID: 2, URL: urlB}, {ID: 3, URL: urlC}}, 0x18b7f6f2253f42e8},
		{[]Peer{{ID: 3, URL: urlC}, {ID: 1, URL: urlA}, {ID: 2, URL: urlB}}, 0x18b7f6f2253f42e8},
	}
	seen := map[uint64]bool{}
	for _, tt := range tests {
		got := ClusterIDOf(tt.peers)
		if got != tt.want {
			t.Errorf("clusterIDOf(%v) = %#x, want %#x", tt.peers, got, tt.want)
		}
		seen[got] = true
	}
	seen[ClusterIDOf([]Peer{{ID: 2, URL: urlA}, {ID: 1, URL: urlB}, {ID: 3, URL: urlC}})] = true
	if len(seen) != 3 {
		t.Errorf("got %d cluster IDs of 3 clusters", len(seen))
	}
}

// goodPeerURLs maps what is accepted to its canonical form.
var goodPeerURLs = map[string]string{
	urlA:                        urlA,
	"HTTP://LocalHost:12379":    "http://localhost:12379",
	"http://kv_1.example.com:1": "http://kv_1.example.com:1",
	"http://3f2a:65535":         "http://3f2a:65535", // the ID of a container
	"http://[::1]:1234":         "http://[::1]:1234",
	"http://[2001:DB8::A]:1":    "http://[2001:db8::a]:1",
}

const (
	badForm   = "expected http://host:port"
	badScheme = "expected the scheme http"
	badHost   = "an IP address or a DNS name"
	badPort   = "1 to 65535"
	listening = "one to listen on"
)

// badPeerURLs maps what is refused to a part of the reason.
var badPeerURLs = map[string]string{
	"": badForm,

	urlA + "/":                "expected only " + urlA,
	urlA + "/raft":            "expected only " + urlA,
	urlA + "?":                "expected only " + urlA,
	urlA + "?a=b":             "expected only " + urlA,
	urlA + "#":                "expected only " + urlA,
	"http://@127.0.0.1:12379": "expected only " + urlA,
	"http://[0:0::1]:1":       "expected only http://[::1]:1",
	"http://me:pw@a:1":        "expected only http://a:1",

	"127.0.0.1:1":          badForm,
	"localhost:1":          badForm,
	"http:127.0.0.1:1":     badForm,
	"://127.0.0.1:1":       badForm,
	"http://127.0.0.1":     badForm,
	"http://127.0.0.1:":    badForm,
	"http://[::1]":         badForm,
	"http://[127.0.0.1]:1": badForm,
	"http://a:http":        badForm,
	"http://":              badForm,
	" " + urlA:             badForm,
	urlA + "\n":            badForm,
	"http://\x00\xff:1":    badForm,
	urlA + "," + urlB:      badForm,
	"//127.0.0.1:1":        badScheme,
	"ftp://127.0.0.1:1":    badScheme,
	"unix://127.0.0.1:1":   badScheme,

	"http://a:0":     badPort,
	"http://a:012":   badPort,
	"http://a:65536": badPort,

	"http://0.0.0.0:1":          listening,
	"http://[::]:1":             listening,
	"http://[::ffff:0.0.0.0]:1": listening,

	"http://:1":                 badHost,
	"http://0:1":                badHost,
	"http://127.1:1":            badHost,
	"http://0x7f000001:1":       badHost,
	"http://300.0.0.1:1":        badHost,
	"http://a..b:1":             badHost,
	"http://a.b.:1":             badHost,
	"http://-a:1":               badHost,
	"http://*:1":                badHost,
	"http://ä:1":                badHost,
	"http://[fe80::1%25eth0]:1": badHost,
	"http://" + strings.Repeat("a", 64) + ":1":    badHost,
	"http://" + strings.Repeat("a.", 200) + "b:1": badHost,
}

func TestCheckPeerURL(t *testing.T) {
	for raw, want := range goodPeerURLs {
		if got, err := CheckPeerURL(raw); err != nil || got != want {
			t.Errorf("checkPeerURL(%q) = %q, %v; want %q", raw, got, err, want)
		}
	}
	for raw, want := range badPeerURLs {
		if got, err := CheckPeerURL(raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("checkPeerURL(%q) = %q, %v; want an error with %q", raw, got, err, want)
		}
	}
}

// FuzzCheckPeerURL checks that whatever is accepted is a URL that rafthttp does
// not panic on, and is the only spelling of itself.
func FuzzCheckPeerURL(f *testing.F) {
	for raw := range goodPeerURLs {
		f.Add(raw)
	}
	for raw := range badPeerURLs {
		f.Add(raw)
	}
	f.Add("http://::1:1234")
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := CheckPeerURL(raw)
		if err != nil {
			if msg := err.Error(); strings.Contains(msg, "\n") {
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
		if !IsPlainURL(got) || IsPlainPeerURL(got) == IsHTTPS(got) {
			t.Fatalf("%q became %q, which no replica would take in", raw, got)
		}
		if again, err := CheckPeerURL(got); err != nil || again != got {
			t.Fatalf("%q became %q, and that %q, %v", raw, got, again, err)
		}
		if got == "" || !strings.HasPrefix(got, "http://") && !IsHTTPS(got) || strings.HasSuffix(got, "/") {
			t.Fatalf("%q became %q", raw, got)
		}
	})
}

// What the replicas take in, for ever: another answer to any of these would
// make healthy replicas of two versions differ.
func TestPlainPeerURLIsForever(t *testing.T) {
	for url, want := range map[string]bool{
		"http://a:1": true, "http://a_b-c.d:65535": true, "http://10.0.0.1:2380": true, "http://[::1]:1": true,
		"http://[2001:db8::ffff:1.2.3.4]:80": true, "http://0.0.0.0:1": true,
		"http://a:0": false, "http://a:65536": false, "http://a:01": false, "http://A:1": false, "https://a:1": false,
		"http://a:1/": false, "http://a": false, "http://:1": false, "http://[1.2.3.4]:1": false, "http://::1:1": false,
		"http://a b:1": false, "http://é:1": false, "http://a:1\n": false, "": false,
	} {
		if got := IsPlainPeerURL(url); got != want {
			t.Errorf("%q: %v", url, got)
		}
		if got := IsPlainURL(url); got != (want || url == "https://a:1") {
			t.Errorf("%q with both schemes: %v", url, got)
		}
	}
}
