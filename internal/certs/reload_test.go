package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"raftkv/internal/issue"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest/observer"
)

// metric returns a metric's value, by its labels as name=value.
func metric(t *testing.T, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	testkit.Must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var has []string
			for _, l := range m.GetLabel() {
				has = append(has, l.GetName()+"="+l.GetValue())
			}
			if f.GetName() == name && slices.Equal(has, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s%v", name, labels)
	return 0
}

// Guarantee: new files come into force by themselves, within DefaultEvery. Those that
// are broken do not: the old ones stay, and log, metrics and Trouble tell, once, until
// the files are whole.
func TestReload(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		ca, root := newCA(t, "CA")
		first, second := issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv"))
		p := newPlace(t).put(first, root)
		k, logs := keeper(t, p.peerConfig())
		reg := prometheus.NewRegistry()
		k.Register(reg)
		changes := 0
		k.OnChange(func() { changes++ })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		was := k.Own()
		want := func(what string, inForce *x509.Certificate, reloaded, failed float64, trouble string, lines int) {
			t.Helper()
			time.Sleep(DefaultEvery + time.Millisecond)
			if !k.Own().Equal(inForce) {
				t.Errorf("%s: another certificate is in force", what)
			}
			inTrouble := 0.0
			if trouble != "" {
				inTrouble = 1
				wantError(t, what, k.Trouble(), trouble)
			} else if err := k.Trouble(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			for name, want := range map[string]float64{"ok": reloaded, "failed": failed} {
				if got := metric(t, reg, "raftkv_certificate_reloads_total", "door=peer", "result="+name); got != want {
					t.Errorf("%s: %v reloads %s instead of %v", what, got, name, want)
				}
			}
			if got := metric(t, reg, "raftkv_certificate_trouble", "door=peer"); got != inTrouble {
				t.Errorf("%s: trouble is %v", what, got)
			}
			if got := len(logs.TakeAll()); got != lines {
				t.Errorf("%s: %d lines instead of %d", what, got, lines)
			}
			if changes != int(reloaded) {
				t.Errorf("%s: %d changes were told", what, changes)
			}
		}
		want("nothing", was, 0, 0, "", 0)
		testkit.Must(t, os.Chtimes(p.files().Cert, time.Now(), time.Now().Add(time.Hour)))
		p.put(first, root)
		want("the same again", was, 0, 0, "", 0)
		testkit.Must(t, os.WriteFile(p.files().Key, second.Key, 0o600))
		want("half of a pair", was, 0, 1, "does not match", 1)
		want("half of a pair, still", was, 0, 1, "does not match", 0)
		testkit.Must(t, os.WriteFile(p.files().Cert, second.Cert[:100], 0o600))
		want("half a file", was, 0, 2, "half written", 1)
		testkit.Must(t, os.Remove(p.files().Cert))
		want("no file", was, 0, 3, "no such file", 1)
		testkit.Must(t, os.WriteFile(p.files().Cert, second.Cert, 0o600))
		time.Sleep(DefaultEvery + time.Millisecond)
		is := k.Own()
		if is.Equal(was) {
			t.Error("the new pair is not in force")
		}
		if got := testkit.Messages(logs); len(got) != 2 || !strings.Contains(got[1], "new certificates are in force") {
			t.Errorf("%q", got)
		}
		logs.TakeAll()
		want("the new pair", is, 1, 3, "", 0)
		testkit.Must(t, os.WriteFile(p.files().CA, nil, 0o600))
		want("no CA", is, 1, 4, "nothing in PEM", 1)
		testkit.Must(t, os.WriteFile(p.files().CA, root.Cert, 0o600))
		want("as before", is, 1, 4, "", 1)
		cancel()
		testkit.Must(t, <-ended)
	})
}

