package main

import (
	"raftkv/internal/room"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Without this what is refused is not what the disks are too short for; or the
// word of someone who does not lead is taken; or a leader's, long after it fell.
func TestRoomRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := newAPITest(t)
		at.a.quota.Limit = 0
		big, small := strings.Repeat("x", 50), "x"
		rule := func(s room.Shortage) { at.a.room.Hear(room.Note{From: 2, Leads: true, Refuse: s, Full: []uint64{3}}) }
		statuses := func() (codes []int) {
			for _, key := range []string{"/a", "/b", "/c"} {
				if w := at.do("PUT", key, big[:10]); at.a.room.Refusing().Refuse == room.Plenty && w.Code != 204 {
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
		at.a.room.Hear(room.Note{From: 3, Leads: true, Refuse: room.Plenty}) // does not lead
		at.a.room.Hear(room.Note{From: 3, Short: room.Plenty})
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
