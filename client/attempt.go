package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// attemptLimit is how long an attempt waits for the head of its answer. A node that hangs costs
	// that much. It doubles with each round of all endpoints, up to mostAttemptLimit, so
	// that a cluster which is slower than that is still heard.
	attemptLimit     = 2 * time.Second
	mostAttemptLimit = 16 * time.Second
	sendRate         = 1 << 20 // bytes a second of a body that add to it
	bodySilence      = 5 * time.Second

	// Between attempts. The first other endpoint is asked at once.
	leastPause     = 50 * time.Millisecond
	mostPause      = time.Second
	mostRetryAfter = 2 * time.Second

	maxProblem = 64 << 10  // bytes of an answer that is an error
	maxSmall   = 1 << 20   // of one that tells of a few things
	maxAnswer  = 512 << 20 // of one that has values: eight times the largest --max-value-size
	maxShown   = 200       // of an answer that nobody expected
)

// effect says what a repetition of a request does.
type effect int

const (
	reading    effect = iota // a request that changes nothing
	keyed                    // a write under an Idempotency-Key: it happens once at most
	repeatable               // a write that does the same when it happens twice
)

// request is what a call asks for, of whichever endpoint.
type request struct {
	op, key string // for errors
	method  string
	path    string // percent-encoded
	query   url.Values
	header  http.Header
	body    []byte
	effect  effect
	wait    time.Duration // by which the node may delay its answer
	takes   []int         // statuses besides 200 to 299 that are answers, as 304
	bound   int64         // bytes of the answer's body; 0 is maxSmall
	only    *endpoint     // one attempt, at this endpoint alone
	bare    bool          // a node answers it before it knows its cluster
	silence time.Duration // of a stream: how long nothing may come
}

// answer is what an endpoint said, if that was no error.
type answer struct {
	status  int
	header  http.Header
	body    []byte        // nil for a stream
	stream  io.ReadCloser // of open
	from    *endpoint
	unknown bool // an attempt before the one that was answered may have happened
}

// call is a request with its attempts.
type call struct {
	*Client
	r        *request
	ctx      context.Context // of all attempts
	parent   context.Context // the caller's
	once     string          // the Idempotency-Key
	keep     int             // for how many seconds it is remembered at least
	attempts int
	unknown  bool                    // one of them may have happened
	round    int                     // how often all endpoints were asked in vain
	tried    map[*endpoint]bool      // in this round
	hopeless map[*endpoint]bool      // they cannot do it, however often they are asked
	after    map[*endpoint]time.Time // before which they do not want to be asked again
	said     map[*endpoint]*Error    // what each answered last
}

// outcome is what came of one attempt: an answer or an error.
type outcome struct {
	answer   *answer
	err      *Error
	again    bool          // another attempt may do better
	hopeless bool          // but not at this endpoint
	unknown  bool          // the attempt may have happened
	definite bool          // it says what became of all attempts, also of those before it
	after    time.Duration // when the endpoint wants to be asked again
}

// do makes a request of the endpoints until one answers, and returns its answer with the
// whole body. Its errors are *Error.
func (c *Client) do(ctx context.Context, r *request) (*answer, error) { return c.run(ctx, r, false) }

// open is do for an answer without an end: it returns once the head is there, and
// answer.stream has the body, which fails once nothing has come for r.silence, when ctx ends
// and when the client is closed. Whoever opened it closes it, and reports by lost that
// an endpoint has broken it off.
func (c *Client) open(ctx context.Context, r *request) (*answer, error) { return c.run(ctx, r, true) }

// lost notes that a stream ended too soon: another endpoint is asked next.
func (c *Client) lost(e *endpoint) { c.endpoints.failed(e) }

func (c *Client) run(ctx context.Context, r *request, stream bool) (*answer, error) {
	k := &call{Client: c, r: r, parent: ctx}
	if err := context.Cause(c.closing); err != nil {
		return nil, k.fail(&Error{cause: err}, nil)
	}
	limit := c.timeout + r.wait
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	if r.effect == keyed {
		limit, k.keep = remembered(limit)
		k.once = rand.Text()
	}
	var cancel context.CancelFunc
	k.ctx, cancel = context.WithTimeout(ctx, limit)
	defer cancel()
	last := &Error{cause: errNotTried}
	for {
		e, err := k.next()
		if e == nil {
			return nil, k.fail(last, err)
		}
		o := k.attempt(e, stream)
		if o.answer != nil {
			o.answer.unknown = k.unknown
			return o.answer, nil
		}
		earlier := k.unknown
		k.unknown = (k.unknown || o.unknown) && !o.definite
		if ended := k.ended(); ended != nil && o.err.Status == 0 {
			if last.cause == errNotTried {
				last = o.err // else what went wrong before says more
			}
			return nil, k.fail(last, ended)
		}
		last = o.err
		last.earlier = earlier
		if !o.again || r.only != nil {
			return nil, k.fail(last, nil)
		}
		k.note(e, o)
	}
}

