package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"raftkv/internal/state"
	"raftkv/internal/statefile"
	"sync"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Inbox is where the files of snapshots come in. rafthttp puts them into snap/
// under names of its own, N.snap.db, so that they do not meet this node's
// files; Take looks at them.
type Inbox struct {
	*snap.Snapshotter
	storage *Storage
	mu      sync.Mutex // held while a file is taken in
}

// NewInbox returns the inbox of a storage. Its files come into the directory snap/.
func NewInbox(log *zap.Logger, s *Storage) *Inbox {
	return &Inbox{Snapshotter: snap.New(log.Named("snap"), s.snapDir()), storage: s}
}

// Take takes in the file that came with a snapshot message, so that raft never
// sees a snapshot that this node could not load. Whatever it refuses
// is
// removed: of several files for one index rafthttp keeps the first, so a bad
// one would stand in the way of every later one. The caller passes on refused,
// if it has a reason of its own to refuse the message, and up to where raft has
// committed: what ends there it ignores.
func (b *Inbox) Take(m *raftpb.Message, committed uint64, refused error) error {
	meta, dir := m.GetSnapshot().GetMetadata(), b.storage.Dir
	term, index := meta.GetTerm(), meta.GetIndex()
	b.mu.Lock() // two leaders may send the same one
	defer b.mu.Unlock()
	path, err := b.DBFilePath(index)
	came := err == nil
	known := index <= max(committed, b.storage.SnapIndex.Load()) || Exists(incomingPath(dir, term, index))
	switch {
	case came && (refused != nil || known):
		return errors.Join(refused, b.drop(path))
	case refused != nil || known:
		return refused // nil for one that is known: raft answers where it stands
	case !came:
		return fmt.Errorf("no file came with it: %w", err)
	}
	if err := verifyState(path, meta); err != nil {
		return errors.Join(err, b.drop(path))
	}
	if err := os.Rename(path, incomingPath(dir, term, index)); err != nil {
		return err
	}
	return durable.SyncDir(b.storage.snapDir())
}

// drop removes a file that came in. It does not leave that to others, which may be
// busy while more of them come.
func (b *Inbox) drop(path string) error {
	snaps := b.storage.Snaps
	return errors.Join(snaps.Discard(filepath.Base(path)), snaps.Free(context.Background()))
}

// Exists reports whether there is a file or directory at path. It is false, too, if
// that cannot be found out.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// verifyState reads a state file from end to end, without keeping it, and
// compares it with what the message says of it.
func verifyState(path string, meta *raftpb.SnapshotMetadata) error {
	term, index := meta.GetTerm(), meta.GetIndex()
	st, err := readStateWithoutItems(path)
	if err != nil {
		return fmt.Errorf("received state: %w", err)
	}
	if st.Index != index || st.Term != term {
		return fmt.Errorf("state of term %d and index %d came as that of term %d and index %d", st.Term, st.Index, term, index)
	}
	if err := st.Membership.ConfState().Equivalent(raftpb.EnsureConfState(meta.GetConfState())); err != nil {
		return fmt.Errorf("the members in the state are not those of the message: %w", err)
	}
	return nil
}

// readStateWithoutItems reads a state file from end to end, and keeps all but
// the items.
func readStateWithoutItems(path string) (*state.State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	st := state.New(nil)
	sr, err := statefile.NewReader(f)
	if err == nil {
		err = state.ScanRecords(sr, st, func(string, *state.Item) {})
	}
	return st, err
}
