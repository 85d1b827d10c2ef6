package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"strings"
	"testing"
	"time"
)

// newTxnTest is newAPITest for what commands are proposed, at the level at which they may
// be.
func newTxnTest(t *testing.T) *apiTest {
	at := newAPITest(t)
	at.a.txns.Commands.Propose = func(ctx context.Context, cmd []byte) state.Result {
		done := make(outcome, 1)
		if _, err := at.a.keys.Writes.Start(cmd, done); err != nil {
			return state.Result{Err: err}
		}
		return <-done
	}
	at.level(state.TxnLevel)
	return at
}

func (at *apiTest) level(level uint64) {
	at.kv.mu.Lock()
	defer at.kv.mu.Unlock()
	at.kv.state.Level = level
	at.kv.publish()
}

// txn checks a transaction that is fine.
func (at *apiTest) txn(body, want string) {
	at.Helper()
	w := at.do("POST", "/v1/txn", body)
	if strings.TrimSpace(w.Body.String()) != want || w.Code != http.StatusOK {
		at.Errorf("%.200s: the answer is %d %.400s, want %.400s", body, w.Code, w.Body, want)
	}
}

// Guarantee: a transaction is the conditions, operations and results of the documentation.
func TestAPITxn(t *testing.T) {
	at := newTxnTest(t)
	at.a.txns.MaxValue = 200
	at.txn(`{}`, `{"succeeded":true,"revision":0,"results":[]}`)
	at.txn(`{"then":[{"put":{"key":"a","value":"1"}},{"put":{"key":"c","value_base64":"/w=="}}]}`,
		`{"succeeded":true,"revision":1,"results":[{"put":{"key":"a","mod_revision":1}},{"put":{"key":"c","mod_revision":1}}]}`)
	at.txn(`{"if":[{"key":"a","mod_revision":1},{"key":"b","exists":false},{"key":"c","value_base64":"/w=="},{"prefix":"p/","exists":false}],
		"then":[{"put":{"key":"a","value":"<2>","ttl":"30s"}},{"delete":{"key":"c"}},{"delete":{"key":"no"}},{"add":{"key":"hits","delta":"1"}},
			{"append":{"prefix":"jobs/","value":"x"}},{"get":{"key":"a"}},{"get":{"key":"c"}},{"list":{"prefix":"","limit":2}}],
		"else":[{"get":{"key":"a"}}]}`,
		`{"succeeded":true,"revision":2,"results":[{"put":{"key":"a","mod_revision":2}},{"delete":{"deleted":1}},{"delete":{"deleted":0}},`+
			`{"add":{"value":"1","mod_revision":2}},{"append":{"key":"jobs/00000000000000000002-000","mod_revision":2}},`+
			`{"get":{"key":"a","value":"<2>","create_revision":1,"mod_revision":2,"version":2,"expires_in_seconds":30}},{"get":null},`+
			`{"list":{"items":[{"key":"a","value":"<2>","create_revision":1,"mod_revision":2,"version":2,"expires_in_seconds":30},`+
			`{"key":"hits","value":"1","create_revision":2,"mod_revision":2,"version":1}],"next":"hits"}}]}`)
	at.txn(`{"if":[{"key":"a","version":1}],"then":[{"put":{"key":"a","value":"3"}}],"else":[{"get":{"key":"hits"}}]}`,
		`{"succeeded":false,"revision":2,"results":[{"get":{"key":"hits","value":"1","create_revision":2,"mod_revision":2,"version":1}}]}`)
	proposed, asked := at.proposed, at.asked
	w := at.do("POST", "/v1/txn?values=base64&consistency=stale", `{"then":[{"list":{"prefix":"h","start_after":"a"}}]}`)
	at.want(w, 200, `{"succeeded":true,"revision":2,"results":[{"list":{"items":[{"key":"hits","value_base64":"MQ==","create_revision":2,"mod_revision":2,"version":1}]}}]}`+"\n")
	if w.Header().Get("Raftkv-Consistency") != "stale" || w.Header().Get("Raftkv-Revision") != "2" || at.asked != asked {
		t.Error(w.Header())
	}
	at.txn(`{"if":[{"key":"a","exists":true}]}`, `{"succeeded":true,"revision":2,"results":[]}`)
	if at.proposed != proposed || at.asked != asked+1 {
		t.Errorf("reads: %d proposed, %d confirmed", at.proposed-proposed, at.asked-asked)
	}
	for what, tt := range map[string]struct {
		body, code string
		status     int
	}{
		"add to text":    {`{"then":[{"put":{"key":"z","value":""}},{"add":{"key":"a","delta":"1"}}]}`, "not_a_number", 409},
		"add too much":   {`{"then":[{"put":{"key":"z","value":""}},{"add":{"key":"hits","delta":"9223372036854775807"}}]}`, "out_of_range", 409},
		"no such lease":  {`{"then":[{"put":{"key":"z","value":""}},{"put":{"key":"y","value":"","lease":99}}]}`, "no_such_lease", 409},
		"too many bytes": {`{"then":[{"put":{"key":"z","value":"` + strings.Repeat("v", 133) + `"}}` + strings.Repeat(`,{"get":{"key":"z"}}`, 3) + `]}`, "too_large", 413},
	} {
		at.problem(what, at.do("POST", "/v1/txn", tt.body), tt.status, tt.code)
	}
	if it, revision := at.kv.Get("z"); it != nil || revision != 2 {
		t.Error("what was refused has happened in part")
	}
}

