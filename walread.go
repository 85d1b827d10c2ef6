package main

import (
	"errors"
	"fmt"
	"io"
	"math"
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
	records  []*walpb.Snapshot // all snapshots recorded
	shape    logShape          // of the log behind the snapshot
	// entries are those of which shape is the shape, if they were asked for.
	entries []*raftpb.Entry
	keep    bool

	// proven is where the part ends that a mark vouches for. A mark is behind
	// the log, so what it speaks of was synced with all that lies before it.
	proven walPlace
}

// walPlace is a place in a WAL: behind a record.
type walPlace struct {
	segment int   // by the order of the segments that there are; -1: before all
	offset  int64 // in the segment
}

// readWAL reads all segments of a WAL, up to the end or the first torn frame,
// with the entries behind the newest snapshot.
//
// wal.ReadAll reads a log too, but starts at a snapshot, and does not look at
// the entries up to it. When those had overwritten a longer log, what they
// overwrote comes back behind the snapshot: a log that never was, with which
// this node would vote for a candidate that lacks what it acknowledged. So
// every record counts here, in the order in which it was written.
func readWAL(walDir string) (walContents, error) {
	c := newWALContents()
	c.keep = true
	err := c.read(walDir, math.MaxUint64)
	return c, err
}

// surveyWAL is readWAL without the entries, which may be more than the memory
// can hold; each reads those. It looks for the entry up to which the mark says
// that the log was synced.
func surveyWAL(walDir string, marked uint64) (walContents, error) {
	c := newWALContents()
	err := c.read(walDir, marked)
	return c, err
}

func newWALContents() walContents {
	return walContents{hard: &raftpb.HardState{}, snapshot: &walpb.Snapshot{}, proven: walPlace{segment: -1}}
}

func (c *walContents) read(walDir string, marked uint64) error {
	err := scanWAL(walDir, func(rec *walpb.Record, d wal.Decoder, at walPlace) error {
		return c.add(rec, d, at, marked)
	})
	if err == nil {
		err = c.settle()
	}
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir, err)
	}
	return nil
}

// each passes on the entries of the log behind the snapshot, in their order.
//
// Of the entries that were written for an index the last one counts. It is the
// first one of its term: entries of one index and term are the same, since a
// leader makes one entry for an index (thesis §3.5, Log Matching).
func (c *walContents) each(walDir string, visit func(*raftpb.Entry) error) error {
	next := c.snapshot.GetIndex() + 1
	err := scanWAL(walDir, func(rec *walpb.Record, d wal.Decoder, _ walPlace) error {
		switch rec.GetType() {
		case wal.CrcType:
			d.UpdateCRC(rec.GetCrc()) // add has compared it
			return nil
		case wal.EntryType:
		default:
			return nil
		}
		e := &raftpb.Entry{}
		if err := decodeRecord(rec, e); err != nil {
			return err
		}
		if e.GetIndex() != next || !c.shape.has(next, e.GetTerm()) {
			return nil
		}
		next++
		return visit(e)
	})
	if err == nil && next != c.last()+1 {
		err = fmt.Errorf("entry %d is not there any more", next)
	}
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir, err)
	}
	return nil
}

// scanWAL passes on the records of all segments, up to the end or the first torn
// frame, with the place behind each. A record is valid during the call.
func scanWAL(walDir string, visit func(rec *walpb.Record, d wal.Decoder, at walPlace) error) error {
	files, err := openSegments(walDir)
	if err != nil {
		return err
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
	d := wal.NewDecoder(readers...)
	rec := &walpb.Record{}
	at := walPlace{}
	for {
		err := d.Decode(rec)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // the mark and inspectTail know whether this may be the end
		}
		if err != nil {
			return err
		}
		// The offset starts anew with each segment.
		offset := d.LastOffset()
		if offset <= at.offset {
			at.segment++
		}
		at.offset = offset
		if err := visit(rec, d, at); err != nil {
			return err
		}
	}
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

// add takes in one record.
func (c *walContents) add(rec *walpb.Record, d wal.Decoder, at walPlace, marked uint64) error {
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
		if e.GetIndex() == marked {
			c.proven = at
		}
		return c.addEntry(e)
	case wal.SnapshotType:
		s := &walpb.Snapshot{}
		if err := decodeRecord(rec, s); err != nil {
			return err
		}
		// One of this node's own is of an entry before it, and may not have been
		// synced with that.
		if c.addSnapshot(s) && s.GetIndex() == marked {
			c.proven = at
		}
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
	if err := c.shape.add(e.GetIndex(), e.GetTerm()); err != nil || !c.keep {
		return err
	}
	if len(c.entries) == 0 || e.GetIndex() <= c.entries[0].GetIndex() {
		c.entries = []*raftpb.Entry{e}
		return nil
	}
	at := e.GetIndex() - c.entries[0].GetIndex()
	c.entries = append(c.entries[:at], e) // nobody else has the slice yet
	return nil
}

// addSnapshot: raft installs a snapshot from the leader only over a log that
// does not have its last entry, and then nothing of that log is left. A
// snapshot of this node's own is of an entry in its log. replaced: it is not.
func (c *walContents) addSnapshot(s *walpb.Snapshot) (replaced bool) {
	c.records = append(c.records, s)
	if !c.shape.empty() && s.GetIndex() < c.shape.first {
		return false // older than the segments that are left
	}
	if c.shape.has(s.GetIndex(), s.GetTerm()) {
		return false
	}
	c.shape.clear()
	c.entries = nil
	return true
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
	c.shape.dropTo(from)
	for len(c.entries) > 0 && c.entries[0].GetIndex() <= from {
		c.entries = c.entries[1:]
	}
	if !c.shape.empty() && c.shape.first != from+1 {
		return fmt.Errorf("entries %d to %d behind snapshot %d are missing", from+1, c.shape.first-1, from)
	}
	return nil
}

// last is the index of the last entry.
func (c *walContents) last() uint64 {
	return max(c.snapshot.GetIndex(), c.shape.last())
}

func lastIndex(entries []*raftpb.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].GetIndex()
}
