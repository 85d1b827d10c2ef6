//go:build unix

package testkit

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// ServiceManager listens as a service manager does (sd_notify(3)), on a real socket. It
// returns the socket's name for NOTIFY_SOCKET, and a function that takes what has come
// since it was called last, a line each. That function waits for nothing, so it can be
// called in a bubble, too.
func ServiceManager(t testing.TB) (socket string, take func() []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd") // the name of a socket must be short
	Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	raw, err := conn.SyscallConn()
	Must(t, err)
	return socket, func() (lines []string) {
		message := make([]byte, 4096)
		for n := 0; n >= 0; {
			Must(t, raw.Control(func(fd uintptr) {
				if n, _, err = syscall.Recvfrom(int(fd), message, syscall.MSG_DONTWAIT); err != nil {
					n = -1
				}
			}))
			if n > 0 {
				lines = append(lines, strings.Split(string(message[:n]), "\n")...)
			}
		}
		return lines
	}
}
