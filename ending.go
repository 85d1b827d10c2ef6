package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// errEnding: the node has met a fault with which it cannot go on, such as an
// error of the log's disk. Its process ends once its clients know.
var errEnding = newProblem(http.StatusInternalServerError, "internal", notApplied, retryLater,
	"this node cannot go on, and ends")

// fault returns what ends this node, nil as long as nothing does, or what does
// was asked for.
func (a *api) fault() error {
	if a.life.Err() == nil {
		return nil
	}
	cause := context.Cause(a.life)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, errRemoved) {
		return nil
	}
	return fmt.Errorf("%w: %w", errEnding, cause)
}

// explain gives the cause in place of the error that a request ends in because
// its node does, which may be that it is stopping, or that the outcome is unknown.
func (a *api) explain(h http.Header, err error) error {
	fault := a.fault()
	p := problemOf(err)
	if fault == nil || p.status < http.StatusInternalServerError {
		return err
	}
	h.Set("Connection", "close")
	if p.outcome == maybeApplied {
		return unsettled{fault}
	}
	return fault
}
