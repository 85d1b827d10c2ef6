package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/limits"
	"raftkv/internal/liveness"
	"raftkv/internal/problem"
	"raftkv/internal/room"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
)

// httpKVAPI serves clients. Routes are matched by hand, because a key is the path
// as it stands: http.ServeMux would clean it and redirect.
type httpKVAPI struct {
	log      *zap.Logger
	kv       *kvstore
	propose  func(ctx context.Context, cmd []byte) state.Result
	fresh    *api.Freshness
	members  *api.MembersAPI
	metrics  *api.Metrics
	backups  *api.Backups
	routes   map[string]web.Methods // by path, those of no resource below it
	maxValue int64
	mayWrite func() error // of the log's disk
	quota    *limits.Quota
	room     *room.Keeper
	bodies   *limits.BodyBudget
	origin   web.OriginGuard
	profiles bool         // are served
	disputed func() error // why nothing may be committed, though this node is not at fault
	stopping atomic.Bool
	life     context.Context // the node's
}

func (a *httpKVAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start, route := time.Now(), web.RouteLabel(r.Method, r.URL.Path)
	a.metrics.InFlight.Inc()
	defer a.metrics.InFlight.Dec()
	rec := &web.Recorder{ResponseWriter: w, Status: http.StatusOK}
	w.Header()["Cache-Control"] = web.CacheNever // unless the handler knows better
	r, done := web.UntilHungUp(r)
	defer done()
	if err := a.serve(rec, r); err != nil {
		web.WriteProblem(rec, a.explain(w.Header(), err))
	}
	took := time.Since(start)
	a.metrics.Observe(r.Method, route, rec.Status, took)
	a.noteRequest(r, route, rec.Status, took)
}

// addRoutes adds the paths that are no resource of many.
func (a *httpKVAPI) addRoutes(status *api.StatusAPI, live *liveness.Monitor) {
	a.routes = map[string]web.Methods{
		"livez":       {"GET": web.Bare(live.Serve)},
		"readyz":      {"GET": status.ServeReady},
		"metrics":     {"GET": web.Bare(a.metrics.Serve)},
		"v1/status":   {"GET": web.Bare(status.ServeStatus)},
		"v1/members":  {"GET": a.members.ServeMembers, "POST": a.members.ServeAddMember},
		"v1/leader":   {"POST": web.Bare(a.members.ServeLeader)},
		"v1/snapshot": {"GET": a.backups.ServeSnapshot},
	}
}

// serve answers a request, or returns the error to answer with.
func (a *httpKVAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if err := a.origin.Check(r); err != nil {
		return err
	}
	if err := a.ending(); err != nil {
		return err
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/")
	if !ok {
		return fmt.Errorf("%w: the path must begin with a slash", problem.ErrBadRequest)
	}
	if a.stopping.Load() && path != "livez" {
		w.Header().Set("Connection", "close")
		return problem.ErrStopping
	}
	if err := a.kv.Fault(); err != nil && !aboutItself(path) {
		return err
	}
	// A leader could still confirm a read, with the heartbeats of a node that
	// disputes its history; and what it takes in can come of nothing.
	if err := a.disputed(); err != nil && !aboutItself(path) && r.URL.Query().Get("consistency") != "stale" {
		return err
	}
	first, _, _ := strings.Cut(path, "/")
	switch {
	case path == "":
		return a.serveRoot(w, r)
	case path == "livez" || path == "readyz" || path == "metrics" || first == "v1":
		return a.serveV1(w, r, path)
	case a.profiles && (path == "debug/pprof" || strings.HasPrefix(path, "debug/pprof/")):
		return api.ServeProfiles(w, r)
	case web.Reserved(first):
		return fmt.Errorf("%w: paths under /%s are reserved; for a key of that name use /v1/kv/%s",
			problem.ErrBadRequest, first, url.PathEscape(path))
	case r.Method == http.MethodPost || r.Method == http.MethodDelete:
		return a.members.ServeShort(w, r, path)
	case r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodPut:
		return a.serveKey(w, r, path)
	}
	allow := "GET, HEAD, PUT"
	if _, err := api.ParseMemberID(path); err == nil {
		allow += ", POST, DELETE" // as a node
	}
	return web.NotAllowed(w, allow)
}

// aboutItself tells the paths that need nothing of the replicated state, so
// that a node can say what is wrong with it.
func aboutItself(path string) bool {
	switch path {
	case "livez", "readyz", "metrics", "v1/status":
		return true
	}
	return false
}

// serveV1 serves the paths that are not short-form keys.
func (a *httpKVAPI) serveV1(w http.ResponseWriter, r *http.Request, path string) error {
	if key, ok := strings.CutPrefix(path, "v1/kv/"); ok {
		if err := checkKey(key); err != nil {
			return err // by any method
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete:
			return a.serveKey(w, r, key)
		}
		return web.NotAllowed(w, "GET, HEAD, PUT, DELETE")
	}
	if id, ok := strings.CutPrefix(path, "v1/members/"); ok {
		return a.members.ServeMember(w, r, id)
	}
	route, ok := a.routes[path]
	if !ok && r.Method == http.MethodPut {
		return fmt.Errorf("%w: /%s is not a key in the short form; use /v1/kv/%s", problem.ErrBadRequest, path, url.PathEscape(path))
	}
	if !ok {
		return fmt.Errorf("%w: /%s; see GET /", problem.ErrNoSuchPath, path)
	}
	return route.Serve(w, r)
}

// stop makes the api refuse requests, and ends those that would last.
func (a *httpKVAPI) stop() {
	a.stopping.Store(true)
	a.backups.End()
}

func (a *httpKVAPI) serveRoot(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return web.NotAllowed(w, "GET, HEAD")
	}
	if err := web.NoQuery(r); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, `raftkv: a replicated key-value store.

  curl -X PUT -d hello http://HOST/my-key     write a key
  curl http://HOST/my-key                     read it, on any node
  curl -X DELETE http://HOST/v1/kv/my-key     delete it
  curl http://HOST/v1/members                 who is in the cluster
  curl http://HOST/v1/status                  how this node is
  curl -o FILE http://HOST/v1/snapshot        a backup, for raftkv restore

The README tells the rest.
`)
	return web.IgnoreWriteError(err)
}

