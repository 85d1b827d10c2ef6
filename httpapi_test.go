package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/contact"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"strconv"
	"strings"
	"sync"
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
	listener *stoppableListener // with -front
	counts   sync.Mutex         // held to add to what follows
	proposed int
	asked    int   // confirmations
	fails    error // what proposals and confirmations end in, if not nil
	invented bool  // fails is what such a request cannot end in, which is described nowhere
	// leader answers for node 2, which leads.
	leader func(r reconfig.Request) (reconfig.Reply, error)
}

// proposeFunc is what becomes of the writes of a node without a cluster.
type proposeFunc func(ctx context.Context, cmd []byte) state.Result

func (f proposeFunc) Start(cmd []byte, w rounds.Waiter) (giveUp func(), err error) {
	ctx, giveUp := context.WithCancel(context.Background())
	go func() { w.Done(f(ctx, cmd)) }()
	return giveUp, nil
}

// confirmBy has reads of keys confirmed as all others are, by Confirm.
func confirmBy(f *api.Freshness) {
	f.Start = func(w rounds.Waiter) error {
		go func() { w.Done(state.Result{Err: f.Confirm(context.Background())}) }()
		return nil
	}
}

// count counts what requests ask for, which may be several at once.
func (at *apiTest) count(n *int) {
	at.counts.Lock()
	defer at.counts.Unlock()
	*n++
}

func newAPITest(t *testing.T) *apiTest {
	cfg := config.DefaultConfig()
	cfg.AllowedHosts, cfg.AllowedOrigins = []string{"kv.example"}, []string{"https://app.example"}
	cfg.AdvertiseClientURL = "http://node1.example:9121"
	cfg.MaxValueSize = 100
	st := state.New(testkit.Peers())
	st.Index, st.Term, st.Level = 1, 1, state.ProgramLevel
	st.Changes.Keep(1<<20, 0)
	s := newServer(cfg, zap.NewNop(), &storage.Opened{Storage: &storage.Storage{}, State: st, Boot: 1}, 9121)
	at := &apiTest{T: t, a: s.api, srv: s, kv: s.kv, node: s.node, leaders: s.node.leaders}
	s.node.status.Store(&contact.RaftStatus{Term: 1, Commit: 1, Leader: 2, Role: raft.StateFollower})
	at.leaders.Set(2, 1)
	s.caughtUp.Store(true)
	s.api.keys.Fresh.Confirm = func(context.Context) error {
		at.count(&at.asked)
		return at.fails
	}
	confirmBy(s.api.keys.Fresh)
	s.api.keys.Writes = proposeFunc(func(_ context.Context, cmd []byte) state.Result {
		at.count(&at.proposed)
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
		at.kv.state.Changes.Tell(1)
		at.kv.publishSize()
		at.kv.revision.Advance(at.kv.state.Revision)
		return res
	})
	write := at.a.keys.Writes.(proposeFunc)
	s.api.leases.Commands.Propose = func(ctx context.Context, cmd []byte) state.Result { return write(ctx, cmd) }
	at.leader = func(reconfig.Request) (reconfig.Reply, error) { return reconfig.Reply{}, nil }
	s.members.Ask = func(_ context.Context, _ string, _ uint64, r reconfig.Request) (reconfig.Reply, error) {
		return at.leader(r)
	}
	s.members.AskView = func(context.Context, string) (map[uint64]reconfig.View, error) { return nil, problem.ErrElsewhere }
	return at
}

// watches has the node tell of changes: it hears from a leader, and its hub runs.
func (at *apiTest) watches() {
	at.srv.node.contacts.Leader = new(time.Time)
	ctx, end := context.WithCancel(at.Context())
	ended := make(chan error, 1)
	go func() { ended <- at.srv.hub.Run(ctx) }()
	at.Cleanup(func() {
		end()
		testkit.Must(at.T, <-ended)
	})
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

// throughFront is a flag: requests of these tests go over a connection, and so through
// the front.
var throughFront = flag.Bool("front", false, "send the requests of the HTTP tests over connections, through the front")

func (at *apiTest) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	inBubble := time.Now().Year() == 2000 // where there are no connections
	// What a HEAD does not get no test could see then, and Write mends a Host.
	if *throughFront && !inBubble && r.Method != http.MethodHead && !strings.ContainsAny(r.Host, " @/") {
		at.exchange(w, r)
		return w
	}
	return at.serveHere(r)
}

// serveHere has r answered by the handler, whose body the test watches.
func (at *apiTest) serveHere(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	if at.invented {
		at.a.ServeHTTP(w, r)
		return w
	}
	openapitest.Serve(at, at.a, w, r)
	return w
}

