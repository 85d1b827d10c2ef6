package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"raftkv/internal/state/statetest"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Without this a snapshot from another node could put a file in place that this
// node cannot load, in place of one that it can, or fill the disk with copies;
// and one bad copy would keep all later ones out.
func TestTransferInbox(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	good := statetest.Bytes(t, someState(t, 4, 100))
	before := testkit.SnapFiles(t, dir)
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)/2] ^= 1
	newer := append([]byte(nil), good...)
	newer[len(statefile.Magic)]++
	bad := map[string]struct {
		term, index uint64
		data        []byte
	}{
		"empty":         {4, 100, nil},
		"cut":           {4, 100, good[:len(good)-1]},
		"flipped":       {4, 100, flipped},
		"trailing":      {4, 100, append(good[:len(good):len(good)], 0)},
		"newer":         {4, 100, newer},
		"another index": {4, 101, good},
		"another term":  {5, 100, good},
	}
	wantFiles := func(what string, want []string) {
		t.Helper()
		if now := testkit.SnapFiles(t, dir); strings.Join(now, " ") != strings.Join(want, " ") {
			t.Errorf("%s: in snap/: %v, want %v", what, now, want)
		}
	}
	for name, c := range bad {
		if err := receive(t, o.storage, c.term, c.index, c.data); err == nil {
			t.Errorf("%s: taken", name)
		}
		wantFiles(name, before)
	}
	b := newInbox(zap.NewNop(), o.storage)
	if err := b.take(snapMessage(4, 100), 0, nil); err == nil {
		t.Error("a message without a file: taken")
	}
	if err := b.take(&raftpb.Message{Type: raftpb.MsgSnap.Enum()}, 0, nil); err != nil {
		t.Errorf("an empty snapshot, which raft ignores: %v", err)
	}
	wantFiles("messages alone", before)

	// A message that is refused takes its file with it.
	_, err := b.SaveDBFrom(strings.NewReader(string(good)), 100)
	testkit.Must(t, err)
	refused := errors.New("no")
	if err := b.take(snapMessage(4, 100), 0, refused); !errors.Is(err, refused) {
		t.Errorf("a refused message: %v", err)
	}
	wantFiles("a refused message", before)

	incoming := incomingPath(dir, 4, 100)
	for range 2 { // the same one twice, as two leaders may send it
		testkit.Must(t, receive(t, o.storage, 4, 100, good))
		wantIncoming(t, incoming, good)
	}
	after := testkit.SnapFiles(t, dir)
	if len(after) != len(before)+1 {
		t.Errorf("in snap/: %v", after)
	}
	testkit.Must(t, receive(t, o.storage, 4, 100, flipped)) // the good one is here
	wantFiles("a bad one beside a good one", after)
	wantIncoming(t, incoming, good)

	// It comes a third time when it is installed, and is installed once.
	testkit.Must(t, o.append([]*raftpb.Message{received(t, o.storage, someState(t, 4, 100), 4, 2)}))
	installed := testkit.SnapFiles(t, dir)
	testkit.Must(t, receive(t, o.storage, 4, 100, good))
	testkit.Must(t, receive(t, o.storage, 3, 50, statetest.Bytes(t, someState(t, 3, 50)))) // an older one
	wantFiles("one that is installed", installed)
	wantState(t, openDisk(t, testkit.Crashed(t, dir)), 100)
}

// Without this a node that was added since the newest snapshot waits long for
// one that knows it, written at leisure.
func TestSnapshotForANewMemberIsAwaited(t *testing.T) {
	testkit.InBubble(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		kv := newTestStore()
		kv.wanted = make(chan struct{}, 1)
		s := &storage{recorded: new(wait.Index)}
		c := &courier{tick: time.Second, members: kv, storage: s, life: life}
		snapshotOf := func(index uint64, voters ...uint64) {
			s.newest.Store(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
				Index: new(index), ConfState: &raftpb.ConfState{Voters: voters}}})
			s.recorded.Advance(index)
		}
		snapshotOf(1, 1)
		got := make(chan *raftpb.Snapshot)
		go func() {
			snap, err := c.snapshotWith(2)
			if err != nil {
				t.Error(err)
			}
			got <- snap
		}()
		for range 2 { // when the writing begins it is set back, and it must come again
			time.Sleep(c.tick)
			synctest.Wait()
			if !s.tail.awaited.Swap(false) {
				t.Error("it is not awaited")
			}
		}
		snapshotOf(2, 1, 2)
		if snap := <-got; snap.GetMetadata().GetIndex() != 2 {
			t.Errorf("got %v", snap)
		}
	})
}

func wantIncoming(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes (%v), want %d", path, len(got), err, len(want))
	}
}
