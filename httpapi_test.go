package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"raftkv/internal/api"
	"raftkv/internal/checker"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// apiTest is the HTTP interface in front of a bare state: a write is applied
// as soon as it is proposed.
type apiTest struct {
	*testing.T
	a        *httpKVAPI
	srv      *server
	kv       *kvstore
	node     *raftNode
	leaders  *wait.Leadership
	proposed int
	asked    int   // confirmations
	fails    error // what proposals and confirmations end in, if not nil
	// leader answers for node 2, which leads.
	leader func(r reconfig.Request) (reconfig.Reply, error)
}

func newAPITest(t *testing.T) *apiTest {
	cfg := config.DefaultConfig()
	cfg.AllowedHosts = []string{"kv.example"}
	cfg.AdvertiseClientURL = "http://node1.example:9121"
	cfg.MaxValueSize = 100
	st := state.New(testkit.Peers())
	st.Index, st.Term = 1, 1
	s := newServer(cfg, zap.NewNop(), &storage.Opened{Storage: &storage.Storage{}, State: st, Boot: 1}, 9121)
	at := &apiTest{T: t, a: s.api, srv: s, kv: s.kv, node: s.node, leaders: s.node.leaders}
	s.node.status.Store(&contact.RaftStatus{Term: 1, Commit: 1, Leader: 2, Role: raft.StateFollower})
	at.leaders.Set(2, 1)
	s.caughtUp.Store(true)
	s.api.fresh.Confirm = func(context.Context) error {
		at.asked++
		return at.fails
	}
	s.api.propose = func(_ context.Context, cmd []byte) state.Result {
		at.proposed++
		if at.fails != nil {
			return state.Result{Err: at.fails}
		}
		c, err := state.DecodeCommand(cmd)
		if err != nil {
			t.Errorf("proposed %x: %v", cmd, err)
		}
		at.kv.mu.Lock()
		defer at.kv.mu.Unlock()
		res := at.kv.state.Apply(c)
		at.kv.publishSize()
		return res
	}
	at.leader = func(reconfig.Request) (reconfig.Reply, error) { return reconfig.Reply{}, nil }
	s.members.Ask = func(_ context.Context, _ string, _ uint64, r reconfig.Request) (reconfig.Reply, error) {
		return at.leader(r)
	}
	s.members.AskView = func(context.Context, string) (map[uint64]reconfig.View, error) { return nil, problem.ErrElsewhere }
	return at
}

// request makes a request as it would come over the wire. headers are names
// and values; Host is one.
func (at *apiTest) request(method, target string, body io.Reader, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, body).WithContext(at.Context())
	if strings.HasPrefix(target, "/") {
		r.Host = "127.0.0.1:9121"
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func (at *apiTest) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	at.a.ServeHTTP(w, r)
	return w
}

func (at *apiTest) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	return at.serve(at.request(method, target, strings.NewReader(body), headers...))
}

// want checks an answer that is no error.
func (at *apiTest) want(w *httptest.ResponseRecorder, status int, body string) {
	at.Helper()
	if w.Code != status || w.Body.String() != body {
		at.Errorf("the answer is %d %q, want %d %q", w.Code, w.Body, status, body)
	}
}

// problem checks an answer that is an error, and returns its detail.
func (at *apiTest) problem(what string, w *httptest.ResponseRecorder, status int, code string) string {
	at.Helper()
	var p struct {
		Type, Title, Detail, Code, Outcome string
		Status                             int
		Retry                              *bool
	}
	dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil || w.Header().Get("Content-Type") != "application/problem+json" {
		at.Errorf("%s: the answer is %d %q (%v), want a problem", what, w.Code, w.Body, err)
		return ""
	}
	if w.Code != status || p.Status != status || p.Code != code || p.Type != "about:blank" ||
		p.Title != http.StatusText(status) || p.Title == "" || p.Detail == "" ||
		p.Outcome != "not_applied" && p.Outcome != "unknown" || p.Retry == nil {
		at.Errorf("%s: the answer is %d %+v, want %d %s", what, w.Code, p, status, code)
	}
	return p.Detail
}

