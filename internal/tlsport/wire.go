package tlsport

import (
	"errors"
	"net"
	"raftkv/internal/front/nowait"
	"raftkv/internal/web"
	"sync"
	"syscall"
	"time"
)

// wire is what a tls.Conn reads from and writes to: the connection below it. It can hold
// what is written, which is encrypted, until there is room for it (Hold). So whoever
// answers many connections never waits for one of them.
type wire struct {
	net.Conn
	begun  []byte // was read before, and comes first
	client *web.Client

	mu      sync.Mutex
	holds   bool
	held    []byte
	flushes bool   // somebody writes what was held, and may wait for the client
	gone    bool   // it was closed
	closed  func() // called once
}

// maxHeld is how much may be held. An answer is held in pieces of half of that. But what
// crypto/tls has to say by itself is held as well: a client can ask for new keys sixteen
// times with each byte that it sends.
const maxHeld = 128 << 10

// errHeld is the end of a client that has more be said than it is asked for.
var errHeld = errors.New("a client has asked for too much while nothing was written to it")

// keptHeld is how large the buffer of what is held may be between two answers.
const keptHeld = 4 << 10

// Client is who is at the other end.
func (w *wire) Client() *web.Client { return w.client }

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.begun) > 0 {
		n := copy(p, w.begun)
		w.begun = w.begun[n:]
		return n, nil
	}
	return w.Conn.Read(p)
}

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.holds {
		defer w.mu.Unlock()
		if len(w.held)+len(p) > maxHeld {
			_ = w.Conn.Close() // crypto/tls would go on reading
			return 0, errHeld
		}
		w.held = append(w.held, p...)
		return len(p), nil
	}
	w.mu.Unlock()
	return w.Conn.Write(p)
}

// SetWriteDeadline implements net.Conn. What is held is written without waiting, or by
// those who have a time limit of their own: tls.Conn sets one when it is closed.
func (w *wire) SetWriteDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holds {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

// Close implements net.Conn. What is held goes out as far as there is room: it is, mostly,
// the word that nothing more comes. It does not go out beside Flush, which may wait for the
// client: one can try to write only where nobody else writes.
func (w *wire) Close() error {
	w.mu.Lock()
	if raw, err := w.SyscallConn(); err == nil && len(w.held) > 0 && !w.flushes {
		_, _ = nowait.NewWriter().Try(raw, w.held) // the connection ends in any case
	}
	w.held = nil
	first := !w.gone
	w.gone = true
	w.mu.Unlock()
	err := w.Conn.Close()
	if first {
		w.closed()
	}
	return err
}

// SyscallConn is for options of the connection.
func (w *wire) SyscallConn() (syscall.RawConn, error) {
	if sys, ok := w.Conn.(syscall.Conn); ok {
		return sys.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Hold has what is written to the connection wait for Send or Flush, or, with false, go
// out at once again. It is called while nobody writes.
func (c *Conn) Hold(holds bool) {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	c.wire.holds = holds
}

// Send sends what is held, as far as try takes it, which does not wait. It reports
// whether anything is left.
func (c *Conn) Send(try func([]byte) (int, error)) (left bool, err error) {
	w := c.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := try(w.held)
	w.held = w.held[:copy(w.held, w.held[n:])]
	if len(w.held) == 0 && cap(w.held) > keptHeld {
		w.held = nil
	}
	return len(w.held) > 0, err
}

// Flush sends what is held, and waits for the client with it. Nobody may write meanwhile.
func (c *Conn) Flush() error {
	w := c.wire
	w.mu.Lock()
	held := w.held
	w.held = nil
	w.flushes = len(held) > 0
	w.mu.Unlock()
	if len(held) == 0 {
		return nil
	}
	_, err := w.Conn.Write(held)
	w.mu.Lock()
	w.flushes = false
	w.mu.Unlock()
	return err
}
