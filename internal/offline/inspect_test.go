//go:build unix

package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"regexp"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// inspected runs inspect, and checks that it changes nothing.
func inspected(t *testing.T, path string, want int) string {
	t.Helper()
	sums, times := testkit.Sums(t, path), stamps(t, path)
	code, out, errs := runCommand(t, "inspect", path)
	if code != want || errs != "" {
		t.Errorf("exit %d, want %d\n%s%s", code, want, out, errs)
	}
	testkit.WantUnchanged(t, path, sums)
	if now := stamps(t, path); now != times {
		t.Errorf("before:\n%s\nafter:\n%s", times, now)
	}
	return out
}

// wantLines checks that each pattern matches a line.
func wantLines(t *testing.T, out string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile("(?m)^" + pattern + "$").MatchString(out) {
			t.Errorf("no line %q in\n%s", pattern, out)
		}
	}
}

// Guarantee: what inspect prints is what is there.
func TestInspect(t *testing.T) {
	dir := storagetest.Old(t)
	f, err := storage.Examine(dir)
	testkit.Must(t, err)
	st, err := f.Replay(20)
	testkit.Must(t, err)
	digest, err := DigestOf(st)
	testkit.Must(t, err)
	out := inspected(t, dir, config.ExitOK)
	wantLines(t, out,
		"format +1", "node +1", "cluster +abc", "instance +0", "made with +--cluster "+address.FormatPeers(storagetest.Peers()),
		"mark +start 1; synced are entry 30, term 3, vote for node 2", "log +entries 16 to 30, the last of term 3", "term +3, vote for node 2",
		"committed +entry 20, .*", "segment +wal/0000000000000000-0000000000000000.wal, 1048576 bytes, from entry 0, written .*", "tail +clean, at offset [0-9]+",
		"snapshot +snap/0000000000000003-000000000000000f.state, [0-9]+ bytes, written .*",
		"  index +15\n  term +3\n  revision +15\n  keys +1\n  bytes +11\n  sha256 +"+fmt.Sprintf("%x", f.Digest),
		"  index +20\n  term +3\n  revision +20\n  keys +6\n  bytes +66\n  sha256 +"+fmt.Sprintf("%x", digest),
		"member 2 +voter at http://10.0.0.2:2380, has not taken part yet", "removed +none", "changes +0 of the membership", "sound +nothing is damaged")
	if strings.Contains(out, "in use") || strings.Contains(out, "DAMAGED") {
		t.Error(out)
	}
	// The checksums are comparable across directories and files.
	if d, err := DigestOf(f.Snapshot); err != nil || d != f.Digest {
		t.Errorf("%x, %v", d, err)
	}
	file := storagetest.BackupFile(t, st)
	code, text, errs := runCommand(t, "inspect", file)
	if code != config.ExitOK || errs != "" {
		t.Errorf("exit %d, %s", code, errs)
	}
	wantLines(t, text, "state file +"+file, "  index +20", "  keys +6", fmt.Sprintf("  sha256 +%x", digest), "member 3 .*", "sound .*")
}

// A joiner that has heard nothing yet, a torn tail, left-over and foreign files:
// nothing of this is damage.
func TestInspectUnusual(t *testing.T) {
	joining := t.TempDir()
	testkit.Must(t, storage.Create(zap.NewNop(), joining, storage.Identity{Format: storage.DirFormat, Node: 4, ClusterID: 1, Instance: 9}, state.First(nil)))
	wantLines(t, inspected(t, joining, config.ExitOK), "node +4", "made +by joining.*", "snapshot +none.*", "log +no entries behind entry 0")

	dir := storagetest.Old(t)
	o := storagetest.Open(t, dir)
	testkit.Must(t, o.Append([]*raftpb.Message{testkit.AppendMessage(3, 2, 30, storagetest.PutEntries(3, 31, 32)...)}))
	torn := testkit.Crashed(t, dir)
	last := testkit.FrameAt(t, testkit.Segments(t, torn)[0], -1)
	testkit.Must(t, os.Truncate(testkit.Segments(t, torn)[0], last.End-4))
	for _, name := range []string{"mark.tmp12", "wal/0.tmp", "snap/0000000000000003-0000000000000010.state", "snap/x.tmp1", "thesis.pdf", "wal/odd"} {
		testkit.Must(t, os.WriteFile(filepath.Join(torn, name), nil, 0o600))
	}
	wantLines(t, inspected(t, torn, config.ExitOK), "tail +torn at offset .*", "left over +mark.tmp12,.*", "left over +wal/0.tmp,.*",
		"left over +snap/0000000000000003-0000000000000010.state,.*", "left over +snap/x.tmp1,.*", "not raftkv's +thesis.pdf", "not raftkv's +wal/odd", "sound .*")
}

