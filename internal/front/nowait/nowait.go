// Package nowait answers: how much can be written to a connection without waiting for
// whoever reads it?
package nowait

import "syscall"

// Writer writes to one connection after the other. One goroutine uses it.
type Writer struct {
	one func(fd uintptr) bool // made once, as are its operands and results

	p   []byte
	n   int
	err error
}

// NewWriter returns a writer.
func NewWriter() *Writer {
	w := new(Writer)
	w.one = func(fd uintptr) bool {
		w.n, w.err = writeOnce(fd, w.p)
		return true // also if it would have had to wait
	}
	return w
}

// Try writes as much of p as there is room for now, which is none where raw is nil.
func (w *Writer) Try(raw syscall.RawConn, p []byte) (n int, err error) {
	if raw == nil {
		return 0, nil
	}
	w.p, w.n, w.err = p, 0, nil
	if err := raw.Write(w.one); err != nil {
		return 0, err
	}
	return w.n, w.err
}
