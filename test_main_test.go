package main

import "go.etcd.io/etcd/server/v3/storage/wal"

// A segment of the log is 64 MB long. Tests make do with less, so that a few
// writes rotate it. Set here, before any test runs, and nowhere else.
func init() { wal.SegmentSizeBytes = 1 << 20 }
