package web

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Client is who is at the other end of a connection, as far as that tells. It is made once
// for each connection, and the same for all of its requests.
type Client struct {
	Addr string // from where it comes, as net.Conn.RemoteAddr has it
	TLS  bool   // what is said on the connection nobody else reads or changes
	// Names are those of the client's certificate, which was verified. None: it has shown
	// none, or one without any.
	Names []string

	requests atomic.Int64 // of net/http that are under way
	rested   atomic.Int64 // when the last of them had ended, in ns
	life     context.Context
	expire   context.CancelFunc
	end      atomic.Pointer[func()] // closes the connection unless it waits for an answer
}

// flushTime is how long net/http has to write what a handler that has ended has left.
const flushTime = time.Second

// NewClient returns what is known of a connection's client. end closes the connection. It
// is called once the client has expired, if no request is under way.
func NewClient(addr string, secured bool, names []string, end func()) *Client {
	c := &Client{Addr: addr, TLS: secured, Names: names}
	c.life, c.expire = context.WithCancel(context.Background())
	c.end.Store(&end)
	return c
}

// EndBy replaces end of NewClient, while another than net/http serves the connection, and
// returns what it was.
func (c *Client) EndBy(end func()) (was func()) { return *c.end.Swap(&end) }

// Expire says that the client's certificate does not prove anything any more. The
// connection ends behind the answers that are under way: until it has, Expire is called
// again, once in a while.
func (c *Client) Expire() {
	c.expire()
	if c.requests.Load() == 0 && time.Now().UnixNano()-c.rested.Load() > int64(flushTime) {
		(*c.end.Load())()
	}
}

// IsExpired reports whether the client has expired. None never has.
func (c *Client) IsExpired() bool { return c != nil && c.life.Err() != nil }

// Begin notes that net/http serves a request of the client, until End.
func (c *Client) Begin() {
	if c != nil {
		c.requests.Add(1)
	}
}

// End notes that a request that Begin has told of was served.
func (c *Client) End() {
	if c != nil {
		c.rested.Store(time.Now().UnixNano())
		c.requests.Add(-1)
	}
}

// UntilEnded is UntilHungUp. Requests of a kind that lasts end as well when the client
// expires.
func UntilEnded(r *http.Request, route string) (req *http.Request, done context.CancelFunc) {
	c := ClientOf(r.Context())
	r, hungUp := UntilHungUp(r)
	if c == nil || !c.TLS || !Lasts(route) {
		return r, hungUp
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(c.life, cancel)
	return r.WithContext(ctx), func() { stop(); cancel(); hungUp() }
}

// clientKey is the key of a request's Client in its context.
type clientKey struct{}

// ClientOf returns who is at the other end of the connection on which a request came; nil
// where nothing is known, as in a test without a connection.
func ClientOf(ctx context.Context) *Client {
	c, _ := ctx.Value(clientKey{}).(*Client)
	return c
}

// WithClient returns a context in which ClientOf finds c.
func WithClient(ctx context.Context, c *Client) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// clientAt returns who is at the other end of a connection, also if that stands behind
// others.
func clientAt(c net.Conn) *Client {
	for {
		switch conn := c.(type) {
		case interface{ Client() *Client }:
			return conn.Client()
		case *HangUpTLSConn:
			c = conn.Conn
		case *HangUpConn:
			c = conn.Conn
		case *tls.Conn:
			c = conn.NetConn()
		default:
			return nil
		}
	}
}
