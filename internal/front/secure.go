package front

import (
	"bytes"
	"fmt"
	"net"
	"raftkv/internal/front/plain"
	"raftkv/internal/problem"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"time"
)

// How connections are secured, and how one writes to them.

const (
	// sealedPiece is how much of an answer is encrypted before it is written.
	sealedPiece = 64 << 10
	// farewell is how long a client that does not speak TLS has to read why that is wrong.
	farewell = time.Second
)

// errNotSecured is answered where TLS was not spoken.
var errNotSecured = fmt.Errorf("%w: this port speaks TLS: use https://", problem.ErrBadRequest)

// secure makes the handshake of a connection, if that begins with one, and finds out who is
// at the other end. Not plain.Yes: the connection is to be handed over. False: it ends.
func (c *conn) secure() (why plain.Reason, ok bool) {
	c.client = web.NewClient(c.nc.RemoteAddr().String(), false, nil, func() {}) // there is no certificate
	p := c.srv.port
	if p == nil {
		return plain.Yes, true
	}
	for c.n == 0 {
		if err := c.fill(); err != nil || c.ended {
			return plain.Yes, false
		}
	}
	if !c.clock.enter(again, c.srv.until(c.srv.limits.Head)) {
		return plain.Yes, false
	}
	if !tlsport.IsTLS(c.buf[0]) {
		if p.NotTLS(c.nc) != nil {
			c.refuse()
			return plain.Yes, false
		}
		return plain.Yes, true
	}
	sealed, err := p.Handshake(c.nc, bytes.Clone(c.buf[:c.n]))
	if err != nil {
		return plain.Yes, false // the port has said so
	}
	c.mu.Lock()
	c.nc, c.sealed, c.client, c.n = sealed, sealed, sealed.Client(), 0
	c.mu.Unlock()
	if sealed.IsHTTP2() {
		return plain.Version, true
	}
	sealed.Hold(true)
	c.end = c.client.EndBy(c.endExpired)
	return plain.Yes, c.clock.enter(first, c.srv.until(c.srv.limits.Head))
}

// refuse tells a client that does not speak TLS that it has to.
func (c *conn) refuse() {
	c.closing = true
	c.req.Answer.Err = errNotSecured
	out, _ := c.render(nil)
	c.clock.enter(taking, c.srv.until(farewell))
	if _, err := c.nc.Write(out); err != nil {
		return
	}
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	// With something unread, the end of the connection would overtake the answer.
	for err := error(nil); err == nil; {
		_, err = c.nc.Read(c.buf)
	}
}

// put writes, and waits for the client with it.
func (c *conn) put(rest net.Buffers) error {
	if c.sealed == nil {
		_, err := rest.WriteTo(c.nc)
		return err
	}
	held := 0
	for _, b := range rest {
		for len(b) > 0 {
			n := min(len(b), sealedPiece)
			if _, err := c.sealed.Write(b[:n]); err != nil {
				return err
			}
			if held += n; held >= sealedPiece {
				if err := c.sealed.Flush(); err != nil {
					return err
				}
				held = 0
			}
			b = b[n:]
		}
	}
	return c.sealed.Flush()
}

// try writes an answer as far as there is room for it, and returns the rest. It never
// waits for the client.
func (c *conn) try(w *writer, value []byte) (rest net.Buffers, err error) {
	if c.sealed != nil {
		return c.trySealed(w, value)
	}
	sent, err := w.Try(c.raw, w.out)
	if err == nil && sent == len(w.out) && len(value) > 0 {
		var more int
		more, err = w.Try(c.raw, value)
		sent += more
	}
	switch {
	case err != nil:
		return nil, err
	case sent < len(w.out):
		return buffers(bytes.Clone(w.out[sent:]), value), nil
	case sent < len(w.out)+len(value):
		return buffers(value[sent-len(w.out):], nil), nil
	}
	return nil, nil
}

// trySealed is try for a secured connection. A large value its own goroutine encrypts.
func (c *conn) trySealed(w *writer, value []byte) (rest net.Buffers, err error) {
	if _, err := c.sealed.Write(w.out); err != nil {
		return nil, err
	}
	left, err := c.sealed.Send(func(p []byte) (int, error) { return w.Try(c.raw, p) })
	if left || len(value) > 0 {
		rest = net.Buffers{value} // which put writes behind what is held
	}
	return rest, err
}
