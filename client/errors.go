package client

import (
	"errors"
	"fmt"
	"strings"
)

// Every call that fails matches exactly one of these two by errors.Is. A call that reads
// matches ErrNotApplied.
var (
	// ErrNotApplied: the write did not happen, and will not.
	ErrNotApplied = errors.New("it did not happen")

	// ErrOutcomeUnknown: the write may have happened, or may still. All attempts of the call
	// had one Idempotency-Key, so it happens once at most; a new call has another, and
	// may be a second time.
	ErrOutcomeUnknown = errors.New("it may have happened")
)

var (
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the client is closed")

	// ErrOtherCluster: an endpoint belongs to another cluster than the one that answered
	// first. It is not asked again.
	ErrOtherCluster = errors.New("an endpoint is of another cluster")

	// ErrStranger: what answered is no node of raftkv, or something between changed the answer.
	ErrStranger = errors.New("the answer is not one of raftkv's")

	// ErrTokenExposed: a token would have gone over http to another machine. Nothing was sent.
	ErrTokenExposed = errors.New("a token goes over https or to a loopback address alone")
)

// Code is the stable name of an error that a node answered with. It is an error, so that
// errors.Is(err, client.NotFound) tells a missing key from a failed call. What to do about
// each is in docs/errors.md, and at /v1/errors of each node.
type Code string

// Error returns the code as it is in the answer, such as not_found.
func (c Code) Error() string { return string(c) }

// Error is what failed calls return. By errors.Is it matches ErrNotApplied or
// ErrOutcomeUnknown, its Code, the end of a context, and what the last attempt failed with.
type Error struct {
	Op       string // the call, such as put
	Key      string // the key or prefix that it was about, if it was about one
	Endpoint string // which was asked last; "" if none was
	Status   int    // of its answer; 0 if there was none
	Code     Code   // of its answer; "" if it had none
	Detail   string // what a person should read
	Revision uint64 // with PreconditionFailed, the key's revision; 0 if there is no such key
	Attempts int    // requests that were sent, or tried to
	Unknown  bool   // it may have happened: see ErrOutcomeUnknown

	earlier bool     // an attempt before the last may have happened
	cause   error    // never nil: how the last attempt, or the call, ended
	others  []*Error // what other endpoints answered last
	ended   error    // the end of the context, if that ended the call
}

// Error says what was done, what went wrong, where, and whether it may have happened.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Key != "" {
		fmt.Fprintf(&b, " %q", clip(e.Key, 100))
	}
	b.WriteString(": ")
	b.WriteString(e.brief())
	for _, o := range e.others {
		fmt.Fprintf(&b, "; before it: %s", o.brief())
	}
	if e.ended != nil {
		fmt.Fprintf(&b, "; given up after %d attempts: %v", e.Attempts, e.ended)
	}
	if e.Unknown {
		b.WriteString("; it may have happened")
	}
	return b.String()
}

// brief says what went wrong, and where.
func (e *Error) brief() string {
	text := e.Detail
	if text == "" {
		text = e.cause.Error()
	}
	if e.Code != "" {
		text = string(e.Code) + ": " + text
	}
	if e.Endpoint != "" {
		text += " (" + e.Endpoint + ")"
	}
	return text
}

// Unwrap returns the errors that this one matches.
func (e *Error) Unwrap() []error {
	outcome := ErrNotApplied
	if e.Unknown {
		outcome = ErrOutcomeUnknown
	}
	all := []error{outcome, e.cause}
	if e.Code != "" {
		all = append(all, e.Code)
	}
	if e.ended != nil {
		all = append(all, e.ended)
	}
	return all
}

// invalid returns the error of a call that was not made, because it could not be right.
func invalid(op, key, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Op: op, Key: key, Code: BadRequest, Detail: err.Error(), cause: err}
}

// clip cuts a text that may be long.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most] + "..."
}
