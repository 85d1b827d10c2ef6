package main

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/limits"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Guarantee: a write whose tag somebody between has weakened is told so, and
// what the tag is now, as of this request; it costs no log entry.
func TestAPIWeakenedTag(t *testing.T) {
	for method, body := range map[string]string{"PUT": "w", "DELETE": ""} {
		at := newAPITest(t)
		at.do("PUT", "/k", "v")
		at.proposed, at.asked = 0, 0
		detail := at.problem(method, at.do(method, "/v1/kv/k", body, "If-Match", `W/"1"`), 412, "precondition_failed")
		if !strings.Contains(detail, `This store gave out "1"`) || !strings.Contains(detail, "compress") {
			t.Errorf("%s: %q does not say what has happened", method, detail)
		}
		if detail := at.problem(method, at.do(method, "/v1/kv/k", body, "If-Match", `W/"x"`), 412, "precondition_failed"); strings.Contains(detail, "gave out \"") {
			t.Errorf("%s: %q claims a tag of another's", method, detail)
		}
		if at.proposed != 0 || at.asked != 2 {
			t.Errorf("%s: %d proposals, %d linearizable reads; want none and one each", method, at.proposed, at.asked)
		}
		at.fails = problem.ErrUnavailable // then nobody knows what the tag is
		w := at.do(method, "/v1/kv/k", body, "If-Match", `W/"1"`)
		at.problem(method, w, 503, "unavailable")
		if w.Header().Get("ETag") != "" {
			t.Errorf("%s: an ETag that was not confirmed", method)
		}
	}
}

// Guarantee: no cache between may answer for this node. Values and their absence
// may be kept if the node is asked each time, nothing else may be kept at all.
func TestAPICacheControl(t *testing.T) {
	const ask, never = "no-cache, no-transform", "no-store"
	at := newAPITest(t)
	at.a.profiles = true
	at.do("PUT", "/k", "v")
	check := func(what, method, target string, status int, want string, headers ...string) {
		t.Helper()
		w := at.do(method, target, "", headers...)
		if got := w.Header()["Cache-Control"]; w.Code != status || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %d, Cache-Control %q; want %d, %q", what, w.Code, got, status, want)
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		for _, form := range []string{"/", "/v1/kv/"} {
			check("a value", method, form+"k", 200, ask)
			check("a stale read", method, form+"k?consistency=stale", 200, ask)
			check("no value", method, form+"n", 404, ask)
			check("a list of leases", method, "/v1/leases", 200, ask)
			check("no lease", method, "/v1/leases/9", 404, ask)
			check("a bad page of leases", method, "/v1/leases?start_after=x", 400, never)
			check("unchanged", method, form+"k", 304, ask, "If-None-Match", `"1"`)
			check("If-Match", method, form+"k", 412, never, "If-Match", `"2"`)
			check("a bad parameter", method, form+"k?x=1", 400, never)
			check("cross-origin", "PUT", form+"k", 403, never, "Origin", "http://evil.example")
			check("wrong host", method, form+"k", 421, never, "Host", "evil.example")
		}
		for _, target := range []string{"/", "/livez", "/readyz", "/readyz?verbose", "/metrics", "/v1/status", "/v1/members", "/v1/members/1",
			"/debug/pprof/", "/debug/pprof/cmdline"} {
			check(target, method, target, 200, never)
		}
		check("no such path", method, "/v1/nothing", 404, never)
		check("no such member", method, "/v1/members/9", 404, never)
		check("reserved", method, "/ui", 400, never)
		check("a redirect", method, "/debug/pprof", 307, never)
	}
	check("a write", "PUT", "/k", 204, never)
	check("a write that fails", "PUT", "/k", 412, never, "If-Match", `"1"`)
	check("no such key", "DELETE", "/v1/kv/n", 404, never)
	check("a deletion", "DELETE", "/v1/kv/k", 204, never)
	check("a method", "BREW", "/k", 405, never)
	check("a member", "DELETE", "/3?force=true", 204, never)
	at.a.keys.Fresh.Confirm = func(context.Context) error { return problem.ErrUnavailable }
	check("unconfirmed", "GET", "/k", 503, never)
	check("unconfirmed", "GET", "/v1/members", 503, never)
	check("unconfirmed", "GET", "/v1/leases", 503, never)
	check("unconfirmed", "GET", "/v1/leases/1", 503, never)
	at.a.stopping.Store(true)
	check("stopping", "GET", "/k", 503, never)

	refusal, err := limits.TooManyConns()
	testkit.Must(t, err)
	if !strings.Contains(refusal, "\r\nCache-Control: no-store\r\n") {
		t.Errorf("one connection too many: %q", refusal)
	}
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Second, zap.NewNop())) // that of a node that starts
	testkit.Must(t, err)
	defer func() { testkit.Must(t, l.close()) }()
	for path, status := range map[string]int{"/livez": 200, "/k": 503} {
		client := http.Client{Transport: openapitest.Transport(t, http.DefaultTransport)}
		resp, err := client.Get(fmt.Sprintf("http://%s%s", l.Addr(), path))
		testkit.Must(t, err)
		if got := resp.Header["Cache-Control"]; resp.StatusCode != status || len(got) != 1 || got[0] != never {
			t.Errorf("GET %s of a node that starts: %d, Cache-Control %q; want %d, %q", path, resp.StatusCode, got, status, never)
		}
		testkit.Must(t, resp.Body.Close())
	}
}
