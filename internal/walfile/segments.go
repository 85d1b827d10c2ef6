package walfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Segment is one file of a log.
type Segment struct {
	Path  string
	Seq   uint64 // its place in the order of segments
	First uint64 // the index from which on its entries are, as its name announces
}

// Create makes a WAL whose segments are headed by meta, and that begins at a snapshot,
// unless its index is 0.
func Create(log *zap.Logger, dir string, meta []byte, at *walpb.Snapshot) error {
	w, err := wal.Create(log.Named("wal"), dir, meta)
	if err != nil {
		return err
	}
	if at.GetIndex() > 0 {
		hard := &raftpb.HardState{Term: new(at.GetTerm()), Vote: new(uint64(0)), Commit: new(at.GetIndex())}
		err = errors.Join(w.Save(hard, nil), w.SaveSnapshot(at))
	}
	return errors.Join(err, w.Close())
}

// Segments returns the segments of a log in their order, and beside them the files
// that end as one and have no name of one.
func Segments(walDir string) (segments []Segment, foreign []string, err error) {
	entries, err := os.ReadDir(walDir) // sorted by name, so by number
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(walDir, e.Name())
		if seq, first, ok := ParseSegmentName(e.Name()); ok {
			segments = append(segments, Segment{path, seq, first})
		} else if strings.HasSuffix(e.Name(), ".wal") {
			foreign = append(foreign, path)
		}
	}
	return segments, foreign, nil
}

// ParseSegmentName takes apart the name of a segment.
func ParseSegmentName(name string) (seq, first uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &first); err != nil {
		return 0, 0, false
	}
	return seq, first, name == fmt.Sprintf("%016x-%016x.wal", seq, first)
}

// RemoveSegments removes the WAL segments that end before index. Each removal is
// durable before the next: after a power failure one that was undone, before one
// that was not, would look like a log with a hole.
func RemoveSegments(walDir string, index uint64) error {
	segments, foreign, err := Segments(walDir)
	if err == nil && len(foreign) > 0 {
		err = fmt.Errorf("unexpected file %s", foreign[0])
	}
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(segments) && segments[i+1].First < index; i++ {
		if err := errors.Join(os.Remove(segments[i].Path), durable.SyncDir(walDir)); err != nil {
			return err
		}
	}
	return nil
}

// RemoveTemps removes what the WAL has begun to make and not named.
func RemoveTemps(walDir string) error {
	names, err := fileutil.ReadDir(walDir, fileutil.WithExt(".tmp"))
	for _, name := range names {
		err = errors.Join(err, os.Remove(filepath.Join(walDir, name)))
	}
	return err
}
