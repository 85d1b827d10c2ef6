package storage

import (
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/walfile"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// breakFile makes the process's writes to an open file go to a device instead:
// /dev/full fails every write for want of space, /dev/null every fsync.
func breakFile(t *testing.T, path, device string) {
	t.Helper()
	d, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no %s here: %v", device, err)
	}
	defer d.Close()
	const fds = "/proc/self/fd"
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Skipf("no %s here: %v", fds, err)
	}
	broken := 0
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(fds, e.Name())); err != nil || target != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		testkit.Must(t, err)
		testkit.Must(t, syscall.Dup3(int(d.Fd()), fd, syscall.O_CLOEXEC))
		broken++
	}
	if broken == 0 {
		t.Fatalf("%s is not open", path)
	}
}

// Without this a node acknowledges what it could not write (raftexample), and
// has lost it after the next start.
func TestStorageFailedWriteIsAnError(t *testing.T) {
	t.Parallel()
	cases := map[string]func(t *testing.T, o *Opened) error{
		"entries": func(t *testing.T, o *Opened) error {
			return o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 5, testkit.Entries(2, 6, 8, 10)...)})
		},
		"overwritten entries": func(t *testing.T, o *Opened) error {
			return o.Append([]*raftpb.Message{testkit.AppendMessage(3, 1, 2, testkit.Entries(3, 4, 4, 10)...)})
		},
		"a vote": func(t *testing.T, o *Opened) error {
			return o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 1)})
		},
		"a snapshot": func(t *testing.T, o *Opened) error {
			return o.Append([]*raftpb.Message{received(t, o.Storage, someState(t, 2, 50), 2, 1)})
		},
		"an own snapshot": func(t *testing.T, o *Opened) error {
			writeSomeState(t, o.Dir, someState(t, 2, 4))
			return o.Written(someState(t, 2, 4))
		},
	}
	for _, device := range []string{"/dev/full", "/dev/null"} {
		for name, write := range cases {
			t.Run(name+" to "+device, func(t *testing.T) {
				dir := newDisk(t)
				o := openDisk(t, dir)
				synced := testkit.Entries(2, 2, 5, 10)
				testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 2, synced...)}))
				flushMark(t, o)
				was := markOf(t, dir)
				breakFile(t, testkit.Segments(t, dir)[0], device)
				if err := write(t, o); err == nil || !strings.Contains(err.Error(), "write-ahead log") {
					t.Fatalf("error %v", err)
				}
				// Nothing was promised: not to raft, nor in the mark, not even
				// when the storage is closed.
				if o.Last != 5 {
					t.Errorf("the log is said to end at %d", o.Last)
				}
				wantEntries(t, o, synced)
				crash := testkit.Crashed(t, dir)
				if o.Close() == nil {
					t.Error("closing it is no error")
				}
				if m := markOf(t, dir); m.Index > was.Index || m.Term != was.Term || m.Vote != was.Vote {
					t.Errorf("the mark was %+v, and is %+v", was, m)
				}
				for _, dir := range []string{dir, crash} {
					again := openDisk(t, dir)
					wantEntries(t, again, synced)
					wantHard(t, again, 2, 1, 2)
					wantState(t, again, state.FirstIndex)
				}
			})
		}
	}
}

// Without this entries that the mark covers are overwritten although it could
// not be lowered: the next start takes the shorter log for a damaged one.
func TestStorageFailedMarkStopsOverwrite(t *testing.T) {
	dir := newDisk(t)
	o := openDisk(t, dir)
	old := testkit.Entries(2, 2, 9, 10)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 2, old...)}))
	flushMark(t, o)
	breakFile(t, filepath.Join(dir, "mark"), "/dev/full")
	if err := o.Append([]*raftpb.Message{testkit.AppendMessage(3, 1, 2, testkit.Entries(3, 4, 4, 10)...)}); err == nil {
		t.Fatal("overwritten")
	}
	wantEntries(t, openDisk(t, testkit.Crashed(t, dir)), old)
}

// Without this a full disk kills the process in the middle of a new segment, by
// a nil pointer (raftexample), or leaves a log that does not start.
func TestStorageFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=3600k"); err != nil {
		t.Skipf("a small file system is needed: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	testkit.Must(t, os.CopyFS(dir, os.DirFS(newDisk(t))))
	o := openDisk(t, dir)
	var synced []*raftpb.Entry
	var err error
	for i := uint64(2); i < 100 && err == nil; i++ {
		e := testkit.Entries(2, i, i, 100<<10)
		if err = o.Append([]*raftpb.Message{testkit.AppendMessage(2, 1, 1, e...)}); err == nil {
			synced = append(synced, e...)
		}
	}
	if err == nil {
		t.Fatal("10 MB on 3.6 MB")
	}
	if !strings.Contains(err.Error(), "no space") {
		t.Errorf("message: %v", err)
	}
	o.Close()
	again := openDisk(t, testkit.Crashed(t, dir)) // on a disk with room
	if again.Last < walfile.LastIndex(synced) {
		t.Fatalf("the log ends at %d, but %d was acknowledged", again.Last, walfile.LastIndex(synced))
	}
	got, err := again.Mem.Entries(2, walfile.LastIndex(synced)+1, ^uint64(0))
	testkit.Must(t, err)
	if len(got) != len(synced) {
		t.Fatalf("%d entries of %d", len(got), len(synced))
	}
}
