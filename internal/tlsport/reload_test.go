package tlsport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"raftkv/internal/certs"
	"raftkv/internal/testkit"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Guarantee: a client whose CA goes while its handshake is under way does not come in, at no
// moment of the handshake; one whose CA stays does.
func TestReloadDuringHandshake(t *testing.T) {
	for _, stays := range []bool{true, false} {
		ca, other := testkit.NewCA(t), testkit.NewCA(t)
		var files certs.Files
		files.Cert, files.Key, files.CA = ca.Files(t.TempDir(), ca.Certificate(time.Hour, "localhost"))
		_, _, otherCA := other.Files(t.TempDir(), other.Certificate(time.Hour, "localhost"))
		next, err := os.ReadFile(otherCA)
		testkit.Must(t, err)
		if stays {
			first, err := os.ReadFile(files.CA)
			testkit.Must(t, err)
			next = append(first, next...)
		}
		keeper, err := certs.New(certs.Config{Door: "client", Files: files})
		testkit.Must(t, err)
		p := New(Config{
			Log: zap.NewNop(), TLS: keeper.Server(tls.RequireAndVerifyClientCert), Names: func(c *x509.Certificate) []string {
				testkit.Must(t, os.WriteFile(files.CA, next, 0o600)) // the handshake has been made, and is not known yet
				keeper.Look()
				return c.DNSNames
			},
		})
		NewDoor(p, keeper)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		go func() {
			c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{
				ServerName: "localhost", RootCAs: ca.Pool, Certificates: []tls.Certificate{ca.Certificate(time.Hour, "alice")},
			})
			if err == nil {
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}
		}()
		nc, err := l.Accept()
		testkit.Must(t, errors.Join(err, l.Close()))
		c, err := p.Handshake(nc, nil)
		if (err == nil) != stays {
			t.Errorf("the CA stays: %t, %v", stays, err)
		}
		if err == nil {
			testkit.Must(t, c.wire.Close())
		}
		if len(p.verified) > 0 {
			t.Errorf("the CA stays: %t, and what is closed is kept in mind", stays)
		}
	}
}

// Guarantee: connections are looked at again while others come in, whatever becomes of them.
func TestRecheckBesideHandshakes(t *testing.T) {
	ca := testkit.NewCA(t)
	p := New(Config{Log: zap.NewNop(), Names: func(c *x509.Certificate) []string { return c.DNSNames }, TLS: &tls.Config{
		Certificates: []tls.Certificate{ca.Certificate(time.Hour, "localhost")}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				p.Recheck(func(*tls.ConnectionState) error { return errors.New("not valid") })
			}
		}
	}()
	cfg := &tls.Config{ServerName: "localhost", RootCAs: ca.Pool, Certificates: []tls.Certificate{ca.Certificate(time.Hour, "alice")}}
	for range 100 {
		go func() {
			if c, err := tls.Dial("tcp", l.Addr().String(), cfg); err == nil {
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}
		}()
		nc, err := l.Accept()
		testkit.Must(t, err)
		if c, err := p.Handshake(nc, nil); err == nil {
			_ = c.wire.Close() // Recheck may have ended it
		}
	}
	close(stop)
	<-done
	testkit.Must(t, l.Close())
}

// Guarantee: a fault in what looks at a certificate ends its connection, and nothing else.
func TestListenerOutlivesAFault(t *testing.T) {
	ca := testkit.NewCA(t)
	fault := true
	p := New(Config{Log: zap.NewNop(), TLS: &tls.Config{
		Certificates: []tls.Certificate{ca.Certificate(time.Hour, "localhost")},
		VerifyConnection: func(tls.ConnectionState) error {
			if fault {
				fault = false
				panic("a fault in the program")
			}
			return nil
		},
	}})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	l := p.Listen(inner, time.Minute)
	cfg := &tls.Config{ServerName: "localhost", RootCAs: ca.Pool, MaxVersion: tls.VersionTLS12}
	if c, err := tls.Dial("tcp", inner.Addr().String(), cfg); err == nil {
		_ = c.Close()
		t.Error("a handshake with a fault is made")
	}
	c, err := tls.Dial("tcp", inner.Addr().String(), cfg)
	testkit.Must(t, err)
	nc, err := l.Accept()
	testkit.Must(t, err)
	testkit.Must(t, errors.Join(c.Close(), nc.Close(), l.Close()))
	if p.under.Len() > 0 {
		t.Errorf("%d handshakes are under way", p.under.Len())
	}
}
