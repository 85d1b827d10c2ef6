package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/access"
	"raftkv/internal/api"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// rightsFile is a file of rights for tests, which can be changed.
type rightsFile struct {
	*testing.T
	*access.Guard
	name string
}

// newRightsFile returns the guard of a file. Each TOKEN(x) in its text stands for the hash of x.
func newRightsFile(t *testing.T, text string) *rightsFile {
	f := &rightsFile{T: t, name: filepath.Join(t.TempDir(), "rights.yaml")}
	f.write(text)
	guard, err := access.Open(zap.NewNop(), f.name)
	testkit.Must(t, err)
	f.Guard = guard
	return f
}

// change changes the file, and has the guard look at it.
func (f *rightsFile) change(text string) {
	f.Helper()
	f.write(text)
	f.Rights.Look()
	testkit.Must(f.T, f.Rights.Trouble())
}

func (f *rightsFile) write(text string) {
	f.Helper()
	for {
		before, rest, ok := strings.Cut(text, "TOKEN(")
		if !ok {
			break
		}
		token, behind, _ := strings.Cut(rest, ")")
		sum := sha256.Sum256([]byte(token))
		text = before + `"sha256:` + hex.EncodeToString(sum[:]) + `"` + behind
	}
	testkit.Must(f.T, os.WriteFile(f.name, []byte(text), 0o600))
}

// rightsOfTests are one entry for each right, named as its token is. Who is poor has one
// right, on a key that no test asks for.
const rightsOfTests = `
entries:
- {name: poor, tokens: TOKEN(poor), rights: [{right: [read, write], keys: [elsewhere]}]}
- {name: read, tokens: TOKEN(read), rights: [{right: read, prefixes: ['']}]}
- {name: write, tokens: TOKEN(write), rights: [{right: write, prefixes: ['']}]}
- {name: both, tokens: TOKEN(both), rights: [{right: read, prefixes: ['']}, {right: write, prefixes: ['']}]}
- {name: scoped, tokens: TOKEN(scoped), rights: [{right: [read, write], prefixes: [in/], keys: [one]}]}
- {name: two, tokens: TOKEN(two), rights: [{right: [read, write], prefixes: [in/, out/]}]}
- {name: backup, tokens: TOKEN(backup), rights: [{right: backup}]}
- {name: status, tokens: TOKEN(status), rights: [{right: status}]}
- {name: admin, tokens: TOKEN(admin), rights: all}
`

// rightsTokens are the tokens of rightsOfTests; "" sends none, and wrong is nobody's.
var rightsTokens = []string{"", "wrong", "poor", "read", "write", "both", "scoped", "two", "backup", "status", "admin"}

// rightsCase is a request, and who may send it: the tokens, with spaces between. Who may do so
// without a token is "anybody".
type rightsCase struct {
	route        string // as the description of the API has it
	target, body string
	may          string
}

