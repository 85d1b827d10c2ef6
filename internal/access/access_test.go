package access

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"raftkv/internal/api"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Guarantee: every route that is described has its needs, and none has that is not described. What
// is forgotten takes all rights.
func TestRoutesAreDescribed(t *testing.T) {
	d, err := openapitest.Served()
	testkit.Must(t, err)
	described := map[string]bool{}
	for _, path := range d.Paths() {
		for _, method := range d.Methods(path) {
			if method == http.MethodHead {
				method = http.MethodGet
			}
			described[method+" "+path] = true
			if routes[method+" "+path] == nil {
				t.Errorf("nobody knows what %s %s takes", method, path)
			}
		}
	}
	for route := range routes {
		if !described[route] {
			t.Errorf("%s is not described", route)
		}
	}
}

// Guarantee: a path finds the route by which it is served.
func TestRouteOf(t *testing.T) {
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/", "GET /"},
		{"HEAD", "/a", "GET /{key}"},
		{"PUT", "/a/b", "PUT /{key}"},
		{"POST", "/4", "POST /{key}"},
		{"DELETE", "/a/b", "DELETE /{key}"},
		{"PATCH", "/a", "PATCH /{key}"}, // which there is not
		{"GET", "/v1/kv", "GET /v1/kv"},
		{"GET", "/v1/kv/", "GET /v1/kv/{key}"},
		{"DELETE", "/v1/kv//a", "DELETE /v1/kv/{key}"},
		{"POST", "/v1/kv/a", "POST /v1/kv/a"}, // which there is not
		{"GET", "//v1/kv", "GET /{key}"},      // the key /v1/kv
		{"GET", "/v1", "GET /v1"},
		{"GET", "/v1/", "GET /v1/"},
		{"GET", "/v1/status/", "GET /v1/status/"},
		{"GET", "/V1/status", "GET /{key}"},
		{"GET", "/v1/members/1", "GET /v1/members/{id}"},
		{"GET", "/v1/members/", "GET /v1/members/"},
		{"GET", "/v1/leases/1/2", "GET /v1/leases/{id}"},
		{"GET", "/debug/pprof", "GET /debug/pprof"},
		{"GET", "/debug/pprof/", "GET /debug/pprof/"},
		{"GET", "/debug/pprof/heap", "GET /debug/pprof/{profile}"},
		{"GET", "/livez/a", "GET /livez/a"},
		{"GET", "/metrics/../v1/errors", "GET /metrics/../v1/errors"},
	} {
		if got := routeOf(tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s is %s, want %s", tt.method, tt.path, got, tt.want)
		}
	}
}

func newGuard(t *testing.T, text string) *Guard {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rights.yaml")
	testkit.Must(t, os.WriteFile(name, []byte(text), 0o600))
	g, err := Open(zap.NewNop(), name)
	testkit.Must(t, err)
	return g
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Guarantee: the names of a client certificate say who asks, on both ways to a key, unless a token
// is sent, which decides alone.
func TestGuardKnowsCertificates(t *testing.T) {
	g := newGuard(t, `
entries:
- {name: web, cert: web.example, rights: [{right: read, prefixes: [public/]}]}
- {name: deployer, tokens: `+hashOf("t")+`, rights: [{right: [read, write], prefixes: ['']}]}
`)
	for _, tt := range []struct {
		names         []string
		authorization string
		want          string // the name, or the code of the problem
	}{
		{[]string{"web.example"}, "", "web"},
		{[]string{"web.example"}, "Bearer t", "deployer"},
		{[]string{"web.example"}, "Bearer wrong", "unauthenticated"},
		{[]string{"1.raftkv"}, "", "unauthenticated"},
		{nil, "", "unauthenticated"},
		{nil, "Bearer t", "deployer"},
	} {
		client := web.NewClient("127.0.0.1:1", true, tt.names, func() {})
		r := httptest.NewRequest("GET", "/v1/kv/public/a", nil)
		r = r.WithContext(web.WithClient(r.Context(), client))
		if tt.authorization != "" {
			r.Header.Set("Authorization", tt.authorization)
		}
		got := ""
		admitted, err := g.Admit(r)
		if err != nil {
			got = problem.CodeOf(err)
		} else {
			got = rights.CallerOf(admitted.Context()).Name()
		}
		if got != tt.want {
			t.Errorf("%q %q: %s, want %s", tt.names, tt.authorization, got, tt.want)
		}
		q := &api.KeyRequest{Method: "GET", Key: "public/a", Client: client, Authorization: tt.authorization}
		err = g.AdmitKey(q)
		if err == nil {
			err = q.Caller.May(rights.OnKey(rights.Read, q.Key)) // as api.Keys asks
		}
		if err != nil {
			got = problem.CodeOf(err)
		} else {
			got = q.Caller.Name()
		}
		if got != tt.want {
			t.Errorf("a key, %q %q: %s, want %s", tt.names, tt.authorization, got, tt.want)
		}
	}
}

// Guarantee: without a file everybody may do everything, and nothing that is sent matters.
func TestNoGuard(t *testing.T) {
	var g *Guard
	r := httptest.NewRequest("DELETE", "/v1/members/1", nil)
	r.Header.Set("Authorization", "Bearer whatever")
	admitted, err := g.Admit(r)
	if err != nil || rights.CallerOf(admitted.Context()) != nil {
		t.Errorf("%v, %v", rights.CallerOf(admitted.Context()), err)
	}
	q := &api.KeyRequest{Authorization: "Bearer whatever"}
	if err := g.AdmitKey(q); err != nil || q.Caller != nil {
		t.Errorf("%v, %v", q.Caller, err)
	}
	if err := g.Told(r, problem.ErrNotFound); !errors.Is(err, problem.ErrNotFound) {
		t.Error(err)
	}
}

// Guarantee: a request of an open route knows that its caller may do nothing else, also where its
// token is nobody's.
func TestOpenRoutesGiveNothing(t *testing.T) {
	g := newGuard(t, "entries:\n- {name: a, tokens: "+hashOf("t")+", rights: all}\n")
	for _, authorization := range []string{"", "Bearer wrong"} {
		r := httptest.NewRequest("GET", "/readyz", nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		admitted, err := g.Admit(r)
		if err != nil {
			t.Fatal(err)
		}
		if c := rights.CallerOf(admitted.Context()); c == nil || c.Admin() || c.May(rights.OfNode(rights.Status)) == nil {
			t.Errorf("%q: %+v", authorization, c)
		}
	}
}

// Guarantee: the notes, which the metrics port has, too, say that the file is wrong and name
// nobody and no key of it.
func TestNotesNameNobody(t *testing.T) {
	const good = "entries:\n  - name: deployer\n    cert: deployer.example\n    rights:\n      - {right: read, keys: [\"app/salary\"]}\n"
	g := newGuard(t, good)
	file := filepath.Join(t.TempDir(), "rights.yaml")
	for _, text := range []string{
		strings.Replace(good, `"app/salary"`, `"app/salary", "app/salary"`, 1),
		good + strings.TrimPrefix(good, "entries:\n"),
	} {
		testkit.Must(t, os.WriteFile(file, []byte(good), 0o600))
		keeper, err := rights.New(rights.Config{Log: zap.NewNop(), File: file})
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
		keeper.Look()
		g.Rights = keeper
		if notes := g.Notes(); notes == "" || strings.Contains(notes, "deployer") || strings.Contains(notes, "salary") {
			t.Errorf("%q: %s", notes, keeper.Trouble())
		}
	}
}
