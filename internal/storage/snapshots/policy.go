// Package snapshots answers: when is a snapshot due, and what if it cannot be
// written? A snapshot is housekeeping: a failure is said, counted and tried again, at
// growing intervals, and ends nothing.
package snapshots

import (
	"math/rand/v2"
)

// Policy decides when a snapshot is due. It belongs to the apply loop.
type Policy struct {
	Every    uint64  // commands, --snapshot-count
	Commands uint64  // applied since the last snapshot
	Bytes    uint64  // of log on disk since the last snapshot
	Last     uint64  // index of the last one
	early    float64 // the part of the log's growth by which the next comes early
}

// LogOverhead is about what the log takes on disk for an entry beside its data.
const LogOverhead = 64

// MaxLogBytes: past this much log a snapshot is due whatever the count says.
const MaxLogBytes = 64 << 20

// IsDue: after so many commands or so many bytes of log, but not before the log
// has grown about as large as the state, so that writing snapshots costs no
// more than writing the log did.
func (p *Policy) IsDue(stateBytes uint64) bool {
	if p.Bytes < stateBytes-uint64(p.early*float64(stateBytes)) {
		return false
	}
	return p.Commands >= p.Every || p.Bytes >= MaxLogBytes
}

// Reset begins to count anew. Each node draws when it is early, so that not all
// of them write their snapshots at the same moment.
func (p *Policy) Reset() {
	p.Commands, p.Bytes, p.early = 0, 0, rand.Float64()/4
}
