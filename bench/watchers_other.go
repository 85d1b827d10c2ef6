//go:build !linux

package main

import (
	"context"
	"errors"
	"net"
)

func openStreams(context.Context, int, *audience, marker, func(int) (net.Conn, []byte, error)) (watching, error) {
	return nil, errors.ErrUnsupported
}