// Guarantee: one look that falls into a swap of the files reads them again, and makes no
// trouble of it; files that do not fit together for readsOfOneLook reads are trouble.
func TestLookWithinASwap(t *testing.T) {
	ca, root := newCA(t, "CA")
	first, second := issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv"))
	k, _ := keeper(t, newPlace(t).put(first, root).peerConfig())
	was := k.Own()
	mixed := func(n byte) texts { return texts{second.Cert, first.Key, append([]byte{'\n', n}, root.Cert...)} }
	whole := texts{second.Cert, second.Key, root.Cert}
	reads := 0
	within := func(seen ...texts) {
		reads = 0
		k.files = func(Files) (texts, error) {
			reads++
			if seen[reads-1].cert == nil {
				return texts{}, os.ErrNotExist
			}
			return seen[reads-1], nil
		}
		k.Look()
	}
	within(mixed(1), mixed(2), mixed(3))
	wantError(t, "three mixed reads", k.Trouble(), "does not match")
	within(mixed(1), mixed(1))
	wantError(t, "two equal reads", k.Trouble(), "does not match")
	within(mixed(1), texts{})
	wantError(t, "a read, and no file", k.Trouble(), "does not match")
	if !k.Own().Equal(was) {
		t.Error("half of a pair is in force")
	}
	within(texts{}, mixed(1), whole)
	if k.Trouble() != nil || k.Own().Equal(was) {
		t.Errorf("the new pair is not in force: %v", k.Trouble())
	}
}

// Guarantee: no handshake fails because files are replaced meanwhile.
func TestHandshakesWhileReloading(t *testing.T) {
	ca, root := newCA(t, "CA")
	pairs := []issue.Pair{issued(t, ca, member("1.raftkv")), issued(t, ca, member("1.raftkv"))}
	p := newPlace(t).put(pairs[0], root)
	k, _ := keeper(t, p.peerConfig())
	server, client := k.Server(tls.RequireAndVerifyClientCert), k.Client("1.raftkv")
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; !stop.Load(); n++ {
			p.put(pairs[n%2], root)
			k.Look()
		}
	}()
	for range 100 {
		_, atServer, atClient := shake(t, server, client)
		testkit.Must(t, errors.Join(atServer, atClient))
	}
	stop.Store(true)
	<-done
}

// Guarantee: a cluster walks from one CA to another by bundles of both, and at no step
// are there two nodes that do not connect. Whoever takes away the old CA too early
// keeps it in force, and who has only the old one is out at the end.
func TestWalkToANewCA(t *testing.T) {
	oldCA, oldRoot := newCA(t, "CA")
	freshCA, freshRoot := newCA(t, "CA") // of the same name
	names := []string{"1.raftkv", "2.raftkv"}
	var places []place
	var nodes []*Keeper
	for _, name := range names {
		p := newPlace(t).put(issued(t, oldCA, member(name)), oldRoot)
		k, _ := keeper(t, p.peerConfig())
		places, nodes = append(places, p), append(nodes, k)
	}
	thief, _ := keeper(t, newPlace(t).put(issued(t, oldCA, member("2.raftkv")), oldRoot, freshRoot).peerConfig())
	testkit.Must(t, both(t, nodes[0], thief, names[0], names[1]))

	testkit.Must(t, os.WriteFile(places[0].files().CA, freshRoot.Cert, 0o644))
	nodes[0].Look()
	wantError(t, "the new CA alone", nodes[0].Trouble(), "not signed by the CA")
	testkit.Must(t, both(t, nodes[0], nodes[1], names[0], names[1]))

	step := func(what string, pair func(n int) issue.Pair, roots ...issue.Pair) {
		t.Helper()
		for n := range nodes {
			places[n].put(pair(n), roots...)
			if nodes[n].Look(); nodes[n].Trouble() != nil {
				t.Fatalf("%s: node %d: %v", what, n+1, nodes[n].Trouble())
			}
			if err := both(t, nodes[0], nodes[1], names[0], names[1]); err != nil {
				t.Errorf("%s, node %d: %v", what, n+1, err)
			}
		}
	}
	oldPairs := []issue.Pair{issued(t, oldCA, member(names[0])), issued(t, oldCA, member(names[1]))}
	freshPairs := []issue.Pair{issued(t, freshCA, member(names[0])), issued(t, freshCA, member(names[1]))}
	oldOf, freshOf := func(n int) issue.Pair { return oldPairs[n] }, func(n int) issue.Pair { return freshPairs[n] }
	step("both CAs", oldOf, oldRoot, freshRoot)
	step("new certificates", freshOf, oldRoot, freshRoot)
	cs, _, _ := shake(t, nodes[0].Server(tls.RequireAndVerifyClientCert), thief.Client(names[0]))
	testkit.Must(t, nodes[0].StillValid(&cs))
	step("the new CA", freshOf, freshRoot)
	wantError(t, "a connection of the old CA", nodes[0].StillValid(&cs), "unknown authority")
	_, atServer, _ := shake(t, nodes[0].Server(tls.RequireAndVerifyClientCert), thief.Client(names[0]))
	wantError(t, "a handshake of the old CA", atServer, "unknown authority")
	_, _, atClient := shake(t, thief.Server(tls.RequireAndVerifyClientCert), nodes[0].Client(names[1]))
	wantError(t, "a server of the old CA", atClient, "unknown authority")
}

