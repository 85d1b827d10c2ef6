//go:build unix

package offline

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
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

// freshVolume puts into a directory what a file system has at its root.
func freshVolume(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"lost+found", ".snapshot", ".zfs"} {
		testkit.Must(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name, "#123"), []byte("from fsck"), 0o600))
	}
}

// wantVolume checks that it is still there.
func wantVolume(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"lost+found", ".snapshot", ".zfs"} {
		if data, err := os.ReadFile(filepath.Join(dir, name, "#123")); err != nil || string(data) != "from fsck" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

// Guarantee: the root of a fresh volume is a data directory like any other: for a first start, a restart, a restore and
// inspect. What the file system keeps there stays; a file of that name is somebody else's.
func TestVolumeRoot(t *testing.T) {
	dir := t.TempDir()
	freshVolume(t, dir)
	testkit.Must(t, storage.Create(zap.NewNop(), dir, storagetest.Identity(), state.First(storagetest.Peers())))
	testkit.Must(t, storagetest.Open(t, dir).Close())
	testkit.Must(t, storagetest.Open(t, dir).Close())
	wantVolume(t, dir)
	code, out, errs := runCommand(t, "inspect", dir)
	if code != config.ExitOK || strings.Contains(out, "not raftkv's") {
		t.Errorf("inspect: exit %d\n%s%s", code, out, errs)
	}

	to := t.TempDir()
	freshVolume(t, to)
	if code, out, errs := runCommand(t, "restore", storagetest.BackupFile(t, statetest.Full(t, 5, 77)), "--data-dir", to, "--cluster", address.FormatPeers(storagetest.Peers())); code != config.ExitOK {
		t.Errorf("restore: exit %d\n%s%s", code, out, errs)
	}
	wantVolume(t, to)
	storagetest.WantRefounded(t, to, statetest.Full(t, 5, 77), storagetest.Peers())

	for _, name := range []string{"lost+found", ".snapshot"} {
		dir := t.TempDir()
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		if err := storage.CheckNew(dir); err == nil || !strings.Contains(err.Error(), "not this program's") {
			t.Errorf("a file called %s: %v", name, err)
		}
	}
}

// Guarantee: a recovery within a volume that was interrupted anywhere has lost nothing: no node starts from what it left, and
// it is done again or completed.
func TestRecoverVolumeInterrupted(t *testing.T) {
	old := storagetest.Old(t)
	f, err := storage.Examine(old)
	testkit.Must(t, err)
	st, err := f.Replay(f.Log.Last())
	testkit.Must(t, err)
	done := filepath.Join(t.TempDir(), "done")
	testkit.Must(t, os.CopyFS(done, os.DirFS(old)))
	if code, out, errs := runCommand(t, "recover", "--force-new-cluster", "--data-dir", done); code != config.ExitOK {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	wantNew := func(dir, aside string) {
		t.Helper()
		if id := storagetest.WantRefounded(t, testkit.Crashed(t, dir), st, storagetest.Peers()[:1]); id.ClusterID == f.Identity.ClusterID {
			t.Errorf("%+v", id)
		}
		testkit.Must(t, storagetest.Same(aside, old))
		wantVolume(t, dir)
		if storage.Exists(filepath.Join(dir, storage.RecoveringName)) {
			t.Error("what was to be moved is still there")
		}
	}
	move := func(dir string, from, to string) func() error {
		return func() error { return os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)) }
	}
	for steps := range 8 {
		dir := filepath.Join(t.TempDir(), "volume")
		testkit.Must(t, os.CopyFS(dir, os.DirFS(old)))
		testkit.Must(t, os.CopyFS(filepath.Join(dir, storage.RecoveringName), os.DirFS(done)))
		freshVolume(t, dir)
		const aside = storage.SetAsidePrefix + "3"
		testkit.Must(t, os.Mkdir(filepath.Join(dir, storage.SetAsidePrefix+"2"), 0o700))
		for _, step := range []func() error{
			func() error { return os.Mkdir(filepath.Join(dir, aside), 0o700) },
			move(dir, "wal", aside+"/wal"), move(dir, "snap", aside+"/snap"), move(dir, "mark", aside+"/mark"),
			move(dir, storage.RecoveringName+"/snap", "snap"), move(dir, storage.RecoveringName+"/mark", "mark"), move(dir, storage.RecoveringName+"/wal", "wal"),
		}[:steps] {
			testkit.Must(t, step())
		}
		before := testkit.Sums(t, dir)
		switch code, out, errs := runCommand(t, "recover", "--data-dir", dir); {
		case code != config.ExitFault:
			t.Errorf("after %d steps, without the flag: exit %d\n%s", steps, code, out)
		case steps < 2 && !strings.Contains(errs, "remove "+filepath.Join(dir, storage.RecoveringName)), steps >= 2 && !strings.Contains(out, "Nothing was done"):
			t.Errorf("after %d steps, without the flag:\n%s%s", steps, out, errs)
		}
		testkit.WantUnchanged(t, dir, before)
		switch {
		case steps < 2: // both are complete
			if code, _, _ := runCommand(t, "recover", "--force-new-cluster", "--data-dir", dir); code != config.ExitFault {
				t.Errorf("after %d steps: exit %d", steps, code)
			}
			testkit.WantUnchanged(t, dir, before)
			continue
		case steps < 7:
			wantNoStart(t, dir, "recover that was interrupted")
		case steps == 7: // only its empty place is left, and does not matter
			wantNew(withoutRecovering(t, dir), filepath.Join(dir, aside))
			continue
		}
		if code, out, errs := runCommand(t, "recover", "--force-new-cluster", "--data-dir", dir); code != config.ExitOK {
			t.Fatalf("after %d steps: exit %d\n%s%s", steps, code, out, errs)
		}
		wantNew(dir, filepath.Join(dir, aside))
	}
}

