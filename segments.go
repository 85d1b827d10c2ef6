package main

import (
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

const (
	// segmentShare is the part of a small disk that a segment of the log is at
	// most; two are there at any time.
	segmentShare = 8
	leastSegment = 1 << 20
	segmentUnit  = 4 << 10
)

// fitSegments makes the log's segments smaller when the data directory is on a
// disk for which the usual 64 MB are too large. That is a setting of the process:
// only main makes it. Segments that are there keep their size.
func fitSegments(log *zap.Logger, dir string) {
	d, err := diskOf(dir)
	if err != nil {
		return
	}
	if size := segmentSizeOn(d.total, wal.SegmentSizeBytes); size < wal.SegmentSizeBytes {
		log.Info("the data directory is on a small disk: the log is allocated in smaller pieces",
			zap.Int64("disk", d.total), zap.Int64("piece", size))
		wal.SegmentSizeBytes = size
	}
}

// segmentSizeOn is the size of segments on a disk of some size.
func segmentSizeOn(total, usual int64) int64 {
	return min(usual, max(leastSegment, total/segmentShare/segmentUnit*segmentUnit))
}
