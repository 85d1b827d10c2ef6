package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/DeRuina/timberjack"
	"go.uber.org/zap"
)

const (
	// fileMode is that of the file, whatever it was before: what it names is nobody's
	// business but the node's and root's.
	fileMode = 0o600
	// A file that has maxFileMiB is put aside under a name with the time, and keptFiles of
	// those stay.
	maxFileMiB = 100
	keptFiles  = 10
	// failureEvery is the time between two lines of the log about a file that cannot be written.
	failureEvery = time.Minute
)

// openFile opens a file that is rotated, which must not be inside dataDir. torn says that
// it ends within a line.
func openFile(name, dataDir string) (_ io.WriteCloser, torn bool, err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, false, errors.New("expected a file, and not a directory or a device; - is stdout")
	}
	real, err := resolve(name)
	if err != nil {
		return nil, false, err
	}
	dir, err := resolve(dataDir)
	if err != nil {
		return nil, false, err
	}
	if in, err := filepath.Rel(dir, real); err == nil && in != ".." && !strings.HasPrefix(in, ".."+string(filepath.Separator)) {
		return nil, false, fmt.Errorf("expected a place outside of the data directory %s, which has this node's data and nothing else", dataDir)
	}
	f, err := os.OpenFile(real, os.O_RDWR|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return nil, false, err
	}
	err = f.Chmod(fileMode)
	if err == nil {
		torn, err = endsTorn(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, false, err
	}
	return rotated(real, maxFileMiB), torn, nil
}

// rotated appends to a file, which is put aside when it has so many MiB.
func rotated(name string, maxMiB int) io.WriteCloser {
	return &timberjack.Logger{Filename: name, MaxSize: maxMiB, MaxBackups: keptFiles, FileMode: fileMode}
}

// endsTorn reports whether a file's last byte ends no line.
func endsTorn(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], info.Size()-1)
	return last[0] != '\n', err
}

// resolve returns where a name leads, through all links, also if the end of it is not there
// yet.
func resolve(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if info, lerr := os.Lstat(abs); err != nil && lerr == nil && info.Mode()&os.ModeSymlink != 0 {
		return "", fmt.Errorf("%s is a link that leads nowhere", abs)
	}
	if errors.Is(err, os.ErrNotExist) && filepath.Dir(abs) != abs {
		var dir string
		dir, err = resolve(filepath.Dir(abs))
		real = filepath.Join(dir, filepath.Base(abs))
	}
	return real, err
}

// nopCloser is stdout, which is not ours to close.
type nopCloser struct{ io.Writer }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }

// sink writes lines, and says when it cannot. One goroutine writes at a time.
type sink struct {
	w    io.Writer
	log  *zap.Logger
	torn bool // the last line was cut short

	failed int // lines, since one was written
	said   time.Time
}

// Write writes a line. One that was cut short before it, by a disk that is full, stays as it
// is, in a line of its own.
func (s *sink) Write(line []byte) (int, error) {
	begin := 0
	if s.torn {
		begin = 1
		line = append([]byte{'\n'}, line...)
	}
	n, err := s.w.Write(line)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	if n > 0 {
		s.torn = n < len(line)
	}
	s.note(err)
	return max(0, n-begin), err
}

// note says what a write came to, if that is news.
func (s *sink) note(err error) {
	switch now := time.Now(); {
	case err == nil && s.failed > 0:
		s.log.Info("the audit log is written again", zap.Int("lines-lost", s.failed))
		s.failed = 0
	case err == nil:
	case s.failed == 0 || now.Sub(s.said) >= failureEvery:
		s.said = now
		s.failed++
		s.log.Error("the audit log cannot be written; requests go on", zap.Int("lines-lost", s.failed), zap.Error(err))
	default:
		s.failed++
	}
}
