package main

import (
	"errors"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"strings"
	"testing"
)

// Guarantee: each request under /v1/members and /v1/leader asks the leader for
// what it says and nothing else; what is not understood reaches nobody.
func TestAPIMembers(t *testing.T) {
	at := newAPITest(t)
	var got []reconfig.Request
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) {
		got = append(got, r)
		return reconfig.Reply{ID: 2, Index: 1}, nil
	}
	const two = `{"id":2,"peer_url":"http://b:2","client_url":"","role":"voter","leader":true}` + "\n"
	for _, tt := range []struct {
		request, body string
		status        int
		answer        string
		want          reconfig.Request
	}{
		{"POST /v1/members", `{"peer_url":"http://d:4"}`, 201, two, reconfig.Request{Op: membership.OpAdd, PeerURL: "http://d:4"}},
		{"POST /v1/members", `{"id":4,"peer_url":"HTTP://D:4"}`, 201, two, reconfig.Request{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}},
		{"POST /v1/members?force=true", `{"peer_url":"http://d:4","role":"voter"}`, 201, two, reconfig.Request{Op: membership.OpAddVoter, PeerURL: "http://d:4", Force: true}},
		{"POST /v1/members", `{"peer_url":"http://d:4","role":"learner"}`, 201, two, reconfig.Request{Op: membership.OpAddLearner, PeerURL: "http://d:4"}},
		{"PATCH /v1/members/2", `{"peer_url":"http://d:4"}`, 200, two, reconfig.Request{Op: membership.OpMove, ID: 2, PeerURL: "http://d:4"}},
		{"PATCH /v1/members/2", `{"role":"voter"}`, 200, two, reconfig.Request{Op: membership.OpMakeVoter, ID: 2}},
		{"PATCH /v1/members/2?force=true", `{"role":"learner","peer_url":"http://d:4"}`, 200, two,
			reconfig.Request{Op: membership.OpMakeLearner, ID: 2, PeerURL: "http://d:4", Force: true}},
		{"DELETE /v1/members/2", ``, 204, "", reconfig.Request{Op: membership.OpRemove, ID: 2}},
		{"DELETE /v1/members/2?force=true", ``, 204, "", reconfig.Request{Op: membership.OpRemove, ID: 2, Force: true}},
		{"POST /v1/leader", ``, 200, `{"leader":2}` + "\n", reconfig.Request{Op: membership.OpLead}},
		{"POST /v1/leader", `{"id":2}`, 200, `{"leader":2}` + "\n", reconfig.Request{Op: membership.OpLead, ID: 2}},
	} {
		got = nil
		method, target, _ := strings.Cut(tt.request, " ")
		w := at.do(method, target, tt.body)
		at.want(w, tt.status, tt.answer)
		if len(got) != 1 {
			t.Errorf("%s %s: %d requests reached the leader", tt.request, tt.body, len(got))
			continue
		}
		if leftOpen := tt.want.Op.Adds() && tt.want.ID == 0; leftOpen != (got[0].Request != 0) {
			t.Errorf("%s %s: request number %d", tt.request, tt.body, got[0].Request)
		}
		got[0].Request = 0
		if got[0] != tt.want {
			t.Errorf("%s %s: %+v, want %+v", tt.request, tt.body, got[0], tt.want)
		}
		if location := w.Header().Get("Location"); (tt.status == 201) != (location == "/v1/members/2") {
			t.Errorf("%s %s: Location is %q", tt.request, tt.body, location)
		}
	}
	got = nil
	for _, tt := range []struct{ request, body string }{
		{"POST /v1/members", ``}, {"POST /v1/members", `{"peer_url":"http://d:4/"}`}, {"POST /v1/members", `{"peer_url":"http://d:4","id":0}`},
		{"POST /v1/members", `{"peer_url":"http://d:4","id":18446744073709551615}`}, {"POST /v1/members", `{"peer_url":"http://d:4","role":""}`},
		{"POST /v1/members", `{"peer_url":"http://d:4","role":"Voter"}`}, {"POST /v1/members", `{"PEER_URL":"http://d:4"}`},
		{"POST /v1/members?force=yes", `{"peer_url":"http://d:4"}`}, {"POST /v1/members?force=true&force=true", `{"peer_url":"http://d:4"}`},
		{"PATCH /v1/members/2", ``}, {"PATCH /v1/members/2", `{}`}, {"PATCH /v1/members/2", `{"role":"x"}`}, {"PATCH /v1/members/2", `{"peer_url":""}`},
		{"PATCH /v1/members/2", `{"role":null}`}, {"PATCH /v1/members/2?x=1", `{"role":"voter"}`}, {"PATCH /v1/members/02", `{"role":"voter"}`},
		{"DELETE /v1/members/x", ``}, {"DELETE /v1/members/", ``}, {"DELETE /v1/members/2/", ``}, {"DELETE /v1/members/0", ``},
		{"DELETE /v1/members/2?force=1", ``}, {"GET /v1/members/2?consistency=maybe", ``}, {"GET /v1/members/2?force=true", ``},
		{"POST /v1/leader", `{"id":0}`}, {"POST /v1/leader", `{"id":"2"}`}, {"POST /v1/leader", `{"leader":2}`}, {"POST /v1/leader?id=2", ``},
	} {
		method, target, _ := strings.Cut(tt.request, " ")
		at.problem(tt.request+" "+tt.body, at.do(method, target, tt.body), 400, "bad_request")
	}
	at.problem("a text", at.do("POST", "/v1/members", `{}`, "Content-Type", "text/plain"), 415, "unsupported_media_type")
	at.problem("a lot", at.do("PATCH", "/v1/members/2", `{"role":"`+strings.Repeat("x", api.MaxMemberBytes)+`"}`), 413, "too_large")
	at.problem("nobody", at.do("GET", "/v1/members/9", ""), 404, "not_found")
	at.want(at.do("GET", "/v1/members/2", ""), 200, two)
	at.want(at.do("GET", "/v1/members/2?consistency=stale", ""), 200, two)
	if len(got) != 0 {
		t.Errorf("%+v reached the leader", got)
	}
}

// A change that may have been made by a first try is not said to have been
// refused because a second one met a busy leader; it is asked again.
func TestMembersAPIOutcomeUnknownStays(t *testing.T) {
	at := newAPITest(t)
	tries := 0
	at.leader = func(reconfig.Request) (reconfig.Reply, error) {
		switch tries++; tries {
		case 1:
			return reconfig.Reply{}, errors.New("connection reset")
		case 2:
			return reconfig.Reply{Code: problem.CodeOf(problem.ErrInProgress), Detail: "busy"}, nil
		}
		return reconfig.Reply{ID: 2, Index: 1}, nil
	}
	at.want(at.do("DELETE", "/2", ""), http.StatusNoContent, "")
	if tries != 3 {
		t.Errorf("%d tries", tries)
	}
}
