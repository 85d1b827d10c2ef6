package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"testing"
)

// Guarantee: while a node ends by a fault, every request is told so, the one
// under way too, and whether it may have happened. One that is stopped as asked
// is stopping.
func TestAPINodeEnds(t *testing.T) {
	disk := fmt.Errorf("cannot store: %w", errors.New("input/output error"))
	for _, tt := range []struct {
		ends, fails     error
		status          int
		code, outcome   string
		meanwhile       string
		statusMeanwhile int
	}{
		{disk, problem.ErrOutcomeUnknown, 500, "internal", "not_applied", "unknown", 500},
		{disk, problem.ErrStopping, 500, "internal", "not_applied", "not_applied", 500},
		{disk, problem.ErrNoLeader, 500, "internal", "not_applied", "not_applied", 500},
		{disk, problem.ErrPrecondition, 500, "internal", "not_applied", "not_applied", 412},
		{problem.ErrRemoved, problem.ErrStopping, 503, "stopping", "not_applied", "not_applied", 503},
		{context.Canceled, problem.ErrStopping, 503, "stopping", "not_applied", "not_applied", 503},
	} {
		at := newAPITest(t)
		life, end := context.WithCancelCause(t.Context())
		at.a.life = life
		at.a.propose = func(context.Context, []byte) state.Result {
			at.proposed++
			end(tt.ends)
			at.a.stop() // as server.run does then
			return state.Result{Err: tt.fails}
		}
		w := at.do("PUT", "/k", "v")
		if w.Code != tt.statusMeanwhile || !strings.Contains(w.Body.String(), `"outcome":"`+tt.meanwhile+`"`) {
			t.Errorf("%v, %v: meanwhile %d %s, want %d, %s", tt.ends, tt.fails, w.Code, w.Body, tt.statusMeanwhile, tt.meanwhile)
		}
		for _, method := range []string{"PUT", "GET", "DELETE"} {
			w := at.do(method, "/v1/kv/k", "")
			at.problem(method, w, tt.status, tt.code)
			if w.Header().Get("Connection") != "close" || !strings.Contains(w.Body.String(), `"outcome":"`+tt.outcome+`"`) ||
				tt.ends == disk && !strings.Contains(w.Body.String(), "input/output error") {
				t.Errorf("%v: afterwards %v %s, want %s, the reason, and no more requests", tt.ends, w.Header(), w.Body, tt.outcome)
			}
		}
		if at.proposed != 1 {
			t.Errorf("%d proposals", at.proposed)
		}
	}
}
