package main

import (
	"context"
	"errors"
	"fmt"
	"raftkv/internal/checker"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"testing"
	"time"
)

// Guarantee: each error keeps its status, its stable code and what it says of
// the request's fate, for clients build on them.
func TestAPIProblems(t *testing.T) {
	rows := []struct {
		err     error
		status  int
		code    string
		outcome string
		retry   problem.Retry
	}{
		{problem.ErrBadRequest, 400, "bad_request", "not_applied", problem.NoRetry},
		{problem.ErrBadPeerURL, 400, "bad_request", "not_applied", problem.NoRetry},
		{problem.ErrUnauthenticated, 401, "unauthenticated", "not_applied", problem.NoRetry},
		{problem.ErrForbidden, 403, "forbidden", "not_applied", problem.NoRetry},
		{problem.ErrCrossOrigin, 403, "cross_origin", "not_applied", problem.NoRetry},
		{problem.ErrNotFound, 404, "not_found", "not_applied", problem.NoRetry},
		{problem.ErrNoSuchPath, 404, "no_such_path", "not_applied", problem.NoRetry},
		{problem.ErrMemberUnknown, 404, "not_found", "not_applied", problem.NoRetry},
		{problem.ErrMethodNotAllowed, 405, "method_not_allowed", "not_applied", problem.NoRetry},
		{problem.ErrRequestTimeout, 408, "request_timeout", "not_applied", problem.RetryLater},
		{problem.ErrTooSlow, 408, "request_timeout", "not_applied", problem.RetryLater},
		{problem.ErrAmbiguous, 409, "ambiguous", "not_applied", problem.NoRetry},
		{problem.ErrMemberExists, 409, "member_exists", "not_applied", problem.NoRetry},
		{problem.ErrSameNode, 409, "member_exists", "not_applied", problem.NoRetry},
		{problem.ErrMemberRemoved, 409, "member_removed", "not_applied", problem.NoRetry},
		{problem.ErrLastVoter, 409, "last_voter", "not_applied", problem.NoRetry},
		{problem.ErrWouldLose, 409, "would_lose_quorum", "not_applied", problem.RetryLater},
		{problem.ErrNotVoter, 409, "not_voter", "not_applied", problem.NoRetry},
		{problem.ErrInProgress, 409, "change_in_progress", "not_applied", problem.RetrySoon},
		{problem.ErrLeaseUnknown, 404, "no_such_lease", "not_applied", problem.NoRetry},
		{problem.ErrNoSuchLease, 409, "no_such_lease", "not_applied", problem.NoRetry},
		{problem.ErrLeaseFull, 409, "lease_full", "not_applied", problem.NoRetry},
		{problem.ErrTooManyLeases, 507, "quota_exceeded", "not_applied", problem.RetryLater},
		{problem.ErrUpgrading, 503, "upgrading", "not_applied", problem.RetrySoon},
		{problem.ErrNotANumber, 409, "not_a_number", "not_applied", problem.NoRetry},
		{problem.ErrOutOfRange, 409, "out_of_range", "not_applied", problem.NoRetry},
		{problem.ErrPrecondition, 412, "precondition_failed", "not_applied", problem.NoRetry},
		{problem.ErrKeyReused, 422, "idempotency_key_reused", "not_applied", problem.NoRetry},
		{problem.ErrTooStale, 503, "too_stale", "not_applied", problem.RetrySoon},
		{problem.ErrTooLarge, 413, "too_large", "not_applied", problem.NoRetry},
		{problem.ErrMediaType, 415, "unsupported_media_type", "not_applied", problem.NoRetry},
		{problem.ErrWrongHost, 421, "wrong_host", "not_applied", problem.NoRetry},
		{problem.ErrOverloaded, 429, "overloaded", "not_applied", problem.RetrySoon},
		{problem.ErrInternal, 500, "internal", "unknown", problem.NoRetry},
		{errors.New("never heard of"), 500, "internal", "unknown", problem.NoRetry},
		{problem.ErrEnding, 500, "internal", "not_applied", problem.RetryLater},
		{problem.PerhapsDone(problem.ErrEnding), 500, "internal", "unknown", problem.RetryLater},
		{problem.ErrNoLeader, 503, "no_leader", "not_applied", problem.RetrySoon},
		{problem.ErrStopping, 503, "stopping", "not_applied", problem.RetrySoon},
		{problem.ErrNotReady, 503, "not_ready", "not_applied", problem.RetrySoon},
		{problem.ErrUnavailable, 503, "unavailable", "not_applied", problem.RetrySoon},
		{problem.ErrNotHandedOver, 503, "not_handed_over", "unknown", problem.RetrySoon},
		{problem.ErrElsewhere, 503, "not_leader", "not_applied", problem.RetrySoon},
		{problem.ErrDiverged, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.ErrHistories, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.ErrDisputed, 503, "disputed", "not_applied", problem.RetryLater},
		{problem.ErrNoMajority, 503, "diverged", "not_applied", problem.RetryLater},
		{problem.ErrMemory, 503, "diverged", "not_applied", problem.NoRetry},
		{problem.PerhapsDone(problem.ErrDiverged), 503, "diverged", "unknown", problem.NoRetry},
		{problem.ErrStuck, 503, "stuck", "not_applied", problem.RetryLater},
		{problem.ErrOutcomeUnknown, 504, "outcome_unknown", "unknown", problem.RetryLater},
		{problem.ErrDiskFull, 507, "disk_full", "not_applied", problem.RetryLater},
		{problem.ErrQuota, 507, "quota_exceeded", "not_applied", problem.RetryLater},
	}
	listed := make(map[error]bool)
	for _, tt := range rows {
		listed[tt.err] = true
		for _, err := range []error{tt.err, fmt.Errorf("because: %w <&>", tt.err)} {
			at := newAPITest(t)
			at.fails, at.invented = err, true
			for _, method := range []string{"GET", "PUT"} {
				w := at.do(method, "/k", "v")
				if detail := at.problem(err.Error(), w, tt.status, tt.code); detail != err.Error() {
					t.Errorf("%v: the detail is %q", err, detail)
				}
				want := fmt.Sprintf(`"outcome":%q,"retry":%v}`, tt.outcome, tt.retry != problem.NoRetry)
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%v: %s, want %s", err, w.Body, want)
				}
				if got := w.Header().Get("Retry-After"); (got != "") != (tt.retry == problem.RetrySoon) {
					t.Errorf("%v: Retry-After is %q", err, got)
				}
			}
			// And from node to node, where no lease is ever spoken of.
			if back := problem.FromCode(problem.CodeOf(err), "detail"); problem.CodeOf(back) != tt.code || problem.Of(back).Status != tt.status && tt.code != "no_such_lease" || back.Error() == "" {
				t.Errorf("%v came from another node as %v", err, back)
			}
		}
	}
	for _, p := range problem.Problems {
		if !listed[p] {
			t.Errorf("%v is not in this test", p)
		}
	}
	if problem.FromCode("", "") != nil || problem.CodeOf(problem.FromCode("from_the_future", "x")) != "internal" {
		t.Error("codes that are none")
	}
}