// Guarantee: a key is the path after its slash, decoded once and taken
// literally, the same in both forms; no redirects.
func TestAPIKeysAreLiteral(t *testing.T) {
	long := strings.Repeat("k", maxKeyBytes)
	for _, tt := range []struct{ target, key string }{
		{"/a", "a"}, {"/a/", "a/"}, {"/a//b", "a//b"}, {"/a/../b", "a/../b"}, {"/./a", "./a"}, {"/..", ".."}, {"//a", "/a"}, {"//", "/"},
		{"/a%2Fb", "a/b"}, {"/a%2fb", "a/b"}, {"/%2F", "/"}, {"/a%252Fb", "a%2Fb"}, {"/a%20b", "a b"}, {"/a+b", "a+b"}, {"/a%3Fb", "a?b"},
		{"/%E2%82%AC", "€"}, {"/€", "€"}, {"/a%01", "a\x01"}, {"/a;b=c", "a;b=c"}, {"/1", "1"}, {"/V1/x", "V1/x"}, {"/v1x", "v1x"}, {"/v2/kv/a", "v2/kv/a"},
		{"/" + long, long}, {"/v1/kv/a/", "a/"}, {"/v1/kv//a", "/a"}, {"/v1/kv/%2F", "/"}, {"/v1/kv/a%2F..%2Fb", "a/../b"},
		{"/v1/kv/v1/kv/a", "v1/kv/a"}, {"/v1/kv/metrics", "metrics"}, {"/v1/kv/" + long, long},
		{"http://127.0.0.1:9121/abs", "abs"}, {"http://127.0.0.1:9121//abs", "/abs"},
	} {
		at := newAPITest(t)
		if w := at.do("PUT", tt.target, "value"); w.Code != http.StatusNoContent {
			t.Errorf("PUT %.60s: %d %s", tt.target, w.Code, w.Body)
		}
		var keys []string
		at.kv.state.Scan(func(key string, _ *state.Item) bool { keys = append(keys, key); return true })
		if len(keys) != 1 || keys[0] != tt.key {
			t.Errorf("PUT %.60s made %.60q, want %.60q", tt.target, keys, tt.key)
		}
		for _, target := range []string{tt.target, "/v1/kv/" + url.PathEscape(tt.key)} {
			at.want(at.do("GET", target, ""), http.StatusOK, "value")
		}
		if w := at.do("DELETE", "/v1/kv/"+url.PathEscape(tt.key), ""); w.Code != http.StatusNoContent || at.kv.state.Keys() != 0 {
			t.Errorf("DELETE of %.60q: %d", tt.key, w.Code)
		}
	}
}

// Guarantee: what cannot be a key is refused, before anything is asked of the
// cluster.
func TestAPIBadKeys(t *testing.T) {
	at := newAPITest(t)
	for _, key := range []string{"%00", "a%00b", "%FF", "a%C0%AF", "%ED%A0%80", strings.Repeat("k", maxKeyBytes+1), strings.Repeat("%E2%82%AC", 1366)} {
		for _, method := range []string{"GET", "HEAD", "PUT"} {
			at.problem(fmt.Sprintf("%s %.20s", method, key), at.do(method, "/"+key, ""), 400, "bad_request")
		}
		at.problem("DELETE", at.do("DELETE", "/v1/kv/"+key, ""), 400, "bad_request")
	}
	for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"} {
		at.problem("empty key", at.do(method, "/v1/kv/", "v"), 400, "bad_request")
	}
	r := at.request("PUT", "/", nil)
	r.URL.Path = "*"
	at.problem("no slash", at.serve(r), 400, "bad_request")
	if at.proposed+at.asked != 0 {
		t.Errorf("%d proposals, %d reads", at.proposed, at.asked)
	}
}

// Guarantee: reserved paths are never taken for keys, however they are
// spelled, and the message has the form that works.
func TestAPIReserved(t *testing.T) {
	at := newAPITest(t)
	for _, target := range []string{"/ui", "/ui/x", "/debug", "/debug/a%20b", "/livez/", "/livez/x", "/readyz/x", "/metrics/x", "/%75i/x", "/ui%2Fx"} {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
			detail := at.problem(method+" "+target, at.do(method, target, "v"), 400, "bad_request")
			_, form, ok := strings.Cut(detail, "use ")
			u, err := url.Parse(target)
			if !ok || err != nil {
				t.Fatalf("%s: %q, %v", target, detail, err)
			}
			if w := at.do("PUT", form, "v"); w.Code != http.StatusNoContent {
				t.Errorf("%s: the form %s does not work: %d", target, form, w.Code)
			}
			if !at.kv.has(u.Path[1:]) {
				t.Errorf("%s: the form %s is not for it", target, form)
			}
			at.kv.state.DropItems()
		}
	}
	for _, target := range []string{"/v1", "/v1/", "/v1/x", "/%761/x", "/v1%2Fx", "/v1/kv", "/livez", "/readyz", "/metrics", "/v1/status", "/v1/members"} {
		if w := at.do("PUT", target, "v"); w.Code < 400 || w.Code >= 500 {
			t.Errorf("PUT %s: %d", target, w.Code)
		}
	}
	if at.kv.state.Keys() != 0 {
		t.Errorf("keys %q were made", at.kv.state.Items.Keys())
	}
}

