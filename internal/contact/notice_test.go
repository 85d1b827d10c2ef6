//go:build unix

package contact

import (
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// noticeTest is the notices of a leader to node 2, as steps with what must have
// been sent after each.
type noticeTest struct {
	*testing.T
	n    *notices
	sent []*raftpb.Message
}

func newNoticeTest(t *testing.T) *noticeTest { return &noticeTest{T: t, n: newNotices()} }

func (nt *noticeTest) add(m *raftpb.Message) {
	m.To = new(uint64(2))
	nt.sent = nt.n.add(nt.sent, m)
}

// wants checks what was sent since the last call, each by its type and its
// commit index or, for a read's answer, its index.
func (nt *noticeTest) wants(want ...*raftpb.Message) {
	nt.Helper()
	same := slices.EqualFunc(nt.sent, want, func(a, b *raftpb.Message) bool {
		return a.GetType() == b.GetType() && a.GetCommit() == b.GetCommit() && a.GetIndex() == b.GetIndex()
	})
	if !same {
		nt.Fatalf("sent %v, want %v", nt.sent, want)
	}
	nt.sent = nil
}

func notice(commit uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgApp.Enum(), Commit: new(commit)}
}

func appends(commit uint64) *raftpb.Message {
	m := notice(commit)
	m.Entries = []*raftpb.Entry{{Index: new(commit + 1)}}
	return m
}

func readAnswer(index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgReadIndexResp.Enum(), Index: new(index)}
}

// batchFrom is an entry with a batch that a node gathered.
func batchFrom(node, index uint64) []*raftpb.Entry {
	return []*raftpb.Entry{{Index: new(index), Data: entry.AppendHeader(nil, state.BatchID{Node: node})}}
}

func TestNoticeWaitsForEntries(t *testing.T) {
	nt := newNoticeTest(t)
	nt.n.appended(batchFrom(1, 10))
	nt.add(appends(9))
	nt.wants(appends(9))
	nt.add(notice(10))
	nt.wants()
	nt.add(appends(10)) // tells it
	nt.wants(appends(10))
	if left := nt.n.flush(); left != nil {
		t.Errorf("still held: %v", left)
	}
}

func TestNoticeGoesAtLast(t *testing.T) {
	nt := newNoticeTest(t)
	nt.add(notice(10))
	nt.add(notice(11))
	nt.sent = nt.n.flush()
	nt.wants(notice(11)) // the newer tells what the older would
}

// An append that was made before knows less: it does not replace the notice.
func TestNoticeOutlivesOlderNews(t *testing.T) {
	nt := newNoticeTest(t)
	nt.add(notice(10))
	older := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(uint64(8))}
	nt.add(older)
	nt.wants(older)
	nt.sent = nt.n.flush()
	nt.wants(notice(10))
}

// raft asks with messages without entries too; they tell nothing new.
func TestNoticeIsNoProbe(t *testing.T) {
	nt := newNoticeTest(t)
	nt.add(appends(9))
	nt.add(notice(9))
	nt.wants(appends(9), notice(9))
}

func TestNoticeWhereSomebodyWaits(t *testing.T) {
	for name, entries := range map[string][]*raftpb.Entry{
		"its own write":   batchFrom(2, 10),
		"a member change": {{Index: new(uint64(10)), Type: raftpb.EntryConfChange.Enum()}},
		"a new leader":    {{Index: new(uint64(10))}},
	} {
		t.Run(name, func(t *testing.T) {
			nt := newNoticeTest(t)
			nt.add(appends(9))
			nt.n.appended(entries)
			nt.add(notice(10))
			nt.wants(appends(9), notice(10))
			nt.add(notice(11)) // it has heard of what it waited for
			nt.wants()
		})
	}
}

// A reader must hear of what it waits for, before or after it hears the index.
func TestNoticeBeforeReadsAnswer(t *testing.T) {
	nt := newNoticeTest(t)
	nt.add(notice(10))
	nt.add(readAnswer(10))
	nt.wants(notice(10), readAnswer(10))
	nt.add(readAnswer(12))
	nt.add(notice(12))
	nt.wants(readAnswer(12), notice(12))
}

// Guarantee: nothing is kept of a node that has left, and an ID that nobody
// knows is none of its business.
func TestNoticesForget(t *testing.T) {
	nt := newNoticeTest(t)
	nt.add(appends(1))
	nt.n.appended(batchFrom(2, 1))
	nt.add(notice(3))
	nt.add(notice(4))
	nt.n.forget(2)
	nt.n.forget(3)
	if n := nt.n; len(n.told)+len(n.awaited)+len(n.held) != 0 {
		t.Errorf("it keeps %v, %v, %v", n.told, n.awaited, n.held)
	}
	if out := nt.n.flush(); len(out) > 0 {
		t.Errorf("it sends %v", out)
	}
}
