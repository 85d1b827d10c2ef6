package main

import (
	"io/fs"
	"sync/atomic"
	"time"
)

// snapshotStats is what a node tells of its snapshots, for anyone to read.
type snapshotStats struct {
	at    atomic.Int64 // when the newest was written, by its file; Unix nanoseconds, 0: there is none
	bytes atomic.Int64 // its size
	took  atomic.Int64 // nanoseconds that this node's last own one took to write; 0: none in this life

	written, sent, installed atomic.Uint64 // in this life
	unwritten, unsent        atomic.Uint64 // attempts that failed
}

// newest notes the file of the snapshot that counts now.
func (s *snapshotStats) newest(info fs.FileInfo) {
	s.at.Store(info.ModTime().UnixNano())
	s.bytes.Store(info.Size())
}

// wrote notes how the writing of a snapshot ended that began then.
func (s *snapshotStats) wrote(began time.Time, err error) {
	if err != nil {
		s.unwritten.Add(1)
		return
	}
	s.took.Store(max(1, int64(time.Since(began))))
}
