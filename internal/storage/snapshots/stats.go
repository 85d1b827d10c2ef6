package snapshots

import (
	"io/fs"
	"raftkv/internal/meter"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats is what a node tells of its snapshots, for anyone to read.
type Stats struct {
	At    atomic.Int64 // when the newest was written, by its file; Unix nanoseconds, 0: there is none
	Bytes atomic.Int64 // its size
	Took  atomic.Int64 // nanoseconds that this node's last own one took to write; 0: none in this life

	Written, Sent, Installed atomic.Uint64 // in this life
	unwritten, Unsent        atomic.Uint64 // attempts that failed
}

// Newest notes the file of the snapshot that counts now.
func (s *Stats) Newest(info fs.FileInfo) {
	s.At.Store(info.ModTime().UnixNano())
	s.Bytes.Store(info.Size())
}

// Wrote notes how the writing of a snapshot ended that began then.
func (s *Stats) Wrote(began time.Time, err error) {
	if err != nil {
		s.unwritten.Add(1)
		return
	}
	s.Took.Store(max(1, int64(time.Since(began))))
}

// Register adds what there is to count.
func (s *Stats) Register(reg prometheus.Registerer, lost func() uint64) {
	meter.Gauge(reg, "raftkv_snapshot_timestamp_seconds", "When the newest snapshot was written, 0 if there is none.",
		func() float64 { return float64(s.At.Load()) / 1e9 })
	meter.Gauge(reg, "raftkv_snapshot_bytes", "Size of the newest snapshot.", func() float64 { return float64(s.Bytes.Load()) })
	meter.Gauge(reg, "raftkv_snapshot_duration_seconds", "How long this node's last own snapshot took to write, 0 if it wrote none since its start.",
		func() float64 { return time.Duration(s.Took.Load()).Seconds() })
	meter.Counters(reg, "raftkv_snapshots_total", "Snapshots written by this node, sent to another, or installed from another.", "what",
		map[string]func() uint64{"written": s.Written.Load, "sent": s.Sent.Load, "installed": s.Installed.Load})
	meter.Counters(reg, "raftkv_snapshot_failures_total", "Snapshots that could not be written, not be sent, or not be stored when another node sent them.",
		"what", map[string]func() uint64{"write": s.unwritten.Load, "send": s.Unsent.Load, "store": lost})
}
