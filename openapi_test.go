package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/checker"
	"raftkv/internal/openapi"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// openAPITest is a node to whose clients everything is possible.
type openAPITest struct {
	*apiTest
	url  string
	seen []*openapitest.Exchange
}

func newOpenAPITest(t *testing.T) *openAPITest {
	at := newLeaseTest(t)
	at.a.txns.Commands.Propose = at.a.leases.Commands.Propose
	at.level(state.ProgramLevel)
	at.a.profiles = true
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) { return reconfig.Reply{ID: max(r.ID, 2)}, nil }
	at.srv.members.AskView = func(context.Context, string) (map[uint64]reconfig.View, error) {
		return map[uint64]reconfig.View{2: {Reachable: true, Match: 7, Version: "1.0"}}, nil
	}
	at.watches()
	now := time.Now()
	at.kv.agreement.Seen.Store(&now)
	at.node.contacts.Leader = &now
	srv := httptest.NewServer(at.a)
	t.Cleanup(srv.Close)
	return &openAPITest{apiTest: at, url: srv.URL}
}

// send makes an exchange over a connection, since some answers are streamed.
func (ot *openAPITest) send(method, target, body string, headers ...string) *openapitest.Exchange {
	ot.Helper()
	r, err := http.NewRequestWithContext(ot.Context(), method, ot.url+target, strings.NewReader(body))
	if err != nil {
		ot.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r) // a client would follow where it is led
	if err != nil {
		ot.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var text []byte
	whole := !strings.HasPrefix(target, "/v1/watch") || resp.StatusCode != http.StatusOK
	if whole {
		text, err = io.ReadAll(resp.Body)
	} else {
		text, err = readWatch(resp.Body)
	}
	if err != nil {
		ot.Fatal(err)
	}
	x := openapitest.Of(r, resp.StatusCode, resp.Header, text, whole)
	openapitest.Check(ot, x)
	ot.seen = append(ot.seen, x)
	return x
}

// told is a position that a client can go on from; the 0 of a reset is none.
var told = regexp.MustCompile(`\nid: [1-9]|\n\nid: |"id":[1-9]|"position"`)

// readWatch reads a watch until the client has been told a position, or the node has ended it.
func readWatch(body io.Reader) (text []byte, err error) {
	for in := bufio.NewReader(body); ; {
		line, err := in.ReadBytes('\n')
		text = append(text, line...)
		switch {
		case errors.Is(err, io.EOF):
			return text, nil
		case err != nil:
			return nil, err
		case told.Match(text) && (len(line) == 1 || line[0] == '{'): // and no half of a block
			return text, nil
		}
	}
}

// want is send of what is answered with a status.
func (ot *openAPITest) want(status int, method, target, body string, headers ...string) {
	ot.Helper()
	if x := ot.send(method, target, body, headers...); x.Status != status {
		ot.Errorf("want %d: %s", status, x)
	}
}

func served(t *testing.T) *openapitest.Document {
	t.Helper()
	d, err := openapitest.Served()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Guarantee: a node serves the document that programs read, whatever else it can do.
func TestOpenAPIServed(t *testing.T) {
	at := newAPITest(t)
	at.leaders.Set(0, 2)
	at.fails = problem.ErrNoLeader
	if !strings.Contains(at.do("GET", "/", "").Body.String(), openapi.Path) {
		t.Error("GET / does not name it")
	}
	for _, broken := range []error{nil, problem.ErrDiverged} {
		if broken != nil {
			at.kv.agreement.Verdict.Store(&checker.Verdict{Err: broken})
		}
		w := at.do("GET", openapi.Path, "")
		at.want(w, 200, openapi.Document)
		if got := w.Header().Get("Content-Type"); got != "application/yaml" {
			t.Errorf("the type is %q", got)
		}
		if w := at.do("HEAD", openapi.Path, ""); w.Code != 200 {
			t.Errorf("HEAD: %d", w.Code)
		}
	}
	at.problem("a parameter", at.do("GET", openapi.Path+"?x", ""), 400, "bad_request")
}

// Guarantee: what the server has a route for is in the document, with all methods, and
// what is in the document the server has.
func TestOpenAPIHasAllRoutes(t *testing.T) {
	ot, d := newOpenAPITest(t), served(t)
	for route, handlers := range ot.a.routes {
		methods := slices.Collect(maps.Keys(handlers))
		if handlers["GET"] != nil {
			methods = append(methods, "HEAD")
		}
		slices.Sort(methods)
		if got := d.Methods("/" + route); !slices.Equal(got, methods) {
			t.Errorf("/%s has %v, the document says %v", route, methods, got)
		}
	}
	labels := map[string]bool{"other": true}
	fill := strings.NewReplacer("{key}", "7", "{id}", "7", "{profile}", "cmdline")
	for _, path := range d.Paths() {
		target := fill.Replace(path)
		// What is allowed has to be what the document has: that is checked, as all is.
		if x := ot.send("BREW", target, ""); x.Status != http.StatusMethodNotAllowed && path != "/debug/pprof" {
			t.Errorf("%s", x)
		}
		for _, method := range d.Methods(path) {
			x := ot.send(method, target, "")
			if x.Status == http.StatusMethodNotAllowed || strings.Contains(string(x.Answer), `"no_such_path"`) {
				t.Errorf("the document has %s %s, which is answered with %s", method, path, x)
			}
			labels[web.RouteLabel(method, target, "")] = true
			if d.Takes(path, method, "wait") {
				labels[web.RouteLabel(method, target, "wait=1s")] = true
			}
		}
	}
	for _, label := range web.RouteLabels {
		if !labels[label] {
			t.Errorf("the document has nothing of the route %s", label)
		}
	}
}

// sample makes exchanges of all kinds: each operation, and each answer of it that can be
// had from one node.
func (ot *openAPITest) sample() {
	ot.want(201, "POST", "/v1/leases", `{"ttl":"1h"}`)
	for _, method := range []string{"GET", "HEAD"} {
		for _, target := range []string{"/", "/livez", "/readyz", "/readyz?verbose", "/metrics", "/v1/errors", "/v1/openapi.yaml", "/v1/status",
			"/v1/snapshot?consistency=stale&max_age=1h", "/v1/members", "/v1/members?consistency=stale&max_age=1h", "/v1/members/2", "/v1/members/3?min_revision=0",
			"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/heap?debug=0&gc=1"} {
			ot.want(200, method, target, "")
		}
		ot.want(404, method, "/v1/members/9", "")
		ot.want(404, method, "/debug/pprof/nothing", "")
		ot.want(307, method, "/debug/pprof", "")
		ot.want(404, method, "/v1/leases/9", "")
	}
	for _, target := range []string{"/debug/pprof/", "/debug/pprof/cmdline"} {
		ot.want(200, "POST", target, "")
	}
	ot.want(307, "POST", "/debug/pprof", "")
	ot.keys()
	ot.lists()
	ot.watched()
	ot.transactions()
	ot.leases()
	ot.membersToo()
	ot.refused()
}

func (ot *openAPITest) keys() {
	ot.want(204, "PUT", "/k", "v")
	ot.want(201, "PUT", "/v1/kv/a/b?ttl=1h", "v", "If-None-Match", "*")
	ot.want(204, "PUT", "/v1/kv/a/b", "\xff")
	ot.want(201, "PUT", "/v1/kv?key=a//b", "v")
	ot.want(204, "PUT", "/v1/kv?key=a//b&ttl=1h", "v", "If-Match", "*")
	for _, method := range []string{"GET", "HEAD"} {
		for _, form := range []string{"/k?", "/v1/kv/k?", "/v1/kv?key=k&"} {
			ot.want(200, method, form, "")
			ot.want(200, method, form+"as=text", "")
			ot.want(200, method, form+"consistency=stale&max_age=1h", "")
			ot.want(200, method, form+"min_revision=1", "")
			ot.want(200, method, form+"values=base64", "", "Accept", "application/json")
			ot.want(200, method, form, "", "If-Match", `"1"`)
			ot.want(304, method, form, "", "If-None-Match", `"1"`)
			ot.want(412, method, form, "", "If-Match", `"9"`)
			ot.want(400, method, form+"x=1", "")
			ot.want(421, method, form, "", "Host", "evil.example")
		}
		for _, form := range []string{"/n", "/v1/kv/n", "/v1/kv?key=n"} {
			ot.want(404, method, form, "")
		}
	}
	for _, form := range []string{"/k", "/v1/kv/k", "/v1/kv?key=k"} {
		ot.want(412, "PUT", form, "v", "If-Match", `"9"`)
		ot.want(413, "PUT", form, strings.Repeat("v", 101))
		ot.want(409, "PUT", form+map[bool]string{true: "&", false: "?"}[strings.Contains(form, "?")]+"lease=99", "v")
		ot.want(403, "PUT", form, "v", "Origin", "http://evil.example")
	}
	for _, form := range []string{"/v1/kv/k", "/v1/kv?key=k"} {
		ot.want(412, "DELETE", form, "", "If-Match", `"9"`)
		ot.want(204, "DELETE", form, "", "If-Match", `*`)
		ot.want(404, "DELETE", form, "")
		ot.want(201, "PUT", form, "v")
	}
}

func (ot *openAPITest) lists() {
	for _, method := range []string{"GET", "HEAD"} {
		for _, query := range []string{"", "?count=true", "?prefix=a&start=a&end=b&limit=1&reverse=true&keys_only=true", "?delimiter=/&limit=1", "?start_after=a&consistency=stale"} {
			ot.want(200, method, "/v1/kv"+query, "")
		}
		ot.want(200, method, "/v1/kv?prefix=a", "", "Accept", "application/x-ndjson")
	}
	ot.want(201, "POST", "/v1/kv?prefix=jobs/&ttl=1h", "v")
	ot.want(201, "POST", "/v1/kv?prefix=jobs/", "v")
	ot.want(201, "POST", "/v1/kv?prefix=jobs/", "v")
	ot.want(409, "POST", "/v1/kv?prefix=jobs/&lease=99", "v")
	ot.want(413, "POST", "/v1/kv?prefix=jobs/", strings.Repeat("v", 101))
	ot.want(200, "DELETE", "/v1/kv?prefix=jobs/&limit=1", "")
	ot.want(200, "DELETE", "/v1/kv?prefix=jobs/", "")
	ot.want(400, "DELETE", "/v1/kv", "")
	ot.want(405, "PATCH", "/v1/kv", "")
}

// watched makes exchanges of watches, and of reads that wait.
func (ot *openAPITest) watched() {
	location := ot.send("POST", "/v1/leases", `{"ttl":"1h"}`).Header.Get("Location")
	bound := "/v1/kv/watched/bytes?lease=" + strings.TrimPrefix(location, "/v1/leases/")
	ot.want(201, "PUT", "/v1/kv/watched/text", "v")
	ot.want(201, "PUT", bound, "\xff")
	ot.want(204, "PUT", "/v1/kv/watched/text", "w")
	for n := range 20 {
		ot.want(201, "PUT", fmt.Sprintf("/v1/kv/watched/%d%s", n, strings.Repeat("x", 4000)), "v")
	}
	before := ot.kv.revision.Get()
	ot.want(200, "DELETE", "/v1/kv?prefix=watched/", "") // in parts
	ot.want(201, "PUT", "/v1/kv/watched/text", "v")
	ot.want(201, "PUT", bound, "\xff")
	for _, accept := range []string{"text/event-stream", "application/x-ndjson"} {
		ot.want(200, "HEAD", "/v1/watch?keys_only=true", "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch", "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch?key=k&key=none&prefix=watched/&prefix=a&state=true&values=base64", "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch?prefix=watched/&state=true", "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch?key=watched/text&types=put,expire&after_revision=0", "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch?key=watched/bytes&after_revision=0&keys_only=true", "", "Accept", accept)
		ot.want(200, "GET", fmt.Sprintf("/v1/watch?prefix=watched/&after_revision=%d", before), "", "Accept", accept)
		ot.want(200, "GET", fmt.Sprintf("/v1/watch?prefix=watched/&after_revision=%d", before+1), "", "Accept", accept)
		ot.want(200, "GET", fmt.Sprintf("/v1/watch?prefix=watched/&after_revision=%d", before+2), "", "Accept", accept)
		ot.want(200, "GET", "/v1/watch?after_revision=0", "", "Accept", accept, "Last-Event-ID", "1000")
	}
	ot.want(400, "GET", "/v1/watch?types=all", "")
	for _, method := range []string{"GET", "HEAD"} {
		ot.want(404, method, "/none?wait=1ms", "")
		ot.want(304, method, "/v1/kv/k?wait=1ms", "", "If-None-Match", "*")
		ot.want(200, method, "/v1/kv?prefix=watched/&after_revision=0&wait=1m", "")
		ot.want(304, method, "/v1/kv?prefix=none/&after_revision=0&wait=1ms", "")
	}
	ot.kv.mu.Lock()
	ot.kv.state.Changes.Keep(1<<20, ot.kv.state.Revision) // forgets all
	ot.kv.mu.Unlock()
	for _, accept := range []string{"text/event-stream", "application/x-ndjson"} {
		ot.want(200, "GET", "/v1/watch?after_revision=1", "", "Accept", accept)
	}
	ot.want(200, "DELETE", "/v1/kv?prefix=watched/", "")
	ot.want(204, "DELETE", location, "")
}

func (ot *openAPITest) transactions() {
	ot.want(200, "POST", "/v1/add?key=number&ttl=1h", "41")
	ot.want(200, "POST", "/v1/add?key=number", "1\n", "If-Match", "*")
	for range 2 { // the second has Idempotent-Replayed
		ot.want(200, "POST", "/v1/add?key=number", "1", "Idempotency-Key", `"a";keep=60`)
	}
	ot.want(422, "POST", "/v1/add?key=number", "2", "Idempotency-Key", "a")
	ot.want(409, "POST", "/v1/add?key=k", "1")
	ot.want(412, "POST", "/v1/add?key=number", "1", "If-None-Match", "*")
	ot.want(413, "POST", "/v1/add?key=number", strings.Repeat("1", 65))
	ot.want(200, "POST", "/v1/txn", `{"if":[{"key":"k","exists":true,"mod_revision":0,"create_revision":0,"version":0,"lease":0,"value":"v"},{"key":"k","value_base64":"dg=="},{"prefix":"a","exists":true}],"else":[]}`)
	ot.want(200, "POST", "/v1/txn?values=base64", `{"then":[{"put":{"key":"t","value":"v","ttl":"1h"}},{"put":{"key":"u","value_base64":"/w==","lease":1}},{"delete":{"key":"t2"}},`+
		`{"add":{"key":"number","delta":"-1","ttl":"1h"}},{"append":{"prefix":"jobs/","value":"v"}},{"get":{"key":"t"}},{"get":{"key":"none"}},{"list":{"prefix":"","limit":1,"start_after":"a"}}]}`,
		"Content-Type", "application/json")
	ot.want(200, "POST", "/v1/txn", `{"then":[{"append":{"prefix":"jobs/","value":"v","ttl":"1h"}},{"append":{"prefix":"jobs/","value_base64":"dg==","lease":1}},`+
		`{"add":{"key":"bound/number","delta":"1","lease":1}}]}`)
	ot.want(200, "POST", "/v1/txn?consistency=stale&max_age=1h", `{"then":[{"get":{"key":"u"}}]}`)
	ot.want(200, "POST", "/v1/txn?min_revision=1", `{"then":[{"list":{"prefix":""}}]}`)
	ot.want(409, "POST", "/v1/txn", `{"then":[{"add":{"key":"k","delta":"1"}}]}`)
	ot.want(413, "POST", "/v1/txn", strings.Repeat(" ", 401))
	ot.want(415, "POST", "/v1/txn", `{}`, "Content-Type", "text/plain")
}

func (ot *openAPITest) leases() {
	ot.want(415, "POST", "/v1/leases", `{}`, "Content-Type", "text/plain")
	ot.want(413, "POST", "/v1/leases", strings.Repeat(" ", 4097))
	ot.want(204, "PUT", "/k?lease=1", "v")
	ot.want(201, "PUT", "/v1/kv/bound?lease=1", "v")
	ot.want(201, "PUT", "/v1/kv?key=bound/too&lease=1", "v")
	ot.want(201, "POST", "/v1/kv?prefix=jobs/&lease=1", "v")
	ot.want(200, "POST", "/v1/txn", `{"then":[{"get":{"key":"bound"}}]}`)
	for _, method := range []string{"GET", "HEAD"} {
		ot.want(200, method, "/v1/leases?limit=1&consistency=stale&max_age=1h", "")
		ot.want(200, method, "/v1/leases?start_after=1&min_revision=1", "")
		ot.want(200, method, "/v1/leases/1?limit=1&start_after=a&consistency=stale&max_age=1h", "")
		ot.want(200, method, "/v1/leases/1?min_revision=1", "")
		ot.want(200, method, "/k", "", "Accept", "application/json")
		ot.want(200, method, "/v1/kv", "")
	}
	ot.want(200, "PUT", "/v1/leases/1", "")
	ot.want(200, "DELETE", "/v1/kv?all=true", "")
	ot.want(204, "DELETE", "/v1/leases/1", "")
	ot.want(404, "DELETE", "/v1/leases/1", "")
	ot.want(404, "PUT", "/v1/leases/1", "")
}

func (ot *openAPITest) membersToo() {
	ot.want(204, "POST", "/3", "http://c:3")
	ot.want(204, "DELETE", "/3?force=true", "")
	ot.want(201, "PUT", "/v1/kv/3", "v")
	ot.want(409, "DELETE", "/3", "")
	ot.want(201, "POST", "/v1/members?force=true", `{"peer_url":"http://b:2","id":2,"role":"voter"}`)
	ot.want(200, "PATCH", "/v1/members/2?force=true", `{"peer_url":"http://b:2","role":"voter"}`)
	ot.want(204, "DELETE", "/v1/members/2?force=true", "")
	ot.want(200, "POST", "/v1/leader", `{"id":2}`)
	ot.want(200, "POST", "/v1/leader", "")
	for _, target := range []string{"POST /v1/members", "PATCH /v1/members/2", "POST /v1/leader"} {
		method, path, _ := strings.Cut(target, " ")
		ot.want(415, method, path, `{}`, "Content-Type", "text/plain")
		ot.want(413, method, path, strings.Repeat(" ", 4097))
	}
	for _, tt := range []struct {
		err    error
		status int
		leads  bool // the status and code are for a change of the leader
	}{
		{problem.ErrMemberExists, 409, false}, {problem.ErrMemberUnknown, 404, true}, {problem.ErrNotVoter, 409, true}, {problem.ErrNotHandedOver, 503, true},
	} {
		ot.leader = func(reconfig.Request) (reconfig.Reply, error) {
			return reconfig.Reply{Code: problem.CodeOf(tt.err), Detail: "as it is"}, nil
		}
		if tt.leads {
			ot.want(tt.status, "POST", "/v1/leader", "")
		}
		if tt.err == problem.ErrMemberExists || tt.err == problem.ErrMemberUnknown {
			ot.want(tt.status, "POST", "/4", "http://d:4")
			ot.want(tt.status, "DELETE", "/4", "")
			ot.want(tt.status, "POST", "/v1/members", `{"peer_url":"http://d:4"}`)
			ot.want(tt.status, "PATCH", "/v1/members/4", `{"role":"voter"}`)
			ot.want(tt.status, "DELETE", "/v1/members/4", "")
		}
	}
}

// refused makes answers that are the same for all operations, or nearly.
func (ot *openAPITest) refused() {
	d := served(ot.T)
	fill := strings.NewReplacer("{key}", "7", "{id}", "7", "{profile}", "cmdline")
	each := func(status int, headers ...string) {
		for _, path := range d.Paths() {
			for _, method := range d.Methods(path) {
				if slices.Contains(d.Statuses(path, method), fmt.Sprint(status)) {
					ot.send(method, fill.Replace(path), "", headers...)
				}
			}
		}
	}
	each(421, "Host", "evil.example")
	each(403, "Sec-Fetch-Site", "cross-site")
	for _, path := range d.Paths() {
		for _, method := range d.Methods(path) {
			if !strings.HasPrefix(path, "/debug/") { // where the library reads the query
				ot.want(400, method, fill.Replace(path)+"?nothing=1", "")
			}
		}
	}
	writes := []string{"PUT /k", "PUT /v1/kv/k", "PUT /v1/kv?key=k", "DELETE /v1/kv/k", "DELETE /v1/kv?prefix=x", "POST /v1/kv?prefix=x", "POST /v1/add?key=n",
		"PUT /v1/leases/1", "DELETE /v1/leases/1"}
	for _, err := range []error{problem.ErrNoLeader, problem.ErrOutcomeUnknown, problem.ErrOverloaded, problem.ErrInternal, problem.ErrDiskFull} {
		ot.fails = err
		for _, w := range writes {
			method, target, _ := strings.Cut(w, " ")
			body := "1"
			if strings.HasPrefix(target, "/v1/leases/") {
				body = "" // it takes none
			}
			ot.want(problem.Of(err).Status, method, target, body)
		}
		ot.want(problem.Of(err).Status, "POST", "/v1/txn", `{"then":[{"delete":{"key":"k"}}]}`)
		ot.want(problem.Of(err).Status, "POST", "/v1/leases", `{"ttl":"1h"}`)
	}
	for _, err := range []error{problem.ErrUnavailable, problem.ErrOverloaded, problem.ErrInternal} {
		ot.fails = err
		for _, target := range []string{"/k", "/v1/kv/k", "/v1/kv", "/v1/kv?key=k", "/v1/leases", "/v1/leases/1", "/v1/members", "/v1/members/2", "/v1/snapshot"} {
			for _, method := range []string{"GET", "HEAD"} {
				ot.want(problem.Of(err).Status, method, target, "")
			}
		}
	}
	ot.want(503, "GET", "/k?min_revision=0&max_age=1ms", "")
	ot.fails = nil
	ot.sampleRights()
	ot.a.stopping.Store(true)
	each(503)
}

// sampleRights is what a node with rights answers.
func (ot *openAPITest) sampleRights() {
	ot.a.guard = newRightsFile(ot.T, rightsOfTests).Guard
	for i := range rightsCases {
		c := &rightsCases[i]
		method, _, ok := strings.Cut(c.route, " ")
		if !ok || c.may == "anybody" {
			continue
		}
		ot.want(401, method, c.target, c.body)
		if !strings.Contains(c.may, "poor") {
			ot.want(403, method, c.target, c.body, "Authorization", "Bearer poor")
		}
	}
	granted := ot.send("POST", "/v1/leases", `{"ttl":"1h"}`, "Authorization", "Bearer write")
	for _, target := range []string{"/v1/leases", granted.Header.Get("Location")} {
		ot.want(200, "GET", target, "", "Authorization", "Bearer admin")
	}
	ot.a.guard = nil
}

// notSampled are what no exchange of the sample has. Other tests have some of it.
var notSampled = map[string]bool{
	"schema ErrorLine error":        true, // of a stream that breaks off
	"parameter seconds":             true, // takes a second at least
	"schema ReadTooLarge too_large": true, // of a repeat
	"schema Member doors_differ":    true, // takes a minute
}

// Guarantee: the document has to have all that is used: without a status, a header, a
// property or a parameter of the exchanges of a sample, some exchange is not described.
func TestOpenAPIIsNeeded(t *testing.T) {
	ot := newOpenAPITest(t)
	ot.sample()
	tree, err := openapitest.Parsed()
	testkit.Must(t, err)
	at := func(path ...string) map[string]any {
		node := tree
		for _, name := range path {
			node, _ = node[name].(map[string]any)
		}
		return node
	}
	slices.SortStableFunc(ot.seen, func(a, b *openapitest.Exchange) int { return a.Status - b.Status }) // what says most comes first
	needed := func(seen []*openapitest.Exchange) bool {
		d, err := openapitest.New(tree)
		testkit.Must(t, err)
		return slices.ContainsFunc(seen, func(x *openapitest.Exchange) bool { return d.Check(x) != nil })
	}
	if needed(ot.seen) {
		t.Fatal("the document has not all to begin with")
	}
	without := func(node map[string]any, name string, test func()) {
		kept := node[name]
		delete(node, name)
		test()
		node[name] = kept
	}
	report := func(what string, there bool) {
		if there == notSampled[what] {
			t.Errorf("%s: needed %t, want %t", what, there, !notSampled[what])
		}
	}
	d := served(t)
	used := make(map[string][]*openapitest.Exchange)
	for _, x := range ot.seen {
		if path := d.Path(x); d.Methods(path) != nil && slices.Contains(d.Methods(path), x.Method) {
			id := fmt.Sprint(path, " ", strings.ToLower(x.Method), " ", x.Status)
			used[id] = append(used[id], x)
		}
	}
	of := make(map[string][]*openapitest.Exchange) // the answers that refer to a response
	for id, seen := range used {
		f := strings.Fields(id)
		responses := at("paths", f[0], f[1], "responses")
		ref, _ := responses[f[2]].(map[string]any)["$ref"].(string)
		_, name, _ := strings.Cut(ref, "/responses/")
		of[name] = append(of[name], seen...)
		without(responses, f[2], func() { report("status "+id, needed(seen)) })
	}
	for name := range at("components", "responses") {
		headers := at("components", "responses", name, "headers")
		for header := range maps.Clone(headers) {
			has := func(x *openapitest.Exchange) bool { return x.Header[http.CanonicalHeaderKey(header)] != nil }
			if i := slices.IndexFunc(of[name], has); i >= 0 {
				without(headers, header, func() { report("header "+name+" "+header, needed(of[name][i:i+1])) })
			}
		}
	}
	for name := range at("components", "schemas") {
		properties := at("components", "schemas", name, "properties")
		for property := range maps.Clone(properties) {
			without(properties, property, func() { report("schema "+name+" "+property, needed(ot.seen)) })
		}
	}
	for name, p := range at("components", "parameters") {
		parameter := p.(map[string]any)
		if kept := parameter["name"]; parameter["in"] != "path" {
			parameter["name"] = "nothing"
			report("parameter "+name, needed(ot.seen))
			parameter["name"] = kept
		}
	}
	t.Logf("%d exchanges, %d kinds", len(ot.seen), len(used))
}

// Guarantee: each operation can answer what the sample got of it, and the sample has a good
// answer of each.
func TestOpenAPISampleIsWhole(t *testing.T) {
	ot, d := newOpenAPITest(t), served(t)
	ot.sample()
	good := make(map[string]bool)
	for _, x := range ot.seen {
		if x.Status < 400 {
			good[x.Method+" "+d.Path(x)] = true
		}
	}
	for _, path := range d.Paths() {
		for _, method := range d.Methods(path) {
			if !good[method+" "+path] {
				t.Errorf("no good answer to %s %s", method, path)
			}
		}
	}
}
