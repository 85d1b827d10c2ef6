package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/storage/snapshots"
	"raftkv/internal/testkit"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Without this a snapshot that cannot be written ends the node, or is never tried
// again, or nobody hears of it.
func TestSnapshotThatFailsIsTriedAgain(t *testing.T) {
	o := openDisk(t, newDisk(t))
	core, logs := observer.New(zap.WarnLevel)
	o.Trouble.Log = zap.New(core)
	redone := make(chan struct{}, 1)
	o.Redo = func() { redone <- struct{}{} }
	ctx, cancel := context.WithCancel(context.Background())
	states, writer, written, done := make(chan *state.State), make(chan struct{}, 1), make(chan *state.State), make(chan error, 1)
	go func() { done <- o.WriteSnapshots(ctx, states, writer, written) }()
	defer func() {
		cancel()
		testkit.Must(t, <-done)
	}()
	st := o.State.Copy()
	st.Index++
	hand := func() { writer <- struct{}{}; states <- st }

	snaps := filepath.Join(o.Dir, "snap")
	testkit.Must(t, os.Rename(snaps, snaps+".away")) // as good an error as any
	hand()
	select {
	case <-redone:
	case err := <-done:
		done <- nil
		t.Fatalf("it ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("it is not tried again")
	}
	if o.Trouble.Present() == nil || o.Trouble.Count.Load() != 1 || logs.FilterMessageSnippet("cannot write a snapshot").Len() != 1 {
		t.Errorf("%v after %d, logged %v", o.Trouble.Present(), o.Trouble.Count.Load(), logs.All())
	}
	if got := o.Tail.Writing.Load(); got != o.SnapIndex.Load() {
		t.Errorf("a snapshot of %d counts as being written", got)
	}
	testkit.Must(t, os.Rename(snaps+".away", snaps))
	hand()
	select {
	case got := <-written:
		testkit.Must(t, o.Written(got))
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was written")
	}
	if err := o.Trouble.Present(); err != nil || o.SnapIndex.Load() != st.Index {
		t.Errorf("after a success: %v, at %d", err, o.SnapIndex.Load())
	}
}

// A snapshot of its own leaves of the disk what the log needs.
func TestSnapshotThatIsTooLarge(t *testing.T) {
	o := openDisk(t, newDisk(t))
	o.Trouble.Disk = func(string) (durable.Disk, error) { return durable.Disk{Free: 10 << 20, Total: 1 << 30}, nil }
	o.Trouble.Keep.Store(8 << 20)
	if err := o.Trouble.Check(o.Dir, 2<<20); err != nil {
		t.Errorf("one that just fits: %v", err)
	}
	if err := o.Trouble.Check(o.Dir, 2<<20+1); !errors.Is(err, snapshots.ErrKeepFree) {
		t.Errorf("one that is a byte too large: %v", err)
	}
}
