package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"raftkv/internal/limits"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Time limits of both HTTP servers.
const (
	headerTimeout    = 5 * time.Second  // to send the request line and headers
	requestReadLimit = 30 * time.Second // to send a whole client request
	answerWriteLimit = 60 * time.Second // to take a whole answer
	idleTimeout      = 3 * time.Minute  // of a kept connection between requests
	maxHeaderBytes   = 64 << 10
	keepAlivePeriod  = 30 * time.Second
)

// lameDuck is how long a listener that stops still answers on open connections.
const (
	lameDuck     = 100 * time.Millisecond
	lameDuckPoll = 2 * time.Millisecond
)

// stoppableListener is a TCP listener with its HTTP server. It is opened before
// anything else of the node, so that a port in use is found at once, and serves
// from then on, so that nobody who asks a starting node hangs: until there is a
// handler, it answers that the node is starting.
type stoppableListener struct {
	*net.TCPListener
	server  *http.Server
	handler atomic.Pointer[http.Handler]
	conns   atomic.Int64 // that are open
	limit   atomic.Pointer[limits.ConnLimit]
	ended   chan struct{} // closed when the server has ended
	err     error         // why; read after ended is closed
	who     http.Handler  // answers peerclient.WhoPath from the start; nil for clients
}

// listen opens addr, host and port, and starts to serve.
func listen(addr string, server *http.Server) (*stoppableListener, error) {
	return listenAs(addr, server, nil)
}

// listenAs is listen for peers, to whom who tells which process this is.
func listenAs(addr string, server *http.Server, who http.Handler) (*stoppableListener, error) {
	lc := net.ListenConfig{KeepAlive: keepAlivePeriod}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, listenError(addr, err)
	}
	s := &stoppableListener{TCPListener: l.(*net.TCPListener), server: server, ended: make(chan struct{}), who: who}
	server.Handler = s
	server.ConnState = s.count
	server.ConnContext = web.ConnContext
	go func() {
		defer close(s.ended)
		if err := server.Serve(web.HangUpListener{Listener: s}); !errors.Is(err, http.ErrServerClosed) {
			s.err = fmt.Errorf("listener %s: %w", addr, err)
		}
	}()
	return s, nil
}

// ServeHTTP serves with the node's handler, once there is one.
func (l *stoppableListener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := l.handler.Load()
	switch {
	case l.who != nil && r.URL.Path == peerclient.WhoPath:
		l.who.ServeHTTP(w, r)
		return
	case h != nil:
		(*h).ServeHTTP(w, r)
		return
	}
	w.Header()["Cache-Control"] = web.CacheNever
	switch {
	case r.URL.Path == "/livez": // alive, if not ready
		_, err := fmt.Fprintln(w, "ok")
		_ = web.IgnoreWriteError(err)
	default:
		web.WriteProblem(w, fmt.Errorf("%w: it is starting", problem.ErrNotReady))
	}
}

// serve lets h answer from now on, and returns when the listener has ended:
// with nil when it was stopped.
func (l *stoppableListener) serve(h http.Handler) error {
	l.handler.Store(&h)
	<-l.ended
	return l.err
}

// count keeps the number of open connections.
func (l *stoppableListener) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		l.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		l.conns.Add(-1)
	}
}

// shutdown takes no more requests, and waits for those that are being served. But a
// connection that is closed just when its client sends a request leaves the
// client in doubt; so for as long as linger, while there are connections, the
// handler answers still. It is expected to refuse, with "Connection: close".
func (l *stoppableListener) shutdown(ctx context.Context, linger time.Duration) error {
	poll := time.NewTicker(lameDuckPoll)
	defer poll.Stop()
	for end := time.Now().Add(linger); l.conns.Load() > 0 && time.Now().Before(end) && ctx.Err() == nil; {
		select {
		case <-poll.C:
		case <-ctx.Done():
		}
	}
	return l.server.Shutdown(ctx)
}

// close ends everything at once.
func (l *stoppableListener) close() error {
	err := l.server.Close()
	<-l.ended
	return err
}

// port is the port on which l listens.
func (l *stoppableListener) port() int {
	return l.Addr().(*net.TCPAddr).Port
}

// newClientServer makes the HTTP server of the client API. Its clocks run while
// a request waits for the cluster, up to wait, so that comes on top.
func newClientServer(wait time.Duration, log *zap.Logger) *http.Server {
	return &http.Server{
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestReadLimit + wait,
		WriteTimeout:      answerWriteLimit + wait,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(log.Named("http")),
	}
}

// newPeerServer makes the HTTP server of the peer listener. Its connections
// are long-lived streams, so only the headers have a time limit.
func newPeerServer(log *zap.Logger) *http.Server {
	return &http.Server{
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(log.Named("peer-http")),
	}
}

// limitTo bounds the connections of a listener from now on.
func (l *stoppableListener) limitTo(most int64, log *zap.Logger, word string) {
	l.limit.Store(&limits.ConnLimit{Most: most, Log: log, Word: word, Polite: make(chan struct{}, limits.PoliteRefusals)})
}

// Accept implements net.Listener: it returns the next connection for which there
// is room, and refuses others.
func (l *stoppableListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.TCPListener.Accept()
		limit := l.limit.Load()
		if err != nil || limit == nil || limit.Admits(l.conns.Load()) {
			return conn, err
		}
		limit.Refuse(conn)
	}
}

// listenError says why a node cannot listen, and what to do about it.
func listenError(addr string, err error) error {
	var dns *net.DNSError
	var hint string
	switch {
	case errors.As(err, &dns):
		hint = "the name has no address here; is it right, and can it be resolved? --listen-peer and --host also take an IP address"
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "is another process using the port?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine has no such address; --listen-peer says where the peer server listens, --host where the client API does"
	case errors.Is(err, os.ErrPermission):
		hint = "this user may not; is it a port below 1024?"
	default:
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return fmt.Errorf("cannot listen on %s: %w; %s", addr, err, hint)
}
