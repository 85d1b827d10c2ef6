package web

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"raftkv/internal/problem"
	"slices"
	"strings"
)

// OriginGuard refuses what a browser may have been tricked into sending: to a
// name that somebody made point at this node, or on behalf of another site. And it has
// browsers let the pages of some origins call (CORS).
type OriginGuard struct {
	Hosts   map[string]bool // lower case, beside IP literals and localhost
	Origins []string        // whose pages may call, as browsers send them
	// Serves reports whether the node has proved, by its certificate, that it is a host;
	// nil: it has none.
	Serves func(host string) bool
}

// What the pages of other origins may send and see, beside what every page may.
const (
	corsMethods = "GET, HEAD, PUT, POST, PATCH, DELETE"
	corsSent    = "Accept, Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID"
	corsSeen    = "ETag, Location, Retry-After, Allow, Idempotent-Replayed, Raftkv-Revision, Raftkv-Consistency, Raftkv-Leader-Contact, Raftkv-Cluster-Id"
	// corsSeconds is for how long a browser need not ask again.
	corsSeconds = "600"
)

// Fields are those of every answer: no page of another site may embed it, and, where
// some origins are allowed, none of them gets what a cache has kept for another.
func (g OriginGuard) Fields() []Field {
	fields := []Field{{"Cross-Origin-Resource-Policy", "same-origin"}}
	if len(g.Origins) > 0 {
		fields = append(fields, Field{"Vary", "Origin"})
	}
	return fields
}

// Admit decides whether a request may be served. It answers the question of a browser
// whether an allowed origin may send one. The error is problem.ErrWrongHost or
// problem.ErrCrossOrigin.
func (g OriginGuard) Admit(w http.ResponseWriter, r *http.Request) (answered bool, err error) {
	allowed := slices.Contains(g.Origins, r.Header.Get("Origin"))
	if allowed { // also to see an error
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Expose-Headers", corsSeen)
	}
	if err := g.CheckHost(r.Host); err != nil {
		return false, err
	}
	switch {
	case !allowed:
		return false, checkSite(r)
	case r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "":
		return false, nil
	}
	w.Header().Set("Access-Control-Allow-Methods", corsMethods)
	w.Header().Set("Access-Control-Allow-Headers", corsSent)
	w.Header().Set("Access-Control-Max-Age", corsSeconds)
	w.WriteHeader(http.StatusNoContent)
	return true, nil
}

// checkSite returns problem.ErrCrossOrigin if a browser sends a request on behalf of
// another site. It may for somebody who goes to a page here: the other site does not
// see it.
func checkSite(r *http.Request) error {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reads && r.Header.Get("Sec-Fetch-Mode") == "navigate" {
		return nil
	}
	origin := r.Header.Get("Origin")
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "same-origin", "none":
		return nil // what Host says may be a proxy's
	case "":
		u, err := url.Parse(origin)
		if origin == "" || err == nil && u.Host == r.Host {
			return nil
		}
		return fmt.Errorf("%w: Origin is %q; --allowed-origin allows it", problem.ErrCrossOrigin, Clip(origin))
	default:
		return fmt.Errorf("%w: Sec-Fetch-Site is %q; --allowed-origin allows an origin", problem.ErrCrossOrigin, Clip(site))
	}
}

// CheckHost returns problem.ErrWrongHost if a Host header is not one of this node's names.
// Without one it is HTTP/1.0, and no browser.
func (g OriginGuard) CheckHost(header string) error {
	host := header
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	known := header == "" || host == "localhost" || g.Hosts[host] || net.ParseIP(host) != nil
	if !known && (g.Serves == nil || !g.Serves(host)) {
		return fmt.Errorf("%w: %q; name it with --allowed-host to allow it", problem.ErrWrongHost, header)
	}
	return nil
}
