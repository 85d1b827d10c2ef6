package peerclient

import (
	"context"
	"fmt"
	"net"
	"raftkv/internal/web"
	"syscall"
	"time"
)

// The connections between nodes that are ours to set up are those that the peer
// listener accepts, and those of Client.

// Limits of the connections of Client. One that was cut must not be kept,
// nor waited on.
const (
	dialLimit = 2 * time.Second
	// Unacked is how long what was sent may stay unacknowledged by the kernel of a peer.
	Unacked   = 2 * time.Second
	idleLimit = 10 * time.Second // of a connection that is kept
)

// NewDialer makes the dialer of Client. Keep-alives find out that a peer
// is gone which owes an answer.
func NewDialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         dialLimit,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: Unacked, Interval: Unacked, Count: 2},
		Control: func(_, _ string, c syscall.RawConn) error {
			return limitRaw(c, Unacked)
		},
	}
}

// ConnOf returns the connection on which a request came; nil if listen did not
// accept it.
func ConnOf(ctx context.Context) net.Conn {
	if c, ok := ctx.Value(web.ConnKey{}).(*web.HangUpConn); ok {
		return c.Conn
	}
	return nil
}

// LimitUnacked ends a connection when the other side's kernel acknowledges
// nothing of what was written to it for as long as limit, where the system can.
func LimitUnacked(c net.Conn, limit time.Duration) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is no connection of the system", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	return limitRaw(raw, limit)
}