// withoutRecovering removes the place of a recovery, in which no part of a directory may be left.
func withoutRecovering(t *testing.T, dir string) string {
	t.Helper()
	place := filepath.Join(dir, storage.RecoveringName)
	for _, name := range storage.DataNames {
		if storage.Exists(filepath.Join(place, name)) {
			t.Errorf("%s is still in %s", name, place)
		}
	}
	testkit.Must(t, os.RemoveAll(place))
	return dir
}

// Guarantee: a data directory that is a mount point, of a disk or of another directory, is recovered as it stands.
func TestRecoverMountPoint(t *testing.T) {
	if !testkit.InNamespace(t, "-m", nil) {
		return
	}
	for _, what := range []string{"another device", "another directory"} {
		dir := filepath.Join(t.TempDir(), "a volume")
		testkit.Must(t, os.Mkdir(dir, 0o700))
		mount := []string{"-t", "tmpfs", "-o", "size=400m", "none", dir}
		if what == "another directory" {
			mount = []string{"--bind", t.TempDir(), dir}
		}
		if out, err := exec.Command("mount", mount...).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v\n%s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
		old := storagetest.Old(t)
		testkit.Must(t, os.CopyFS(dir, os.DirFS(old)))
		freshVolume(t, dir)
		for range 2 {
			f, err := storage.Examine(dir)
			testkit.Must(t, err)
			st, err := f.Replay(f.Log.Last())
			testkit.Must(t, err)
			code, out, errs := runCommand(t, "recover", "--force-new-cluster", "--data-dir", dir)
			if code != config.ExitOK {
				t.Fatalf("%s: exit %d\n%s%s", what, code, out, errs)
			}
			wantVolume(t, dir)
			storagetest.WantRefounded(t, testkit.Crashed(t, dir), st, storagetest.Peers()[:1])
		}
		testkit.Must(t, storagetest.Same(filepath.Join(dir, storage.SetAsidePrefix+"1"), old))
		if _, err := os.Stat(filepath.Join(dir, storage.SetAsidePrefix+"2", "wal")); err != nil {
			t.Error(err)
		}
		if code, out, _ := runCommand(t, "inspect", dir); code != config.ExitOK || strings.Contains(out, "not raftkv's") {
			t.Errorf("inspect: exit %d\n%s", code, out)
		}
		if _, err := os.Stat(dir + ".recovering"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("beside the mount point: %v", err)
		}
	}
}
