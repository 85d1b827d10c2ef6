package room

import (
	"fmt"
	"raftkv/internal/meter"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Notes are the lines of /readyz?verbose about what does not keep a node from
// serving, and should be seen to.
func (r *Keeper) Notes() string {
	var b strings.Builder
	if err := r.storage.Trouble.Present(); err != nil {
		fmt.Fprintf(&b, "note the last snapshot failed, and will be tried again: %v\n", err)
	}
	if own := Shortage(r.short.Load()); own > Plenty {
		fmt.Fprintf(&b, "note the disk is %v: %d bytes are free\n", own, r.free.Load())
	}
	if v := r.Refusing(); v.Refuse > Plenty {
		fmt.Fprintf(&b, "note the disks of nodes %v are %v\n", v.full, v.Refuse)
	}
	if r.storage.Room != nil && r.storage.Room.Waiting.Load() {
		b.WriteString("note the log waits for room on the disk\n")
	}
	return b.String()
}

// Register adds what there is to count.
func (r *Keeper) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_disk_free_bytes", "What is free on the disk of the data directory.", func() float64 { return float64(r.free.Load()) })
	meter.Gauge(reg, "raftkv_disk_shortage", "How short this disk is: 1 for growing writes, 2 for all writes, 3 for deletes too, 4 for entries.", func() float64 {
		return float64(r.short.Load())
	})
	meter.Gauge(reg, "raftkv_disk_refusing", "For which shortage of the cluster's disks this node refuses writes; as raftkv_disk_shortage.", func() float64 {
		return float64(r.Refusing().Refuse)
	})
}
