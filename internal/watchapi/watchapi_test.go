package watchapi

import (
	"errors"
	"net/http"
	"net/url"
	"raftkv/internal/problem"
	"strconv"
	"testing"
)

// Guarantee: whatever a request for a watch says, it is refused as bad, or within every
// bound, and nothing that it says is ignored.
func FuzzRequest(f *testing.F) {
	for _, query := range []string{
		"", "prefix=a/&prefix=b&key=c", "key=a&key=a", "prefix=", "key=", "prefix=%ff", "after_revision=7&state=true", "after_revision=-1", "types=put,delete,expire",
		"types=put,,", "keys_only=true&values=base64", "state=maybe", "x=1", "a;b", "%", "state=true&state=true",
	} {
		f.Add(query, "", "text/event-stream")
		f.Add(query, "7", "application/x-ndjson")
		f.Add(query, "x", "*/*")
	}
	f.Fuzz(func(t *testing.T, query, last, accept string) {
		r := &http.Request{Method: "GET", URL: &url.URL{Path: "/" + Path, RawQuery: query}, Header: http.Header{"Accept": {accept}}}
		if last != "" {
			r.Header["Last-Event-Id"] = []string{last}
		}
		q, err := parse(r)
		if err != nil {
			if !errors.Is(err, problem.ErrBadRequest) {
				t.Errorf("%q: %v", query, err)
			}
			return
		}
		params, err := url.ParseQuery(query)
		if err != nil || len(params["key"])+len(params["prefix"]) > MaxFilters {
			t.Errorf("%q is taken, %v", query, err)
		}
		for name, values := range params {
			if len(values) > 1 && name != "key" && name != "prefix" {
				t.Errorf("%q has %s twice", query, name)
			}
		}
		want := last
		if want == "" {
			want = params.Get("after_revision")
		}
		after, err := strconv.ParseUint(want, 10, 64)
		if from := want != "" && (after > 0 || !q.state); q.from != from || from && (err != nil || q.after != after) {
			t.Errorf("%q and %q begin behind %d, %t", query, last, q.after, q.from)
		}
		for _, key := range params["key"] {
			if !q.filter.Matches(key) {
				t.Errorf("%q is not for %q", query, key)
			}
		}
		for _, prefix := range params["prefix"] {
			if !q.filter.Matches(prefix + "x") {
				t.Errorf("%q is not for what begins with %q", query, prefix)
			}
		}
	})
}