// Guarantee: what is no transaction, or more than one may be, is refused before it is
// proposed; at the bound it is taken.
func TestAPITxnIsStrict(t *testing.T) {
	at := newTxnTest(t)
	many := func(n int, one string) string { return strings.Repeat(one+",", n-1) + one }
	put, get, cond := `{"put":{"key":"k%d","value":""}}`, `{"get":{"key":"k"}}`, `{"key":"k","exists":false}`
	then := func(ops string) string { return `{"then":[` + ops + `]}` }
	key := strings.Repeat("k", config.MaxKeyBytes)
	value := strings.Repeat("v", 100)
	for what, tt := range map[string]struct {
		body   string
		status int
	}{
		"128 operations": {then(many(txn.MaxOps, get)), 200}, "129": {then(many(txn.MaxOps+1, get)), 413},
		"128 conditions": {`{"if":[` + many(txn.MaxOps, cond) + `]}`, 200}, "129 conditions": {`{"if":[` + many(txn.MaxOps+1, cond) + `]}`, 413},
		"128 lists": {then(many(txn.MaxOps, `{"list":{"prefix":"","limit":1000}}`)), 200},
		"129 else":  {`{"else":[` + many(txn.MaxOps+1, get) + `]}`, 413},
		"a bomb":    {then(many(130, `{}`)), 413},
		"key":       {then(`{"delete":{"key":"` + key + `"}}`), 200}, "a longer key": {then(`{"delete":{"key":"` + key + `k"}}`), 400},
		"prefix": {then(`{"append":{"prefix":"` + key[24:] + `","value":""}}`), 200}, "a longer prefix": {then(`{"append":{"prefix":"` + key[23:] + `","value":""}}`), 400},
		"value": {then(`{"put":{"key":"k","value":"` + value + `"}}`), 200}, "a longer value": {then(`{"put":{"key":"k","value":"` + value + `v"}}`), 413},
		"limit 1000": {then(`{"list":{"prefix":"p","limit":1000}}`), 200}, "limit 1001": {then(`{"list":{"prefix":"p","limit":1001}}`), 400},
		"limit 0": {then(`{"list":{"prefix":"p","limit":0}}`), 400}, "list of what": {then(`{"list":{}}`), 400},
		"body": {`{"then":[]` + strings.Repeat(" ", 400-11) + `}`, 200}, "a longer body": {`{"then":[]` + strings.Repeat(" ", 401-11) + `}`, 413},
		"nesting": {strings.Repeat("[", 200), 400}, "deep": {`{"then":` + strings.Repeat(`[`, 380), 400}, "deep in an operation": {then(`{"get":` + strings.Repeat(`{"key":`, 40)), 400},
		"an array": {`[]`, 400}, "no JSON": {`x`, 400}, "more behind": {`{} {}`, 400}, "null": {`{"then":null}`, 400}, "null operation": {then(`null`), 400},
		"unknown name": {`{"than":[]}`, 400}, "wrong case": {`{"Then":[]}`, 400}, "a name twice": {`{"then":[],"then":[]}`, 400}, "not UTF-8": {"{\"then\":[{\"get\":{\"key\":\"\xff\"}}]}", 400},
		"half a surrogate": {then(`{"get":{"key":"\ud800"}}`), 400}, "a NUL": {then(`{"get":{"key":"\u0000"}}`), 400},
		"empty operation": {then(`{}`), 400}, "two in one": {then(`{"get":{"key":"k"},"delete":{"key":"k"}}`), 400}, "another operation": {then(`{"move":{"key":"k"}}`), 400},
		"no key": {then(`{"get":{}}`), 400}, "no value": {then(`{"put":{"key":"k"}}`), 400}, "two values": {then(`{"put":{"key":"k","value":"","value_base64":""}}`), 400},
		"bad base64": {then(`{"put":{"key":"k","value_base64":"/w"}}`), 400}, "base64 with a newline": {then(`{"put":{"key":"k","value_base64":"MQ==\n"}}`), 400}, "base64 with a return": {then(`{"put":{"key":"k","value_base64":"MQ\r=="}}`), 400}, "a number as value": {then(`{"put":{"key":"k","value":1}}`), 400},
		"put to a prefix": {then(`{"put":{"prefix":"k","value":""}}`), 400}, "append to a key": {then(`{"append":{"key":"k","value":""}}`), 400}, "append to nothing": {then(`{"append":{"prefix":"","value":""}}`), 400},
		"ttl and lease": {then(`{"put":{"key":"k","value":"","ttl":"1s","lease":1}}`), 400}, "bare ttl": {then(`{"put":{"key":"k","value":"","ttl":"1"}}`), 400},
		"short ttl": {then(`{"put":{"key":"k","value":"","ttl":"99ms"}}`), 400}, "ttl": {then(`{"put":{"key":"k","value":"","ttl":"100ms"}}`), 200}, "lease 0": {then(`{"put":{"key":"k","value":"","lease":0}}`), 400},
		"written twice": {then(`{"put":{"key":"k","value":""}},{"add":{"key":"k","delta":"1"}}`), 400}, "no delta": {then(`{"add":{"key":"k"}}`), 400},
		"delta": {then(`{"add":{"key":"n","delta":"-9223372036854775808"}}`), 200}, "larger delta": {then(`{"add":{"key":"n","delta":"9223372036854775808"}}`), 400}, "delta as number": {then(`{"add":{"key":"n","delta":1}}`), 400},
		"compares nothing": {`{"if":[{"key":"k"}]}`, 400}, "key and prefix": {`{"if":[{"key":"k","prefix":"p","exists":true}]}`, 400}, "neither": {`{"if":[{"exists":true}]}`, 400},
		"prefix with a value": {`{"if":[{"prefix":"p","exists":true,"value":""}]}`, 400}, "prefix with nothing": {`{"if":[{"prefix":"p"}]}`, 400}, "negative": {`{"if":[{"key":"k","version":-1}]}`, 400},
	} {
		at.a.txns.MaxValue = 1 << 20
		if strings.HasSuffix(what, "value") || strings.HasSuffix(what, "body") {
			at.a.txns.MaxValue = 100
		}
		proposed := at.proposed
		w := at.do("POST", "/v1/txn", tt.body)
		if w.Code != tt.status || tt.status != 200 && at.proposed != proposed {
			t.Errorf("%s: %d %.200s, want %d; %d proposed", what, w.Code, w.Body, tt.status, at.proposed-proposed)
		}
	}
	at.a.txns.MaxValue = 1 << 20
	var puts []string
	for i := range txn.MaxOps {
		puts = append(puts, fmt.Sprintf(put, i))
	}
	at.txn(`{"if":[{"key":"k0","exists":true}],"then":[`+strings.Join(puts, ",")+`]}`, `{"succeeded":false,"revision":4,"results":[]}`)
	began := time.Now()
	at.problem("a large bomb", at.do("POST", "/v1/txn", `{"then":[`+many(1<<20, `{}`)+`]}`), 413, "too_large")
	if took := time.Since(began); took > 10*time.Second { // it is some ms, for it is not read to its end
		t.Errorf("a bomb took %v", took)
	}
	for what, w := range map[string]*httptest.ResponseRecorder{
		"consistency of a write": at.do("POST", "/v1/txn?consistency=stale", then(`{"delete":{"key":"k"}}`)),
		"values":                 at.do("POST", "/v1/txn?values=text", `{}`), "unknown": at.do("POST", "/v1/txn?x=1", `{}`),
		"a condition": at.do("POST", "/v1/txn", `{}`, "If-Match", "*"), "idempotency": at.do("POST", "/v1/txn", then(`{"delete":{"key":"k"}}`), "Idempotency-Key", "a b"),
	} {
		at.problem(what, w, 400, "bad_request")
	}
	at.problem("a type", at.do("POST", "/v1/txn", `{}`, "Content-Type", "text/plain"), 415, "unsupported_media_type")
	at.problem("a method", at.do("PUT", "/v1/txn", `{}`), 405, "method_not_allowed")
}

