//go:build unix

package offline

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func fixtureFile(name string) string { return filepath.Join("../storage/testdata", name) }

// fixtures returns the files of testdata/ with an ending, by their fixture's
// name.
func fixtures(t *testing.T, ending string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	paths, err := filepath.Glob(fixtureFile("*" + ending))
	testkit.Must(t, err)
	for _, path := range paths {
		found[strings.TrimSuffix(filepath.Base(path), ending)] = path
	}
	if len(found) == 0 {
		t.Fatalf("there is no fixture %s", fixtureFile("*"+ending))
	}
	return found
}

// golden is what must come out of a fixture.
func golden(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(fixtureFile(name + ".txt"))
	testkit.Must(t, err)
	return string(text)
}

func unpackFixture(t *testing.T, path string) string {
	t.Helper()
	packed, err := os.ReadFile(path)
	testkit.Must(t, err)
	dir := filepath.Join(t.TempDir(), "data")
	testkit.Must(t, os.Mkdir(dir, 0o700))
	testkit.Must(t, testkit.UnpackDir(bytes.NewReader(packed), dir))
	return dir
}

// wantGolden compares a state with a fixture's.
func wantGolden(t *testing.T, what string, st *state.State, name string) {
	t.Helper()
	got, want := strings.Split(statetest.Describe(st), "\n"), strings.Split(golden(t, name), "\n")
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("%s of %s lacks\n%s", what, name, want[i])
		case i >= len(want):
			t.Fatalf("%s of %s has beyond what is expected\n%s", what, name, got[i])
		case got[i] != want[i]:
			t.Fatalf("%s of %s, line %d:\n%s\nwant\n%s", what, name, i+1, got[i], want[i])
		}
	}
}

// stamps are the times and sizes of all in a directory, itself included.
func stamps(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	testkit.Must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}))
	return b.String()
}

// Guarantee: a data directory of every version opens, as it is and for good,
// and nothing of it is lost.
func TestFixtureDirs(t *testing.T) {
	for name, path := range fixtures(t, ".dir.tar.gz") {
		t.Run(name, func(t *testing.T) {
			dir := unpackFixture(t, path)
			f, err := storage.Examine(dir)
			testkit.Must(t, err)
			if len(f.Damage) > 0 {
				t.Fatalf("damage: %v", f.Damage)
			}
			if len(f.Log.Entries) == 0 || f.Snapshot.Index <= state.FirstIndex {
				t.Errorf("the snapshot is of entry %d, with %d entries behind it: the fixture shows too little", f.Snapshot.Index, len(f.Log.Entries))
			}
			st, err := f.Replay(f.Log.Last())
			testkit.Must(t, err)
			wantGolden(t, "the directory", st, name)

			o, err := storage.Open(zap.NewNop(), dir, storage.Bounds{}, func(id storage.Identity, _ bool) error {
				if id != *f.Identity {
					return fmt.Errorf("the identity is %+v, and was read as %+v", id, *f.Identity)
				}
				return nil
			})
			testkit.Must(t, err)
			defer o.Close()
			entries, err := o.Mem.Entries(o.State.Index+1, o.Last+1, 1<<30)
			testkit.Must(t, err)
			for _, e := range entries {
				testkit.Must(t, o.State.Replay(e))
			}
			wantGolden(t, "the opened directory", o.State, name)
		})
	}
}

// Guarantee: inspect shows what is in a directory of every version, and leaves
// it as it is.
func TestFixtureInspect(t *testing.T) {
	for name, path := range fixtures(t, ".dir.tar.gz") {
		t.Run(name, func(t *testing.T) {
			dir := unpackFixture(t, path)
			sums, times := testkit.Sums(t, dir), stamps(t, dir)
			code, out, errs := runCommand(t, "inspect", dir)
			if code != config.ExitOK || errs != "" {
				t.Errorf("exit %d\n%s%s", code, out, errs)
			}
			for _, want := range []string{"node ", "cluster ", "snapshot ", "removed          3", "member 1", "member 4         learner", "level", "tail             clean", "sound "} {
				if !strings.Contains(out, "\n"+want) {
					t.Errorf("no line %q in\n%s", want, out)
				}
			}
			testkit.WantUnchanged(t, dir, sums)
			if now := stamps(t, dir); now != times {
				t.Errorf("before:\n%s\nafter:\n%s", times, now)
			}
		})
	}
}

// Guarantee: a surviving directory of every version can be recovered.
func TestFixtureRecover(t *testing.T) {
	for name, path := range fixtures(t, ".dir.tar.gz") {
		t.Run(name, func(t *testing.T) {
			dir := unpackFixture(t, path)
			f, err := storage.Examine(dir)
			testkit.Must(t, err)
			st, err := f.Replay(f.Log.Last())
			testkit.Must(t, err)
			if code, out, errs := runCommand(t, "recover", "--force-new-cluster", "--data-dir", dir); code != config.ExitOK {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			storagetest.WantRefounded(t, dir, st, []address.Peer{{ID: f.Identity.Node, URL: storagetest.URL(f.Identity.Node)}})
		})
	}
}

// Guarantee: a backup of every version can be read and restored.
func TestFixtureBackups(t *testing.T) {
	for name, path := range fixtures(t, ".backup") {
		t.Run(name, func(t *testing.T) {
			st, digest, err := state.ReadBackup(nil, path)
			testkit.Must(t, err)
			wantGolden(t, "the backup", st, name)
			code, out, errs := runCommand(t, "inspect", path)
			if code != config.ExitOK || !strings.Contains(out, fmt.Sprintf("%x", digest)) {
				t.Errorf("inspect: exit %d\n%s%s", code, out, errs)
			}
			dir := filepath.Join(t.TempDir(), "new")
			if code, out, errs := runCommand(t, "restore", path, "--data-dir", dir, "--id", "7", "--cluster", "7="+storagetest.URL(7)); code != config.ExitOK {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			storagetest.WantRefounded(t, dir, st, []address.Peer{{ID: 7, URL: storagetest.URL(7)}})
		})
	}
}

// What inspect says of leases, the clock and the outcomes of requests.
func TestFixtureInspectRequests(t *testing.T) {
	code, text, errs := runCommand(t, "inspect", fixtureFile("requests.backup"))
	if code != config.ExitOK || errs != "" {
		t.Errorf("exit %d, %s", code, errs)
	}
	wantLines(t, text, "  leases +[0-9]+, beside 2 keys with a time to live of their own; the last ID is [0-9]+", "  clock +[0-9.ms]+", "  requests +the outcomes of 14 under an Idempotency-Key")
}
