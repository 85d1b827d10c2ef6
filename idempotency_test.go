package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"raftkv/internal/api"
	"raftkv/internal/limits"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"testing"
)

// repeats sends a request twice under one key, and checks that the second time it has done
// nothing and said the same.
func (at *apiTest) repeats(key, method, target, body string, headers ...string) (first *httptest.ResponseRecorder) {
	at.Helper()
	headers = append(headers, "Idempotency-Key", key)
	first = at.do(method, target, body, headers...)
	at.kv.mu.Lock()
	revision := at.kv.state.Revision
	at.kv.mu.Unlock()
	again := at.do(method, target, body, headers...)
	if first.Code >= 400 { // its text may say more the first time
		what := fmt.Sprint(method, " ", target)
		code := problemCode(first)
		at.problem(what, again, first.Code, code)
	} else if again.Code != first.Code || again.Body.String() != first.Body.String() {
		at.Errorf("%s %s: the repeat got %d %q, want %d %q", method, target, again.Code, again.Body, first.Code, first.Body)
	}
	for _, name := range []string{"Etag", "Raftkv-Revision", "Location", "Content-Type"} {
		if a, b := first.Header().Get(name), again.Header().Get(name); a != b {
			at.Errorf("%s %s: the repeat has %s %q, want %q", method, target, name, b, a)
		}
	}
	if a, b := first.Header().Get("Idempotent-Replayed"), again.Header().Get("Idempotent-Replayed"); a != "" || b != "true" {
		at.Errorf("%s %s: Idempotent-Replayed is %q, then %q", method, target, a, b)
	}
	at.kv.mu.Lock()
	defer at.kv.mu.Unlock()
	if now := at.kv.state.Revision; now != revision {
		at.Errorf("%s %s: the repeat moved the revision from %d to %d", method, target, revision, now)
	}
	return first
}

func problemCode(w *httptest.ResponseRecorder) string {
	var p struct{ Code string }
	_ = json.Unmarshal(w.Body.Bytes(), &p)
	return p.Code
}

