package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"raftkv/internal/config"
	"raftkv/internal/memory"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
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
		if l := memory.FindLimit(root, c.goLimit); l.Bytes != c.want || !strings.Contains(l.Source, c.source) {
			t.Errorf("%s: %d (%s), want %d (%s)", name, l.Bytes, l.Source, c.want, c.source)
		}
	}
	if l := memory.FindLimit(os.DirFS("/"), math.MaxInt64); l.Bytes == 0 && storage.Exists("/proc/meminfo") {
		t.Error("this machine has no memory")
	}
}

// The default quota comes from the memory; what the directory holds always fits, with a tenth more; what was asked for
// wins.
func TestQuotaFromMemory(t *testing.T) {
	for name, c := range map[string]struct {
		quota       int64
		memory      uint64
		bytes, keys uint64
		limit, room uint64
		warns       bool
	}{
		"not known":              {config.QuotaFromMemory, 0, 0, 0, memory.QuotaMost, math.MaxInt64, false},
		"large":                  {config.QuotaFromMemory, 24 << 30, 1 << 30, 1, memory.QuotaMost, (24<<30 - memory.Base) / 2, false},
		"300 MiB":                {config.QuotaFromMemory, 300 << 20, 1 << 20, 1, 126 << 20, 126 << 20, false},
		"tiny":                   {config.QuotaFromMemory, 16 << 20, 0, 0, memory.RoomLeast, memory.RoomLeast, false},
		"just full":              {config.QuotaFromMemory, 300 << 20, 126<<20 - memory.KeyCost, 1, 126 << 20, 126 << 20, false},
		"one byte more":          {config.QuotaFromMemory, 300 << 20, 126<<20 - memory.KeyCost + 1, 1, (126<<20 - memory.KeyCost + 1) * 11 / 10, (126<<20 + 1) * 11 / 10, true},
		"much more":              {config.QuotaFromMemory, 300 << 20, 1000 << 20, 0, 1100 << 20, 1100 << 20, true},
		"asked for":              {100 << 20, 300 << 20, 0, 0, 100 << 20, 0, false},
		"asked for as much":      {126 << 20, 300 << 20, 0, 0, 126 << 20, 0, false},
		"asked for too much":     {126<<20 + 1, 300 << 20, 0, 0, 126<<20 + 1, 0, true},
		"asked for any number":   {0, 300 << 20, 0, 0, 0, 0, true},
		"any number, not known":  {0, 0, 0, 0, 0, 0, false},
		"much asked, not known":  {1 << 40, 0, 0, 0, 1 << 40, 0, false},
		"3 GiB, on a large node": {3 << 30, 24 << 30, 0, 0, 3 << 30, 0, false},
	} {
		core, logs := observer.New(zapcore.WarnLevel)
		st := state.New(nil)
		st.Bytes = c.bytes
		for i := range c.keys {
			st.Items.Set(fmt.Sprint(i), &state.Item{})
		}
		q := newQuota(zap.New(core), config.Config{Quota: c.quota, Memory: memory.Limit{Bytes: c.memory, Source: "a test"}}, &kvstore{state: st})
		if q.limit != c.limit || q.room != c.room || (logs.Len() > 0) != c.warns {
			t.Errorf("%s: limit %d, room %d, %d warnings; want %d, %d, %v", name, q.limit, q.room, logs.Len(), c.limit, c.room, c.warns)
		}
	}
}

// Without this many small keys take several times the memory that their bytes do.
func TestQuotaCountsKeys(t *testing.T) {
	at := newAPITest(t)
	at.a.quota.room = 3 * (memory.KeyCost + 10)
	put := func(key string, n, status int) {
		t.Helper()
		if w := at.do(http.MethodPut, "/"+key, strings.Repeat("x", n)); w.Code != status {
			t.Errorf("PUT %s of %d bytes: %d, want %d", key, n, w.Code, status)
		}
	}
	for _, key := range []string{"a", "b"} {
		put(key, 9, http.StatusNoContent)
	}
	put("c", 10, http.StatusInsufficientStorage)
	put("c", 9, http.StatusNoContent)
	put("d", 0, http.StatusInsufficientStorage)
	put("a", 9, http.StatusNoContent)
	put("a", 0, http.StatusNoContent)
	put("b", 18, http.StatusNoContent)
	put("b", 19, http.StatusInsufficientStorage)
	at.want(at.do(http.MethodDelete, "/v1/kv/b", ""), http.StatusNoContent, "")
	put("d", 8, http.StatusNoContent)
	if q := at.a.quota; q.reserved.Load() != 0 || q.newKeys.Load() != 0 {
		t.Errorf("%d bytes and %d keys stay reserved", q.reserved.Load(), q.newKeys.Load())
	}
}

// While a snapshot is loaded nobody takes the empty state for the store's.
func TestReadsWhileASnapshotIsLoaded(t *testing.T) {
	at := newAPITest(t)
	at.want(at.do(http.MethodPut, "/k", "v"), http.StatusNoContent, "")
	at.kv.letGo()
	for _, path := range []string{"/k", "/k?consistency=stale", "/none", "/v1/snapshot"} {
		if w := at.do(http.MethodGet, path, ""); w.Code == http.StatusOK || w.Code == http.StatusNotFound {
			t.Errorf("GET %s: %d", path, w.Code)
		}
	}
	if _, _, err := at.kv.read("k"); !errors.Is(err, problem.ErrNotReady) {
		t.Errorf("read: %v", err)
	}
	if _, err := at.kv.copyWhole(); !errors.Is(err, problem.ErrNotReady) {
		t.Errorf("copy: %v", err)
	}
}

// The share is that of the last while, however often it is asked for.
func TestGCShare(t *testing.T) {
	var g memory.GCShare
	at := time.Now()
	for i, c := range []struct{ after, gc, busy, want float64 }{
		{0, 1, 10, 0.1},
		{5, 2, 12, 2.0 / 12},
		{10, 6, 20, 0.5},
		{19, 6, 24, 5.0 / 14},
		{20, 6, 30, 0},
		{20, 6, 30, 0},
	} {
		now := memory.CPUTimes{At: at.Add(time.Duration(c.after * float64(time.Second))), Gc: c.gc, Busy: c.busy}
		if got := g.Get(now); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%d: %v, want %v", i, got, c.want)
		}
	}
	if c := memory.ReadCPUTimes(); c.Busy < c.Gc || c.Gc < 0 {
		t.Errorf("%+v", c)
	}
}

// A limit below the least is warned of, one at it is not.
func TestScarceMemoryIsWarnedOf(t *testing.T) {
	for bytes, want := range map[uint64]int{0: 0, memory.MemoryLeast: 0, memory.MemoryLeast - 1: 1} {
		core, logs := observer.New(zap.InfoLevel)
		memory.WarnScarce(memory.Limit{Bytes: bytes, Source: "a test"}, zap.New(core))
		if logs.Len() != want {
			t.Errorf("of %d bytes it says %v", bytes, logs.All())
		}
	}
}
