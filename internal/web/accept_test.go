package web

import (
	"net/http"
	"testing"
)

// Guarantee: a media type is asked for by who takes nothing else.
func TestAcceptsOnly(t *testing.T) {
	for _, tt := range []struct {
		lines []string
		want  bool
	}{
		{nil, false}, {[]string{""}, false}, {[]string{","}, false}, {[]string{"*/*"}, false}, {[]string{"application/*"}, false},
		{[]string{"application/json"}, true}, {[]string{" Application/JSON "}, true}, {[]string{"application/json;charset=utf-8"}, true},
		{[]string{"application/json; q=0.5"}, true}, {[]string{"application/json; q=1"}, true}, {[]string{"application/json;q=0"}, false},
		{[]string{"application/json; Q=0.000"}, false}, {[]string{"application/json, application/json"}, true}, {[]string{"application/json, "}, true},
		{[]string{"application/json, */*"}, false}, {[]string{"application/json, text/plain, */*"}, false}, {[]string{"application/json", "*/*;q=0.1"}, false},
		{[]string{"application/jsonx"}, false}, {[]string{"text/html"}, false}, {[]string{"application/x-ndjson"}, false},
		{[]string{"application/problem+json"}, false},
	} {
		if got := AcceptsOnly(http.Header{"Accept": tt.lines}, "application/json"); got != tt.want {
			t.Errorf("%q: %t", tt.lines, got)
		}
	}
}
