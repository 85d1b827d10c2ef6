package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// problemOutcome says what became of a request that ended in an error.
type problemOutcome string

const (
	notApplied   problemOutcome = "not_applied" // it did not happen, and will not
	maybeApplied problemOutcome = "unknown"     // it may have happened, or may still
)

// retry says whether the same request can succeed later.
type retry int

const (
	noRetry    retry = iota // only once somebody has changed the request, the data or the node
	retryLater              // once the cluster is in another state
	retrySoon               // what is in the way passes by itself; carries Retry-After
)

// problem is an error of which clients are told by a stable code (RFC 9457). It
// is declared by newProblem, and says there all that a client may conclude. An
// error that wraps none is internal.
type problem struct {
	status  int
	code    string
	outcome problemOutcome
	retry   retry
	text    string
}

func (p *problem) Error() string { return p.text }

// problems are all that are declared: a code that comes from another node is
// looked up here. It is complete when the package is initialized.
var problems []*problem

func newProblem(status int, code string, o problemOutcome, r retry, text string) *problem {
	p := &problem{status, code, o, r, text}
	problems = append(problems, p)
	return p
}

// unsettled is an error that came up when the request had been handed to the
// cluster already, so it may have happened.
type unsettled struct{ err error }

func (u unsettled) Error() string { return u.err.Error() }
func (u unsettled) Unwrap() error { return u.err }

// perhapsDone returns an error for a request that had been handed to the cluster
// already: whatever it says, it may have happened.
func perhapsDone(err error) error { return unsettled{err} }

// problemOf finds what a client is told of an error.
func problemOf(err error) problem {
	found := errInternal
	errors.As(err, &found)
	p := *found
	if u := (unsettled{}); errors.As(err, &u) {
		p.outcome = maybeApplied
	}
	return p
}

// codeOf returns an error's stable code.
func codeOf(err error) string { return problemOf(err).code }

// errorOfCode turns the code and text that another node sent back into an error.
func errorOfCode(code, detail string) error {
	if code == "" {
		return nil
	}
	for _, p := range problems {
		if p.code == code {
			return remoteError{p, detail}
		}
	}
	return fmt.Errorf("%w: another node answered %s: %s", errInternal, code, detail)
}

// remoteError is a problem with the text that another node gave it.
type remoteError struct {
	err    error
	detail string
}

func (e remoteError) Error() string { return e.detail }
func (e remoteError) Unwrap() error { return e.err }

// writeProblem answers with an error (RFC 9457).
func writeProblem(w http.ResponseWriter, err error) {
	p := problemOf(err)
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = cacheNever
	}
	if p.retry == retrySoon {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.status)
	body := struct {
		Type    string         `json:"type"`
		Title   string         `json:"title"`
		Status  int            `json:"status"`
		Detail  string         `json:"detail"`
		Code    string         `json:"code"`
		Outcome problemOutcome `json:"outcome"`
		Retry   bool           `json:"retry"`
	}{"about:blank", http.StatusText(p.status), p.status, err.Error(), p.code, p.outcome, p.retry != noRetry}
	writeBody(w, body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeBody(w, v)
}

// writeBody encodes v as the body of an answer. A client that has gone away
// is no concern of ours.
func writeBody(w http.ResponseWriter, v any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}