// Guarantee: what was in force when a configuration was made does not stay in it.
func TestServerConfigFollows(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
	k, _ := keeper(t, p.peerConfig())
	server, client := k.Server(tls.RequireAndVerifyClientCert, "h2", "http/1.1"), k.Client("1.raftkv")
	client.NextProtos = []string{"http/1.1", "h2"}
	verify := client.VerifyConnection
	var shown *x509.Certificate
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0]
		return verify(cs)
	}
	for n := range 3 {
		cs, _, atClient := shake(t, server, client)
		testkit.Must(t, atClient)
		if !shown.Equal(k.Own()) || !cs.PeerCertificates[0].Equal(k.Own()) || cs.NegotiatedProtocol != "h2" {
			t.Errorf("round %d: not the certificate in force, or %q", n, cs.NegotiatedProtocol)
		}
		p.put(issued(t, ca, member("1.raftkv")), root)
		k.Look()
	}
}

// Guarantee: at a port without a CA no certificate of a client is taken for good, also
// not because the system knows who signed it.
func TestNoCAIsNobody(t *testing.T) {
	ca, root := newCA(t, "CA")
	p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
	f := p.files()
	k, _ := keeper(t, Config{Door: "client", Files: Files{Cert: f.Cert, Key: f.Key}})
	peer, _ := keeper(t, p.peerConfig())
	for _, auth := range []tls.ClientAuthType{tls.RequestClientCert, tls.RequireAnyClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert} {
		server := k.Server(auth)
		inner, err := server.GetConfigForClient(nil)
		testkit.Must(t, err)
		if inner.ClientCAs == nil || server.ClientCAs == nil {
			t.Fatal("the CAs of the system are asked")
		}
		_, atServer, _ := shake(t, server, peer.Client("1.raftkv"))
		wantError(t, "no CA", atServer, "unknown authority")
	}
	_, _, err := shake(t, peer.Server(tls.NoClientCert), k.Client("1.raftkv"))
	wantError(t, "no CA", err, "unknown authority")
}

// Guarantee: nothing below TLS 1.2 is spoken on either side.
func TestOldVersions(t *testing.T) {
	ca, root := newCA(t, "CA")
	k, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig())
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		at := func(cfg *tls.Config) *tls.Config {
			cfg.MinVersion, cfg.MaxVersion = version, version
			return cfg
		}
		_, atServer, _ := shake(t, k.Server(tls.RequireAndVerifyClientCert), at(k.Client("1.raftkv")))
		old := at(k.Server(tls.RequireAndVerifyClientCert))
		old.GetConfigForClient = nil
		_, _, atClient := shake(t, old, k.Client("1.raftkv"))
		if (atServer == nil) != ok || (atClient == nil) != ok {
			t.Errorf("%s: %v, %v", tls.VersionName(version), atServer, atClient)
		}
	}
}

// Guarantee: nobody comes back by a ticket, past the check of certificates.
func TestNoTickets(t *testing.T) {
	ca, root := newCA(t, "CA")
	k, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig())
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server, client := k.Server(tls.RequireAndVerifyClientCert), k.Client("1.raftkv")
		client.ClientSessionCache, client.MaxVersion = tls.NewLRUClientSessionCache(10), version
		for range 3 {
			cs, atServer, atClient := shake(t, server, client)
			testkit.Must(t, errors.Join(atServer, atClient))
			if cs.DidResume {
				t.Errorf("%s: resumed", tls.VersionName(version))
			}
		}
	}
}

