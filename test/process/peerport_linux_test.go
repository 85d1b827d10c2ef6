package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Guarantee: a snapshot that comes in leaves room on the disk, and nothing behind
// when it breaks off.
func TestProcEndlessSnapshot(t *testing.T) {
	testkit.NeedRoot(t)
	t.TempDir() // what is below it is removed last, before that the disk is unmounted
	mounted := ""
	t.Cleanup(func() {
		if mounted == "" {
			return
		}
		if err := syscall.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	})
	c := newProcCluster(t, 3)
	const disk, reserve = 400 << 20, 32 << 20
	dir := c.nodes[1].dataDir
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", disk)); err != nil {
		testkit.CannotRun(t, err.Error())
	}
	mounted = dir
	c.start()
	if c.leader() == 1 {
		if r := c.json("POST", 1, "/v1/leader", `{"id":2}`); r.status != 200 {
			t.Fatal(r)
		}
	}
	f := c.forger(1)
	s := c.status(1)
	meta := &raftpb.SnapshotMetadata{Index: new(uint64(1e9)), Term: new(s.Term), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}}
	upload := func(file io.Reader) int {
		m := f.message(raftpb.MsgSnap, 2, s.Term)
		m.Snapshot = &raftpb.Snapshot{Metadata: meta}
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		head := append(binary.BigEndian.AppendUint64(nil, uint64(len(b))), b...)
		return f.status(f.request("POST", "/raft/snapshot", 2, "", io.MultiReader(bytes.NewReader(head), file)))
	}
	free := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * int64(st.Bsize)
	}
	before := free()
	least := before
	done := make(chan int, 1)
	go func() { done <- upload(procZeros{}) }()
	for running := true; running; {
		select {
		case got := <-done:
			if running = false; got == 204 {
				t.Error("a file without an end was taken")
			}
		case <-time.After(time.Millisecond):
			least = min(least, free())
		}
	}
	t.Logf("%d MiB free, at least %d MiB", before>>20, least>>20)
	if least < reserve {
		t.Errorf("%d MiB were left", least>>20)
	}
	if least > before/2 {
		t.Error("the file was refused at once: this tests nothing")
	}
	// One that comes to its end is no state; what is left of it goes, too.
	if got := upload(io.LimitReader(procZeros{}, 1<<20)); got == 204 {
		t.Error("zeros were taken for a state")
	}
	procEventually(t, 10*time.Second, "the files to be removed", func() error {
		files, err := os.ReadDir(dir + "/snap")
		if err == nil && slices.ContainsFunc(files, func(e os.DirEntry) bool { return !strings.HasSuffix(e.Name(), ".state") }) {
			err = fmt.Errorf("in snap/: %v", files)
		}
		return err
	})
	// The disk was short for a moment; then it takes writes again.
	procEventually(t, 10*time.Second, "writes to be taken", func() error {
		if r := c.do(http.MethodPut, 2, "/k", []byte("1")); r.status != http.StatusNoContent {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	c.wantGet(1, "k", "1")
}