// Guarantee: a transaction that writes is refused below its level, with a full store and
// when the cluster cannot take it; one that deletes alone may be.
func TestAPITxnAdmission(t *testing.T) {
	at := newTxnTest(t)
	write, remove := `{"then":[{"add":{"key":"k","delta":"1"}}]}`, `{"then":[{"delete":{"key":"k"}}]}`
	at.a.txns.Commands.Quota.Limit = 10
	at.problem("a full store", at.do("POST", "/v1/txn", write), 507, "quota_exceeded")
	at.problem("a full store", at.do("POST", "/v1/add?key=k", "1"), 507, "quota_exceeded")
	at.problem("a full store", at.do("POST", "/v1/kv?prefix=k", "1"), 507, "quota_exceeded")
	if w := at.do("POST", "/v1/txn", remove); w.Code != 200 {
		t.Error(w.Code, w.Body)
	}
	at.level(state.TxnLevel - 1)
	at.a.txns.Commands.Quota.Limit = 0
	for _, w := range []*httptest.ResponseRecorder{
		at.do("POST", "/v1/txn", write), at.do("POST", "/v1/txn", remove), at.do("POST", "/v1/add?key=k", "1"),
		at.do("POST", "/v1/kv?prefix=k", ""), at.do("DELETE", "/v1/kv?prefix=k", ""),
	} {
		at.problem("below the level", w, 503, "upgrading")
	}
	if w := at.do("POST", "/v1/txn", `{"then":[{"get":{"key":"k"}}]}`); w.Code != 200 {
		t.Error("a read below the level:", w.Code, w.Body)
	}
	at.level(state.TxnLevel)
	at.fails = problem.ErrOutcomeUnknown
	at.problem("unknown", at.do("POST", "/v1/txn", write), 504, "outcome_unknown")
	at.fails = problem.ErrUnavailable
	at.problem("not confirmed", at.do("POST", "/v1/txn", `{}`), 503, "unavailable")
}

