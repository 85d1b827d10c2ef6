package storage

import (
	"bytes"
	"errors"
	"os"
	"raftkv/internal/state/statetest"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"strings"
	"testing"

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
		if err := receive(t, o.Storage, c.term, c.index, c.data); err == nil {
			t.Errorf("%s: taken", name)
		}
		wantFiles(name, before)
	}
	b := NewInbox(zap.NewNop(), o.Storage)
	if err := b.Take(snapMessage(4, 100), 0, nil); err == nil {
		t.Error("a message without a file: taken")
	}
	if err := b.Take(&raftpb.Message{Type: raftpb.MsgSnap.Enum()}, 0, nil); err != nil {
		t.Errorf("an empty snapshot, which raft ignores: %v", err)
	}
	wantFiles("messages alone", before)

	// A message that is refused takes its file with it.
	_, err := b.SaveDBFrom(strings.NewReader(string(good)), 100)
	testkit.Must(t, err)
	refused := errors.New("no")
	if err := b.Take(snapMessage(4, 100), 0, refused); !errors.Is(err, refused) {
		t.Errorf("a refused message: %v", err)
	}
	wantFiles("a refused message", before)

	incoming := incomingPath(dir, 4, 100)
	for range 2 { // the same one twice, as two leaders may send it
		testkit.Must(t, receive(t, o.Storage, 4, 100, good))
		wantIncoming(t, incoming, good)
	}
	after := testkit.SnapFiles(t, dir)
	if len(after) != len(before)+1 {
		t.Errorf("in snap/: %v", after)
	}
	testkit.Must(t, receive(t, o.Storage, 4, 100, flipped)) // the good one is here
	wantFiles("a bad one beside a good one", after)
	wantIncoming(t, incoming, good)

	// It comes a third time when it is installed, and is installed once.
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 100), 4, 2)}))
	installed := testkit.SnapFiles(t, dir)
	testkit.Must(t, receive(t, o.Storage, 4, 100, good))
	testkit.Must(t, receive(t, o.Storage, 3, 50, statetest.Bytes(t, someState(t, 3, 50)))) // an older one
	wantFiles("one that is installed", installed)
	wantState(t, openDisk(t, testkit.Crashed(t, dir)), 100)
}

func wantIncoming(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes (%v), want %d", path, len(got), err, len(want))
	}
}
