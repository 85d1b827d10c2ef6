// Package web reads HTTP requests strictly and answers them in one form: problems
// by RFC 9457, JSON without surprises, methods by table, and what a browser or a
// client that has hung up may do. It knows no resource; package api does.
package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"raftkv/internal/problem"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Field is a field of an HTTP header.
type Field struct{ Name, Value string }

// Set puts f into h, in place of what is there, but Vary beside what every answer
// depends on.
func (f Field) Set(h http.Header) {
	if f.Name == "Vary" {
		h.Add(f.Name, f.Value)
		return
	}
	h[f.Name] = []string{f.Value}
}

// Problem returns what tells a client of an error (RFC 9457): the status, the fields
// that it has beside Cache-Control, and the body.
func Problem(err error) (status int, fields []Field, body []byte) {
	p := problem.Of(err)
	fields = append(fields, Field{"Content-Type", "application/problem+json"})
	if p.Retry == problem.RetrySoon {
		fields = append(fields, Field{"Retry-After", "1"})
	}
	if p.Status == http.StatusUnauthorized {
		fields = append(fields, Field{"WWW-Authenticate", "Bearer"}) // RFC 9110 §15.5.2
	}
	var text bytes.Buffer
	writeBody(&text, struct {
		Type    string          `json:"type"`
		Title   string          `json:"title"`
		Status  int             `json:"status"`
		Detail  string          `json:"detail"`
		Code    string          `json:"code"`
		Outcome problem.Outcome `json:"outcome"`
		Retry   bool            `json:"retry"`
	}{problem.Type(p.Code), http.StatusText(p.Status), p.Status, err.Error(), p.Code, p.Outcome, p.Retry != problem.NoRetry})
	return p.Status, fields, text.Bytes()
}

// WriteProblem answers a request with an error. r is nil where none was read.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	if r != nil {
		takeRest(r)
	}
	status, fields, body := Problem(err)
	h := w.Header()
	for _, f := range fields {
		h.Set(f.Name, f.Value)
	}
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = CacheNever
	}
	w.WriteHeader(status)
	_, werr := w.Write(body)
	_ = IgnoreWriteError(werr)
}

// WriteJSON answers with a status and v as JSON. It drops errors: the client may have
// gone away.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeBody(w, v)
}

// writeBody encodes v as the body of an answer. A client that has gone away
// is no concern of ours.
func writeBody(w io.Writer, v any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}

// Reserved are the first path segments that are not keys in the short form.
func Reserved(segment string) bool {
	switch segment {
	case "v1", "ui", "metrics", "livez", "readyz", "debug":
		return true
	}
	return false
}

// Recorder remembers the status for the metrics.
type Recorder struct {
	http.ResponseWriter
	Status int // as sent; whoever makes the Recorder sets 200 first
}

// WriteHeader remembers the status and passes it on.
func (r *Recorder) WriteHeader(status int) {
	r.Status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *Recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// NoQuery returns problem.ErrBadRequest if a request has a query, else nil.
func NoQuery(r *http.Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	return fmt.Errorf("%w: unknown query parameter in ?%s", problem.ErrBadRequest, Clip(r.URL.RawQuery))
}

// Query reads a query. A parameter that is not among those named is refused, and one
// that is there twice: a misspelt one must not silently mean nothing.
func Query(raw string, names ...string) (url.Values, error) { return QueryLists(raw, nil, names...) }

// QueryLists is Query where the parameters of some names may be there several times.
func QueryLists(raw string, lists []string, names ...string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", problem.ErrBadRequest, err)
	}
	for _, name := range slices.Sorted(maps.Keys(q)) { // of two faults always the same is told
		switch {
		case slices.Contains(lists, name):
		case !slices.Contains(names, name):
			return nil, fmt.Errorf("%w: unknown query parameter %q", problem.ErrBadRequest, Clip(name))
		case len(q[name]) > 1:
			return nil, fmt.Errorf("%w: query parameter %q is given twice", problem.ErrBadRequest, name)
		}
	}
	return q, nil
}

// Duration reads a parameter that is a time with its unit, within bounds.
func Duration(name, text string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	_, number := strconv.ParseFloat(text, 64)
	switch {
	case err != nil && number == nil:
		return 0, fmt.Errorf("%w: %s is %q; it needs a unit, as in %ss", problem.ErrBadRequest, name, Clip(text), Clip(text))
	case err != nil && overflows(text):
		return 0, fmt.Errorf("%w: %s is %q, and must be %v to %v", problem.ErrBadRequest, name, Clip(text), least, most)
	case err != nil:
		return 0, fmt.Errorf("%w: %s is %q, not a time with its unit, as in 500ms or 30s", problem.ErrBadRequest, name, Clip(text))
	case d < least || d > most:
		return 0, fmt.Errorf("%w: %s is %v, and must be %v to %v", problem.ErrBadRequest, name, d, least, most)
	}
	return d, nil
}

// overflows reports whether what time.ParseDuration refuses is a time that is too long for
// it: it would take the same with smaller digits.
func overflows(text string) bool {
	_, err := time.ParseDuration(strings.Map(func(c rune) rune {
		if c >= '1' && c <= '9' {
			return '0'
		}
		return c
	}, text))
	return err == nil
}

// NotAllowed sets the Allow header to the methods in allow, and returns
// problem.ErrMethodNotAllowed.
func NotAllowed(w http.ResponseWriter, allow string) error {
	w.Header().Set("Allow", allow)
	return fmt.Errorf("%w; allowed are %s", problem.ErrMethodNotAllowed, allow)
}

// IgnoreWriteError: a client that hangs up while it is answered is no fault.
func IgnoreWriteError(error) error { return nil }

// BodyError says why a request's body could not be read.
func BodyError(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &tooLarge):
		return fmt.Errorf("%w: more than %d bytes", problem.ErrTooLarge, tooLarge.Limit)
	case errors.Is(err, problem.ErrOverloaded):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem.ErrRequestTimeout
	}
	return fmt.Errorf("%w: the body broke off: %w", problem.ErrBadRequest, err)
}

// maxUnasked bounds the body of a request that takes none.
const maxUnasked = 64 << 10

// Drain reads the body of a request that takes none and is to last: net/http notices that a
// client hung up only behind it, and would wait for it before it sends an answer. The time in
// which it has to come must not be lifted before that.
func Drain(r *http.Request) error {
	if r.ContentLength == 0 {
		return nil
	}
	_, err := io.CopyN(io.Discard, r.Body, maxUnasked+1)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return BodyError(err)
	}
	return fmt.Errorf("%w: more than %d bytes of a body that is not asked for", problem.ErrBadRequest, maxUnasked)
}

// Clip shortens what a message repeats of a request.
func Clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// CacheAsk is what caches between may do with the value of a key, or its absence: a
// copy is good only for as long as this node says so, for which the ETag makes it cheap
// to ask; and the bytes stay as they are.
const CacheAsk = "no-cache, no-transform"

// CacheNever is for all other answers. Nobody may change it.
var CacheNever = []string{"no-store"}

// ParseForce reads ?force=true, where that is allowed, from a request that
// changes a member.
func ParseForce(r *http.Request, allowed bool) (bool, error) {
	if err := NoConditions(r); err != nil {
		return false, err
	}
	var names []string
	if allowed {
		names = []string{"force"}
	}
	q, err := Query(r.URL.RawQuery, names...)
	if err != nil {
		return false, err
	}
	if force, ok := q["force"]; ok && force[0] != "true" {
		return false, fmt.Errorf("%w: force is %q, not true", problem.ErrBadRequest, Clip(force[0]))
	}
	return len(q) > 0, nil
}
