package memory

import (
	"raftkv/internal/meter"
	runtimemetrics "runtime/metrics"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// GCShare tells what part of its CPU time the process gave to the garbage
// collector of late: near a memory limit it is what the store pays for the little
// room that is left.
type GCShare struct {
	mu       sync.Mutex
	from, to CPUTimes
	share    float64
}

// gcShareSpan is over how much time at least the share is taken.
const gcShareSpan = 10 * time.Second

// CPUTimes are seconds of CPU since the start of the process.
type CPUTimes struct {
	At       time.Time
	GC, Busy float64
}

// ReadCPUTimes reads the runtime's estimates. It makes them at each collection.
func ReadCPUTimes() CPUTimes {
	samples := []runtimemetrics.Sample{
		{Name: "/cpu/classes/gc/total:cpu-seconds"},
		{Name: "/cpu/classes/total:cpu-seconds"},
		{Name: "/cpu/classes/idle:cpu-seconds"},
	}
	runtimemetrics.Read(samples)
	f := func(i int) float64 { return samples[i].Value.Float64() }
	return CPUTimes{At: time.Now(), GC: f(0), Busy: f(1) - f(2)}
}

// Get returns the share, 0 to 1, as of the times now. However many ask, the span
// is at least gcShareSpan, unless the process is younger.
func (g *GCShare) Get(now CPUTimes) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.At.Sub(g.to.At) >= gcShareSpan {
		g.from, g.to = g.to, now
	}
	if busy := now.Busy - g.from.Busy; busy > 0 {
		g.share = min(1, max(0, (now.GC-g.from.GC)/busy))
	}
	return g.share
}

// Register adds what there is to say of memory.
func (l Limit) Register(reg prometheus.Registerer) {
	share := new(GCShare)
	meter.Gauge(reg, "raftkv_gc_cpu_share", "Part of the process's CPU time, 0 to 1, that garbage collection took in the last 10 seconds or more.",
		func() float64 { return share.Get(ReadCPUTimes()) })
	meter.Gauge(reg, "raftkv_memory_limit_bytes", "What bounds the memory of the process: control groups, GOMEMLIMIT or the machine; 0 if not known.",
		func() float64 { return float64(l.Bytes) })
}
