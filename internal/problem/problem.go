// Package problem answers: what can become of a request? Each error of which
// a client is told is declared here once, with its stable code, its HTTP status,
// whether the request may have happened, and whether to try it again. An error that
// wraps none of them is internal. The package knows neither HTTP handlers nor raft;
// package web writes the answer.
package problem

import (
	"errors"
	"fmt"
)

// Outcome says what became of a request that ended in an error.
type Outcome string

const (
	NotApplied   Outcome = "not_applied" // it did not happen, and will not
	MaybeApplied Outcome = "unknown"     // it may have happened, or may still
)

// Retry says whether the same request can succeed later.
type Retry int

const (
	NoRetry    Retry = iota // only once somebody has changed the request, the data or the node
	RetryLater              // once the cluster is in another state
	RetrySoon               // what is in the way passes by itself; carries Retry-After
)

// problem is an error of which clients are told by a stable code (RFC 9457). It
// is declared by declare, and says there all that a client may conclude. An
// error that wraps none is internal.
type problem struct {
	Status  int
	Code    string
	Outcome Outcome
	Retry   Retry
	text    string
}

func (p *problem) Error() string { return p.text }

// Problems are all that are declared: a code that comes from another node is
// looked up here. It is complete when the package is initialized.
var Problems []*problem

func declare(status int, code string, o Outcome, r Retry, text string) *problem {
	p := &problem{status, code, o, r, text}
	Problems = append(Problems, p)
	return p
}

// unsettled is an error that came up when the request had been handed to the
// cluster already, so it may have happened.
type unsettled struct{ err error }

func (u unsettled) Error() string { return u.err.Error() }

func (u unsettled) Unwrap() error { return u.err }

// PerhapsDone returns an error for a request that had been handed to the cluster
// already: whatever it says, it may have happened.
func PerhapsDone(err error) error { return unsettled{err} }

// Of finds what a client is told of an error.
func Of(err error) problem {
	found := ErrInternal
	errors.As(err, &found)
	p := *found
	if u := (unsettled{}); errors.As(err, &u) {
		p.Outcome = MaybeApplied
	}
	return p
}

// Bare returns the problem that an error is, without what else it says.
func Bare(err error) error {
	found := ErrInternal
	errors.As(err, &found)
	return found
}

// CodeOf returns an error's stable code.
func CodeOf(err error) string { return Of(err).Code }

// FromCode turns the code and text that another node sent back into an error.
func FromCode(code, detail string) error {
	if code == "" {
		return nil
	}
	for _, p := range Problems {
		if p.Code == code {
			return remoteError{p, detail}
		}
	}
	return fmt.Errorf("%w: another node answered %s: %s", ErrInternal, code, detail)
}

// remoteError is a problem with the text that another node gave it.
type remoteError struct {
	err    error
	detail string
}

func (e remoteError) Error() string { return e.detail }

func (e remoteError) Unwrap() error { return e.err }
