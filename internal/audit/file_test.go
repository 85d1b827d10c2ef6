package audit

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// Guarantee: the file is the owner's alone, is kept out of the data directory, whatever way
// leads there, and is found out at the start not to be one, or not to be writable.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	testkit.Must(t, os.Mkdir(data, 0o700))
	testkit.Must(t, os.Symlink(data, filepath.Join(dir, "link")))
	testkit.Must(t, os.Symlink(filepath.Join(data, "later"), filepath.Join(dir, "file")))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "old"), []byte(`{"event":"request","ke`), 0o644))
	open := func(name, data string) (*Log, error) {
		return Open(config.Config{ID: 1, DataDir: data, Doors: config.Doors{AuditLog: name}}, io.Discard, zap.NewNop())
	}
	for name, want := range map[string]string{
		"data/audit":         "outside of the data directory",
		"data/a/../audit":    "outside of the data directory",
		"link/audit":         "outside of the data directory",
		"file":               "a link that leads nowhere",
		"data":               "not a directory",
		"missing/audit":      "no such file",
		"data/missing/audit": "outside of the data directory",
	} {
		if l, err := open(dir+"/"+name, data); err == nil || l != nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("in the data directory there is %v, %v", entries, err)
	}
	if _, err := open(filepath.Join(dir, "new", "data", "audit"), filepath.Join(dir, "new", "data")); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("a data directory that is not there yet: %v", err)
	}
	if _, err := open("/dev/full", data); err == nil {
		t.Error("a device is taken")
	}
	for _, name := range []string{"audit", "data.audit", "..data", "old"} {
		l, err := open(filepath.Join(dir, name), data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		l.Request(Record{Method: "PUT"}, 204, nil)
		testkit.Must(t, l.Close())
		testkit.Must(t, l.Close())
		info, err := os.Stat(filepath.Join(dir, name))
		testkit.Must(t, err)
		text, err := os.ReadFile(filepath.Join(dir, name))
		testkit.Must(t, err)
		lines := strings.Split(string(text), "\n")
		if name == "old" {
			lines = lines[1:] // what was cut short stays alone
		}
		if info.Mode() != 0o600 || len(lines) != 4 {
			t.Errorf("%s: %v, %q", name, info.Mode(), text)
		}
		for _, line := range lines[:3] {
			if !json.Valid([]byte(line)) {
				t.Errorf("%s: %q", name, line)
			}
		}
	}
	full := &paper{full: 0}
	if _, err := Open(config.Config{Doors: config.Doors{AuditLog: "-"}}, full, zap.NewNop()); err == nil {
		t.Error("a first line that cannot be written is no reason")
	}
}

// Guarantee: a file that has grown is put aside, as private as it was, no line is cut or lost
// by that, and only so many are kept.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	line := append(bytes.Repeat([]byte("x"), 1<<18-1), '\n')
	const files = keptFiles + 3
	synctest.Test(t, func(t *testing.T) {
		w := rotated(filepath.Join(dir, "audit.log"), 1)
		for range 4 * files {
			if n, err := w.Write(line); err != nil || n != len(line) {
				t.Fatal(n, err)
			}
			time.Sleep(time.Second) // names have the time
		}
		testkit.Must(t, w.Close())
	})
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	if len(entries) != keptFiles+1 {
		t.Errorf("%d files are there", len(entries))
	}
	for _, e := range entries {
		info, err := e.Info()
		testkit.Must(t, err)
		if info.Mode() != fileMode || info.Size() != 1<<20 {
			t.Errorf("%s: %v, %d bytes", e.Name(), info.Mode(), info.Size())
		}
	}
}
