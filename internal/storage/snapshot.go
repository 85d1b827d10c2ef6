package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/storage/snapshots"
	"time"

	"go.uber.org/zap"
)

// WriteSnapshots writes states to disk as they come, one at a time, and lets go
// of writer when it is done with one. Between them it removes the files that a
// newer snapshot has made superfluous. Neither has to succeed for the node to go
// on: what fails is done again after a rest (package snapshots), a
// snapshot by Redo.
func (s *Storage) WriteSnapshots(ctx context.Context, states <-chan *state.State, writer <-chan struct{}, writtenC chan<- *state.State) error {
	newer := s.Recorded.Channel(s.SnapIndex.Load() + 1)
	var cleanAgain, rested <-chan time.Time
	clean := func() {
		index := s.SnapIndex.Load()
		newer, cleanAgain = s.Recorded.Channel(index+1), nil
		if err := s.clean(ctx, index); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot remove files that are of no more use; trying again", zap.Error(err))
			cleanAgain = time.After(snapshots.MostRest)
		}
	}
	for {
		select {
		case <-newer:
			clean()
		case <-s.Snaps.More():
			clean()
		case <-cleanAgain:
			clean()
		case st := <-states:
			err := s.writeSnapshot(ctx, st, writtenC)
			switch {
			case errors.Is(err, problem.ErrMemory):
				return err
			case err == nil:
				<-writer
			default:
				rested = time.After(s.Trouble.Failed(err, st.Index))
				s.Tail.Writing.Store(s.SnapIndex.Load())
			}
		case <-rested:
			rested = nil
			<-writer
			s.Redo()
		case <-ctx.Done():
			return nil
		}
	}
}

// writeSnapshot writes a state, and passes it on when its file is complete.
func (s *Storage) writeSnapshot(ctx context.Context, st *state.State, writtenC chan<- *state.State) error {
	if st.Index <= s.SnapIndex.Load() {
		return nil // overtaken by one from the leader
	}
	t := &s.Tail
	t.Writing.Store(st.Index)
	t.Grown.Store(0)
	t.Awaited.Store(false) // who waits asks again, at each heartbeat or tick
	pace := func() time.Duration { return t.snapshotPace(st.Bytes) }
	began := time.Now()
	overtaken := func() bool { return st.Index <= s.SnapIndex.Load() }
	err := s.Trouble.Check(s.Dir, st.Bytes)
	if err == nil {
		err = durable.WriteFile(StatePath(s.Dir, st.Term, st.Index), func(w io.Writer) error {
			w = s.Trouble.Bounded(s.Dir, w)
			return state.Write(snapshots.NewRestingWriter(ctx, w, pace, overtaken), st)
		})
	}
	if ctx.Err() != nil {
		return nil // stopping: the half-written file is gone again
	}
	s.Snapshots.Wrote(began, err)
	if errors.Is(err, snapshots.ErrOvertaken) {
		return nil // it must not keep the former state in memory
	}
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	select {
	case writtenC <- st:
	case <-ctx.Done():
	}
	return nil
}

const (
	paceRest    = 8 // times as long as the work
	paceAwaited = 1 // the same, if a follower can go on only with this snapshot
)

// snapshotPace is how many times as long as it works the writing of a state of
// that size is to rest.
func (t *logTail) snapshotPace(size uint64) time.Duration {
	switch {
	case t.Grown.Load() > int64(size/4): // which stays in the log until the next snapshot
		return 0
	case t.Awaited.Load():
		return paceAwaited
	}
	return paceRest
}
