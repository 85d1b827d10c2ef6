package durable

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// stepping is a context that calls a function whenever it is asked whether it has
// ended: before each step.
type stepping struct {
	context.Context
	before func() error
}

// Err calls the function.
func (s stepping) Err() error { return s.before() }

// sized makes a file of a size, which takes no blocks.
func sized(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path
}

// sizes frees a file, and returns how large it was before each step.
func sizes(t *testing.T, path string) (was []int64) {
	t.Helper()
	if err := Free(stepping{t.Context(), func() error {
		info, err := os.Stat(path)
		if err == nil {
			was = append(was, info.Size())
		}
		return err
	}}, path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	return was
}

// Without this a large file goes at once, and the log's syncs wait for it.
func TestFreeInSteps(t *testing.T) {
	const step = FreeStep
	for size, want := range map[int64][]int64{
		0:          {0},
		1:          {1},
		step:       {step},
		step + 1:   {step + 1, 1},
		3*step + 5: {3*step + 5, 2*step + 5, step + 5, 5},
		3 * step:   {3 * step, 2 * step, step},
	} {
		if got := sizes(t, sized(t, size)); !slices.Equal(got, want) {
			t.Errorf("%d bytes: the steps begin at %d, want %d", size, got, want)
		}
	}
}

// Without this a node that stops waits until a large file has gone.
func TestFreeStops(t *testing.T) {
	path := sized(t, 3*FreeStep)
	steps := 0
	end := errors.New("the end")
	err := Free(stepping{t.Context(), func() error {
		if steps++; steps > 1 {
			return end
		}
		return nil
	}}, path)
	if info, serr := os.Stat(path); !errors.Is(err, end) || serr != nil || info.Size() != 2*FreeStep {
		t.Errorf("%v; then %v, %v", err, info, serr)
	}
}

// Without this a copy that an operator made by a link, or is just making, is cut
// off.
func TestFreeLeavesWhatIsUsedElsewhere(t *testing.T) {
	const size = 3 * FreeStep
	linked := sized(t, size)
	other := linked + ".other"
	if err := os.Link(linked, other); err != nil {
		t.Fatal(err)
	}
	if got := sizes(t, linked); !slices.Equal(got, []int64{size}) {
		t.Errorf("with another name: the steps begin at %d", got)
	}
	if info, err := os.Stat(other); err != nil || info.Size() != size {
		t.Errorf("under the other name: %v, %v", info, err)
	}

	opened := sized(t, size)
	f, err := os.Open(opened)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if got := sizes(t, opened); !slices.Equal(got, []int64{size}) {
		t.Errorf("open elsewhere: the steps begin at %d", got)
	}
	if info, err := f.Stat(); err != nil || info.Size() != size {
		t.Errorf("for who has it open: %v, %v", info, err)
	}
}

// A file that is not there is an error, as for os.Remove.
func TestFreeOfNothing(t *testing.T) {
	if err := Free(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
