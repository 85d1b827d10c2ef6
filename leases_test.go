package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/api"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/state"
	"strings"
	"testing"
)

// newLeaseTest is newAPITest on a cluster that knows leases.
func newLeaseTest(t *testing.T) *apiTest {
	at := newAPITest(t)
	at.kv.state.Level = state.ProgramLevel
	at.kv.publish()
	write := at.a.keys.Writes.(proposeFunc)
	at.a.leases.Commands.Propose = func(ctx context.Context, cmd []byte) state.Result { return write(ctx, cmd) }
	return at
}

// tick moves the replicated clock on by so many milliseconds.
func (at *apiTest) tick(ms uint64) {
	at.kv.mu.Lock()
	defer at.kv.mu.Unlock()
	at.kv.state.Index++
	e := entryAt(at.kv.state.Index, entry.EncodeTick(at.kv.state.Term, at.kv.state.Leases.Clock+ms))
	e.Term = new(at.kv.state.Term)
	at.kv.state.Index--
	if _, _, err := at.kv.state.ApplyEntry(e); err != nil {
		at.Fatal(err)
	}
}

// into decodes an answer's body, which must have a status.
func (at *apiTest) into(w *httptest.ResponseRecorder, status int, v any) {
	at.Helper()
	if w.Code != status {
		at.Fatalf("%d %s, want %d", w.Code, w.Body, status)
	}
	if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
		at.Fatalf("%s: %v", w.Body, err)
	}
}

type leaseAnswer struct {
	ID      uint64   `json:"id"`
	TTL     float64  `json:"ttl_seconds"`
	Expires float64  `json:"expires_in_seconds"`
	Count   int      `json:"key_count"`
	Keys    []string `json:"keys"`
	Next    string   `json:"next"`
}

// Guarantee: a lease is made, kept alive, shown with its keys, and goes with them.
func TestAPILeases(t *testing.T) {
	at := newLeaseTest(t)
	var l leaseAnswer
	w := at.do("POST", "/v1/leases", `{"ttl":"10s"}`)
	if at.into(w, 201, &l); l.ID != 1 || l.TTL != 10 || w.Header().Get("Location") != "/v1/leases/1" {
		t.Fatalf("%+v, %v", l, w.Header())
	}
	for _, key := range []string{"a", "b", "c"} {
		if w := at.do("PUT", "/v1/kv/"+key+"?lease=1", "v"); w.Code/100 != 2 {
			t.Fatal(w.Code, w.Body)
		}
	}
	at.tick(500)
	at.tick(4000)
	if at.into(at.do("GET", "/v1/leases/1", ""), 200, &l); l.Count != 3 || strings.Join(l.Keys, "") != "abc" || l.Expires != 6.001 || l.Next != "" {
		t.Errorf("%+v", l)
	}
	l = leaseAnswer{}
	if at.into(at.do("GET", "/v1/leases/1?limit=2", ""), 200, &l); strings.Join(l.Keys, "") != "ab" || l.Next != "b" {
		t.Errorf("%+v", l)
	}
	l = leaseAnswer{}
	if at.into(at.do("GET", "/v1/leases/1?limit=2&start_after=b", ""), 200, &l); strings.Join(l.Keys, "") != "c" || l.Next != "" {
		t.Errorf("%+v", l)
	}
	if at.into(at.do("PUT", "/v1/leases/1", ""), 200, &l); l.Expires != 10 || l.ID != 1 {
		t.Errorf("%+v", l)
	}
	at.tick(6500)
	if w := at.do("GET", "/a", ""); w.Code != 200 {
		t.Errorf("it was kept alive, and a is %d", w.Code)
	}
	if w := at.do("PUT", "/b", "for good"); w.Code != 204 {
		t.Error(w.Code)
	}
	revision := at.kv.state.Revision
	at.tick(10_001)
	for key, want := range map[string]int{"a": 404, "b": 200, "c": 404} {
		if w := at.do("GET", "/"+key, ""); w.Code != want {
			t.Errorf("%s: %d, want %d", key, w.Code, want)
		}
	}
	if at.kv.state.Revision != revision+1 {
		t.Errorf("two keys went in %d revisions", at.kv.state.Revision-revision)
	}
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		at.problem(method, at.do(method, "/v1/leases/1", ""), 404, "no_such_lease")
	}
	if got := at.do("GET", "/v1/leases/1", "").Header().Get("Raftkv-Revision"); got != fmt.Sprint(at.kv.state.Revision) {
		t.Errorf("that it is not there is of revision %q", got)
	}
	at.problem("a dead lease", at.do("PUT", "/k?lease=1", "v"), 409, "no_such_lease")
	at.into(at.do("POST", "/v1/leases", `{"ttl":"1s"}`), 201, &l)
	at.do("PUT", fmt.Sprintf("/k?lease=%d", l.ID), "v")
	if w := at.do("DELETE", fmt.Sprintf("/v1/leases/%d", l.ID), ""); w.Code != 204 || w.Header().Get("Raftkv-Revision") != fmt.Sprint(at.kv.state.Revision) {
		t.Error(w.Code, w.Header())
	}
	if w := at.do("GET", "/k", ""); w.Code != 404 {
		t.Error("revoked, and its key is still there")
	}
}

