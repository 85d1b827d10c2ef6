package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"raftkv/internal/access"
	"raftkv/internal/admin"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/leaseapi"
	"raftkv/internal/limits"
	"raftkv/internal/liveness"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/txnapi"
	"raftkv/internal/watchapi"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// httpKVAPI serves clients. Routes are matched by hand, because a key is the path
// as it stands: http.ServeMux would clean it and redirect.
type httpKVAPI struct {
	log      *zap.Logger
	keys     *api.Keys
	leases   *leaseapi.Leases
	lists    *api.Lists
	watches  *watchapi.Watches
	txns     *txnapi.Txns
	members  *admin.MembersAPI
	metrics  *admin.Metrics
	audit    *audit.Log
	backups  *admin.Backups
	routes   map[string]web.Methods // by path, those of no resource below it
	bodies   *limits.BodyBudget
	origin   web.OriginGuard
	guard    *access.Guard // nil: there are no rights
	always   []web.Field   // of every answer
	profiles bool          // are served
	ends     api.Endings
	open     func(path, query string) error // nil, or why clients are kept out
	stopping atomic.Bool
}

func (a *httpKVAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start, route := time.Now(), web.RouteLabel(r.Method, r.URL.Path, r.URL.RawQuery)
	a.metrics.InFlight.Inc()
	defer a.metrics.InFlight.Dec()
	rec := &web.Recorder{ResponseWriter: w, Status: http.StatusOK}
	w.Header()["Cache-Control"] = web.CacheNever // unless the handler knows better
	for _, f := range a.always {
		w.Header()[f.Name] = []string{f.Value}
	}
	client := web.ClientOf(r.Context())
	client.Begin()
	defer client.End()
	if client.IsExpired() {
		w.Header()["Connection"] = []string{"close"} // in HTTP/2 net/http sends a GOAWAY for it
	}
	r, done := web.UntilEnded(r, route)
	defer done()
	r, note := a.audit.Begin(r, route, start)
	defer note.Broke(rec) // unless it has ended
	err := a.serve(rec, r)
	if err != nil {
		var end bool
		if err, end = a.ends.Explain(err); end {
			w.Header()["Connection"] = []string{"close"}
		}
		err = a.guard.Told(r, err)
		web.WriteProblem(rec, r, err)
	}
	a.metrics.Count(a.log, r.Method, route, rec.Status, time.Since(start))
	note.End(rec.Status, w.Header(), err)
}

// addRoutes adds the paths that are no resource of many.
func (a *httpKVAPI) addRoutes(status *admin.StatusAPI, live *liveness.Monitor) {
	a.routes = map[string]web.Methods{
		"livez":           {"GET": web.Bare(live.Serve)},
		"readyz":          {"GET": status.ServeReady},
		"metrics":         {"GET": web.Bare(a.metrics.Serve)},
		"v1/errors":       {"GET": web.Bare(admin.ServeErrors)},
		"v1/openapi.yaml": {"GET": web.Bare(admin.ServeOpenAPI)},
		"v1/status":       {"GET": web.Bare(status.ServeStatus)},
		"v1/add":          {"POST": a.txns.ServeAdd},
		"v1/txn":          {"POST": a.txns.ServeTxn},
		"v1/leases":       {"GET": a.leases.ServeList, "POST": web.Bare(a.leases.ServeGrant)},
		"v1/kv":           a.lists.Methods(a.serveKey, a.txns.ServeAppend, a.txns.ServeDeletePrefix),
		"v1/members":      {"GET": a.members.ServeMembers, "POST": a.members.ServeAddMember},
		watchapi.Path:     {"GET": a.watches.Serve},
		"v1/leader":       {"POST": web.Bare(a.members.ServeLeader)},
		"v1/snapshot":     {"GET": a.backups.ServeSnapshot},
	}
}

