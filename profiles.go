package main

import (
	"net/http"
	"net/http/pprof"
	"strings"
)

// serveProfiles serves /debug/pprof/ for go tool pprof. The profiles are of the
// whole process.
func serveProfiles(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		return notAllowed(w, "GET, HEAD, POST")
	}
	switch strings.TrimPrefix(r.URL.Path, "/debug/pprof/") {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r) // and those that it lists
	}
	return nil
}