// Guarantee: a key with a time to live goes by itself, unless it is written without one.
func TestAPITTL(t *testing.T) {
	at := newLeaseTest(t)
	for _, key := range []string{"a", "b", "c"} {
		if w := at.do("PUT", "/"+key+"?ttl=5s", "v"); w.Code != 204 || w.Header().Get("ETag") == "" {
			t.Fatal(w.Code, w.Body)
		}
	}
	at.tick(100)
	at.do("PUT", "/b", "v")
	at.do("PUT", "/c?ttl=10s", "v")
	at.tick(5000)
	if w := at.do("GET", "/a", ""); w.Code != 200 {
		t.Error("it went early")
	}
	at.tick(1)
	for key, want := range map[string]int{"a": 404, "b": 200, "c": 200} {
		if w := at.do("GET", "/"+key, ""); w.Code != want {
			t.Errorf("%s: %d, want %d", key, w.Code, want)
		}
	}
	if w := at.do("PUT", "/d?ttl=5s", "v", "If-None-Match", "*"); w.Code != 204 {
		t.Error(w.Code)
	}
	if w := at.do("PUT", "/d?ttl=5s", "v", "If-None-Match", "*"); w.Code != 412 {
		t.Error(w.Code)
	}
	var list struct{ Leases []leaseAnswer }
	if at.into(at.do("GET", "/v1/leases", ""), 200, &list); len(list.Leases) != 0 {
		t.Errorf("a time to live is listed: %+v", list)
	}
	at.problem("a private lease", at.do("PUT", "/v1/leases/1", ""), 404, "no_such_lease")
	at.problem("a private lease", at.do("PUT", "/x?lease=1", "v"), 409, "no_such_lease")
}

// Guarantee: what is not understood is refused and changes nothing.
func TestAPILeaseRequests(t *testing.T) {
	at := newLeaseTest(t)
	at.do("POST", "/v1/leases", `{"ttl":"1s"}`)
	for _, tt := range []struct {
		method, target, body string
		status               int
		says                 string
	}{
		{"PUT", "/k?ttl=30", "v", 400, "30s"},
		{"PUT", "/k?ttl=", "v", 400, "30s"},
		{"PUT", "/k?ttl=99ms", "v", 400, "100ms"},
		{"PUT", "/k?ttl=8760h1ns", "v", 400, "8760h"},
		{"PUT", "/k?ttl=99999999h", "v", 400, `ttl is \"99999999h\", and must be 100ms to 8760h0m0s`},
		{"PUT", "/k?ttl=99999999y", "v", 400, "not a time"},
		{"PUT", "/k?ttl=-5s", "v", 400, "100ms"},
		{"PUT", "/k?ttl=1s&ttl=1s", "v", 400, "twice"},
		{"PUT", "/k?ttl=1s&lease=1", "v", 400, "not both"},
		{"PUT", "/k?TTL=1s", "v", 400, "unknown"},
		{"PUT", "/k?lease=0", "v", 400, "positive"},
		{"PUT", "/k?lease=01", "v", 400, "positive"},
		{"PUT", "/k?lease=x", "v", 400, "positive"},
		{"GET", "/k?ttl=1s", "", 400, "unknown"},
		{"DELETE", "/v1/kv/k?lease=1", "", 400, "unknown"},
		{"POST", "/v1/leases", `{}`, 400, "ttl is missing"},
		{"POST", "/v1/leases", `{"ttl":"999ms"}`, 400, "1s"},
		{"POST", "/v1/leases", `{"ttl":"8760h0m1s"}`, 400, "8760h"},
		{"POST", "/v1/leases", `{"ttl":10}`, 400, "a number in place of a string"},
		{"POST", "/v1/leases", `{"ttl":"10"}`, 400, "10s"},
		{"POST", "/v1/leases", `{"TTL":"10s"}`, 400, "TTL"},
		{"POST", "/v1/leases?x=1", `{"ttl":"10s"}`, 400, "unknown"},
		{"POST", "/v1/leases", `{"ttl":"` + strings.Repeat("1", api.MaxMemberBytes) + `s"}`, 413, "bytes"},
		{"PUT", "/v1/leases/x", "", 400, "positive"},
		{"PUT", "/v1/leases/1", `{"ttl":"5s"}`, 400, "keeps the time"},
		{"PUT", "/v1/leases/1", " ", 400, "no body"},
		{"PUT", "/v1/leases/1?ttl=5s", "", 400, "unknown"},
		{"GET", "/v1/leases/", "", 400, "positive"},
		{"GET", "/v1/leases?limit=0", "", 400, "1 to 10000"},
		{"GET", "/v1/leases?limit=10001", "", 400, "1 to 10000"},
		{"GET", "/v1/leases?start_after=x", "", 400, "ID of a lease"},
		{"GET", "/v1/leases?start_after=18446744073709551615", "", 400, "ID of a lease"},
		{"GET", "/v1/leases?consistency=weak", "", 400, "consistency"},
		{"GET", "/v1/leases/1?start_after=" + strings.Repeat("k", 4097), "", 400, "longer"},
		{"PATCH", "/v1/leases/1", "", 405, "GET, HEAD"},
		{"PATCH", "/v1/leases", "", 405, "POST"},
	} {
		w := at.do(tt.method, tt.target, tt.body)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s %.60s %.40s: %d %s, want %d and %q", tt.method, tt.target, tt.body, w.Code, w.Body, tt.status, tt.says)
		}
	}
	for _, condition := range []string{"If-Match", "If-None-Match"} {
		at.problem(condition, at.do("POST", "/v1/leases", `{"ttl":"10s"}`, condition, "*"), 400, "bad_request")
		at.problem(condition, at.do("PUT", "/v1/leases/1", "", condition, "*"), 400, "bad_request")
		at.problem(condition, at.do("DELETE", "/v1/leases/1", "", condition, "*"), 400, "bad_request")
		at.problem(condition, at.do("POST", "/v1/leader", "{}", condition, "*"), 400, "bad_request")
	}
	if at.asked != 0 {
		t.Errorf("%d bad reads were confirmed first", at.asked)
	}
	for _, ttl := range []string{"100ms", "8760h"} {
		if w := at.do("PUT", "/k?ttl="+ttl, "v"); w.Code != 204 {
			t.Errorf("%s: %d", ttl, w.Code)
		}
	}
	if w := at.do("POST", "/v1/leases", `{"ttl":"8760h"}`, "Content-Type", "application/x-www-form-urlencoded"); w.Code != 201 {
		t.Error(w.Code, w.Body)
	}
	if len := at.kv.state.Leases.Listed(); len != 2 {
		t.Errorf("%d leases", len)
	}
}