// Guarantee: a query parameter that is not understood is refused, never
// ignored, and never part of a key.
func TestAPIQueryStrict(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/a", "v")
	at.proposed, at.asked = 0, 0
	for _, tt := range []struct{ method, query string }{
		{"GET", "x=1"}, {"GET", "x"}, {"GET", "=1"}, {"GET", "consistency"}, {"GET", "consistency="}, {"GET", "consistency=maybe"}, {"GET", "consistency=STALE"},
		{"GET", "Consistency=stale"}, {"GET", "consistency=stale&consistency=stale"}, {"GET", "consistency=stale&x=1"}, {"GET", "consistency=%zz"},
		{"GET", "consistency=stale;x=1"}, {"HEAD", "x=1"}, {"PUT", "x=1"}, {"PUT", "consistency=stale"}, {"PUT", "consistency=linearizable"},
		{"DELETE", "x=1"}, {"DELETE", "consistency=stale"}, {"DELETE", "force=true"},
	} {
		at.problem(tt.method+" "+tt.query, at.do(tt.method, "/v1/kv/a?"+tt.query, ""), 400, "bad_request")
		if tt.method != "DELETE" {
			at.problem(tt.method+" "+tt.query, at.do(tt.method, "/a?"+tt.query, ""), 400, "bad_request")
		}
	}
	at.problem("members", at.do("GET", "/v1/members?x=1", ""), 400, "bad_request")
	if at.proposed+at.asked != 0 {
		t.Errorf("%d proposals, %d reads", at.proposed, at.asked)
	}
	for _, query := range []string{"?", "?consistency=stale", "?consistency=linearizable", "?%63onsistency=stale"} {
		at.want(at.do("GET", "/a"+query, ""), http.StatusOK, "v")
	}
}

// Guarantee: conditional requests answer 304, 412 and 404 where they should,
// each with the current ETag when there is one.
func TestAPIConditions(t *testing.T) {
	for _, tt := range []struct {
		method, key, header, value string
		status                     int
		etag                       string
	}{
		{"GET", "k", "If-None-Match", `"1"`, 304, `"1"`},
		{"HEAD", "k", "If-None-Match", `"1"`, 304, `"1"`},
		{"GET", "k", "If-None-Match", `"2"`, 200, `"1"`},
		{"GET", "k", "If-None-Match", `""`, 200, `"1"`},
		{"GET", "k", "If-None-Match", `*`, 304, `"1"`},
		{"GET", "k", "If-None-Match", `W/"1"`, 304, `"1"`},
		{"HEAD", "k", "If-None-Match", `"3", W/"1"`, 304, `"1"`},
		{"GET", "k", "If-None-Match", `W/"2", "3"`, 200, `"1"`},
		{"GET", "k", "If-Match", `W/"1"`, 412, `"1"`},
		{"GET", "k", "If-Match", `"2","1"`, 200, `"1"`},
		{"GET", "k", "If-Match", `"1"`, 200, `"1"`},
		{"GET", "k", "If-Match", `"2"`, 412, `"1"`},
		{"GET", "k", "If-Match", `*`, 200, `"1"`},
		{"GET", "n", "If-None-Match", `"1"`, 404, ""},
		{"GET", "n", "If-None-Match", `*`, 404, ""},
		{"GET", "n", "If-Match", `*`, 412, ""},
		{"GET", "n", "If-Match", `"1"`, 412, ""},
		{"GET", "n", "", "", 404, ""},
		{"PUT", "k", "If-Match", `"1"`, 204, `"2"`},
		{"PUT", "k", "If-Match", `"2"`, 412, `"1"`},
		{"PUT", "k", "If-None-Match", `*`, 412, `"1"`},
		{"PUT", "n", "If-None-Match", `*`, 204, `"2"`},
		{"PUT", "n", "If-Match", `*`, 412, ""},
		{"DELETE", "k", "", "", 204, ""},
		{"DELETE", "k", "If-Match", `"1"`, 204, ""},
		{"DELETE", "k", "If-Match", `"2"`, 412, `"1"`},
		{"DELETE", "n", "If-Match", `*`, 412, ""},
		{"DELETE", "n", "", "", 404, ""},
		{"PUT", "k", "If-None-Match", `"1"`, 400, ""},
		{"PUT", "k", "If-Match", `W/"1"`, 412, `"1"`},
		{"PUT", "n", "If-Match", `W/"1"`, 412, ""},
		{"DELETE", "k", "If-Match", `W/"1"`, 412, `"1"`},
		{"DELETE", "n", "If-Match", `W/"1"`, 412, ""},
		{"PUT", "k", "If-Match", `"1-gzip"`, 412, `"1"`},
		{"PUT", "k", "If-Match", `"1", "2"`, 400, ""},
		{"PUT", "k", "If-None-Match", `"1", "2"`, 400, ""},
		{"PUT", "k", "Content-Range", "bytes 0-0/1", 400, ""}, // it would replace the whole
		{"PUT", "k", "Idempotency-Key", "x", 400, ""},         // ignored, it would promise too much
	} {
		what := fmt.Sprint(tt.method, " ", tt.key, " ", tt.header, " ", tt.value)
		at := newAPITest(t)
		at.do("PUT", "/k", "v")
		var headers []string
		if tt.header != "" {
			headers = []string{tt.header, tt.value}
		}
		w := at.do(tt.method, "/v1/kv/"+tt.key, "w", headers...)
		if w.Code != tt.status || w.Header().Get("ETag") != tt.etag {
			t.Errorf("%s: %d, ETag %s; want %d, %s", what, w.Code, w.Header().Get("ETag"), tt.status, tt.etag)
		}
		switch tt.status {
		case 404:
			at.problem(what, w, 404, "not_found")
		case 412:
			at.problem(what, w, 412, "precondition_failed")
		case 204, 304:
			if w.Body.Len() != 0 {
				t.Errorf("%s: a body of %q", what, w.Body)
			}
		}
		if tt.method == "GET" && w.Header().Get("Raftkv-Revision") != "1" {
			t.Errorf("%s: revision %q", what, w.Header().Get("Raftkv-Revision"))
		}
	}
}

