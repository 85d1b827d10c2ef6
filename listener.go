package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
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

// stoppableListener is a TCP listener whose Accept ends when its context does,
// and which closes a connection that came in at that very moment instead of
// leaving it with nobody.
type stoppableListener struct {
	*net.TCPListener
	ctx  context.Context
	stop func() bool
}

// newStoppableListener listens on addr, host and port. It fails at once when
// the port is taken, before anything else of the node has started.
func newStoppableListener(ctx context.Context, addr string) (*stoppableListener, error) {
	lc := net.ListenConfig{KeepAlive: keepAlivePeriod}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w; is another process using the port?", addr, err)
	}
	tcp := l.(*net.TCPListener)
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	return &stoppableListener{TCPListener: tcp, ctx: ctx, stop: stop}, nil
}

// Accept waits for the next connection. After the context has ended it
// returns http.ErrServerClosed.
func (l *stoppableListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if l.ctx.Err() != nil {
		if err == nil {
			err = c.Close()
		}
		return nil, errors.Join(http.ErrServerClosed, err)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close stops listening.
func (l *stoppableListener) Close() error {
	l.stop()
	err := l.TCPListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// port is the port on which l listens.
func (l *stoppableListener) port() int {
	return l.Addr().(*net.TCPAddr).Port
}

// newClientServer makes the HTTP server of the client API. Its clocks run while
// a request waits for the cluster, up to wait, so that comes on top.
func newClientServer(h http.Handler, wait time.Duration, log *zap.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
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
func newPeerServer(h http.Handler, log *zap.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(log.Named("peer-http")),
	}
}

// serveRaft serves the peers on l until l is closed.
func (n *raftNode) serveRaft(srv *http.Server, l *stoppableListener) error {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("peer listener %s: %w", l.Addr(), err)
	}
	return nil
}

func joinHostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
