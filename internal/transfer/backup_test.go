package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"raftkv/client"
	"raftkv/internal/command"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// newBackups are backups into a directory, of which take says what becomes of each.
func newBackups(t *testing.T, keep int, take func(n int, w io.Writer) error) (*backups, *bytes.Buffer) {
	out, n := new(bytes.Buffer), 0
	return &backups{
		o: &command.Call{Stdout: out, Stderr: out, Output: command.Table}, dir: filepath.Join(t.TempDir(), "backups"),
		every: time.Hour, keep: keep, now: time.Now, remove: os.Remove,
		take: func(ctx context.Context, w io.Writer) (client.BackupInfo, error) {
			n++
			if err := ctx.Err(); err != nil {
				return client.BackupInfo{}, err
			}
			return client.BackupInfo{Bytes: 4, Endpoint: "http://node"}, take(n, w)
		},
	}, out
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		names = append(names, f.Name())
	}
	return names
}

// Guarantee: the newest backups are kept, however long it goes on; what else is in the
// directory stays, and so do older backups while newer ones fail.
func TestBackupsEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight on 2000-01-01, in UTC
		var failing atomic.Bool
		b, out := newBackups(t, 3, func(n int, w io.Writer) error {
			if _, err := io.WriteString(w, "half"); err != nil || !failing.Load() {
				return err
			}
			return errors.New("no node answers")
		})
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"raftkv-19990101T000000Z.state.old", "other.state", "raftkv-19990101T000000Z.state.tmp12", "raftkv-19980101T000000Z.state"} {
			if err := os.WriteFile(filepath.Join(b.dir, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.run(ctx) }()
		time.Sleep(5*time.Hour + time.Minute)
		want := []string{"other.state", "raftkv-19990101T000000Z.state.old", "raftkv-20000101T030000Z.state", "raftkv-20000101T040000Z.state", "raftkv-20000101T050000Z.state"}
		if got := files(t, b.dir); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		failing.Store(true)
		time.Sleep(5 * time.Hour)
		synctest.Wait() // one begins at this very moment
		if got := files(t, b.dir); !slices.Equal(got, want) {
			t.Errorf("after failures %q, want %q", got, want)
		}
		if n := strings.Count(out.String(), "no node answers"); n < 240 || n > 250 {
			t.Errorf("tried %d times in 4 hours, want once a minute", n)
		}
		failing.Store(false)
		time.Sleep(90 * time.Second)
		if got := files(t, b.dir); len(got) != 5 || got[2] != want[3] {
			t.Errorf("after that %q", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("a signal: %v", err)
		}
		for _, name := range files(t, b.dir) {
			info, err := os.Stat(filepath.Join(b.dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
	})
}

// Guarantee: who is started anew does not make a backup each time, and what was just made is
// not removed, whatever the clock says of the others.
func TestBackupsRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := newBackups(t, 1, func(n int, w io.Writer) error { _, err := fmt.Fprint(w, n); return err })
		if due := b.untilDue(); due != 0 {
			t.Errorf("the first is due in %v", due)
		}
		if err := errors.Join(b.tidy(), b.one(t.Context(), time.Now())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if due := b.untilDue(); due != 40*time.Minute {
			t.Errorf("the next is due in %v, want 40m", due)
		}
		if err := b.one(t.Context(), time.Now().AddDate(-1, 0, 0)); err != nil {
			t.Fatal(err)
		}
		if got := files(t, b.dir); !slices.Equal(got, []string{"raftkv-19990101T002000Z.state"}) {
			t.Errorf("%q: the one that was just made has to stay", got)
		}
		if err := b.one(t.Context(), time.Now().AddDate(1, 0, 0)); err != nil {
			t.Fatal(err)
		}
		if due := b.untilDue(); due != 0 {
			t.Errorf("behind one of the future the next is due in %v", due)
		}
	})
}

// Guarantee: a file is replaced by a backup that is whole, or stays as it was.
func TestBackupFile(t *testing.T) {
	b, out := newBackups(t, 1, func(n int, w io.Writer) error {
		_, err := io.WriteString(w, "half")
		if n == 1 {
			err = errors.Join(err, errors.New("it broke off"))
		}
		return err
	})
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(real, []byte("old"), 0o600), os.Symlink("real", link)); err != nil {
		t.Fatal(err)
	}
	path, err := inRealDir(link)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []string{"old", "half"} {
		err := b.make(t.Context(), path)
		if got, readErr := os.ReadFile(link); (n == 0) != (err != nil) || readErr != nil || string(got) != want {
			t.Errorf("%v, %q, want %q", err, got, want)
		}
		if got := files(t, dir); !slices.Equal(got, []string{"link", "real"}) {
			t.Errorf("%q", got)
		}
	}
	if want := real + ": 4 bytes from http://node\n"; out.String() != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// Guarantee: a backup that cannot be removed makes none come sooner, and is told each time.
func TestBackupsThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, out := newBackups(t, 2, func(int, io.Writer) error { return nil })
		stays := filepath.Join(b.dir, "raftkv-19991231T230000Z.state")
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		remove := b.remove
		b.remove = func(path string) error {
			if path == stays {
				return errors.New("read-only")
			}
			return remove(path)
		}
		if err := os.WriteFile(stays, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Hour+time.Minute)
		defer cancel()
		if err := b.run(ctx); err != nil {
			t.Fatal(err)
		}
		want := []string{"raftkv-19991231T230000Z.state", "raftkv-20000101T030000Z.state", "raftkv-20000101T040000Z.state"}
		if got := files(t, b.dir); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if n := strings.Count(out.String(), "an old backup stays: read-only"); n != 4 {
			t.Errorf("told %d times:\n%s", n, out)
		}
	})
}

