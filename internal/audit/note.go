package audit

import (
	"context"
	"net/http"
	"net/url"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"time"
)

// Note gathers what is to be written of one request while that is served: what it asks for
// is partly in its body, which only its handler reads. It belongs to the handler's
// goroutine. The methods of a nil *Note do nothing.
type Note struct {
	log   *Log
	r     *http.Request
	began time.Time
	rec   Record
	read  bool // it turned out that the request can change nothing
	ended bool
}

// noteKey is the key of a request's Note in its context.
type noteKey struct{}

// Begin begins the note of a request, if there is to be one: nil.
func (l *Log) Begin(r *http.Request, route string, began time.Time) (*http.Request, *Note) {
	if l == nil || !concerns(route) {
		return r, nil
	}
	n := &Note{log: l, began: began, rec: Record{From: r.RemoteAddr, Method: web.MethodLabel(r.Method), Route: route}}
	n.r = r.WithContext(context.WithValue(r.Context(), noteKey{}, n))
	return n.r, n
}

// concerns reports whether requests of a kind are about data, members or this node. Probes,
// and what says the same to everybody, are not.
func concerns(route string) bool {
	switch route {
	case "livez", "readyz", "metrics", "help", "errors", "openapi":
		return false
	}
	return true
}

// always reports whether a request is written though it reads: it takes all data, or the
// memory of the process.
func always(route string) bool { return route == "snapshot" || route == "pprof" }

// NoteOf returns the note of the request whose context this is, nil if there is none.
func NoteOf(ctx context.Context) *Note {
	n, _ := ctx.Value(noteKey{}).(*Note)
	return n
}

// Who says who asks.
func (n *Note) Who(name string) {
	if n != nil {
		n.rec.Name = name
	}
}

// About adds keys and prefixes that a request names in its body.
func (n *Note) About(keys, prefixes []string) {
	if n != nil {
		n.rec.Keys, n.rec.Prefixes = append(n.rec.Keys, keys...), append(n.rec.Prefixes, prefixes...)
	}
}

// Reads says that a request can change nothing, though its method could.
func (n *Note) Reads() {
	if n != nil {
		n.read = true
	}
}

// Member says which member a request is about, and which peer URL that is to have.
func (n *Note) Member(id uint64, peerURL string) {
	if n != nil {
		n.rec.Member, n.rec.PeerURL = id, peerURL
	}
}

// Begun writes a request that may last for as long as its client likes. Its end is not
// written.
func (n *Note) Begun() {
	if n == nil {
		return
	}
	n.rec.Outcome = begun
	n.End(http.StatusOK, nil, nil)
}

// End writes a request that was answered with that status and header, or ended in an error.
func (n *Note) End(status int, h http.Header, err error) {
	if n == nil || n.ended {
		return
	}
	n.ended = true
	method := n.rec.Method
	if n.read {
		method = http.MethodGet
	}
	if !n.log.Wants(method, status) && !always(n.rec.Route) {
		return
	}
	n.fill(h)
	n.rec.Took = time.Since(n.began)
	n.log.Request(n.rec, status, err)
}

// Broke writes a request whose handler has not come back: it broke off its answer, or met a
// fault. What was to be read may have been, up to there.
func (n *Note) Broke(w *web.Recorder) {
	if n == nil || n.ended {
		return
	}
	if n.rec.Outcome = unknown; reads(n.rec.Method) {
		n.rec.Outcome = begun
	}
	n.End(w.Status, w.Header(), nil)
}

// settle says what became of a request by its answer.
func (r *Record) settle(status int, err error) {
	r.Status = status
	if err != nil {
		p := problem.Of(err)
		r.Status, r.Code, r.Outcome = p.Status, p.Code, notApplied
		if p.Outcome == problem.MaybeApplied {
			r.Outcome = unknown
		}
		return
	}
	if r.Outcome == "" {
		r.Outcome = done
		if status >= http.StatusBadRequest {
			r.Outcome = notApplied
		}
	}
}

// fill adds what the request's path and query name, and what its answer does. Of the query
// only the parameters that name keys are looked at: whatever else is there is not written.
func (n *Note) fill(h http.Header) {
	rec := &n.rec
	q, _ := url.ParseQuery(n.r.URL.RawQuery) // what cannot be read is left out
	path := strings.TrimPrefix(n.r.URL.Path, "/")
	first, last, _ := cutLast(path)
	switch rec.Route {
	case "kv", "poll", "list":
		switch key, long := strings.CutPrefix(path, "v1/kv/"); {
		case long:
			rec.Keys = append(rec.Keys, key)
		case path == "v1/kv":
			rec.aboutList(q)
		default:
			rec.Keys = append(rec.Keys, path)
		}
	case "add":
		rec.Keys = append(rec.Keys, q["key"]...)
	case "watch":
		rec.Keys, rec.Prefixes = q["key"], q["prefix"]
		if len(rec.Keys)+len(rec.Prefixes) == 0 {
			rec.Prefixes = []string{""}
		}
	case "lease":
		rec.Lease, _ = strconv.ParseUint(last, 10, 64)
	case "member":
		if id, err := strconv.ParseUint(last, 10, 64); err == nil && (first == "" || first == "v1/members") {
			rec.Member = id
		}
	}
	rec.Revision, _ = strconv.ParseUint(h.Get("Raftkv-Revision"), 10, 64)
	rec.aboutNew(h.Get("Location"))
}

// aboutList adds what a request for /v1/kv is about.
func (r *Record) aboutList(q url.Values) {
	if key, ok := q["key"]; ok {
		r.Keys = append(r.Keys, key...)
		return
	}
	if q.Has("start") || q.Has("end") {
		r.Ranges = append(r.Ranges, [2]string{q.Get("start"), q.Get("end")})
		if !q.Has("prefix") {
			return
		}
	}
	r.Prefixes = append(r.Prefixes, q.Get("prefix"))
}

// aboutNew adds what a request has made, by where that is.
func (r *Record) aboutNew(location string) {
	if location == "" {
		return
	}
	path, err := url.PathUnescape(location)
	if err != nil {
		return
	}
	first, last, _ := cutLast(strings.TrimPrefix(path, "/"))
	if key, ok := strings.CutPrefix(path, "/v1/kv/"); ok {
		r.Keys = append(r.Keys, key)
		return
	}
	id, _ := strconv.ParseUint(last, 10, 64)
	switch first {
	case "v1/leases":
		r.Lease = id
	case "v1/members":
		r.Member = id
	}
}

// cutLast cuts a path at its last slash.
func cutLast(path string) (before, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}