// serveKey serves GET, HEAD, PUT and DELETE of a key.
func (a *httpKVAPI) serveKey(w http.ResponseWriter, r *http.Request, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if r.Header["Idempotency-Key"] != nil {
		return fmt.Errorf("%w: Idempotency-Key is not supported by this version", problem.ErrBadRequest)
	}
	if r.Method == http.MethodPut && r.Header["Content-Range"] != nil {
		return fmt.Errorf("%w: a part of a value cannot be written", problem.ErrBadRequest) // RFC 9110 §14.5
	}
	stale, err := api.ParseQuery(r, read)
	if err != nil {
		return err
	}
	pre, err := api.ParsePreconditions(r.Header)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPut && r.ContentLength != 0 {
		// net/http notices that a client hung up only behind its body.
		if _, err := io.CopyN(io.Discard, r.Body, api.MaxMemberBytes); err != nil && !errors.Is(err, io.EOF) {
			return web.BodyError(err)
		}
	}
	if read {
		return a.get(w, r, key, pre, stale)
	}
	cond, err := pre.OfWrite()
	switch {
	case errors.Is(err, problem.ErrPrecondition):
		return a.refuse(w, r, key, err)
	case err != nil:
		return err
	case r.Method == http.MethodPut:
		return a.put(w, r, key, cond)
	default:
		return a.delete(w, r, key, cond)
	}
}

func checkKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: the key is empty", problem.ErrBadRequest)
	case len(key) > config.MaxKeyBytes:
		return fmt.Errorf("%w: the key has %d bytes, %d are allowed", problem.ErrBadRequest, len(key), config.MaxKeyBytes)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: the key is not valid UTF-8", problem.ErrBadRequest)
	case strings.IndexByte(key, 0) >= 0:
		return fmt.Errorf("%w: the key has a NUL byte", problem.ErrBadRequest)
	}
	return nil
}

// Header values that every answer to a read shares. Nobody may change them.
var (
	headerBytes   = []string{"application/octet-stream"}
	headerNoSniff = []string{"nosniff"}
)