// Guarantee: a value comes back as the bytes that went in and as nothing that
// a browser would run; HEAD says the same of it without the value.
func TestAPIValues(t *testing.T) {
	for _, value := range []string{"", "hello\n", "\xff\xfe\x00\x80", "<script>", strings.Repeat("v", 100)} {
		at := newAPITest(t)
		w := at.do("PUT", "/k", value)
		if w.Code != 204 || w.Header().Get("ETag") != `"1"` || w.Header().Get("Raftkv-Revision") != "1" {
			t.Errorf("PUT of %q: %d %v", value, w.Code, w.Header())
		}
		for _, method := range []string{"GET", "HEAD"} {
			w, body := at.do(method, "/k", ""), value
			if method == "HEAD" {
				body = ""
			}
			at.want(w, 200, body)
			for name, want := range map[string]string{
				"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff", "ETag": `"1"`,
				"Content-Length": strconv.Itoa(len(value)), "Raftkv-Consistency": "linearizable", "Raftkv-Revision": "1",
			} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s of %q: %s is %q, want %q", method, value, name, got, want)
				}
			}
		}
	}
}

// Guarantee: only a read that asked for it is stale, it says so, and a node
// that has not caught up does not pass off its past as the present.
func TestAPIStaleRead(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/k", "v")
	at.fails = problem.ErrUnavailable
	w := at.do("GET", "/k", "")
	at.problem("unconfirmed", w, 503, "unavailable")
	if w.Header().Get("ETag") != "" {
		t.Error("a read that was not confirmed tells the ETag")
	}
	w = at.do("GET", "/k?consistency=stale", "")
	at.want(w, 200, "v")
	if h := w.Header(); h.Get("Raftkv-Consistency") != "stale" || h.Get("Raftkv-Revision") != "1" || h["Raftkv-Leader-Contact"] != nil {
		t.Errorf("never heard from a leader: %v", h)
	}
	heard := time.Now().Add(-3 * time.Second)
	at.node.contacts.Leader = &heard
	w = at.do("GET", "/k?consistency=stale", "")
	if ms, err := strconv.Atoi(w.Header().Get("Raftkv-Leader-Contact")); err != nil || ms < 3000 || ms > 60000 {
		t.Errorf("leader contact %v", w.Header())
	}
	at.a.fresh.Applied = new(wait.Index) // a node that joins and has got nothing yet
	at.problem("stale too early", at.do("GET", "/k?consistency=stale", ""), 503, "not_ready")
}

// Guarantee: a name that somebody makes point at this node is refused on every
// method, and the names that are this node's work.
func TestAPIHost(t *testing.T) {
	at := newAPITest(t)
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:9121": true, "LOCALHOST:1": true, "127.0.0.1": true, "127.0.0.1:9121": true, "192.168.1.5:80": true,
		"[::1]": true, "[::1]:9121": true, "[2001:db8::1]:1": true, "kv.example": true, "KV.Example:9121": true, "node1.example:9121": true,
		"":             true, // a health check in HTTP/1.0
		"evil.example": false, "evil.example:9121": false, "localhost.evil.example": false, "127.0.0.1.evil.example:9121": false,
		"kv.example.evil": false, "node2.example": false, "kv.example@evil": false, "127.0.0.1:9121:80": false, "a b": false,
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "BREW"} {
			for _, target := range []string{"/k", "/", "/v1/kv/k", "/v1/status", "/livez", "/metrics", "/ui", "/4"} {
				w := at.do(method, target, "v", "Host", host)
				if ok && w.Code == 421 {
					t.Errorf("%s %s at %q: %s", method, target, host, w.Body)
				} else if !ok {
					at.problem(fmt.Sprintf("%s %s at %q", method, target, host), w, 421, "wrong_host")
				}
			}
		}
	}
	at.problem("absolute form", at.do("GET", "http://evil.example/k", ""), 421, "wrong_host")
}

