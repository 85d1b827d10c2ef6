package watermark

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"strings"
	"testing"
)

// newMark creates a mark file, writes ms to it one after the other and returns
// its path. The boot counter of m must be that of the first.
func newMark(t *testing.T, first Mark, ms ...Mark) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mark")
	if err := Create(path, first); err != nil {
		t.Fatal(err)
	}
	mf, _, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if err := mf.write(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := mf.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func readMarkFile(path string) (Mark, error) {
	mf, m, err := OpenFile(path)
	if err != nil {
		return Mark{}, err
	}
	return m, mf.Close()
}

func wantMark(t *testing.T, path string, want Mark) {
	t.Helper()
	if got, err := readMarkFile(path); err != nil || got != want {
		t.Fatalf("read %+v (%v), want %+v", got, err, want)
	}
}

// damageMark overwrites b at off.
func damageMark(t *testing.T, path string, off int, b ...byte) {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(file[off:], b)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMarkWriteAndReopen(t *testing.T) {
	path := newMark(t, Mark{Boot: 1})
	for i := uint64(1); i <= 9; i++ {
		mf, m, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Mark{Boot: i, Index: 10 * (i - 1), Term: i - 1}); m != want {
			t.Fatalf("opened %+v, want %+v", m, want)
		}
		for range i { // odd and even: either slot comes to be the newest
			m.Index, m.Term = 10*i, i
			if err := mf.write(m); err != nil {
				t.Fatal(err)
			}
		}
		m.Boot++
		if err := errors.Join(mf.writeBoth(m), mf.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMarkMissingOrThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mark")
	if _, _, err := OpenFile(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Fatalf("missing file: %v", err)
	}
	if err := Create(path, Mark{Boot: 7}); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, Mark{Boot: 1}); !errors.Is(err, os.ErrExist) {
		t.Fatalf("created twice: %v", err)
	}
	wantMark(t, path, Mark{Boot: 7})
	if err := Create(filepath.Join(path, "x"), Mark{}); err == nil {
		t.Fatal("created below a file")
	}
}

// TestMarkTornWrite tears the last write at every byte, either half first.
func TestMarkTornWrite(t *testing.T) {
	one, two := Mark{Boot: 3, Index: 1 << 40, Term: 9, Vote: 2}, Mark{Boot: 3, Index: 1<<40 + 77, Term: 10, Vote: 1}
	path := newMark(t, Mark{Boot: 3}, one)
	before, _ := os.ReadFile(path)
	mf, _, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mf.write(two), mf.Close()); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(path)
	for n := range len(after) + 1 {
		for _, torn := range [][]byte{
			append(bytes.Clone(after[:n]), before[n:]...),
			append(bytes.Clone(before[:n]), after[n:]...),
		} {
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := readMarkFile(path); err != nil || got != one && got != two {
				t.Fatalf("torn at byte %d: %+v, %v", n, got, err)
			}
		}
	}
}

// TestMarkBootSurvivesDamage: after writeBoth, damage to one slot costs
// neither the boot counter nor, as nothing was written since, anything else.
func TestMarkBootSurvivesDamage(t *testing.T) {
	for slot := range 2 {
		for _, writes := range []int{0, 1} {
			path := newMark(t, Mark{Boot: 1})
			mf, m, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for range writes {
				m.Index++
				if err := mf.write(m); err != nil {
					t.Fatal(err)
				}
			}
			m.Boot = 2
			if err := errors.Join(mf.writeBoth(m), mf.Close()); err != nil {
				t.Fatal(err)
			}
			damageMark(t, path, slot*SlotSize+30, 0xff)
			wantMark(t, path, m)
		}
	}
}

// TestMarkWriteHealsDamagedSlot: the write after a torn one goes over the torn
// slot, not over the only good one.
func TestMarkWriteHealsDamagedSlot(t *testing.T) {
	for slot := range 2 {
		path := newMark(t, Mark{Boot: 1})
		damageMark(t, path, slot*SlotSize+40, 0xff)
		mf, m, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m.Index = 5
		if err := errors.Join(mf.write(m), mf.Close()); err != nil {
			t.Fatal(err)
		}
		damageMark(t, path, (1-slot)*SlotSize+40, 0xff)
		wantMark(t, path, m)
	}
}

func TestMarkBootOnlyRises(t *testing.T) {
	path := newMark(t, Mark{Boot: 5})
	mf, _, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{mf.write(Mark{Boot: 6}), mf.write(Mark{Boot: 4}), mf.writeBoth(Mark{Boot: 4})} {
		if !errors.Is(err, errMarkBoot) {
			t.Fatal(err)
		}
	}
	if err := errors.Join(mf.write(Mark{Boot: 5, Index: 1}), mf.Close()); err != nil {
		t.Fatalf("a refused write must not break the file: %v", err)
	}
	wantMark(t, path, Mark{Boot: 5, Index: 1})
}

func TestMarkFailedWriteSticks(t *testing.T) {
	path := newMark(t, Mark{Boot: 5})
	mf, m, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := mf.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := mf.write(m); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), path) {
			t.Fatal(err)
		}
	}
	if mf.Close() == nil {
		t.Fatal("closed twice")
	}
}

