package walroom

import (
	"fmt"
	"raftkv/internal/durable"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

const (
	// segmentShare is the part of a small disk that a segment of the log is at
	// most; two are there at any time.
	segmentShare = 8
	LeastSegment = 1 << 20 // bytes; segments are not made smaller than this
	SegmentUnit  = 4 << 10 // bytes; smaller segments than usual are a multiple of it
	// FirstStartRoom is what a first start takes beside the log's first segment.
	FirstStartRoom = 1 << 20
)

// FitSegments makes the log's segments smaller when the data directory is on a
// disk for which the usual 64 MB are too large. That is a setting of the process, so
// it is made where a process has one data directory: by main, and by the commands
// that make a directory. Segments that are there keep their size.
func FitSegments(log *zap.Logger, dir string) {
	d, err := durable.DiskOf(dir)
	if err != nil {
		return
	}
	if size := SegmentSizeOn(d.Total, wal.SegmentSizeBytes); size < wal.SegmentSizeBytes {
		log.Info("the data directory is on a small disk: the log is allocated in smaller pieces",
			zap.Int64("disk", d.Total), zap.Int64("piece", size))
		wal.SegmentSizeBytes = size
	}
}

// SegmentSizeOn is the size of segments on a disk of some size.
func SegmentSizeOn(total, usual int64) int64 {
	return min(usual, max(LeastSegment, total/segmentShare/SegmentUnit*SegmentUnit))
}

// CheckFirstRoom refuses a first start for which the disk has no room, before
// anybody has been asked to take this node in. measure is durable.DiskOf; a disk that
// cannot be measured will say so itself.
func CheckFirstRoom(dir string, measure func(string) (durable.Disk, error)) error {
	d, err := measure(dir)
	if least := wal.SegmentSizeBytes + FirstStartRoom; err == nil && d.Free < least {
		return fmt.Errorf("the first start takes %d MiB in data directory %s, and its disk has %d MiB free: free some, and start again; nothing was changed",
			(least+1<<20-1)>>20, dir, d.Free>>20)
	}
	return nil
}
