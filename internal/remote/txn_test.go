package remote

import (
	"net/http/httptest"
	"raftkv/internal/config"
	"strings"
	"testing"
)

// Guarantee: a transaction in the JSON of the HTTP API is sent as it is meant, and its results
// are printed as that does.
func TestTxn(t *testing.T) {
	const text = `{
		"if":   [{"key":"a","mod_revision":7,"create_revision":1,"version":2,"lease":0}, {"key":"b","exists":false}, {"key":"c","value":"x"}, {"key":"d","value_base64":"/w=="}, {"prefix":"p/","exists":false}, {"prefix":"q/","exists":true}, {"key":"e","exists":true}],
		"then": [{"put":{"key":"a","value":"1","ttl":"30s"}}, {"delete":{"key":"c"}}, {"add":{"key":"hits","delta":"-2"}}, {"append":{"prefix":"jobs/","value_base64":"/w==","lease":3}}, {"get":{"key":"a"}}, {"get":{"key":"no"}}, {"list":{"prefix":"jobs/","limit":10,"start_after":"jobs/0"}}],
		"else": [{"get":{"key":"a"}}]}`
	const sent = `{"if":[{"key":"a","mod_revision":7,"create_revision":1,"version":2,"lease":0},{"key":"b","exists":false},{"key":"c","value_base64":"eA=="},{"key":"d","value_base64":"/w=="},{"prefix":"p/","exists":false},{"prefix":"q/","exists":true},{"key":"e","exists":true}],` +
		`"then":[{"put":{"key":"a","value_base64":"MQ==","ttl":"30s"}},{"delete":{"key":"c"}},{"add":{"key":"hits","delta":"-2"}},{"append":{"prefix":"jobs/","value_base64":"/w==","lease":3}},{"get":{"key":"a"}},{"get":{"key":"no"}},{"list":{"prefix":"jobs/","limit":10,"start_after":"jobs/0"}}],` +
		`"else":[{"get":{"key":"a"}}]}`
	const yes = `{"succeeded":true,"revision":8,"results":[{"put":{"key":"a","mod_revision":8}},{"delete":{"deleted":1}},{"add":{"value":"-2","mod_revision":8}},{"append":{"key":"jobs/1","mod_revision":8}},` +
		`{"get":{"key":"a","value":"1","create_revision":1,"mod_revision":8,"version":3}},{"get":null},{"list":{"items":[{"key":"jobs/1","value_base64":"/w==","create_revision":8,"mod_revision":8,"version":1}],"next":"jobs/1"}}]}`
	f := &fake{t: t, answers: map[string]string{"POST /v1/txn": "200 " + yes}}
	srv := httptest.NewServer(f)
	defer srv.Close()
	code, out, errs := run(t, srv.URL, text, "txn", "--output", "json")
	if code != config.ExitOK || out != yes+"\n" || errs != "" {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if got := strings.TrimPrefix(f.asked[0], "POST /v1/txn?  "); got != sent {
		t.Errorf("sent\n%s, want\n%s", got, sent)
	}
	const table = "put a\ndelete c true\nadd hits -2\nappend jobs/1\nget a 1\nget no: there is no such key\nlist jobs/1 \"\\xff\"\n"
	if code, out, errs := run(t, srv.URL, text, "txn", "-"); code != config.ExitOK || out != table || errs != "" {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	f.answers["POST /v1/txn"] = `200 {"succeeded":false,"revision":8,"results":[{"get":null}]}`
	if code, out, errs := run(t, srv.URL, text, "txn"); code != config.ExitNo || out != "get a: there is no such key\n" || !strings.Contains(errs, "a condition does not hold") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	f.answers["POST /v1/txn"] = `200 {"succeeded":false,"revision":8,"results":[{"get":null},{"get":null}]}`
	if code, _, errs := run(t, srv.URL, text, "txn"); code != config.ExitFault || !strings.Contains(errs, "2 results of 1") {
		t.Errorf("more results than operations: exit %d\n%s", code, errs)
	}
}

// Guarantee: a transaction that is not as it has to be is exit 2, says where, and is not sent.
func TestTxnRefused(t *testing.T) {
	f := &fake{t: t}
	srv := httptest.NewServer(f)
	defer srv.Close()
	for text, want := range map[string]string{
		``:                        "EOF",
		`[]`:                      "cannot unmarshal",
		`{} {}`:                   "nothing behind it",
		`{"when":[]}`:             `unknown field "when"`,
		`{"if":[{}]}`:             `if[0]: expected "key" or "prefix"`,
		`{"if":[{"prefix":"p"}]}`: `if[0]: expected "prefix" with "exists"`,
		`{"if":[{"prefix":"p","exists":true,"key":"k"}]}`:    `"exists" alone`,
		`{"if":[{"key":"k","value":"a","value_base64":""}]}`: "not both",
		`{"then":[{}]}`: "then[0]: expected one of put",
		`{"then":[{"get":{"key":"a"}},{"get":{"key":"a"},"put":{"key":"a"}}]}`: "then[1]: expected one operation, not put and get",
		`{"else":[{"get":{}}]}`:                                       `else[0]: get: expected "key"`,
		`{"else":[{"list":{"key":"k"}}]}`:                             `list: expected "prefix"`,
		`{"then":[{"get":{"key":"a","ttl":"1s"}}]}`:                   `get takes no "ttl"`,
		`{"then":[{"put":{"key":"a","ttl":"1"}}]}`:                    "put: expected a time with its unit",
		`{"then":[{"put":{"key":"a","value":"","value_base64":""}}]}`: "not both",
		`{"then":[{"add":{"key":"a","delta":"1.5"}}]}`:                "whole number of 64 bits",
	} {
		code, out, errs := run(t, srv.URL, text, "txn")
		if code != config.ExitUsage || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d, want %q\n%s%s", text, code, want, out, errs)
		}
	}
	if len(f.asked) > 0 {
		t.Errorf("it asked %q", f.asked)
	}
}
