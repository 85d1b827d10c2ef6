package main

import (
	"context"
	"fmt"
	"net"
	"raftkv/internal/web"
	"syscall"
	"time"
)

// The connections between nodes that are ours to set up: those that the peer
// listener accepts, and those of peerClient.

// Limits of the connections of peerClient. One that was cut must not be kept,
// nor waited on.
const (
	peerDialLimit = 2 * time.Second
	peerUnacked   = 2 * time.Second  // of what the peer's kernel has not acknowledged
	peerIdleLimit = 10 * time.Second // of a connection that is kept
)

// newPeerDialer makes the dialer of peerClient. Keep-alives find out that a peer
// is gone which owes an answer.
func newPeerDialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         peerDialLimit,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: peerUnacked, Interval: peerUnacked, Count: 2},
		Control: func(_, _ string, c syscall.RawConn) error {
			return limitUnackedRaw(c, peerUnacked)
		},
	}
}

// connOf returns the connection on which a request came; nil if listen did not
// accept it.
func connOf(ctx context.Context) net.Conn {
	if c, ok := ctx.Value(web.ConnKey{}).(*web.HangUpConn); ok {
		return c.Conn
	}
	return nil
}

// limitUnacked ends a connection when the other side's kernel acknowledges
// nothing of what was written to it for as long as limit, where the system can.
func limitUnacked(c net.Conn, limit time.Duration) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is no connection of the system", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	return limitUnackedRaw(raw, limit)
}
