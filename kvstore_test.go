package main

import (
	"errors"
	"raftkv/internal/checker"
	"raftkv/internal/config"
	"raftkv/internal/entry"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"reflect"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// newTestStore returns a kvstore of node 1 without the goroutines around it.
func newTestStore() *kvstore {
	return &kvstore{
		agreement: checker.NewAgreement(zap.NewNop(), 1, 0, 0),
		log:       zap.NewNop(), applied: new(wait.Index), revision: wait.NewLevel(0), conf: wait.NewOutcomes(), state: state.New(testkit.Peers()),
		proposals: rounds.NewProposer(zap.NewNop(), config.Config{ID: 1}, rounds.NewLife(1, 1), nil, wait.NewLeadership()),
	}
}

func entryAt(index uint64, data []byte) *raftpb.Entry {
	return &raftpb.Entry{Index: new(index), Term: new(uint64(1)), Type: raftpb.EntryNormal.Enum(), Data: data}
}

// Guarantee: an entry that no version wrote is ignored by every node alike,
// one of a newer version stops the node, and none is left out or taken twice.
func TestApplyEntries(t *testing.T) {
	good := statetest.Batch(state.BatchID{Node: 1, Boot: 1}, statetest.Put("k", "v"))
	newer := entry.AppendCommand(entry.AppendHeader(nil, state.BatchID{Node: 1, Boot: 1}), []byte{99})
	for _, tt := range []struct {
		name     string
		entries  []*raftpb.Entry
		want     error // nil: none
		fails    bool
		revision uint64
	}{
		{"good", []*raftpb.Entry{entryAt(1, good)}, nil, false, 1},
		{"twice", []*raftpb.Entry{entryAt(1, good), entryAt(2, good)}, nil, false, 1},
		{"empty", []*raftpb.Entry{entryAt(1, nil), entryAt(2, good)}, nil, false, 1},
		{"malformed", []*raftpb.Entry{entryAt(1, []byte{1, 2, 3}), entryAt(2, good)}, nil, false, 1},
		{"newer", []*raftpb.Entry{entryAt(1, newer), entryAt(2, good)}, record.ErrUnknownCommand, true, 0},
		{"a gap", []*raftpb.Entry{entryAt(2, good)}, nil, true, 0},
		{"a repetition", []*raftpb.Entry{entryAt(1, nil), entryAt(1, good)}, nil, true, 0},
	} {
		kv := newTestStore()
		err := kv.commit(commit{entries: tt.entries}, nil)
		if (err != nil) != tt.fails || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if kv.state.Revision != tt.revision || err == nil && kv.applied.Get() != uint64(len(tt.entries)) {
			t.Errorf("%s: at revision %d, applied %d", tt.name, kv.state.Revision, kv.applied.Get())
		}
	}
}

// Guarantee: a refused or void membership change reaches raft as void, so that
// raft's members stay those of the state.
func TestApplyConfChange(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  membership.Change
		node    uint64 // what raft gets
		outcome error
	}{
		{"add", membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4", Request: 7}, 4, nil},
		{"add again", membership.Change{Op: membership.OpAdd, ID: 3, PeerURL: "http://c:3", Request: 7}, 0, nil},
		{"refused", membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://c:3", Request: 7}, 0, problem.ErrMemberExists},
		{"bad URL", membership.Change{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4/", Request: 7}, 0, problem.ErrBadPeerURL},
		{"remove", membership.Change{Op: membership.OpRemove, ID: 3, Request: 7}, 3, nil},
	} {
		kv := newTestStore()
		outcome, cancel := kv.conf.Register(7)
		defer cancel()
		data, err := proto.Marshal(tt.change.ConfChange())
		if err != nil {
			t.Fatal(err)
		}
		e := entryAt(1, data)
		e.Type = raftpb.EntryConfChange.Enum()
		var told *raftpb.ConfChange
		var members membership.Membership
		err = kv.commit(commit{entries: []*raftpb.Entry{e}}, func(_ uint64, cc *raftpb.ConfChange, m membership.Membership) error {
			told, members = cc, m
			return nil
		})
		if err != nil || told.GetNodeId() != tt.node {
			t.Errorf("%s: raft is told of node %d (%v), want %d", tt.name, told.GetNodeId(), err, tt.node)
		}
		if got := <-outcome; !errors.Is(got, tt.outcome) {
			t.Errorf("%s: the outcome is %v, want %v", tt.name, got, tt.outcome)
		}
		if !reflect.DeepEqual(members, kv.state.Membership) || kv.state.Index != 1 {
			t.Errorf("%s: members %+v, the state at %d has %+v", tt.name, members, kv.state.Index, kv.state.Membership)
		}
	}
}

// Guarantee: snapshots cost no more writing than the log did, the log stays
// bounded in bytes, and a snapshot that found the writer busy is made later.
func TestSnapshotPolicy(t *testing.T) {
	for _, tt := range []struct {
		commands, bytes, state uint64
		want                   bool
	}{
		{99, 1000, 10, false}, {100, 1000, 10, true}, {100, 1000, 1001, false},
		{1, snapshots.MaxLogBytes, 10, true}, {1, snapshots.MaxLogBytes, snapshots.MaxLogBytes + 1, false}, {1, snapshots.MaxLogBytes - 1, 10, false},
	} {
		p := snapshots.Policy{Every: 100, Commands: tt.commands, Bytes: tt.bytes}
		if got := p.IsDue(tt.state); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	kv, states := newTestStore(), make(chan *state.State, 1)
	kv.writer = make(chan struct{}, 1)
	kv.snapshots, kv.due = states, snapshots.Policy{Every: 1, Commands: 1, Bytes: 1}
	kv.snapshotIfDue()
	kv.due.Commands, kv.due.Bytes = 1, 1
	kv.snapshotIfDue() // busy
	if len(states) != 1 || kv.due.Commands != 1 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
	<-states
	kv.snapshotIfDue() // still busy: it is being written
	if len(states) != 0 {
		t.Fatal("a copy waits for the writer, and keeps what is overwritten")
	}
	<-kv.writer
	kv.snapshotIfDue()
	if len(states) != 1 || kv.due.Commands != 0 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
	<-states
	<-kv.writer

	// Somebody needs one, and says so again and again: it is taken once.
	kv.state.Index = 7
	for range 3 {
		kv.AskForSnapshot(5)
		kv.snapshotIfDue()
		kv.state.Index++
	}
	if len(states) != 1 || kv.due.Last != 7 {
		t.Fatalf("%d states, due %+v", len(states), kv.due)
	}
}
