//go:build unix

package storage

import (
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/watermark"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// What is read ahead while a large state is loaded is bounded: a start has no more
// memory than the node had.
func TestStorageReadsAheadWithinBounds(t *testing.T) {
	const limit, size, last = 8 << 20, 30 << 10, 301
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, last, testkit.Entries(2, 2, last, size)...)}))
	testkit.Must(t, o.Close())
	// The state does not come before the test lets it.
	file := StatePath(dir, state.FirstTerm, state.FirstIndex)
	data, err := os.ReadFile(file)
	testkit.Must(t, err)
	testkit.Must(t, os.Remove(file))
	testkit.Must(t, syscall.Mkfifo(file, 0o600))
	m, err := watermark.Peek(filepath.Join(dir, "mark"))
	testkit.Must(t, err)
	snap, err := newestState(dir)
	testkit.Must(t, err)

	r := startReplay(newJudgement(dir, &m, false), snap, Bounds{Tail: limit})
	read := make(chan error, 1)
	go func() { read <- r.read(m.Index) }()
	// Beside those in the channel there is one that waits to get in.
	if most := int64(cap(r.parts)+1) * (r.most + size + EntryWeight + 100); most > limit*3/4 || most < limit/4 {
		t.Errorf("%d bytes are read ahead at most", most)
	}
	for end := time.Now().Add(30 * time.Second); len(r.parts) < cap(r.parts); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is read ahead")
		}
	}
	select {
	case err := <-read:
		t.Errorf("all of the log was read before the state: %v", err)
	default:
	}
	w, err := os.OpenFile(file, os.O_WRONLY, 0)
	testkit.Must(t, err)
	_, err = w.Write(data)
	testkit.Must(t, err)
	testkit.Must(t, w.Close())
	testkit.Must(t, <-read)
	testkit.Must(t, r.wait())
	if at := r.loader.state.Index; at != last {
		t.Errorf("the state is of entry %d, want %d", at, last)
	}
	if weight := r.loader.weight; weight > limit {
		t.Errorf("the tail weighs %d", weight)
	}
}
