package snapshots

import (
	"context"
	"errors"
	"io"
	"time"
)

// restingWriter keeps a snapshot from standing in the way of requests: it rests
// several times as long as it works, less if somebody waits for it, and not at
// all if the disk is too slow for that or the log grows too fast. It fails once
// its context has ended.
type restingWriter struct {
	ctx     context.Context
	w       io.Writer
	began   time.Time
	written int64
	since   time.Time // when the present spell of work began

	pace      func() time.Duration
	overtaken func() bool
}

// NewRestingWriter returns a writer to w that rests. pace says how many times as long as
// it worked it is to rest; overtaken, that one from the leader has come.
func NewRestingWriter(ctx context.Context, w io.Writer, pace func() time.Duration, overtaken func() bool) io.Writer {
	now := time.Now()
	return &restingWriter{ctx: ctx, w: w, began: now, since: now, pace: pace, overtaken: overtaken}
}

const (
	paceSpell = 2 * time.Millisecond // of work before a rest; shorter ones cannot be timed
	paceLimit = 100 * time.Millisecond
	paceFloor = 8 << 20 // bytes a second below which it does not rest
)

// Write writes b, and rests if it is time for it.
func (p *restingWriter) Write(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if p.overtaken() {
		return 0, ErrOvertaken
	}
	n, err := p.w.Write(b)
	now := time.Now()
	worked := now.Sub(p.since) // on what is written, too, before it came here
	p.written += int64(n)
	if err != nil || worked < paceSpell {
		return n, err
	}
	pace := p.pace()
	if pace == 0 || float64(p.written) < paceFloor*now.Sub(p.began).Seconds() {
		p.since = now
		return n, nil
	}
	rest := time.NewTimer(min(pace*worked, paceLimit))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-p.ctx.Done():
		return n, p.ctx.Err()
	}
	p.since = time.Now()
	return n, nil
}

// ErrOvertaken ends the writing of a snapshot that would not count any more.
var ErrOvertaken = errors.New("a newer snapshot has come")
