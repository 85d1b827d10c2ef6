// Package walfile answers: what does a write-ahead log hold, and is its end torn
// or lost? It reads etcd's segments by itself, to tell a write that a crash cut
// short from damage to what was synced, and prepares and rewrites segments.
package walfile

import (
	"bytes"
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

// Contents is what a WAL holds, read without touching it.
type Contents struct {
	Meta     []byte            // what heads every segment
	Hard     *raftpb.HardState // the newest; never nil
	Snapshot *walpb.Snapshot   // the newest; never nil
	records  []*walpb.Snapshot // all snapshots recorded
	shape    shape             // of the log behind the snapshot
	// Entries are those of which shape is the shape, if they were asked for.
	Entries []*raftpb.Entry
	keep    bool
	follow  *follower // nil: nobody takes the entries while they are read

	// Proven is where the part ends that a mark vouches for. A mark is behind
	// the log, so what it speaks of was synced with all that lies before it.
	Proven Place
}

// Place is a place in a WAL: behind a record.
type Place struct {
	Segment int   // by the order of the segments that there are; -1: before all
	Offset  int64 // in the segment
}

// Read reads all segments of a WAL, up to the end or the first torn frame,
// with the entries behind the newest snapshot.
//
// wal.ReadAll reads a log too, but starts at a snapshot, and does not look at
// the entries up to it. When those had overwritten a longer log, what they
// overwrote comes back behind the snapshot: a log that never was, with which
// this node would vote for a candidate that lacks what it acknowledged. So
// every record counts here, in the order in which it was written.
func Read(walDir string) (Contents, error) {
	c := newWALContents()
	c.keep = true
	err := c.read(walDir, math.MaxUint64)
	return c, err
}

// Survey is Read without the entries, which may be more than the memory
// can hold; each reads those. It looks for the entry up to which the mark says
// that the log was synced.
func Survey(walDir string, marked uint64) (Contents, error) {
	c := newWALContents()
	err := c.read(walDir, marked)
	return c, err
}

// Follow is Survey, and passes on the entries behind an index in the same reading: in
// their order, and each once. committed gets those of which the log itself says that
// they are committed, as soon as it says so; rest gets the others, at the end. meta is
// what heads every segment.
//
// It does not read every log. ErrCannotFollow is no news of damage, nor is what was
// passed on worth anything then: Survey and Each read the log that cannot be followed.
// from has to be the index of the snapshot that turns out to count.
func Follow(walDir string, marked, from uint64, committed, rest func(meta []byte, e *raftpb.Entry) error) (Contents, error) {
	c := newWALContents()
	with := func(take func([]byte, *raftpb.Entry) error) func(*raftpb.Entry) error {
		return func(e *raftpb.Entry) error { return take(c.Meta, e) }
	}
	f := &follower{from: from, done: from, take: with(committed)}
	c.follow = f
	if err := c.read(walDir, marked); err != nil {
		return c, err
	}
	c.follow = nil
	if c.Snapshot.GetIndex() != from {
		return c, fmt.Errorf("%w: the snapshot that counts is of entry %d, not %d", ErrCannotFollow, c.Snapshot.GetIndex(), from)
	}
	if err := f.committed(c.Hard.GetCommit()); err != nil {
		return c, err
	}
	if f.done > c.Hard.GetCommit() {
		return c, fmt.Errorf("%w: entry %d was committed, and is not any more", ErrCannotFollow, f.done)
	}
	f.take = with(rest)
	if err := f.committed(math.MaxUint64); err != nil {
		return c, err
	}
	if f.done != c.Last() {
		return c, fmt.Errorf("%w: the log ends at entry %d, not %d", ErrCannotFollow, c.Last(), f.done)
	}
	return c, nil
}

func newWALContents() Contents {
	return Contents{Hard: &raftpb.HardState{}, Snapshot: &walpb.Snapshot{}, Proven: Place{Segment: -1}}
}

func (c *Contents) read(walDir string, marked uint64) error {
	err := Scan(walDir, func(rec *walpb.Record, d wal.Decoder, at Place) error {
		return c.add(rec, d, at, marked)
	})
	if err == nil {
		err = c.Settle()
	}
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir, err)
	}
	return nil
}

