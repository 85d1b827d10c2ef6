package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/statefile"
	"time"

	"go.uber.org/zap"
)

// The records of a state file. The values are on disk: never reuse one. What
// a file of records looks like is statefile.go's business.
const (
	headRecord    byte = 1 // index, term, revision, membership changes; level
	itemRecord    byte = 2 // create, mod, version, key, value
	memberRecord  byte = 3 // id, learner, instance, peer URL, client URL; level, pinned, added
	removedRecord byte = 4 // id
	windowRecord  byte = 5 // node, boot, low, applied; life

	checkRecord    byte = 6 // of checks: index, full, checked, agreed, no majority, voters
	reportRecord   byte = 7 // node, void, hash
	divergedRecord byte = 8 // node, index
	sumRecord      byte = 9 // the sum of the items' hashes; the last record
)

// Fields behind a semicolon came later: they may be missing at the end of a
// record, which means 0, and are left out when they are 0 (level.go says why).

// writeState writes the whole replicated state, as of its index. The order of
// the records is fixed, so that equal states make equal files.
func writeState(w io.Writer, s *state) error {
	sw := statefile.NewWriter(w)
	if err := s.writeRest(sw.Record); err != nil {
		return err
	}
	var b []byte
	var err error
	sum := uint64(0)
	s.scan(func(key string, it *item) bool {
		b = record.AppendUvarints(b[:0], it.createRevision, it.modRevision, it.version)
		b = record.AppendString(b, key)
		b = append(b, it.value...)
		sum += itemHash(key, it)
		err = sw.Record(itemRecord, b)
		return err == nil
	})
	if err != nil {
		return err
	}
	if sum != s.sum {
		return problem.ErrMemory // and not onto the disk
	}
	if err := sw.Record(sumRecord, record.AppendUvarints(nil, s.sum)); err != nil {
		return err
	}
	return sw.Finish()
}

// writeRest passes on the records of all that is not an item, in a fixed order.
// The hash of the state is made from them, so they may not change: see hash.go.
func (s *state) writeRest(write func(kind byte, payload []byte) error) error {
	var b []byte
	put := func(kind byte) error { return write(kind, b) }

	b = record.AppendUvarints(nil, s.index, s.term, s.revision, s.membership.changes)
	b = record.AppendOptional(b, s.level)
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
		b = record.AppendUvarints(b[:0], id)
		if err := put(removedRecord); err != nil {
			return err
		}
	}
	for _, node := range sortedKeys(s.windows) {
		win := s.windows[node]
		b = record.AppendUvarints(b[:0], node, win.boot, win.low, win.applied)
		b = record.AppendOptional(b, win.life)
		if err := put(windowRecord); err != nil {
			return err
		}
	}
	return s.checks.write(write)
}

// readState reads what writeState wrote.
func readState(r io.Reader) (*state, error) {
	sr, err := statefile.NewReader(r)
	if err != nil {
		return nil, err
	}
	return readRecords(sr)
}

// readRecords reads the records of a state file to their verified end.
func readRecords(sr *statefile.Reader) (*state, error) {
	s := newState(nil)
	// The items come in the order of their keys, which makes loading cheap.
	if err := scanRecords(sr, s, func(key string, it *item) { s.items.Load(key, it) }); err != nil {
		return nil, err
	}
	return s, nil
}

