package main

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// How a node stops although something does not end: a call into a disk that does
// not answer cannot be broken off, only left behind.

// stopReserve is the part of stopLimit that is kept for the data directory, when
// that is known to be slow.
const stopReserve = time.Second

// errLeftBehind: nothing that was acknowledged depends on what is left.
var errLeftBehind = errors.New("stopped, but left a write or a sync in the data directory behind, " +
	"which its disk has not answered; nothing that was acknowledged depended on it")

// awaitEnd waits, up to a limit, until all of the node's goroutines have ended
// and its log is closed. What remains after that ends with the process, which
// keeps the lock of the data directory until then.
func (s *server) awaitEnd(limit time.Duration) error {
	ended := make(chan error, 1)
	go func() {
		err := s.group.Wait()
		s.node.transport.Stop() // not before: the apply loop may be adding a peer
		ended <- s.closeStorage(err)
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case err := <-ended:
		return err
	case <-late.C:
	}
	s.log.Error(errLeftBehind.Error(), zap.String("data-dir", s.cfg.DataDir))
	if cause := context.Cause(s.life); !errors.Is(cause, context.Canceled) {
		return errors.Join(cause, errLeftBehind)
	}
	return errLeftBehind
}

// stopWithin runs a node. Once it serves it stops by itself in time, but while it
// starts it may be within a call into a disk that does not answer.
func stopWithin(ctx context.Context, limit time.Duration, run func(serving func()) error) error {
	ended, serving := make(chan error, 1), make(chan struct{})
	go func() { ended <- run(func() { close(serving) }) }()
	select {
	case err := <-ended:
		return err
	case <-serving:
		return <-ended
	case <-ctx.Done():
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case err := <-ended:
		return err
	case <-serving: // it is about to notice
		return <-ended
	case <-late.C:
		return errLeftBehind
	}
}
