package web

import (
	"net/http"
	"net/url"
	"strings"
)

// RouteLabels are the values of the label route: as many as there are kinds of
// requests, whatever keys there are.
var RouteLabels = []string{
	"kv", "list", "add", "txn", "lease", "leases", "member", "members", "leader", "status", "snapshot", "watch", "poll", "errors", "openapi", "livez", "readyz", "metrics", "pprof", "help", "other",
}

// Lasts reports whether requests of a kind last as long as their client wants.
func Lasts(label string) bool {
	switch label {
	case "snapshot", "list", "watch", "poll", "pprof":
		return true
	}
	return false
}

// RouteLabel returns which kind of request this is: "poll" is a read that waits for a
// change. Paths that are not known are "other".
func RouteLabel(method, path, query string) string {
	label := routeOf(method, path)
	if (label == "kv" || label == "list") && waits(query) {
		return "poll"
	}
	return label
}

// waits reports whether a query has the parameter wait, however it is written.
func waits(query string) bool {
	if !strings.ContainsAny(query, "%+") {
		return strings.HasPrefix(query, "wait=") || strings.Contains(query, "&wait=")
	}
	q, _ := url.ParseQuery(query) // what cannot be read is refused, and does not wait
	return q.Has("wait")
}

func routeOf(method, path string) string {
	path = strings.TrimPrefix(path, "/")
	switch path {
	case "":
		return "help"
	case "livez", "readyz", "metrics":
		return path
	case "v1/kv":
		return "list"
	case "v1/openapi.yaml":
		return "openapi"
	case "v1/add", "v1/txn", "v1/leases", "v1/status", "v1/watch", "v1/members", "v1/leader", "v1/snapshot", "v1/errors":
		return strings.TrimPrefix(path, "v1/")
	}
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case first == "v1" && strings.HasPrefix(rest, "kv/"):
		return "kv"
	case first == "v1" && strings.HasPrefix(rest, "leases/"):
		return "lease"
	case first == "v1" && strings.HasPrefix(rest, "members/"):
		return "member"
	case first == "debug" && (rest == "pprof" || strings.HasPrefix(rest, "pprof/")):
		return "pprof"
	case Reserved(first):
		return "other"
	case method == http.MethodPost || method == http.MethodDelete:
		return "member" // POST /ID, DELETE /ID
	}
	return "kv"
}

// AboutItself tells the paths that need nothing of the replicated state, so that a node can
// say what is wrong with it.
func AboutItself(path string) bool {
	switch path {
	case "livez", "readyz", "metrics", "v1/status", "v1/errors", "v1/openapi.yaml":
		return true
	}
	return false
}

// MethodLabel returns a method. They come from outside, so unknown ones share a label.
func MethodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return method
	}
	return "other"
}
