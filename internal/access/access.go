// Package access answers: what does a request need, and who asks? A table has the needs of each
// route, as far as the request line tells them. What only a key, a range, a filter or a body
// tells, the resource decides where it has read that: before limits, queues and lookups, so
// that a refusal costs the same whatever there is. A route that is not in the table takes the
// right to do everything.
package access

import (
	"context"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/doors"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/web"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Guard lets requests in. A nil Guard is that of a node without rights, and lets in all.
type Guard struct{ Rights *rights.Keeper }

// Open returns the guard of a file of rights, nil where there is none. The error says what is
// wrong with the file: then the node must not start.
func Open(log *zap.Logger, file string) (*Guard, error) {
	if file == "" {
		return nil, nil
	}
	keeper, err := rights.New(rights.Config{Log: log, File: file})
	if err != nil {
		return nil, err
	}
	return &Guard{keeper}, nil
}

// Run keeps to the file until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	if g == nil {
		return nil
	}
	return g.Rights.Run(ctx)
}

// Register adds what there is to count.
func (g *Guard) Register(reg prometheus.Registerer) {
	if g != nil {
		g.Rights.Register(reg)
	}
}

// Notes has a line if the file as it is now is not in force. What is wrong with it stands in the
// log: it may name clients and keys, and the metrics port, which has the notes, too, must not.
func (g *Guard) Notes() string {
	if g == nil || g.Rights.Trouble() == nil {
		return ""
	}
	return "note the file of rights is not in force, and those from before are; the log says why\n"
}

// File is what this node publishes of the file that is in force.
func (g *Guard) File() doors.File {
	if g == nil {
		return doors.File{}
	}
	t := g.Rights.Table()
	return doors.File{Hash: doors.HashOf(t.Hash()), Everybody: t.Anonymous().Admin()}
}

// need says what a route takes, by what the request line says of it.
type need func(r *http.Request) rights.Need

func takes(n rights.Need) need { return func(*http.Request) rights.Need { return n } }

var (
	// open is for what tells nothing of this cluster.
	open = takes(rights.Nothing())
	// The others are decided where the key or the range has been read.
	reads  = takes(rights.OnSome(rights.Read))
	writes = takes(rights.OnSome(rights.Write))
	either = takes(rights.OnAnything())

	status = takes(rights.OfNode(rights.Status))
	backup = takes(rights.OfNode(rights.Backup))
	admin  = takes(rights.OfNode(rights.Admin))
)

// ready is open but for its query, with which it says more than whether it is.
func ready(r *http.Request) rights.Need {
	if r.URL.RawQuery == "" && !r.URL.ForceQuery {
		return rights.Nothing()
	}
	return rights.OfNode(rights.Status)
}

// routes are the needs by method and path, as the description of the API has them. HEAD is as
// GET.
var routes = map[string]need{
	"GET /":                       open,
	"GET /v1/errors":              open,
	"GET /v1/openapi.yaml":        open,
	"GET /livez":                  open,
	"GET /readyz":                 ready,
	"GET /metrics":                status,
	"GET /v1/status":              status,
	"GET /v1/members":             status,
	"GET /v1/members/{id}":        status,
	"POST /v1/members":            admin,
	"PATCH /v1/members/{id}":      admin,
	"DELETE /v1/members/{id}":     admin,
	"POST /{key}":                 admin, // a node, in the short form
	"DELETE /{key}":               admin, // likewise
	"POST /v1/leader":             admin,
	"GET /debug/pprof":            admin,
	"POST /debug/pprof":           admin,
	"GET /debug/pprof/":           admin,
	"POST /debug/pprof/":          admin,
	"GET /debug/pprof/{profile}":  admin,
	"POST /debug/pprof/{profile}": admin,
	"GET /v1/snapshot":            backup,
	"GET /{key}":                  reads,
	"PUT /{key}":                  writes,
	"GET /v1/kv/{key}":            reads,
	"PUT /v1/kv/{key}":            writes,
	"DELETE /v1/kv/{key}":         writes,
	"GET /v1/kv":                  reads,
	"PUT /v1/kv":                  writes,
	"POST /v1/kv":                 writes,
	"DELETE /v1/kv":               writes,
	"GET /v1/watch":               reads,
	"POST /v1/add":                writes,
	"POST /v1/txn":                either,
	// A lease is its owner's, which is decided where it is applied. Only who may write can own
	// one, so that nobody else fills their table.
	"GET /v1/leases":         writes,
	"POST /v1/leases":        writes,
	"GET /v1/leases/{id}":    writes,
	"PUT /v1/leases/{id}":    writes,
	"DELETE /v1/leases/{id}": writes,
}

