package storage

import (
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// segmentSize is how long a segment of the log is when it is not a test's.
var segmentSize = wal.SegmentSizeBytes

// A segment of the log is 64 MB long. Tests make do with less, so that a few
// writes rotate it. Set here, before any test runs, and nowhere else but in a
// benchmark, which runs alone.
func init() { wal.SegmentSizeBytes = 1 << 20 }