// Guarantee: what is no file is not replaced by one, whether a link leads to it or not.
func TestNoFileIsNotReplaced(t *testing.T) {
	for _, path := range []string{os.DevNull, t.TempDir()} {
		if _, err := inRealDir(path); err == nil {
			t.Errorf("%s would be replaced", path)
		}
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(read.Close(), write.Close()) }()
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", write.Fd()), pipe); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(pipe); err != nil {
		t.Skip("no /proc here")
	}
	if _, err := inRealDir(pipe); err == nil {
		t.Error("a link to a pipe would be replaced")
	}
}

// Guarantee: limits of flags are where they are said to be.
func TestBackupFlags(t *testing.T) {
	for text, ok := range map[string]bool{"1s": true, "999ms": false, "0s": false, "1h": true, "-1h": false, "5": false} {
		if _, err := parseEvery(text); (err == nil) != ok {
			t.Errorf("--every %s: %v", text, err)
		}
	}
	for text, ok := range map[string]bool{"1": true, "0": false, "100000": true, "100001": false, "x": false} {
		if _, err := parseKeep(text); (err == nil) != ok {
			t.Errorf("--keep %s: %v", text, err)
		}
	}
}

// Guarantee: an export is what the HTTP API streams; one that breaks off has no last line.
func TestWriteExport(t *testing.T) {
	items := []client.Item{
		{Key: "a", Value: []byte("<1>"), CreateRevision: 1, ModRevision: 2, Version: 3},
		{Key: "b", Value: []byte{0xff}, CreateRevision: 4, ModRevision: 4, Version: 1, Lease: 9, ExpiresIn: 1500 * time.Millisecond},
	}
	var failed error
	list := func(yield func(client.Item, error) bool) {
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
		if failed != nil {
			yield(client.Item{}, failed)
		}
	}
	var b strings.Builder
	want := `{"revision":8}
{"key":"a","value":"<1>","create_revision":1,"mod_revision":2,"version":3}
{"key":"b","value_base64":"/w==","create_revision":4,"mod_revision":4,"version":1,"expires_in_seconds":1.5,"lease":9}
`
	if err := writeExport(&b, list, func() uint64 { return 8 }); err != nil || b.String() != want+`{"end":true,"count":2}`+"\n" {
		t.Errorf("%v, %s", err, &b)
	}
	if got, _, err := readAll(formatAuto, b.String()); err != nil || len(got) != 2 || got[0].ends || !got[1].ends || string(got[1].value) != "\xff" {
		t.Errorf("%+v, %v", got, err)
	}
	failed = io.ErrUnexpectedEOF
	b.Reset()
	if err := writeExport(&b, list, func() uint64 { return 8 }); !errors.Is(err, failed) || b.String() != want {
		t.Errorf("%v, %s", err, &b)
	}
	if _, _, err := readAll(formatAuto, b.String()); err == nil {
		t.Error("half an export was taken")
	}
	items, failed = nil, nil
	b.Reset()
	if err := writeExport(&b, list, func() uint64 { return 8 }); err != nil || b.String() != "{\"revision\":8}\n{\"end\":true,\"count\":0}\n" {
		t.Errorf("%v, %s", err, &b)
	}
}