// families are the paths that go on behind a slash, beside those of keys.
var families = []struct{ prefix, route string }{
	{"v1/members/", "/v1/members/{id}"},
	{"v1/leases/", "/v1/leases/{id}"},
	{"debug/pprof/", "/debug/pprof/{profile}"},
}

// routeOf returns how routes have a method and a path, which is decoded.
func routeOf(method, path string) string {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	path = strings.TrimPrefix(path, "/")
	if _, long, ok := api.KeyOf(method, path); ok && long {
		return method + " /v1/kv/{key}"
	} else if ok {
		return method + " /{key}"
	}
	for _, f := range families {
		if rest, ok := strings.CutPrefix(path, f.prefix); ok && rest != "" {
			return method + " " + f.route
		}
	}
	first, _, _ := strings.Cut(path, "/")
	if path != "" && !web.Reserved(first) {
		return method + " /{key}" // of a node
	}
	return method + " /" + path
}

// needOf returns what a request takes.
func needOf(r *http.Request) rights.Need {
	if of, ok := routes[routeOf(r.Method, r.URL.Path)]; ok {
		return of(r)
	}
	return rights.OfNode(rights.Admin)
}

// shown is what a request shows of who asks.
func shown(c *web.Client, authorization []string) rights.Shown {
	s := rights.Shown{}
	if c != nil {
		s.Names = c.Names
	}
	switch {
	case len(authorization) == 1 && authorization[0] != "":
		s.Authorization = authorization[0]
	case len(authorization) > 0:
		s.Authorization = " " // it was sent, and is no token
	}
	return s
}

// Admit returns a request that knows who asks (rights.CallerOf), if that one has what its
// route takes. The error is problem.ErrUnauthenticated or problem.ErrForbidden.
func (g *Guard) Admit(r *http.Request) (*http.Request, error) {
	if g == nil {
		return r, nil
	}
	need := needOf(r)
	ctx, caller, err := g.Rights.Admit(r.Context(), shown(web.ClientOf(r.Context()), r.Header["Authorization"]))
	if need == rights.Nothing() {
		if err != nil { // a probe that sends an old token is answered all the same
			ctx = rights.With(r.Context(), rights.Of("", false))
		}
		return r.WithContext(ctx), nil
	}
	if err == nil {
		audit.NoteOf(r.Context()).Who(caller.Name())
		err = caller.May(need)
	}
	if err != nil {
		return r, err
	}
	return r.WithContext(ctx), nil
}

// AdmitKey says in a request for a key who asks. Whether that one may is for api.Keys. The
// error is problem.ErrUnauthenticated.
func (g *Guard) AdmitKey(q *api.KeyRequest) (err error) {
	if g == nil {
		return nil
	}
	var names []string
	if q.Client != nil {
		names = q.Client.Names
	}
	if strings.Contains(q.Query, "min_revision") { // else it does not wait for long
		shown := rights.Shown{Names: names, Authorization: q.Authorization}
		q.Still = func(n rights.Need) error { return g.Rights.Still(shown, n) }
	}
	q.Caller, err = g.Rights.Table().Identify(names, q.Authorization)
	return err
}

// Told counts a refusal, and returns what a client is told of an error. Who has no right to the
// status of the node is told, where it takes no right to ask, that something is wrong with the
// node, and not what. r is nil for a key.
func (g *Guard) Told(r *http.Request, err error) error {
	if g == nil || err == nil {
		return err
	}
	g.Rights.Failed(err)
	if r == nil || problem.Of(err).Status < http.StatusInternalServerError || needOf(r) != rights.Nothing() {
		return err
	}
	s := shown(web.ClientOf(r.Context()), r.Header["Authorization"])
	caller, unknown := g.Rights.Table().Identify(s.Names, s.Authorization)
	if unknown == nil && caller.May(rights.OfNode(rights.Status)) == nil {
		return err
	}
	return problem.Bare(err)
}
