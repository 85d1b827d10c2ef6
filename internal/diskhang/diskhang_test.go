//go:build unix

package diskhang

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// The bounds of what is on its way to the disk, at them and one past, and when a
// disk hangs.
func TestDiskWatch(t *testing.T) {
	entries := func(n int) *raftpb.Message {
		return &raftpb.Message{Entries: []*raftpb.Entry{{Data: make([]byte, n)}}}
	}
	d := &Watch{Room: maxUnsynced, election: 10}
	d.Queue(entries(maxUnsynced - entryOverhead - 1))
	if d.Full() {
		t.Error("full below the bound")
	}
	d.Hand()
	d.Queue(&raftpb.Message{})
	if d.Full() {
		t.Error("full by a message without entries")
	}
	d.Queue(entries(1))
	if !d.Full() {
		t.Error("not full at the bound")
	}
	d.Done()
	if d.Full() {
		t.Error("full when the disk has answered")
	}
	for d.Queued.appends < maxUnsyncedAppends-1 {
		d.Queue(&raftpb.Message{})
	}
	if d.Full() {
		t.Error("full below the bound of appends")
	}
	if d.Queue(&raftpb.Message{}); !d.Full() {
		t.Error("not full at the bound of appends")
	}

	d = &Watch{election: 10}
	d.Tick = 100
	d.Queue(entries(1))
	d.Tick += 3
	if d.out() != 3 {
		t.Errorf("out for %d ticks while it waits", d.out())
	}
	d.Hand()
	if d.out() != 0 {
		t.Errorf("out for %d ticks when it is handed over", d.out())
	}
	d.Tick += 4
	d.Queue(entries(1))
	if d.out() != 4 {
		t.Errorf("out for %d ticks", d.out())
	}
	d.Tick += 1000
	d.Done()
	if d.limit() != 10 {
		t.Errorf("after one hang it hangs after %d ticks, not after 10", d.limit())
	}
	for range 10 {
		d.Hand()
		d.Tick += 9
		d.Done()
	}
	if d.limit() != 30 {
		t.Errorf("with 9 ticks a sync it hangs after %d, not after 30", d.limit())
	}
	for _, tt := range []struct {
		usual float64
		want  uint64
	}{{0, 10}, {2.5, 10}, {2.75, 11}, {7.5, 30}, {8, 30}, {1000, 30}} {
		if d.usual = tt.usual; d.limit() != tt.want {
			t.Errorf("with %v ticks a sync it hangs after %d, not after %d", tt.usual, d.limit(), tt.want)
		}
	}
}

// With as much on its way to the disk as there may be, what would add to it is
// lost to raft, and what keeps the cluster together is not.
func TestDiskHangTakesIn(t *testing.T) {
	d := &Watch{Room: maxUnsynced}
	takes := func(typ raftpb.MessageType) bool { return d.TakesIn(&raftpb.Message{Type: typ.Enum()}) }
	adding := []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgProp, raftpb.MsgVote, raftpb.MsgPreVote}
	for _, typ := range adding {
		if !takes(typ) {
			t.Errorf("%v is refused", typ)
		}
	}
	d.Queued.Bytes = maxUnsynced
	for _, typ := range adding {
		if takes(typ) {
			t.Errorf("%v is taken in, with no room", typ)
		}
	}
	for _, typ := range []raftpb.MessageType{raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgReadIndex, raftpb.MsgVoteResp, raftpb.MsgTimeoutNow} {
		if !takes(typ) {
			t.Errorf("%v is refused", typ)
		}
	}
	d.hangs = true
	if takes(raftpb.MsgTimeoutNow) {
		t.Error("it would lead with a disk that hangs")
	}
}
