package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/front"
	"raftkv/internal/limits"
	"raftkv/internal/listening"
	"raftkv/internal/peerclient"
	"raftkv/internal/peertls"
	"raftkv/internal/problem"
	"raftkv/internal/tlsport"
	"raftkv/internal/watchapi"
	"raftkv/internal/web"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
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
	front   *front.Server // reads connections before server does; nil for peers
	behind  *front.Behind // what front gives to server
	fast    bool          // front serves what is plain
	handler atomic.Pointer[http.Handler]
	origin  atomic.Pointer[web.OriginGuard] // of clients, until there is a handler
	conns   atomic.Int64                    // of server that are open; unused where there is a front
	limit   atomic.Pointer[limits.ConnLimit]
	ended   chan struct{} // closed when the server has ended
	err     error         // why; read after ended is closed
	who     http.Handler  // answers peerclient.WhoPath from the start; nil for clients
}

// listen opens addr, host and port, and starts to serve.
func listen(addr string, server *http.Server) (*stoppableListener, error) {
	l, err := openListener(addr, server)
	if err != nil {
		return nil, err
	}
	l.start(l.serveHTTP)
	return l, nil
}

// listenForPeers is listen for peers. who tells them which process this is, door secures.
func listenForPeers(addr string, server *http.Server, who http.Handler, door *peertls.Door) (*stoppableListener, error) {
	l, err := openListener(addr, server)
	if err != nil {
		return nil, err
	}
	l.who = who
	l.start(func() error { return server.Serve(web.HangUpListener{Listener: door.Listen(l)}) })
	return l, nil
}

// listenForClients is listen for clients, whose connections door secures unless it is nil.
// The front reads what is plain unless it is switched off.
func listenForClients(cfg config.Config, door *tlsport.Door, log *zap.Logger) (l *stoppableListener, err error) {
	addr, server := address.JoinHostPort(cfg.Host, cfg.Port), listening.ClientServer(cfg.RequestTimeout, log)
	refusal, err := limits.TooManyConns()
	switch {
	case err != nil:
		return nil, err
	case door != nil:
		if !door.Optional {
			refusal = "" // it would not be understood
		}
		l, err = listenWithFront(addr, server, door.Port, cfg.MaxValueSize, log)
	case cfg.Front:
		l, err = listenWithFront(addr, server, nil, cfg.MaxValueSize, log)
	default:
		l, err = listen(addr, server)
	}
	if err != nil {
		return nil, err
	}
	l.fast = cfg.Front
	l.origin.Store(&web.OriginGuard{Hosts: cfg.ClientHosts(l.port()), Origins: cfg.AllowedOrigins, Serves: door.Serves})
	l.limitTo(limits.ClientConns(durable.MaxFiles()), log, refusal)
	return l, nil
}

// listenWithFront is listen for clients whose plain requests the front reads.
func listenWithFront(addr string, server *http.Server, port *tlsport.Port, maxValue int64, log *zap.Logger) (*stoppableListener, error) {
	l, err := openListener(addr, server)
	if err != nil {
		return nil, err
	}
	server.ConnState = nil // the front counts
	l.behind, l.fast = front.NewBehind(l.Addr()), true
	l.front = front.New(log, front.Limits{
		Head: server.ReadHeaderTimeout, Idle: server.IdleTimeout, Answer: server.WriteTimeout, Value: maxValue,
	}, port, l.behind.Give)
	l.start(func() error {
		var both errgroup.Group
		both.Go(func() error { return server.Serve(web.HangUpListener{Listener: l.behind}) })
		both.Go(func() error {
			err := l.front.Serve(l)
			if err != nil {
				_ = l.behind.Close() // so that both end; it never fails
			}
			return err
		})
		return both.Wait()
	})
	return l, nil
}

func openListener(addr string, server *http.Server) (*stoppableListener, error) {
	l, err := listening.Open(addr)
	if err != nil {
		return nil, err
	}
	s := &stoppableListener{TCPListener: l, server: server, ended: make(chan struct{})}
	server.Handler = s
	server.ConnState = s.count
	server.ConnContext = web.ConnContext
	return s, nil
}

// start serves until the listener is stopped.
func (l *stoppableListener) start(serve func() error) {
	go func() {
		defer close(l.ended)
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			l.err = fmt.Errorf("listener %s: %w", l.Addr(), err)
		}
	}()
}

func (l *stoppableListener) serveHTTP() error { return l.server.Serve(web.HangUpListener{Listener: l}) }

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
		starting := fmt.Errorf("%w: it is starting", problem.ErrNotReady)
		if !watchapi.Refuse(w, r, l.origin.Load(), starting) {
			web.WriteProblem(w, r, starting)
		}
	}
}

// serve lets h answer from now on, and plain what the front reads. It returns when
// the listener has ended: with nil when it was stopped.
func (l *stoppableListener) serve(h http.Handler, plain front.Handler) error {
	l.handler.Store(&h)
	if l.fast {
		l.front.Handle(plain)
	}
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

// open returns how many connections there are.
func (l *stoppableListener) open() int64 {
	if l.front == nil {
		return l.conns.Load()
	}
	return l.front.Open()
}

// shutdown takes no more requests, and waits for those that are being served. But a
// connection that is closed just when its client sends a request leaves the
// client in doubt; so for as long as linger, while there are connections, the
// handler answers still. It is expected to refuse, with "Connection: close".
func (l *stoppableListener) shutdown(ctx context.Context, linger time.Duration) error {
	poll := time.NewTicker(lameDuckPoll)
	defer poll.Stop()
	for end := time.Now().Add(linger); l.open() > 0 && time.Now().Before(end) && ctx.Err() == nil; {
		select {
		case <-poll.C:
		case <-ctx.Done():
		}
	}
	if l.front == nil {
		return l.server.Shutdown(ctx)
	}
	// The front first: it may still hand connections over.
	err := ignoreClosed(l.TCPListener.Close())
	return errors.Join(err, l.front.Shutdown(ctx), l.server.Shutdown(ctx))
}

// close ends everything at once.
func (l *stoppableListener) close() error {
	var err error
	if l.front != nil {
		err = ignoreClosed(l.TCPListener.Close())
	}
	err = errors.Join(err, l.server.Close())
	if l.front != nil {
		l.front.Close() // not before: a connection that is handed over waits for the server
	}
	<-l.ended
	return err
}

// ignoreClosed: what is closed twice is closed.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// port is the port on which l listens.
func (l *stoppableListener) port() int {
	return l.Addr().(*net.TCPAddr).Port
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
		if err != nil || limit == nil || limit.Admits(l.open()) {
			return conn, err
		}
		limit.Refuse(conn)
	}
}
