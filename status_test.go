package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"raftkv/internal/admin"
	"raftkv/internal/checker"
	"raftkv/internal/contact"
	"raftkv/internal/liveness"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/version"
	"strings"
	"testing"
)

// What a node says of itself, through the HTTP interface.

// Guarantee: a node that stops takes no more requests and sends clients
// elsewhere, but is still alive.
func TestAPIStopping(t *testing.T) {
	at := newAPITest(t)
	at.a.stopping.Store(true)
	for _, tt := range []string{"GET /k", "HEAD /k", "PUT /k", "POST /4", "DELETE /4", "DELETE /v1/kv/k", "GET /", "GET /readyz", "GET /v1/status", "GET /metrics"} {
		method, target, _ := strings.Cut(tt, " ")
		w := at.do(method, target, "v")
		at.problem(tt, w, 503, "stopping")
		if h := w.Header(); h.Get("Connection") != "close" || h.Get("Retry-After") == "" {
			t.Errorf("%s: %v", tt, h)
		}
	}
	at.want(at.do("GET", "/livez", ""), 200, "ok\n")
	if at.proposed+at.asked != 0 {
		t.Errorf("%d proposals, %d reads", at.proposed, at.asked)
	}
}

// Guarantee: a node that the checks found to differ answers nothing out of its
// state, and says what is wrong with it.
func TestAPIDiverged(t *testing.T) {
	for _, found := range []error{problem.ErrDiverged, problem.ErrNoMajority, problem.ErrMemory} {
		at := newAPITest(t)
		at.kv.agreement.Verdict.Store(&checker.Verdict{Err: found})
		for _, tt := range []string{
			"GET /k", "GET /k?consistency=stale", "HEAD /k", "PUT /k", "DELETE /v1/kv/k", "POST /4", "DELETE /4", "GET /",
			"GET /v1/members", "GET /v1/members?consistency=stale", "GET /v1/nothing", "GET /v1/status/",
		} {
			method, target, _ := strings.Cut(tt, " ")
			if detail := at.problem(tt, at.do(method, target, "v"), 503, "diverged"); detail != found.Error() {
				t.Errorf("%s: the detail is %q", tt, detail)
			}
		}
		if at.proposed+at.asked != 0 {
			t.Errorf("%d proposals, %d reads", at.proposed, at.asked)
		}
		at.want(at.do("GET", "/livez", ""), 200, "ok\n")
		if w := at.do("GET", "/v1/status", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"diverged":true`) {
			t.Errorf("status: %d %s", w.Code, w.Body)
		}
		if w := at.do("GET", "/metrics", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "raftkv_diverged 1\n") {
			t.Errorf("metrics: %d", w.Code)
		}
		if w := at.do("GET", "/readyz?verbose", ""); w.Code != 503 || !strings.Contains(w.Body.String(), "FAIL agrees with the other replicas") {
			t.Errorf("readyz: %d %s", w.Code, w.Body)
		}
	}
}

// Guarantee: while it is open whose history the majority keeps, a node takes nothing in and
// confirms nothing; what it has it still tells those who ask for no more.
func TestAPIDisputed(t *testing.T) {
	at := newAPITest(t)
	at.a.ends.Disputed = func() error { return problem.ErrDisputed }
	for _, tt := range []string{
		"GET /k", "HEAD /k", "PUT /k", "DELETE /v1/kv/k", "GET /v1/kv", "POST /v1/add?key=k", "POST /v1/txn", "POST /v1/leases", "POST /4", "GET /v1/members",
	} {
		method, target, _ := strings.Cut(tt, " ")
		at.problem(tt, at.do(method, target, "1"), 503, "disputed")
	}
	if at.proposed+at.asked != 0 {
		t.Errorf("%d proposals, %d reads", at.proposed, at.asked)
	}
	at.problem("a stale read", at.do("GET", "/k?consistency=stale", ""), 404, "not_found")
	for _, target := range []string{"/v1/kv?consistency=stale", "/v1/members?consistency=stale", "/v1/status", "/livez"} {
		if w := at.do("GET", target, ""); w.Code != 200 {
			t.Errorf("GET %s: %d %s", target, w.Code, w.Body)
		}
	}
}

// Guarantee: a node is ready when it has a leader, is a member and has caught
// up; not a moment before, and it says what is missing.
func TestAPIReady(t *testing.T) {
	at := newAPITest(t)
	at.want(at.do("GET", "/readyz", ""), 200, "ok\n")
	verbose := at.do("GET", "/readyz?verbose", "")
	if verbose.Code != 200 || strings.Count(verbose.Body.String(), "ok  ") != 9 {
		t.Errorf("%d %s", verbose.Code, verbose.Body)
	}
	for name, spoil := range map[string]func(at *apiTest){
		"has a leader":  func(at *apiTest) { at.node.status.Store(&contact.RaftStatus{Term: 2}) },
		"is a member":   func(at *apiTest) { delete(at.kv.state.Membership.Members, 1) },
		"has caught up": func(at *apiTest) { at.srv.caughtUp.Store(false) },
		"agrees with":   func(at *apiTest) { at.kv.agreement.Unsound.Store(true) },
		"has a disk":    func(at *apiTest) { at.node.disk.Hanging.Store(true) },
		"is not loading": func(at *apiTest) {
			at.kv.pulse.Excuse.Store(liveness.LoadingSnapshot)
			at.kv.pulse.Owed.Store(1)
		},
	} {
		at := newAPITest(t)
		spoil(at)
		if detail := at.problem(name, at.do("GET", "/readyz", ""), 503, "not_ready"); !strings.Contains(detail, name) {
			t.Errorf("%s is missing: %q", name, detail)
		}
		if w := at.do("GET", "/readyz?verbose", ""); w.Code != 503 || !strings.Contains(w.Body.String(), "FAIL "+name) {
			t.Errorf("%s is missing: %d %q", name, w.Code, w.Body)
		}
		at.want(at.do("GET", "/livez", ""), 200, "ok\n")
	}
}

// Guarantee: status and members say what the node knows.
func TestAPIStatusAndMembers(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/key", "value")
	var st admin.NodeStatus
	if err := json.Unmarshal(at.do("GET", "/v1/status", "").Body.Bytes(), &st); err != nil {
		t.Fatal(err)
	}
	if st.ID != 1 || st.Role != "follower" || st.Leader != 2 || st.Term != 1 || st.AppliedIndex != 1 || st.Revision != 1 || st.Keys != 1 || st.Bytes != 8 {
		t.Errorf("status %+v", st)
	}
	at.kv.state.Membership.Members[3] = membership.Member{ID: 3, PeerURL: "http://c:3", Learner: true}
	at.kv.state.Membership.Removed[9] = true
	want := `{"members":[{"id":1,"peer_url":"http://a:1","client_url":"","role":"voter","leader":false,"version":"` + version.This().Version + `"},` +
		`{"id":2,"peer_url":"http://b:2","client_url":"","role":"voter","leader":true},` +
		`{"id":3,"peer_url":"http://c:3","client_url":"","role":"learner","leader":false}],"removed":[9]}` + "\n"
	at.want(at.do("GET", "/v1/members", ""), 200, want)
	w := at.do("GET", "/metrics", "")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "raftkv_revision 1\n") {
		t.Errorf("metrics: %d", w.Code)
	}
}

// Guarantee: a node whose disk hangs takes no writes that make the store grow,
// and does all else as ever.
func TestAPIDiskHangs(t *testing.T) {
	at := newAPITest(t)
	at.want(at.do("PUT", "/k", "v"), 204, "")
	at.node.disk.Hanging.Store(true)
	detail := at.problem("PUT", at.do("PUT", "/k", "w"), 429, "overloaded")
	if !strings.Contains(detail, "its disk does not answer") {
		t.Errorf("it says %q", detail)
	}
	at.want(at.do("GET", "/k", ""), 200, "v")
	at.want(at.do("DELETE", "/v1/kv/k", ""), 204, "")
	at.want(at.do("GET", "/livez", ""), 200, "ok\n")
}

// Guarantee: /v1/status has the version and the revision of --version.
func TestStatusNamesTheBuild(t *testing.T) {
	at := newAPITest(t)
	var got struct {
		Version       string `json:"version"`
		BuildRevision string `json:"build_revision"`
	}
	w := at.do("GET", "/v1/status", "")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if b := version.This(); got.Version != b.Version || got.BuildRevision != b.Revision {
		t.Errorf("%s, want version %q and build_revision %q", w.Body, b.Version, b.Revision)
	}
}

func TestProfiles(t *testing.T) {
	at := newAPITest(t)
	at.problem("not asked for", at.do("GET", "/debug/pprof/heap", ""), 400, "bad_request")
	at.problem("not asked for", at.do("GET", "/debug/pprof", ""), 400, "bad_request")
	at.a.profiles = true
	for _, target := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline", "/debug/pprof/symbol"} {
		if w := at.do("GET", target, ""); w.Code != 200 || w.Body.Len() == 0 {
			t.Errorf("GET %s: %d", target, w.Code)
		}
	}
	if w := at.do("GET", "/debug/pprof", ""); w.Code != 307 || w.Header().Get("Location") != "/debug/pprof/" {
		t.Errorf("without the slash: %d to %q", w.Code, w.Header().Get("Location"))
	}
	at.problem("another path", at.do("GET", "/debug/else", ""), 400, "bad_request")
	at.problem("another path", at.do("GET", "/debug/pprofelse", ""), 400, "bad_request")
	if detail := at.problem("no such profile", at.do("GET", "/debug/pprof/else?debug=1", ""), 404, "no_such_path"); strings.Contains(detail, "key") {
		t.Errorf("no such profile: %s", detail)
	}
	// go tool pprof shows its user what the library says.
	w := at.do("GET", "/debug/pprof/heap?seconds=x", "")
	if w.Code != 400 || w.Header().Get("X-Go-Pprof") == "" || !strings.Contains(w.Body.String(), "seconds") {
		t.Errorf("bad seconds: %d %q", w.Code, w.Body)
	}
	if w := at.do("PUT", "/debug/pprof/heap", ""); w.Code != 405 {
		t.Errorf("PUT: %d", w.Code)
	}
}

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
		at.a.ends.Life = life
		at.a.keys.Writes = proposeFunc(func(context.Context, []byte) state.Result {
			at.proposed++
			end(tt.ends)
			at.a.stop() // as server.run does then
			return state.Result{Err: tt.fails}
		})
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
