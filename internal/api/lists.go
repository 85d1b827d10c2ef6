package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"raftkv/internal/list"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// MaxStreams bounds the lists that are streamed at once. Each keeps what was
	// overwritten since it began in memory.
	MaxStreams = 4
	// StreamPace is the time in which a reader has to take each piece of StreamPiece
	// bytes, 1 MiB in a second; one that does not is cut off.
	StreamPace  = time.Minute
	StreamPiece = 60 << 20
	// streamFarewell is how long a list that breaks off may take to say why.
	streamFarewell = 2 * time.Second

	// pageUnderLock is the longest page that is looked up while writes wait, which takes
	// a quarter of a millisecond. A longer one is looked up in a copy.
	pageUnderLock = list.DefaultItems

	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

// listStore is what Lists needs of the state.
type listStore interface {
	// Look lends the state, or returns an error where it is not to be read.
	Look(look func(*state.State)) error
	// CopyWhole returns the state as of now, in constant time.
	CopyWhole() (*state.State, error)
}

// Lists serves reads of many keys.
type Lists struct {
	log    *zap.Logger
	store  listStore
	fresh  *Freshness
	Hub    *watch.Hub // tells lists that wait
	copies copies
	Slots  chan struct{} // one for each list that is streamed

	life context.Context    // ends when the node stops
	End  context.CancelFunc // ends life, and with it the lists that are streamed
}

// NewLists returns the lists of the keys that store holds. End cuts off those that are
// streamed, and those that begin after it.
func NewLists(log *zap.Logger, store listStore, fresh *Freshness) *Lists {
	life, end := context.WithCancel(context.Background())
	return &Lists{log: log, store: store, fresh: fresh, copies: copies{store: store}, Slots: make(chan struct{}, MaxStreams), life: life, End: end}
}

// Methods are those of /v1/kv. serveKey serves a key that the query names; query is what
// else is in that. Without one, a POST is for add and a DELETE for remove.
func (l *Lists) Methods(serveKey func(w http.ResponseWriter, r *http.Request, key, query string, long bool) error,
	add, remove func(http.ResponseWriter, *http.Request) error) web.Methods {
	either := func(many func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
		return func(w http.ResponseWriter, r *http.Request) error {
			key, rest, ok, err := cutKey(r.URL.RawQuery)
			switch {
			case err != nil:
				return err
			case ok:
				return serveKey(w, r, key, rest, true)
			}
			return many(w, r)
		}
	}
	return web.Methods{"GET": either(l.serve), "PUT": either(needsKey), "POST": add, "DELETE": either(remove)}
}

// cutKey takes the parameter key out of a query.
func cutKey(query string) (key, rest string, ok bool, err error) {
	params, err := url.ParseQuery(query)
	if err != nil {
		return "", "", false, fmt.Errorf("%w: %w", problem.ErrBadRequest, err)
	}
	keys, ok := params["key"]
	if !ok {
		return "", query, false, nil
	}
	if len(keys) > 1 {
		return "", "", false, fmt.Errorf("%w: query parameter %q is given twice", problem.ErrBadRequest, "key")
	}
	delete(params, "key")
	return keys[0], params.Encode(), true, nil
}

// needsKey refuses a write that does not say to which key.
func needsKey(http.ResponseWriter, *http.Request) error {
	return fmt.Errorf("%w: this needs a key: /v1/kv/KEY or /v1/kv?key=KEY", problem.ErrBadRequest)
}

// AcceptsItem reports whether a read wants an item in JSON in place of its value.
func AcceptsItem(h http.Header) bool { return web.AcceptsOnly(h, jsonType) }

// listRequest is what a request for many keys asks for.
type listRequest struct {
	list.Query
	want   Wanted
	stream bool
	since  bool          // an answer is wanted once something under the prefix has changed
	after  uint64        // this revision
	wait   time.Duration // for that
}

