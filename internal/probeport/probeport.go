// Package probeport answers: what may those know who only look after this node? It serves
// probes and metrics on a port of their own (--listen-metrics), without rights, so that
// what scrapes and restarts nodes needs no token, and without TLS. Nothing there
// names a key or a client. What the answers say it does not know.
package probeport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"raftkv/internal/listening"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"
)

const (
	// mostConns is how many connections are open at once. Others wait until one is over.
	// They are taken from the descriptors that are kept for files, which are limits.FilesKept.
	mostConns = 32

	headTimeout   = 5 * time.Second  // to send a request's head
	readTimeout   = 10 * time.Second // to send a whole request
	answerTimeout = 30 * time.Second // to take an answer
	idleTimeout   = 30 * time.Second // of a kept connection between requests
	maxHeadBytes  = 16 << 10
	// stopLimit is how long answers under way may take when the port closes.
	stopLimit = 500 * time.Millisecond
)

// Paths are all that is served, without their first slash.
var Paths = []string{"livez", "readyz", "metrics"}

// Port serves from Open to Close. Until there is something to Serve it says that the node
// is starting. A nil *Port is one that was not asked for, and does nothing.
type Port struct {
	listener net.Listener
	server   *http.Server
	node     atomic.Pointer[node]
	ended    chan error
}

// node is what answers, once there is one.
type node struct {
	routes map[string]web.Methods
	may    func(path, query string) error
}

// Open opens addr, host and port, and begins to serve there. Without addr it returns nil.
func Open(addr string, log *zap.Logger) (*Port, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := listening.Open(addr)
	if err != nil {
		return nil, err
	}
	p := newPort(log)
	p.listener = l
	go p.run(l)
	return p, nil
}

func newPort(log *zap.Logger) *Port {
	p := &Port{ended: make(chan error, 1)}
	p.server = &http.Server{
		Handler: p, ReadHeaderTimeout: headTimeout, ReadTimeout: readTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeadBytes, ErrorLog: zap.NewStdLog(log.Named("http")),
	}
	return p
}

func (p *Port) run(l net.Listener) { p.ended <- p.server.Serve(netutil.LimitListener(l, mostConns)) }

// Serve answers by routes from now on; of those only Paths count. may returns nil or why a
// path is not served now, and is not asked for metrics, which are wanted of a node that is
// in trouble most of all.
func (p *Port) Serve(routes map[string]web.Methods, may func(path, query string) error) {
	if p != nil {
		p.node.Store(&node{routes, may})
	}
}

// ServeHTTP implements http.Handler.
func (p *Port) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["Cache-Control"] = web.CacheNever
	if err := p.serve(w, r); err != nil {
		web.WriteProblem(w, r, err)
	}
}

func (p *Port) serve(w http.ResponseWriter, r *http.Request) error {
	path, n := strings.TrimPrefix(r.URL.Path, "/"), p.node.Load()
	switch path {
	case "metrics":
		if n == nil {
			break
		}
		return n.routes[path].Serve(w, r)
	case "livez", "readyz":
		if n == nil {
			break
		}
		if err := n.may(path, r.URL.RawQuery); err != nil {
			return err
		}
		return n.routes[path].Serve(w, r)
	default:
		return fmt.Errorf("%w: %s; this port has /%s, and clients have another one",
			problem.ErrNoSuchPath, web.Clip(r.URL.Path), strings.Join(Paths, ", /"))
	}
	if path == "livez" { // alive, if not ready
		_, err := fmt.Fprintln(w, "ok")
		return web.IgnoreWriteError(err)
	}
	return fmt.Errorf("%w: it is starting", problem.ErrNotReady)
}

// Close takes no more requests, lets those under way come to their end for a short while,
// and returns why the port did not serve until now, if it did not.
func (p *Port) Close() error {
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if p.server.Shutdown(ctx) != nil {
		_ = p.server.Close() // what is cut off can be asked again
	}
	err := <-p.ended
	p.ended <- err // for who closes it again
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("listener %s: %w", p.listener.Addr(), err)
}
