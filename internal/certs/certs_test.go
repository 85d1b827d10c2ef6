package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"raftkv/internal/issue"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const day = 24 * time.Hour

// newCA makes a CA that is valid for ten years.
func newCA(t *testing.T, name string) (*issue.CA, issue.Pair) {
	t.Helper()
	ca, pair, err := issue.NewCA(name, time.Now().Add(-issue.Backdate), time.Now().Add(3650*day))
	testkit.Must(t, err)
	return ca, pair
}

// member is what is asked for a node's certificate.
func member(names ...string) issue.Request {
	return issue.Request{
		CommonName: "a test", DNSNames: names, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true, Client: true,
		From: time.Now().Add(-issue.Backdate), Until: time.Now().Add(365 * day),
	}
}

func issued(t *testing.T, ca *issue.CA, r issue.Request) issue.Pair {
	t.Helper()
	p, err := ca.Issue(r)
	testkit.Must(t, err)
	return p
}

// place is a directory with the three files of a door.
type place struct {
	t   *testing.T
	dir string
}

func newPlace(t *testing.T) place { return place{t, t.TempDir()} }

func (p place) files() Files {
	in := func(name string) string { return filepath.Join(p.dir, name) }
	return Files{Cert: in("tls.crt"), Key: in("tls.key"), CA: in("ca.crt")}
}

func (p place) put(pair issue.Pair, cas ...issue.Pair) place {
	p.t.Helper()
	var bundle []byte
	for _, ca := range cas {
		bundle = append(bundle, ca.Cert...)
	}
	f := p.files()
	testkit.Must(p.t, errors.Join(os.WriteFile(f.Cert, pair.Cert, 0o644), os.WriteFile(f.Key, pair.Key, 0o600), os.WriteFile(f.CA, bundle, 0o644)))
	return p
}

// peerConfig is the config of a peer port.
func (p place) peerConfig() Config { return Config{Door: "peer", Files: p.files(), Mutual: true} }

func keeper(t *testing.T, cfg Config) (*Keeper, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	cfg.Log = zap.New(core)
	k, err := New(cfg)
	testkit.Must(t, err)
	return k, logs
}

// shake makes a handshake and sends a byte, which is when a client hears that its
// certificate was refused. It returns what the server knows, and the errors of both sides.
func shake(t *testing.T, server, client *tls.Config) (known tls.ConnectionState, atServer, atClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	defer b.Close()
	a, err := l.Accept()
	testkit.Must(t, err)
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		defer a.Close()
		_, err := s.Write([]byte{1})
		if err == nil { // a client of TLS 1.3 is done before its certificate was looked at
			_, err = io.ReadFull(s, make([]byte, 1))
		}
		done <- err
	}()
	if _, atClient = io.ReadFull(c, make([]byte, 1)); atClient == nil {
		_, atClient = c.Write([]byte{1})
	}
	b.Close()
	atServer = <-done
	return s.ConnectionState(), atServer, atClient
}

// both shakes hands from a to b and back, each as a member of the name given.
func both(t *testing.T, a, b *Keeper, nameOfA, nameOfB string) error {
	t.Helper()
	_, e1, e2 := shake(t, a.Server(tls.RequireAndVerifyClientCert), b.Client(nameOfA))
	_, e3, e4 := shake(t, b.Server(tls.RequireAndVerifyClientCert), a.Client(nameOfB))
	return errors.Join(e1, e2, e3, e4)
}

func wantError(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q is not in the error: %v", what, part, err)
		}
	}
}

// Guarantee: two members whose certificates are of one CA and have the names that are
// demanded connect, and each knows the other's names.
func TestMutual(t *testing.T) {
	ca, root := newCA(t, "CA")
	one, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig())
	two, _ := keeper(t, newPlace(t).put(issued(t, ca, member("2.raftkv")), root).peerConfig())
	if err := both(t, one, two, "1.raftkv", "2.raftkv"); err != nil {
		t.Error(err)
	}
	cs, _, _ := shake(t, one.Server(tls.RequireAndVerifyClientCert, "h2"), two.Client("127.0.0.1"))
	if got := Names(cs.PeerCertificates[0]); len(got) != 1 || got[0] != "2.raftkv" {
		t.Errorf("names %q", got)
	}
	if got := Until(&cs); !got.Equal(two.Own().NotAfter) {
		t.Errorf("valid until %v instead of %v", got, two.Own().NotAfter)
	}
	if err := one.StillValid(&cs); err != nil {
		t.Error(err)
	}
}

