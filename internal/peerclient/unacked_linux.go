package peerclient

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limitRaw sets how long what was sent may stay unacknowledged. Linux
// counts the time in which the other side has no room as well.
func limitRaw(c syscall.RawConn, limit time.Duration) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	if cerr != nil {
		return cerr
	}
	return os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", err)
}
