// Package watchapi answers: how does a client ask for changes, and how do they travel to
// it? A watch is a stream of server-sent events, or of a JSON object a line. It is always
// answered with 200 if it is well formed: a browser gives up for ever on anything else. What
// cannot be served is told as an event of the stream, which then ends.
package watchapi

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/changelog"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Path is where watches are.
const Path = "v1/watch"

const (
	// MaxFilters bounds the keys and prefixes of a watch, and MaxFilterBytes their bytes.
	MaxFilters     = 64
	MaxFilterBytes = 16 << 10

	// quiet is how long a stream says nothing at most, a little less than the 15 s that are
	// promised.
	quiet = 14 * time.Second
	// probe is that for a client that has ended its side of the connection: what is written
	// shows whether it still reads.
	probe = time.Second
	// writeLimit is how long a client may take for watch.PartBytes. One that takes longer is
	// cut off.
	writeLimit     = 30 * time.Second
	writeLimitStep = 5 * time.Second // it may be so much longer
	// farewell is how long the last event may take.
	farewell = 2 * time.Second
	// again is after how long a client is told to come again, half of it more or less, so
	// that all who were cut off do not come at once.
	again = 2 * time.Second
	// loadingPoll is how often a watcher looks whether a snapshot has come in.
	loadingPoll = 100 * time.Millisecond
)

// Watches serves watches.
type Watches struct {
	Log   *zap.Logger
	Hub   *watch.Hub
	Fresh *api.Freshness
	Lists *api.Lists
	// Look lends the state, or returns an error where it is not to be read.
	Look func(look func(*state.State)) error
	// May returns nil, or why this node serves nobody now.
	May func() error
	// Explain gives the cause in place of the error that a request ends in because its node
	// does.
	Explain func(err error) (_ error, end bool)
}

// request is what a watch asks for.
type request struct {
	filter watch.Filter
	needs  []rights.Need // for the keys and prefixes
	form   watch.Form
	state  bool   // what is there is to be told first
	after  uint64 // the position behind which changes are told, with from
	from   bool   // a position was given
}

// parse reads a request for a watch.
func parse(r *http.Request) (q request, err error) {
	if err := web.NoIdempotencyKey(r); err != nil {
		return q, err
	}
	if err := web.NoConditions(r); err != nil {
		return q, err
	}
	params, err := web.QueryLists(r.URL.RawQuery, []string{"key", "prefix"}, "after_revision", "keys_only", "state", "types", "values")
	if err != nil {
		return q, err
	}
	keys, prefixes := params["key"], params["prefix"]
	if err := checkFilters(keys, prefixes); err != nil {
		return q, err
	}
	if len(keys)+len(prefixes) == 0 {
		prefixes = []string{""}
	}
	q.filter = watch.NewFilter(keys, prefixes)
	for _, k := range keys {
		q.needs = append(q.needs, rights.OnKey(rights.Read, k))
	}
	for _, p := range prefixes {
		q.needs = append(q.needs, rights.OnPrefix(rights.Read, p))
	}
	if types, ok := params["types"]; ok {
		kinds, err := kindsOf(types[0])
		if err != nil {
			return q, err
		}
		q.filter.Only(kinds)
	}
	q.form.Lines = linesWanted(r)
	if q.form.KeysOnly, err = api.Flag(params, "keys_only"); err != nil {
		return q, err
	}
	if q.state, err = api.Flag(params, "state"); err != nil {
		return q, err
	}
	if q.form.Base64, err = api.InBase64(params); err != nil {
		return q, err
	}
	if err := q.readPosition(params["after_revision"], r.Header["Last-Event-Id"]); err != nil {
		return q, err
	}
	if q.state && q.after == 0 {
		q.from = false // it knows nothing, and wants all
	}
	return q, nil
}

func linesWanted(r *http.Request) bool { return web.AcceptsOnly(r.Header, "application/x-ndjson") }

func checkFilters(keys, prefixes []string) error {
	size := 0
	for _, k := range keys {
		if err := api.CheckKey(k); err != nil {
			return err
		}
		size += len(k)
	}
	for _, p := range prefixes {
		if p != "" {
			if err := api.CheckKey(p); err != nil {
				return fmt.Errorf("prefix: %w", err)
			}
		}
		size += len(p)
	}
	if n := len(keys) + len(prefixes); n > MaxFilters {
		return fmt.Errorf("%w: %d keys and prefixes, %d are allowed; watch a prefix that they share", problem.ErrBadRequest, n, MaxFilters)
	}
	if size > MaxFilterBytes {
		return fmt.Errorf("%w: the keys and prefixes have %d bytes, %d are allowed", problem.ErrBadRequest, size, MaxFilterBytes)
	}
	return nil
}