// listParams are the parameters of a read of many keys.
var listParams = append([]string{"after_revision", "count", "delimiter", "end", "keys_only", "limit", "prefix", "reverse", "start", "start_after", "values", "wait"}, FreshnessParams...)

// parseList reads a request for many keys.
func parseList(r *http.Request) (q listRequest, err error) {
	if err := web.NoIdempotencyKey(r); err != nil {
		return q, err
	}
	if r.Header["If-Match"] != nil || r.Header["If-None-Match"] != nil {
		return q, fmt.Errorf("%w: a list has no ETag for If-Match and If-None-Match", problem.ErrBadRequest)
	}
	params, err := web.Query(r.URL.RawQuery, listParams...)
	if err != nil {
		return q, err
	}
	q.stream = web.AcceptsOnly(r.Header, ndjsonType)
	q.Prefix, q.Start, q.End, q.After = params.Get("prefix"), params.Get("start"), params.Get("end"), params.Get("start_after")
	q.Groups = params.Has("delimiter")
	if q.want, err = ParseFreshness(params); err != nil {
		return q, err
	}
	if q.Base64, err = InBase64(params); err != nil {
		return q, err
	}
	for _, f := range []struct {
		name string
		to   *bool
	}{{"count", &q.Count}, {"keys_only", &q.KeysOnly}, {"reverse", &q.Reverse}} {
		if *f.to, err = Flag(params, f.name); err != nil {
			return q, err
		}
	}
	if err := q.sinceParams(params); err != nil {
		return q, err
	}
	if q.Limit, err = PageLimit(params); err != nil {
		return q, err
	}
	return q, q.fit(params)
}

// fit returns problem.ErrBadRequest where parameters do not go together, or mean nothing.
func (q *listRequest) fit(params url.Values) error {
	what := "a stream"
	switch {
	case q.Groups && params.Get("delimiter") != list.Delimiter:
		return fmt.Errorf("%w: delimiter is %q, not %s", problem.ErrBadRequest, web.Clip(params.Get("delimiter")), list.Delimiter)
	case params.Has("end") && q.End == "":
		return fmt.Errorf("%w: end is empty, and no key is below that", problem.ErrBadRequest)
	case q.stream && q.since:
		return fmt.Errorf("%w: after_revision is not for a stream of a list; /v1/watch is a stream of changes", problem.ErrBadRequest)
	case q.stream && q.Count:
		return fmt.Errorf("%w: count=true is not for a stream; it ends with a count", problem.ErrBadRequest)
	case q.Count:
		what = "count=true"
	case !q.stream:
		return q.Check()
	}
	for _, name := range []string{"delimiter", "limit"} {
		if params.Has(name) {
			return fmt.Errorf("%w: %s takes no %s", problem.ErrBadRequest, what, name)
		}
	}
	return q.Check()
}

// need is the right that the request takes. Who waits for a change waits for one of any key
// under the prefix.
func (q *listRequest) need() rights.Need {
	if q.since {
		return rights.OnPrefix(rights.Read, q.Prefix)
	}
	return rights.OnRange(rights.Read, q.Prefix, q.Start, q.End)
}

// Flag reads a parameter that is true or false.
func Flag(params url.Values, name string) (bool, error) {
	switch v, ok := params[name]; {
	case !ok || v[0] == "false":
		return false, nil
	case v[0] == "true":
		return true, nil
	default:
		return false, fmt.Errorf("%w: %s is %q, not true or false", problem.ErrBadRequest, name, web.Clip(v[0]))
	}
}

// InBase64 reads the parameter values.
func InBase64(params url.Values) (bool, error) {
	v, ok := params["values"]
	if ok && v[0] != "base64" {
		return false, fmt.Errorf("%w: values is %q, not base64", problem.ErrBadRequest, web.Clip(v[0]))
	}
	return ok, nil
}