// rightsCases has each route and method of the API, and each way to a key.
var rightsCases = []rightsCase{
	{"GET /", "/", "", "anybody"},
	{"GET /v1/errors", "/v1/errors", "", "anybody"},
	{"GET /v1/openapi.yaml", "/v1/openapi.yaml", "", "anybody"},
	{"GET /livez", "/livez", "", "anybody"},
	{"GET /readyz", "/readyz", "", "anybody"},
	{"GET /readyz", "/readyz?verbose", "", "status admin"},
	{"GET /readyz", "/readyz?x=verbose", "", "status admin"},
	{"GET /metrics", "/metrics", "", "status admin"},
	{"GET /v1/status", "/v1/status", "", "status admin"},
	{"GET /v1/members", "/v1/members", "", "status admin"},
	{"GET /v1/members/{id}", "/v1/members/1", "", "status admin"},
	{"POST /v1/members", "/v1/members", `{"peer_url":"http://127.0.0.1:1"}`, "admin"},
	{"PATCH /v1/members/{id}", "/v1/members/2", `{"role":"voter"}`, "admin"},
	{"DELETE /v1/members/{id}", "/v1/members/2", "", "admin"},
	{"POST /{key}", "/4", "http://127.0.0.1:1", "admin"},
	{"DELETE /{key}", "/4", "", "admin"},
	{"DELETE /{key}", "/in/k", "", "admin"},
	{"POST /v1/leader", "/v1/leader", `{"id":2}`, "admin"},
	{"GET /debug/pprof", "/debug/pprof", "", "admin"},
	{"POST /debug/pprof", "/debug/pprof", "", "admin"},
	{"GET /debug/pprof/", "/debug/pprof/", "", "admin"},
	{"POST /debug/pprof/", "/debug/pprof/", "", "admin"},
	{"GET /debug/pprof/{profile}", "/debug/pprof/cmdline", "", "admin"},
	{"POST /debug/pprof/{profile}", "/debug/pprof/symbol", "", "admin"},
	{"GET /v1/snapshot", "/v1/snapshot", "", "backup admin"},

	{"GET /{key}", "/in/k", "", "read both scoped two admin"},
	{"GET /{key}", "/out/k", "", "read both two admin"},
	{"GET /{key}", "/one", "", "read both scoped admin"},
	{"PUT /{key}", "/in/k", "v", "write both scoped two admin"},
	{"PUT /{key}", "/out/k", "v", "write both two admin"},
	{"PUT /{key}", "/elsewhere", "v", "poor write both admin"},
	{"GET /v1/kv/{key}", "/v1/kv/in/k", "", "read both scoped two admin"},
	{"GET /v1/kv/{key}", "/v1/kv/out/k?consistency=stale", "", "read both two admin"},
	{"GET /v1/kv/{key}", "/v1/kv/out/k?wait=1ms", "", "read both two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/out/k", "v", "write both two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/out/k?ttl=30s", "v", "write both two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/out/k?lease=1", "v", "write both two admin"}, // the keys of a lease
	{"DELETE /v1/kv/{key}", "/v1/kv/in/k", "", "write both scoped two admin"},
	{"DELETE /v1/kv/{key}", "/v1/kv/out/k", "", "write both two admin"},

	// Escapes. A key is what the path says, literally, and what it says decoded once.
	{"PUT /v1/kv/{key}", "/v1/kv/in/../out/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in%2F..%2Fout/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in/%2e%2e/out/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/%69n/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv//in/k", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/./in/k", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/out/../in/k", "v", "write both two admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in%252Fk", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in%5Ck", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/In/k", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/in", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/one/", "v", "write both admin"},
	{"PUT /v1/kv/{key}", "/v1/kv/one%20", "v", "write both admin"},
	{"PUT /{key}", "//in/k", "v", "write both admin"},
	{"PUT /{key}", "/in/../out/k", "v", "write both scoped two admin"},
	{"PUT /{key}", "/in%2Fk", "v", "write both scoped two admin"},
	{"GET /{key}", "/in//k", "", "read both scoped two admin"},
	{"GET /{key}", "/./in/k", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?key=in/k", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?key=out%2Fk", "", "read both two admin"},
	{"GET /v1/kv", "/v1/kv?key=%2Fin/k", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?key=in/../out/k", "", "read both scoped two admin"},
	{"PUT /v1/kv", "/v1/kv?key=in/k", "v", "write both scoped two admin"},
	{"PUT /v1/kv", "/v1/kv?key=out/k", "v", "write both two admin"},
	{"DELETE /v1/kv", "/v1/kv?key=out/k", "", "write both two admin"},

	// A range lies in one prefix, or is refused.
	{"GET /v1/kv", "/v1/kv", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?prefix=", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?prefix=in", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?prefix=in/", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?prefix=in%2Fa", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?prefix=one", "", "read both admin"}, // also one2
	{"GET /v1/kv", "/v1/kv?prefix=in/&start=a&end=z", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?start=in/&end=in0", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?start=in/&end=in00", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?start=in/", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?start=in/a&end=out/b", "", "read both admin"}, // not in one
	{"GET /v1/kv", "/v1/kv?start_after=in/", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?prefix=i&start=in/&end=in/b", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?start=in/&end=in0&after_revision=1", "", "read both admin"}, // it waits for the prefix
	{"GET /v1/kv", "/v1/kv?count=true", "", "read both admin"},
	{"GET /v1/kv", "/v1/kv?prefix=in/&count=true", "", "read both scoped two admin"},
	{"GET /v1/kv", "/v1/kv?delimiter=/&keys_only=true&reverse=true", "", "read both admin"},
	{"POST /v1/kv", "/v1/kv?prefix=in/", "v", "write both scoped two admin"},
	{"POST /v1/kv", "/v1/kv?prefix=in", "v", "write both admin"},
	{"POST /v1/kv", "/v1/kv?prefix=out/&lease=1", "v", "write both two admin"},
	{"DELETE /v1/kv", "/v1/kv?prefix=in/", "", "write both scoped two admin"},
	{"DELETE /v1/kv", "/v1/kv?prefix=in/&limit=1", "", "write both scoped two admin"},
	{"DELETE /v1/kv", "/v1/kv?prefix=in", "", "write both admin"},
	{"DELETE /v1/kv", "/v1/kv?all=true", "", "write both admin"},
	{"GET /v1/watch", "/v1/watch", "", "read both admin"},
	{"GET /v1/watch", "/v1/watch?prefix=", "", "read both admin"},
	{"GET /v1/watch", "/v1/watch?prefix=in/", "", "read both scoped two admin"},
	{"GET /v1/watch", "/v1/watch?prefix=in", "", "read both admin"},
	{"GET /v1/watch", "/v1/watch?key=one", "", "read both scoped admin"},
	{"GET /v1/watch", "/v1/watch?key=out/k", "", "read both two admin"},
	{"GET /v1/watch", "/v1/watch?prefix=in/&prefix=out/", "", "read both two admin"},
	{"GET /v1/watch", "/v1/watch?prefix=in/&key=in/k&key=k", "", "read both admin"},
	{"GET /v1/watch", "/v1/watch?key=in/k&prefix=", "", "read both admin"},
	{"GET /v1/watch", "/v1/watch?state=true&prefix=out/", "", "read both two admin"},
	{"POST /v1/add", "/v1/add?key=in/n", "1", "both scoped two admin"},
	{"POST /v1/add", "/v1/add?key=out/n", "1", "both two admin"},

	// A transaction takes the rights of if, then and else, whichever it carries out.
	{"POST /v1/txn", "/v1/txn", `{}`, "poor read write both scoped two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"put":{"key":"in/k","value":"v"}}]}`, "write both scoped two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"put":{"key":"out/k","value":"v"}}]}`, "write both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"put":{"key":"out/k","value":"v","lease":1}}]}`, "write both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"put":{"key":"in/k","value":"v"}}],"else":[{"put":{"key":"out/k","value":"v"}}]}`, "write both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"if":[{"key":"in/k","exists":true}],"then":[{"delete":{"key":"in/k"}}],"else":[{"delete":{"key":"out/k"}}]}`, "both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"if":[{"key":"out/k","exists":true}],"then":[{"put":{"key":"in/k","value":"v"}}]}`, "both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"if":[{"key":"out/k","value":"secret"}]}`, "read both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"if":[{"key":"in/k","lease":7},{"prefix":"out/","exists":false}]}`, "read both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"if":[{"prefix":"in","exists":false}]}`, "read both admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"get":{"key":"in/k"}},{"get":{"key":"out/k"}}]}`, "read both two admin"},
	{"POST /v1/txn?consistency=stale", "/v1/txn?consistency=stale", `{"else":[{"get":{"key":"out/k"}}]}`, "read both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"list":{"prefix":"in/"}}]}`, "read both scoped two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"list":{"prefix":"in"}}]}`, "read both admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"list":{"prefix":"","start_after":"in/"}}]}`, "read both admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"add":{"key":"in/n","delta":"1"}}]}`, "both scoped two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"add":{"key":"out/n","delta":"1"}}]}`, "both two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"append":{"prefix":"in/","value":"v"}}]}`, "write both scoped two admin"},
	{"POST /v1/txn", "/v1/txn", `{"then":[{"append":{"prefix":"in","value":"v"}}]}`, "write both admin"},

	{"POST /v1/leases", "/v1/leases", `{"ttl":"30s"}`, "poor write both scoped two admin"},
	{"GET /v1/leases", "/v1/leases", "", "poor write both scoped two admin"},
	{"GET /v1/leases/{id}", "/v1/leases/1", "", "poor write both scoped two admin"},
	{"PUT /v1/leases/{id}", "/v1/leases/1", "", "poor write both scoped two admin"},
	{"DELETE /v1/leases/{id}", "/v1/leases/77", "", "poor write both scoped two admin"},

	// What is no route takes all rights, so that none comes in by being forgotten.
	{"", "/v1/nosuch", "", "admin"},
	{"", "/ui", "", "admin"},
	{"", "/debug/vars", "", "admin"},
}

