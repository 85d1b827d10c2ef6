package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raftkv/internal/testkit"
)

// Guarantee: endpoints are base URLs and nothing else; a mistake is told when the client is made.
func TestEndpoints(t *testing.T) {
	for _, bad := range []string{
		"", "127.0.0.1:12380", "ftp://h:1", "http://", "http://:1", "http://u@h:1", "http://u:p@h:1", "http://h:1/a", "http://h:1/?", "http://h:1?a=b", "http://h:1#a", "http://h:x", "http://[::1",
	} {
		if _, err := New(Config{Endpoints: []string{bad}}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, cfg := range []Config{
		{}, {Endpoints: []string{"http://h:1", "http://h:1/"}}, {Endpoints: make([]string, maxEndpoints+1)}, {Endpoints: []string{"http://h:1"}, Timeout: -1},
		{Endpoints: []string{"http://h:1"}, Transport: http.DefaultTransport, TLS: TLSFiles("", "", "")},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	c, err := New(Config{Endpoints: []string{"http://h:1/", "https://[::1]:2", "http://h"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.Endpoints(), " "); got != "http://h:1 https://[::1]:2 http://h" {
		t.Error(got)
	}
}

// Guarantee: a token goes over https or to this machine, and never over http to another;
// before that is clear nothing is sent. A redirect does not carry it away.
func TestTokenStaysPrivate(t *testing.T) {
	for url, goes := range map[string]bool{
		"http://127.0.0.1:1": true, "http://127.7.7.7:1": true, "http://[::1]:1": true, "http://localhost:1": true, "http://[::ffff:127.0.0.1]:1": true, "https://kv.example:1": true,
		"http://kv.example:1": false, "http://10.0.0.1:1": false, "http://localhost.example:1": false, "http://0.0.0.0:1": false, "http://[::]:1": false, "http://127.0.0.1.example:1": false,
	} {
		s := &scripted{t: t, answers: []reply{{status: 307, header: http.Header{"Location": {"http://kv.example/"}}}}}
		c, err := New(Config{Endpoints: []string{url}, Transport: s, TokenSource: Token("secret")})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Put(t.Context(), "k", nil)
		wantOutcome(t, err, false)
		sent := len(s.requests)
		switch {
		case goes && (sent != 1 || s.requests[0].Header.Get("Authorization") != "Bearer secret" || s.requests[0].URL.Scheme+"://"+s.requests[0].URL.Host != url):
			t.Errorf("%s: %v", url, s.requests)
		case !goes && (sent != 0 || !errors.Is(err, ErrTokenExposed)):
			t.Errorf("%s: %d requests, %v", url, sent, err)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Error("the token is in the error")
		}
	}
}

// Guarantee: a token is asked for each attempt. One that cannot be read, or is none, ends the
// call before anything is sent.
func TestTokenSource(t *testing.T) {
	asked := 0
	s := &scripted{t: t, answers: []reply{{err: refused}, done}}
	c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: s, TokenSource: func(context.Context) (string, error) {
		asked++
		return strings.Repeat("t", asked), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "k", nil); err != nil || s.requests[1].Header.Get("Authorization") != "Bearer tt" {
		t.Error(err, s.requests)
	}
	gone := errors.New("gone")
	for _, source := range []func(context.Context) (string, error){Token("a\nb"), Token("a b"), Token("ä"), func(context.Context) (string, error) { return "", gone }} {
		s := &scripted{t: t, answers: []reply{done}}
		c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: s, TokenSource: source})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Put(t.Context(), "k", nil)
		wantOutcome(t, err, false)
		if len(s.requests) > 0 {
			t.Error("it was sent:", err)
		}
	}
}

// Guarantee: a token in a file rotates with the file.
func TestTokenFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "token")
	rotating := TokenFile(name)
	if _, err := rotating(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	last := ""
	for _, tt := range []struct {
		text, want string
	}{{"one\n", "one"}, {"  three  ", "three"}, {"", ""}, {strings.Repeat("x", maxTokenBytes), strings.Repeat("x", maxTokenBytes)}, {strings.Repeat("x", maxTokenBytes+1), ""}} {
		if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.want != "" {
			last = tt.want
		}
		for range 2 {
			if got, err := TokenFile(name)(t.Context()); got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("%d bytes of %d: %v", len(got), len(tt.text), err)
			}
			if got, err := rotating(t.Context()); got != last || err != nil {
				t.Errorf("%d bytes: %v", len(got), err)
			}
		}
	}
}

// Guarantee: over TLS the server is known by its certificate, and the client by its own; both
// rotate with their files, on new connections. A server that is not trusted is not tried for long.
func TestTLS(t *testing.T) {
	ca, other := testkit.NewCA(t), testkit.NewCA(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.PEM())
	var shown atomic.Pointer[string]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Store(&r.TLS.PeerCertificates[0].DNSNames[0])
		w.Header().Set("Raftkv-Cluster-Id", "c")
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Connection", "close") // so that each call has a connection of its own
		w.WriteHeader(http.StatusNoContent)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Certificate(time.Hour, "127.0.0.1")}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.StartTLS()
	defer srv.Close()

	dir := t.TempDir()
	cert, key, caFile := ca.Files(dir, ca.Certificate(time.Hour, "alice"))
	c, err := New(Config{Endpoints: []string{srv.URL}, TLS: TLSFiles(caFile, cert, key), TokenSource: Token("t")})
	if err != nil {
		t.Fatal(err)
	}
	put := func(want string) {
		t.Helper()
		if _, err := c.Put(t.Context(), "k", nil); err != nil || *shown.Load() != want {
			t.Fatal(err, shown.Load())
		}
	}
	put("alice")
	ca.Files(dir, ca.Certificate(time.Hour, "bob.of.another.length"))
	put("bob.of.another.length")

	for name, config := range map[string]func() (*tls.Config, error){
		"no certificate":     TLSFiles(caFile, "", ""),
		"the system's roots": nil,
		"a strange one": func() (*tls.Config, error) {
			return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{other.Certificate(time.Hour, "eve")}}, nil
		},
		"no file": TLSFiles(filepath.Join(dir, "none"), "", ""),
		"half":    TLSFiles(caFile, cert, ""),
		"no PEM":  TLSFiles(key, "", ""),
	} {
		c, err := New(Config{Endpoints: []string{srv.URL}, TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Put(t.Context(), "k", nil)
		wantOutcome(t, err, false)
		if time.Since(begin) > 10*time.Second {
			t.Errorf("%s: it took %v: %v", name, time.Since(begin), err)
		}
		t.Log(name, err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	c, err = New(Config{Endpoints: []string{strings.Replace(plain.URL, "http", "https", 1)}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Put(t.Context(), "k", nil)
	wantOutcome(t, err, false)
	t.Log(err)
}

// Guarantee: no proxy of the environment is asked, and a node that takes no connections or
// closes them is told from one that may have got the request.
func TestOwnTransport(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:9")
	t.Setenv("NO_PROXY", "")
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	var got atomic.Int64
	closes, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closes.Close()
	go func() {
		for {
			conn, err := closes.Accept()
			if err != nil {
				return
			}
			got.Add(1)
			_, _ = conn.Read(make([]byte, 4096))
			conn.Close()
		}
	}()
	for _, tt := range []struct {
		addr    string
		unknown bool
	}{{nobody.Addr().String(), false}, {closes.Addr().String(), true}} {
		c, err := New(Config{Endpoints: []string{"http://" + tt.addr}, Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Put(t.Context(), "k", nil)
		wantOutcome(t, err, tt.unknown)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	if got.Load() == 0 {
		t.Error("nothing was sent")
	}
}

// Guarantee: a thousand requests in a row use one connection, also with errors, with large
// answers and with answers that are refused.
func TestOneConnection(t *testing.T) {
	var opened atomic.Int64
	n := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("Raftkv-Cluster-Id", "c")
		w.Header().Set("Etag", `"1"`)
		switch n % 5 {
		case 0:
			_, _ = io.WriteString(w, `{"key":"k","value":"`+strings.Repeat("v", 1<<16)+`","mod_revision":1}`)
		case 1:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `{"code":"not_found","outcome":"not_applied","detail":"`+strings.Repeat("d", 10_000)+`"}`)
		case 2:
			w.WriteHeader(400)
			_, _ = io.WriteString(w, strings.Repeat("e", maxProblem))
		case 3:
			w.WriteHeader(204)
		default:
			_, _ = io.WriteString(w, "garbled")
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c, err := New(Config{Endpoints: []string{srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		_, _ = c.Get(t.Context(), "k") // what comes of it is not what is asked here
	}
	// Package net/http does not keep a connection whose goroutine for writing has not come round within
	// 50 ms, which on a machine that is very busy happens now and then.
	if most := int64(3); opened.Load() > most || n != 1000 {
		t.Errorf("%d connections for %d requests", opened.Load(), n)
	}
	c.Close()
}

// Guarantee: a backup is whole or an error; so is a list of one revision.
func TestStreamsAreWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := backupMagic + strings.Repeat("state", 1000)
		sum := sha256.Sum256([]byte(text))
		whole := text + string(sum[:])
		strange := sha256.Sum256([]byte("other"))
		for _, tt := range []struct {
			name string
			r    reply
			ok   bool
		}{
			{"whole", reply{status: 200, body: whole}, true},
			{"a byte less", reply{status: 200, body: whole[:len(whole)-1]}, false},
			{"a byte more", reply{status: 200, body: whole + "x"}, false},
			{"cut", reply{status: 200, body: whole[:100], cut: true}, false},
			{"changed", reply{status: 200, body: strings.Replace(whole, "state", "stale", 1)}, false},
			{"empty", reply{status: 200}, false},
			{"something else that is whole", reply{status: 200, body: "other" + string(strange[:])}, false},
			{"no backup", reply{status: 200, body: "x" + whole[1:]}, false},
		} {
			c, _ := withScript(t, tt.r)
			var b strings.Builder
			info, err := c.Backup(t.Context(), &b)
			if (err == nil) != tt.ok || tt.ok && (b.String() != whole || info.Bytes != int64(len(whole))) {
				t.Errorf("%s: %v, %v", tt.name, info, err)
			}
			if err != nil {
				wantOutcome(t, err, false)
			}
		}
		for _, tt := range []struct {
			name string
			r    reply
			n    int
			want error
		}{
			{"whole", reply{status: 200, body: `{"revision":7}` + "\n" + `{"key":"a","value":"1"}` + "\n" + `{"end":true,"count":1}` + "\n"}, 1, nil},
			{"no end", reply{status: 200, body: `{"revision":7}` + "\n" + `{"key":"a","value":"1"}` + "\n"}, 1, io.ErrUnexpectedEOF},
			{"another count", reply{status: 200, body: `{"key":"a","value":"1"}` + "\n" + `{"end":true,"count":2}` + "\n"}, 1, ErrStranger},
			{"an error", reply{status: 200, body: `{"key":"a"}` + "\n" + `{"error":{"code":"request_timeout","detail":"too slow"}}` + "\n"}, 1, RequestTimeout},
			{"half a line", reply{status: 200, body: `{"key":"a"}` + "\n" + `{"key":"b"`, cut: true}, 1, io.ErrUnexpectedEOF},
		} {
			c, script := withScript(t, tt.r)
			n, last := 0, error(nil)
			for _, err := range c.List(t.Context(), "", OneRevision()) {
				if last = err; err == nil {
					n++
				}
			}
			if q := script.requests[0].URL.Query(); q.Get("values") != "base64" {
				t.Errorf("%s: a value can be longer than the bound of a line: %v", tt.name, q)
			}
			if n != tt.n || !errors.Is(last, tt.want) {
				t.Errorf("%s: %d items, %v", tt.name, n, last)
			}
		}
	})
}

// quiet is a transport whose body says nothing after the head.
type quiet struct{}

func (quiet) RoundTrip(r *http.Request) (*http.Response, error) {
	pr, pw := io.Pipe()
	context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
	return &http.Response{StatusCode: 200, Header: http.Header{"Raftkv-Cluster-Id": {"c"}}, Body: pr, ContentLength: -1, Request: r}, nil
}

// Guarantee: a stream that has gone silent ends; so does one whose context or client ends.
func TestStreamSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: quiet{}})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Backup(t.Context(), io.Discard)
		if took := time.Since(begin); took != streamSilence || !strings.Contains(err.Error(), "nothing came for 40s") {
			t.Error(took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = c.Backup(ctx, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.AfterFunc(time.Second, c.Close)
		if _, err = c.Backup(t.Context(), io.Discard); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
