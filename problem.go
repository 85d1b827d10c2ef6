package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// problemKind says what a client may conclude from an error.
type problemKind int

const (
	didNotHappen problemKind = iota
	mayHaveHappened
	nodeBroken
)

// problem is one row of the table from error to status and stable code.
type problem struct {
	err    error
	status int
	code   string
	kind   problemKind
	retry  bool // worth trying again soon; carries Retry-After
}

// The errors of the HTTP interface itself.
var (
	errBadRequest       = errors.New("bad request")
	errNoSuchPath       = errors.New("no such path")
	errMethodNotAllowed = errors.New("method not allowed")
	errTooLarge         = errors.New("the value is too large")
	errMediaType        = errors.New("the body has a type that is not taken here")
	errRequestTimeout   = errors.New("the request did not arrive in time")
	errWrongHost        = errors.New("this name is not one of this node's")
	errCrossOrigin      = errors.New("a browser sent this on behalf of another site")
	errAmbiguous        = errors.New("a node and a key have this name")
	errInternal         = errors.New("internal error")
)

// problems maps every error that a request can end in, used by the server, and
// backwards between nodes. An error that is not in it is internal.
var problems = []problem{
	{errBadRequest, http.StatusBadRequest, "bad_request", didNotHappen, false},
	{errBadPeerURL, http.StatusBadRequest, "bad_request", didNotHappen, false},
	{errCrossOrigin, http.StatusForbidden, "cross_origin", didNotHappen, false},
	{errNotFound, http.StatusNotFound, "not_found", didNotHappen, false},
	{errNoSuchPath, http.StatusNotFound, "not_found", didNotHappen, false},
	{errMemberUnknown, http.StatusNotFound, "not_found", didNotHappen, false},
	{errMethodNotAllowed, http.StatusMethodNotAllowed, "method_not_allowed", didNotHappen, false},
	{errRequestTimeout, http.StatusRequestTimeout, "request_timeout", didNotHappen, false},
	{errMemberExists, http.StatusConflict, "member_exists", didNotHappen, false},
	{errSameNode, http.StatusConflict, "member_exists", didNotHappen, false},
	{errMemberRemoved, http.StatusConflict, "member_removed", didNotHappen, false},
	{errLastVoter, http.StatusConflict, "last_voter", didNotHappen, false},
	{errWouldLose, http.StatusConflict, "would_lose_quorum", didNotHappen, false},
	{errNotVoter, http.StatusConflict, "not_voter", didNotHappen, false},
	{errInProgress, http.StatusConflict, "change_in_progress", didNotHappen, true},
	{errAmbiguous, http.StatusConflict, "ambiguous", didNotHappen, false},
	{errPrecondition, http.StatusPreconditionFailed, "precondition_failed", didNotHappen, false},
	{errMediaType, http.StatusUnsupportedMediaType, "unsupported_media_type", didNotHappen, false},
	{errTooLarge, http.StatusRequestEntityTooLarge, "too_large", didNotHappen, false},
	{errWrongHost, http.StatusMisdirectedRequest, "wrong_host", didNotHappen, false},
	{errOverloaded, http.StatusTooManyRequests, "overloaded", didNotHappen, true},
	{errNoLeader, http.StatusServiceUnavailable, "no_leader", didNotHappen, true},
	{errStopping, http.StatusServiceUnavailable, "stopping", didNotHappen, true},
	{errNotReady, http.StatusServiceUnavailable, "not_ready", didNotHappen, true},
	{errUnavailable, http.StatusServiceUnavailable, "unavailable", didNotHappen, true},
	{errNotHandedOver, http.StatusServiceUnavailable, "not_handed_over", mayHaveHappened, true},
	{errElsewhere, http.StatusServiceUnavailable, "not_leader", didNotHappen, true},
	{errQuota, http.StatusInsufficientStorage, "quota_exceeded", didNotHappen, false},
	{errDiskFull, http.StatusInsufficientStorage, "disk_full", didNotHappen, false},
	{errOutcomeUnknown, http.StatusGatewayTimeout, "outcome_unknown", mayHaveHappened, false},
	{errDiverged, http.StatusServiceUnavailable, "diverged", nodeBroken, false},
	{errHistories, http.StatusServiceUnavailable, "diverged", nodeBroken, false},
	{errNoMajority, http.StatusServiceUnavailable, "diverged", nodeBroken, false},
	{errMemory, http.StatusServiceUnavailable, "diverged", nodeBroken, false},
	{errStuck, http.StatusServiceUnavailable, "stuck", nodeBroken, false},
	{errInternal, http.StatusInternalServerError, "internal", nodeBroken, false},
}

// problemOf finds an error's row.
func problemOf(err error) problem {
	for _, p := range problems {
		if errors.Is(err, p.err) {
			return p
		}
	}
	return problem{errInternal, http.StatusInternalServerError, "internal", nodeBroken, false}
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
			return remoteError{p.err, detail}
		}
	}
	return fmt.Errorf("%w: another node answered %s: %s", errInternal, code, detail)
}

// remoteError is an error of the table with the text that another node gave it.
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
	if p.retry {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.status)
	body := struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{"about:blank", http.StatusText(p.status), p.status, err.Error(), p.code}
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