// rightsTest is a node with the rights of rightsOfTests, behind the front.
type rightsTest struct {
	*apiTest
	l      *stoppableListener
	client *http.Client
	// anew has the next request come on a connection of its own: one that was handed over stays
	// with net/http.
	anew func()
}

func newRightsTest(t *testing.T, http2 bool) *rightsTest {
	at := newLeaseTest(t)
	at.a.txns.Commands.Propose = at.a.leases.Commands.Propose
	at.level(state.ProgramLevel)
	at.a.profiles = true
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) { return reconfig.Reply{ID: max(r.ID, 2)}, nil }
	at.watches()
	now := time.Now()
	at.node.contacts.Leader = &now
	at.a.guard = newRightsFile(t, rightsOfTests).Guard
	l, err := listenWithFront("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()), nil, at.a.keys.MaxValue, zap.NewNop())
	testkit.Must(t, err)
	var h http.Handler = at.a
	l.handler.Store(&h)
	l.front.Handle(plainRequests{at.a})
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		testkit.Must(t, l.close())
	})
	return &rightsTest{at, l, &http.Client{
		Transport: openapitest.Transport(t, tr), Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, tr.CloseIdleConnections}
}

// send sends a request with a token and returns the status and the code of a problem. A stream
// is not read.
func (rt *rightsTest) send(method, target, body, token string, headers ...string) (status int, code string, header http.Header) {
	rt.Helper()
	ctx, end := context.WithTimeout(rt.Context(), 20*time.Second)
	defer end()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+rt.l.Addr().String()+target, strings.NewReader(body))
	testkit.Must(rt, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := rt.client.Do(r)
	if err != nil {
		rt.Fatalf("%s %s: %v", method, target, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 400 {
		text, _ := io.ReadAll(resp.Body)
		if _, rest, ok := strings.Cut(string(text), `"code":"`); ok {
			code, _, _ = strings.Cut(rest, `"`)
		}
	}
	return resp.StatusCode, code, resp.Header
}

// check sends a request with each token, and looks who may.
func (rt *rightsTest) check(c *rightsCase, method string, headers ...string) {
	rt.Helper()
	rt.anew()
	for _, token := range rightsTokens {
		status, code, header := rt.send(method, c.target, c.body, token, headers...)
		want := "forbidden"
		switch {
		case c.may == "anybody" || slices.Contains(strings.Fields(c.may), token):
			want = "that one may"
		case token == "" || token == "wrong":
			want = "unauthenticated"
		}
		got := "that one may"
		switch {
		case status == 401:
			got = "unauthenticated"
		case status == 403:
			got = "forbidden"
		}
		if got != want || status >= 400 && method != "HEAD" && (status == 401 || status == 403) != (code == want) {
			rt.Errorf("%s %s %s as %q: %d %s, want: %s", method, c.target, c.body, token, status, code, want)
		}
		if challenge := header.Get("WWW-Authenticate"); (challenge == "Bearer") != (status == 401) {
			rt.Errorf("%s %s as %q: %d with WWW-Authenticate %q", method, c.target, token, status, challenge)
		}
	}
}

// Guarantee: each route of the API, and each way to a key, is open to whoever has the rights
// for it and to nobody else, on the fast path, handed over, and by HTTP/2. A route that
// is described and not tried here fails.
func TestRightsOfAllRoutes(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range rightsCases {
		route, _, _ := strings.Cut(c.route, "?")
		tried[route] = true
	}
	for _, path := range served(t).Paths() {
		for _, method := range served(t).Methods(path) {
			if method != http.MethodHead && !tried[method+" "+path] {
				t.Errorf("nobody knows who may %s %s", method, path)
			}
		}
	}
	for name, headers := range map[string][]string{"fast": nil, "handed over": {"Te", "trailers"}, "HTTP2": nil} {
		t.Run(name, func(t *testing.T) {
			rt := newRightsTest(t, name == "HTTP2")
			for i := range rightsCases {
				c := &rightsCases[i]
				method, _, _ := strings.Cut(c.route, " ")
				if method == "" {
					method = "GET"
				}
				rt.check(c, method, headers...)
				if method == "GET" && !strings.Contains(c.target, "wait=") {
					rt.check(c, "HEAD", headers...)
				}
			}
		})
	}
}

// Guarantee: what takes two rights takes both of the same key, and not each of some key. A
// condition in a header takes no right to read.
func TestRightsOfTheSameKey(t *testing.T) {
	rt := newRightsTest(t, false)
	rt.a.guard = newRightsFile(t, `
entries:
- {name: reader, tokens: TOKEN(reader), rights: [{right: read, prefixes: [out/]}, {right: write, prefixes: [in/]}]}
- {name: writer, tokens: TOKEN(writer), rights: [{right: write, prefixes: [out/]}, {right: read, prefixes: [in/]}]}
`).Guard
	for _, token := range []string{"reader", "writer"} {
		for _, tt := range [][3]string{
			{"POST", "/v1/add?key=out/n", "1"}, {"POST", "/v1/add?key=in/n", "1"},
			{"POST", "/v1/txn", `{"then":[{"add":{"key":"out/n","delta":"1"}}]}`},
			{"POST", "/v1/txn", `{"if":[{"key":"in/k","exists":false},{"key":"out/k","exists":false}],"then":[{"put":{"key":"out/k","value":"v"}}]}`},
		} {
			if status, code, _ := rt.send(tt[0], tt[1], tt[2], token); status != 403 {
				t.Errorf("%s as %s: %d %s", tt, token, status, code)
			}
		}
	}
	if status, code, _ := rt.send("PUT", "/v1/kv/out/k", "v", "writer", "If-None-Match", "*"); status != 201 {
		t.Errorf("%d %s", status, code)
	}
	if status, code, header := rt.send("PUT", "/v1/kv/out/k", "v", "writer", "If-None-Match", "*"); status != 412 || header.Get("ETag") == "" {
		t.Errorf("%d %s %v", status, code, header)
	}
	if status, code, _ := rt.send("GET", "/v1/kv/out/k", "", "writer"); status != 403 {
		t.Errorf("%d %s", status, code)
	}
}

// Guarantee: a request that is refused looks nothing up, and waits for nothing that others
// hold: here nobody gets at the state while the refusals are answered.
func TestRightsLookNothingUp(t *testing.T) {
	rt := newRightsTest(t, false)
	for range cap(rt.a.lists.Slots) {
		rt.a.lists.Slots <- struct{}{} // lists are overloaded
	}
	asked, proposed := rt.asked, rt.proposed
	rt.kv.mu.Lock()
	defer rt.kv.mu.Unlock()
	for i := range rightsCases {
		c := &rightsCases[i]
		method, _, _ := strings.Cut(c.route, " ")
		for _, token := range rightsTokens {
			if method == "" || c.may == "anybody" || slices.Contains(strings.Fields(c.may), token) {
				continue
			}
			for _, headers := range [][]string{nil, {"Te", "trailers"}, {"Accept", "application/x-ndjson"}} {
				if len(headers) > 0 && headers[0] == "Accept" && slices.ContainsFunc([]string{"count=", "delimiter=", "after_revision="}, func(p string) bool { return strings.Contains(c.target, p) }) { // what no stream takes
					continue
				}
				if status, code, _ := rt.send(method, c.target, c.body, token, headers...); status != 401 && status != 403 {
					rt.Errorf("%s %s as %q: %d %s", method, c.target, token, status, code)
				}
			}
		}
	}
	if rt.asked != asked || rt.proposed != proposed {
		rt.Errorf("%d confirmations and %d proposals came of requests that were refused", rt.asked-asked, rt.proposed-proposed)
	}
}

// Guarantee: an escape in a path does not reach another key than the one that the right was
// asked for.
func TestRightsEscapes(t *testing.T) {
	rt := newRightsTest(t, false)
	rt.send("PUT", "/v1/kv/out/k", "safe", "admin")
	for _, path := range []string{"/v1/kv/in/../out/k", "/v1/kv/in/%2e%2e/out/k", "/v1/kv/in%2F..%2Fout%2Fk", "/in/../out/k", "/in/%2E%2E/out/k", "/v1/kv/in//../out/k", "/v1/kv/in/..%2fout/k"} {
		for _, headers := range [][]string{nil, {"Te", "trailers"}} {
			if status, code, _ := rt.send("PUT", path, "taken", "scoped", headers...); status >= 300 {
				t.Errorf("%s: %d %s", path, status, code)
			}
		}
	}
	it, _ := rt.kv.Get("out/k")
	if it == nil || it.Value != "safe" {
		t.Errorf("out/k is %+v", it)
	}
	for _, target := range []string{"/v1/kv/in/k?key=out/k", "/v1/kv?key=in/k&key=out/k", "/v1/kv?prefix=in/&prefix=out/", "/v1/add?key=in/k&key=out/k", "/v1/kv?prefix=in/&prefix="} {
		method := "GET"
		if strings.HasPrefix(target, "/v1/add") {
			method = "POST"
		}
		if status, code, _ := rt.send(method, target, "", "scoped"); status != 400 {
			t.Errorf("%s: %d %s, want 400", target, status, code)
		}
	}
}

// Guarantee: what Authorization says is understood in one way, by whichever way it comes; a
// token beside another, an empty field or another scheme is nobody's.
func TestRightsAuthorization(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		rt := newRightsTest(t, http2)
		rt.a.guard = newRightsFile(t, rightsOfTests+"anonymous:\n- {right: read, prefixes: [open/]}\n").Guard
		for _, tt := range []struct {
			headers []string
			want    int
		}{
			{[]string{"Authorization", "Bearer read"}, 404},
			{[]string{"Authorization", "bearer   read"}, 404},
			{[]string{"Authorization", "Bearer read", "Te", "trailers"}, 404},
			{[]string{"Authorization", ""}, 401},
			{[]string{"Authorization", "Bearer"}, 401},
			{[]string{"Authorization", "Basic cmVhZA=="}, 401},
			{[]string{"Authorization", "read"}, 401},
			{[]string{"Authorization", "Bearer read", "Authorization", "Bearer read"}, 401},
			{[]string{"Authorization", "Bearer read", "Authorization", "Bearer wrong"}, 401},
			{[]string{"Authorization", "", "Authorization", "Bearer read"}, 401},
			{[]string{"Proxy-Authorization", "Bearer read"}, 401},
			{[]string{"Cookie", "Authorization=Bearer read"}, 401},
			{nil, 401},
		} {
			rt.anew()
			if status, _, _ := rt.send("GET", "/v1/kv/none", "", "", tt.headers...); status != tt.want {
				t.Errorf("HTTP/2 %v: %q: %d, want %d", http2, tt.headers, status, tt.want)
			}
			want := tt.want // where nobody has to show anything, what is shown must be right all the same
			if !slices.Contains(tt.headers, "Authorization") {
				want = 404
			}
			rt.anew()
			if status, _, _ := rt.send("GET", "/v1/kv/open/none", "", "", tt.headers...); status != want {
				t.Errorf("HTTP/2 %v: %q: %d, want %d for what is open", http2, tt.headers, status, want)
			}
		}
		if status, _, _ := rt.send("GET", "/v1/kv/none?access_token=read", "", ""); status != 401 {
			t.Errorf("a token in the URL: %d", status)
		}
		if status, _, _ := rt.send("GET", "/livez", "", "wrong"); status != 200 {
			t.Errorf("/livez with a wrong token: %d", status)
		}
	}
}

// Guarantee: the fast path stays fast where there are rights: with a token, and without one.
func TestRightsOnTheFastPath(t *testing.T) {
	rt := newRightsTest(t, false)
	before := handedOver(t, rt.l)
	for range 10 {
		rt.send("PUT", "/v1/kv/in/k", "v", "scoped")
		rt.send("GET", "/v1/kv/in/k", "", "scoped")
		rt.send("GET", "/v1/kv/out/k", "", "scoped")
		rt.send("GET", "/v1/kv/in/k", "", "")
		rt.send("GET", "/v1/kv/in/k", "", "wrong")
	}
	if after := handedOver(t, rt.l); after != before {
		t.Errorf("%v connections were handed over", after-before)
	}
}

// Guarantee: a probe says to whoever has no right to know more no more than that something is
// wrong; to whom has it, what.
func TestRightsOfProbes(t *testing.T) {
	rt := newRightsTest(t, false)
	rt.srv.caughtUp.Store(false)
	ask := func(target, token string) string {
		r := rt.request("GET", target, nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := rt.serve(r)
		if w.Code != 503 {
			t.Errorf("%s as %q: %d", target, token, w.Code)
		}
		return w.Body.String()
	}
	for _, token := range []string{"", "wrong", "read", "write"} {
		if text := ask("/readyz", token); strings.Contains(text, "not yet true") || !strings.Contains(text, `"code":"not_ready"`) {
			t.Errorf("as %q: %s", token, text)
		}
	}
	for _, token := range []string{"status", "admin"} {
		if text := ask("/readyz", token); !strings.Contains(text, "not yet true") {
			t.Errorf("as %q: %s", token, text)
		}
		if text := ask("/readyz?verbose", token); !strings.Contains(text, "FAIL") {
			t.Errorf("as %q: %s", token, text)
		}
	}
}

// Guarantee: while a node ends, what takes no right does not say to whoever has none why.
func TestRightsWhileItEnds(t *testing.T) {
	rt := newRightsTest(t, false)
	life, end := context.WithCancelCause(context.Background())
	end(errors.New("the disk of /data is broken"))
	rt.a.ends.Life = life
	for _, target := range []string{"/", "/livez", "/readyz", "/v1/errors"} {
		for _, token := range []string{"", "wrong", "read", "status", "admin"} {
			r := rt.request("GET", target, nil)
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			w := rt.serve(r)
			says := strings.Contains(w.Body.String(), "broken")
			if may := token == "status" || token == "admin"; w.Code != 500 || says != may {
				t.Errorf("%s as %q: %d %s", target, token, w.Code, w.Body)
			}
		}
	}
}

// Guarantee: what is refused is counted by why, on the fast path, too.
func TestRightsAreCounted(t *testing.T) {
	rt := newRightsTest(t, false)
	rt.srv.register(rt.a.guard)
	for range 3 {
		rt.send("GET", "/v1/kv/out/k", "", "scoped")
		rt.send("GET", "/v1/kv/out/k", "", "scoped", "Te", "trailers")
		rt.send("GET", "/v1/kv/out/k", "", "wrong")
		rt.send("GET", "/v1/status", "", "")
	}
	rt.send("GET", "/v1/kv/in/k", "", "scoped")
	text := rt.do("GET", "/metrics", "", "Authorization", "Bearer status").Body.String()
	for _, want := range []string{`raftkv_auth_failures_total{reason="forbidden"} 6`, `raftkv_auth_failures_total{reason="unauthenticated"} 6`, "raftkv_auth_trouble 0"} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}

// Guarantee: a node whose file of rights is missing or wrong does not start.
func TestRightsFailClosed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "rights.yaml")
	for _, text := range []string{"", "entries:\n- {name: a}"} {
		if text != "" {
			testkit.Must(t, os.WriteFile(name, []byte(text), 0o600))
		}
		if guard, err := access.Open(zap.NewNop(), name); err == nil || guard != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if guard, err := access.Open(zap.NewNop(), ""); guard != nil || err != nil {
		t.Errorf("without a file: %v, %v", guard, err)
	}
}

// Guarantee: rights are looked at by a request for a key whichever way it comes to api.Keys.
func TestRightsOfKeyRequests(t *testing.T) {
	at := newAPITest(t)
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
		q := &api.KeyRequest{Method: method, Key: "k", Long: true, Caller: rights.Of("a", false)}
		if at.a.keys.Check(q) || problem.CodeOf(q.Answer.Err) != "forbidden" {
			t.Errorf("%s: %v", method, q.Answer.Err)
		}
	}
}

// handedOver returns how many connections the front has given away.
func handedOver(t *testing.T, l *stoppableListener) (n float64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	l.front.Register(reg)
	families, err := reg.Gather()
	testkit.Must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "raftkv_front_requests_total" && m.GetLabel()[0].GetValue() != "served" {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}
