//go:build unix

package process

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/issue"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// procCA is a CA with its files in a directory of a test.
type procCA struct {
	t    testing.TB
	dir  string
	file string // of its certificate
	ca   *issue.CA
	pool *x509.CertPool
}

func newProcCA(t testing.TB, dir, name string) *procCA {
	t.Helper()
	now := time.Now()
	ca, pair, err := issue.NewCA(name, now.Add(-48*time.Hour), now.Add(48*time.Hour))
	testkit.Must(t, err)
	c := &procCA{t: t, dir: dir, file: filepath.Join(dir, name+"-ca.pem"), ca: ca, pool: x509.NewCertPool()}
	testkit.Must(t, os.WriteFile(c.file, pair.Cert, 0o644))
	c.pool.AddCert(ca.Cert)
	return c
}

// pair makes a certificate that is good from and until so long from now, for both sides.
func (c *procCA) pair(from, until time.Duration, names ...string) issue.Pair {
	c.t.Helper()
	now := time.Now()
	p, err := c.ca.Issue(issue.Request{
		CommonName: names[0], DNSNames: names, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true, Client: true, From: now.Add(from), Until: now.Add(until),
	})
	testkit.Must(c.t, err)
	return p
}

// files writes a good pair to NAME.pem and NAME-key.pem, over what is there, and returns them.
func (c *procCA) files(name string, names ...string) (cert, key string) {
	c.t.Helper()
	cert, key = filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+"-key.pem")
	p := c.pair(-time.Hour, time.Hour, names...)
	testkit.Must(c.t, os.WriteFile(cert, p.Cert, 0o644))
	testkit.Must(c.t, os.WriteFile(key, p.Key, 0o600))
	return cert, key
}

