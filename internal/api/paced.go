package api

import (
	"context"
	"io"
	"net/http"
	"raftkv/internal/problem"
	"time"
)

// pacedBytes is how much a pacedWriter hands on at once.
const pacedBytes = 64 << 10

// pacedWriter gives each piece that it writes a deadline of its own, in place
// of the server's for the whole answer.
type pacedWriter struct {
	out   io.Writer
	conn  *http.ResponseController
	piece int           // how many bytes a reader has to take
	pace  time.Duration // within this time
	grace time.Duration // for which a reader that is late can still be told so
	may   func() error  // whether to go on

	left int       // of the piece
	due  time.Time // when it has to be taken
	torn bool      // a Write ended within what it was given
}

// Write asks whether it may go on where it begins, and at each piece.
func (p *pacedWriter) Write(b []byte) (n int, err error) {
	defer func() { p.torn = n > 0 && err != nil }()
	for len(b) > 0 && err == nil {
		if p.left == 0 {
			p.left, p.due = p.piece, time.Now().Add(p.pace)
			if err := p.conn.SetWriteDeadline(p.due.Add(p.grace)); err != nil {
				return n, err
			}
		}
		// Behind the deadline: one that was set when the node began to stop
		// may just have been overwritten.
		if n == 0 || p.left == p.piece {
			if err := p.check(); err != nil {
				return n, err
			}
		}
		var m int
		m, err = p.out.Write(b[:min(len(b), p.left, pacedBytes)])
		n, b, p.left = n+m, b[m:], p.left-m
	}
	return n, err
}

func (p *pacedWriter) check() error {
	if time.Now().After(p.due) {
		return problem.ErrTooSlow
	}
	return p.may()
}

// stopped returns problem.ErrStopping once life has ended.
func stopped(life context.Context) error {
	if life.Err() != nil {
		return problem.ErrStopping
	}
	return nil
}