// Guarantee: a page of another site cannot make a browser write here.
func TestAPICrossOrigin(t *testing.T) {
	at := newAPITest(t)
	for _, tt := range []struct {
		headers []string
		ok      bool
	}{
		{nil, true},
		{[]string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:9121"}, true},
		{[]string{"Sec-Fetch-Site", "none"}, true},
		{[]string{"Origin", "http://127.0.0.1:9121"}, true},
		{[]string{"Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example"}, false},
		{[]string{"Sec-Fetch-Site", "same-site"}, false},
		{[]string{"Origin", "http://evil.example"}, false},
		{[]string{"Origin", "http://127.0.0.1:8000"}, false},
		{[]string{"Origin", "null"}, false},
	} {
		for method, target := range map[string]string{"PUT": "/k", "POST": "/4", "DELETE": "/v1/kv/k"} {
			before := at.proposed
			w := at.do(method, target, "http://d:4", tt.headers...)
			if tt.ok == (w.Code == 403) {
				t.Errorf("%s %s with %q: %d", method, target, tt.headers, w.Code)
			}
			if !tt.ok {
				at.problem(method, w, 403, "cross_origin")
				if at.proposed != before {
					t.Errorf("%s %s with %q was proposed", method, target, tt.headers)
				}
			}
		}
	}
}

// countingBody counts how much of it was read.
type countingBody struct {
	io.Reader
	n int
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.n += n
	return n, err
}

// failingBody ends in an error.
type failingBody struct{ err error }

func (b failingBody) Read([]byte) (int, error) { return 0, b.err }

// Guarantee: a value that is too large is refused before it is read whole, by
// its announced length before any of it is read; one of exactly the limit is not.
func TestAPITooLarge(t *testing.T) {
	for _, tt := range []struct {
		size    int
		chunked bool
		status  int
		maxRead int
	}{
		{0, false, 204, 0}, {0, true, 204, 0}, {100, false, 204, 100}, {100, true, 204, 100},
		{101, false, 413, 0}, {101, true, 413, 101}, {1 << 20, false, 413, 0}, {1 << 20, true, 413, 4096},
	} {
		at := newAPITest(t)
		body := &countingBody{Reader: bytes.NewReader(make([]byte, tt.size))}
		r := at.request("PUT", "/k", body)
		if r.ContentLength = int64(tt.size); tt.chunked {
			r.ContentLength = -1
		}
		w := at.serve(r)
		if tt.status == 413 {
			at.problem(fmt.Sprintf("%+v", tt), w, 413, "too_large")
		}
		if w.Code != tt.status || body.n > tt.maxRead || (at.proposed == 1) != (tt.status == 204) {
			t.Errorf("%+v: %d after %d bytes, %d proposals", tt, w.Code, body.n, at.proposed)
		}
		if it, _ := at.kv.get("k"); it != nil && len(it.Value) != tt.size {
			t.Errorf("%+v: stored %d bytes", tt, len(it.Value))
		}
	}
}

// Guarantee: half a value is never stored.
func TestAPIBrokenBody(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		code   string
	}{
		{io.ErrUnexpectedEOF, 400, "bad_request"}, {io.EOF, 400, "bad_request"}, {errors.New("reset"), 400, "bad_request"},
		{os.ErrDeadlineExceeded, 408, "request_timeout"},
	} {
		for _, length := range []int64{10, -1} {
			if length < 0 && tt.err == io.EOF {
				continue // which is a chunked body's good end
			}
			at := newAPITest(t)
			r := at.request("PUT", "/k", io.MultiReader(strings.NewReader("half"), failingBody{tt.err}))
			r.ContentLength = length
			at.problem(fmt.Sprint(tt.err, length), at.serve(r), tt.status, tt.code)
			if at.proposed != 0 {
				t.Errorf("%v: proposed", tt.err)
			}
		}
	}
}