// scanRecords reads the records of a state file into s, except for the items,
// which it passes on. Unless it returns nil, what it has read must not be used.
func scanRecords(sr *statefile.Reader, s *state, each func(key string, it *item)) error {
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
func (s *state) restore(kind byte, payload []byte, each func(key string, it *item)) error {
	f := record.Reader{B: payload}
	switch kind {
	case headRecord:
		s.index, s.term, s.revision, s.membership.changes = f.Uvarint(), f.Uvarint(), f.Uvarint(), f.Uvarint()
		if s.level = f.Optional(); s.level > programLevel {
			return errLevel(s.level)
		}
	case memberRecord:
		m := takeMember(&f)
		s.membership.members[m.ID] = m
	case removedRecord:
		s.membership.removed[f.Uvarint()] = true
	case windowRecord:
		s.windows[f.Uvarint()] = window{boot: f.Uvarint(), low: f.Uvarint(), applied: f.Uvarint(), life: f.Optional()}
	case itemRecord:
		it := &item{createRevision: f.Uvarint(), modRevision: f.Uvarint(), version: f.Uvarint()}
		key := string(f.Bytes())
		it.value = append([]byte(nil), f.B...)
		each(key, it)
		s.bytes += uint64(len(key) + len(it.value))
		s.sum += itemHash(key, it)
	case checkRecord, reportRecord, divergedRecord:
		s.checks.restore(kind, &f)
	case sumRecord:
		if sum := f.Uvarint(); sum != s.sum {
			return fmt.Errorf("%w: its items are not those of which it has the hash", statefile.ErrBad)
		}
	default:
		return fmt.Errorf("%w: record of kind %d", durable.ErrNewer, kind)
	}
	if f.Bad {
		return fmt.Errorf("%w: record of kind %d is too short", statefile.ErrBad, kind)
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
	b = record.AppendUvarints(b, m.ID, uint64(record.BoolByte(m.Learner)), m.Instance)
	b = record.AppendString(b, m.PeerURL)
	b = record.AppendString(b, m.ClientURL)
	return record.AppendOptional(b, m.Level, uint64(record.BoolByte(m.Pinned)), m.Added)
}

func takeMember(f *record.Reader) member {
	m := member{ID: f.Uvarint(), Learner: f.Uvarint() == 1, Instance: f.Uvarint(), PeerURL: string(f.Bytes()), ClientURL: string(f.Bytes())}
	m.Level, m.Pinned, m.Added = f.Optional(), f.Optional() == 1, f.Optional()
	return m
}

// writeSnapshots writes states to disk as they come, one at a time, and lets go
// of writer when it is done with one. Between them it removes the files that a
// newer snapshot has made superfluous. Neither has to succeed for the node to go
// on: what fails is done again after a rest (snapshotfail.go), a snapshot by
// redo.
func (s *storage) writeSnapshots(ctx context.Context, states <-chan *state, writer <-chan struct{}, writtenC chan<- *state) error {
	newer := s.recorded.Channel(s.snapIndex.Load() + 1)
	var cleanAgain, rested <-chan time.Time
	clean := func() {
		index := s.snapIndex.Load()
		newer, cleanAgain = s.recorded.Channel(index+1), nil
		if err := s.clean(index); err != nil {
			s.log.Warn("cannot remove files that are of no more use; trying again", zap.Error(err))
			cleanAgain = time.After(mostRest)
		}
	}
	for {
		select {
		case <-newer:
			clean()
		case <-cleanAgain:
			clean()
		case st := <-states:
			err := s.writeSnapshot(ctx, st, writtenC)
			switch {
			case errors.Is(err, problem.ErrMemory):
				return err
			case err == nil:
				<-writer
			default:
				rested = time.After(s.trouble.failed(err, st.index))
				s.tail.writing.Store(s.snapIndex.Load())
			}
		case <-rested:
			rested = nil
			<-writer
			s.redo()
		case <-ctx.Done():
			return nil
		}
	}
}

// writeSnapshot writes a state, and passes it on when its file is complete.
func (s *storage) writeSnapshot(ctx context.Context, st *state, writtenC chan<- *state) error {
	if st.index <= s.snapIndex.Load() {
		return nil // overtaken by one from the leader
	}
	t := &s.tail
	t.writing.Store(st.index)
	t.grown.Store(0)
	t.awaited.Store(false) // who waits asks again, at each heartbeat or tick
	pace := func() time.Duration { return t.snapshotPace(st.bytes) }
	began := time.Now()
	overtaken := func() bool { return st.index <= s.snapIndex.Load() }
	err := s.trouble.check(s.dir, st.bytes)
	if err == nil {
		err = durable.WriteFile(statePath(s.dir, st.term, st.index), func(w io.Writer) error {
			w = s.trouble.bounded(s.dir, w)
			return writeState(&restingWriter{ctx: ctx, w: w, began: time.Now(), since: time.Now(), pace: pace, overtaken: overtaken}, st)
		})
	}
	if ctx.Err() != nil {
		return nil // stopping: the half-written file is gone again
	}
	s.snapshots.wrote(began, err)
	if errors.Is(err, errOvertaken) {
		return nil // it must not keep the former state in memory
	}
	if err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	select {
	case writtenC <- st:
	case <-ctx.Done():
	}
	return nil
}

// restingWriter keeps a snapshot from standing in the way of requests: it rests
// several times as long as it works, less if somebody waits for it, and not at
// all if the disk is too slow for that or the log grows too fast. It fails once
// its context has ended.
type restingWriter struct {
	ctx     context.Context
	w       io.Writer
	began   time.Time
	written int64
	since   time.Time // when the present spell of work began

	// How many times as long as it worked it rests.
	pace func() time.Duration
	// overtaken: one from the leader has come. nil: never.
	overtaken func() bool
}

// errOvertaken ends the writing of a snapshot that would not count any more.
var errOvertaken = errors.New("a newer snapshot has come")

const (
	paceSpell   = 2 * time.Millisecond // of work before a rest; shorter ones cannot be timed
	paceRest    = 8                    // times as long as the work
	paceAwaited = 1                    // the same, if a follower can go on only with this snapshot
	paceLimit   = 100 * time.Millisecond
	paceFloor   = 8 << 20 // bytes a second below which it does not rest
)

// snapshotPace is how many times as long as it works the writing of a state of
// that size is to rest.
func (t *logTail) snapshotPace(size uint64) time.Duration {
	switch {
	case t.grown.Load() > int64(size/4): // which stays in the log until the next snapshot
		return 0
	case t.awaited.Load():
		return paceAwaited
	}
	return paceRest
}

func (p *restingWriter) Write(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if p.overtaken != nil && p.overtaken() {
		return 0, errOvertaken
	}
	n, err := p.w.Write(b)
	now := time.Now()
	worked := now.Sub(p.since) // on what is written, too, before it came here
	p.written += int64(n)
	if err != nil || worked < paceSpell {
		return n, err
	}
	pace := p.pace()
	if pace == 0 || float64(p.written) < paceFloor*now.Sub(p.began).Seconds() {
		p.since = now
		return n, nil
	}
	rest := time.NewTimer(min(pace*worked, paceLimit))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-p.ctx.Done():
		return n, p.ctx.Err()
	}
	p.since = time.Now()
	return n, nil
}