// Guarantee: what the door demands of a client's certificate is demanded in the
// handshake and again by StillValid.
func TestAccept(t *testing.T) {
	ca, root := newCA(t, "CA")
	refused := errors.New("not by me")
	var refuse atomic.Bool
	cfg := newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig()
	cfg.Accept = func(c *x509.Certificate) error {
		if refuse.Load() {
			return refused
		}
		return hasName(c, "1.raftkv")
	}
	k, _ := keeper(t, cfg)
	cs, atServer, _ := shake(t, k.Server(tls.RequireAndVerifyClientCert), k.Client("1.raftkv"))
	testkit.Must(t, errors.Join(atServer, k.StillValid(&cs)))
	refuse.Store(true)
	_, atServer, _ = shake(t, k.Server(tls.RequireAndVerifyClientCert), k.Client("1.raftkv"))
	if !errors.Is(atServer, refused) || !errors.Is(k.StillValid(&cs), refused) {
		t.Errorf("%v, %v", atServer, k.StillValid(&cs))
	}
	// Without a certificate there is nothing to accept, and nothing that can end.
	testkit.Must(t, errors.Join(k.StillValid(new(tls.ConnectionState)), k.StillValid(nil)))
	if until := Until(new(tls.ConnectionState)); !until.IsZero() {
		t.Errorf("until %v", until)
	}
}

// Guarantee: a client's certificate is valid until its own end or that of its CA,
// whichever comes first, also while it is connected.
func TestConnectionsExpire(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		ca, root := newCA(t, "CA")
		k, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig())
		request := member("2.raftkv")
		request.Until = time.Now().Add(3 * day)
		other, _ := keeper(t, newPlace(t).put(issued(t, ca, request), root).peerConfig())
		cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{other.Own()}}
		testkit.Must(t, k.StillValid(&cs))
		time.Sleep(3*day - time.Second)
		testkit.Must(t, k.StillValid(&cs))
		time.Sleep(2 * time.Second)
		wantError(t, "after three days", k.StillValid(&cs), "expired", "2.raftkv")
	})
}

// warnings returns how many lines of a log have a text.
func warnings(logs *observer.ObservedLogs, text string) int {
	n := 0
	for _, m := range testkit.Messages(logs) {
		if strings.Contains(m, text) {
			n++
		}
	}
	return n
}

// Guarantee: from 14 days before a certificate expires on, the log warns of it once a
// day. When it has expired nothing ends: the log says so, and a new one comes into
// force. A metric has the time until then.
func TestExpiry(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		ca, root := newCA(t, "CA")
		request := member("1.raftkv")
		request.Until = time.Now().Add(20 * day)
		p := newPlace(t).put(issued(t, ca, request), root)
		cfg := p.peerConfig()
		cfg.Every = time.Hour
		k, logs := keeper(t, cfg)
		reg := prometheus.NewRegistry()
		k.Register(reg)
		go k.Run(t.Context())
		if got := metric(t, reg, "raftkv_certificate_expiry_seconds", "door=peer"); got != (20 * day).Seconds() {
			t.Errorf("expires in %v s", got)
		}
		time.Sleep(6*day - time.Second)
		if got := testkit.Messages(logs); len(got) > 0 {
			t.Errorf("14 days before: %q", got)
		}
		time.Sleep(2 * time.Hour)
		if got := warnings(logs, "expires soon"); got != 1 {
			t.Errorf("%d warnings when there are less than 14 days", got)
		}
		time.Sleep(13 * day)
		if got := warnings(logs, "expires soon"); got != 14 {
			t.Errorf("%d warnings on 14 days", got)
		}
		time.Sleep(day)
		if got := warnings(logs, "is not valid now"); got != 1 || k.Trouble() != nil {
			t.Errorf("%d warnings when it has expired, %v", got, k.Trouble())
		}
		time.Sleep(day)
		if got := warnings(logs, "is not valid now"); got != 2 {
			t.Errorf("%d warnings a day later", got)
		}
		if got := metric(t, reg, "raftkv_certificate_expiry_seconds", "door=peer"); got > -day.Seconds() {
			t.Errorf("expires in %v s", got)
		}
		// A start with it goes on, too.
		late, lateLogs := keeper(t, cfg)
		if got := warnings(lateLogs, "is not valid now"); got != 1 || !late.Own().Equal(k.Own()) {
			t.Errorf("%d warnings at a start", got)
		}
		logs.TakeAll()
		p.put(issued(t, ca, member("1.raftkv")), root)
		time.Sleep(2 * time.Hour)
		if got := testkit.Messages(logs); len(got) != 1 || k.Own().NotAfter.Before(time.Now()) {
			t.Errorf("%q", got)
		}
	})
}

