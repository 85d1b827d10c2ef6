// Package watermark answers: up to which entry was this log once durable? The mark
// is a small file of two slots in which that index is kept, so that a start can
// tell the torn end of a log, which a crash leaves, from acknowledged entries that
// are lost.
package watermark

import (
	"context"
	"sync"
	"time"
)

// markInterval is how far the mark may lag behind the log. Writing it after
// every append would double the fsyncs; at this pace it costs nothing, and
// what it cannot vouch for is the log of the last tenth of a second.
const markInterval = 100 * time.Millisecond

// Keeper keeps the high-water mark behind the log, never ahead of it.
//
// Invariant: the mark on disk never claims more than the WAL has synced. So it
// is raised some time after an append, and lowered before entries that it
// covers are overwritten.
type Keeper struct {
	kick chan struct{}

	Mu     sync.Mutex // guards what follows
	File   *File
	disk   Mark // as written
	target Mark // as it may be written
}

// Open opens the mark of a data directory.
func Open(path string) (*Keeper, Mark, error) {
	f, m, err := OpenFile(path)
	if err != nil {
		return nil, Mark{}, err
	}
	return &Keeper{File: f, disk: m, target: m, kick: make(chan struct{}, 1)}, m, nil
}

// Start records the beginning of a new life: its boot number is used from
// here on, and never again.
func (k *Keeper) Start(m Mark) error {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	k.disk, k.target = m, m
	return k.File.writeBoth(m)
}

// Raise says how far the log is durable now. The mark follows later.
func (k *Keeper) Raise(index, term, vote uint64) {
	k.Mu.Lock()
	k.target.Index, k.target.Term, k.target.Vote = index, term, vote
	k.Mu.Unlock()
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Lower is called before the log is written from index+1 on. It returns once
// the mark no longer covers what may be overwritten.
func (k *Keeper) Lower(index uint64) error {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	k.target.Index = min(k.target.Index, index)
	if k.disk.Index <= index {
		return nil
	}
	return k.Write()
}

// Write brings the mark on disk to the target. The caller holds mu.
func (k *Keeper) Write() error {
	if k.disk == k.target {
		return nil
	}
	k.disk = k.target
	return k.File.write(k.target)
}

// Run writes the mark, at most once an interval, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
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
		k.Mu.Lock()
		err := k.Write()
		k.Mu.Unlock()
		if err != nil {
			return err
		}
		pause.Reset(markInterval)
	}
}

// Close writes the mark a last time.
func (k *Keeper) Close() error {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	err := k.Write()
	if cerr := k.File.Close(); err == nil {
		err = cerr
	}
	return err
}
