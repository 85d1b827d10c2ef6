package web

import (
	"context"
	"io"
	"time"
)

const (
	// streamRests is how many times as long as it works a list that is streamed rests. One
	// that did not would take a processor, and its reader another, from the requests beside
	// it until it has ended.
	streamRests = 3
	restSpell   = time.Millisecond // of work before a rest: shorter ones cannot be timed
	restLimit   = 20 * time.Millisecond
)

// RestingWriter keeps a list that is streamed from standing in the way of requests.
type RestingWriter struct {
	ctx    context.Context // ends rests
	out    io.Writer
	since  time.Time     // when work on the next piece began
	worked time.Duration // since the last rest
}

// NewRestingWriter returns a writer to out whose rests end with ctx.
func NewRestingWriter(ctx context.Context, out io.Writer) *RestingWriter {
	return &RestingWriter{ctx: ctx, out: out, since: time.Now()}
}

// Write writes a piece, and rests if it is time for it.
func (r *RestingWriter) Write(b []byte) (int, error) {
	made := time.Since(r.since)
	n, err := r.out.Write(b)
	// Who reads slowly makes a write long, which is no work.
	r.worked += min(time.Since(r.since), 2*made)
	if err == nil && r.worked >= restSpell {
		r.rest(min(streamRests*r.worked, restLimit))
	}
	r.since = time.Now()
	return n, err
}

// rest waits, or until the context has ended: then the next piece fails, and says why.
func (r *RestingWriter) rest(long time.Duration) {
	timer := time.NewTimer(long)
	defer timer.Stop()
	r.worked = 0
	select {
	case <-timer.C:
	case <-r.ctx.Done():
	}
}