const (
	// shortKeep and longKeep are for how many seconds the cluster remembers an Idempotency-Key.
	// All keys together have a bound, so a busy client cannot have each kept for long.
	shortKeep = 60
	longKeep  = 600
	// keepMargin is by how much a call ends before its key may be forgotten.
	keepMargin = 5 * time.Second
)

// remembered returns how long a call with an Idempotency-Key may try, and for how many
// seconds the cluster has to remember the key, which is longer.
func remembered(limit time.Duration) (time.Duration, int) {
	if limit <= shortKeep*time.Second-keepMargin {
		return limit, shortKeep
	}
	return min(limit, longKeep*time.Second-keepMargin), longKeep
}

// idempotency returns the header of the present attempt. A node that froze with an attempt may
// carry it out when it thaws, so what there are several attempts of is remembered for long.
func (k *call) idempotency() string {
	keep := k.keep
	if k.attempts > 1 {
		keep = longKeep
	}
	return fmt.Sprintf(`"%s";keep=%d`, k.once, keep)
}

// fail completes the error of a call that ends. ended is the end of its time, if that is why.
func (k *call) fail(e *Error, ended error) *Error {
	e.Op, e.Key, e.Attempts, e.ended = k.r.op, k.r.key, k.attempts, ended
	e.Unknown = k.unknown
	for _, o := range k.endpoints.all {
		if said := k.said[o]; said != nil && said.Endpoint != e.Endpoint {
			e.others = append(e.others, said)
		}
	}
	return e
}

// note takes in that an attempt failed and that there may be another.
func (k *call) note(e *endpoint, o outcome) {
	if k.tried == nil {
		k.tried, k.hopeless, k.after, k.said = make(map[*endpoint]bool), make(map[*endpoint]bool), make(map[*endpoint]time.Time), make(map[*endpoint]*Error)
	}
	k.tried[e], k.hopeless[e] = true, k.hopeless[e] || o.hopeless
	k.after[e] = time.Now().Add(min(o.after, mostRetryAfter))
	k.said[e] = o.err
	k.endpoints.failed(e)
}

// next returns the endpoint for the next attempt, once its time has come. It returns nil if
// there is none: with an error if the call's time is up, without if no endpoint can do it.
func (k *call) next() (*endpoint, error) {
	if k.r.only != nil {
		return k.r.only, k.ended()
	}
	e := k.endpoints.pick(func(e *endpoint) bool { return k.tried[e] || k.hopeless[e] })
	if e == nil && len(k.tried) > 0 {
		k.round++
		clear(k.tried)
		e = k.endpoints.pick(func(e *endpoint) bool { return k.hopeless[e] })
	}
	if e == nil {
		return nil, nil
	}
	pause := time.Duration(0)
	if n := k.attempts; n > 1 || n == 1 && k.round > 0 {
		pause = mathrand.N(min(leastPause<<min(n-1, 10), mostPause)) + max(0, time.Until(k.after[e]))
	}
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-k.ctx.Done():
		}
	}
	if err := k.ended(); err != nil {
		return nil, err
	}
	return e, nil
}

// ended returns the error of the call's context, nil while it goes on.
func (k *call) ended() error {
	if err := k.parent.Err(); err != nil {
		return err
	}
	return k.ctx.Err()
}

// limit is how long the next attempt waits for the head of its answer. While there are others
// to ask, that is no more than half of the time that the call has left.
func (k *call) limit(e *endpoint) time.Duration {
	l := min(attemptLimit<<min(k.round, 10), mostAttemptLimit)
	l += k.r.wait + time.Duration(len(k.r.body))*time.Second/sendRate
	others := k.r.only == nil && k.endpoints.pick(func(o *endpoint) bool { return o == e || k.tried[o] || k.hopeless[o] }) != nil
	if end, ok := k.ctx.Deadline(); ok && others {
		l = min(l, time.Until(end)/2)
	}
	return l
}

