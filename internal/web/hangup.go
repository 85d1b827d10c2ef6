package web

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
)

// When a client has hung up.
//
// A client that ends its side of the connection (a FIN) says no more than that
// it sends nothing more: nc -N does so behind its request, and waits for the
// answer. But net/http reads ahead while a handler works, and ends the request's
// context when it meets that end. The same FIN comes from a client that has gone
// altogether; which of the two it is shows only when something is written to it,
// and then a reset comes back. So a request here outlasts a FIN. What ends its
// wait early is a reset, or a write that fails; a client that has gone without
// either is waited for as long as one that is there, up to --request-timeout.

// HangUpListener hands out connections that know whether their client has hung up.
type HangUpListener struct{ net.Listener }

// Accept waits for the next connection, and returns it as a *HangUpConn. Nobody may use
// that before ConnContext has seen it. A *tls.Conn, which is to speak HTTP/2, it returns as
// it is: net/http finds that out by the type, and ends its requests by itself.
func (l HangUpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	switch secured := c.(type) {
	case *tls.Conn:
		return c, nil
	case stateful:
		return &HangUpTLSConn{HangUpConn{Conn: c}, secured}, nil
	}
	return &HangUpConn{Conn: c}, nil
}

// stateful is what net/http knows a secured connection by.
type stateful interface{ ConnectionState() tls.ConnectionState }

// HangUpTLSConn is a HangUpConn that is secured.
type HangUpTLSConn struct {
	HangUpConn
	stateful
}

// HangUpConn ends a context when its client hangs up.
type HangUpConn struct {
	net.Conn
	life   context.Context // made by ConnContext, before anything is read
	hungUp context.CancelFunc
	out    io.Writer // what Write writes to; nil: Conn
}

// Read ends the connection's context on an error, such as a reset. A FIN or a passed
// deadline does not end it.
func (c *HangUpConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// A deadline is our own doing: net/http sets one to get hold of the
	// connection again.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.hungUp()
	}
	return n, err
}

// WriteThrough has Write write to out, which stands before the connection; nil has it
// write to the connection again. Only who may write may call it.
func (c *HangUpConn) WriteThrough(out io.Writer) { c.out = out }

// Write ends the connection's context on any error.
func (c *HangUpConn) Write(p []byte) (int, error) {
	out := c.out
	if out == nil {
		out = c.Conn
	}
	n, err := out.Write(p)
	if err != nil {
		c.hungUp()
	}
	return n, err
}

// Close ends the connection's context and closes the connection.
func (c *HangUpConn) Close() error {
	c.hungUp()
	return c.Conn.Close()
}

// CloseWrite is what net/http uses to let a client read an answer although it
// still sends.
func (c *HangUpConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ConnKey is the key of a request's HangUpConn in its context.
type ConnKey struct{}

// ConnContext is an http.Server's ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	ctx = WithClient(ctx, clientAt(c))
	conn, ok := c.(*HangUpConn)
	if secured, is := c.(*HangUpTLSConn); is {
		conn, ok = &secured.HangUpConn, true
	}
	if !ok {
		return ctx
	}
	conn.life, conn.hungUp = context.WithCancel(context.WithValue(ctx, ConnKey{}, conn))
	return conn.life
}

// halfKey is the key of what Half returns in a request's context.
type halfKey struct{}

// Half returns a channel that is closed once the client has ended its side of the
// connection. It may still read.
func Half(r *http.Request) <-chan struct{} {
	if done, ok := r.Context().Value(halfKey{}).(<-chan struct{}); ok {
		return done
	}
	return r.Context().Done()
}

// UntilHungUp returns the request with a context that outlasts a FIN. done ends
// it with the request.
func UntilHungUp(r *http.Request) (req *http.Request, done context.CancelFunc) {
	conn, ok := r.Context().Value(ConnKey{}).(*HangUpConn)
	if !ok || r.ProtoMajor > 1 { // there a request is a stream of its own
		return r, func() {}
	}
	ctx, done := context.WithCancel(context.WithValue(conn.life, halfKey{}, r.Context().Done()))
	return r.WithContext(ctx), done
}