// get answers a read.
func (a *httpKVAPI) get(w http.ResponseWriter, r *http.Request, key string, pre api.Preconditions, stale bool) error {
	if err := a.fresh.Prepare(w.Header(), r, stale); err != nil {
		return err
	}
	it, revision, err := a.kv.read(key)
	if err != nil {
		return err
	}
	h := w.Header()
	h["Raftkv-Revision"] = []string{strconv.FormatUint(revision, 10)}
	if it != nil {
		api.SetETag(h, it.ModRevision)
	}
	unchanged, err := pre.OfRead(it)
	if err != nil {
		return err
	}
	h["Cache-Control"] = web.CacheAsk
	if unchanged {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if it == nil {
		return problem.ErrNotFound
	}
	h["Content-Type"], h["X-Content-Type-Options"] = headerBytes, headerNoSniff
	h["Content-Length"] = []string{strconv.Itoa(len(it.Value))}
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = w.Write(it.Value)
	return web.IgnoreWriteError(err)
}

// refuse answers a write whose condition cannot hold, and costs no log entry
// therefore, with the current ETag like every other 412.
func (a *httpKVAPI) refuse(w http.ResponseWriter, r *http.Request, key string, why error) error {
	if err := a.fresh.Now(r.Context()); err != nil {
		return err
	}
	if it, _ := a.kv.get(key); it != nil {
		api.SetETag(w.Header(), it.ModRevision)
	}
	return why
}

// put answers a write.
func (a *httpKVAPI) put(w http.ResponseWriter, r *http.Request, key string, cond state.Condition) error {
	if err := a.mayWrite(); err != nil {
		return err
	}
	head := make([]byte, 0, state.WriteOverhead+len(key)+int(min(max(r.ContentLength, 0), limits.BodyFirst)))
	head = state.AppendWriteHead(head, state.KindPut, cond, key)
	cmd, err := a.readValue(w, r, head)
	if err != nil {
		return err
	}
	if err := a.room.Admit(key, len(cmd)-len(head)); err != nil {
		return err
	}
	release, err := a.quota.Reserve(key, len(cmd)-len(head))
	if err != nil {
		return err
	}
	defer release()
	return a.write(w, r, cmd)
}

func (a *httpKVAPI) delete(w http.ResponseWriter, r *http.Request, key string, cond state.Condition) error {
	if err := a.room.Admit(key, -1); err != nil {
		return err
	}
	return a.write(w, r, state.EncodeWrite(state.KindDelete, cond, key, nil))
}

func (a *httpKVAPI) write(w http.ResponseWriter, r *http.Request, cmd []byte) error {
	if a.kv.applied.Get() == 0 {
		// It joins. The snapshot that it gets could cover the write, and
		// then nobody could tell what became of it.
		return problem.ErrNotReady
	}
	res := a.propose(r.Context(), cmd)
	if err := a.kv.Fault(); err != nil {
		return problem.PerhapsDone(err) // the write may have happened, but what this node says of it is not to be trusted
	}
	h := w.Header()
	if res.Err != nil {
		api.SetETag(h, res.Revision)
		return res.Err
	}
	if res.Revision == 0 {
		h["Raftkv-Revision"] = []string{strconv.FormatUint(res.Deletion, 10)}
	} else { // the key's revision is the store's: one text
		tag := api.ETag(res.Revision)
		both := [...]string{tag, tag[1 : len(tag)-1]}
		h["Etag"], h["Raftkv-Revision"] = both[:1:1], both[1:]
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readValue appends the request's body to cmd. What is too large is refused
// before it is read whole.
func (a *httpKVAPI) readValue(w http.ResponseWriter, r *http.Request, cmd []byte) ([]byte, error) {
	if r.ContentLength > a.maxValue {
		return nil, fmt.Errorf("%w: %d bytes, %d are allowed", problem.ErrTooLarge, r.ContentLength, a.maxValue)
	}
	// What a request announces is not what it sends: the buffer grows with
	// what comes.
	cmd, err := a.bodies.Read(w, r, cmd, a.maxValue)
	return cmd, web.BodyError(err)
}

// ending returns the error that is ending this node. It is nil while the node runs,
// and when it was stopped or removed on purpose.
func (a *httpKVAPI) ending() error {
	if a.life.Err() == nil {
		return nil
	}
	cause := context.Cause(a.life)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, problem.ErrRemoved) {
		return nil
	}
	return fmt.Errorf("%w: %w", problem.ErrEnding, cause)
}

// explain gives the cause in place of the error that a request ends in because
// its node does, which may be that it is stopping, or that the outcome is unknown.
// Where nothing could be confirmed in time, it adds why.
func (a *httpKVAPI) explain(h http.Header, err error) error {
	fault := a.ending()
	p := problem.Of(err)
	if p.Status < http.StatusInternalServerError {
		return err
	}
	if fault == nil {
		late := errors.Is(err, problem.ErrNoLeader) || errors.Is(err, problem.ErrUnavailable) || errors.Is(err, problem.ErrOutcomeUnknown)
		if why := a.disputed(); why != nil && late {
			return fmt.Errorf("%w; %w", err, why)
		}
		return err
	}
	h.Set("Connection", "close")
	if p.Outcome == problem.MaybeApplied {
		return problem.PerhapsDone(fault)
	}
	return fault
}

// slowRequestAfter is how long a request may take before an operator should hear
// of it. One that waits for an election takes longer, at the default election
// timeout.
const slowRequestAfter = time.Second

// noteRequest says that a request was slow. Which key it was of is nobody's
// business. How long a download takes is up to who takes it.
func (a *httpKVAPI) noteRequest(r *http.Request, route string, status int, took time.Duration) {
	if took > slowRequestAfter && route != "snapshot" && route != "pprof" {
		a.log.Warn("slow request", zap.String("method", web.MethodLabel(r.Method)), zap.String("route", route),
			zap.Int("status", status), zap.Duration("took", took))
	}
}
