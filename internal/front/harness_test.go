package front

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/problem"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// store is a Handler that keeps values in a map. Its answers can be told to wait.
type store struct {
	mu      sync.Mutex
	values  map[string]string
	held    bool            // requests wait for release
	waiting []rounds.Waiter // that wait
	bodies  int64           // bytes that may be held
	begun   int
	gaveUp  int
	counted int
}

func newStore() *store { return &store{values: map[string]string{}, bodies: 1 << 20} }

func (s *store) Always() []web.Field { return []web.Field{{Name: "Always", Value: "there"}} }

func (s *store) Allows(host string) bool { return strings.HasPrefix(host, "localhost") }

func (s *store) Hold(n int64) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bodies < n {
		return nil, false
	}
	s.bodies -= n
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bodies += n
	}, true
}

func (s *store) Begin(q *api.KeyRequest, body []byte, w rounds.Waiter) (waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	if q.Key == "panic-at-once" {
		panic("a fault in the program")
	}
	q.Command = append([]byte(nil), body...)
	if q.Query != "" { // a stale read
		s.read(q)
		return false
	}
	if s.held {
		s.waiting = append(s.waiting, w)
	} else {
		go w.Done(state.Result{})
	}
	return true
}

func (s *store) read(q *api.KeyRequest) {
	value, ok := s.values[q.Key]
	if q.Answer.Status, q.Answer.Body = http.StatusOK, []byte(value); !ok {
		q.Answer.Err = problem.ErrNotFound
	}
}

func (s *store) Finish(q *api.KeyRequest, res state.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case res.Err != nil:
		q.Answer.Err, q.Answer.Close = res.Err, errors.Is(res.Err, problem.ErrStopping)
	case q.Key == "panic-late":
		panic("a fault in the program")
	case q.Method == http.MethodPut:
		s.values[q.Key] = string(q.Command)
		q.Answer.Status = http.StatusNoContent
	case q.Method == http.MethodDelete:
		delete(s.values, q.Key)
		q.Answer.Status = http.StatusNoContent
	default:
		s.read(q)
	}
}

func (s *store) GiveUp(*api.KeyRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaveUp++
}

func (s *store) Answered(*api.KeyRequest, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counted++
}

// release lets n requests go on, the last first.
func (s *store) release(n int, res state.Result) {
	s.mu.Lock()
	ws := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for i := range n {
		ws[len(ws)-1-i].Done(res)
	}
}

// frontTest is a server of connections to a store.
type frontTest struct {
	*testing.T
	*Server
	store  *store
	handed chan net.Conn
	l      *listener
}

// listener is one within the process.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { close(l.closed); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

var testLimits = Limits{Head: 5 * time.Second, Idle: 3 * time.Minute, Answer: time.Minute, Value: 1 << 20}

// inFront runs a test on connections within the process, in virtual time.
func inFront(t *testing.T, test func(ft *frontTest)) {
	t.Helper()
	testkit.InBubble(t, func(t *testing.T) {
		ft := &frontTest{T: t, store: newStore(), handed: make(chan net.Conn, 100), l: &listener{make(chan net.Conn), make(chan struct{})}}
		var given []net.Conn
		var mu sync.Mutex
		ft.Server = New(zap.NewNop(), testLimits, nil, func(c net.Conn) {
			mu.Lock()
			defer mu.Unlock()
			given = append(given, c)
			ft.handed <- c
		})
		ft.Handle(ft.store)
		ended := make(chan error, 1)
		go func() { ended <- ft.Serve(ft.l) }()
		test(ft)
		testkit.Must(t, ft.l.Close())
		testkit.Must(t, <-ended)
		ft.Close()
		synctest.Wait()
		for _, c := range given {
			_ = c.Close() // perhaps it was closed by the test
		}
		if n := ft.Open(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// client is the other side of a connection.
type client struct {
	*frontTest
	net.Conn
	in *bufio.Reader
}

func (ft *frontTest) dial() *client {
	ours, theirs := net.Pipe()
	ft.l.conns <- theirs
	c := &client{ft, ours, bufio.NewReader(ours)}
	ft.Cleanup(func() { _ = ours.Close() })
	return c
}

// send begins to send text, in pieces of so many bytes, for as long as somebody reads.
func (c *client) send(text string, pieces int) {
	go func() {
		for err := error(nil); len(text) > 0 && err == nil; {
			n := min(pieces, len(text))
			_, err = io.WriteString(c.Conn, text[:n])
			text = text[n:]
		}
	}()
}

// gets wants an answer.
func (c *client) gets(method string, status int, body string) *http.Response {
	c.Helper()
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	testkit.Must(c, err)
	got, err := io.ReadAll(resp.Body)
	if resp.StatusCode != status || string(got) != body && body != "*" || err != nil {
		c.Fatalf("%s: %d %q, %v; want %d %q", method, resp.StatusCode, got, err, status, body)
	}
	return resp
}

// isClosed wants the connection to be closed, with nothing more to read.
func (c *client) isClosed() {
	c.Helper()
	if b, err := io.ReadAll(c.in); len(b) > 0 || err != nil {
		c.Fatalf("%q, %v; want the end of the connection", b, err)
	}
}

const hostLine = " HTTP/1.1\r\nHost: localhost\r\n"

func put(key, value string) string {
	return fmt.Sprintf("PUT /%s%sContent-Length: %d\r\n\r\n%s", key, hostLine, len(value), value)
}

func get(key string) string { return "GET /" + key + hostLine + "\r\n" }
