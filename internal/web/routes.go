package web

import (
	"fmt"
	"maps"
	"net/http"
	"raftkv/internal/problem"
	"slices"
	"strings"
)

// How a method and a query find their handler, once the path has.

// Methods are the handlers of a path, by method; GET also serves HEAD.
type Methods map[string]func(http.ResponseWriter, *http.Request) error

// Serve answers with the handler of the request's method.
func (m Methods) Serve(w http.ResponseWriter, r *http.Request) error {
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
	return NotAllowed(w, strings.Join(allow, ", "))
}

// NoIdempotencyKey refuses a promise that would not be kept.
func NoIdempotencyKey(r *http.Request) error {
	if r.Header["Idempotency-Key"] == nil {
		return nil
	}
	return fmt.Errorf("%w: Idempotency-Key is for writes of keys, /v1/add, /v1/txn and POST /v1/leases; this request can be sent again as it is",
		problem.ErrBadRequest)
}

// NoConditions refuses conditions on what has no ETag, so that they could not hold; who
// gives one may have meant a key.
func NoConditions(r *http.Request) error {
	if r.Header["If-Match"] == nil && r.Header["If-None-Match"] == nil {
		return nil
	}
	return fmt.Errorf("%w: If-Match and If-None-Match are for a single key, /v1/kv/KEY; POST /v1/txn takes conditions on several", problem.ErrBadRequest)
}

// Bare lets a handler serve only requests without query parameters.
func Bare(h func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := NoQuery(r); err != nil {
			return err
		}
		return h(w, r)
	}
}
