package memory

import (
	"raftkv/internal/meter"
	runtimemetrics "runtime/metrics"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gcShare tells what part of its CPU time the process gave to the garbage
// collector of late: near a memory limit it is what the store pays for the little
// room that is left.
type gcShare struct {
	mu       sync.Mutex
	from, to cpuTimes
	share    float64
}

// gcShareSpan is over how much time at least the share is taken.
const gcShareSpan = 10 * time.Second

// cpuTimes are seconds of CPU since the start of the process.
type cpuTimes struct {
	at       time.Time
	gc, busy float64
}

// readCPUTimes reads the runtime's estimates. It makes them at each collection.
func readCPUTimes() cpuTimes {
	samples := []runtimemetrics.Sample{
		{Name: "/cpu/classes/gc/total:cpu-seconds"},
		{Name: "/cpu/classes/total:cpu-seconds"},
		{Name: "/cpu/classes/idle:cpu-seconds"},
	}
	runtimemetrics.Read(samples)
	f := func(i int) float64 { return samples[i].Value.Float64() }
	return cpuTimes{at: time.Now(), gc: f(0), busy: f(1) - f(2)}
}

// Get returns the share, 0 to 1, as of the times now. However many ask, the span
// is at least gcShareSpan, unless the process is younger.
func (g *gcShare) Get(now cpuTimes) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.at.Sub(g.to.at) >= gcShareSpan {
		g.from, g.to = g.to, now
	}
	if busy := now.busy - g.from.busy; busy > 0 {
		g.share = min(1, max(0, (now.gc-g.from.gc)/busy))
	}
	return g.share
}

// Register adds what there is to say of memory.
func (l Limit) Register(reg prometheus.Registerer) {
	share := new(gcShare)
	meter.Gauge(reg, "raftkv_gc_cpu_share", "Part of the process's CPU time, 0 to 1, that garbage collection took in the last 10 seconds or more.",
		func() float64 { return share.Get(readCPUTimes()) })
	meter.Gauge(reg, "raftkv_memory_limit_bytes", "What bounds the memory of the process: control groups, GOMEMLIMIT or the machine; 0 if not known.",
		func() float64 { return float64(l.Bytes) })
}
