package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// listenError says why a node cannot listen, and what to do about it.
func listenError(addr string, err error) error {
	var dns *net.DNSError
	var hint string
	switch {
	case errors.As(err, &dns):
		hint = "the name has no address here; is it right, and can it be resolved? --listen-peer and --host also take an IP address"
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "is another process using the port?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine has no such address; --listen-peer says where the peer server listens, --host where the client API does"
	case errors.Is(err, os.ErrPermission):
		hint = "this user may not; is it a port below 1024?"
	default:
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return fmt.Errorf("cannot listen on %s: %w; %s", addr, err, hint)
}
