//go:build unix

package nowait

import (
	"errors"
	"net"
	"syscall"
)

// RawConn returns what writeOnce needs of a connection; nil if it is none of the
// system's.
func RawConn(nc net.Conn) syscall.RawConn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // it is closed
	}
	return raw
}

// writeOnce writes what fits into the connection's buffer. Go's sockets never block.
func writeOnce(fd uintptr, p []byte) (n int, err error) {
	n, err = syscall.Write(int(fd), p)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return 0, nil
	}
	return max(n, 0), err
}