// serve answers a request, or returns the error to answer with.
func (a *httpKVAPI) serve(w http.ResponseWriter, r *http.Request) error {
	if answered, err := a.origin.Admit(w, r); answered || err != nil {
		return err
	}
	r, err := a.guard.Admit(r)
	if err != nil {
		return err
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/")
	if !ok {
		return fmt.Errorf("%w: the path must begin with a slash", problem.ErrBadRequest)
	}
	if err := cmp.Or(a.mayServe(path, r.URL.RawQuery), a.open(path, r.URL.RawQuery)); err != nil {
		return err
	}
	first, _, _ := strings.Cut(path, "/")
	if key, long, ok := api.KeyOf(r.Method, path); ok {
		return a.serveKey(w, r, key, r.URL.RawQuery, long)
	}
	switch {
	case path == "":
		return admin.ServeHelp(w, r)
	case path == "livez" || path == "readyz" || path == "metrics" || first == "v1":
		return a.serveV1(w, r, path)
	case a.profiles && (path == "debug/pprof" || strings.HasPrefix(path, "debug/pprof/")):
		return admin.ServeProfiles(w, r)
	case web.Reserved(first):
		return fmt.Errorf("%w: paths under /%s are reserved; for a key of that name use /v1/kv/%s",
			problem.ErrBadRequest, first, url.PathEscape(path))
	case r.Method == http.MethodPost || r.Method == http.MethodDelete:
		return a.members.ServeShort(w, r, path)
	}
	allow := "GET, HEAD, PUT"
	if _, err := admin.ParseMemberID(path); err == nil {
		allow += ", POST, DELETE" // as a node
	}
	return web.NotAllowed(w, allow)
}

// mayServe returns nil, or why a request is refused without a look at it.
func (a *httpKVAPI) mayServe(path, query string) error {
	if path == watchapi.Path {
		return nil // it is told in the stream
	}
	if err := a.ends.Ending(); err != nil {
		return err
	}
	if a.stopping.Load() && path != "livez" {
		return problem.ErrStopping
	}
	if web.AboutItself(path) {
		return nil
	}
	if err := a.keys.Fresh.Fault(); err != nil {
		return err
	}
	// A leader could still confirm a read, with the heartbeats of a node that
	// disputes its history; and what it takes in can come of nothing.
	if err := a.ends.Disputed(); err != nil {
		if !api.WantsLocal(query) {
			return err
		}
	}
	return nil
}

// serveV1 serves the paths that are not short-form keys.
func (a *httpKVAPI) serveV1(w http.ResponseWriter, r *http.Request, path string) error {
	if key, ok := strings.CutPrefix(path, "v1/kv/"); ok {
		if err := api.CheckKey(key); err != nil {
			return err // by any method
		}
		return web.NotAllowed(w, "GET, HEAD, PUT, DELETE")
	}
	if id, ok := strings.CutPrefix(path, "v1/members/"); ok {
		return a.members.ServeMember(w, r, id)
	}
	if id, ok := strings.CutPrefix(path, "v1/leases/"); ok {
		return a.leases.ServeLease(w, r, id)
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
	a.keys.Fresh.End()
	a.backups.End()
	a.lists.End()
	a.watches.Hub.End()
}

// serveKey serves GET, HEAD, PUT and DELETE of a key. query is what the request's says
// beside the key; long says that it is not in the short form.
func (a *httpKVAPI) serveKey(w http.ResponseWriter, r *http.Request, key, query string, long bool) error {
	q := &api.KeyRequest{
		Method: r.Method, Key: key, Long: long, Query: query, Length: r.ContentLength, JSON: api.AcceptsItem(r.Header),
		IfMatch: r.Header["If-Match"], IfNoneMatch: r.Header["If-None-Match"],
		IdempotencyKey: r.Header["Idempotency-Key"], Partial: r.Header["Content-Range"] != nil, Caller: rights.CallerOf(r.Context()),
		Still: func(n rights.Need) error { return rights.Still(r.Context(), n) },
	}
	if !a.keys.Check(q) {
		return q.Answer.Err
	}
	var err error
	switch {
	case q.TakesValue():
		// What a request announces is not what it sends: the buffer grows with
		// what comes.
		q.Command, err = a.bodies.Read(w, r, q.Command, a.keys.MaxValue)
	case r.Method != http.MethodPut && r.ContentLength != 0:
		// net/http notices that a client hung up only behind its body.
		if _, err = io.CopyN(io.Discard, r.Body, api.MaxMemberBytes); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		return web.BodyError(err)
	}
	done := make(outcome, 1)
	if a.keys.Start(q, done) {
		select {
		case res := <-done:
			a.keys.Finish(q, res)
		case <-r.Context().Done():
			a.keys.GiveUp(q)
		}
	}
	a.keys.Await(w, r, q)
	return q.Tell(w)
}

// outcome is where a handler waits for what becomes of its request.
type outcome chan state.Result

// Done implements rounds.Waiter.
func (o outcome) Done(res state.Result) { o <- res }

// plainRequests serves the requests for keys that the front has read. It refuses and
// counts them as ServeHTTP does.
type plainRequests struct{ *httpKVAPI }

// Allows implements front.Handler.
func (a plainRequests) Allows(host string) bool { return a.origin.CheckHost(host) == nil }

// Always implements front.Handler.
func (a plainRequests) Always() []web.Field { return a.always }

// Hold implements front.Handler.
func (a plainRequests) Hold(n int64) (release func(), ok bool) { return a.bodies.Try(n) }

// Begin implements front.Handler.
func (a plainRequests) Begin(q *api.KeyRequest, body []byte, w rounds.Waiter) (waits bool) {
	a.metrics.InFlight.Inc()
	if err := cmp.Or(a.guard.AdmitKey(q), a.mayServe("", q.Query)); err != nil {
		q.Answer.Err = err
	} else if a.keys.Check(q) {
		if q.TakesValue() {
			q.Command = append(q.Command, body...)
		}
		waits = a.keys.Start(q, w)
	}
	if q.Answer.Err != nil {
		q.Answer.Err, q.Answer.Close = a.ends.Explain(a.guard.Told(nil, q.Answer.Err))
	}
	return waits
}

// Finish implements front.Handler.
func (a plainRequests) Finish(q *api.KeyRequest, res state.Result) {
	if a.keys.Finish(q, res); q.Answer.Err != nil {
		q.Answer.Err, q.Answer.Close = a.ends.Explain(q.Answer.Err)
	}
}

// GiveUp implements front.Handler.
func (a plainRequests) GiveUp(q *api.KeyRequest) { a.keys.GiveUp(q) }

// Answered implements front.Handler.
func (a plainRequests) Answered(q *api.KeyRequest, began time.Time) {
	a.metrics.InFlight.Dec()
	status := q.Answer.Status
	if q.Answer.Err != nil {
		status = problem.Of(q.Answer.Err).Status
	}
	a.metrics.Count(a.log, q.Method, "kv", status, time.Since(began))
	if a.audit.Wants(q.Method, status) {
		a.audit.Request(q.Record(time.Since(began)), status, q.Answer.Err)
	}
}