// client makes a config for clients that trust the CA. Without a pair they show nothing.
func (c *procCA) client(p *issue.Pair) *tls.Config {
	cfg := &tls.Config{RootCAs: c.pool}
	if p != nil {
		pair, err := tls.X509KeyPair(p.Cert, p.Key)
		testkit.Must(c.t, err)
		// crypto/tls would keep one back that the server does not say that it takes.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return cfg
}

// newTLSCluster lays out nodes whose client port is secured.
func newTLSCluster(t testing.TB, ca *procCA, n int, flags ...string) *procCluster {
	t.Helper()
	cert, key := ca.files("server", "localhost", "kv.example")
	c := newProcCluster(t, n, append([]string{"--cert-file", cert, "--key-file", key}, flags...)...)
	c.secure(ca.client(nil))
	return c
}

// secure has the cluster's own client speak TLS.
func (c *procCluster) secure(cfg *tls.Config) {
	c.scheme, c.client = "https", c.clientBy(cfg, false)
}

// clientBy returns a client by HTTP/1.1 or HTTP/2.
func (c *procCluster) clientBy(cfg *tls.Config, http2 bool) *http.Client {
	client := procClient(10 * time.Second)
	tr := client.Transport.(*http.Transport)
	tr.TLSClientConfig, tr.ForceAttemptHTTP2 = cfg, http2
	c.t.Cleanup(tr.CloseIdleConnections)
	client.Transport = procDescribed{c, tr, openapitest.Transport(c.t, tr)}
	return client
}

// Guarantee: with a certificate the client port serves whoever speaks TLS, by HTTP/1.1 and
// HTTP/2, and nobody else; and who has to show a certificate has to show a good one.
func TestProcClientTLS(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	ca, other := newProcCA(t, dir, "clients"), newProcCA(t, dir, "other")
	c := newTLSCluster(t, ca, 3, "--trusted-ca-file", ca.file)
	c.start()
	if r := c.do("GET", 1, "/v1/members", nil); !strings.Contains(r.body, fmt.Sprintf(`"client_url":"%s"`, c.url(2))) {
		t.Errorf("the members are %v, and not at %s", r, c.url(2))
	}
	for _, http2 := range []bool{false, true} {
		client := c.clientBy(ca.client(nil), http2)
		key := fmt.Sprintf("/v1/kv/http2-%v", http2)
		if r := procDo(client, "PUT", c.url(1)+key, []byte("v")); r.status != http.StatusCreated {
			t.Errorf("PUT %s: %v", key, r)
		}
		resp, err := client.Get(c.url(2) + key)
		testkit.Must(t, err)
		body, err := io.ReadAll(resp.Body)
		if string(body) != "v" || err != nil || resp.ProtoMajor == 2 != http2 {
			t.Errorf("GET %s: %q, %v, by %s", key, body, err, resp.Proto)
		}
		testkit.Must(t, resp.Body.Close())
	}
	// A name of the certificate is one of the node's.
	if r := c.do("GET", 1, "/readyz", nil, "Host", "kv.example"); r.status != http.StatusOK {
		t.Errorf("by a name of the certificate: %v", r)
	}
	if r := c.do("GET", 1, "/readyz", nil, "Host", "other.example"); r.status != http.StatusMisdirectedRequest {
		t.Errorf("by another name: %v", r)
	}

	if r := procDo(procClient(10*time.Second), "GET", strings.Replace(c.url(1), "https", "http", 1)+"/readyz", nil); r.status != 400 || r.code() != "bad_request" || !strings.Contains(r.body, "https://") {
		t.Errorf("plain HTTP: %v", r)
	}
	if _, err := c.clientBy(other.client(nil), false).Get(c.url(1) + "/readyz"); err == nil {
		t.Error("a client that trusts another CA has got an answer")
	}
	old := ca.client(nil)
	old.MaxVersion = tls.VersionTLS11
	old.MinVersion = tls.VersionTLS10
	if _, err := c.clientBy(old, false).Get(c.url(1) + "/readyz"); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	for name, p := range map[string]issue.Pair{
		"another CA's": other.pair(-time.Hour, time.Hour, "alice"), "an expired": ca.pair(-2*time.Hour, -time.Hour, "alice"), "a future": ca.pair(time.Hour, 2*time.Hour, "alice"),
	} {
		if resp, err := c.clientBy(ca.client(&p), false).Get(c.url(1) + "/readyz"); err == nil {
			t.Errorf("%s certificate was taken: %d", name, resp.StatusCode)
			testkit.Must(t, resp.Body.Close())
		}
	}

	c.nodes[3].args = append(c.nodes[3].args, "--client-cert-auth")
	c.stop(3)
	good := ca.pair(-time.Hour, time.Hour, "alice")
	c.launch(3)
	c.secure(ca.client(&good))
	c.waitReady(3)
	if _, err := c.clientBy(ca.client(nil), false).Get(c.url(3) + "/readyz"); err == nil {
		t.Error("with --client-cert-auth a client without a certificate was let in")
	}
}

// Guarantee: curl needs the CA and nothing else, also where a running cluster is being
// switched: there both schemes are taken until TLS is demanded.
func TestProcClientTLSOptional(t *testing.T) {
	t.Parallel() // it mostly waits
	testkit.NeedTools(t, "curl")
	ca := newProcCA(t, t.TempDir(), "clients")
	c := newTLSCluster(t, ca, 1, "--client-tls=optional")
	c.start()
	plain := strings.Replace(c.url(1), "https", "http", 1)
	curl := func(args ...string) (string, error) {
		out, err := exec.Command("curl", append([]string{"-sS", "--max-time", "10", "--cacert", ca.file}, args...)...).CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{
		{"-XPUT", "-d", "v", c.url(1) + "/k"}, {c.url(1) + "/k"}, {"--http2", c.url(1) + "/k"}, {plain + "/k"}, {"--http2-prior-knowledge", plain + "/k"},
	} {
		if out, err := curl(args...); err != nil || len(args) < 4 && out != "v" {
			t.Errorf("curl %v: %q, %v", args, out, err)
		}
	}
	if r := c.do("GET", 1, "/readyz?verbose", nil); !strings.Contains(r.body, "plain HTTP") {
		t.Errorf("the probe does not say that nothing is protected: %v", r)
	}
	c.stop(1)
	n := c.nodes[1]
	n.args = n.args[:len(n.args)-1]
	c.start(1)
	if out, err := curl(plain + "/k"); !strings.Contains(out, "https://") || err != nil {
		t.Errorf("once TLS is demanded, plain HTTP gets %q, %v", out, err)
	}
	if out, err := curl(c.url(1) + "/k"); out != "v" || err != nil {
		t.Errorf("the value is %q, %v", out, err)
	}
}

// Guarantee: new certificates come into force while a thousand requests a second are
// served, and none of these fails; a broken file changes nothing, and is told of.
func TestProcClientTLSReload(t *testing.T) {
	t.Parallel() // it mostly waits
	ca := newProcCA(t, t.TempDir(), "clients")
	c := newTLSCluster(t, ca, 1)
	c.start()
	c.put(1, "k", "v")
	var asked, failed atomic.Int64
	var load sync.WaitGroup
	stop := make(chan struct{})
	const workers, each = 8, 125 // a second
	for i := range workers {
		client := c.clientBy(ca.client(nil), i%2 == 1)
		load.Go(func() {
			tick := time.NewTicker(time.Second / each)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if n%20 == 19 {
					client.CloseIdleConnections() // so that there are handshakes, too
				}
				method, body := "GET", ""
				if n%4 == 0 {
					method, body = "PUT", "v"
				}
				asked.Add(1)
				r := procDo(client, method, c.url(1)+"/k", []byte(body))
				if r.status == http.StatusTooManyRequests {
					continue // the disk, which other tests use, too, has not answered for a moment
				}
				if r.err != nil || r.status >= 300 {
					if failed.Add(1) < 4 {
						t.Errorf("%s: %v", method, r)
					}
				}
			}
		})
	}
	serial := func() string {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(c.url(1), "https://"), ca.client(nil))
		testkit.Must(t, err)
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	notes := func(want bool) func() error {
		return func() error {
			if r := c.do("GET", 1, "/readyz?verbose", nil); strings.Contains(r.body, "goes on with the certificates") != want {
				return errors.New(r.body)
			}
			return nil
		}
	}
	began := time.Now()
	for range 3 {
		before := serial()
		cert, _ := ca.files("server", "localhost")
		procEventually(t, 20*time.Second, "the new certificate is in force", func() error {
			if serial() == before {
				return errors.New("it is the old one")
			}
			return nil
		})
		now := serial()
		testkit.Must(t, os.WriteFile(cert, []byte("-----BEGIN CERTIFICATE-----\nAAAA"), 0o644))
		procEventually(t, 20*time.Second, "a broken file is told of", notes(true))
		if serial() != now {
			t.Error("a broken file has changed the certificate")
		}
	}
	ca.files("server", "localhost")
	procEventually(t, 20*time.Second, "nothing is wrong any more", notes(false))
	close(stop)
	load.Wait()
	t.Logf("%d requests in %v, %d failed", asked.Load(), time.Since(began).Round(time.Second), failed.Load())
}

// Guarantee: when a CA is no longer trusted, those whom it has signed for are gone: a
// watch at once, and every connection before its next request but one.
func TestProcClientTLSUntrusts(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	ca, next := newProcCA(t, dir, "clients"), newProcCA(t, dir, "next")
	both := filepath.Join(dir, "trusted.pem")
	concat := func(files ...string) {
		var text []byte
		for _, f := range files {
			b, err := os.ReadFile(f)
			testkit.Must(t, err)
			text = append(text, b...)
		}
		testkit.Must(t, os.WriteFile(both, text, 0o644))
	}
	concat(ca.file, next.file)
	c := newTLSCluster(t, ca, 1, "--trusted-ca-file", both)
	c.start()
	old, young := ca.pair(-time.Hour, time.Hour, "old"), next.pair(-time.Hour, time.Hour, "young")
	type watch struct {
		name string
		body io.ReadCloser
	}
	var watches []watch
	for _, http2 := range []bool{false, true} {
		for name, p := range map[string]*issue.Pair{"old": &old, "young": &young, "nobody": nil} {
			cfg := ca.client(p)
			client := c.clientBy(cfg, http2)
			client.Timeout = 0
			client.Transport = client.Transport.(procDescribed).plain // what is checked cannot be closed while it is read
			resp, err := client.Get(c.url(1) + "/v1/watch?prefix=")
			testkit.Must(t, err)
			defer func() { _ = resp.Body.Close() }()
			watches = append(watches, watch{fmt.Sprintf("%s, HTTP/2 %v", name, http2), resp.Body})
		}
	}
	ended := make(chan string, len(watches))
	for _, w := range watches {
		go func() {
			_, _ = io.Copy(io.Discard, w.body)
			ended <- w.name
		}()
	}
	concat(next.file)
	got := map[string]bool{}
	for len(got) < 2 {
		select {
		case name := <-ended:
			got[name] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("of the old CA's watches only %v have ended", got)
		}
	}
	if !got["old, HTTP/2 false"] || !got["old, HTTP/2 true"] {
		t.Errorf("those that ended are %v", got)
	}
	if _, err := c.clientBy(ca.client(&old), false).Get(c.url(1) + "/readyz"); err == nil {
		t.Error("a certificate of the old CA was taken")
	}
	if r := procDo(c.clientBy(ca.client(&young), false), "GET", c.url(1)+"/readyz", nil); r.status != http.StatusOK {
		t.Errorf("a certificate of the new CA: %v", r)
	}
	select {
	case name := <-ended:
		t.Errorf("the watch of %s has ended", name)
	default:
	}
}
