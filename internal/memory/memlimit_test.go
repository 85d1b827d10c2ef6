package memory

import (
	"math"
	"os"
	"raftkv/internal/storage"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// The lowest limit counts, wherever it stands: in one of the groups above, of either version, in a container that sees
// a part of the hierarchy, with the user or in the machine.
func TestMemoryLimit(t *testing.T) {
	const (
		meminfo = "MemTotal:       8000000 kB\nMemFree: 1 kB\n"
		ram     = 8000000 << 10
		v2      = "30 22 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
		v1      = "30 22 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n34 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
			"35 30 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		none = "9223372036854771712\n"
	)
	for name, c := range map[string]struct {
		files   map[string]string
		goLimit int64
		want    uint64
		source  string
	}{
		"nothing is known": {map[string]string{}, math.MaxInt64, 0, ""},
		"the machine":      {map[string]string{"proc/meminfo": meminfo}, math.MaxInt64, ram, "machine"},
		"version 2": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": v2,
			"sys/fs/cgroup/a/b/memory.max": "300000000\n"}, math.MaxInt64, 300000000, "/sys/fs/cgroup/a/b/memory.max"},
		"version 2, a group above": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": v2,
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "200000000\n"}, math.MaxInt64, 200000000, "cgroup/a/memory.max"},
		"version 2, high": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": v2,
			"sys/fs/cgroup/a/memory.max": "300000000\n", "sys/fs/cgroup/a/memory.high": "250000000\n"}, math.MaxInt64, 250000000, "memory.high"},
		"version 2, none": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": v2,
			"sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64, ram, "machine"},
		"version 2, a namespace": {map[string]string{"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": v2,
			"sys/fs/cgroup/memory.max": "300000000\n"}, math.MaxInt64, 300000000, "memory.max"},
		"version 1": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "8:pids:/x\n4:cpu,memory:/a\n0::/\n", "proc/self/mountinfo": v1,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "300000000\n"}, math.MaxInt64, 300000000, "memory.limit_in_bytes"},
		"version 1, a group above": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/a/b/c\n", "proc/self/mountinfo": v1,
			"sys/fs/cgroup/memory/a/b/c/memory.limit_in_bytes": none, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "300000000\n"},
			math.MaxInt64, 300000000, "memory/a/memory.limit_in_bytes"},
		"version 1, none": {map[string]string{"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/a\n", "proc/self/mountinfo": v1,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": none}, math.MaxInt64, ram, "machine"},
		"version 1, the host's path": {map[string]string{"proc/self/cgroup": "4:memory:/docker/abc\n",
			"proc/self/mountinfo":                        "34 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "300000000\n"}, math.MaxInt64, 300000000, "memory/memory.limit_in_bytes"},
		"another path of the host's": {map[string]string{"proc/self/cgroup": "4:memory:/docker/abcd\n",
			"proc/self/mountinfo":                        "34 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "300000000\n"}, math.MaxInt64, 300000000, "memory/memory.limit_in_bytes"},
		"the user": {map[string]string{"proc/meminfo": meminfo}, 100000000, 100000000, "GOMEMLIMIT"},
		"both versions": {map[string]string{"proc/self/cgroup": "4:memory:/a\n0::/b\n",
			"proc/self/mountinfo":                          v1 + "40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "300000000\n", "sys/fs/cgroup/unified/b/memory.max": "400000000\n"},
			math.MaxInt64, 300000000, "memory/a"},
	} {
		root := fstest.MapFS{}
		for path, text := range c.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		if l := FindLimit(root, c.goLimit); l.Bytes != c.want || !strings.Contains(l.Source, c.source) {
			t.Errorf("%s: %d (%s), want %d (%s)", name, l.Bytes, l.Source, c.want, c.source)
		}
	}
	if l := FindLimit(os.DirFS("/"), math.MaxInt64); l.Bytes == 0 && storage.Exists("/proc/meminfo") {
		t.Error("this machine has no memory")
	}
}

// The share is that of the last while, however often it is asked for.
func TestGCShare(t *testing.T) {
	var g gcShare
	at := time.Now()
	for i, c := range []struct{ after, gc, busy, want float64 }{
		{0, 1, 10, 0.1},
		{5, 2, 12, 2.0 / 12},
		{10, 6, 20, 0.5},
		{19, 6, 24, 5.0 / 14},
		{20, 6, 30, 0},
		{20, 6, 30, 0},
	} {
		now := cpuTimes{at: at.Add(time.Duration(c.after * float64(time.Second))), gc: c.gc, busy: c.busy}
		if got := g.Get(now); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%d: %v, want %v", i, got, c.want)
		}
	}
	runtime.GC() // which makes the estimates
	if c := readCPUTimes(); c.busy < c.gc || c.gc < 0 {
		t.Errorf("%+v", c)
	}
}

// A limit below the least is warned of, one at it is not.
func TestScarceMemoryIsWarnedOf(t *testing.T) {
	for bytes, want := range map[uint64]int{0: 0, memoryLeast: 0, memoryLeast - 1: 1} {
		core, logs := observer.New(zap.InfoLevel)
		WarnScarce(Limit{Bytes: bytes, Source: "a test"}, zap.New(core))
		if logs.Len() != want {
			t.Errorf("of %d bytes it says %v", bytes, logs.All())
		}
	}
}

// Guarantee: what is many takes no more than a third of the memory, where that is known.
func TestMost(t *testing.T) {
	for limit, want := range map[uint64]int{0: 10_000, 1 << 30: 10_000, 3 * 10_000 << 15: 10_000, 3*10_000<<15 - 1: 9999, 192 << 20: 2048, 64 << 20: 682} {
		if got := (Limit{Bytes: limit}).Most(10_000, 32<<10); got != want {
			t.Errorf("with %d bytes: %d, want %d", limit, got, want)
		}
	}
}
