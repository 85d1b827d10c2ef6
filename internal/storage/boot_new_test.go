package storage

import (
	"os"
	"path/filepath"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Without this a directory that has lost its log starts as a new one, and what
// it acknowledged is gone without a word; or somebody's own files are removed
// because their names are like ours.
func TestBootOnlyWhatIsNew(t *testing.T) {
	write := func(t *testing.T, path string) {
		testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		testkit.Must(t, os.WriteFile(path, []byte("mine"), 0o600))
	}
	cases := map[string]struct {
		make func(t *testing.T, dir string)
		want string
	}{
		"log lost after use": {func(t *testing.T, dir string) {
			startDisk(t, dir, diskPeers())
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal")))
		}, "wal is missing"},
		"log and mark lost": {func(t *testing.T, dir string) {
			write(t, StatePath(dir, 2, 15))
		}, "wal is missing"},
		"a home directory": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "snap", "firefox", "data"))
			write(t, filepath.Join(dir, ".bashrc"))
		}, "not this program's"},
		"snap alone":            {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "snap", "mine")) }, "not this program's"},
		"another's mark":        {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "mark")) }, "not this program's"},
		"another's tmp":         {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "mark.tmp.txt")) }, "not this program's"},
		"a file called wal.new": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "wal.new")) }, "not this program's"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			before := testkit.Sums(t, dir)
			err := Create(zap.NewNop(), dir, diskIdentity(), state.First(diskPeers()))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			testkit.WantUnchanged(t, dir, before)
		})
	}
}