// Guarantee: what a replica that has just been found to differ says of a write
// under way is not that it did not happen.
func TestAPIDivergedMeanwhile(t *testing.T) {
	at := newAPITest(t)
	propose := at.a.keys.Writes.(proposeFunc)
	at.a.keys.Writes = proposeFunc(func(ctx context.Context, cmd []byte) state.Result {
		defer at.kv.agreement.Verdict.Store(&checker.Verdict{Err: problem.ErrDiverged})
		return propose(ctx, cmd)
	})
	for _, outcome := range []string{"unknown", "not_applied"} {
		w := at.do("PUT", "/k", "v")
		at.problem("PUT", w, 503, "diverged")
		if !strings.Contains(w.Body.String(), `"outcome":"`+outcome) {
			t.Errorf("%s, want %s", w.Body, outcome)
		}
	}
}

// Guarantee: a name that somebody makes point at this node is refused on every
// method, and the names that are this node's work.
func TestAPIHost(t *testing.T) {
	at := newAPITest(t)
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:9121": true, "LOCALHOST:1": true, "127.0.0.1": true, "127.0.0.1:9121": true, "192.168.1.5:80": true,
		"[::1]": true, "[::1]:9121": true, "[2001:db8::1]:1": true, "kv.example": true, "KV.Example:9121": true, "node1.example:9121": true,
		"":             true, // a health check in HTTP/1.0
		"evil.example": false, "evil.example:9121": false, "localhost.evil.example": false, "127.0.0.1.evil.example:9121": false,
		"kv.example.evil": false, "node2.example": false, "kv.example@evil": false, "127.0.0.1:9121:80": false, "a b": false,
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "BREW"} {
			for _, target := range []string{"/k", "/", "/v1/kv/k", "/v1/status", "/livez", "/metrics", "/ui", "/4"} {
				w := at.do(method, target, "v", "Host", host)
				if ok && w.Code == 421 {
					t.Errorf("%s %s at %q: %s", method, target, host, w.Body)
				} else if !ok {
					at.problem(fmt.Sprintf("%s %s at %q", method, target, host), w, 421, "wrong_host")
				}
			}
		}
	}
	at.problem("absolute form", at.do("GET", "http://evil.example/k", ""), 421, "wrong_host")
}

