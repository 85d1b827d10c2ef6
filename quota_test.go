package main

import (
	"context"
	"errors"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/room"
	"raftkv/internal/state"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Without this a store grows until the process is killed for want of memory, on
// every node at once; or a full one cannot be read, changed or emptied.
func TestQuota(t *testing.T) {
	at := newAPITest(t)
	at.a.keys.Quota.Limit = 100
	put := func(key string, n, status int) {
		t.Helper()
		w := at.do(http.MethodPut, "/"+key, strings.Repeat("x", n))
		if status == http.StatusInsufficientStorage {
			before := at.proposed
			at.problem("PUT "+key, w, status, "quota_exceeded")
			if at.proposed != before {
				t.Error("what does not fit was proposed")
			}
			return
		}
		at.want(w, status, "")
	}
	put("a", 59, http.StatusNoContent) // with its key, 60 bytes
	put("b", 40, http.StatusInsufficientStorage)
	put("b", 39, http.StatusNoContent)
	put("c", 0, http.StatusInsufficientStorage)
	put("a", 60, http.StatusInsufficientStorage)
	put("a", 59, http.StatusNoContent) // no more than it replaces
	put("a", 10, http.StatusNoContent)
	put("c", 48, http.StatusNoContent)
	put("d", 0, http.StatusInsufficientStorage)
	at.want(at.do(http.MethodGet, "/a", ""), http.StatusOK, strings.Repeat("x", 10))
	at.want(at.do(http.MethodDelete, "/v1/kv/b", ""), http.StatusNoContent, "")
	put("d", 39, http.StatusNoContent)
	if at.a.keys.Quota.Reserved.Load() != 0 {
		t.Errorf("%d bytes stay reserved", at.a.keys.Quota.Reserved.Load())
	}
}

// Without this many writes at once get past the quota together.
func TestQuotaConcurrent(t *testing.T) {
	at := newAPITest(t)
	at.a.keys.Quota.Limit = 100
	inside := 0
	at.a.keys.Writes = proposeFunc(func(context.Context, []byte) state.Result {
		inside++
		at.problem("PUT while another is on its way", at.do(http.MethodPut, "/b", strings.Repeat("x", 50)),
			http.StatusInsufficientStorage, "quota_exceeded")
		return state.Result{Err: problem.ErrOutcomeUnknown}
	})
	at.problem("PUT", at.do(http.MethodPut, "/a", strings.Repeat("x", 50)), http.StatusGatewayTimeout, "outcome_unknown")
	if inside != 1 {
		t.Errorf("%d writes were proposed", inside)
	}
	if _, err := at.a.keys.Quota.Reserve("b", 99); err != nil {
		t.Errorf("after a write that did not make it: %v", err)
	}
	if _, err := at.a.keys.Quota.Reserve("c", 1); !errors.Is(err, problem.ErrQuota) {
		t.Errorf("got %v", err)
	}
}

// Guarantee: writes that come at the same moment do not get in together where
// there is room for only some of them.
func TestQuotaReservedAtOnce(t *testing.T) {
	const limit, size, writers, rounds = 800, 499, 64, 2000 // with its key, 500 bytes: one fits
	at := newAPITest(t)
	at.a.keys.Quota.Limit = limit
	for range rounds {
		var begin, done sync.WaitGroup
		var admitted atomic.Int64
		var releases [writers]func()
		begin.Add(1)
		for i := range writers {
			done.Go(func() {
				begin.Wait()
				if release, err := at.a.keys.Quota.Reserve("k", size); err == nil {
					admitted.Add(1)
					releases[i] = release
				}
			})
		}
		begin.Done()
		done.Wait()
		if n := admitted.Load(); n*(size+1) > limit {
			t.Fatalf("%d writes of %d bytes got into %d", n, size+1, limit)
		}
		for _, release := range releases {
			if release != nil {
				release()
			}
		}
	}
	if n := at.a.keys.Quota.Reserved.Load(); n != 0 {
		t.Errorf("%d bytes stay reserved", n)
	}
}

// Without this what is refused is not what the disks are too short for; or the
// word of someone who does not lead is taken; or a leader's, long after it fell.
func TestRoomRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := newAPITest(t)
		at.a.keys.Quota.Limit = 0
		big, small := strings.Repeat("x", 50), "x"
		rule := func(s room.Shortage) {
			at.a.keys.Room.Hear(room.Note{From: 2, Leads: true, Refuse: s, Full: []uint64{3}})
		}
		statuses := func() (codes []int) {
			for _, key := range []string{"/a", "/b", "/c"} {
				if w := at.do("PUT", key, big[:10]); at.a.keys.Room.Refusing().Refuse == room.Plenty && w.Code != 204 {
					t.Fatalf("PUT: %d", w.Code)
				}
			}
			for _, r := range [][3]string{{"PUT", "/new", small}, {"PUT", "/a", big[:11]}, {"PUT", "/b", big[:10]}, {"DELETE", "/v1/kv/c", ""}, {"GET", "/b", ""}} {
				codes = append(codes, at.do(r[0], r[1], r[2]).Code)
			}
			return codes
		}
		for _, tt := range []struct {
			refuse room.Shortage
			want   []int
		}{
			{room.Plenty, []int{204, 204, 204, 204, 200}},
			{room.ShortForGrowth, []int{507, 507, 204, 204, 200}},
			{room.ShortForPuts, []int{507, 507, 507, 204, 200}},
			{room.ShortForDeletes, []int{507, 507, 507, 507, 200}},
			{room.ShortForEntries, []int{507, 507, 507, 507, 200}}, // nobody rules that
		} {
			rule(room.Plenty)
			statuses()
			for _, key := range []string{"a", "b", "c"} {
				at.do("PUT", "/"+key, big[:10])
			}
			at.do("DELETE", "/v1/kv/new", "")
			rule(tt.refuse)
			if got := statuses(); !slices.Equal(got, tt.want) {
				t.Errorf("%v: %v, want %v", tt.refuse, got, tt.want)
			}
		}
		rule(room.ShortForGrowth)
		w := at.do("PUT", "/more", small)
		at.problem("a growing write", w, 507, "disk_full")
		if before := at.proposed; at.do("PUT", "/more", small).Code != 507 || at.proposed != before {
			t.Error("it was proposed")
		}
		at.a.keys.Room.Hear(room.Note{From: 3, Leads: true, Refuse: room.Plenty}) // does not lead
		at.a.keys.Room.Hear(room.Note{From: 3, Short: room.Plenty})
		if got := at.do("PUT", "/more", small).Code; got != 507 {
			t.Errorf("%d after the word of one who does not lead", got)
		}
		time.Sleep(room.Trusted - 1)
		if got := at.do("PUT", "/more", small).Code; got != 507 {
			t.Errorf("%d before the leader's word is too old", got)
		}
		time.Sleep(time.Nanosecond)
		if got := at.do("PUT", "/more", small).Code; got != 204 {
			t.Errorf("%d after the leader has been silent", got)
		}
	})
}