// Guarantee: each error keeps its status, its stable code and what it says of
// the request's fate, for clients build on them.
func TestAPIProblems(t *testing.T) {
	rows := []struct {
		err     error
		status  int
		code    string
		outcome string
		retry   problem.Retry
	}{
		{problem.ErrBadRequest, 400, "bad_request", "not_applied", problem.NoRetry},
		{problem.ErrBadPeerURL, 400, "bad_request", "not_applied", problem.NoRetry},
		{problem.ErrCrossOrigin, 403, "cross_origin", "not_applied", problem.NoRetry},
		{problem.ErrNotFound, 404, "not_found", "not_applied", problem.NoRetry},
		{problem.ErrNoSuchPath, 404, "no_such_path", "not_applied", problem.NoRetry},
		{problem.ErrMemberUnknown, 404, "not_found", "not_applied", problem.NoRetry},
		{problem.ErrMethodNotAllowed, 405, "method_not_allowed", "not_applied", problem.NoRetry},
		{problem.ErrRequestTimeout, 408, "request_timeout", "not_applied", problem.RetryLater},
		{problem.ErrAmbiguous, 409, "ambiguous", "not_applied", problem.NoRetry},
		{problem.ErrMemberExists, 409, "member_exists", "not_applied", problem.NoRetry},
		{problem.ErrSameNode, 409, "member_exists", "not_applied", problem.NoRetry},
		{problem.ErrMemberRemoved, 409, "member_removed", "not_applied", problem.NoRetry},
		{problem.ErrLastVoter, 409, "last_voter", "not_applied", problem.NoRetry},
		{problem.ErrWouldLose, 409, "would_lose_quorum", "not_applied", problem.RetryLater},
		{problem.ErrNotVoter, 409, "not_voter", "not_applied", problem.NoRetry},
		{problem.ErrInProgress, 409, "change_in_progress", "not_applied", problem.RetrySoon},
		{problem.ErrPrecondition, 412, "precondition_failed", "not_applied", problem.NoRetry},
		{problem.ErrTooLarge, 413, "too_large", "not_applied", problem.NoRetry},
		{problem.ErrMediaType, 415, "unsupported_media_type", "not_applied", problem.NoRetry},
		{problem.ErrWrongHost, 421, "wrong_host", "not_applied", problem.NoRetry},
		{problem.ErrOverloaded, 429, "overloaded", "not_applied", problem.RetrySoon},
		{problem.ErrInternal, 500, "internal", "unknown", problem.NoRetry},
		{errors.New("never heard of"), 500, "internal", "unknown", problem.NoRetry},
		{problem.ErrEnding, 500, "internal", "not_applied", problem.RetryLater},
		{problem.PerhapsDone(problem.ErrEnding), 500, "internal", "unknown", problem.RetryLater},
		{problem.ErrNoLeader, 503, "no_leader", "not_applied", problem.RetrySoon},
		{problem.ErrStopping, 503, "stopping", "not_applied", problem.RetrySoon},
		{problem.ErrNotReady, 503, "not_ready", "not_applied", problem.RetrySoon},
		{problem.ErrUnavailable, 503, "unavailable", "not_applied", problem.RetrySoon},
		{problem.ErrNotHandedOver, 503, "not_handed_over", "unknown", problem.RetrySoon},
		{problem.ErrElsewhere, 503, "not_leader", "not_applied", problem.RetrySoon},
		{problem.ErrDiverged, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.ErrHistories, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.ErrNoMajority, 503, "diverged", "not_applied", problem.RetryLater},
		{problem.ErrMemory, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.PerhapsDone(problem.ErrDiverged), 503, "diverged", "unknown", problem.NoRetry},
		{problem.ErrStuck, 503, "stuck", "not_applied", problem.RetryLater},
		{problem.ErrOutcomeUnknown, 504, "outcome_unknown", "unknown", problem.RetryLater},
		{problem.ErrDiskFull, 507, "disk_full", "not_applied", problem.RetryLater},
		{problem.ErrQuota, 507, "quota_exceeded", "not_applied", problem.RetryLater},
	}
	listed := make(map[error]bool)
	for _, tt := range rows {
		listed[tt.err] = true
		for _, err := range []error{tt.err, fmt.Errorf("because: %w <&>", tt.err)} {
			at := newAPITest(t)
			at.fails = err
			for _, method := range []string{"GET", "PUT"} {
				w := at.do(method, "/k", "v")
				if detail := at.problem(err.Error(), w, tt.status, tt.code); detail != err.Error() {
					t.Errorf("%v: the detail is %q", err, detail)
				}
				want := fmt.Sprintf(`"outcome":%q,"retry":%v}`, tt.outcome, tt.retry != problem.NoRetry)
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%v: %s, want %s", err, w.Body, want)
				}
				if got := w.Header().Get("Retry-After"); (got != "") != (tt.retry == problem.RetrySoon) {
					t.Errorf("%v: Retry-After is %q", err, got)
				}
			}
			// And from node to node.
			if back := problem.FromCode(problem.CodeOf(err), "detail"); problem.CodeOf(back) != tt.code || problem.Of(back).Status != tt.status || back.Error() == "" {
				t.Errorf("%v came from another node as %v", err, back)
			}
		}
	}
	for _, p := range problem.Problems {
		if !listed[p] {
			t.Errorf("%v is not in this test", p)
		}
	}
	if problem.FromCode("", "") != nil || problem.CodeOf(problem.FromCode("from_the_future", "x")) != "internal" {
		t.Error("codes that are none")
	}
}

