package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
)

// The records of a state file. The values are on disk: never reuse one. What
// a file of records looks like is statefile.go's business.
const (
	headRecord    byte = 1 // index, term, revision, membership changes
	itemRecord    byte = 2 // create, mod, version, key, value
	memberRecord  byte = 3 // id, learner, instance, peer URL, client URL; then, not in the oldest files: pinned, added
	removedRecord byte = 4 // id
	windowRecord  byte = 5 // node, boot, low, applied
)

// writeState writes the whole replicated state, as of its index. The order of
// the records is fixed, so that equal states make equal files.
func writeState(w io.Writer, s *state) error {
	sw := newStateWriter(w)
	var b []byte
	put := func(kind byte) error { return sw.record(kind, b) }

	b = appendUvarints(nil, s.index, s.term, s.revision, s.membership.changes)
	if err := put(headRecord); err != nil {
		return err
	}
	for _, m := range s.membership.sorted() {
		b = appendMember(b[:0], m)
		if err := put(memberRecord); err != nil {
			return err
		}
	}
	for _, id := range sortedKeys(s.membership.removed) {
		b = appendUvarints(b[:0], id)
		if err := put(removedRecord); err != nil {
			return err
		}
	}
	for _, node := range sortedKeys(s.windows) {
		win := s.windows[node]
		b = appendUvarints(b[:0], node, win.boot, win.low, win.applied)
		if err := put(windowRecord); err != nil {
			return err
		}
	}
	var err error
	s.items.Scan(func(key string, it *item) bool {
		b = appendUvarints(b[:0], it.createRevision, it.modRevision, it.version)
		b = appendString(b, key)
		b = append(b, it.value...)
		err = put(itemRecord)
		return err == nil
	})
	if err != nil {
		return err
	}
	return sw.finish()
}

// readState reads what writeState wrote.
func readState(r io.Reader) (*state, error) {
	sr, err := newStateReader(r)
	if err != nil {
		return nil, err
	}
	s := newState(nil)
	for {
		kind, payload, err := sr.next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if err := s.restore(kind, payload); err != nil {
			return nil, err
		}
	}
}

// restore takes over one record of a state file.
func (s *state) restore(kind byte, payload []byte) error {
	f := fields{b: payload}
	switch kind {
	case headRecord:
		s.index, s.term, s.revision, s.membership.changes = f.uvarint(), f.uvarint(), f.uvarint(), f.uvarint()
	case memberRecord:
		m := takeMember(&f)
		s.membership.members[m.ID] = m
	case removedRecord:
		s.membership.removed[f.uvarint()] = true
	case windowRecord:
		s.windows[f.uvarint()] = window{boot: f.uvarint(), low: f.uvarint(), applied: f.uvarint()}
	case itemRecord:
		it := &item{createRevision: f.uvarint(), modRevision: f.uvarint(), version: f.uvarint()}
		key := string(f.bytes())
		it.value = append([]byte(nil), f.b...)
		s.items.Set(key, it)
		s.bytes += uint64(len(key) + len(it.value))
	default:
		return fmt.Errorf("%w: record of kind %d", errNewerFormat, kind)
	}
	if f.bad {
		return fmt.Errorf("%w: record of kind %d is too short", errBadStateFile, kind)
	}
	return nil
}

// readStateFile loads a state file.
func readStateFile(path string) (*state, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	s, err := readState(f)
	if err != nil {
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	return s, nil
}

func appendMember(b []byte, m member) []byte {
	b = appendUvarints(b, m.ID, boolBit(m.Learner), m.Instance)
	b = appendString(b, m.PeerURL)
	b = appendString(b, m.ClientURL)
	return appendUvarints(b, boolBit(m.Pinned), m.Added)
}

func takeMember(f *fields) member {
	m := member{ID: f.uvarint(), Learner: f.uvarint() == 1, Instance: f.uvarint(), PeerURL: string(f.bytes()), ClientURL: string(f.bytes())}
	if len(f.b) > 0 {
		m.Pinned, m.Added = f.uvarint() == 1, f.uvarint()
	}
	return m
}

func boolBit(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

func appendUvarints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// writeSnapshots writes states to disk as they come, one at a time, and
// passes each on when its file is complete.
func (s *storage) writeSnapshots(ctx context.Context, states <-chan *state, writtenC chan<- *state) error {
	for {
		select {
		case st := <-states:
			if st.index <= s.snapIndex.Load() {
				continue // overtaken by one from the leader
			}
			err := writeFileAtomic(statePath(s.dir, st.term, st.index), func(w io.Writer) error {
				return writeState(&contextWriter{ctx, w}, st)
			})
			if ctx.Err() != nil {
				return nil // stopping: the half-written file is gone again
			}
			if err != nil {
				return fmt.Errorf("writing a snapshot: %w", err)
			}
			select {
			case writtenC <- st:
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// contextWriter fails once its context has ended.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}

// receiveSnapshot takes the state out of an incoming snapshot message and puts
// it into a verified file, so that raft never sees a snapshot that this node
// could not load. This, and sendSnapshot in peers.go, is where the way of
// snapshots between nodes is known.
func receiveSnapshot(dir string, m *raftpb.Message) error {
	snap := m.GetSnapshot()
	term, index := snap.GetMetadata().GetTerm(), snap.GetMetadata().GetIndex()
	// A name of its own until it is verified: the same snapshot may arrive
	// twice, and a bad copy must not replace a good one.
	f, err := os.CreateTemp(filepath.Join(dir, "snap"), fmt.Sprintf("%016x-%016x.tmp*", term, index))
	if err != nil {
		return err
	}
	err = errors.Join(writeAndSync(f, snap.GetData()), verifyState(f.Name(), term, index))
	if err == nil {
		err = os.Rename(f.Name(), incomingPath(dir, term, index))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	snap.Data = nil
	return syncDir(filepath.Join(dir, "snap"))
}

func writeAndSync(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func verifyState(path string, term, index uint64) error {
	st, err := readStateFile(path)
	if err != nil {
		return err
	}
	if st.index != index || st.term != term {
		return fmt.Errorf("state of term %d and index %d came as that of term %d and index %d", st.term, st.index, term, index)
	}
	return nil
}