func kindsOf(types string) (kinds []changelog.Kind, err error) {
	for name := range strings.SplitSeq(types, ",") {
		kind, ok := watch.KindOf(name)
		if !ok {
			return nil, fmt.Errorf("%w: types is %q, not a list of put, delete and expire", problem.ErrBadRequest, web.Clip(types))
		}
		kinds = append(kinds, kind)
	}
	return kinds, nil
}

// readPosition reads where a watch is to go on. A browser that reconnects sends what it was
// told last beside the query that it began with: the former wins.
func (q *request) readPosition(param, header []string) (err error) {
	if len(header) > 1 {
		return fmt.Errorf("%w: Last-Event-ID is given twice", problem.ErrBadRequest)
	}
	for _, p := range []struct {
		name   string
		values []string
	}{{"after_revision", param}, {"Last-Event-ID", header}} {
		if len(p.values) == 0 {
			continue
		}
		if q.after, err = strconv.ParseUint(p.values[0], 10, 64); err != nil {
			return fmt.Errorf("%w: %s is %q, not a revision such as 17", problem.ErrBadRequest, p.name, web.Clip(p.values[0]))
		}
		q.from = true
	}
	return nil
}

// Serve answers GET /v1/watch.
func (s *Watches) Serve(w http.ResponseWriter, r *http.Request) error {
	q, err := parse(r)
	if err != nil {
		return err
	}
	if err := rights.CallerOf(r.Context()).May(q.needs...); err != nil {
		return err
	}
	if err := web.Drain(r); err != nil {
		return err
	}
	describe(w.Header(), q.form.Lines)
	if r.Method == http.MethodHead {
		return nil
	}
	audit.NoteOf(r.Context()).Begun()
	st := newStream(s, &q, w, r)
	err = st.run()
	if err == nil || r.Context().Err() != nil {
		return nil // the client has gone
	}
	err, _ = s.Explain(err)
	s.Log.Debug("a watch ended", zap.String("client", r.RemoteAddr), zap.Error(err))
	// An error means that the client has gone.
	_ = st.conn.SetWriteDeadline(time.Now().Add(farewell))
	if _, werr := w.Write(unavailable(q.form.Lines, err)); werr == nil {
		_ = st.conn.Flush()
	}
	return nil
}

func describe(h http.Header, lines bool) {
	mediaType := "text/event-stream"
	if lines {
		mediaType = "application/x-ndjson"
	}
	h.Set("Content-Type", mediaType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept")
	h.Set("X-Accel-Buffering", "no") // nginx would hold back what it has not got much of
}

// retry is after how many milliseconds a client is to come again.
func retry() int64 { return (again/2 + rand.N(again)).Milliseconds() }

// unavailable is the event that ends a stream that cannot go on.
func unavailable(lines bool, why error) []byte {
	_, _, body := web.Problem(why)
	body = bytes.TrimSpace(body)
	if lines {
		return fmt.Appendf(nil, `{"event":"unavailable","retry":%d,"data":%s}`+"\n", retry(), body)
	}
	return fmt.Appendf(nil, "event: unavailable\nretry: %d\ndata: %s\n\n", retry(), body)
}

// Refuse answers a watch on a node that serves nobody yet, and reports whether the request
// was one. A browser gives up on a problem, and on an answer that it may not show to the page
// of another origin: guard has it show that.
func Refuse(w http.ResponseWriter, r *http.Request, guard *web.OriginGuard, why error) bool {
	if r.Method != http.MethodGet || r.URL.Path != "/"+Path {
		return false
	}
	if guard != nil {
		for _, f := range guard.Fields() {
			w.Header().Set(f.Name, f.Value)
		}
		if _, err := guard.Admit(w, r); err != nil {
			web.WriteProblem(w, r, err)
			return true
		}
	}
	lines := linesWanted(r)
	describe(w.Header(), lines)
	_, err := w.Write(unavailable(lines, why))
	_ = web.IgnoreWriteError(err)
	return true
}