// serve answers GET /v1/kv without a key.
func (l *Lists) serve(w http.ResponseWriter, r *http.Request) error {
	q, err := parseList(r)
	if err == nil {
		err = rights.CallerOf(r.Context()).May(q.need())
	}
	switch {
	case err != nil:
		return err
	case q.stream && r.Method == http.MethodGet:
		return l.stream(w, r, &q)
	}
	if err := l.fresh.Prepare(w.Header(), r, q.want, q.need()); err != nil {
		return err
	}
	if q.since {
		upto, same, err := l.unchanged(w, r, &q)
		if err == nil && q.want.Local {
			err = l.fresh.asOf(w.Header().Set, q.want) // as of now, not of before the wait
		}
		if err != nil {
			return err
		}
		if same {
			describe(w.Header(), upto, jsonType)
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	switch {
	case r.Method == http.MethodHead:
		return l.head(w, &q)
	case q.Count:
		return l.count(w, &q)
	}
	var entries []list.Entry
	var more bool
	revision, err := l.lookUp(&q, func(s *state.State) { entries, more = q.Page(s) })
	if err != nil {
		return err
	}
	describe(w.Header(), revision, jsonType)
	return web.IgnoreWriteError(q.WritePage(w, revision, entries, more))
}

// lookUp lends the items for a page, and returns the revision of which they are.
func (l *Lists) lookUp(q *listRequest, look func(s *state.State)) (revision uint64, err error) {
	if q.Limit <= pageUnderLock {
		err = l.store.Look(func(s *state.State) {
			revision = s.Revision
			look(s)
		})
		return revision, err
	}
	st, done, err := l.copies.take()
	if err != nil {
		return 0, err
	}
	defer done()
	look(st)
	return st.Revision, nil
}

// count answers with a number.
func (l *Lists) count(w http.ResponseWriter, q *listRequest) error {
	n := 0
	revision, err := l.lookUp(q, func(s *state.State) { n = q.Counted(&s.Items) })
	if err != nil {
		return err
	}
	describe(w.Header(), revision, jsonType)
	_, err = fmt.Fprintf(w, `{"revision":%d,"count":%d}`+"\n", revision, n)
	return web.IgnoreWriteError(err)
}

// revision is that of the store, as this node has applied it.
func (l *Lists) revision() (revision uint64, err error) {
	err = l.store.Look(func(s *state.State) { revision = s.Revision })
	return revision, err
}

// head answers as the GET would, without a body.
func (l *Lists) head(w http.ResponseWriter, q *listRequest) error {
	revision, err := l.revision()
	if err != nil {
		return err
	}
	mediaType := jsonType
	if q.stream {
		mediaType = ndjsonType
	}
	describe(w.Header(), revision, mediaType)
	return nil
}

func describe(h http.Header, revision uint64, mediaType string) {
	h.Set("Cache-Control", web.CacheAsk)
	h.Set("Content-Type", mediaType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept")
	h.Set("Raftkv-Revision", strconv.FormatUint(revision, 10))
}

// enter takes one of the places of lists that are streamed, and returns what leaves it. The
// error is problem.ErrOverloaded.
func (l *Lists) enter() (leave func(), err error) {
	select {
	case l.Slots <- struct{}{}:
		return func() { <-l.Slots }, nil
	default:
		return nil, fmt.Errorf("%w: %d lists are being streamed", problem.ErrOverloaded, MaxStreams)
	}
}

// Lend returns the state as of now for who sends a large part of it to a client, and what
// gives it back. It counts as a list that is streamed. The error is problem.ErrOverloaded, or
// why the state is not to be read.
func (l *Lists) Lend() (st *state.State, done func(), err error) {
	leave, err := l.enter()
	if err != nil {
		return nil, nil, err
	}
	st, giveBack, err := l.copies.take()
	if err != nil {
		leave()
		return nil, nil, err
	}
	return st, func() { giveBack(); leave() }, nil
}

// Paced returns a writer of what was lent. It cuts off a reader that does not keep up, and
// leaves requests their time.
func (l *Lists) Paced(w http.ResponseWriter) io.Writer {
	return web.NewRestingWriter(l.life, l.paced(w))
}

func (l *Lists) paced(w http.ResponseWriter) *web.PacedWriter {
	return &web.PacedWriter{Out: w, Conn: http.NewResponseController(w), Piece: StreamPiece, Pace: StreamPace, Grace: streamFarewell, May: l.may}
}

// stream answers with everything that is asked for, of one revision.
func (l *Lists) stream(w http.ResponseWriter, r *http.Request, q *listRequest) error {
	leave, err := l.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := l.fresh.Prepare(w.Header(), r, q.want); err != nil {
		return err
	}
	st, done, err := l.copies.take()
	if err != nil {
		return err
	}
	defer done()
	describe(w.Header(), st.Revision, ndjsonType)
	if err := l.send(w, r, q, st); err != nil {
		l.log.Debug("a list broke off", zap.String("client", r.RemoteAddr), zap.Error(err))
		// The status is sent. That the body does not end as it should tells a client
		// that does not look at the last line.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// send writes the items of a state to a client, at the client's pace, and why it breaks
// off if it does.
func (l *Lists) send(w http.ResponseWriter, r *http.Request, q *listRequest, st *state.State) error {
	conn := http.NewResponseController(w)
	farewell := func() { _ = conn.SetWriteDeadline(time.Now().Add(streamFarewell)) }
	// A write that hangs must not keep the node from stopping.
	stop := wait.AfterFunc(l.life, farewell)
	defer stop()
	var lost atomic.Pointer[error]
	defer rights.WhileMay(r.Context(), func(err error) { lost.Store(&err); farewell() }, q.need())()
	out := l.paced(w)
	out.May = func() error {
		if err := lost.Load(); err != nil {
			return *err
		}
		return l.may()
	}
	err := q.WriteAll(web.NewRestingWriter(l.life, out), st)
	if err == nil {
		return nil
	}
	farewell()
	_, _, body := web.Problem(err)
	if out.Torn {
		_, _ = w.Write([]byte("\n"))
	}
	_, _ = fmt.Fprintf(w, `{"error":%s}`+"\n", bytes.TrimSpace(body))
	_ = conn.Flush()
	return err
}

// may returns nil while a list may go on.
func (l *Lists) may() error {
	if err := l.fresh.Fault(); err != nil {
		return err
	}
	return web.Stopped(l.life)
}

// copies lends copies of the state. Those who come while nothing is applied share one:
// each copy makes the writes behind it copy what they change.
type copies struct {
	store listStore
	mu    sync.Mutex
	last  *lent // nil: nobody has one
}

// lent is a copy that is in use.
type lent struct {
	st    *state.State
	users int
}

// take returns the state as of now, and what gives it back. Nobody may change it.
func (c *copies) take() (st *state.State, done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var index uint64
	if err := c.store.Look(func(s *state.State) { index = s.Index }); err != nil {
		return nil, nil, err
	}
	if c.last == nil || c.last.st.Index != index {
		if st, err = c.store.CopyWhole(); err != nil {
			return nil, nil, err
		}
		c.last = &lent{st: st}
	}
	l := c.last
	l.users++
	return l.st, func() { c.giveBack(l) }, nil
}

// giveBack lets go of a copy once nobody uses it.
func (c *copies) giveBack(l *lent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.users--; l.users == 0 && c.last == l {
		c.last = nil
	}
}

// PageLimit reads the parameter limit.
func PageLimit(q url.Values) (int, error) {
	if !q.Has("limit") {
		return list.DefaultItems, nil
	}
	n, err := strconv.Atoi(q.Get("limit"))
	if err != nil || n < 1 || n > list.MaxItems || strings.HasPrefix(q.Get("limit"), "+") {
		return 0, fmt.Errorf("%w: limit is %q; it may be 1 to %d", problem.ErrBadRequest, web.Clip(q.Get("limit")), list.MaxItems)
	}
	return n, nil
}
