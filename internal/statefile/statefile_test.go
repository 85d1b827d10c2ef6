package statefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"strings"
	"testing"
)

type stateRec struct {
	kind    byte
	payload []byte
}

func encodeState(t testing.TB, recs []stateRec) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, r := range recs {
		if err := w.Record(r.kind, r.payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decodeState(in io.Reader) ([]stateRec, error) {
	r, err := NewReader(in)
	if err != nil {
		return nil, err
	}
	var recs []stateRec
	for {
		kind, payload, err := r.Next()
		if err == io.EOF {
			return recs, nil
		}
		if err != nil {
			return recs, err
		}
		recs = append(recs, stateRec{kind, bytes.Clone(payload)})
	}
}

func smallState(t testing.TB) []byte {
	return encodeState(t, []stateRec{{1, []byte("alpha")}, {2, nil}, {1, []byte("beta")}})
}

func TestStateFileRoundTrip(t *testing.T) {
	many := make([]stateRec, 20000)
	for i := range many {
		many[i] = stateRec{byte(i), bytes.Repeat([]byte{byte(i)}, i%97)}
	}
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 8)
	}
	for name, recs := range map[string][]stateRec{
		"empty":       nil,
		"one empty":   {{0, nil}},
		"many":        many,
		"big":         {{1, []byte("before")}, {2, big}, {3, nil}, {4, big[:blockSize]}, {5, []byte("after")}},
		"at the edge": {{1, big[:blockSize-4]}, {2, big[:blockSize-3]}, {3, big[:blockSize-5]}, {4, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeState(bytes.NewReader(encodeState(t, recs)))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(recs) {
				t.Fatalf("read %d records, want %d", len(got), len(recs))
			}
			for i, r := range recs {
				if got[i].kind != r.kind || !bytes.Equal(got[i].payload, r.payload) {
					t.Fatalf("record %d is not what was written", i)
				}
			}
		})
	}
}

func TestStateReaderStaysAtEOF(t *testing.T) {
	r, err := NewReader(bytes.NewReader(encodeState(t, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := r.Next(); err != io.EOF {
			t.Fatalf("next: %v, want io.EOF", err)
		}
	}
}

func TestStateFileEveryBitFlipIsRefused(t *testing.T) {
	file := smallState(t)
	for bit := range len(file) * 8 {
		bad := bytes.Clone(file)
		bad[bit/8] ^= 1 << (bit % 8)
		_, err := decodeState(bytes.NewReader(bad))
		if !errors.Is(err, ErrBad) && !errors.Is(err, durable.ErrNewer) {
			t.Fatalf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
	}
}

func TestStateFileEveryTruncationIsRefused(t *testing.T) {
	file := smallState(t)
	for n := range len(file) {
		if _, err := decodeState(bytes.NewReader(file[:n])); !errors.Is(err, ErrBad) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(file), err)
		}
	}
}

func TestStateFileTrailingBytesAreRefused(t *testing.T) {
	for _, tail := range [][]byte{{0}, []byte("x"), smallState(t)} {
		_, err := decodeState(bytes.NewReader(append(smallState(t), tail...)))
		if !errors.Is(err, ErrBad) {
			t.Fatalf("%d bytes appended: %v", len(tail), err)
		}
	}
}

// TestStateFileMovedBlockIsRefused is what the hash is for: each block alone is
// sound.
func TestStateFileMovedBlockIsRefused(t *testing.T) {
	a, b := bytes.Repeat([]byte("a"), blockSize), bytes.Repeat([]byte("b"), blockSize)
	file := encodeState(t, []stateRec{{1, a}, {1, b}})
	const head = len(Magic) + 4
	size := 8 + int(binary.LittleEndian.Uint32(file[head:]))
	swapped := bytes.Clone(file[:head])
	swapped = append(swapped, file[head+size:head+2*size]...)
	swapped = append(swapped, file[head:head+size]...)
	swapped = append(swapped, file[head+2*size:]...)
	recs, err := decodeState(bytes.NewReader(swapped))
	if !errors.Is(err, ErrBad) || len(recs) != 2 {
		t.Fatalf("read %d records, then %v", len(recs), err)
	}
}

func TestStateFileNewerVersion(t *testing.T) {
	file := smallState(t)
	file[len(Magic)] = stateVersion + 1
	if _, err := decodeState(bytes.NewReader(file)); !errors.Is(err, durable.ErrNewer) || errors.Is(err, ErrBad) {
		t.Fatal(err)
	}
}

// TestStateReaderBoundsAllocation: a length that announces 128 MiB with nothing
// behind it must not cost 128 MiB.
func TestStateReaderBoundsAllocation(t *testing.T) {
	file := binary.LittleEndian.AppendUint32([]byte(Magic), stateVersion)
	file = binary.LittleEndian.AppendUint32(file, stateBlockMax)
	file = append(file, make([]byte, 100)...)
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Next(); !errors.Is(err, ErrBad) {
		t.Fatal(err)
	}
	if r.buf.Cap() > 1<<20 {
		t.Fatalf("buffer of %d bytes", r.buf.Cap())
	}
}

func TestStateWriterRefusesOversizedRecord(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	if err := w.Record(1, make([]byte, stateBlockMax)); err == nil {
		t.Fatal("an oversized record was taken")
	}
	if err := w.Record(1, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if recs, err := decodeState(&buf); err != nil || len(recs) != 1 {
		t.Fatalf("read %d records: %v", len(recs), err)
	}
	if err := w.Record(1, nil); !errors.Is(err, errStateFinished) {
		t.Fatalf("record after finish: %v", err)
	}
}

// brokenDisk fails after n bytes.
type brokenDisk struct{ n int }

var errBrokenDisk = errors.New("broken disk")

func (d *brokenDisk) Write(b []byte) (int, error) {
	if d.n -= len(b); d.n < 0 {
		return 0, errBrokenDisk
	}
	return len(b), nil
}

func (d *brokenDisk) Read(b []byte) (int, error) { return 0, errBrokenDisk }

func TestStateFileDiskErrors(t *testing.T) {
	w := NewWriter(&brokenDisk{n: blockSize})
	err := errors.Join(w.Record(1, make([]byte, blockSize)), w.Record(1, nil), w.Finish())
	if !errors.Is(err, errBrokenDisk) || !errors.Is(w.Finish(), errBrokenDisk) {
		t.Fatal(err)
	}
	// A disk that cannot be read is no damaged file.
	in := io.MultiReader(bytes.NewReader(smallState(t)[:20]), &brokenDisk{})
	if _, err := decodeState(in); !errors.Is(err, errBrokenDisk) || errors.Is(err, ErrBad) {
		t.Fatal(err)
	}
}

func FuzzStateReader(f *testing.F) {
	f.Add([]byte{})
	f.Add(smallState(f))
	f.Add(encodeState(f, nil))
	f.Add([]byte(Magic + "\x01\x00\x00\x00\xff\xff\xff\x07"))
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, err := decodeState(bytes.NewReader(b))
		if err != nil {
			return
		}
		// What is accepted must be what this writer would have meant.
		again, err := decodeState(bytes.NewReader(encodeState(t, recs)))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(recs) {
			t.Fatalf("accepted, but does not survive a round trip: %v", err)
		}
	})
}

func TestStateReaderRandomDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	file := encodeState(t, []stateRec{{1, make([]byte, 300)}, {2, make([]byte, blockSize)}, {3, []byte("x")}})
	for range 300 {
		bad := bytes.Clone(file)
		for range 1 + rnd.IntN(4) {
			bad[rnd.IntN(len(bad))] = byte(rnd.Uint32())
		}
		if _, err := decodeState(bytes.NewReader(bad)); err == nil && !bytes.Equal(bad, file) {
			t.Fatal("a damaged file was accepted")
		}
	}
}

func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	put := func(s string, err error) error {
		return durable.WriteFile(path, func(w io.Writer) error {
			if _, werr := io.WriteString(w, s); werr != nil {
				return werr
			}
			names, _ := filepath.Glob(filepath.Join(dir, "state.tmp*"))
			if len(names) != 1 {
				t.Errorf("temporary files: %v", names)
			}
			return err
		})
	}
	if err := put("one", nil); err != nil {
		t.Fatal(err)
	}
	if err := put("two", errBrokenDisk); !errors.Is(err, errBrokenDisk) || !strings.Contains(err.Error(), path) {
		t.Fatalf("failed write: %v", err)
	}
	wantFile(t, path, "one")
	if err := put("three", nil); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "three")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("left in the directory: %v, %v", entries, err)
	}
}

func TestWriteFileAtomicFailures(t *testing.T) {
	dir := t.TempDir()
	nothing := func(io.Writer) error { return nil }
	if err := durable.WriteFile(filepath.Join(dir, "no", "x"), nothing); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	// The target is a directory that is not empty: the rename fails.
	if err := os.MkdirAll(filepath.Join(dir, "x", "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "x"), nothing); err == nil {
		t.Fatal("renamed over a directory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("left in the directory: %v, %v", entries, err)
	}
	if err := durable.SyncDir(filepath.Join(dir, "no")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Fatalf("%s holds %q (%v), want %q", path, got, err, want)
	}
}
