package limits

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
	// FilesKept are the descriptors for files, for connections to peers and, half
	// of them, for those of theirs, at least: a log of 2 GiB has 32 segments, a
	// peer takes up to 18. More are kept where there are more.
	FilesKept = 128
	// PoliteRefusals are the refused connections that are given the time to read
	// why; others are just closed.
	PoliteRefusals = 16
	politeTime     = 5 * time.Second
	connsSaid      = time.Minute // between two lines in the log
)

// ConnLimit bounds a listener's connections.
type ConnLimit struct {
	Most    int64 // as many may be open
	Log     *zap.Logger
	Word    string // what is answered to one too many; empty: nothing
	said    atomic.Int64
	Refused atomic.Uint64 // connections, since the start
	Polite  chan struct{} // has one for each refused connection that is told why
}

// errTooManyConns is answered before the request was read.
var errTooManyConns = fmt.Errorf("%w: too many connections are open", problem.ErrOverloaded)

// TooManyConns is the whole answer to a connection too many.
func TooManyConns() (string, error) {
	a := &plainAnswer{header: http.Header{}}
	web.WriteProblem(a, nil, errTooManyConns)
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

// ClientConns and PeerConns are how many connections a process with so many
// descriptors takes.
func ClientConns(files int) int64 { return int64(files) - 2*PeerConns(files) }

// PeerConns is how many connections the peer listener takes: an eighth of the
// descriptors, or FilesKept/2 if that is more, and at most a quarter.
func PeerConns(files int) int64 { return int64(min(files/4, max(FilesKept/2, files/8))) }

// Admits reports whether there may be another connection beside so many.
func (c *ConnLimit) Admits(open int64) bool {
	if open >= c.Most {
		c.say("so many connections are open that more are refused; see ulimit -n", open)
		c.Refused.Add(1)
		return false
	}
	if open >= c.Most*4/5 {
		c.say("four fifths of the connections that this node can take are open; see ulimit -n", open)
	}
	return true
}

func (c *ConnLimit) say(what string, open int64) {
	now := time.Now().UnixNano()
	if last := c.said.Load(); now-last >= int64(connsSaid) && c.said.CompareAndSwap(last, now) {
		c.Log.Warn(what, zap.Int64("open", open), zap.Int64("most", c.Most))
	}
}

// Refuse closes a connection, and says why if it can. To close it with what the
// client sent unread would cut the answer off.
func (c *ConnLimit) Refuse(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || c.Word == "" {
		_ = conn.Close() // it was not wanted
		return
	}
	select {
	case c.Polite <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	go func() {
		defer func() { <-c.Polite }()
		defer func() { _ = conn.Close() }()
		if tcp.SetDeadline(time.Now().Add(politeTime)) != nil {
			return
		}
		if _, err := io.WriteString(tcp, c.Word); err != nil || tcp.CloseWrite() != nil {
			return
		}
		_, _ = io.Copy(io.Discard, tcp) // until the client closes, or the time is up
	}()
}