// Guarantee: of a damaged directory all that is left is shown, and what is
// damaged.
func TestInspectDamaged(t *testing.T) {
	snap := filepath.Base(storage.StatePath("", 3, 15))
	for what, c := range map[string]struct {
		damage func(dir string)
		lines  []string
	}{
		"mark":     {func(dir string) { testkit.Must(t, os.Remove(filepath.Join(dir, "mark"))) }, []string{"DAMAGED +.*/mark: no such.*", "node +1", "  index +20", "log .*"}},
		"snapshot": {func(dir string) { testkit.Patch(t, filepath.Join(dir, "snap", snap), 40, []byte("x")) }, []string{"DAMAGED +.*" + snap + ".*", "node +1", "mark .*", "log +entries 16 to 30.*"}},
		"no snap":  {func(dir string) { testkit.Must(t, os.RemoveAll(filepath.Join(dir, "snap"))) }, []string{"DAMAGED +.*" + snap + ".*", "node +1", "log +entries 16 to 30.*"}},
		"entry": {func(dir string) {
			f := testkit.FrameAt(t, testkit.Segments(t, dir)[0], -5)
			testkit.Patch(t, testkit.Segments(t, dir)[0], f.End-12, []byte("x"))
		}, []string{"DAMAGED .*", "node +1", "mark .*", "state file +snap/" + snap + ", whole.*", "  index +15"}},
		"log": {func(dir string) { testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal"))) }, []string{"DAMAGED +.*wal.*", "node +not known", "mark .*", "state file +snap/" + snap + ", whole.*"}},
		"only a mark": {func(dir string) {
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal")))
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, "snap")))
		}, []string{"DAMAGED .*", "mark .*"}},
		"all but snap": {func(dir string) {
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, "wal")))
			testkit.Must(t, os.Remove(filepath.Join(dir, "mark")))
		}, []string{"DAMAGED .*"}},
	} {
		t.Run(what, func(t *testing.T) {
			dir := testkit.Crashed(t, storagetest.Old(t))
			c.damage(dir)
			out := inspected(t, dir, config.ExitFault)
			wantLines(t, out, c.lines...)
			if strings.Contains(out, "\nsound") {
				t.Error(out)
			}
			if strings.Contains(what, "log") && (strings.Count(out, "wal") != 1 || strings.Contains(out, "\ncommitted")) {
				t.Errorf("it says more than that the log is missing:\n%s", out)
			}
		})
	}
}

// An older copy is named as such, also to who would make a cluster of it.
func TestInspectOldCopy(t *testing.T) {
	dir := storagetest.Old(t)
	testkit.Must(t, storage.NoteOldCopy(dir))
	out := inspected(t, dir, config.ExitOK)
	wantLines(t, out, "OLD COPY +this node's data directory is an older copy.*")
	if strings.Contains(out, "not raftkv's") {
		t.Error(out)
	}
	if _, out, errs := runCommand(t, "recover", "--data-dir", dir); !strings.Contains(out, "OLD COPY") {
		t.Errorf("recover does not say so:\n%s%s", out, errs)
	}
}

// Guarantee: inspect works beside a running node, and what is no data directory
// is exit 1.
func TestInspectInUseAndElsewhere(t *testing.T) {
	dir := storagetest.Old(t)
	lock, err := storage.Lock(dir)
	testkit.Must(t, err)
	defer lock.Close()
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "wal", "0.tmp"), nil, 0o600)) // the next segment of a running node
	out := inspected(t, dir, config.ExitOK)
	wantLines(t, out, "in use .*", "sound .*")
	if strings.Contains(out, "0.tmp") {
		t.Errorf("what a running node uses is left over:\n%s", out)
	}
	if l, err := storage.Lock(dir); err == nil {
		l.Close()
		t.Error("inspect took the lock away")
	}
	for _, path := range []string{t.TempDir(), filepath.Join(dir, "nothing"), "/dev/null"} {
		if code, out, errs := runCommand(t, "inspect", path); code != config.ExitFault || out != "" || !strings.Contains(errs, path) {
			t.Errorf("%s: exit %d\n%s%s", path, code, out, errs)
		}
	}
}
