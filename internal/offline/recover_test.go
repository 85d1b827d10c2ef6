//go:build unix

package offline

import (
	"os"
	"path/filepath"
	"raftkv/internal/boot"
	"raftkv/internal/config"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Guarantee: a recovery that was interrupted anywhere has lost nothing, and is
// done again or completed.
func TestRecoverInterrupted(t *testing.T) {
	old := storagetest.Old(t)
	f, err := storage.Examine(old)
	testkit.Must(t, err)
	st, err := f.Replay(f.Log.Last())
	testkit.Must(t, err)
	recovered := func(dir string, want int) string {
		t.Helper()
		code, out, errs := runCommand(t, "recover", "--force-new-cluster", "--data-dir", dir)
		if code != want {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
		return out + errs
	}
	done := filepath.Join(t.TempDir(), "done")
	testkit.Must(t, os.CopyFS(done, os.DirFS(old)))
	recovered(done, config.ExitOK)
	wantNew := func(dir string) {
		t.Helper()
		copied := testkit.Crashed(t, dir) // opening it would use it
		if id := storagetest.WantRefounded(t, copied, st, storagetest.Peers()[:1]); id.Initial != "" || id.ClusterID == f.Identity.ClusterID {
			t.Errorf("%+v", id)
		}
	}
	wantNew(done)

	// While the new directory is made.
	for _, gone := range []string{"wal", "mark", "snap"} {
		dir := filepath.Join(t.TempDir(), "dir")
		testkit.Must(t, os.CopyFS(dir, os.DirFS(old)))
		testkit.Must(t, os.CopyFS(dir+".recovering", os.DirFS(done)))
		testkit.Must(t, os.RemoveAll(filepath.Join(dir+".recovering", "wal")))
		testkit.Must(t, os.RemoveAll(filepath.Join(dir+".recovering", gone)))
		recovered(dir, config.ExitOK)
		wantNew(dir)
		testkit.Must(t, storagetest.Same(dir+".before-recovery-1", old))
	}
	// Before the first rename: it cannot be told which one counts.
	dir := filepath.Join(t.TempDir(), "dir")
	testkit.Must(t, os.CopyFS(dir, os.DirFS(old)))
	testkit.Must(t, os.CopyFS(dir+".recovering", os.DirFS(done)))
	before := testkit.Sums(t, filepath.Dir(dir))
	if out := recovered(dir, config.ExitFault); !strings.Contains(out, "remove "+dir+".recovering") {
		t.Errorf("the message has no way out:\n%s", out)
	}
	testkit.WantUnchanged(t, filepath.Dir(dir), before)
	// Between the two renames.
	testkit.Must(t, os.Rename(dir, dir+".before-recovery-1"))
	if code, out, _ := runCommand(t, "recover", "--data-dir", dir); code != config.ExitFault || !strings.Contains(out, "Nothing was done") {
		t.Errorf("without the flag: exit %d\n%s", code, out)
	}
	wantNoStart(t, dir, "recover that was interrupted") // an empty cluster in its place
	recovered(dir, config.ExitOK)
	wantNew(dir)
	testkit.Must(t, storagetest.Same(dir+".before-recovery-1", old))
	// And once more, later: an older directory is never written over.
	recovered(dir, config.ExitOK)
	testkit.Must(t, storagetest.Same(dir+".before-recovery-1", old))
	if _, err := os.Stat(dir + ".before-recovery-2"); err != nil {
		t.Error(err)
	}
}

// Guarantee: what recovery cannot rest on is refused, and left as it is.
func TestRecoverRefuses(t *testing.T) {
	damaged, joining, removed, busy := storagetest.Old(t), t.TempDir(), storagetest.New(t), storagetest.Old(t)
	testkit.Must(t, os.Remove(storage.StatePath(damaged, 3, 15)))
	testkit.Must(t, storage.Create(zap.NewNop(), joining, storagetest.Identity(), state.First(nil)))
	o := storagetest.Open(t, removed)
	st := statetest.At(t, storagetest.Peers(), 3, 15)
	st.Membership = membership.New(storagetest.Peers()[1:])
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 20, storagetest.PutEntries(3, 2, 30)...)}))
	storagetest.TakeSnapshot(t, o, st)
	testkit.Must(t, o.Close())
	for _, dir := range []string{damaged, joining, removed, busy} { // a node was there
		lock, err := storage.Lock(dir)
		testkit.Must(t, err)
		if dir != busy {
			testkit.Must(t, lock.Close())
		}
		defer lock.Close()
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tt := range []struct{ dir, want string }{
		{damaged, "damaged"}, {joining, "no state"}, {removed, "no member"}, {busy, "in use"}, {t.TempDir(), "not a data directory"}, {missing, missing},
	} {
		for _, args := range [][]string{{"--force-new-cluster"}, {}} {
			parent := filepath.Dir(tt.dir)
			before := testkit.Sums(t, parent)
			code, out, errs := runCommand(t, append([]string{"recover", "--data-dir", tt.dir}, args...)...)
			if code != config.ExitFault || !strings.Contains(errs, tt.want) {
				t.Errorf("%q: exit %d, want %q\n%s%s", args, code, tt.want, out, errs)
			}
			testkit.WantUnchanged(t, parent, before)
		}
	}
}

// wantNoStart checks that the server refuses to start from a directory, as of
// which there is none or a half-made one.
func wantNoStart(t *testing.T, dir, because string) {
	t.Helper()
	lock, err := storage.Lock(dir) // which leaves a directory, as the server does
	testkit.Must(t, err)
	defer lock.Close()
	cfg := config.DefaultConfig()
	cfg.DataDir = dir
	if _, err := boot.PrepareDir(t.Context(), cfg, zap.NewNop(), peerclient.New()); err == nil || !strings.Contains(err.Error(), because) {
		t.Errorf("got %v, want a word on %s", err, because)
	}
}
