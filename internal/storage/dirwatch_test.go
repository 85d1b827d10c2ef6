package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/storage/dirwatch"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Without this a node goes on acknowledging writes into files that nobody will find again.
func TestWatchNoticesWhatIsGone(t *testing.T) {
	copyOver := func(t *testing.T, path string) {
		testkit.Must(t, testkit.CopySparse(path+".copy", path))
		testkit.Must(t, os.Rename(path+".copy", path))
	}
	for name, c := range map[string]struct {
		do   func(t *testing.T, dir string, segments []string)
		want string
	}{
		"nothing": {func(*testing.T, string, []string) {}, ""},
		"another file comes": {func(t *testing.T, dir string, _ []string) {
			testkit.Must(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
		}, ""},
		"the directory":            {func(t *testing.T, dir string, _ []string) { testkit.Must(t, os.RemoveAll(dir)) }, "no such file"},
		"the directory is renamed": {func(t *testing.T, dir string, _ []string) { testkit.Must(t, os.Rename(dir, dir+".x")) }, "no such file"},
		"the directory is another": {func(t *testing.T, dir string, _ []string) {
			testkit.Must(t, os.Rename(dir, dir+".x"))
			testkit.Must(t, os.Rename(testkit.Crashed(t, dir+".x"), dir))
		}, "another one"},
		"wal": {func(t *testing.T, dir string, _ []string) {
			// The log makes its next segment meanwhile.
			for os.RemoveAll(filepath.Join(dir, "wal")) != nil {
			}
		}, "no such file"},
		"snap":         {func(t *testing.T, dir string, _ []string) { testkit.Must(t, os.RemoveAll(filepath.Join(dir, "snap"))) }, "no such file"},
		"the mark":     {func(t *testing.T, dir string, _ []string) { testkit.Must(t, os.Remove(filepath.Join(dir, "mark"))) }, "no such file"},
		"another mark": {func(t *testing.T, dir string, _ []string) { copyOver(t, filepath.Join(dir, "mark")) }, "another one"},
		"the state file": {func(t *testing.T, dir string, _ []string) {
			testkit.Must(t, os.Remove(StatePath(dir, state.FirstTerm, state.FirstIndex)))
		}, "no such file"},
		"the first":        {func(t *testing.T, _ string, s []string) { testkit.Must(t, os.Remove(s[0])) }, "is missing"},
		"one between":      {func(t *testing.T, _ string, s []string) { testkit.Must(t, os.Remove(s[1])) }, "is missing"},
		"the last":         {func(t *testing.T, _ string, s []string) { testkit.Must(t, os.Remove(s[len(s)-1])) }, "is missing"},
		"the last is new":  {func(t *testing.T, _ string, s []string) { copyOver(t, s[len(s)-1]) }, "another one"},
		"the first is new": {func(t *testing.T, _ string, s []string) { copyOver(t, s[0]) }, "another one"},
		"all of them": {func(t *testing.T, _ string, s []string) {
			for _, path := range s {
				testkit.Must(t, os.Remove(path))
			}
		}, "is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			o, w := watched(t)
			c.do(t, o.Dir, testkit.Segments(t, o.Dir))
			err := w.Check(context.Background())
			if c.want == "" {
				testkit.Must(t, err)
				return
			}
			if !errors.Is(err, dirwatch.ErrLost) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// watched is a storage with several segments, and a watch that has looked at it.
func watched(t *testing.T) (*Opened, *dirwatch.Watch) {
	t.Helper()
	o := openDisk(t, newDisk(t))
	for i := uint64(2); len(testkit.Segments(t, o.Dir)) < 4; i++ {
		testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, i, testkit.Entries(2, i, i, 300<<10)...)}))
	}
	w := o.newWatch()
	testkit.Must(t, w.Check(context.Background()))
	return o, w
}

// Without this a node ends for what it does itself: new segments, snapshots that it takes or gets, and the files that
// they release.
func TestWatchRaisesNoFalseAlarm(t *testing.T) {
	t.Parallel()
	o, w := watched(t)
	ctx, cancel := context.WithCancel(context.Background())
	looks, ended := 0, make(chan error)
	go func() {
		for ctx.Err() == nil {
			if err := w.Check(context.Background()); err != nil {
				ended <- err
				return
			}
			looks++
		}
		ended <- nil
	}()
	index := o.Last
	for round := range 40 {
		for range 12 {
			index++
			testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, index, testkit.Entries(2, index, index, 200<<10)...)}))
		}
		if round%4 == 3 {
			index += 10
			testkit.Must(t, o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 2, index), 2, 1)}))
			testkit.Must(t, o.clean(t.Context(), index))
			continue
		}
		takeSnapshot(t, o, someState(t, 2, index-3))
	}
	cancel()
	testkit.Must(t, <-ended)
	t.Logf("%d looks", looks)
}