// Each passes on the entries of the log behind the snapshot, in their order.
//
// Of the entries that were written for an index the last one counts. It is the
// first one of its term: entries of one index and term are the same, since a
// leader makes one entry for an index (thesis §3.5, Log Matching).
func (c *Contents) Each(walDir string, visit func(*raftpb.Entry) error) error {
	next := c.Snapshot.GetIndex() + 1
	err := Scan(walDir, func(rec *walpb.Record, d wal.Decoder, _ Place) error {
		switch rec.GetType() {
		case wal.CrcType:
			d.UpdateCRC(rec.GetCrc()) // add has compared it
			return nil
		case wal.EntryType:
		default:
			return nil
		}
		e := &raftpb.Entry{}
		if err := DecodeRecord(rec, e); err != nil {
			return err
		}
		if e.GetIndex() != next || !c.shape.has(next, e.GetTerm()) {
			return nil
		}
		next++
		return visit(e)
	})
	if err == nil && next != c.Last()+1 {
		err = fmt.Errorf("entry %d is not there any more", next)
	}
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir, err)
	}
	return nil
}

// Scan passes on the records of all segments, up to the end or the first torn
// frame, with the place behind each. A record is valid during the call.
func Scan(walDir string, visit func(rec *walpb.Record, d wal.Decoder, at Place) error) error {
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
	at := Place{}
	for {
		err := d.Decode(rec)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // the mark and InspectTail know whether this may be the end
		}
		if err != nil {
			return err
		}
		// The offset starts anew with each segment.
		offset := d.LastOffset()
		if offset <= at.Offset {
			at.Segment++
		}
		at.Offset = offset
		if err := visit(rec, d, at); err != nil {
			return err
		}
	}
}

func openSegments(walDir string) ([]*os.File, error) {
	segments, foreign, err := Segments(walDir)
	if err == nil && len(foreign) > 0 {
		err = fmt.Errorf("%s has no name of a segment", foreign[0])
	}
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i, s := range segments {
		f, err := os.Open(s.Path)
		if err == nil {
			files = append(files, f)
		}
		if err != nil || (i > 0 && s.Seq != segments[i-1].Seq+1) {
			for _, f := range files {
				_ = f.Close() // only opened
			}
			return nil, errors.Join(fmt.Errorf("segment before %s in %s is missing", filepath.Base(s.Path), walDir), err)
		}
	}
	return files, nil
}

// add takes in one record.
func (c *Contents) add(rec *walpb.Record, d wal.Decoder, at Place, marked uint64) error {
	switch rec.GetType() {
	case wal.MetadataType:
		c.Meta = rec.GetData()
	case wal.CrcType:
		if crc := d.LastCRC(); crc != 0 && rec.Validate(crc) != nil {
			return wal.ErrCRCMismatch
		}
		d.UpdateCRC(rec.GetCrc())
	case wal.StateType:
		hard := &raftpb.HardState{}
		if err := DecodeRecord(rec, hard); err != nil {
			return err
		}
		if hard.Term == nil || hard.Vote == nil || hard.Commit == nil {
			return errors.New("a hard state lacks a field")
		}
		c.Hard = hard
		return c.follow.committed(hard.GetCommit())
	case wal.EntryType:
		e := &raftpb.Entry{}
		if err := DecodeRecord(rec, e); err != nil {
			return err
		}
		normal := e.GetType() == raftpb.EntryNormal
		if e.Term == nil || e.Index == nil || e.GetType() == raftpb.EntryConfChangeV2 || !normal && len(e.GetData()) == 0 {
			return fmt.Errorf("entry %d is not one that is ever written", e.GetIndex())
		}
		if e.GetIndex() == marked {
			c.Proven = at
		}
		if err := c.addEntry(e); err != nil {
			return err
		}
		return c.follow.entry(e)
	case wal.SnapshotType:
		s := &walpb.Snapshot{}
		if err := DecodeRecord(rec, s); err != nil {
			return err
		}
		// One of this node's own is of an entry before it, and may not have been
		// synced with that.
		if c.addSnapshot(s) && s.GetIndex() == marked {
			c.Proven = at
		}
	default:
		return fmt.Errorf("record of unknown type %d", rec.GetType())
	}
	return nil
}

