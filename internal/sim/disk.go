package sim

import (
	"raftkv/internal/storage"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Hang is how slow a disk is on which no sync returns.
const Hang = time.Duration(-1)

// Disk is the disk of a node: as slow as it is told to be at each sync of the
// log. The zero value takes no time.
type Disk struct {
	mu      sync.Mutex
	slow    time.Duration
	changed chan struct{} // closed when slow changes
}

// Set makes the disk as slow as that from now on, for syncs under way too.
func (d *Disk) Set(slow time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = slow
	if d.changed != nil {
		close(d.changed)
	}
	d.changed = make(chan struct{})
}

// sync takes its time.
func (d *Disk) sync() {
	began := time.Now()
	for {
		d.mu.Lock()
		slow, changed := d.slow, d.changed
		d.mu.Unlock()
		var done <-chan time.Time
		switch {
		case slow != Hang && time.Since(began) >= slow:
			return
		case slow != Hang:
			done = time.After(slow - time.Since(began))
		}
		select {
		case <-changed:
		case <-done:
		}
	}
}

// Under returns a log on that disk.
func (d *Disk) Under(log storage.WriteAheadLog) storage.WriteAheadLog {
	if d.changed == nil {
		d.Set(0)
	}
	return slowLog{log, d}
}

type slowLog struct {
	storage.WriteAheadLog
	disk *Disk
}

// Save takes the disk's time, if there is something to save.
func (l slowLog) Save(hard *raftpb.HardState, entries []*raftpb.Entry) error {
	if !raft.IsEmptyHardState(hard) || len(entries) > 0 {
		l.disk.sync()
	}
	return l.WriteAheadLog.Save(hard, entries)
}

// SaveSnapshot takes the disk's time.
func (l slowLog) SaveSnapshot(s *walpb.Snapshot) error {
	l.disk.sync()
	return l.WriteAheadLog.SaveSnapshot(s)
}
