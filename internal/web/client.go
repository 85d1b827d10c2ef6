package web

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
)

// Client is who is at the other end of a connection, as far as that tells. It is made once
// for each connection, and the same for all of its requests.
type Client struct {
	Addr string // from where it comes, as net.Conn.RemoteAddr has it
	TLS  bool   // what is said on the connection nobody else reads or changes
	// Names are those of the client's certificate, which was verified. None: it has shown
	// none, or one without any.
	Names []string

	requests atomic.Int64 // under way
	life     context.Context
	expire   context.CancelFunc
	end      func() // closes the connection
}

// NewClient returns what is known of a connection's client. end closes the connection;
// it is called when the client has expired and waits for no answer.
func NewClient(addr string, secured bool, names []string, end func()) *Client {
	c := &Client{Addr: addr, TLS: secured, Names: names, end: end}
	c.life, c.expire = context.WithCancel(context.Background())
	return c
}

// Expire says that the client's certificate does not prove anything any more. The
// connection ends behind the answers that are under way.
func (c *Client) Expire() {
	c.expire()
	if c.requests.Load() == 0 {
		c.end()
	}
}

// IsExpired reports whether the client has expired. None never has.
func (c *Client) IsExpired() bool { return c != nil && c.life.Err() != nil }

// Begin notes that a request of the client is under way, and End that it is not any more.
func (c *Client) Begin() {
	if c != nil {
		c.requests.Add(1)
	}
}

// End: see Begin.
func (c *Client) End() {
	if c != nil {
		c.requests.Add(-1)
	}
}

// UntilExpired returns the request with a context that ends when its client expires, for
// answers that would last. done ends it with the request.
func UntilExpired(r *http.Request) (req *http.Request, done context.CancelFunc) {
	c := ClientOf(r.Context())
	if c == nil {
		return r, func() {}
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(c.life, cancel)
	return r.WithContext(ctx), func() { stop(); cancel() }
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
