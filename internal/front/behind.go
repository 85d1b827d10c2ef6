package front

import (
	"net"
	"sync"
)

// Behind is where a net/http server takes the connections that the front gives it.
type Behind struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewBehind returns a listener at an address on which connections come by Give.
func NewBehind(addr net.Addr) *Behind {
	return &Behind{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Give passes a connection on, or closes it where nobody takes any.
func (h *Behind) Give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close() // the node is stopping
	}
}

// Accept implements net.Listener.
func (h *Behind) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *Behind) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *Behind) Addr() net.Addr { return h.addr }
