package web

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// LimitUnsent bounds what the system takes of this connection beside what is under way to
// the client: without it the system's buffer of one that does not read grows to 4 MiB. What is
// under way is not bounded, so that a client far away is served as fast.
func (c *HangUpConn) LimitUnsent(bytes int) error {
	sys, ok := c.Conn.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return err
	}
	var option error
	err = raw.Control(func(fd uintptr) {
		option = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	})
	return errors.Join(err, option)
}