// Guarantee: who calls / is told where to go next.
func TestAPIRoot(t *testing.T) {
	at := newAPITest(t)
	w := at.do("GET", "/", "")
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") || !strings.Contains(w.Body.String(), "/v1/") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if at.proposed+at.asked != 0 {
		t.Error("the root page asks the cluster")
	}
}

// Guarantee: 405 says what is allowed, and what it says is allowed is.
func TestAPIMethods(t *testing.T) {
	at := newAPITest(t)
	at.a.profiles = true
	at.srv.members.Timeout = time.Millisecond // nobody carries out what is asked of a leader
	for target, allow := range map[string]string{
		"/": "GET, HEAD", "/k": "GET, HEAD, PUT", "/7": "GET, HEAD, PUT, POST, DELETE", "/v1/kv/k": "GET, HEAD, PUT, DELETE", "/v1/kv/7": "GET, HEAD, PUT, DELETE",
		"/07": "GET, HEAD, PUT", "/0": "GET, HEAD, PUT", "/18446744073709551615": "GET, HEAD, PUT",
		"/v1/status": "GET, HEAD", "/v1/members": "GET, HEAD, POST", "/v1/members/1": "GET, HEAD, PATCH, DELETE", "/v1/leader": "POST", "/v1/kv": "DELETE, GET, HEAD, POST, PUT", "/v1/txn": "POST", "/v1/add": "POST", "/v1/leases": "GET, HEAD, POST", "/v1/leases/1": "DELETE, GET, HEAD, PUT",
		"/livez": "GET, HEAD", "/readyz": "GET, HEAD", "/metrics": "GET, HEAD",
		"/debug/pprof/": "GET, HEAD, POST", "/debug/pprof/heap": "GET, HEAD, POST",
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"} {
			w := at.do(method, target, "")
			if strings.Contains(allow+",", method+",") {
				if w.Code == 405 {
					t.Errorf("%s %s is not allowed", method, target)
				}
				continue
			}
			if (method == "POST" || method == "DELETE") && strings.HasPrefix(allow, "GET, HEAD, PUT") && !strings.HasPrefix(target, "/v1/") {
				at.problem(method+" "+target, w, 400, "bad_request") // which names the form that works
				continue
			}
			at.problem(method+" "+target, w, 405, "method_not_allowed")
			if got := w.Header().Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow is %q, want %q", method, target, got, allow)
			}
		}
	}
}

// Guarantee: a path under /v1 that is not there is 404, not a key.
func TestAPINotThere(t *testing.T) {
	at := newAPITest(t)
	for _, target := range []string{"/v1", "/v1/", "/v1/nothing", "/v1/status/", "/v1//kv/k"} {
		at.problem(target, at.do("GET", target, ""), 404, "no_such_path")
	}
}

// Guarantee: the type of an error leads to what is to be known of it, on the node that
// has answered, also when that can do nothing else.
func TestAPIErrorsPage(t *testing.T) {
	at := newAPITest(t)
	at.kv.agreement.Verdict.Store(&checker.Verdict{Err: problem.ErrDiverged})
	at.problem("broken", at.do("GET", "/k", ""), 503, "diverged")
	w := at.do("GET", "/v1/errors", "")
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") || !strings.Contains(w.Body.String(), "\n## diverged\n") {
		t.Errorf("%d %v %.300s", w.Code, w.Header(), w.Body)
	}
}
