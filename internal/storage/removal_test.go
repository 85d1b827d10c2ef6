package storage

import (
	"context"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/storage/disposal"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// atSteps is a context that calls a function whenever it is asked whether it has
// ended: whoever frees files asks before each step.
type atSteps struct {
	context.Context
	before func()
}

// Err calls the function.
func (s atSteps) Err() error { s.before(); return s.Context.Err() }

// lengthen makes a file so large that it goes in three steps.
func lengthen(t *testing.T, path string) {
	t.Helper()
	testkit.Must(t, os.Truncate(path, 2*durable.FreeStep+1000))
}

// snapSizes are the files in snap/, the names of those on their way out cut short,
// with their sizes in steps.
func snapSizes(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, name := range testkit.SnapFiles(t, dir) {
		info, err := os.Stat(filepath.Join(dir, "snap", name))
		testkit.Must(t, err)
		if disposal.IsGone(name) {
			all = append(all, "gone:"+strings.Repeat("#", 1+int(info.Size()/durable.FreeStep)))
		} else {
			all = append(all, strings.TrimLeft(strings.SplitN(name, "-", 2)[1], "0")+":"+strings.Repeat("#", 1+int(info.Size()/durable.FreeStep)))
		}
	}
	return all
}

// A follower is sent a snapshot, slowly, while two newer ones are taken; then it has
// all of it. A kill at any step of what follows leaves a directory with the newest.
func TestStorageOldStateGoesInSteps(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 60, testkit.Entries(2, 2, 60, 100)...)}))
	takeSnapshot(t, o, someState(t, 2, 0x15))
	lengthen(t, StatePath(dir, 2, 0x15))
	sent, err := o.OpenState(2, 0x15)
	testkit.Must(t, err)

	var crashes []string
	var steps [][]string
	step := atSteps{t.Context(), func() {
		crashes = append(crashes, testkit.Crashed(t, dir))
		steps = append(steps, snapSizes(t, dir))
	}}
	take := func(index uint64) {
		t.Helper()
		st := someState(t, 2, index)
		writeSomeState(t, dir, st)
		testkit.Must(t, o.Written(st))
		lengthen(t, StatePath(dir, 2, index))
		testkit.Must(t, o.clean(step, index))
	}
	for _, index := range []uint64{0x20, 0x30} {
		take(index)
		if info, err := sent.Stat(); err != nil || info.Size() != 2*durable.FreeStep+1000 || !Exists(StatePath(dir, 2, 0x15)) {
			t.Fatalf("while it is sent: %v, %v", info, err)
		}
	}
	if got := snapSizes(t, dir); !slices.Equal(got, []string{"15.state:###", "30.state:###"}) {
		t.Errorf("before the follower has it: %v", got)
	}
	testkit.Must(t, sent.Close())
	<-o.Snaps.More()
	testkit.Must(t, o.clean(step, 0x30))
	crashes = append(crashes, testkit.Crashed(t, dir))
	if got := snapSizes(t, dir); !slices.Equal(got, []string{"30.state:###"}) {
		t.Errorf("when the follower has it: %v", got)
	}

	// Once for the one that nobody read, and once for the one that was sent.
	var want [][]string
	for _, stay := range [][]string{{"15.state:###", "30.state:###"}, {"30.state:###"}} {
		for _, left := range []string{"###", "##", "#"} {
			want = append(want, slices.Sorted(slices.Values(append([]string{"gone:" + left}, stay...))))
		}
	}
	for i := range steps {
		slices.Sort(steps[i])
	}
	if !slices.EqualFunc(steps, want, slices.Equal) {
		t.Errorf("the steps were\n%v, want\n%v", steps, want)
	}
	for i, crash := range crashes {
		testkit.Must(t, os.Truncate(StatePath(crash, 2, 0x30), stateSize(t, 0x30)))
		wantState(t, openDisk(t, crash), 0x30)
		if got := testkit.SnapFiles(t, crash); len(got) != 1 {
			t.Errorf("after a kill at step %d: %v", i, got)
		}
	}
}

// stateSize is how long the state file of an index is.
func stateSize(t *testing.T, index uint64) int64 {
	t.Helper()
	dir := newDisk(t)
	writeSomeState(t, dir, someState(t, 2, index))
	info, err := os.Stat(StatePath(dir, 2, index))
	testkit.Must(t, err)
	return info.Size()
}

// Without this what came in, and is overtaken, goes at once; or the
// persist loop waits until a snapshot that a newer one has overtaken has gone.
func TestStorageOvertakenGoesInSteps(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(4, 2, 20, testkit.Entries(4, 2, 30, 100)...)}))
	writeSomeState(t, dir, someState(t, 4, 0x10)) // written, and then one comes from the leader
	lengthen(t, StatePath(dir, 4, 0x10))
	received(t, o.Storage, someState(t, 4, 0x50), 4, 2) // came, and is overtaken
	lengthen(t, incomingPath(dir, 4, 0x50))
	testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 4, 0x60), 4, 2)}))
	testkit.Must(t, o.Written(someState(t, 4, 0x10)))
	want := []string{"1.state:#", "50.incoming:###", "60.state:#", "gone:###"}
	got := snapSizes(t, dir)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("before they go: %v, want %v", got, want)
	}
	steps := make(map[string]int)
	testkit.Must(t, o.clean(atSteps{t.Context(), func() {
		for _, file := range snapSizes(t, dir) {
			steps[file]++
		}
	}}, 0x60))
	if steps["gone:##"] == 0 || steps["gone:###"] == 0 {
		t.Errorf("seen between the steps: %v", steps)
	}
	if got := testkit.SnapFiles(t, dir); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}
