//go:build unix

package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"raftkv/internal/address"
	"raftkv/internal/boot"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"raftkv/internal/doors"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// runCommand runs the program.
func runCommand(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runCommandEnv(t, nil, args...)
}

func runCommandEnv(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	code = run1(t, t.Context(), lookup, &out, &errs, args...)
	return code, out.String(), errs.String()
}

// run1 runs one command, as package cli does.
func run1(t *testing.T, ctx context.Context, env func(string) (string, bool), out, errs io.Writer, args ...string) int {
	t.Helper()
	at, o := command.Command{Sub: Commands()}, &command.Call{Env: env, Stdin: os.Stdin, Stdout: out, Stderr: errs}
	for at.New == nil {
		i := slices.IndexFunc(at.Sub, func(c command.Command) bool { return len(args) > 0 && c.Name == args[0] })
		if i < 0 {
			t.Fatalf("there is no command %q", args)
		}
		at, args = at.Sub[i], args[1:]
		o.Name = strings.TrimSpace(o.Name + " " + at.Name)
	}
	return o.Finish(at.Run(ctx, o, args))
}

// Guarantee: all that is wrong with a command line is named at once, exit 2.
func TestCommandUsage(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		args []string
		want []string
	}{
		{nil, []string{"restore"}, []string{"FILE"}},
		{nil, []string{"restore", "a", "b", "--id", "0", "--cluster", "x", "--bogus"}, []string{`"b"`, "--id", "--cluster", "bogus"}},
		{nil, []string{"restore", "a", "--id", "3", "--cluster", "http://127.0.0.1:1"}, []string{"--id"}},
		{nil, []string{"restore", "a", "--cluster", "http://127.0.0.1:1,2=http://127.0.0.1:2"}, []string{"--cluster"}},
		{nil, []string{"restore", "a", "--port", "1", "--join"}, []string{"port", "join"}},
		{nil, []string{"restore", "a", "--id", "1", "--id", "1"}, []string{"--id"}},
		{map[string]string{"RAFTKV_ID": "x", "RAFTKV_CLUSTER": "y"}, []string{"restore", "a"}, []string{"RAFTKV_ID", "RAFTKV_CLUSTER"}},
		{nil, []string{"recover", "x", "--bogus"}, []string{`"x"`, "bogus", "--data-dir"}},
		{nil, []string{"recover", "--force-new-cluster=perhaps"}, []string{"--force-new-cluster", "--data-dir"}},
		{nil, []string{"recover", "--version"}, []string{"version"}},
		{nil, []string{"inspect"}, []string{"DATA-DIR", "FILE"}},
		{nil, []string{"inspect", "a", "b", "--x"}, []string{`"b"`, "-x"}},
		{map[string]string{"RAFTKV_OUTPUT": "xml"}, []string{"inspect", "a"}, []string{`RAFTKV_OUTPUT "xml"`, "table, json"}},
	} {
		code, out, errs := runCommandEnv(t, tt.env, tt.args...)
		if code != config.ExitUsage || out != "" {
			t.Errorf("%q: exit %d\n%s%s", tt.args, code, out, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%q: %s is not named in\n%s", tt.args, want, errs)
			}
		}
	}
}