// Guarantee: at the peer port nobody gets in without a certificate of the CA that is
// valid now, and nobody is believed to be a server by another name.
func TestHandshakesRefused(t *testing.T) {
	ca, root := newCA(t, "CA")
	other, otherRoot := newCA(t, "CA") // of the same name
	one, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv")), root).peerConfig())
	now := time.Now()
	for _, tt := range []struct {
		what string
		pair issue.Pair
		want string
	}{
		{"of another CA", issued(t, other, member("2.raftkv")), "unknown authority"},
		{"expired", issued(t, ca, issue.Request{DNSNames: []string{"2.raftkv"}, Client: true, From: now.Add(-time.Hour), Until: now.Add(-time.Second)}), "expired"},
		{"not yet valid", issued(t, ca, issue.Request{DNSNames: []string{"2.raftkv"}, Client: true, From: now.Add(time.Hour), Until: now.Add(2 * time.Hour)}), "not yet valid"},
		{"for servers alone", issued(t, ca, issue.Request{DNSNames: []string{"2.raftkv"}, Server: true, From: now.Add(-time.Hour), Until: now.Add(time.Hour)}), "usage"},
	} {
		pair, err := tls.X509KeyPair(tt.pair.Cert, tt.pair.Key)
		testkit.Must(t, err)
		client := one.Client("1.raftkv")
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		for _, auth := range []tls.ClientAuthType{tls.RequestClientCert, tls.RequireAnyClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert} {
			_, atServer, _ := shake(t, one.Server(auth), client)
			wantError(t, tt.what, atServer, tt.want)
		}
	}
	none := one.Client("1.raftkv")
	none.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	for _, auth := range []tls.ClientAuthType{tls.RequireAnyClientCert, tls.RequireAndVerifyClientCert} {
		_, atServer, _ := shake(t, one.Server(auth), none)
		wantError(t, "no certificate", atServer, "didn't provide a certificate")
	}

	// What a node dials.
	stranger, _ := keeper(t, newPlace(t).put(issued(t, other, member("1.raftkv")), otherRoot).peerConfig())
	_, _, err := shake(t, stranger.Server(tls.NoClientCert), one.Client("1.raftkv"))
	wantError(t, "a server of another CA", err, "unknown authority")
	for _, name := range []string{"2.raftkv", "raftkv", "127.0.0.2", "1.raftkv.evil", "a test"} {
		_, _, err := shake(t, one.Server(tls.RequireAndVerifyClientCert), one.Client(name))
		wantError(t, "a server of another name", err, "must be for", name)
	}
	forClients, err := tls.X509KeyPair(func() (cert, key []byte) {
		r := member("1.raftkv")
		r.Server = false
		p := issued(t, ca, r)
		return p.Cert, p.Key
	}())
	testkit.Must(t, err)
	_, _, err = shake(t, &tls.Config{Certificates: []tls.Certificate{forClients}}, one.Client("1.raftkv"))
	wantError(t, "a server with a client's certificate", err, "usage")
	wild, _ := keeper(t, newPlace(t).put(issued(t, ca, member("*.raftkv")), root).peerConfig())
	_, _, err = shake(t, wild.Server(tls.RequireAndVerifyClientCert), one.Client("1.raftkv"))
	wantError(t, "a wildcard", err, "must be for")
}

// Guarantee: a name that is not given is not a name that need not be checked.
func TestEmptyServerName(t *testing.T) {
	ca, root := newCA(t, "CA")
	one, _ := keeper(t, newPlace(t).put(issued(t, ca, member("1.raftkv", "")), root).peerConfig())
	for _, client := range []*tls.Config{one.Client(""), one.ClientAccepting(nil)} {
		client.ServerName = "1.raftkv" // as net/http fills it in
		_, _, err := shake(t, one.Server(tls.RequireAndVerifyClientCert), client)
		if !errors.Is(err, errNoName) {
			t.Errorf("the handshake ended with %v", err)
		}
	}
	_, _, err := shake(t, one.Server(tls.RequireAndVerifyClientCert), one.ClientAccepting(func(c *x509.Certificate) error { return hasName(c, "1.raftkv") }))
	testkit.Must(t, err)
}
