package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// answer is what DNS says to one round of questions.
type answer struct {
	four, six []string
	records   []*net.SRV
	err       error
}

// fakeDNS gives its answers one after another, and the last for ever.
type fakeDNS struct {
	answers []answer
	asked   []string
}

var notFound = &net.DNSError{Err: "no such host", IsNotFound: true}

func (f *fakeDNS) next(question string) answer {
	f.asked = append(f.asked, question)
	a := f.answers[0]
	if len(f.answers) > 1 {
		f.answers = f.answers[1:]
	}
	return a
}

// LookupNetIP answers by the same answer for the one family and then for the other.
func (f *fakeDNS) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	a := f.answers[0]
	list := a.six
	if network != "ip6" {
		list = a.four
	}
	if otherFollows := network == "ip4" && len(list) == 0 && a.err == nil; !otherFollows {
		f.next(host)
	}
	if a.err != nil {
		return nil, a.err
	}
	if len(list) == 0 {
		return nil, notFound
	}
	var addrs []netip.Addr
	for _, text := range list {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs, nil
}

func (f *fakeDNS) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	a := f.next("_" + service + "._" + proto + "." + name)
	return "", a.records, a.err
}

func records(targets ...string) (list []*net.SRV) {
	for i, t := range targets {
		list = append(list, &net.SRV{Target: t, Port: uint16(7000 + i)})
	}
	return list
}

func parse(t *testing.T, host string, args ...string) config.Config {
	t.Helper()
	c, err := config.Parse(append(args, "--cluster-size=3"), func(name string) (string, bool) {
		if name == "HOSTNAME" {
			return host, true
		}
		return "", false
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Guarantee: only a whole answer names members, whatever came before it, and its order does
// not depend on that of the answer.
func TestMembers(t *testing.T) {
	three := answer{four: []string{"10.0.0.10", "10.0.0.2", "::ffff:10.0.0.3"}}
	const byAddress = "1=http://10.0.0.2:7,2=http://10.0.0.3:7,3=http://10.0.0.10:7"
	srv := answer{records: records("c.example.", "A.example.", "b.example.")}
	pods := records("raftkv-3.p.", "raftkv-2.p.", "raftkv-1.p.", "raftkv-0.p.", "other-0.p.")
	const byOrdinal = "1=http://raftkv-0.p:7003,2=http://raftkv-1.p:7002,3=http://raftkv-2.p:7001"
	for name, tt := range map[string]struct {
		host, cluster, id string
		answers           []answer
		rounds            int
		founders, own     string
	}{
		"addresses":  {"", "dns+http://kv.example:7", "2", []answer{three}, 1, byAddress, "http://10.0.0.3:7"},
		"one family": {"", "dns+http://kv.example:7", "1", []answer{{four: three.four, six: []string{"fd00::1"}}}, 1, byAddress, "http://10.0.0.2:7"},
		"the other family": {"", "dns+http://kv.example:7", "1", []answer{{six: []string{"fd00::3", "fd00::1", "fd00::2"}}}, 1,
			"1=http://[fd00::1]:7,2=http://[fd00::2]:7,3=http://[fd00::3]:7", "http://[fd00::1]:7"},
		"partial first": {"", "dns+http://kv.example:7", "3",
			[]answer{{}, {four: three.four[:1]}, {four: three.four[:2]}, {err: errors.New("servfail")}, {four: []string{"10.0.0.2", "10.0.0.2", "10.0.0.3"}},
				{four: append([]string{"10.0.0.4"}, three.four...)}, three}, 7, byAddress, "http://10.0.0.10:7"},
		"it fails for one family alone": {"", "dns+http://kv.example:7", "3",
			[]answer{{err: errors.New("servfail"), six: []string{"fd00::3", "fd00::1", "fd00::2"}}, three}, 2, byAddress, "http://10.0.0.10:7"},
		"not this node's place": {"", "dns+http://kv.example:7,3=http://10.0.0.11:7", "3",
			[]answer{three, {four: []string{"10.0.0.2", "10.0.0.3", "10.0.0.11"}}}, 2, strings.ReplaceAll(byAddress, "0.10", "0.11"), "http://10.0.0.11:7"},
		"records": {"", "dns+https://_raft._tcp.kv.example", "3", []answer{{records: srv.records[:2]}, {records: srv.records, err: errors.New("some were bad")}, srv}, 3,
			"1=https://a.example:7001,2=https://b.example:7002,3=https://c.example:7000", "https://c.example:7000"},
		"pods":       {"raftkv-1", "dns+http://_raft._tcp.p", "", []answer{{records: pods[:3]}, {records: pods}}, 2, byOrdinal, "http://raftkv-1.p:7002"},
		"bad target": {"raftkv-1", "dns+http://_raft._tcp.p", "", []answer{{records: records("raftkv-0.p", "a/b")}, {records: pods}}, 2, byOrdinal, "http://raftkv-1.p:7002"},
		"many": {"raftkv-1", "dns+http://_raft._tcp.p", "", []answer{{records: append(records(slices.Repeat([]string{"x"}, maxNamed-3)...), pods...)}, {records: append(records(slices.Repeat([]string{"x"}, maxNamed-5)...), pods...)}}, 2,
			byOrdinal, "http://raftkv-1.p:7002"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				args := []string{"--cluster", tt.cluster}
				if tt.id != "" {
					args = append(args, "--id", tt.id)
				}
				if strings.HasPrefix(tt.cluster, "dns+https") {
					args = append(args, "--peer-cert-file=c", "--peer-key-file=k", "--peer-trusted-ca-file=a")
				}
				began := time.Now()
				c, err := Members(t.Context(), parse(t, tt.host, args...), zap.NewNop(), &fakeDNS{answers: tt.answers})
				if err != nil {
					t.Fatal(err)
				}
				if got := address.FormatPeers(c.Cluster); got != tt.founders || c.PeerURL != tt.own {
					t.Errorf("founders %s, this node at %s", got, c.PeerURL)
				}
				if took := time.Since(began); took != time.Duration(tt.rounds-1)*askEvery {
					t.Errorf("it took %v, want %d rounds", took, tt.rounds)
				}
			})
		})
	}
}

