package main

import (
	"strings"
	"testing"
)

func TestProfiles(t *testing.T) {
	at := newAPITest(t)
	at.problem("not asked for", at.do("GET", "/debug/pprof/heap", ""), 400, "bad_request")
	at.problem("not asked for", at.do("GET", "/debug/pprof", ""), 400, "bad_request")
	at.a.profiles = true
	for _, target := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline", "/debug/pprof/symbol"} {
		if w := at.do("GET", target, ""); w.Code != 200 || w.Body.Len() == 0 {
			t.Errorf("GET %s: %d", target, w.Code)
		}
	}
	if w := at.do("GET", "/debug/pprof", ""); w.Code != 307 || w.Header().Get("Location") != "/debug/pprof/" {
		t.Errorf("without the slash: %d to %q", w.Code, w.Header().Get("Location"))
	}
	at.problem("another path", at.do("GET", "/debug/else", ""), 400, "bad_request")
	at.problem("another path", at.do("GET", "/debug/pprofelse", ""), 400, "bad_request")
	if detail := at.problem("no such profile", at.do("GET", "/debug/pprof/else?debug=1", ""), 404, "no_such_path"); strings.Contains(detail, "key") {
		t.Errorf("no such profile: %s", detail)
	}
	// go tool pprof shows its user what the library says.
	w := at.do("GET", "/debug/pprof/heap?seconds=x", "")
	if w.Code != 400 || w.Header().Get("X-Go-Pprof") == "" || !strings.Contains(w.Body.String(), "seconds") {
		t.Errorf("bad seconds: %d %q", w.Code, w.Body)
	}
	if w := at.do("PUT", "/debug/pprof/heap", ""); w.Code != 405 {
		t.Errorf("PUT: %d", w.Code)
	}
}
