package main

import (
	"context"
	"sync"
	"time"
)

// markInterval is how far the mark may lag behind the log. Writing it after
// every append would double the fsyncs; at this pace it costs nothing, and
// what it cannot vouch for is the log of the last tenth of a second.
const markInterval = 100 * time.Millisecond

// markKeeper keeps the high-water mark behind the log, never ahead of it.
//
// Invariant: the mark on disk never claims more than the WAL has synced. So it
// is raised some time after an append, and lowered before entries that it
// covers are overwritten.
type markKeeper struct {
	kick chan struct{}

	mu     sync.Mutex
	file   *markFile
	disk   mark // as written
	target mark // as it may be written
}

// openMarkKeeper opens the mark of a data directory.
func openMarkKeeper(path string) (*markKeeper, mark, error) {
	f, m, err := openMark(path)
	if err != nil {
		return nil, mark{}, err
	}
	return &markKeeper{file: f, disk: m, target: m, kick: make(chan struct{}, 1)}, m, nil
}

// start records the beginning of a new life: its boot number is used from
// here on, and never again.
func (k *markKeeper) start(m mark) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disk, k.target = m, m
	return k.file.writeBoth(m)
}

// raise says how far the log is durable now. The mark follows later.
func (k *markKeeper) raise(index, term, vote uint64) {
	k.mu.Lock()
	k.target.Index, k.target.Term, k.target.Vote = index, term, vote
	k.mu.Unlock()
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// lower is called before the log is written from index+1 on. It returns once
// the mark no longer covers what may be overwritten.
func (k *markKeeper) lower(index uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.target.Index = min(k.target.Index, index)
	if k.disk.Index <= index {
		return nil
	}
	return k.write()
}

// write brings the mark on disk to the target. The caller holds mu.
func (k *markKeeper) write() error {
	if k.disk == k.target {
		return nil
	}
	k.disk = k.target
	return k.file.write(k.target)
}

// run writes the mark, at most once an interval, until ctx ends.
func (k *markKeeper) run(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-k.kick:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
		k.mu.Lock()
		err := k.write()
		k.mu.Unlock()
		if err != nil {
			return err
		}
		pause.Reset(markInterval)
	}
}

// close writes the mark a last time.
func (k *markKeeper) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.write()
	if cerr := k.file.close(); err == nil {
		err = cerr
	}
	return err
}
