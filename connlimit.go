package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// How many connections may be open. A process has so many descriptors (ulimit
// -n), and without one for the log or a snapshot a node cannot go on. So some are
// kept for files and peers, and clients share the rest.

const (
	// filesKept are the descriptors for files, for connections to peers and, half
	// of them, for those of theirs, at least: a log of 2 GiB has 32 segments, a
	// peer takes up to 18. More are kept where there are more.
	filesKept = 128
	// politeRefusals are the refused connections that are given the time to read
	// why; others are just closed.
	politeRefusals = 16
	politeTime     = time.Second
	connsSaid      = time.Minute // between two lines in the log
)

// connLimit bounds a listener's connections.
type connLimit struct {
	most    int64 // 0: no bound
	log     *zap.Logger
	word    string // what is answered to one too many; empty: nothing
	said    atomic.Int64
	refused atomic.Uint64
	polite  chan struct{}
}

// errTooManyConns is answered before the request was read.
var errTooManyConns = fmt.Errorf("%w: too many connections are open", problem.ErrOverloaded)

// tooManyConns is the whole answer to a connection too many.
func tooManyConns() (string, error) {
	a := &plainAnswer{header: http.Header{}}
	web.WriteProblem(a, errTooManyConns)
	resp := http.Response{
		StatusCode: a.status, ProtoMajor: 1, ProtoMinor: 1, Header: a.header, Close: true,
		Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()),
	}
	var text strings.Builder
	err := resp.Write(&text)
	return text.String(), err
}

// plainAnswer is an answer that nobody has asked for yet.
type plainAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *plainAnswer) Header() http.Header { return a.header }

func (a *plainAnswer) WriteHeader(status int) { a.status = status }

func (a *plainAnswer) Write(b []byte) (int, error) { return a.body.Write(b) }

// clientConns and peerConns are how many connections a process with so many
// descriptors takes.
func clientConns(files int) int64 { return int64(files) - 2*peerConns(files) }

func peerConns(files int) int64 { return int64(min(files/4, max(filesKept/2, files/8))) }

// limitTo bounds the connections of a listener from now on.
func (l *stoppableListener) limitTo(most int64, log *zap.Logger, word string) {
	l.limit.Store(&connLimit{most: most, log: log, word: word, polite: make(chan struct{}, politeRefusals)})
}

// Accept implements net.Listener: it returns the next connection for which there
// is room, and refuses others.
func (l *stoppableListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.TCPListener.Accept()
		limit := l.limit.Load()
		if err != nil || limit == nil || limit.admits(l.conns.Load()) {
			return conn, err
		}
		limit.refuse(conn)
	}
}

// admits reports whether there may be another connection beside so many.
func (c *connLimit) admits(open int64) bool {
	if open >= c.most {
		c.say("so many connections are open that more are refused; see ulimit -n", open)
		c.refused.Add(1)
		return false
	}
	if open >= c.most*4/5 {
		c.say("four fifths of the connections that this node can take are open; see ulimit -n", open)
	}
	return true
}

func (c *connLimit) say(what string, open int64) {
	now := time.Now().UnixNano()
	if last := c.said.Load(); now-last >= int64(connsSaid) && c.said.CompareAndSwap(last, now) {
		c.log.Warn(what, zap.Int64("open", open), zap.Int64("most", c.most))
	}
}

// refuse closes a connection, and says why if it can. To close it with what the
// client sent unread would cut the answer off.
func (c *connLimit) refuse(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || c.word == "" {
		_ = conn.Close() // it was not wanted
		return
	}
	select {
	case c.polite <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	go func() {
		defer func() { <-c.polite }()
		defer func() { _ = conn.Close() }()
		if tcp.SetDeadline(time.Now().Add(politeTime)) != nil {
			return
		}
		if _, err := io.WriteString(tcp, c.word); err != nil || tcp.CloseWrite() != nil {
			return
		}
		_, _ = io.Copy(io.Discard, tcp) // until the client closes, or the time is up
	}()
}
