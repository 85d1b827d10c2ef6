package walfile

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// ErrCannotFollow: what comes later in a log does not agree with what was taken for
// settled.
var ErrCannotFollow = errors.New("the log cannot be read in one go")

// follower passes on the entries of a log while it is read. What is committed is never
// overwritten (thesis §3.6), so it need not wait for the end of the log. Until an entry
// is known to be committed it waits here, as it did in the memory of the node that
// wrote it.
type follower struct {
	from    uint64          // the index of the snapshot
	done    uint64          // the last entry that was passed on
	waiting []*raftpb.Entry // those behind it, without a gap
	take    func(*raftpb.Entry) error
}

// entry takes in the next entry of the log, which overwrites what is at and behind its
// index.
func (f *follower) entry(e *raftpb.Entry) error {
	if f == nil {
		return nil
	}
	index := e.GetIndex()
	switch {
	case index <= f.from:
		f.waiting = nil
		return nil
	case index <= f.done:
		return fmt.Errorf("%w: entry %d was committed, and is written again", ErrCannotFollow, index)
	}
	if at := index - f.done - 1; at <= uint64(len(f.waiting)) {
		f.waiting = append(f.waiting[:at], e)
		return nil
	}
	return fmt.Errorf("%w: entry %d follows entry %d", ErrCannotFollow, index, f.done+uint64(len(f.waiting)))
}

// committed passes on what is committed.
func (f *follower) committed(upTo uint64) error {
	if f == nil {
		return nil
	}
	for len(f.waiting) > 0 && f.waiting[0].GetIndex() <= upTo {
		e := f.waiting[0]
		f.waiting[0] = nil
		f.waiting, f.done = f.waiting[1:], e.GetIndex()
		if err := f.take(e); err != nil {
			return err
		}
	}
	return nil
}

// clear forgets what waits: a snapshot has taken the log's place.
func (f *follower) clear() {
	if f != nil {
		f.waiting = nil
	}
}
