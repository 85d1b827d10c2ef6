package web

import (
	"context"
	"io"
	"net/http"
	"raftkv/internal/problem"
	"time"
)

// pacedBytes is how much a PacedWriter hands on at once.
const pacedBytes = 64 << 10

// PacedWriter gives each piece that it writes a deadline of its own, in place
// of the server's for the whole answer.
type PacedWriter struct {
	Out   io.Writer
	Conn  *http.ResponseController
	Piece int           // how many bytes a reader has to take
	Pace  time.Duration // within this time
	Grace time.Duration // for which a reader that is late can still be told so
	May   func() error  // whether to go on

	left int       // of the piece
	due  time.Time // when it has to be taken
	Torn bool      // a Write ended within what it was given
}

// Write asks whether it may go on where it begins, and at each piece.
func (p *PacedWriter) Write(b []byte) (n int, err error) {
	defer func() { p.Torn = n > 0 && err != nil }()
	for len(b) > 0 && err == nil {
		if p.left == 0 {
			p.left, p.due = p.Piece, time.Now().Add(p.Pace)
			if err := p.Conn.SetWriteDeadline(p.due.Add(p.Grace)); err != nil {
				return n, err
			}
		}
		// Behind the deadline: one that was set when the node began to stop
		// may just have been overwritten.
		if n == 0 || p.left == p.Piece {
			if err := p.check(); err != nil {
				return n, err
			}
		}
		var m int
		m, err = p.Out.Write(b[:min(len(b), p.left, pacedBytes)])
		n, b, p.left = n+m, b[m:], p.left-m
	}
	return n, err
}

func (p *PacedWriter) check() error {
	if time.Now().After(p.due) {
		return problem.ErrTooSlow
	}
	return p.May()
}

// Stopped returns problem.ErrStopping once life has ended.
func Stopped(life context.Context) error {
	if life.Err() != nil {
		return problem.ErrStopping
	}
	return nil
}