// Guarantee: an addition answers with the number and its ETag, under conditions if there
// are any.
func TestAPIAdd(t *testing.T) {
	at := newTxnTest(t)
	add := func(query, body string, headers ...string) *httptest.ResponseRecorder {
		return at.do("POST", "/v1/add?"+query, body, headers...)
	}
	w := add("key=n&ttl=30s", "5\n")
	at.want(w, 200, "5")
	if w.Header().Get("Etag") != `"1"` || w.Header().Get("Raftkv-Revision") != "1" || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Error(w.Header())
	}
	at.want(add("key=n", "-7"), 200, "-2")
	if it, _ := at.kv.Get("n"); it.Lease == 0 {
		t.Error("the key has lost its time to live")
	}
	at.want(add("key=n", "1", "If-Match", `"2"`), 200, "-1")
	w = add("key=n", "1", "If-Match", `"2"`)
	at.problem("an old tag", w, 412, "precondition_failed")
	if w.Header().Get("Etag") != `"3"` {
		t.Error(w.Header())
	}
	at.problem("If-None-Match", add("key=n", "1", "If-None-Match", "*"), 412, "precondition_failed")
	w = add("key=n", "1", "If-Match", `W/"3"`)
	if at.problem("a weak tag", w, 412, "precondition_failed"); w.Header().Get("Etag") != `"3"` {
		t.Error(w.Header())
	}
	at.do("PUT", "/text", "five")
	w = add("key=text", "1")
	if at.problem("text", w, 409, "not_a_number"); strings.Contains(w.Body.String(), "operation") {
		t.Errorf("an add speaks of operations: %s", w.Body)
	}
	at.do("PUT", "/most", "9223372036854775807")
	at.problem("too much", add("key=most", "1"), 409, "out_of_range")
	proposed := at.proposed
	for what, w := range map[string]*httptest.ResponseRecorder{
		"no key": add("", "1"), "empty key": add("key=", "1"), "no number": add("key=n", ""), "text": add("key=n", "x"), "two newlines": add("key=n", "1\n\n"),
		"too large": add("key=n", "9223372036854775808"), "a lease": add("key=n&lease=1", "1"), "a bad ttl": add("key=n&ttl=1", "1"), "twice": add("key=n&key=m", "1"),
		"idempotency": add("key=n", "1", "Idempotency-Key", "a;b"), "an empty condition": add("key=n", "1", "If-Match", ""),
	} {
		at.problem(what, w, 400, "bad_request")
	}
	at.problem("a long body", add("key=n", strings.Repeat("0", 65)), 413, "too_large")
	if at.proposed != proposed {
		t.Error("something was proposed")
	}
	at.want(add("key=n", strings.Repeat("0", 64)), 200, "-1")
}

