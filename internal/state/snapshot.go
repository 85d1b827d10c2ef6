package state

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"raftkv/internal/verdict"
)

// The records of a state file. The values are on disk: never reuse one. What
// a file of records looks like is package statefile's business.
const (
	headRecord    byte = 1 // index, term, revision, membership changes; level
	itemRecord    byte = 2 // create, mod, version, key, value
	memberRecord  byte = 3 // id, learner, instance, peer URL, client URL; level, pinned, added, doors
	removedRecord byte = 4 // id
	windowRecord  byte = 5 // node, boot, low, applied; life

	checkRecord         = verdict.CheckRecord
	reportRecord        = verdict.ReportRecord
	divergedRecord      = verdict.DivergedRecord
	sumRecord      byte = 9 // the sum of the items' hashes; the last record

	leaseRecord      byte = 10 // id, TTL, deadline, private, owner
	leasedItemRecord byte = 11 // lease, and what itemRecord has
	onceRecord       byte = 12 // class, place, deadline, print, outcome, owner, name
	leasesRecord     byte = 13 // clock, last ID, how many leases, the sum of their hashes
	onceHeadRecord   byte = 14 // last place, how many records, the sum of their hashes, that of their deadlines
)

// Fields behind a semicolon came later: they may be missing at the end of a
// record, which means 0, and are left out when they are 0 (level.go says why).

// Write writes the whole replicated state, as of its index. The order of
// the records is fixed, so that equal states make equal files.
func Write(w io.Writer, s *State) error {
	sw := statefile.NewWriter(w)
	if err := s.writeRest(sw.Record); err != nil {
		return err
	}
	for _, p := range parts {
		if p.bulk == nil {
			continue
		}
		if err := p.bulk(s, sw.Record); err != nil {
			return err
		}
	}
	if err := s.writeItems(sw); err != nil {
		return err
	}
	if err := sw.Record(sumRecord, record.AppendUvarints(nil, s.Sum)); err != nil {
		return err
	}
	return sw.Finish()
}

// writeItems writes the items, if they are those of which the state has the sum.
func (s *State) writeItems(sw *statefile.Writer) (err error) {
	var b []byte
	sum := uint64(0)
	s.Scan(func(key string, it *Item) bool {
		kind := itemRecord
		if b = b[:0]; it.Lease != 0 {
			kind, b = leasedItemRecord, record.AppendUvarints(b, it.Lease)
		}
		b = record.AppendUvarints(b, it.CreateRevision, it.ModRevision, it.Version)
		b = record.AppendString(b, key)
		b = append(b, it.Value...)
		sum += itemHash(key, it)
		err = sw.Record(kind, b)
		return err == nil
	})
	if err == nil && sum != s.Sum {
		return problem.ErrMemory // and not onto the disk
	}
	return err
}

// writeRest passes on the records of all that is not an item, in a fixed order.
// The hash of the state is made from them, so they may not change: see hash.go.
func (s *State) writeRest(put func(kind byte, payload []byte) error) error {
	for _, p := range parts {
		if err := p.write(s, put); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote.
func Read(r io.Reader) (*State, error) {
	s, _, err := readDigest(r)
	return s, err
}

// readDigest is Read, and returns the SHA-256 at the end.
func readDigest(r io.Reader) (s *State, digest [sha256.Size]byte, err error) {
	sr, err := statefile.NewReader(r)
	if err != nil {
		return nil, digest, err
	}
	if s, err = readRecords(sr); err != nil {
		return nil, digest, err
	}
	return s, sr.Digest, nil
}

// readRecords reads the records of a state file to their verified end.
func readRecords(sr *statefile.Reader) (*State, error) {
	s := New(nil)
	// The items come in the order of their keys, which makes loading cheap.
	if err := ScanRecords(sr, s, func(key string, it *Item) { s.Items.Load(key, it) }); err != nil {
		return nil, err
	}
	return s, nil
}

// ScanRecords reads the records of a state file into s, except for the items,
// which it passes on. Unless it returns nil, what it has read must not be used.
func ScanRecords(sr *statefile.Reader, s *State, each func(key string, it *Item)) error {
	for {
		kind, payload, err := sr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.restore(kind, payload, each); err != nil {
			return err
		}
	}
}

// restore takes over one record of a state file.
func (s *State) restore(kind byte, payload []byte, each func(key string, it *Item)) error {
	f := record.Reader{B: payload}
	switch kind {
	case itemRecord, leasedItemRecord:
		lease := uint64(0)
		if kind == leasedItemRecord {
			lease = f.Uvarint()
		}
		it := &Item{CreateRevision: f.Uvarint(), ModRevision: f.Uvarint(), Version: f.Uvarint(), Lease: lease}
		key := string(f.Bytes())
		it.Value = string(f.B)
		if kind == leasedItemRecord && !f.Bad {
			if err := s.Leases.Rebind(lease, key); err != nil {
				return fmt.Errorf("%w: %w", statefile.ErrBad, err)
			}
		}
		each(key, it)
		s.Bytes += uint64(len(key) + len(it.Value))
		s.Sum += itemHash(key, it)
	case sumRecord:
		if sum := f.Uvarint(); sum != s.Sum {
			return fmt.Errorf("%w: its items are not those of which it has the hash", statefile.ErrBad)
		}
		for _, p := range parts {
			if p.verify == nil {
				continue
			}
			if err := p.verify(s); err != nil {
				return err
			}
		}
	default:
		p := partOf(kind)
		if p == nil {
			return fmt.Errorf("%w: record of kind %d", durable.ErrNewer, kind)
		}
		if err := p.restore(s, kind, &f); err != nil {
			return err
		}
	}
	if f.Bad {
		return fmt.Errorf("%w: record of kind %d is too short", statefile.ErrBad, kind)
	}
	return nil
}
