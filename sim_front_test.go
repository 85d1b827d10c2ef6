//go:build unix

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"raftkv/internal/front"
	"raftkv/internal/history"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Guarantee: what clients see through the front, over connections that break at any
// byte, is linearizable, whatever happens to the cluster meanwhile.
func TestSimFront(t *testing.T) {
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			f := &simFronts{T: t, of: map[*server]*pipeListener{}}
			simChaosOn(t, func(c *simCluster) {
				f.rng = rand.New(rand.NewPCG(c.Seed, 7))
				c.wire, c.Ask = f.open, f.ask
			})
			t.Logf("%d connections, %d broke; %d requests were answered", f.dialed, f.broke, f.answered)
			if f.broke < 5 || f.answered < 50 {
				t.Error("that is no test")
			}
		})
	}
}

// simFronts are the fronts of simulated nodes, and the connections to them.
type simFronts struct {
	*testing.T
	mu                      sync.Mutex
	rng                     *rand.Rand
	of                      map[*server]*pipeListener
	idle                    map[*server][]*brittleConn
	dialed, broke, answered int
}

// open gives a node a front that lives as long as the node.
func (f *simFronts) open(s *server) {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	fr := front.New(zap.NewNop(), front.Limits{Head: listening.HeadLimit, Idle: listening.IdleLimit, Answer: listening.AnswerLimit, Value: 1 << 20}, nil, func(c net.Conn) {
		f.Error("a plain request was handed over")
		_ = c.Close()
	})
	fr.Handle(plainRequests{s.api})
	s.group.Go(func() error { return fr.Serve(l) })
	s.group.Go(func() error {
		<-s.life.Done()
		fr.Close()
		return l.Close()
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of[s] = l
}

// ask does what server.Do does, over a connection.
func (f *simFronts) ask(_ context.Context, s *server, in history.Input) (res state.Result, it *state.Item) {
	c := f.conn(s)
	if c == nil {
		return state.Result{Err: problem.ErrStopping}, nil
	}
	method, condition := map[history.Kind]string{history.Get: "GET", history.Delete: "DELETE"}[in.Kind], ""
	method = cmp.Or(method, "PUT")
	body := in.Value
	if method != "PUT" {
		body = ""
	}
	if in.Kind == history.Create {
		condition = "If-None-Match: *\r\n"
	}
	text := fmt.Sprintf("%s /v1/kv/%s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", method, in.Key, condition, len(body), body)
	answer, err := f.exchange(c, method, text)
	if err != nil && in.Kind == history.Get {
		return state.Result{Err: problem.ErrUnavailable}, nil
	}
	if err != nil {
		return state.Result{Err: problem.ErrOutcomeUnknown}, nil
	}
	f.keep(s, c)
	switch {
	case answer.status == http.StatusOK:
		return state.Result{}, &state.Item{Value: string(answer.body)}
	case answer.status < 300:
		return state.Result{}, nil
	}
	var told struct{ Code, Detail, Outcome string }
	testkit.Must(f, json.Unmarshal(answer.body, &told))
	if in.Kind != history.Get && told.Outcome == string(problem.MaybeApplied) {
		return state.Result{Err: problem.ErrOutcomeUnknown}, nil
	}
	if in.Kind == history.Get && told.Code == "not_found" {
		return state.Result{}, nil
	}
	return state.Result{Err: problem.FromCode(told.Code, told.Detail)}, nil
}

// simAnswer is an answer that came whole.
type simAnswer struct {
	status int
	body   []byte
}

func (f *simFronts) exchange(c *brittleConn, method, text string) (a simAnswer, err error) {
	sent := make(chan struct{})
	go func() { // a pipe has no buffer, and an answer may come before the whole request was read
		defer close(sent)
		_, _ = io.WriteString(c, text)
	}()
	defer func() {
		if err != nil {
			_ = c.Close()
		}
		<-sent
	}()
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return a, err
	}
	a.status = resp.StatusCode
	a.body, err = io.ReadAll(resp.Body)
	if r, rerr := http.ReadRequest(bufio.NewReader(strings.NewReader(text))); rerr == nil {
		openapitest.Check(f, openapitest.Of(r, resp.StatusCode, resp.Header, a.body, err == nil))
	}
	c.ends = resp.Close
	return a, err
}

// conn returns a connection to a node; nil if it takes none.
func (f *simFronts) conn(s *server) *brittleConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	if kept := f.idle[s]; len(kept) > 0 {
		f.idle[s] = kept[1:]
		return kept[0]
	}
	client, node := net.Pipe()
	select {
	case f.of[s].conns <- node:
	case <-f.of[s].closed:
		return nil
	}
	f.dialed++
	c := &brittleConn{Conn: client, f: f, left: f.rng.IntN(3000)}
	c.in = bufio.NewReader(c)
	_ = client.SetDeadline(time.Now().Add(time.Minute)) // fails if the node has closed it, as does what follows
	return c
}

func (f *simFronts) keep(s *server, c *brittleConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered++
	if c.ends || c.SetDeadline(time.Now().Add(time.Hour)) != nil { // or the node has ended meanwhile
		_ = c.Close()
		return
	}
	if f.idle == nil {
		f.idle = map[*server][]*brittleConn{}
	}
	f.idle[s] = append(f.idle[s], c)
}

// brittleConn breaks when so many bytes have passed, in both directions together.
type brittleConn struct {
	net.Conn
	f    *simFronts
	in   *bufio.Reader
	ends bool // the node has said so

	mu   sync.Mutex
	left int
}

// pass returns how many of n bytes may still pass.
func (c *brittleConn) pass(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, c.left)
	c.left -= n
	return n
}

func (c *brittleConn) snap() error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.broke++
	return cmp.Or(c.Close(), io.ErrUnexpectedEOF)
}

func (c *brittleConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:c.pass(len(p))])
	if err == nil && n < len(p) {
		err = c.snap()
	}
	return n, err
}

func (c *brittleConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if passed := c.pass(n); passed < n {
		return passed, c.snap()
	}
	return n, err
}

// pipeListener is a listener within the process.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { close(l.closed); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