// TestMarkDamageThatIsNoTear: what no torn write can leave is refused.
func TestMarkDamageThatIsNoTear(t *testing.T) {
	slot := encodeSlot
	for name, file := range map[string][]byte{
		"empty":            {},
		"one slot":         slot(1, Mark{}),
		"too long":         append(append(slot(1, Mark{}), slot(2, Mark{})...), 0),
		"magic":            append(append([]byte("x"), slot(1, Mark{})[1:]...), slot(2, Mark{})...),
		"zeroed slot":      append(slot(1, Mark{}), make([]byte, SlotSize)...),
		"sequence gap":     append(slot(1, Mark{}), slot(3, Mark{})...),
		"same sequence":    append(slot(2, Mark{}), slot(2, Mark{Index: 1})...),
		"boot backwards":   append(slot(1, Mark{Boot: 2}), slot(2, Mark{Boot: 1})...),
		"two wrong sums":   append(slot(1, Mark{})[:SlotSize-1], append([]byte{1}, append(slot(2, Mark{})[:SlotSize-1], 1)...)...),
		"unused not zero":  append(append(slot(1, Mark{})[:markFields], 1), append(make([]byte, SlotSize-markFields-1), slot(2, Mark{})...)...),
		"version in a tie": append(slot(2, Mark{}), append(append(slot(1, Mark{})[:8], 9), slot(1, Mark{})[9:]...)...),
	} {
		path := filepath.Join(t.TempDir(), "mark")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readMarkFile(path); !errors.Is(err, errBadMark) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMarkNewerFormat(t *testing.T) {
	newer := encodeSlot(2, Mark{})
	newer[8] = markVersion + 1
	newer = newer[:SlotSize-4]
	newer = binary.LittleEndian.AppendUint32(newer, crc32.Checksum(newer, durable.CRC))
	path := filepath.Join(t.TempDir(), "mark")
	if err := os.WriteFile(path, append(encodeSlot(1, Mark{}), newer...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readMarkFile(path); !errors.Is(err, durable.ErrNewer) || errors.Is(err, errBadMark) {
		t.Fatal(err)
	}
}

// TestMarkBitFlips: one flipped bit is refused or taken for a torn write,
// and then the other slot counts.
func TestMarkBitFlips(t *testing.T) {
	older, newer := Mark{Boot: 2, Index: 8, Term: 1}, Mark{Boot: 2, Index: 9, Term: 1}
	path := newMark(t, Mark{Boot: 2}, older, newer)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for bit := 0; bit < len(file)*8; bit += 3 { // 3 and 8: every byte, every place in a byte
		bad := bytes.Clone(file)
		bad[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readMarkFile(path)
		if err != nil && !errors.Is(err, errBadMark) || err == nil && got != older && got != newer {
			t.Fatalf("bit %d: %+v, %v", bit, got, err)
		}
	}
}

func TestMarkRandomFileNeverPanics(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "mark")
	for range 300 {
		file := make([]byte, rnd.IntN(3*SlotSize))
		for i := range file {
			file[i] = byte(rnd.Uint32())
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readMarkFile(path); !errors.Is(err, errBadMark) {
			t.Fatal(err)
		}
	}
}
