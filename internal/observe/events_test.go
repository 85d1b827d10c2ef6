//go:build unix

package observe

import (
	"raftkv/internal/testkit"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Guarantee: a pause of the leader itself, after which what the members sent in
// time still waits to be read, is not taken for their silence.
func TestMemberDownAfterAPause(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		inner, logs := observer.New(zap.InfoLevel)
		log := zap.New(inner)
		w := &Watcher{Config: Config{Log: log, ID: 1, ElectionTimeout: time.Second}, near: make(map[uint64]*sighting), ledSince: time.Now()}
		look := func(near bool, heard time.Time) {
			t.Helper()
			v := clusterView{leads: true, commit: 9, members: map[uint64]memberView{2: {near: near, heard: heard, match: 4}}}
			w.noteMember(2, v, time.Now())
		}
		begin := time.Now()
		look(true, begin)
		time.Sleep(5 * time.Second)
		look(false, begin) // it stood still itself
		look(true, time.Now())
		look(false, begin)
		if logs.Len() != 0 {
			t.Errorf("after pauses it says %q", testkit.Messages(logs))
		}
		look(false, begin)
		look(false, begin)
		if got := testkit.Messages(logs); !slices.Equal(got, []string{"member down"}) {
			t.Fatalf("it says %q", got)
		}
		if m := logs.All()[0].ContextMap(); m["silent"] != 5*time.Second || m["lag"] != uint64(5) || m["role"] != "voter" {
			t.Errorf("it says %v", m)
		}
		look(true, time.Now())
		if got := testkit.Messages(logs); !slices.Equal(got, []string{"member down", "member up"}) {
			t.Errorf("it says %q", got)
		}
		// One that was never heard from has two election timeouts to appear.
		w.near, w.ledSince = make(map[uint64]*sighting), time.Now()
		logs.TakeAll()
		for range 7 {
			look(false, time.Time{})
			time.Sleep(time.Second / 4)
		}
		if logs.Len() != 0 {
			t.Errorf("before it can have come up it is %q", testkit.Messages(logs))
		}
		time.Sleep(time.Second / 4)
		look(false, time.Time{})
		if got := testkit.Messages(logs); !slices.Equal(got, []string{"member down"}) {
			t.Errorf("one that never came is %q", got)
		}
		// So has one that is added to a cluster that this node has led for long.
		time.Sleep(time.Minute)
		delete(w.near, 2)
		logs.TakeAll()
		for range 8 {
			look(false, time.Time{})
			time.Sleep(time.Second / 4)
		}
		if logs.Len() != 0 {
			t.Errorf("when it has just been added it is %q", testkit.Messages(logs))
		}
		look(false, time.Time{})
		if got := logs.All(); len(got) != 1 || got[0].ContextMap()["silent"] != 2*time.Second {
			t.Errorf("when it never came, it says %v", got)
		}
	})
}
