package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// walContents is what a WAL holds, read without touching it.
type walContents struct {
	meta     []byte
	hard     *raftpb.HardState
	snapshot *walpb.Snapshot   // the newest; never nil
	entries  []*raftpb.Entry   // the log behind that snapshot
	records  []*walpb.Snapshot // all snapshots recorded
}

// readWAL reads all segments of a WAL, up to the end or the first torn frame.
//
// wal.ReadAll reads a log too, but starts at a snapshot, and does not look at
// the entries up to it. When those had overwritten a longer log, what they
// overwrote comes back behind the snapshot: a log that never was, with which
// this node would vote for a candidate that lacks what it acknowledged. So
// every record counts here, in the order in which it was written.
func readWAL(walDir string) (walContents, error) {
	c := walContents{hard: &raftpb.HardState{}, snapshot: &walpb.Snapshot{}}
	files, err := openSegments(walDir)
	if err != nil {
		return c, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // only read from
		}
	}()
	readers := make([]fileutil.FileReader, len(files))
	for i, f := range files {
		readers[i] = fileutil.NewFileReader(f)
	}
	err = c.readAll(wal.NewDecoder(readers...))
	if err == nil {
		err = c.settle()
	}
	if err != nil {
		return c, fmt.Errorf("write-ahead log %s: %w", walDir, err)
	}
	return c, nil
}

func openSegments(walDir string) ([]*os.File, error) {
	names, err := fileutil.ReadDir(walDir, fileutil.WithExt(".wal"))
	if err != nil {
		return nil, err
	}
	var files []*os.File
	var last uint64
	for i, name := range names {
		seq, _, ok := parseSegmentName(name)
		f, err := os.Open(filepath.Join(walDir, name))
		if err == nil {
			files = append(files, f)
		}
		if !ok || err != nil || (i > 0 && seq != last+1) {
			for _, f := range files {
				_ = f.Close() // only opened
			}
			return nil, errors.Join(fmt.Errorf("segment before %s in %s is missing", name, walDir), err)
		}
		last = seq
	}
	return files, nil
}

func (c *walContents) readAll(d wal.Decoder) error {
	rec := &walpb.Record{}
	for {
		err := d.Decode(rec)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // the mark and inspectTail know whether this may be the end
		}
		if err == nil {
			err = c.add(rec, d)
		}
		if err != nil {
			return err
		}
	}
}

// add takes in one record.
func (c *walContents) add(rec *walpb.Record, d wal.Decoder) error {
	switch rec.GetType() {
	case wal.MetadataType:
		c.meta = rec.GetData()
	case wal.CrcType:
		if crc := d.LastCRC(); crc != 0 && rec.Validate(crc) != nil {
			return wal.ErrCRCMismatch
		}
		d.UpdateCRC(rec.GetCrc())
	case wal.StateType:
		hard := &raftpb.HardState{}
		if err := decodeRecord(rec, hard); err != nil {
			return err
		}
		if hard.Term == nil || hard.Vote == nil || hard.Commit == nil {
			return errors.New("a hard state lacks a field")
		}
		c.hard = hard
	case wal.EntryType:
		e := &raftpb.Entry{}
		if err := decodeRecord(rec, e); err != nil {
			return err
		}
		normal := e.GetType() == raftpb.EntryNormal
		if e.Term == nil || e.Index == nil || e.GetType() == raftpb.EntryConfChangeV2 || !normal && len(e.GetData()) == 0 {
			return fmt.Errorf("entry %d is not one that is ever written", e.GetIndex())
		}
		return c.addEntry(e)
	case wal.SnapshotType:
		s := &walpb.Snapshot{}
		if err := decodeRecord(rec, s); err != nil {
			return err
		}
		c.addSnapshot(s)
	default:
		return fmt.Errorf("record of unknown type %d", rec.GetType())
	}
	return nil
}

// decodeRecord decodes a record strictly. The checksum of a record covers what
// it holds, but not the type that says how to read it: with one bit flipped, an
// entry would pass for a hard state, and a hard state for an entry.
func decodeRecord(rec *walpb.Record, into proto.Message) error {
	if err := proto.Unmarshal(rec.GetData(), into); err != nil {
		return err
	}
	if len(into.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("a record of type %d has fields of another type", rec.GetType())
	}
	return nil
}

// addEntry: an entry overwrites what is at and behind its index (thesis §3.5).
func (c *walContents) addEntry(e *raftpb.Entry) error {
	if len(c.entries) == 0 || e.GetIndex() <= c.entries[0].GetIndex() {
		c.entries = []*raftpb.Entry{e}
		return nil
	}
	at := e.GetIndex() - c.entries[0].GetIndex()
	if at > uint64(len(c.entries)) {
		return fmt.Errorf("entry %d follows entry %d", e.GetIndex(), lastIndex(c.entries))
	}
	c.entries = append(c.entries[:at], e) // nobody else has the slice yet
	return nil
}

// addSnapshot: raft installs a snapshot from the leader only over a log that
// does not have its last entry, and then nothing of that log is left. A
// snapshot of this node's own is of an entry in its log.
func (c *walContents) addSnapshot(s *walpb.Snapshot) {
	c.records = append(c.records, s)
	if len(c.entries) == 0 || s.GetIndex() < c.entries[0].GetIndex() {
		return // older than the segments that are left
	}
	at := s.GetIndex() - c.entries[0].GetIndex()
	if at >= uint64(len(c.entries)) || c.entries[at].GetTerm() != s.GetTerm() {
		c.entries = nil
	}
}

// settle picks the snapshot that counts, the newest, and the log behind it. A
// snapshot is of committed entries, whatever the hard state knew when it was
// last written.
func (c *walContents) settle() error {
	for _, s := range c.records {
		if s.GetIndex() >= c.snapshot.GetIndex() {
			c.snapshot = s
		}
	}
	from := c.snapshot.GetIndex()
	if c.hard.GetCommit() < from {
		c.hard.Commit = new(from)
	}
	for len(c.entries) > 0 && c.entries[0].GetIndex() <= from {
		c.entries = c.entries[1:]
	}
	if len(c.entries) > 0 && c.entries[0].GetIndex() != from+1 {
		return fmt.Errorf("entries %d to %d behind snapshot %d are missing",
			from+1, c.entries[0].GetIndex()-1, from)
	}
	return nil
}

// last is the index of the last entry.
func (c *walContents) last() uint64 {
	return max(c.snapshot.GetIndex(), lastIndex(c.entries))
}

func lastIndex(entries []*raftpb.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].GetIndex()
}
