package disposal

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"strings"
	"sync"
	"testing"
)

// listing is what is in a directory, in order.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, dir, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
}

// more reports whether there is something to do.
func more(d *Files) bool {
	select {
	case <-d.More():
		return true
	default:
		return false
	}
}

// Without this a file goes while a follower is sent it, or stays for ever once it
// was read when it should have gone.
func TestReadersAreAwaited(t *testing.T) {
	dir := t.TempDir()
	d := New(dir)
	fill(t, dir, "a", "content")
	first, err := d.Open("a")
	must(t, err)
	second, err := d.Open("a")
	must(t, err)
	try := func() {
		t.Helper()
		must(t, d.Discard("a"))
		must(t, d.Free(t.Context()))
	}
	for _, f := range []*File{first, second} {
		if try(); listing(t, dir) != "a" || more(d) {
			t.Fatalf("while it is read: %q", listing(t, dir))
		}
		if b, err := io.ReadAll(f); string(b) != "content" {
			t.Errorf("read: %q, %v", b, err)
		}
		must(t, f.Close())
		if err := f.Close(); err == nil {
			t.Error("the second Close did not reach the file")
		}
	}
	if !more(d) {
		t.Error("nobody is told that its last reader has ended")
	}
	if try(); listing(t, dir) != "" {
		t.Errorf("when nobody reads it: %q", listing(t, dir))
	}
	if _, err := d.Open("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened once it has gone: %v", err)
	}
	must(t, d.Discard("a")) // there is none
}

// Without this a reader of a file that is wanted by nobody wakes the cleaner each
// time.
func TestReadersOfWhatStaysWakeNobody(t *testing.T) {
	dir := t.TempDir()
	d := New(dir)
	fill(t, dir, "a", "content")
	f, err := d.Open("a")
	must(t, err)
	must(t, f.Close())
	if more(d) {
		t.Error("woken")
	}
	if _, err := d.Open("none"); !errors.Is(err, os.ErrNotExist) || len(d.readers) != 0 {
		t.Errorf("a file that is not there: %v, readers %v", err, d.readers)
	}
}

// Without this a file is freed while it still has the name by which others find it,
// or one of the same name takes another's place before that was freed.
func TestDiscardTakesTheName(t *testing.T) {
	dir := t.TempDir()
	d := New(dir)
	for _, content := range []string{"one", "two"} {
		fill(t, dir, "a", content)
		must(t, d.Discard("a"))
		if !more(d) {
			t.Error("nobody is told")
		}
	}
	if got := listing(t, dir); got != "a.gone1 a.gone2" {
		t.Fatalf("two of one name: %q", got)
	}
	for _, name := range strings.Fields(listing(t, dir)) {
		if !IsGone(name) {
			t.Errorf("%s is not known again", name)
		}
	}
	for _, name := range []string{"a", "gone1", ".gone", "a.gone", "a.gone1x", "a.gone1.state", "x.state.tmp12"} {
		if IsGone(name) {
			t.Errorf("%s counts as gone", name)
		}
		fill(t, dir, name, "stays")
	}
	must(t, d.Free(t.Context()))
	if got := listing(t, dir); got != ".gone a a.gone a.gone1.state a.gone1x gone1 x.state.tmp12" {
		t.Errorf("after Free: %q", got)
	}
}

// Without this who comes between the look for readers and the renaming reads a file
// that is then cut off, where the kernel does not tell of it.
func TestNoReaderWhileTheNameIsTaken(t *testing.T) {
	dir := t.TempDir()
	d := New(dir)
	fill(t, dir, "a", "content")
	if _, ok := d.claim("a"); !ok {
		t.Fatal("nobody reads it")
	}
	if _, err := d.Open("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened meanwhile: %v", err)
	}
	must(t, d.Discard("a"))
	fill(t, dir, "a", "another")
	f, err := d.Open("a")
	must(t, err)
	must(t, f.Close())
}

// A reader that comes when a file is discarded has all of it, or does not find it.
func TestReaderAgainstDiscard(t *testing.T) {
	const size = durable.FreeStep + 100
	dir := t.TempDir()
	d := New(dir)
	for range 50 {
		fill(t, dir, "a", "")
		must(t, os.Truncate(filepath.Join(dir, "a"), size))
		var both sync.WaitGroup
		both.Go(func() {
			f, err := d.Open("a")
			if errors.Is(err, os.ErrNotExist) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = f.Close() }()
			for range 10 {
				if info, err := f.Stat(); err != nil || info.Size() != size {
					t.Errorf("a reader has %v, %v", info, err)
				}
			}
		})
		both.Go(func() {
			if err := errors.Join(d.Discard("a"), d.Free(t.Context())); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		must(t, errors.Join(d.Discard("a"), d.Free(t.Context())))
	}
}

// Without this two who free at once make a file long again, or fail over what the
// other has removed.
func TestFreeByTwo(t *testing.T) {
	const steps = 20
	dir := t.TempDir()
	d := New(dir)
	fill(t, dir, "a", "")
	must(t, os.Truncate(filepath.Join(dir, "a"), steps*durable.FreeStep))
	must(t, d.Discard("a"))
	calls := 0
	must(t, d.Free(stepping{t.Context(), func() {
		if calls++; calls == 3 {
			must(t, d.Free(t.Context()))
		}
	}}))
	if calls != steps || listing(t, dir) != "" {
		t.Errorf("%d steps, left %q", calls, listing(t, dir))
	}
}

// stepping is a context that calls a function before each step.
type stepping struct {
	context.Context
	before func()
}

// Err calls the function.
func (s stepping) Err() error { s.before(); return s.Context.Err() }

// Without this a node that stops waits for the disk to free what the next start
// removes anyway.
func TestFreeEndsWithTheNode(t *testing.T) {
	dir := t.TempDir()
	d := New(dir)
	fill(t, dir, "a", "content")
	must(t, d.Discard("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Free(ctx); !errors.Is(err, context.Canceled) || listing(t, dir) != "a.gone1" {
		t.Errorf("%v, %q", err, listing(t, dir))
	}
}