// Guarantee: what a replica that has just been found to differ says of a write
// under way is not that it did not happen.
func TestAPIDivergedMeanwhile(t *testing.T) {
	at := newAPITest(t)
	propose := at.a.propose
	at.a.propose = func(ctx context.Context, cmd []byte) state.Result {
		defer at.kv.agreement.Fault.Store(&checker.Fault{Err: problem.ErrDiverged})
		return propose(ctx, cmd)
	}
	for _, outcome := range []string{"unknown", "not_applied"} {
		w := at.do("PUT", "/k", "v")
		at.problem("PUT", w, 503, "diverged")
		if !strings.Contains(w.Body.String(), `"outcome":"`+outcome) {
			t.Errorf("%s, want %s", w.Body, outcome)
		}
	}
}

// Guarantee: POST and DELETE in the short form change the members and only
// those; a key there is refused with the form that works.
func TestAPIMemberShortForm(t *testing.T) {
	at := newAPITest(t)
	var got []reconfig.Request
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) {
		got = append(got, r)
		return reconfig.Reply{}, nil
	}
	for _, path := range []string{"my-key", "a/b", "0", "01", "+1", "-1", "1.0", "1/", "1e3", "0x1", "%201", "18446744073709551615", "18446744073709551616", "%D9%A1"} {
		for _, method := range []string{"POST", "DELETE"} {
			detail := at.problem(method+" "+path, at.do(method, "/"+path, "http://d:4"), 400, "bad_request")
			if u, err := url.PathUnescape(path); err != nil || !strings.Contains(detail, "DELETE /v1/kv/"+url.PathEscape(u)) {
				t.Errorf("%s /%s: %q does not name the right form", method, path, detail)
			}
		}
	}
	for _, body := range []string{"", "d:4", "http://d", "http://d:4/", "http://d:4/x", "http://d:4 http://e:5", "\xff"} {
		at.problem("POST of "+body, at.do("POST", "/4", body), 400, "bad_request")
	}
	at.problem("POST of a lot", at.do("POST", "/4", strings.Repeat("x", api.MaxMemberBytes+1)), 413, "too_large")
	for _, tt := range []string{"POST /4?force=true", "POST /4?x=1", "DELETE /4?force", "DELETE /4?force=1", "DELETE /4?force=false",
		"DELETE /4?force=true&force=true", "DELETE /4?x=1", "DELETE /4?%zz"} {
		method, target, _ := strings.Cut(tt, " ")
		at.problem(tt, at.do(method, target, "http://d:4"), 400, "bad_request")
	}
	if len(got) != 0 || at.proposed != 0 {
		t.Fatalf("%+v reached the leader, %d proposals", got, at.proposed)
	}
	for _, tt := range []struct {
		method, target, body string
		want                 reconfig.Request
	}{
		{"POST", "/4", "http://d:4", reconfig.Request{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}},
		{"POST", "/4", " http://D:4\n", reconfig.Request{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}},
		{"DELETE", "/4", "", reconfig.Request{Op: membership.OpRemove, ID: 4}},
		{"DELETE", "/4?force=true", "", reconfig.Request{Op: membership.OpRemove, ID: 4, Force: true}},
	} {
		got = nil
		at.want(at.do(tt.method, tt.target, tt.body), 204, "")
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s %s: %+v, want %+v", tt.method, tt.target, got, tt.want)
		}
	}
	for _, err := range []error{problem.ErrMemberExists, problem.ErrMemberRemoved, problem.ErrLastVoter, problem.ErrMemberUnknown, problem.ErrWouldLose, problem.ErrInProgress} {
		at.leader = func(reconfig.Request) (reconfig.Reply, error) {
			return reconfig.Reply{Code: problem.CodeOf(err), Detail: "why"}, nil
		}
		if detail := at.problem(err.Error(), at.do("POST", "/4", "http://d:4"), problem.Of(err).Status, problem.CodeOf(err)); detail != "why" {
			t.Errorf("%v: the detail is %q", err, detail)
		}
	}
}

