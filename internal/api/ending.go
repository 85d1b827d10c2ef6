package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"raftkv/internal/problem"
)

// Endings knows why a request ends in an error where the node is the reason.
type Endings struct {
	Life     context.Context // the node's
	Disputed func() error    // why nothing may be committed, though this node is not at fault
}

// Ending returns the error that is ending this node. It is nil while the node runs,
// and when it was stopped or removed on purpose.
func (e Endings) Ending() error {
	if e.Life.Err() == nil {
		return nil
	}
	cause := context.Cause(e.Life)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, problem.ErrRemoved) {
		return nil
	}
	return fmt.Errorf("%w: %w", problem.ErrEnding, cause)
}

// Explain gives the cause in place of the error that a request ends in because
// its node does, which may be that it is stopping, or that the outcome is unknown.
// Where nothing could be confirmed in time, it adds why. With end the connection is of
// no more use.
func (e Endings) Explain(err error) (_ error, end bool) {
	fault := e.Ending()
	p := problem.Of(err)
	if p.Status < http.StatusInternalServerError {
		return err, false
	}
	if fault == nil {
		late := errors.Is(err, problem.ErrNoLeader) || errors.Is(err, problem.ErrUnavailable) || errors.Is(err, problem.ErrOutcomeUnknown)
		if why := e.Disputed(); why != nil && late {
			return fmt.Errorf("%w; %w", err, why), false
		}
		return err, errors.Is(err, problem.ErrStopping)
	}
	if p.Outcome == problem.MaybeApplied {
		return problem.PerhapsDone(fault), true
	}
	return fault, true
}