// DecodeRecord decodes a record strictly. The checksum of a record covers what
// it holds, but not the type that says how to read it: with one bit flipped, an
// entry would pass for a hard state, and a hard state for an entry.
func DecodeRecord(rec *walpb.Record, into proto.Message) error {
	if err := proto.Unmarshal(rec.GetData(), into); err != nil {
		return err
	}
	if len(into.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("a record of type %d has fields of another type", rec.GetType())
	}
	return nil
}

// addEntry: an entry overwrites what is at and behind its index (thesis §3.5).
func (c *Contents) addEntry(e *raftpb.Entry) error {
	if err := c.shape.Add(e.GetIndex(), e.GetTerm()); err != nil || !c.keep {
		return err
	}
	if len(c.Entries) == 0 || e.GetIndex() <= c.Entries[0].GetIndex() {
		c.Entries = []*raftpb.Entry{e}
		return nil
	}
	at := e.GetIndex() - c.Entries[0].GetIndex()
	c.Entries = append(c.Entries[:at], e) // nobody else has the slice yet
	return nil
}

// addSnapshot: raft installs a snapshot from the leader only over a log that
// does not have its last entry, and then nothing of that log is left. A
// snapshot of this node's own is of an entry in its log. replaced: it is not.
func (c *Contents) addSnapshot(s *walpb.Snapshot) (replaced bool) {
	c.records = append(c.records, s)
	if !c.shape.empty() && s.GetIndex() < c.shape.first {
		return false // older than the segments that are left
	}
	if c.shape.has(s.GetIndex(), s.GetTerm()) {
		return false
	}
	c.shape.clear()
	c.Entries = nil
	c.follow.clear()
	return true
}

// Settle picks the snapshot that counts, the newest, and the log behind it. A
// snapshot is of committed entries, whatever the hard state knew when it was
// last written.
func (c *Contents) Settle() error {
	for _, s := range c.records {
		if s.GetIndex() >= c.Snapshot.GetIndex() {
			c.Snapshot = s
		}
	}
	from := c.Snapshot.GetIndex()
	if c.Hard.GetCommit() < from {
		c.Hard.Commit = new(from)
	}
	c.shape.dropTo(from)
	for len(c.Entries) > 0 && c.Entries[0].GetIndex() <= from {
		c.Entries = c.Entries[1:]
	}
	if !c.shape.empty() && c.shape.first != from+1 {
		return fmt.Errorf("entries %d to %d behind snapshot %d are missing", from+1, c.shape.first-1, from)
	}
	return nil
}

// Last is the index of the last entry.
func (c *Contents) Last() uint64 {
	return max(c.Snapshot.GetIndex(), c.shape.last())
}

// LastIndex returns the index of the last of these entries, 0 if there is none.
func LastIndex(entries []*raftpb.Entry) uint64 {
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].GetIndex()
}

// errEnough ends a Scan.
var errEnough = errors.New("enough was read")

// Metadata returns the metadata that heads a WAL, without reading further; nil if it cannot
// be read.
func Metadata(walDir string) (meta []byte) {
	_ = Scan(walDir, func(rec *walpb.Record, d wal.Decoder, _ Place) error {
		switch rec.GetType() {
		case wal.CrcType:
			d.UpdateCRC(rec.GetCrc())
			return nil
		case wal.MetadataType:
			meta = bytes.Clone(rec.GetData())
		}
		return errEnough
	})
	return meta
}
