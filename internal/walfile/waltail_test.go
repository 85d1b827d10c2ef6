package walfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/watermark"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// tailLog writes a real log and remembers what its file held.
type tailLog struct {
	t           *testing.T
	w           *wal.WAL
	path        string
	index, term uint64
	vote        uint64
	commit      uint64
}

func newTailLog(t *testing.T) *tailLog {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "wal")
	w, err := wal.Create(nil, dir, []byte("metadata"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return &tailLog{t: t, w: w, path: filepath.Join(dir, segmentZero), term: 1}
}

const segmentZero = "0000000000000000-0000000000000000.wal"

// entries saves one entry per value, with a hard state or without.
func (l *tailLog) entries(hard bool, values ...[]byte) {
	l.t.Helper()
	var ents []*raftpb.Entry
	for _, v := range values {
		l.index++
		ents = append(ents, &raftpb.Entry{Term: new(l.term), Index: new(l.index), Data: v})
	}
	var st *raftpb.HardState
	if hard {
		st = l.state()
	}
	l.check(l.w.Save(st, ents))
}

// commits saves a hard state that moves nothing but commit: not synced.
func (l *tailLog) commits() {
	l.t.Helper()
	l.commit++
	l.check(l.w.Save(l.state(), nil))
}

// votes saves a hard state of another term and vote: synced.
func (l *tailLog) votes() {
	l.t.Helper()
	l.term++
	l.vote = l.term % 4
	l.check(l.w.Save(l.state(), nil))
}

func (l *tailLog) snapshot() {
	l.t.Helper()
	l.check(l.w.SaveSnapshot(&walpb.Snapshot{Index: new(l.index), Term: new(l.term), ConfState: &raftpb.ConfState{Voters: []uint64{1}}}))
}

func (l *tailLog) state() *raftpb.HardState {
	return &raftpb.HardState{Term: new(l.term), Vote: new(l.vote), Commit: new(l.commit)}
}

func (l *tailLog) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// image returns the first bytes of the file, enough to hold the log and zeros
// behind it.
func (l *tailLog) image() []byte {
	l.t.Helper()
	f, err := os.Open(l.path)
	l.check(err)
	defer f.Close()
	b := make([]byte, 1<<20)
	_, err = io.ReadFull(f, b)
	l.check(err)
	return b
}

// inspectImage writes img as the only segment of a log and inspects it.
func inspectImage(t *testing.T, img []byte) Tail {
	t.Helper()
	dir := t.TempDir()
	// A megabyte of zeros per case takes its time; a few sectors do.
	used := len(bytes.TrimRight(img, "\x00"))
	img = img[:min(len(img), used/8*8+16*Sector)]
	if err := os.WriteFile(filepath.Join(dir, segmentZero), img, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := InspectTail(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Damaged != (r.Reason != "") || r.Damaged && !r.NonZero && r.End > Sector {
		t.Fatalf("report contradicts itself: %+v", r)
	}
	return r
}

// framesOf returns the frames of an undamaged image.
func framesOf(t *testing.T, img []byte) []walFrame {
	t.Helper()
	s := &segment{data: img, size: int64(len(img))}
	var frames []walFrame
	f, ok := s.frame(0)
	for ; ok; f, ok = s.frame(f.end) {
		frames = append(frames, f)
	}
	if len(frames) == 0 || !s.zero(frames[len(frames)-1].end, s.size) {
		t.Fatal("the log that was written cannot be read")
	}
	return frames
}

func wantTail(t *testing.T, what string, r Tail, end int64, nonZero, damaged bool) {
	t.Helper()
	if r.End != end || r.NonZero != nonZero || r.Damaged != damaged {
		t.Errorf("%s: %+v, want end %d, non-zero %t, damaged %t", what, r, end, nonZero, damaged)
	}
}

// usualLog is a log of a few hundred records as raft writes them.
func usualLog(t *testing.T) *tailLog {
	l := newTailLog(t)
	l.votes()
	for i := range 60 {
		l.entries(true, bytes.Repeat([]byte{'v', byte(i)}, 3*i), []byte("w"))
		l.commits()
		l.entries(i%3 == 0, []byte("x"))
	}
	return l
}

func TestTailClean(t *testing.T) {
	l := usualLog(t)
	frames := framesOf(t, l.image())
	r, err := InspectTail(filepath.Dir(l.path)) // the whole 64 MB
	if err != nil {
		t.Fatal(err)
	}
	wantTail(t, "clean", r, frames[len(frames)-1].end, false, false)
	if r.File != l.path || r.lastIndex != l.index {
		t.Fatalf("%+v, want last index %d", r, l.index)
	}
	wantTail(t, "cut to size", inspectImage(t, l.image()[:r.End]), r.End, false, false)
	l.index += 100
	l.snapshot()
	if r := inspectImage(t, l.image()); r.lastIndex != l.index {
		t.Fatalf("%+v, want the index of the snapshot, %d", r, l.index)
	}
}

// TestTailEndsInZeros: the last value is zeros, which are not kept in memory.
func TestTailEndsInZeros(t *testing.T) {
	l := usualLog(t)
	l.entries(false, make([]byte, 3*walZeroChunk))
	r, err := InspectTail(filepath.Dir(l.path))
	l.check(err)
	wantTail(t, "zeros", r, r.End, false, false)
	if r.lastIndex != l.index {
		t.Fatalf("%+v, want last index %d", r, l.index)
	}
}

// TestTailZeroedLastLength: with nothing behind it, the frame's own sector
// shows that it was written.
func TestTailZeroedLastLength(t *testing.T) {
	l := newTailLog(t)
	l.entries(false, []byte("x"))
	img := l.image()
	frames := framesOf(t, img)
	last := frames[len(frames)-1]
	clear(img[last.off : last.off+8])
	wantTail(t, "zeroed last length", inspectImage(t, img), last.off, true, true)
}

// TestTailSecondHead: the head of a segment is never behind its start.
func TestTailSecondHead(t *testing.T) {
	l := newTailLog(t)
	img := l.image()
	frames := framesOf(t, img)
	copy(img[8*Sector:], img[:frames[1].end])
	wantTail(t, "second head", inspectImage(t, img), frames[2].end, true, true)
}

// TestTailAgreesWithWAL: the WAL itself takes the log up to the same entry.
func TestTailAgreesWithWAL(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	cut := frames[len(frames)/2]
	dir := t.TempDir()
	l.check(os.WriteFile(filepath.Join(dir, segmentZero), img[:cut.off+20], 0o600))
	r, err := InspectTail(dir)
	l.check(err)
	if !wal.Repair(nil, dir) {
		t.Fatal("the WAL does not repair it")
	}
	w, err := wal.OpenForRead(nil, dir, &walpb.Snapshot{})
	l.check(err)
	_, _, ents, err := w.ReadAll()
	l.check(err)
	if last := ents[len(ents)-1].GetIndex(); last != r.lastIndex {
		t.Fatalf("the WAL reads up to %d, the report says %d", last, r.lastIndex)
	}
	info, err := os.Stat(filepath.Join(dir, segmentZero))
	l.check(err)
	if info.Size() != r.End {
		t.Fatalf("the WAL cuts at %d, the report says %d", info.Size(), r.End)
	}
}

// TestTailTruncatedLastFrame cuts the file at every byte of the last frame.
func TestTailTruncatedLastFrame(t *testing.T) {
	l := usualLog(t)
	l.entries(false, bytes.Repeat([]byte("last"), 300))
	img := l.image()
	frames := framesOf(t, img)
	last := frames[len(frames)-1]
	for n := last.off + 1; n < last.end; n += 7 {
		r := inspectImage(t, img[:n])
		wantTail(t, "truncated", r, last.off, true, false)
	}
}

// TestTailFlippedLength flips each bit of the length of every frame but the
// last. The WAL drops everything behind without a word.
func TestTailFlippedLength(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	for i := 0; i < len(frames)-1; i += 1 + len(frames)/8 {
		f := frames[i]
		for bit := range 64 {
			bad := bytes.Clone(img[:frames[len(frames)-1].end+4096])
			bad[f.off+int64(bit/8)] ^= 1 << (bit % 8)
			wantTail(t, "flipped length", inspectImage(t, bad), f.off, true, true)
		}
	}
}

// TestTailZeroedLength zeroes the length of every frame that has a few Saves
// behind it.
func TestTailZeroedLength(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	for _, f := range frames[:len(frames)-12] {
		bad := bytes.Clone(img[:frames[len(frames)-1].end+4096])
		clear(bad[f.off : f.off+8])
		wantTail(t, "zeroed length", inspectImage(t, bad), f.off, true, true)
	}
}

// TestTailLostSectorOfSyncedData: a sector in the middle that reads as zeros
// looks like a tear at its place, only what is behind it shows otherwise.
func TestTailLostSectorOfSyncedData(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	end := frames[len(frames)-1].end
	for off := int64(0); off < end-3*Sector; off += Sector {
		bad := bytes.Clone(img[:end+4096])
		clear(bad[off : off+Sector])
		if r := inspectImage(t, bad); !r.Damaged || r.End > off {
			t.Errorf("sector at %d zeroed: %+v", off, r)
		}
	}
}

// TestTailEvidence has for each rule a log that only this rule finds damaged:
// the bad frame is a lost sector, and behind it is just the pattern.
func TestTailEvidence(t *testing.T) {
	v := []byte("v")
	for _, c := range []struct {
		name    string
		behind  func(l *tailLog)
		damaged bool
	}{
		{"nothing", func(*tailLog) {}, false},
		{"entries", func(l *tailLog) { l.entries(false, v, v, v) }, false},
		{"entries and state", func(l *tailLog) { l.entries(true, v, v, v) }, false},
		{"states, entries, state", func(l *tailLog) { l.commits(); l.commits(); l.entries(true, v, v) }, false},
		{"states, snapshot", func(l *tailLog) { l.commits(); l.commits(); l.snapshot() }, false},
		{"states, vote", func(l *tailLog) { l.commits(); l.commits(); l.votes() }, false},
		{"snapshot, state", func(l *tailLog) { l.commits(); l.snapshot(); l.commits(); l.w.Sync() }, true},
		{"entry, snapshot", func(l *tailLog) { l.commits(); l.entries(false, v); l.snapshot() }, true},
		{"entry, state, entry", func(l *tailLog) { l.entries(true, v, v); l.entries(false, v) }, true},
		{"entry, state, state", func(l *tailLog) { l.entries(true, v, v); l.commits(); l.w.Sync() }, true},
		{"vote, state", func(l *tailLog) { l.commits(); l.votes(); l.commits(); l.w.Sync() }, true},
		{"vote, entry", func(l *tailLog) { l.commits(); l.votes(); l.entries(false, v) }, true},
	} {
		l := newTailLog(t)
		l.votes()
		l.entries(true, v)
		l.entries(false, make([]byte, 3*Sector))
		frames := framesOf(t, l.image())
		hole := frames[len(frames)-1]
		c.behind(l)
		img := l.image()
		// Zero from its length to its end, and that is more than its sector: the
		// rules for the bad frame itself have nothing to say.
		clear(img[hole.off:hole.end])
		r := inspectImage(t, img)
		wantTail(t, c.name, r, hole.off, !watermark.AllZero(img[hole.off:]), c.damaged)
	}
}

// TestTailHeadIsDamage: the head was synced before the segment got its name.
func TestTailHeadIsDamage(t *testing.T) {
	l := newTailLog(t)
	img := l.image()
	frames := framesOf(t, img)
	for _, f := range frames {
		bad := bytes.Clone(img)
		clear(bad[f.off:])
		wantTail(t, "no head", inspectImage(t, bad), f.off, false, true)
	}
	wantTail(t, "empty file", inspectImage(t, nil), 0, false, true)
	wantTail(t, "head only", inspectImage(t, img), frames[2].end, false, false)
}

// TestTailFlippedPayload: a bad checksum with every sector there.
func TestTailFlippedPayload(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	last := frames[len(frames)-1]
	for off := last.off; off < last.end-8; off++ {
		bad := bytes.Clone(img)
		bad[off] ^= 0x10
		wantTail(t, "flipped bit in the last frame", inspectImage(t, bad), last.off, true, true)
	}
}

// TestTailTornNeverDamaged is the soundness test: whatever sectors of what is
// not synced are lost, the log is not reported as damaged.
func TestTailTornNeverDamaged(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := newTailLog(t)
	l.votes()
	l.entries(true, []byte("first"))
	dir := t.TempDir()
	path := filepath.Join(dir, segmentZero)
	tears, damaged := 0, 0
	for start := time.Now(); time.Since(start) < 400*time.Millisecond; {
		before := l.image()
		unsyncedThenSynced(l, rnd)
		after := l.image()
		from, to := firstDiff(before, after), lastDiff(before, after)
		if to > len(after)/2 {
			break // the image holds no more
		}
		for range 12 {
			torn := loseSectors(rnd, before, after, from, to)
			l.check(os.WriteFile(path, torn, 0o600))
			r, err := InspectTail(dir)
			l.check(err)
			tears++
			if r.End < int64(from)/8*8-walFrameHead*4 || r.Damaged {
				damaged++
				t.Errorf("seed %d: torn between %d and %d: %+v", seed, from, to, r)
			}
		}
	}
	t.Logf("%d tears", tears)
	if tears == 0 {
		t.Fatal("nothing was torn")
	}
}

// unsyncedThenSynced writes what may be on its way at one moment.
func unsyncedThenSynced(l *tailLog, rnd *rand.Rand) {
	for range rnd.IntN(40) * rnd.IntN(2) {
		l.commits()
	}
	switch rnd.IntN(8) {
	case 0:
		l.votes()
	case 1:
		l.snapshot()
	default:
		values := make([][]byte, 1+rnd.IntN(8))
		for i := range values {
			values[i] = randomValue(rnd)
		}
		newTerm := rnd.IntN(4) == 0
		if newTerm { // comes with a hard state, as in raft
			l.term++
		}
		l.entries(newTerm || rnd.IntN(2) == 0, values...)
	}
}

// randomValue favours what is hard to tell: zeros, and runs of them.
func randomValue(rnd *rand.Rand) []byte {
	b := make([]byte, rnd.IntN([]int{20, 700, 5000}[rnd.IntN(3)]))
	for i := range b {
		if rnd.IntN(4) > 0 {
			b[i] = byte(rnd.Uint32())
		}
	}
	if len(b) > 0 && rnd.IntN(2) == 0 {
		clear(b[rnd.IntN(len(b)):])
	}
	return b
}

// loseSectors returns after with some of the sectors that differ as they were
// before: few, most, a run, or all but a few.
func loseSectors(rnd *rand.Rand, before, after []byte, from, to int) []byte {
	torn := bytes.Clone(after)
	odds := []float64{0.05, 0.3, 0.7, 0.95}[rnd.IntN(4)]
	first := from / Sector
	count := to/Sector - first + 1
	runFrom, runTo := rnd.IntN(count+1), rnd.IntN(count+1)
	if rnd.IntN(2) == 0 {
		runTo = runFrom
	}
	for i := range count {
		if rnd.Float64() < odds || i >= runFrom && i < runTo {
			off := (first + i) * Sector
			copy(torn[off:off+Sector], before[off:])
		}
	}
	return torn
}

func firstDiff(a, b []byte) int {
	for i := range b {
		if a[i] != b[i] {
			return i
		}
	}
	return len(b)
}

func lastDiff(a, b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if a[i] != b[i] {
			return i
		}
	}
	return 0
}

// TestTailWALInsideValue: a value that is itself a log is payload, as long as
// the frame that holds it has its length.
func TestTailWALInsideValue(t *testing.T) {
	inner := usualLog(t)
	img := inner.image()
	frames := framesOf(t, img)
	value := img[:frames[len(frames)-1].end]
	for shift := range 8 {
		l := newTailLog(t)
		l.votes()
		l.entries(true, []byte("x"))
		before := l.image()
		l.entries(true, append(make([]byte, shift), value...))
		after := l.image()
		start := framesOf(t, before)
		off := start[len(start)-1].end
		torn := bytes.Clone(after)
		clear(torn[off/Sector*Sector+3*Sector:][:Sector])
		wantTail(t, "log in a value", inspectImage(t, torn), off, true, false)
	}
}

// TestTailLongZeros: 64 MB of zeros between the log and something behind it
// take no time, and neither do frames made to cost.
func TestTailLongZeros(t *testing.T) {
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, segmentZero))
	l.check(err)
	_, err = f.Write(img)
	l.check(err)
	_, err = f.WriteAt([]byte("x"), 24<<20)
	l.check(err)
	l.check(f.Truncate(64 << 20))
	l.check(f.Close())
	start := time.Now()
	r, err := InspectTail(dir)
	l.check(err)
	wantTail(t, "long zeros", r, frames[len(frames)-1].end, true, false)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestTailCraftedFramesAreBounded: many small frames that all lead to one large
// one.
func TestTailCraftedFramesAreBounded(t *testing.T) {
	l := newTailLog(t)
	end := framesOf(t, l.image())
	off := int(end[len(end)-1].end)
	img := make([]byte, 4<<20)
	copy(img, l.image()[:off])
	at := (off/Sector + 1) * Sector
	frame := func(off, size int) {
		head := []byte{0x08, byte(wal.EntryType), 0x10, 1, 0x1a}
		n := size - 8 - len(head) - 4 // a length of four bytes
		head = append(head, byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)|0x80, byte(n>>21))
		binary.LittleEndian.PutUint64(img[off:], uint64(size-8))
		copy(img[off+8:], head)
	}
	target := len(img) / 2
	for ; at < target; at += 24 {
		frame(at, (target-at)/8*8)
	}
	frame(target, len(img)-target-Sector)
	img[len(img)-1] = 1
	start := time.Now()
	if r := inspectImage(t, img); r.Damaged {
		t.Errorf("%+v", r)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestTailChoosesLastSegment(t *testing.T) {
	dir := t.TempDir()
	if _, err := InspectTail(filepath.Join(dir, "no")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := InspectTail(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l := newTailLog(t)
	l.entries(false, []byte("x"))
	const last = "000000000000000b-0000000000000007.wal"
	for name, b := range map[string][]byte{
		"000000000000000a-0000000000000001.wal": nil,
		last:                                    l.image(),
		"0.tmp":                                 nil,
		"000000000000000c-0000000000000009.wal.broken": nil,
		"c-9.wal": nil,
	} {
		l.check(os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	r, err := InspectTail(dir)
	l.check(err)
	if filepath.Base(r.File) != last || r.lastIndex != 1 || r.Damaged {
		t.Fatalf("%+v", r)
	}
}

func FuzzInspectTail(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x04\x00\x00\x00\x00\x00\x00\x84\x08\x04\x10\x00\x00\x00\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) { inspectImage(t, b) })
}

// TestTailRandomDamageNeverPanics also checks that nothing readable is beyond
// End: the good part ends where a plain reader stops.
func TestTailRandomDamageNeverPanics(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := usualLog(t)
	img := l.image()
	frames := framesOf(t, img)
	img = img[:frames[len(frames)-1].end+1024]
	for start := time.Now(); time.Since(start) < 200*time.Millisecond; {
		bad := bytes.Clone(img[:rnd.IntN(len(img))])
		for range rnd.IntN(20) {
			if len(bad) > 0 {
				bad[rnd.IntN(len(bad))] = byte(rnd.Uint32())
			}
		}
		if r := inspectImage(t, bad); r.End > int64(len(bad)) {
			t.Fatalf("%+v", r)
		}
	}
}