// attempt sends the request to one endpoint.
func (k *call) attempt(e *endpoint, stream bool) outcome {
	k.attempts++
	parent := k.ctx
	if stream {
		parent = k.parent
	}
	ctx, cancel := context.WithCancelCause(parent)
	var silence atomic.Int64
	silence.Store(int64(k.limit(e)))
	timer := time.AfterFunc(time.Duration(silence.Load()), func() { cancel(silentError{time.Duration(silence.Load())}) })
	var unhook []func() bool
	if stream {
		unhook = append(unhook, context.AfterFunc(k.ctx, func() { cancel(k.ctx.Err()) }))
	}
	done := func() {
		timer.Stop()
		for _, u := range unhook {
			u()
		}
		cancel(nil)
	}
	req, sent, err := k.request(ctx, e)
	if err != nil {
		done()
		return outcome{err: &Error{Endpoint: e.base, cause: err}}
	}
	resp, err := k.transport.RoundTrip(req)
	if err != nil {
		o := k.broken(ctx, e, err, sent(err))
		done()
		return o
	}
	silence.Store(int64(bodySilence))
	timer.Reset(bodySilence) // what was left of the time for the head is no measure
	body := &watchedBody{ReadCloser: resp.Body, ctx: ctx, timer: timer, silence: &silence, done: done}
	if stream && k.isAnswer(resp.StatusCode) {
		unhook[0]()
		unhook[0] = context.AfterFunc(k.closing, func() { cancel(ErrClosed) })
		silence.Store(int64(k.r.silence))
		o := k.judge(e, resp, nil)
		if o.answer == nil {
			_ = body.Close()
			return o
		}
		timer.Reset(k.r.silence)
		o.answer.stream = body
		return o
	}
	text, err := k.read(resp, body)
	_ = body.Close()
	if err != nil {
		return k.broken(ctx, e, err, true)
	}
	return k.judge(e, resp, text)
}

// request makes the HTTP request for an endpoint. sent tells, of an error of the transport,
// whether anything may have got to the endpoint.
func (k *call) request(ctx context.Context, e *endpoint) (req *http.Request, sent func(error) bool, err error) {
	header := make(http.Header, len(k.r.header)+3)
	for name, values := range k.r.header {
		header[name] = values
	}
	header["User-Agent"] = []string{"raftkv-client"}
	if k.once != "" {
		header["Idempotency-Key"] = []string{k.idempotency()}
	}
	if k.token != nil {
		token, err := k.token(ctx)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("token: %w", err)
		case token != "" && !e.private:
			return nil, nil, fmt.Errorf("%s: %w", e.base, ErrTokenExposed)
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
			return nil, nil, errors.New("token: it has characters that no token has")
		case token != "":
			header["Authorization"] = []string{"Bearer " + token}
		}
	}
	path, err := url.PathUnescape(k.r.path)
	if err != nil {
		return nil, nil, err
	}
	var begun atomic.Bool
	if k.r.effect != reading {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { begun.Store(true) }})
	}
	req = (&http.Request{
		Method: k.r.method, Host: e.host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: e.scheme, Host: e.host, Path: path, RawPath: k.r.path, RawQuery: encode(k.r.query)},
	}).WithContext(ctx)
	if len(k.r.body) > 0 {
		req.ContentLength = int64(len(k.r.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(k.r.body)), nil }
		req.Body, _ = req.GetBody()
	}
	return req, func(err error) bool {
		// Package net/http sends a request once more by itself if a kept connection broke, so
		// the error can be that of a dial although the request was sent before.
		var op *net.OpError
		return begun.Load() || !k.own && !(errors.As(err, &op) && op.Op == "dial")
	}, nil
}

// encode writes a query with %20 for a space.
func encode(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }

// read reads the body of an answer, as far as there may be of it.
func (k *call) read(resp *http.Response, body io.Reader) ([]byte, error) {
	bound := k.r.bound
	if bound == 0 {
		bound = maxSmall
	}
	if !k.isAnswer(resp.StatusCode) {
		bound = maxProblem
	}
	var b bytes.Buffer
	if n := resp.ContentLength; n > 0 && n <= bound {
		b.Grow(int(n) + bytes.MinRead)
	}
	_, err := b.ReadFrom(io.LimitReader(body, bound+1))
	if err == nil && int64(b.Len()) > bound {
		err = fmt.Errorf("%w: it has more than %d bytes", ErrStranger, bound)
	}
	return b.Bytes(), err
}

func (k *call) isAnswer(status int) bool {
	return status >= 200 && status < 300 || slices.Contains(k.r.takes, status)
}

// watchedBody is the body of an answer that fails once nothing has come for a while.
type watchedBody struct {
	io.ReadCloser
	ctx     context.Context
	timer   *time.Timer
	silence *atomic.Int64 // how long nothing may come, in nanoseconds
	done    func()
}

// Read reads what has come.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.timer.Reset(time.Duration(b.silence.Load()))
	}
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

// Close ends the request.
func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}
