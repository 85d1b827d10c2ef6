// Package front answers: which connections need no more than a glance? It reads the plain
// shapes of GET, HEAD, PUT and DELETE of a key, which are nearly all that a store
// gets, at a fraction of what net/http takes. What a request means and what its answer
// is, package api says for both.
//
// The rule: when in doubt, hand over. A connection on which anything comes that is not
// in the table of plain shapes (package plain) goes to the net/http server, with the bytes
// that were read, and stays there. So what is rare, unusual, wrong or slow is read by
// one reader alone, and nothing is ever ignored here that means something there.
//
// Each connection has a goroutine that reads it. It starts a request and reads on, by
// which it notices a reset. Those who wait are answered by one goroutine, round by
// round (answer.go): it tries once to write and never waits for a client. What could
// not be written the connection's own goroutine writes. No request has a timer: one
// goroutine looks after all connections, twice a second.
package front

import (
	"context"
	"errors"
	"net"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/front/nowait"
	"raftkv/internal/front/plain"
	"raftkv/internal/meter"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Handler serves requests for keys.
type Handler interface {
	// Allows reports whether clients may address this node by this Host.
	Allows(host string) bool
	// Always returns the fields of every answer.
	Always() []web.Field
	// Hold holds memory for a body of n bytes that is on its way, if there is any left.
	Hold(n int64) (release func(), ok bool)
	// Begin begins a request with this body, of which it keeps nothing. True: w will be
	// told when there is something to finish. False: the answer is there.
	Begin(q *api.KeyRequest, body []byte, w rounds.Waiter) (waits bool)
	// Finish makes the answer of a request that waited for res.
	Finish(q *api.KeyRequest, res state.Result)
	// GiveUp ends a request whose client has hung up.
	GiveUp(q *api.KeyRequest)
	// Answered counts a request that began then.
	Answered(q *api.KeyRequest, began time.Time)
}

// Limits are what a connection may take. They are those of the net/http server behind.
type Limits struct {
	Head   time.Duration // for a request's head
	Idle   time.Duration // between two requests
	Answer time.Duration // for taking an answer
	Value  int64         // bytes; a longer body is handed over
}

const (
	// bufferSize is what a connection has to read into. A longer head is handed over.
	bufferSize = 4 << 10
	// maxInline is how much of a value is copied behind its header, to write both at once.
	maxInline = 16 << 10
	// sweepEvery is how often the connections are looked after.
	sweepEvery = 500 * time.Millisecond
	// patience is how long a body may be on its way before its connection is handed over,
	// to where all bodies that are under way are bounded together.
	patience   = time.Second
	acceptRest = 5 * time.Millisecond // after a failure; grows
	maxRest    = time.Second
)

// Server serves connections. It is made by New.
type Server struct {
	log      *zap.Logger
	limits   Limits
	port     *tlsport.Port // secures connections; nil: none is
	handOver func(net.Conn)
	handler  atomic.Pointer[Handler]
	always   atomic.Pointer[string] // the fields of every answer, each behind its line's end
	answers  answers
	scratch  sync.Pool              // of buffers for answers
	date     atomic.Pointer[string] // as it stands in a header
	tick     atomic.Int64           // counts sweeps

	open    atomic.Int64 // connections, those that were handed over included
	served  atomic.Uint64
	handed  [plain.Reasons]atomic.Uint64
	panics  atomic.Uint64
	closed  chan struct{}
	running sync.WaitGroup // goroutines of connections

	closeOnce sync.Once

	mu     sync.Mutex
	conns  map[*conn]struct{}
	ending bool // no connection is taken any more
}

// New returns a server that gives what is not plain to handOver. With a port, that
// secures the connections; those for which HTTP/2 was agreed on are handed over as *tls.Conn.
func New(log *zap.Logger, l Limits, port *tlsport.Port, handOver func(net.Conn)) *Server {
	l.Value = min(l.Value, plain.MaxBody)
	s := &Server{
		log: log, limits: l, port: port, handOver: handOver, closed: make(chan struct{}), conns: make(map[*conn]struct{}),
		answers: answers{kick: make(chan struct{}, 1)},
		scratch: sync.Pool{New: func() any { return new([]byte) }},
	}
	s.always.Store(new(string))
	s.tell(time.Now())
	return s
}

// Handle lets h answer from now on. Until then all connections are handed over.
func (s *Server) Handle(h Handler) {
	var lines []byte
	for _, f := range h.Always() {
		lines = appendField(lines, f.Name, f.Value)
	}
	always := string(lines)
	s.always.Store(&always)
	s.handler.Store(&h)
}

// Serve takes connections of l until that is closed, and returns nil then. It is called
// once.
func (s *Server) Serve(l net.Listener) error {
	go s.answer()
	go s.sweep()
	for rest := acceptRest; ; {
		nc, err := l.Accept()
		var temporary interface{ Temporary() bool }
		switch {
		case err == nil:
			rest = acceptRest
			s.take(nc)
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.As(err, &temporary) && temporary.Temporary(): // no descriptors, for one
			s.log.Warn("cannot take a connection", zap.Error(err))
			select {
			case <-time.After(rest):
			case <-s.closed:
			}
			rest = min(2*rest, maxRest)
		default:
			return err
		}
	}
}

// take serves a new connection.
func (s *Server) take(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		_ = nc.Close() // nothing was read from it
		return
	}
	c := &conn{srv: s, nc: nc, buf: make([]byte, bufferSize), wake: make(chan struct{}, 1)}
	c.raw = nowait.RawConn(nc)
	s.conns[c] = struct{}{}
	s.open.Add(1)
	s.running.Go(c.serve)
}

// leave forgets a connection.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Open returns how many connections there are. One that was handed over counts until it
// is closed, so that it is counted once at every moment of its way.
func (s *Server) Open() int64 { return s.open.Load() }

// Shutdown takes no more connections, closes those that wait for a request, and the
// others once they were answered. It returns when none is left, or ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	poll := time.NewTicker(acceptRest)
	defer poll.Stop()
	for {
		s.mu.Lock()
		s.ending = true
		left := len(s.conns)
		for c := range s.conns {
			c.endIdle()
		}
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends all connections at once, and returns when all goroutines of the server
// have ended but that of Serve.
func (s *Server) Close() {
	s.mu.Lock()
	s.ending = true
	for c := range s.conns {
		c.cut()
	}
	s.mu.Unlock()
	s.running.Wait()
	s.closeOnce.Do(func() { close(s.closed) })
}

// tell sets the date of the answers to come.
func (s *Server) tell(now time.Time) {
	date := now.UTC().Format(http.TimeFormat)
	s.date.Store(&date)
}

// sweep looks after all connections until the server is closed.
func (s *Server) sweep() {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		select {
		case now := <-every.C:
			s.tell(now)
			tick := s.tick.Add(1)
			s.mu.Lock()
			for c := range s.conns {
				c.sweep(tick)
			}
			s.mu.Unlock()
		case <-s.closed:
			return
		}
	}
}

// Register adds what there is to count.
func (s *Server) Register(reg prometheus.Registerer) {
	values := map[string]func() uint64{"served": s.served.Load}
	for r := range s.handed {
		values[plain.Reason(r).String()] = s.handed[r].Load
	}
	meter.Counters(reg, "raftkv_front_requests_total",
		"Requests that the fast path has served, and connections that it has handed over to net/http, by what was not plain.", "result", values)
	meter.Counter(reg, "raftkv_front_panics_total", "Connections that ended by a fault in the program.",
		func() float64 { return float64(s.panics.Load()) })
}
