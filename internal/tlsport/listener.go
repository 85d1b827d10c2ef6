package tlsport

import (
	"errors"
	"io"
	"net"
	"raftkv/internal/web"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Listener secures the connections of another listener. Those that it returns are ready:
// a *tls.Conn where HTTP/2 was agreed on, a *Conn, or, where the port takes them, one that
// is not secured.
type Listener struct {
	net.Listener
	port  *Port
	limit time.Duration // for a first byte and a handshake
	ready chan net.Conn
	done  chan struct{}
	once  sync.Once
	err   error // why accepting has ended; read after done is closed
}

// acceptAgain is the time between two tries to accept a connection.
const acceptAgain = 100 * time.Millisecond

// plainAnswer is for who speaks plain HTTP to a port that takes TLS alone.
const plainAnswer = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
	"this port takes TLS alone: use https\n"

// Listen secures the connections of l, which have so long for the first byte, and again for
// the handshake.
func (p *Port) Listen(l net.Listener, limit time.Duration) *Listener {
	s := &Listener{Listener: l, port: p, limit: limit, ready: make(chan net.Conn), done: make(chan struct{})}
	go s.take()
	return s
}

// take takes connections until there are no more.
func (l *Listener) take() {
	for {
		nc, err := l.Listener.Accept()
		if temporary, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); ok && temporary.Temporary() { // out of file descriptors, say: net/http goes on as well
			select {
			case <-time.After(acceptAgain):
				continue
			case <-l.done:
				return
			}
		}
		if err != nil {
			l.end(err)
			return
		}
		go l.secure(nc)
	}
}

func (l *Listener) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.done)
	})
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.ready:
		return nc, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close implements net.Listener. Handshakes that are under way come to nothing.
func (l *Listener) Close() error {
	l.end(net.ErrClosed)
	return l.Listener.Close()
}

// secure finds out what a connection speaks, and makes the handshake.
func (l *Listener) secure(nc net.Conn) {
	defer func() {
		// Certificates come from anybody, and what looks at them had faults before. net/http
		// would end the connection alone, too.
		if fault := recover(); fault != nil {
			l.port.Log.Error("a handshake has met a fault in the program; its connection ends", zap.Any("panic", fault), zap.StackSkip("stack", 2))
			_ = nc.Close() // the fault is told already
		}
	}()
	ready, err := l.handshake(nc)
	if err != nil {
		_ = nc.Close() // the port has said so, if there was anything to say
		return
	}
	select {
	case l.ready <- ready:
	case <-l.done:
		_ = ready.Close() // the node is stopping
	}
}

func (l *Listener) handshake(nc net.Conn) (ready net.Conn, err error) {
	place := l.port.enter(&wire{Conn: nc, closed: func() {}}) // who says nothing is bounded, too
	first := make([]byte, 1)
	err = nc.SetDeadline(time.Now().Add(l.limit))
	if err == nil {
		_, err = io.ReadFull(nc, first)
	}
	if !l.port.leave(place) && err == nil {
		err = errEvicted
	}
	if err != nil {
		return nil, err
	}
	if !IsTLS(first[0]) {
		if err := l.port.NotTLS(nc); err != nil {
			_, werr := io.WriteString(nc, plainAnswer) // within the limit that is set
			return nil, errors.Join(err, werr)
		}
		client := web.NewClient(nc.RemoteAddr().String(), false, nil, func() { _ = nc.Close() })
		return &wire{Conn: nc, begun: first, client: client, closed: func() {}}, nc.SetDeadline(time.Time{})
	}
	c, err := l.port.Handshake(nc, first)
	if err != nil {
		return nil, err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		_ = c.wire.Close() // so that the port forgets it
		return nil, err
	}
	if c.IsHTTP2() {
		return c.Conn, nil
	}
	return c, nil
}
