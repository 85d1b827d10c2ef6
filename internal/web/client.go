package web

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
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

	requests atomic.Int64 // under way at the net/http server
	once     sync.Once
	expired  chan struct{}
	end      func() // closes the connection
}

// NewClient returns what is known of a connection's client. end closes the connection;
// it is called when the client has expired and waits for no answer.
func NewClient(addr string, secured bool, names []string, end func()) *Client {
	return &Client{Addr: addr, TLS: secured, Names: names, expired: make(chan struct{}), end: end}
}

// Expire says that the client's certificate does not prove anything any more. The
// connection ends behind the answers that are under way.
func (c *Client) Expire() {
	c.once.Do(func() { close(c.expired) })
	if c.requests.Load() == 0 {
		c.end()
	}
}

// Expired is closed when the client has expired. That of nil never is.
func (c *Client) Expired() <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.expired
}

// IsExpired reports whether the client has expired.
func (c *Client) IsExpired() bool {
	select {
	case <-c.Expired():
		return true
	default:
		return false
	}
}

// Begin notes that a request of the client is under way until done is called.
func (c *Client) Begin() (done func()) {
	if c == nil {
		return func() {}
	}
	c.requests.Add(1)
	return func() { c.requests.Add(-1) }
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