// Guarantee: that a certificate has expired is told at once, however lately it was told
// that it would, and so is that a new one will expire soon.
func TestExpiryIsToldAtOnce(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		ca, root := newCA(t, "CA")
		request := member("1.raftkv")
		request.Until = time.Now().Add(day / 2)
		p := newPlace(t).put(issued(t, ca, request), root)
		k, logs := keeper(t, p.peerConfig())
		time.Sleep(day/2 + time.Second)
		if k.Look(); warnings(logs, "expires soon") != 1 || warnings(logs, "is not valid now") != 1 {
			t.Errorf("%q", testkit.Messages(logs))
		}
		for n := range 2 {
			request.Until = time.Now().Add(day)
			p.put(issued(t, ca, request), root)
			if k.Look(); warnings(logs, "expires soon") != 2+n {
				t.Errorf("%q", testkit.Messages(logs))
			}
		}
	})
}

// Guarantee: a CA that expires is warned of, too: the last one of a bundle at the client
// port, and the one that has signed the own certificate at the peer port.
func TestExpiryOfCAs(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		own, ownRoot := newCA(t, "CA")
		soon := func(d time.Duration) (*issue.CA, issue.Pair) {
			ca, pair, err := issue.NewCA("CA", time.Now().Add(-issue.Backdate), time.Now().Add(d))
			testkit.Must(t, err)
			return ca, pair
		}
		_, first := soon(2 * day)
		_, last := soon(20 * day)
		p := newPlace(t).put(issued(t, own, member("kv.example")), first, last)
		k, logs := keeper(t, Config{Door: "client", Files: p.files()})
		time.Sleep(5 * day)
		if k.Look(); logs.Len() != 0 {
			t.Errorf("%q", testkit.Messages(logs))
		}
		time.Sleep(10 * day)
		k.Look()
		if got := logs.TakeAll(); len(got) != 1 || got[0].ContextMap()["file"] != p.files().CA || got[0].ContextMap()["days"] != int64(5) {
			t.Errorf("%v", got)
		}
		time.Sleep(6 * day)
		if k.Look(); warnings(logs, "all CAs have expired") != 1 {
			t.Errorf("%q", testkit.Messages(logs))
		}

		signer, signerRoot := soon(10 * day)
		request := member("1.raftkv")
		request.Until = time.Now().Add(5 * day)
		p = newPlace(t).put(issued(t, signer, request), signerRoot, ownRoot)
		_, logs = keeper(t, p.peerConfig())
		if got := warnings(logs, "expires soon"); got != 1 {
			t.Errorf("%q", testkit.Messages(logs))
		}
		time.Sleep(11 * day)
		_, logs = keeper(t, p.peerConfig()) // not a fault of the chain, but of the time
		if got := warnings(logs, "is not valid now"); got != 1 {
			t.Errorf("%q", testkit.Messages(logs))
		}
	})
}

// Guarantee: one that is valid is not replaced by one that is not, but by one that will
// be as soon as it is.
func TestNewOneThatIsNotValidYet(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		ca, root := newCA(t, "CA")
		p := newPlace(t).put(issued(t, ca, member("1.raftkv")), root)
		k, _ := keeper(t, p.peerConfig())
		was := k.Own()
		expired := member("1.raftkv")
		expired.Until = time.Now().Add(-time.Second)
		p.put(issued(t, ca, expired), root)
		k.Look()
		wantError(t, "expired", k.Trouble(), "has expired")
		later := member("1.raftkv")
		later.From = time.Now().Add(day)
		p.put(issued(t, ca, later), root)
		k.Look()
		wantError(t, "not valid yet", k.Trouble(), "not valid before")
		if !k.Own().Equal(was) {
			t.Error("one that is not valid is in force")
		}
		time.Sleep(day + time.Second)
		if k.Look(); k.Trouble() != nil || k.Own().Equal(was) {
			t.Errorf("the new one is not in force: %v", k.Trouble())
		}
	})
}
