package probeport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func open(t *testing.T) *Port {
	t.Helper()
	p, err := Open("127.0.0.1:0", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// get asks over a connection of its own.
func get(t *testing.T, p *Port, method, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+p.listener.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("%s %s: Cache-Control is %q", method, path, got)
	}
	return resp.StatusCode, string(text)
}

// say is a handler that says what it is.
func say(what string) web.Methods {
	return web.Methods{"GET": func(w http.ResponseWriter, r *http.Request) error {
		_, err := fmt.Fprint(w, what, r.URL.RawQuery)
		return err
	}}
}

// Guarantee: probes and metrics, and nothing else of a node, are served from the start: until
// there is a node it lives and is not ready, and one that stops says so but for its metrics.
func TestServes(t *testing.T) {
	p := open(t)
	check := func(when, method, path string, status int, part string) {
		t.Helper()
		got, body := get(t, p, method, path)
		if got != status || !strings.Contains(body, part) {
			t.Errorf("%s, %s %s: %d %s, want %d and %q", when, method, path, got, body, status, part)
		}
	}
	check("starting", "GET", "/livez", 200, "ok")
	check("starting", "GET", "/readyz", 503, `"not_ready"`)
	check("starting", "GET", "/metrics", 503, `"not_ready"`)
	var why error
	routes := map[string]web.Methods{
		"livez": say("lives "), "readyz": say("ready "), "metrics": say("metrics "), "v1/kv": say("keys"), "v1/status": say("status"), "": say("help"),
	}
	p.Serve(routes, func(string, string) error { return why })
	check("running", "GET", "/livez", 200, "lives ")
	check("running", "GET", "/readyz?verbose", 200, "ready verbose")
	check("running", "GET", "/metrics", 200, "metrics ")
	check("running", "HEAD", "/readyz", 200, "")
	check("running", "POST", "/readyz", 405, "method_not_allowed")
	for _, path := range []string{"/", "/key", "/v1/kv", "/v1/kv/key", "/v1/status", "/debug/pprof/", "//metrics", "/metrics/"} {
		check("running", "GET", path, 404, `"no_such_path"`)
	}
	why = problem.ErrStopping
	check("stopping", "GET", "/readyz", 503, `"stopping"`)
	check("stopping", "GET", "/metrics", 200, "metrics ")
}

// Guarantee: a port that was not asked for is none, one in use is found at once, and one that
// is closed is free again, closed twice or not.
func TestOpenAndClose(t *testing.T) {
	none, err := Open("", zap.NewNop())
	if none != nil || err != nil {
		t.Fatal(none, err)
	}
	none.Serve(nil, nil)
	if err := none.Close(); err != nil {
		t.Error(err)
	}
	p := open(t)
	addr := p.listener.Addr().String()
	if _, err := Open(addr, zap.NewNop()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr) {
		t.Errorf("a port in use: %v", err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if l, err := net.Listen("tcp", addr); err != nil {
		t.Error(err)
	} else {
		_ = l.Close()
	}
}

// Guarantee: so many connections are served at once and no more; who comes later waits
// until one has gone.
func TestConnectionsAreBounded(t *testing.T) {
	p := open(t)
	ask := func(c net.Conn) {
		t.Helper()
		if _, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	var kept []net.Conn
	for i := range mostConns + 1 {
		c, err := net.Dial("tcp", p.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		kept = append(kept, c)
		if ask(c); i < mostConns {
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("connection %d: %v", i+1, err)
			}
		}
	}
	last := kept[mostConns]
	answered := make(chan error, 1)
	go func() {
		_, err := http.ReadResponse(bufio.NewReader(last), nil)
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("one too many was answered, %v", err)
	case <-time.After(100 * time.Millisecond): // what would be wrong comes sooner
	}
	_ = kept[0].Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// Guarantee: who sends no request, or asks for nothing more, does not hold a connection for
// ever, nor does one that is under way hold up the end.
func TestTimeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPort(zap.NewNop())
		begun, hold := make(chan bool, 1), make(chan bool)
		p.Serve(map[string]web.Methods{"metrics": {"GET": func(http.ResponseWriter, *http.Request) error {
			begun <- true
			<-hold
			return nil
		}}, "livez": say("ok")}, func(string, string) error { return nil })
		l := make(pipes)
		go p.run(l)
		silent, kept := l.dial(), l.dial()
		began := time.Now()
		if _, err := io.WriteString(kept, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(kept)
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		} else if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != headTimeout {
			t.Errorf("a silent connection: %v after %v", err, time.Since(began))
		}
		if _, err := r.ReadByte(); !errors.Is(err, io.EOF) || time.Since(began) != idleTimeout {
			t.Errorf("an idle connection: %v after %v", err, time.Since(began))
		}
		slow := l.dial()
		go func() { _, _ = io.WriteString(slow, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") }()
		<-begun
		began = time.Now()
		if err := p.Close(); err != nil || time.Since(began) > stopLimit+100*time.Millisecond {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		close(hold)
	})
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (l pipes) dial() net.Conn {
	client, server := net.Pipe()
	l <- server
	return client
}

// Accept implements net.Listener.
func (l pipes) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener.
func (l pipes) Close() error { close(l); return nil }

// Addr implements net.Listener.
func (l pipes) Addr() net.Addr { return &net.TCPAddr{} }