// Guarantee: a node that joins asks whoever DNS names, but itself; it needs not all of them.
func TestMembersToJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &fakeDNS{answers: []answer{{records: records("raftkv-0.p")}, {records: records("raftkv-3.p")}, {records: records("raftkv-3.p", "raftkv-0.p")}}}
		c, err := Members(t.Context(), parse(t, "raftkv-3", "--cluster=dns+http://_raft._tcp.p"), zap.NewNop(), dns)
		if err != nil || !c.Join || c.PeerURL != "http://raftkv-3.p:7000" || !slices.Equal(c.Seeds, []string{"http://raftkv-0.p:7001"}) || len(dns.asked) != 3 {
			t.Errorf("%+v, %v, asked %d times", c, err, len(dns.asked))
		}
		// Once is enough for one that has been a member.
		c = parse(t, "", "--id=4", "--cluster=dns+http://kv.example:7,4=http://10.0.0.4:7")
		if c = Once(t.Context(), c, zap.NewNop(), &fakeDNS{answers: []answer{{}}}); c.Seeds != nil {
			t.Errorf("seeds out of nothing: %v", c.Seeds)
		}
		c = Once(t.Context(), c, zap.NewNop(), &fakeDNS{answers: []answer{{four: []string{"10.0.0.4", "10.0.0.1"}}}})
		if !slices.Equal(c.Seeds, []string{"http://10.0.0.1:7"}) {
			t.Errorf("seeds are %v", c.Seeds)
		}
	})
}

// Guarantee: a node that waits for DNS says why, once and then every ten seconds, and ends
// when it is told to. One whose list follows from the host's name waits for its own name alone.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second+askEvery/2)
		defer cancel()
		c := parse(t, "", "--id=1", "--cluster=dns+http://kv.example:7")
		if _, err := Members(ctx, c, zap.New(core), &fakeDNS{answers: []answer{{}, {four: []string{"10.0.0.1"}}}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended with %v", err)
		}
		if n := logs.Len(); n != 4 || !strings.Contains(logs.All()[1].ContextMap()["because"].(string), "it names 1, and --cluster-size is 3") {
			t.Errorf("%d lines: %v", n, logs.All())
		}
		// A server that refuses does so with another text each time.
		logs.TakeAll()
		refuses := &fakeDNS{}
		for n := range 60 {
			refuses.answers = append(refuses.answers, answer{err: &net.DNSError{Err: fmt.Sprintf("read udp 10.0.0.1:%d->10.0.0.9:53: connection refused", 40000+n), Name: "kv.example"}})
		}
		ctx, cancel = context.WithTimeout(t.Context(), 25*time.Second+askEvery/2)
		defer cancel()
		if _, err := Members(ctx, c, zap.New(core), refuses); !errors.Is(err, context.DeadlineExceeded) || logs.Len() != 3 {
			t.Errorf("it ended with %v, and said %d lines", err, logs.Len())
		}
		pod := parse(t, "raftkv-0", "--cluster=dns+http://peers:7")
		dns := &fakeDNS{answers: []answer{{}, {err: errors.New("servfail")}, {four: []string{"10.0.0.1"}}}}
		if got, err := Members(t.Context(), pod, zap.NewNop(), dns); err != nil || len(dns.asked) != 0 || len(got.Cluster) != 3 {
			t.Errorf("%v, asked for %q", err, dns.asked)
		}
		if err := OwnName(t.Context(), pod, zap.NewNop(), dns); err != nil || !slices.Equal(dns.asked, slices.Repeat([]string{"raftkv-0.peers"}, 3)) {
			t.Errorf("%v, asked for %q", err, dns.asked)
		}
		open := parse(t, "raftkv-0", "--cluster=dns+http://peers:7", "--listen-peer=:7")
		if err := OwnName(t.Context(), open, zap.NewNop(), nil); err != nil {
			t.Error(err)
		}
	})
}