// Guarantee: the store names the next key under a prefix, in the order of the writes.
func TestAPIAppend(t *testing.T) {
	at := newTxnTest(t)
	w := at.do("POST", "/v1/kv?prefix=jobs/a%20b/", "one", "Content-Type", "text/plain")
	at.want(w, 201, "")
	location := w.Header().Get("Location")
	if location != "/v1/kv/jobs%2Fa%20b%2F00000000000000000001-000" || w.Header().Get("Etag") != `"1"` || w.Header().Get("Raftkv-Revision") != "1" {
		t.Error(w.Header())
	}
	at.want(at.do("GET", location, ""), 200, "one")
	at.want(at.do("POST", "/v1/kv?prefix=jobs/a%20b/&ttl=30s", ""), 201, "")
	if it, _ := at.kv.Get("jobs/a b/00000000000000000002-000"); it == nil || it.Lease == 0 || it.Value != "" {
		t.Error(it)
	}
	w = at.do("POST", "/v1/kv?prefix=p&lease=9", "")
	if at.problem("a dead lease", w, 409, "no_such_lease"); strings.Contains(w.Body.String(), "operation") {
		t.Errorf("an append speaks of operations: %s", w.Body)
	}
	longest := strings.Repeat("p", config.MaxKeyBytes-txn.NameLength)
	at.want(at.do("POST", "/v1/kv?prefix="+longest, strings.Repeat("v", 100)), 201, "")
	at.problem("a long value", at.do("POST", "/v1/kv?prefix=p", strings.Repeat("v", 101)), 413, "too_large")
	for what, w := range map[string]*httptest.ResponseRecorder{
		"no prefix": at.do("POST", "/v1/kv", "v"), "an empty one": at.do("POST", "/v1/kv?prefix=", "v"), "a longer one": at.do("POST", "/v1/kv?prefix=p"+longest, "v"),
		"a NUL": at.do("POST", "/v1/kv?prefix=%00", "v"), "bad UTF-8": at.do("POST", "/v1/kv?prefix=%FF", "v"), "a condition": at.do("POST", "/v1/kv?prefix=p", "v", "If-None-Match", "*"),
		"ttl and lease": at.do("POST", "/v1/kv?prefix=p&ttl=1s&lease=1", "v"), "a part": at.do("POST", "/v1/kv?prefix=p", "v", "Content-Range", "bytes 0-0/2"),
	} {
		at.problem(what, w, 400, "bad_request")
	}
}

// Guarantee: a deletion by prefix says how many keys went; all keys go only to those who
// say so.
func TestAPIDeletePrefix(t *testing.T) {
	at := newTxnTest(t)
	for _, key := range []string{"p/1", "p/2", "p/3", "q"} {
		at.do("PUT", "/"+key, "v")
	}
	del := func(query string) *httptest.ResponseRecorder { return at.do("DELETE", "/v1/kv"+query, "") }
	at.want(del("?prefix=p/&limit=1"), 200, `{"deleted":1,"revision":5,"more":true}`+"\n")
	at.want(del("?prefix=p/&limit=2"), 200, `{"deleted":2,"revision":6}`+"\n")
	at.want(del("?prefix=p/"), 200, `{"deleted":0,"revision":6}`+"\n")
	for _, query := range []string{"", "?prefix=", "?all=yes", "?all=true&prefix=p", "?prefix=p&limit=0", "?prefix=p&limit=10001", "?prefix=p&x=1", "?prefix=%FF"} {
		at.problem(query, del(query), 400, "bad_request")
	}
	at.problem("a condition", at.do("DELETE", "/v1/kv?prefix=q", "", "If-Match", "*"), 400, "bad_request")
	at.want(del("?all=true&limit=10000"), 200, `{"deleted":1,"revision":7}`+"\n")
	for i := range state.MaxDeleted + 1 {
		at.kv.state.Items.Set(fmt.Sprintf("p/%d", i), &state.Item{})
	}
	at.problem("too many", del("?prefix=p/"), 413, "too_large")
	var answer struct {
		Deleted int
		More    bool
	}
	if err := json.Unmarshal(del("?all=true&limit=10000").Body.Bytes(), &answer); err != nil || answer.Deleted != state.MaxDeleted || !answer.More {
		t.Error(err, answer)
	}
}