// Guarantee: each request that can have an Idempotency-Key happens once under it, and a
// repeat gets the whole answer again.
func TestAPIIdempotencyKey(t *testing.T) {
	at := newTxnTest(t)
	at.level(state.OnceLevel)
	for i, tt := range []struct {
		method, target, body string
		status               int
		headers              []string
	}{
		{"PUT", "/v1/kv/long", "v", 201, nil},
		{"PUT", "/v1/kv/long", "w", 204, nil},
		{"PUT", "/short", "v", 204, nil},
		{"PUT", "/short", "w", 412, []string{"If-None-Match", "*"}},
		{"PUT", "/timed?ttl=30s", "w", 204, nil},
		{"PUT", "/leased?lease=77", "w", 409, nil},
		{"DELETE", "/v1/kv/short", "", 204, nil},
		{"DELETE", "/v1/kv/short", "", 404, nil},
		{"DELETE", "/v1/kv/short", "", 412, []string{"If-Match", `"1"`}},
		{"PUT", "/v1/kv?key=a//b", "v", 201, nil},
		{"POST", "/v1/add?key=n", "5", 200, nil},
		{"POST", "/v1/add?key=timed", "5", 409, nil},
		{"POST", "/v1/kv?prefix=jobs/", "x", 201, nil},
		{"POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":"1"}},{"add":{"key":"n","delta":"1"}},{"append":{"prefix":"jobs/","value":"y"}},{"delete":{"key":"long"}}]}`, 200, nil},
		{"POST", "/v1/txn", `{"if":[{"key":"a","exists":false}],"then":[{"put":{"key":"a","value":"1"}}],"else":[{"delete":{"key":"no"}}]}`, 200, nil},
		{"DELETE", "/v1/kv?prefix=jobs/&limit=1", "", 200, nil},
		{"POST", "/v1/leases", `{"ttl":"10s"}`, 201, nil},
	} {
		w := at.repeats(fmt.Sprint("request-", i), tt.method, tt.target, tt.body, tt.headers...)
		if w.Code != tt.status {
			at.Errorf("%s %s: %d %s, want %d", tt.method, tt.target, w.Code, w.Body, tt.status)
		}
	}
	// A repeat may come through another form, and has the status of that one.
	if w := at.do("PUT", "/forms", "v", "Idempotency-Key", "forms"); w.Code != 204 {
		at.Error(w.Code, w.Body)
	}
	if w := at.do("PUT", "/v1/kv/forms", "v", "Idempotency-Key", "forms"); w.Code != 201 || w.Header().Get("Idempotent-Replayed") != "true" {
		at.Error(w.Code, w.Body)
	}
	at.problem("another request", at.do("PUT", "/other", "v", "Idempotency-Key", "request-0"), 422, "idempotency_key_reused")
	at.problem("another value", at.do("PUT", "/v1/kv/long", "x", "Idempotency-Key", "request-0"), 422, "idempotency_key_reused")
	// A node may let its answers have other sizes.
	at.a.txns.MaxValue = 50
	if w := at.do("POST", "/v1/txn", `{"then":[{"delete":{"key":"t"}}]}`, "Idempotency-Key", "sizes"); w.Code != 200 {
		at.Error(w.Code, w.Body)
	}
	at.a.txns.MaxValue = 60
	if w := at.do("POST", "/v1/txn", `{"then":[{"delete":{"key":"t"}}]}`, "Idempotency-Key", "sizes"); w.Code != 200 || w.Header().Get("Idempotent-Replayed") != "true" {
		at.Error(w.Code, w.Body)
	}
}

// Guarantee: who repeats a transaction hears what it wrote, also when what it reads has
// become too large to tell.
func TestAPIIdempotencyRepeatReadsMore(t *testing.T) {
	at := newTxnTest(t)
	at.level(state.OnceLevel)
	body := `{"then":[{"add":{"key":"n","delta":"1"}},{"list":{"prefix":"p/"}},{"get":{"key":"n"}}]}`
	if w := at.do("POST", "/v1/txn", body, "Idempotency-Key", "a"); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	for i := range 3 {
		at.do("PUT", fmt.Sprint("/p/", i), strings.Repeat("v", 90))
	}
	w := at.do("POST", "/v1/txn", body, "Idempotency-Key", "a")
	at.want(w, 200, `{"succeeded":true,"revision":1,"results":[{"add":{"value":"1","mod_revision":1}},{"list":{"too_large":true}},`+
		`{"get":{"key":"n","value":"1","create_revision":1,"mod_revision":1,"version":1}}]}`+"\n")
	if w.Header().Get("Idempotent-Replayed") != "true" {
		t.Error(w.Header())
	}
}

// Guarantee: a key is what RFC 9651 makes of its string, both forms are the same key, and
// what is no key is refused before anything happens.
func TestAPIIdempotencyKeyForms(t *testing.T) {
	at := newTxnTest(t)
	at.level(state.OnceLevel)
	most := strings.Repeat("k", once.MaxName)
	for _, tt := range []struct {
		name    string
		headers []string
		record  string // its key; empty: it is refused
		class   once.Class
	}{
		{"a word", []string{`7b-1:x/y=`}, `7b-1:x/y=`, once.TenMinutes},
		{"a string", []string{`"7b"`}, `7b`, once.TenMinutes},
		{"kept short", []string{`"8b";keep=10`}, `8b`, once.TenSeconds},
		{"kept for a minute", []string{`"9b"; keep=60`}, `9b`, once.Minute},
		{"kept long", []string{`"ab";keep=600`}, `ab`, once.TenMinutes},
		{"escapes", []string{`"a\"b\\c, d"`}, `a"b\c, d`, once.TenMinutes},
		{"as long as may be", []string{most}, most, once.TenMinutes},
		{"as long, in quotes", []string{`"` + most[1:] + `\\"`}, most[1:] + `\`, once.TenMinutes},
		{"one more", []string{most + "k"}, "", 0},
		{"one more in quotes", []string{`"` + most + `k"`}, "", 0},
		{"empty", []string{""}, "", 0},
		{"empty string", []string{`""`}, "", 0},
		{"twice", []string{"a", "a"}, "", 0},
		{"a space", []string{"a b"}, "", 0},
		{"a comma", []string{"a,b"}, "", 0},
		{"a semicolon", []string{"a;keep=60"}, "", 0},
		{"a quote within", []string{`a"b`}, "", 0},
		{"a backslash", []string{`a\b`}, "", 0},
		{"not ASCII", []string{"é"}, "", 0},
		{"no end", []string{`"a`}, "", 0},
		{"an escape of nothing", []string{`"a\`}, "", 0},
		{"another escape", []string{`"a\n"`}, "", 0},
		{"a control character", []string{"\"a\tb\""}, "", 0},
		{"two strings", []string{`"a", "b"`}, "", 0},
		{"another keep", []string{`"a";keep=61`}, "", 0},
		{"keep without a number", []string{`"a";keep`}, "", 0},
		{"keep with a unit", []string{`"a";keep=60s`}, "", 0},
		{"keep twice", []string{`"a";keep=60;keep=10`}, "", 0},
		{"another parameter", []string{`"a";for=60`}, "", 0},
		{"more behind it", []string{`"a" b`}, "", 0},
	} {
		for _, how := range []struct{ method, target, body string }{{"PUT", "/v1/kv/k", "v"}, {"POST", "/v1/add?key=n", "1"}} {
			proposed := at.proposed
			var headers []string
			for _, line := range tt.headers {
				headers = append(headers, "Idempotency-Key", line)
			}
			w := at.do(how.method, how.target, how.body, headers...)
			if tt.record == "" {
				if at.problem(tt.name, w, 400, "bad_request"); at.proposed != proposed {
					at.Errorf("%s: it was proposed", tt.name)
				}
				continue
			}
			if w.Code >= 300 && w.Code != 422 { // the second way is another request
				at.Errorf("%s: %d %s", tt.name, w.Code, w.Body)
			}
			at.kv.View(func(s *state.State) {
				if r := s.Once.Get(once.Key{Name: tt.record}); r == nil || r.Class != tt.class {
					at.Errorf("%s: the record is %v", tt.name, r)
				}
			})
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		at.problem(method, at.do(method, "/k", "", "Idempotency-Key", "a"), 400, "bad_request")
	}
	for what, w := range map[string]*httptest.ResponseRecorder{
		"list": at.do("GET", "/v1/kv", "", "Idempotency-Key", "a"), "leases": at.do("GET", "/v1/leases", "", "Idempotency-Key", "a"),
		"a bad one on a batch of reads": at.do("POST", "/v1/txn", `{"then":[{"get":{"key":"k"}}]}`, "Idempotency-Key", `"a`),
		"members":                       at.do("POST", "/v1/members", `{"peer_url":"http://127.0.0.1:9"}`, "Idempotency-Key", "a"),
		"a member":                      at.do("DELETE", "/v1/members/2", "", "Idempotency-Key", "a"),
		"a node":                        at.do("POST", "/4", "http://127.0.0.1:9", "Idempotency-Key", "a"),
		"the leader":                    at.do("POST", "/v1/leader", `{}`, "Idempotency-Key", "a"),
	} {
		at.problem(what, w, 400, "bad_request")
	}
	id := at.do("POST", "/v1/leases", `{"ttl":"10s"}`).Header().Get("Location")
	for _, method := range []string{"PUT", "DELETE"} {
		at.problem(method, at.do(method, id, "", "Idempotency-Key", "a"), 400, "bad_request")
	}
}

// Guarantee: below its level a request with a key is refused, not done without it.
func TestAPIIdempotencyKeyLevel(t *testing.T) {
	at := newTxnTest(t)
	for what, w := range map[string]*httptest.ResponseRecorder{
		"put": at.do("PUT", "/k", "v", "Idempotency-Key", "a"), "add": at.do("POST", "/v1/add?key=n", "1", "Idempotency-Key", "b"),
	} {
		at.problem(what, w, 503, "upgrading")
	}
	if at.proposed != 0 {
		t.Error("it was proposed")
	}
}

// Guarantee: a repeat of what was carried out gets its answer also where nothing new is let
// in, by the quota or by the disk: it must not be told that nothing happened.
func TestAPIIdempotencyRepeatOnFullStore(t *testing.T) {
	at := newTxnTest(t)
	at.level(state.OnceLevel)
	type request struct{ method, target, body string }
	requests := []request{{"PUT", "/v1/kv/k", "v"}, {"PUT", "/v1/kv/t?ttl=30s", "v"}, {"POST", "/v1/add?key=n", "1"}, {"POST", "/v1/kv?prefix=p/", "v"},
		{"POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":"1"}}]}`}, {"POST", "/v1/leases", `{"ttl":"10s"}`}}
	send := func(r request) *httptest.ResponseRecorder {
		return at.do(r.method, r.target, r.body, "Idempotency-Key", fmt.Sprintf("%x", r.target))
	}
	codes := make(map[request]int)
	for _, r := range requests {
		codes[r] = send(r).Code
	}
	full := func(err error) func() error { return func() error { return err } }
	for what, fill := range map[string]func(a *api.Admission){
		"quota": func(a *api.Admission) { a.Quota.Limit = 1 },
		"disk":  func(a *api.Admission) { a.MayWrite = full(problem.ErrDiskFull) },
	} {
		for _, a := range []*api.Admission{&at.a.keys.Admission, &at.a.txns.Commands.Admission} {
			fill(a)
		}
		for _, r := range requests {
			if w := send(r); w.Code != codes[r] || w.Header().Get("Idempotent-Replayed") != "true" {
				t.Errorf("%s, %s %s: %d %s, want %d", what, r.method, r.target, w.Code, w.Body, codes[r])
			}
		}
		if w := at.do("PUT", "/v1/kv/k2", "v", "Idempotency-Key", "new"); w.Code != 507 {
			t.Errorf("%s: a new one is %d", what, w.Code)
		}
	}
}

// Guarantee: a full table refuses new requests with a key before they are proposed, lets
// repeats and requests without one pass, and forgets nothing early.
func TestAPIIdempotencyTableFull(t *testing.T) {
	at := newTxnTest(t)
	at.level(state.OnceLevel)
	const room = 4096
	outcomes := limits.NewOutcomes(8*room, at.kv.View)
	at.a.keys.Outcomes, at.a.txns.Commands.Outcomes = outcomes, outcomes
	n := 0
	var last *httptest.ResponseRecorder
	for ; n < 100; n++ {
		if last = at.do("PUT", "/k", "v", "Idempotency-Key", fmt.Sprintf("key-%03d", n)); last.Code != 204 {
			break
		}
	}
	at.problem("one too many", last, 429, "overloaded")
	if last.Header().Get("Retry-After") == "" {
		t.Error("it does not say when to come again")
	}
	at.kv.View(func(s *state.State) {
		if n < 10 || s.Once.Len() != n || s.Once.Bytes() > room {
			t.Errorf("%d requests passed, %d are recorded in %d bytes", n, s.Once.Len(), s.Once.Bytes())
		}
	})
	proposed := at.proposed
	at.problem("another resource", at.do("POST", "/v1/add?key=n", "1", "Idempotency-Key", "other"), 429, "overloaded")
	at.problem("a deletion", at.do("DELETE", "/v1/kv/k", "", "Idempotency-Key", "other"), 429, "overloaded")
	if at.proposed != proposed {
		t.Error("what is refused was proposed")
	}
	if w := at.do("PUT", "/k", "v", "Idempotency-Key", "key-000"); w.Code != 204 || w.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("a repeat: %d %s", w.Code, w.Body)
	}
	if w := at.do("PUT", "/k", "v"); w.Code != 204 {
		t.Errorf("without a key: %d", w.Code)
	}
	at.tick(1)
	at.tick(600_002)
	if w := at.do("PUT", "/k", "v", "Idempotency-Key", "key-000"); w.Code != 204 || w.Header().Get("Idempotent-Replayed") != "" {
		t.Errorf("once there is room again: %d %s", w.Code, w.Body)
	}
}
