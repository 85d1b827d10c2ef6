package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// streams are answers that do not end, all read by one thread. With a goroutine for each, a
// client would take as much of the processors as the server that it measures: the runtime
// wakes a goroutine for each arrival, and reads once more to see that there is no more.
type streams struct {
	poll    int // file of epoll
	all     []*polled
	stopped atomic.Bool
	running sync.WaitGroup
	failed  atomic.Pointer[error]
}

// polled is one of them.
type polled struct {
	stream
	fd   int // -1: not open
	sees *sightings
}

// openStreams opens n streams, each by open, and reads them until they are closed.
func openStreams(ctx context.Context, n int, a *audience, m marker, open func(i int) (conn net.Conn, body []byte, err error)) (watching, error) {
	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	w := &streams{poll: poll, all: make([]*polled, n)}
	for i := range w.all {
		w.all[i] = &polled{stream: stream{marker: m}, fd: -1, sees: a.shardOf(i)}
	}
	err = openTogether(ctx, n, func(i int) error {
		conn, body, err := open(i)
		if err != nil {
			return err
		}
		if err := w.all[i].take(conn); err != nil {
			return err
		}
		if err := w.all[i].arrived(body, nil, time.Now()); err != nil {
			return err
		}
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)}
		return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(poll, syscall.EPOLL_CTL_ADD, w.all[i].fd, &event))
	})
	if err != nil {
		w.close()
		return nil, err
	}
	w.running.Go(w.run)
	return w, nil
}

// take takes the connection out of the hands of the runtime, which would wake for it, too.
func (p *polled) take(conn net.Conn) (err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if p.fd, dupErr = syscall.Dup(int(fd)); dupErr != nil {
			p.fd = -1
			return
		}
		syscall.CloseOnExec(p.fd)
	})
	return errors.Join(err, dupErr, conn.Close())
}

// run reads whatever has come, until stopped.
func (w *streams) run() {
	const wait = 100 // ms: how late it sees that it is to stop
	events := make([]syscall.EpollEvent, 512)
	buf := make([]byte, 256<<10)
	numbers := make([]uint32, 0, 4096)
	for !w.stopped.Load() {
		n, err := syscall.EpollWait(w.poll, events, wait)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			w.fail(os.NewSyscallError("epoll_wait", err))
			return
		}
		for _, e := range events[:max(0, n)] {
			if err := w.all[e.Fd].read(buf, numbers); err != nil {
				w.fail(fmt.Errorf("watch %d: %w", e.Fd, err))
				return
			}
		}
	}
}

// read reads once: what is left, epoll tells of again.
func (p *polled) read(buf []byte, numbers []uint32) error {
	n, err := syscall.Read(p.fd, buf)
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("read", err)
	case n == 0:
		return errStreamEnded
	}
	return p.arrived(buf[:n], numbers[:0], time.Now())
}

// arrived notes what has come.
func (p *polled) arrived(body []byte, numbers []uint32, now time.Time) error {
	numbers, err := p.feed(body, numbers)
	return errors.Join(p.sees.see(now, numbers), err)
}

func (w *streams) fail(err error) { w.failed.CompareAndSwap(nil, &err) }

func (w *streams) lost() error {
	if err := w.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (w *streams) close() {
	w.stopped.Store(true)
	w.running.Wait()
	for _, p := range w.all {
		if p.fd >= 0 {
			_ = syscall.Close(p.fd) // nothing more is wanted of it
		}
	}
	_ = syscall.Close(w.poll) // likewise
}
