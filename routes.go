package main

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// How a method and a query find their handler, once the path has.

// methods are the handlers of a path, by method; GET also serves HEAD.
type methods map[string]func(http.ResponseWriter, *http.Request) error

// serve answers with the handler of the request's method.
func (m methods) serve(w http.ResponseWriter, r *http.Request) error {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		return h(w, r)
	}
	var allow []string
	for _, method := range slices.Sorted(maps.Keys(m)) {
		if m[method] != nil {
			allow = append(allow, method)
		}
		if m[method] != nil && method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	return notAllowed(w, strings.Join(allow, ", "))
}

// bare lets a handler serve only requests without query parameters.
func bare(h func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := noQuery(r); err != nil {
			return err
		}
		return h(w, r)
	}
}
