package front

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func certNames(c *x509.Certificate) []string { return c.DNSNames }

// tlsPair returns the configs of both sides. The client's certificate names alice.
func tlsPair(t testing.TB) (server, client *tls.Config) {
	ca := testkit.NewCA(t)
	server = &tls.Config{
		Certificates: []tls.Certificate{ca.Certificate(time.Hour, "localhost")}, ClientCAs: ca.Pool, ClientAuth: tls.VerifyClientCertIfGiven,
		NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
	}
	client = &tls.Config{Certificates: []tls.Certificate{ca.Certificate(time.Hour, "alice")}, RootCAs: ca.Pool, ServerName: "localhost"}
	return server, client
}

// secured serves secured connections.
func secured(t *testing.T, optional bool) (ft *frontTest, port *tlsport.Port, addr string, client *tls.Config) {
	server, client := tlsPair(t)
	port = tlsport.New(tlsport.Config{Log: zap.NewNop(), TLS: server, Names: certNames, Optional: optional})
	ft, addr = overTCP(t, port)
	return ft, port, addr, client
}

// ask sends a text over a connection, and returns the answer's status and body.
func ask(t *testing.T, c net.Conn, text string) (status int, body string) {
	t.Helper()
	testkit.Must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.WriteString(c, text)
	testkit.Must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	testkit.Must(t, err)
	b, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(b)
}

// Guarantee: who speaks plain HTTP to a port that takes TLS alone is told so, however much
// it has sent; and where the port takes both, both are served.
func TestFrontPlainAtTLS(t *testing.T) {
	for _, optional := range []bool{false, true} {
		ft, _, addr, client := secured(t, optional)
		ft.store.values["k"] = "v"
		for _, more := range []string{"", strings.Repeat("x", 1<<20)} {
			c, err := net.Dial("tcp", addr)
			testkit.Must(t, err)
			status, body := ask(t, c, get("k")+more)
			switch {
			case optional && (status != http.StatusOK || body != "v"):
				t.Errorf("optional: %d %q", status, body)
			case !optional && (status != http.StatusBadRequest || !strings.Contains(body, "https://")):
				t.Errorf("required: %d %q", status, body)
			}
			_ = c.Close()
		}
		c, err := tls.Dial("tcp", addr, client)
		testkit.Must(t, err)
		if status, body := ask(t, c, get("k")); status != http.StatusOK || body != "v" {
			t.Errorf("with TLS, optional %v: %d %q", optional, status, body)
		}
		_ = c.Close()
	}
}

// Guarantee: what is handed over is known to be secured, and whose it is: HTTP/1.1 by its
// ConnectionState, HTTP/2 by its type, before a byte of it was read.
func TestFrontHandsOverSecured(t *testing.T) {
	ft, _, addr, client := secured(t, false)
	for _, proto := range []string{"http/1.1", "h2"} {
		config := client.Clone()
		config.NextProtos = []string{proto}
		c, err := tls.Dial("tcp", addr, config)
		testkit.Must(t, err)
		text := "POST /k HTTP/1.1\r\n"
		if proto == "h2" {
			text = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		}
		_, err = io.WriteString(c, text)
		testkit.Must(t, err)
		handed := <-ft.handed
		_, bare := handed.(*tls.Conn)
		state, known := handed.(interface{ ConnectionState() tls.ConnectionState })
		if !known || bare != (proto == "h2") || state.ConnectionState().NegotiatedProtocol != proto {
			t.Errorf("%s: it is a %T", proto, handed)
		}
		who := web.ClientOf(web.ConnContext(t.Context(), handed))
		if who == nil || !who.TLS || !slices.Equal(who.Names, []string{"alice"}) || who.Addr != c.LocalAddr().String() {
			t.Errorf("%s: the client is %+v", proto, who)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(handed, got); err != nil || string(got) != text {
			t.Errorf("%s: read %q, %v", proto, got, err)
		}
		_ = c.Close()
		testkit.Must(t, handed.Close())
	}
	testkit.Eventually(t, "no connection is open", func() bool { return ft.Open() == 0 })
}

// Guarantee: a client whose certificate is not valid any more gets the answer that it waits
// for, and no other on that connection; one that waits for nothing is gone at once.
func TestFrontEndsExpired(t *testing.T) {
	ft, port, addr, client := secured(t, false)
	ft.store.values["k"] = "v"
	dial := func(config *tls.Config) net.Conn {
		c, err := tls.Dial("tcp", addr, config)
		testkit.Must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	anonymous := client.Clone()
	anonymous.Certificates = nil
	idle, fresh, busy, nobody := dial(client), dial(client), dial(client), dial(anonymous)
	for _, c := range []net.Conn{idle, nobody} {
		if status, _ := ask(t, c, get("k")); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
	}
	ft.store.mu.Lock()
	ft.store.held = true
	ft.store.mu.Unlock()
	testkit.Must(t, busy.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.WriteString(busy, get("k"))
	testkit.Must(t, err)
	testkit.Eventually(t, "the request waits", func() bool {
		ft.store.mu.Lock()
		defer ft.store.mu.Unlock()
		return len(ft.store.waiting) == 1
	})
	testkit.Eventually(t, "one has made its handshake, and no more", func() bool {
		ft.Server.mu.Lock()
		defer ft.Server.mu.Unlock()
		for c := range ft.conns {
			if phase(c.clock.at.Load()%phases) == first {
				return true
			}
		}
		return false
	})
	port.Recheck(func(*tls.ConnectionState) error { return nil }) // all are valid
	port.Recheck(func(*tls.ConnectionState) error { return errors.New("not any more") })
	testkit.Must(t, fresh.SetDeadline(time.Now().Add(2*time.Second)))
	for _, c := range []net.Conn{idle, fresh} {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that waits for nothing goes on: %v", err)
		}
	}
	ft.store.release(1, state.Result{})
	in := bufio.NewReader(busy)
	resp, err := http.ReadResponse(in, nil)
	testkit.Must(t, err)
	if body, err := io.ReadAll(resp.Body); string(body) != "v" || err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%d %q, %v", resp.StatusCode, body, err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("a connection goes on behind its answer: %v", err)
	}
	ft.store.mu.Lock()
	ft.store.held = false
	ft.store.mu.Unlock()
	if status, _ := ask(t, nobody, get("k")); status != http.StatusOK {
		t.Errorf("a client without a certificate: %d", status)
	}
}