// Guarantee: leases are listed in pages, all of them once.
func TestAPILeasePages(t *testing.T) {
	at := newLeaseTest(t)
	for range 25 {
		at.do("POST", "/v1/leases", `{"ttl":"10s"}`)
		at.do("PUT", "/k?ttl=10s", "v") // with a lease that is not listed
	}
	var ids []uint64
	for target := "/v1/leases?limit=7"; ; {
		var page struct {
			Leases []leaseAnswer
			Next   uint64
		}
		at.into(at.do("GET", target, ""), 200, &page)
		for _, l := range page.Leases {
			ids = append(ids, l.ID)
		}
		if page.Next == 0 {
			break
		}
		target = fmt.Sprintf("/v1/leases?limit=7&start_after=%d", page.Next)
	}
	for i, id := range ids {
		if id != uint64(2*i+1) {
			t.Fatalf("%d", ids)
		}
	}
	if len(ids) != 25 {
		t.Errorf("%d leases in pages, want 25", len(ids))
	}
}

// Guarantee: while a member's program does not know leases, what needs them is refused and
// never in the log.
func TestAPILeasesUpgrading(t *testing.T) {
	at := newLeaseTest(t)
	at.kv.state.Level = state.LeaseLevel - 1
	at.kv.publish()
	for _, r := range [][3]string{
		{"POST", "/v1/leases", `{"ttl":"10s"}`}, {"PUT", "/v1/leases/1", ""}, {"DELETE", "/v1/leases/1", ""},
		{"PUT", "/k?ttl=5s", "v"}, {"PUT", "/k?lease=1", "v"},
	} {
		at.problem(r[1], at.do(r[0], r[1], r[2]), 503, "upgrading")
	}
	if at.proposed != 0 {
		t.Errorf("%d were proposed", at.proposed)
	}
	if w := at.do("PUT", "/k", "v"); w.Code != http.StatusNoContent {
		t.Error(w.Code)
	}
}

// Guarantee: leases count against the quota.
func TestAPILeaseQuota(t *testing.T) {
	at := newLeaseTest(t)
	at.a.keys.Quota.Limit, at.a.keys.Quota.Room = 3*lease.Cost, 0
	for i := range 3 {
		if w := at.do("POST", "/v1/leases", `{"ttl":"10s"}`); w.Code != 201 {
			t.Fatal(i, w.Code, w.Body)
		}
	}
	at.problem("one more", at.do("POST", "/v1/leases", `{"ttl":"10s"}`), 507, "quota_exceeded")
	at.do("DELETE", "/v1/leases/2", "")
	if w := at.do("PUT", "/k?ttl=10s", strings.Repeat("v", 50)); w.Code != 507 {
		t.Error("a time to live is for nothing", w.Code)
	}
	if w := at.do("POST", "/v1/leases", `{"ttl":"10s"}`); w.Code != 201 {
		t.Error(w.Code, w.Body)
	}
}
