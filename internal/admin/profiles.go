package admin

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"raftkv/internal/problem"
	"raftkv/internal/web"
	rtpprof "runtime/pprof"
	"strings"
)

// ServeProfiles serves /debug/pprof/ for go tool pprof. The profiles are of the
// whole process. What a path can be wrong in is a problem like everywhere; what
// the library refuses beyond that, such as a second CPU profile at the same time
// or bad seconds, stays the plain text that it answers with, because go tool
// pprof shows that to its user, and of a problem no more than the status.
func ServeProfiles(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		return web.NotAllowed(w, "GET, HEAD, POST")
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/debug/pprof/")
	if !ok { // the links of the index are relative to the slash
		http.Redirect(w, r, "/debug/pprof/", http.StatusTemporaryRedirect)
		return nil
	}
	switch name {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		if name != "" && rtpprof.Lookup(name) == nil {
			return fmt.Errorf("%w: there is no profile %q; see GET /debug/pprof/", problem.ErrNoSuchPath, web.Clip(name))
		}
		pprof.Index(w, r) // and those that it lists
	}
	return nil
}
