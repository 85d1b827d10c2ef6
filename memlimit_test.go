package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/limits"
	"raftkv/internal/memory"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

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
		q := limits.NewQuota(zap.New(core), config.Config{Quota: c.quota, Memory: memory.Limit{Bytes: c.memory, Source: "a test"}}, &kvstore{state: st})
		if q.Limit != c.limit || q.Room != c.room || (logs.Len() > 0) != c.warns {
			t.Errorf("%s: limit %d, room %d, %d warnings; want %d, %d, %v", name, q.Limit, q.Room, logs.Len(), c.limit, c.room, c.warns)
		}
	}
}

// Without this many small keys take several times the memory that their bytes do.
func TestQuotaCountsKeys(t *testing.T) {
	at := newAPITest(t)
	at.a.keys.Quota.Room = 3 * (memory.KeyCost + 10)
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
	if q := at.a.keys.Quota; q.Reserved.Load() != 0 || q.NewKeys.Load() != 0 {
		t.Errorf("%d bytes and %d keys stay reserved", q.Reserved.Load(), q.NewKeys.Load())
	}
}

// While a snapshot is loaded nobody takes the empty state for the store's.
func TestReadsWhileASnapshotIsLoaded(t *testing.T) {
	at := newAPITest(t)
	at.want(at.do(http.MethodPut, "/k", "v"), http.StatusNoContent, "")
	at.kv.dropItems()
	for _, path := range []string{"/k", "/k?consistency=stale", "/none", "/v1/snapshot"} {
		if w := at.do(http.MethodGet, path, ""); w.Code == http.StatusOK || w.Code == http.StatusNotFound {
			t.Errorf("GET %s: %d", path, w.Code)
		}
	}
	if _, _, err := at.kv.Read("k"); !errors.Is(err, problem.ErrNotReady) {
		t.Errorf("read: %v", err)
	}
	if _, err := at.kv.CopyWhole(); !errors.Is(err, problem.ErrNotReady) {
		t.Errorf("copy: %v", err)
	}
}