// Guarantee: nobody loses a node who meant a key. As long as there is a key of
// that name anywhere, DELETE /ID says which forms are clear; only who forces it
// is taken at their word.
func TestAPIMemberOrKey(t *testing.T) {
	at := newAPITest(t)
	var got []reconfig.Request
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) {
		got = append(got, r)
		return reconfig.Reply{}, nil
	}
	at.do("PUT", "/2", "a key")
	at.do("PUT", "/77", "a key that is no node's")
	// This node has not heard of the key yet: only a linearizable read finds it.
	at.kv.state.Items.Delete("2")
	at.a.fresh.Confirm = func(context.Context) error {
		at.asked++
		at.kv.state.Items.Set("2", &state.Item{ModRevision: 1})
		return at.fails
	}
	for _, id := range []string{"2", "77"} {
		at.asked = 0
		detail := at.problem("DELETE", at.do("DELETE", "/"+id, ""), 409, "ambiguous")
		for _, form := range []string{"DELETE /v1/kv/" + id, "DELETE /v1/members/" + id} {
			if !strings.Contains(detail, form) {
				t.Errorf("%q does not name %s", detail, form)
			}
		}
		if at.asked != 1 {
			t.Errorf("%d linearizable reads, want one", at.asked)
		}
	}
	at.fails = problem.ErrUnavailable
	at.problem("DELETE, unconfirmed", at.do("DELETE", "/2", ""), 503, "unavailable")
	at.problem("DELETE, unconfirmed", at.do("DELETE", "/3", ""), 503, "unavailable")
	if len(got) != 0 {
		t.Fatalf("%+v reached the leader", got)
	}
	at.want(at.do("POST", "/2", "http://b:2"), 204, "")
	at.want(at.do("DELETE", "/2?force=true", ""), 204, "")
	at.fails = nil
	for _, target := range []string{"/3", "/3?force=true", "/v1/members/3"} {
		at.problem("DELETE under a condition", at.do("DELETE", target, "", "If-Match", `"1"`), 400, "bad_request")
	}
	at.want(at.do("DELETE", "/3", ""), 204, "")
	at.want(at.do("DELETE", "/v1/members/2", ""), 204, "")
	at.do("DELETE", "/v1/kv/77", "")
	at.want(at.do("DELETE", "/77", ""), 204, "")
	if len(got) != 5 {
		t.Errorf("%+v reached the leader", got)
	}
}

// Guarantee: a membership request waits for a leader, and says whether it may
// have happened: not if no leader was ever asked.
func TestAPIMemberTimeout(t *testing.T) {
	for _, asked := range []bool{false, true} {
		testkit.InBubble(t, func(t *testing.T) {
			at := newAPITest(t)
			if asked {
				at.leader = func(reconfig.Request) (reconfig.Reply, error) {
					return reconfig.Reply{}, errors.New("connection refused")
				}
			} else {
				at.leaders.Set(0, 2)
			}
			start := time.Now()
			w := at.do("DELETE", "/2", "")
			if asked {
				at.problem("asked", w, 504, "outcome_unknown")
			} else {
				at.problem("not asked", w, 503, "no_leader")
			}
			if time.Since(start) != 5*time.Second {
				t.Errorf("answered after %v", time.Since(start))
			}
		})
	}
}

// Guarantee: who calls / is told where to go next.
func TestAPIRoot(t *testing.T) {
	at := newAPITest(t)
	w := at.do("GET", "/", "")
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") || !strings.Contains(w.Body.String(), "/v1/") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if at.proposed+at.asked != 0 {
		t.Error("the root page asks the cluster")
	}
}

// Guarantee: 405 says what is allowed, and what it says is allowed is.
func TestAPIMethods(t *testing.T) {
	at := newAPITest(t)
	at.a.profiles = true
	for target, allow := range map[string]string{
		"/": "GET, HEAD", "/k": "GET, HEAD, PUT", "/7": "GET, HEAD, PUT, POST, DELETE", "/v1/kv/k": "GET, HEAD, PUT, DELETE", "/v1/kv/7": "GET, HEAD, PUT, DELETE",
		"/07": "GET, HEAD, PUT", "/0": "GET, HEAD, PUT", "/18446744073709551615": "GET, HEAD, PUT",
		"/v1/status": "GET, HEAD", "/v1/members": "GET, HEAD, POST", "/v1/members/1": "GET, HEAD, PATCH, DELETE", "/v1/leader": "POST",
		"/livez": "GET, HEAD", "/readyz": "GET, HEAD", "/metrics": "GET, HEAD",
		"/debug/pprof/": "GET, HEAD, POST", "/debug/pprof/heap": "GET, HEAD, POST",
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"} {
			w := at.do(method, target, "")
			if strings.Contains(allow+",", method+",") {
				if w.Code == 405 {
					t.Errorf("%s %s is not allowed", method, target)
				}
				continue
			}
			if (method == "POST" || method == "DELETE") && strings.HasPrefix(allow, "GET, HEAD, PUT") && !strings.HasPrefix(target, "/v1/") {
				at.problem(method+" "+target, w, 400, "bad_request") // which names the form that works
				continue
			}
			at.problem(method+" "+target, w, 405, "method_not_allowed")
			if got := w.Header().Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow is %q, want %q", method, target, got, allow)
			}
		}
	}
}

// Guarantee: a path under /v1 that is not there is 404, not a key.
func TestAPINotThere(t *testing.T) {
	at := newAPITest(t)
	for _, target := range []string{"/v1", "/v1/", "/v1/nothing", "/v1/status/", "/v1//kv/k"} {
		at.problem(target, at.do("GET", target, ""), 404, "no_such_path")
	}
}
