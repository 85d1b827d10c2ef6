package main

import (
	"net/http"
	"strings"
	"testing"
)

// Guarantee: a page of another site cannot make a browser write here, nor read or embed
// what is here; somebody who follows its link gets what is there.
func TestAPICrossOrigin(t *testing.T) {
	at := newAPITest(t)
	navigates := []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}
	for _, tt := range []struct {
		headers []string
		ok      bool
	}{
		{nil, true},
		{[]string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:9121"}, true},
		{[]string{"Sec-Fetch-Site", "same-origin", "Origin", "https://kv.example"}, true}, // a proxy stands between
		{[]string{"Sec-Fetch-Site", "none"}, true},
		{[]string{"Origin", "http://127.0.0.1:9121"}, true},
		{[]string{"Sec-Fetch-Site", "cross-site", "Origin", "https://app.example"}, true},
		{[]string{"Origin", "https://app.example"}, true},
		{[]string{"Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example"}, false},
		{[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, false},
		{[]string{"Sec-Fetch-Site", "same-site"}, false},
		{[]string{"Sec-Fetch-Site", "of tomorrow"}, false},
		{[]string{"Origin", "http://evil.example"}, false},
		{[]string{"Origin", "http://app.example"}, false},
		{[]string{"Origin", "https://app.example:8443"}, false},
		{[]string{"Origin", "https://app.example.evil"}, false},
		{[]string{"Origin", "http://127.0.0.1:8000"}, false},
		{[]string{"Origin", "null"}, false},
		{navigates, false}, // but for what only reads
	} {
		for _, call := range []string{
			"GET /k", "HEAD /k", "GET /v1/kv/k?consistency=stale", "GET /v1/members", "GET /v1/status", "GET /metrics", "GET /livez", "GET /", "HEAD /v1/snapshot",
			"PUT /k", "PUT /v1/kv/k", "POST /4", "DELETE /v1/kv/k", "PATCH /v1/members/1", "OPTIONS /k", "BREW /k",
		} {
			method, target, _ := strings.Cut(call, " ")
			ok := tt.ok || len(tt.headers) == len(navigates) && tt.headers[3] == "navigate" && (method == "GET" || method == "HEAD")
			before := at.proposed
			w := at.do(method, target, "http://d:4", tt.headers...)
			if ok == (w.Code == 403) {
				t.Errorf("%s with %q: %d", call, tt.headers, w.Code)
			}
			if h := w.Header(); h.Get("Cross-Origin-Resource-Policy") != "same-origin" || h.Get("Vary") != "Origin" {
				t.Errorf("%s with %q: %v", call, tt.headers, h)
			}
			if !ok && method != "HEAD" {
				at.problem(call, w, 403, "cross_origin")
			}
			if !ok && at.proposed != before {
				t.Errorf("%s with %q was proposed", call, tt.headers)
			}
		}
	}
}

// Guarantee: a page of an allowed origin can use all of the API, also read what went
// wrong; nobody else is told anything.
func TestAPICORS(t *testing.T) {
	at := newAPITest(t)
	const app = "https://app.example"
	page := func(method, target, origin string, headers ...string) (int, http.Header) {
		w := at.do(method, target, "v", append(headers, "Origin", origin, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors")...)
		return w.Code, w.Header()
	}
	has := func(list, name string) bool {
		for field := range strings.SplitSeq(list, ", ") {
			if strings.EqualFold(field, name) {
				return true
			}
		}
		return false
	}
	for _, target := range []string{"/k", "/v1/kv/k", "/v1/members", "/nothing/here", "/v1/nothing"} {
		code, h := page("OPTIONS", target, app, "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "if-match")
		if code != 204 || h.Get("Access-Control-Allow-Origin") != app || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Access-Control-Max-Age") == "" {
			t.Errorf("OPTIONS %s: %d %v", target, code, h)
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"} {
			if !has(h.Get("Access-Control-Allow-Methods"), method) {
				t.Errorf("OPTIONS %s does not allow %s", target, method)
			}
		}
		for _, name := range []string{"If-Match", "If-None-Match", "Idempotency-Key", "Content-Type", "Accept", "Last-Event-ID"} {
			if !has(h.Get("Access-Control-Allow-Headers"), name) {
				t.Errorf("OPTIONS %s does not allow %s", target, name)
			}
		}
		code, h = page("OPTIONS", target, "https://evil.example", "Access-Control-Request-Method", "PUT")
		if code != 403 || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("OPTIONS %s from elsewhere: %d %v", target, code, h)
		}
	}
	if at.proposed+at.asked != 0 {
		t.Error("a question was taken for a request")
	}
	at.do("PUT", "/k", "v")
	for call, want := range map[string]int{"PUT /k": 204, "GET /k": 200, "GET /none": 404, "GET /k?x=1": 400, "OPTIONS /k": 405, "GET /v1/status": 200, "GET /v1/nothing": 404} {
		method, target, _ := strings.Cut(call, " ")
		code, h := page(method, target, app)
		if code != want || h.Get("Access-Control-Allow-Origin") != app || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Vary") != "Origin" {
			t.Errorf("%s: %d %v", call, code, h)
		}
		for _, name := range []string{"ETag", "Raftkv-Revision", "Raftkv-Consistency", "Raftkv-Leader-Contact", "Raftkv-Cluster-Id", "Location", "Retry-After", "Idempotent-Replayed"} {
			if !has(h.Get("Access-Control-Expose-Headers"), name) {
				t.Errorf("%s does not show %s", call, name)
			}
		}
		if _, h := page(method, target, "https://evil.example"); h.Get("Access-Control-Allow-Origin") != "" || h.Get("Access-Control-Expose-Headers") != "" {
			t.Errorf("%s from elsewhere: %v", call, h)
		}
	}
	if code, h := page("GET", "/k", app, "Host", "evil.example"); code != 421 || h.Get("Vary") != "Origin" {
		t.Errorf("wrong host: %d %v", code, h)
	}
	at.a.stopping.Store(true)
	if code, h := page("GET", "/k", app); code != 503 || h.Get("Access-Control-Allow-Origin") != app {
		t.Errorf("stopping: %d %v", code, h)
	}
}

// Guarantee: every answer says which cluster it is of, as the status does.
func TestAPIClusterID(t *testing.T) {
	at := newAPITest(t)
	want := at.srv.status().ClusterID
	for _, call := range []string{"GET /", "PUT /k", "GET /k", "HEAD /k", "GET /none", "GET /k?x", "GET /v1/status", "GET /metrics", "GET /livez", "GET /v1/nothing", "BREW /k"} {
		method, target, _ := strings.Cut(call, " ")
		if got := at.do(method, target, "v").Header()["Raftkv-Cluster-Id"]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", call, got, want)
		}
	}
}