// exchange has r answered over a connection.
func (at *apiTest) exchange(w *httptest.ResponseRecorder, r *http.Request) {
	at.Helper()
	if at.listener == nil {
		l, err := listenWithFront("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()), nil, at.a.keys.MaxValue, zap.NewNop())
		testkit.Must(at, err)
		var h http.Handler = at.a
		l.handler.Store(&h)
		l.front.Handle(plainRequests{at.a})
		at.listener = l
		at.Cleanup(func() { testkit.Must(at, l.close()) })
	}
	c, err := net.Dial("tcp", at.listener.Addr().String())
	testkit.Must(at, err)
	defer func() { _ = c.Close() }()
	testkit.Must(at, c.SetDeadline(time.Now().Add(time.Minute)))
	go func() { _ = r.Write(c) }() // the answer may come before all was sent
	resp, err := http.ReadResponse(bufio.NewReader(c), r)
	testkit.Must(at, err)
	w.Code = resp.StatusCode
	maps.Copy(w.Header(), resp.Header)
	if resp.Close {
		w.Header().Set("Connection", "close")
	}
	_, err = w.Body.ReadFrom(resp.Body)
	testkit.Must(at, err)
	if at.invented {
		return
	}
	openapitest.Check(at, openapitest.Of(r, resp.StatusCode, resp.Header, w.Body.Bytes(), true))
}

func (at *apiTest) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := at.request(method, target, strings.NewReader(body), headers...)
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	return at.serve(r)
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
	if w.Code != status || p.Status != status || p.Code != code || p.Type != "/v1/errors#"+code ||
		p.Title != http.StatusText(status) || p.Title == "" || p.Detail == "" ||
		p.Outcome != "not_applied" && p.Outcome != "unknown" || p.Retry == nil {
		at.Errorf("%s: the answer is %d %+v, want %d %s", what, w.Code, p, status, code)
	}
	return p.Detail
}

// Guarantee: a key is the path after its slash, decoded once and taken
// literally, the same in both forms; no redirects.
func TestAPIKeysAreLiteral(t *testing.T) {
	long := strings.Repeat("k", config.MaxKeyBytes)
	for _, tt := range []struct{ target, key string }{
		{"/a", "a"}, {"/a/", "a/"}, {"/a//b", "a//b"}, {"/a/../b", "a/../b"}, {"/./a", "./a"}, {"/..", ".."}, {"//a", "/a"}, {"//", "/"},
		{"/a%2Fb", "a/b"}, {"/a%2fb", "a/b"}, {"/%2F", "/"}, {"/a%252Fb", "a%2Fb"}, {"/a%20b", "a b"}, {"/a+b", "a+b"}, {"/a%3Fb", "a?b"},
		{"/%E2%82%AC", "€"}, {"/€", "€"}, {"/a%01", "a\x01"}, {"/a;b=c", "a;b=c"}, {"/1", "1"}, {"/V1/x", "V1/x"}, {"/v1x", "v1x"}, {"/v2/kv/a", "v2/kv/a"},
		{"/" + long, long}, {"/v1/kv/a/", "a/"}, {"/v1/kv//a", "/a"}, {"/v1/kv/%2F", "/"}, {"/v1/kv/a%2F..%2Fb", "a/../b"},
		{"/v1/kv/v1/kv/a", "v1/kv/a"}, {"/v1/kv/metrics", "metrics"}, {"/v1/kv/" + long, long},
		{"http://127.0.0.1:9121/abs", "abs"}, {"http://127.0.0.1:9121//abs", "/abs"},
	} {
		at := newAPITest(t)
		if w := at.do("PUT", tt.target, "value"); w.Code != createdBy(tt.target) {
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

// createdBy is the status of a PUT that creates the key of a target.
func createdBy(target string) int {
	if strings.HasPrefix(target, "/v1/kv/") {
		return http.StatusCreated
	}
	return http.StatusNoContent
}

// Guarantee: in the long form a PUT says whether it has created the key.
func TestAPICreated(t *testing.T) {
	at := newAPITest(t)
	for _, tt := range []struct {
		method, target string
		status         int
	}{
		{"PUT", "/v1/kv/k", 201}, {"PUT", "/v1/kv/k", 204}, {"PUT", "/k", 204}, {"DELETE", "/v1/kv/k", 204},
		{"PUT", "/v1/kv/k", 201}, {"DELETE", "/v1/kv/k", 204}, {"PUT", "/k", 204}, {"PUT", "/v1/kv/k", 204},
	} {
		w := at.do(tt.method, tt.target, "v")
		at.want(w, tt.status, "")
		if (tt.method == "PUT") != (w.Header().Get("ETag") != "") {
			t.Errorf("%s %s: %v", tt.method, tt.target, w.Header())
		}
	}
}

// Guarantee: what cannot be a key is refused, before anything is asked of the
// cluster.
func TestAPIBadKeys(t *testing.T) {
	at := newAPITest(t)
	for _, key := range []string{"%00", "a%00b", "%FF", "a%C0%AF", "%ED%A0%80", strings.Repeat("k", config.MaxKeyBytes+1), strings.Repeat("%E2%82%AC", 1366)} {
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
			if w := at.do("PUT", form, "v"); w.Code != http.StatusCreated {
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
		{"PUT", "n", "If-None-Match", `*`, 201, `"2"`},
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
		{"PUT", "k", "Idempotency-Key", "", 400, ""},          // a variable was empty
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
	at.a.keys.Fresh.Applied = new(wait.Index) // a node that joins and has got nothing yet
	at.problem("stale too early", at.do("GET", "/k?consistency=stale", ""), 503, "not_ready")
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
		w := at.serveHere(r)
		if tt.status == 413 {
			at.problem(fmt.Sprintf("%+v", tt), w, 413, "too_large")
		}
		if w.Code != tt.status || body.n > tt.maxRead || (at.proposed == 1) != (tt.status == 204) {
			t.Errorf("%+v: %d after %d bytes, %d proposals", tt, w.Code, body.n, at.proposed)
		}
		if it, _ := at.kv.Get("k"); it != nil && len(it.Value) != tt.size {
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
			at.problem(fmt.Sprint(tt.err, length), at.serveHere(r), tt.status, tt.code)
			if at.proposed != 0 {
				t.Errorf("%v: proposed", tt.err)
			}
		}
	}
}
