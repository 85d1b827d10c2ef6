// Package listening answers: how is a port opened, and how long may what comes there take?
package listening

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// keepAlive is after how long the system asks a silent connection for a sign of life.
const keepAlive = 30 * time.Second

// Open opens addr, host and port. An error says what to do about it.
func Open(addr string) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: keepAlive}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, explain(addr, err)
	}
	return l.(*net.TCPListener), nil
}

// explain says why a node cannot listen, and what to do about it.
func explain(addr string, err error) error {
	var dns *net.DNSError
	var hint string
	switch {
	case errors.As(err, &dns):
		hint = "the name has no address here; is it right, and can it be resolved? --listen-peer, --listen-metrics and --host also take an IP address"
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "is another process using the port?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine has no such address; --listen-peer says where the peer server listens, --host where the client API does, " +
			"--listen-metrics where metrics are served"
	case errors.Is(err, os.ErrPermission):
		hint = "this user may not; is it a port below 1024?"
	default:
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return fmt.Errorf("cannot listen on %s: %w; %s", addr, err, hint)
}
