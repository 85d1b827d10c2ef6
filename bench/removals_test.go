package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Ensure that a file that goes, or gets the name of one that is to go, is seen once,
// with its size, and that new and temporary files are none.
func TestRemovalsAreSeen(t *testing.T) {
	n := &node{dir: t.TempDir()}
	dir := filepath.Join(n.dir, "snap")
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, size int) {
		t.Helper()
		if err := os.WriteFile(path(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	w := &removalWatch{there: map[string]int64{}}
	step := 0
	look := func() { step++; w.look([]*node{n}, time.Unix(int64(step), 0)) }

	write("1.state", 100)
	look()
	write("2.state.tmp7", 5)
	look()
	must(os.Rename(path("2.state.tmp7"), path("2.state")))
	must(os.Rename(path("1.state"), path("1.state.tmp1")))
	look() // 3
	must(os.Remove(path("1.state.tmp1")))
	write("2.state", 50)
	look()
	must(os.Remove(path("2.state")))
	look() // 5
	look()
	want := []removal{{time.Unix(3, 0), 100}, {time.Unix(5, 0), 50}}
	if !slices.Equal(w.gone, want) {
		t.Errorf("got %v, want %v", w.gone, want)
	}
}

// Ensure that a node with more than one whole state file is at work.
func TestQuiet(t *testing.T) {
	n := &node{dir: t.TempDir()}
	write := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.dir, "snap", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(n.dir, "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name  string
		quiet bool
	}{{"", true}, {"1.state", true}, {"2.state", false}} {
		if step.name != "" {
			write(step.name)
		}
		if err := quiet([]*node{n}); (err == nil) != step.quiet {
			t.Errorf("with %q: %v", step.name, err)
		}
	}
	if err := os.Rename(filepath.Join(n.dir, "snap", "2.state"), filepath.Join(n.dir, "snap", "2.state.tmp3")); err != nil {
		t.Fatal(err)
	}
	if err := quiet([]*node{n}); err == nil {
		t.Error("with a temporary file")
	}
}

// Ensure that only what went during a turn counts, and that a turn without a removal
// meets no target.
func TestRemovalsByTurn(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	turns := []turnFigures{{began: at(10), ended: at(20)}, {began: at(30), ended: at(40)}}
	seen := []removal{{at(5), 1e9}, {at(15), 3e8}, {at(25), 1e9}, {at(35), 5e8}}
	met := outcome{Targets: []verdict{{Met: true}}}
	reportRemovals(&met, 9, turns, seen)
	if want := "2 state files of 400 MB were removed, by turn: 1, 1"; len(met.Notes) != 2 || !strings.Contains(met.Notes[1], want) {
		t.Errorf("%q, want %q", met.Notes, want)
	}
	if !met.Targets[0].Met {
		t.Error("each turn had a removal, and the target is not met")
	}
	none := outcome{Targets: []verdict{{Met: true}}}
	reportRemovals(&none, 9, turns, seen[:2])
	if none.Targets[0].Met || len(none.Notes) != 3 {
		t.Errorf("a turn had no removal: %+v", none)
	}
}

// Ensure that a turn writes more than all the keys hold and than a state file needs,
// that it has an end, and that there is a key.
func TestTurnsWithRemovals(t *testing.T) {
	if got := removalKeys(20*time.Second, 1000); got != 15_000 {
		t.Errorf("%d keys, want 15000", got)
	}
	if got := removalKeys(time.Second, 0.1); got != 1 {
		t.Errorf("%d keys, want 1", got)
	}
	for rate, want := range map[float64]time.Duration{1000: 20 * time.Second, 256: 24 * time.Second, 1: time.Minute} {
		if got := removalTurn(20*time.Second, rate); got != want {
			t.Errorf("%v/s: %v, want %v", rate, got, want)
		}
	}
}
