package main

import (
	"net/http"
	"strings"
)

// routeLabels are the values of the label route: as many as there are kinds of
// requests, whatever keys there are.
var routeLabels = []string{
	"kv", "member", "members", "leader", "status", "snapshot", "livez", "readyz", "metrics", "pprof", "help", "other",
}

// routeLabel returns which kind of request this is. Paths that are not known are
// "other".
func routeLabel(method, path string) string {
	path = strings.TrimPrefix(path, "/")
	switch path {
	case "":
		return "help"
	case "livez", "readyz", "metrics":
		return path
	case "v1/status", "v1/members", "v1/leader", "v1/snapshot":
		return strings.TrimPrefix(path, "v1/")
	}
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case first == "v1" && strings.HasPrefix(rest, "kv/"):
		return "kv"
	case first == "v1" && strings.HasPrefix(rest, "members/"):
		return "member"
	case first == "debug" && (rest == "pprof" || strings.HasPrefix(rest, "pprof/")):
		return "pprof"
	case reserved(first):
		return "other"
	case method == http.MethodPost || method == http.MethodDelete:
		return "member" // POST /ID, DELETE /ID
	}
	return "kv"
}

// methodLabel returns a method. They come from outside, so unknown ones share a label.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return method
	}
	return "other"
}