// Guarantee: one file and one list make the directories of one new cluster,
// with all keys and nothing of the old members.
func TestRestore(t *testing.T) {
	old := statetest.Full(t, 5, 77)
	file, dir := storagetest.BackupFile(t, old), t.TempDir()
	list := address.FormatPeers(storagetest.Peers())
	seen := make(map[uint64]bool)
	var ids []storage.Identity
	for _, p := range storagetest.Peers() {
		to := filepath.Join(dir, fmt.Sprint(p.ID))
		env := map[string]string{"RAFTKV_ID": fmt.Sprint(p.ID), "RAFTKV_DATA_DIR": to}
		code, out, errs := runCommandEnv(t, env, "restore", file, "--cluster", list)
		if code != config.ExitOK || errs != "" {
			t.Fatalf("node %d: exit %d\n%s%s", p.ID, code, out, errs)
		}
		id := storagetest.WantRefounded(t, to, old, storagetest.Peers())
		cfg := config.Config{ID: p.ID, DataDir: to, Cluster: storagetest.Peers()}
		if id.Node != p.ID || id.Initial != list || boot.CheckIdentity(cfg, id, false) != nil || !strings.Contains(out, fmt.Sprintf("%x", id.ClusterID)) {
			t.Errorf("node %d: %+v\n%s", p.ID, id, out)
		}
		if seen[id.Instance] {
			t.Errorf("two directories have the instance %x", id.Instance)
		}
		seen[id.Instance] = true
		ids = append(ids, id)
	}
	if ids[0].ClusterID != ids[1].ClusterID || ids[1].ClusterID != ids[2].ClusterID || ids[0].ClusterID == address.ClusterIDOf(storagetest.Peers()) {
		t.Errorf("the nodes have %x, %x and %x for their cluster", ids[0].ClusterID, ids[1].ClusterID, ids[2].ClusterID)
	}

	other := statetest.Full(t, 5, 77)
	statetest.Apply(t, other, statetest.Put("one more", ""))
	for i, args := range [][]string{{storagetest.BackupFile(t, other), list}, {file, address.FormatPeers(storagetest.Peers()[:2])}} {
		to := filepath.Join(dir, fmt.Sprint("other", i))
		if code, out, errs := runCommand(t, "restore", args[0], "--data-dir", to, "--cluster", args[1]); code != config.ExitOK {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
		if f, err := storage.Examine(to); err != nil || f.Identity.ClusterID == ids[0].ClusterID {
			t.Errorf("another file or list made the same cluster: %+v, %v", f.Identity, err)
		}
	}
}

// Guarantee: who makes a new cluster of one that had rights is told that it has none by itself.
func TestRestoreSaysThatRightsAreGone(t *testing.T) {
	for i, d := range []doors.Doors{{}, {Rights: doors.HasFile}, {Rights: doors.Lacking}, {Rights: doors.Off}} {
		st := statetest.Full(t, 5, 77)
		for id, m := range st.Membership.Members {
			m.Doors = d.Encode()
			st.Membership.Members[id] = m
		}
		code, out, errs := runCommand(t, "restore", storagetest.BackupFile(t, st), "--data-dir", filepath.Join(t.TempDir(), "new"), "--cluster", address.FormatPeers(storagetest.Peers()))
		if code != config.ExitOK {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
		if says := strings.Contains(out, "without --auth-file it serves everybody"); says != (i == 1 || i == 2) {
			t.Errorf("%+v: %s", d, out)
		}
	}
}

// A state file of a data directory will do, and so will standard input.
func TestRestoreFromElsewhere(t *testing.T) {
	old := statetest.Full(t, 5, 77)
	snap := filepath.Join(storagetest.New(t), "snap", "x.state")
	testkit.Must(t, os.WriteFile(snap, statetest.Bytes(t, old), 0o600))
	for i, file := range []string{snap, "-"} {
		to := filepath.Join(t.TempDir(), fmt.Sprint(i))
		o := &command.Call{Env: os.LookupEnv, Stdin: bytes.NewReader(statetest.Bytes(t, old)), Stdout: new(bytes.Buffer)}
		testkit.Must(t, restoreCommand().Run(t.Context(), o, []string{"--data-dir", to, file, "--cluster=" + storagetest.URL(1)}))
		storagetest.WantRefounded(t, to, old, []address.Peer{{ID: 1, URL: storagetest.URL(1)}})
	}
}

// Guarantee: of a file that is not a whole backup nothing is made.
func TestRestoreRefusesDamage(t *testing.T) {
	st := state.New(storagetest.Peers())
	statetest.Apply(t, st, statetest.Put("key", strings.Repeat("value ", 20)))
	whole := statetest.Bytes(t, st)
	dir := t.TempDir()
	refused := func(what string, b []byte) {
		t.Helper()
		file, to := filepath.Join(dir, "file"), filepath.Join(dir, "to")
		testkit.Must(t, os.WriteFile(file, b, 0o600))
		code, out, errs := runCommand(t, "restore", file, "--data-dir", to)
		if _, err := os.Stat(to); code != config.ExitFault || out != "" || !strings.Contains(errs, file) || !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: exit %d, %v\n%s%s", what, code, err, out, errs)
		}
		if code, _, _ := runCommand(t, "inspect", file); code != config.ExitFault {
			t.Fatalf("%s: inspect exits %d", what, code)
		}
	}
	for n := range len(whole) {
		refused(fmt.Sprint("cut at ", n), whole[:n])
		flipped := slices.Clone(whole)
		flipped[n] ^= 1 << (n % 8)
		refused(fmt.Sprint("flipped at ", n), flipped)
	}
	refused("longer", append(slices.Clone(whole), 0))
	st.Revision = math.MaxUint64 - 5
	if code, _, errs := runCommand(t, "restore", storagetest.BackupFile(t, st), "--data-dir", filepath.Join(dir, "to")); code != config.ExitFault || !strings.Contains(errs, "revision") {
		t.Errorf("no room for revisions: exit %d, %s", code, errs)
	}
	if code, _, errs := runCommand(t, "restore", filepath.Join(dir, "nothing"), "--data-dir", filepath.Join(dir, "to")); code != config.ExitFault {
		t.Errorf("no file: exit %d, %s", code, errs)
	}
}

// Guarantee: a directory that is not new stays as it is.
func TestRestoreRefusesUsedDirs(t *testing.T) {
	file := storagetest.BackupFile(t, statetest.Full(t, 5, 77))
	used, lost, foreign := storagetest.New(t), storagetest.New(t), t.TempDir()
	testkit.Must(t, storagetest.Open(t, lost).Close())
	testkit.Must(t, os.RemoveAll(filepath.Join(lost, "wal")))
	testkit.Must(t, os.WriteFile(filepath.Join(foreign, "thesis.pdf"), nil, 0o600))
	for _, dir := range []string{used, lost, foreign} {
		before := testkit.Sums(t, dir)
		code, out, errs := runCommand(t, "restore", file, "--data-dir", dir, "--cluster", address.FormatPeers(storagetest.Peers()))
		if code != config.ExitFault || out != "" || !strings.Contains(errs, dir) {
			t.Errorf("exit %d\n%s%s", code, out, errs)
		}
		testkit.WantUnchanged(t, dir, before)
	}
	busy := filepath.Join(t.TempDir(), "busy")
	lock, err := storage.Lock(busy)
	testkit.Must(t, err)
	defer lock.Close()
	if code, _, errs := runCommand(t, "restore", file, "--data-dir", busy, "--cluster", address.FormatPeers(storagetest.Peers())); code != config.ExitFault || !strings.Contains(errs, "in use") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// Guarantee: a restore that was interrupted anywhere can be done again.
func TestRestoreAgain(t *testing.T) {
	old := statetest.Full(t, 5, 77)
	file := storagetest.BackupFile(t, old)
	done := filepath.Join(t.TempDir(), "done")
	restore := func(dir string) {
		t.Helper()
		if code, out, errs := runCommand(t, "restore", file, "--data-dir", dir, "--cluster", address.FormatPeers(storagetest.Peers())); code != config.ExitOK {
			t.Fatalf("exit %d\n%s%s", code, out, errs)
		}
	}
	restore(done)
	testkit.Must(t, os.Rename(filepath.Join(done, "wal"), filepath.Join(done, "wal.new")))
	for _, gone := range []string{"", "wal.new", "mark", "snap/0000000000000001-0000000000000001.state", "snap", "lock"} {
		if gone != "" {
			testkit.Must(t, os.RemoveAll(filepath.Join(done, gone)))
		}
		dir := testkit.Crashed(t, done)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, storage.RestoringName), nil, 0o600))
		wantNoStart(t, dir, "did not complete") // an empty cluster in its place
		restore(dir)
		if storage.Exists(filepath.Join(dir, storage.RestoringName)) {
			t.Error("the server would still refuse to start")
		}
		storagetest.WantRefounded(t, dir, old, storagetest.Peers())
	}
}

// Guarantee: a signal ends a command at once, whatever it waits for.
func TestCommandInterrupted(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	testkit.Must(t, syscall.Mkfifo(pipe, 0o600))
	to := filepath.Join(t.TempDir(), "to")
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs bytes.Buffer
	code := make(chan int)
	go func() {
		code <- run1(t, ctx, func(string) (string, bool) { return "", false }, &out, &errs, "restore", pipe, "--data-dir", to)
	}()
	cancel()
	if got := <-code; got != config.ExitFault || out.Len() > 0 || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("exit %d\n%s%s", got, out.String(), errs.String())
	}
	w, err := os.OpenFile(pipe, os.O_RDWR, 0) // what still waits for the pipe reads an end
	testkit.Must(t, err)
	testkit.Must(t, w.Close())
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
