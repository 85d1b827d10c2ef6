package testkit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Crashed is the directory as a kill of the process would leave it now: what
// was not written is lost. Closing the storage first would flush it.
func Crashed(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(dir, path)
		if err = errors.Join(err, rerr); err != nil || path == dir {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		return CopySparse(filepath.Join(to, rel), path)
	}))
	return to
}

// CopySparse copies a file without writing its zeros, which are most of a
// segment: the fsyncs of a start would have to wait for them.
func CopySparse(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := in.Read(buf)
		if err != nil && err != io.EOF {
			return err
		}
		if n == 0 {
			return out.Truncate(off)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
	}
}

// Plant makes a directory hold a tree.
func Plant(t testing.TB, tree map[string]string) string {
	t.Helper()
	dir, zeros := t.TempDir(), string(make([]byte, 4096))
	for path, content := range tree {
		name := filepath.Join(dir, path)
		if content == "/" {
			Must(t, os.MkdirAll(name, 0o700))
			continue
		}
		Must(t, os.MkdirAll(filepath.Dir(name), 0o700))
		size := int64(len(content))
		for strings.HasSuffix(content, zeros) {
			content = content[:len(content)-len(zeros)] // most of a log's file
		}
		Must(t, os.WriteFile(name, []byte(content), 0o600))
		Must(t, os.Truncate(name, size))
	}
	return dir
}

// Tree is everything in a directory, except the lock: content by path, and
// "/" for a directory.
func Tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir || path == filepath.Join(dir, "lock") {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			tree[rel] = "/"
			return nil
		}
		b, err := os.ReadFile(path)
		tree[rel] = string(b)
		return err
	}))
	return tree
}

// Sums is a Tree with hashes in place of content.
func Sums(t testing.TB, dir string) map[string]string {
	t.Helper()
	sums := make(map[string]string)
	buf := make([]byte, 64<<10)
	Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == filepath.Join(dir, "lock") {
			return err
		}
		if d.IsDir() {
			sums[path] = "/"
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		h := sha256.New()
		_, err = io.CopyBuffer(h, struct{ io.Reader }{f}, buf)
		sums[path] = string(h.Sum(nil))
		return err
	}))
	return sums
}

// WantUnchanged compares a directory with its Sums of before.
func WantUnchanged(t testing.TB, dir string, before map[string]string) {
	t.Helper()
	after := Sums(t, dir)
	for _, path := range slices.Sorted(maps.Keys(before)) {
		if got, ok := after[path]; !ok {
			t.Errorf("%s is gone", path)
		} else if got != before[path] {
			t.Errorf("%s was changed", path)
		}
		delete(after, path)
	}
	for path := range after {
		t.Errorf("%s is new", path)
	}
}

// Segments are the files of the log, oldest first.
func Segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	Must(t, err)
	return names // Glob sorts
}

// SnapFiles are the names in snap/.
func SnapFiles(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "snap"))
	Must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Entries makes entries from..to of a term, each of at least size bytes.
func Entries(term, from, to uint64, size int) []*raftpb.Entry {
	var entries []*raftpb.Entry
	for i := from; i <= to; i++ {
		// No version writes such a batch: its first number does not end.
		data := fmt.Appendf(make([]byte, 0, size+48), "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffentry %d of term %d ", i, term)
		for len(data) < size {
			data = append(data, byte(i)|1)
		}
		entries = append(entries, &raftpb.Entry{Term: new(term), Index: new(i), Data: data})
	}
	return entries
}

// AppendMessage is raft's message to the storage. A term of 0 leaves the hard
// state out, as raft does when it has not changed.
func AppendMessage(term, vote, commit uint64, entries ...*raftpb.Entry) *raftpb.Message {
	m := &raftpb.Message{
		Type: raftpb.MsgStorageAppend.Enum(), To: new(uint64(raft.LocalAppendThread)), From: new(uint64(1)), Entries: entries,
	}
	if term > 0 {
		m.Term, m.Vote, m.Commit = new(term), new(vote), new(commit)
	}
	return m
}

// Patch writes b over what is at offset off of a file, which must exist.
func Patch(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	Must(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.WriteAt(b, off)
	Must(t, err)
}

// FrameAt is the n-th frame of a segment from its start, or from behind the
// last one when n is negative.
func FrameAt(t testing.TB, path string, n int) Frame {
	t.Helper()
	data, err := os.ReadFile(path)
	Must(t, err)
	frames := Frames(t, data)
	if n < 0 {
		n += len(frames)
	}
	return frames[n]
}

// SnapMessage is a snapshot message as it comes from another node.
func SnapMessage(term, index uint64, members *raftpb.ConfState) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), Snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{Term: new(term), Index: new(index), ConfState: members},
	}}
}

// WantOneSnapshot checks that raft, the state and the storage speak of the same
// snapshot: with two, entries would be applied twice or never. members are those
// of the state, and last is where the storage's log ends.
func WantOneSnapshot(t testing.TB, mem *raft.MemoryStorage, index, term uint64, members *raftpb.ConfState, recorded, last uint64) {
	t.Helper()
	snap, err := mem.Snapshot()
	Must(t, err)
	meta := snap.GetMetadata()
	if meta.GetIndex() != index || meta.GetTerm() != term || recorded > index {
		t.Fatalf("raft has the snapshot %d/%d, the state is %d/%d, the storage says %d", meta.GetIndex(), meta.GetTerm(), index, term, recorded)
	}
	if index > 0 && !proto.Equal(meta.GetConfState(), members) {
		t.Fatalf("raft has the members %v, the state has %v", meta.GetConfState(), members)
	}
	end, err := mem.LastIndex()
	Must(t, err)
	if end != last {
		t.Fatalf("raft's log ends at %d, the storage's at %d", end, last)
	}
}
