package main

import (
	"context"
	"errors"
	"net/url"
	"raftkv/internal/api"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: POST and DELETE in the short form change the members and only
// those; a key there is refused with the form that works.
func TestAPIMemberShortForm(t *testing.T) {
	at := newAPITest(t)
	var got []reconfig.Request
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) {
		got = append(got, r)
		return reconfig.Reply{}, nil
	}
	for _, path := range []string{"my-key", "a/b", "0", "01", "+1", "-1", "1.0", "1/", "1e3", "0x1", "%201", "18446744073709551615", "18446744073709551616", "%D9%A1"} {
		for _, method := range []string{"POST", "DELETE"} {
			detail := at.problem(method+" "+path, at.do(method, "/"+path, "http://d:4"), 400, "bad_request")
			if u, err := url.PathUnescape(path); err != nil || !strings.Contains(detail, "DELETE /v1/kv/"+url.PathEscape(u)) {
				t.Errorf("%s /%s: %q does not name the right form", method, path, detail)
			}
		}
	}
	for _, body := range []string{"", "d:4", "http://d", "http://d:4/", "http://d:4/x", "http://d:4 http://e:5", "\xff"} {
		at.problem("POST of "+body, at.do("POST", "/4", body), 400, "bad_request")
	}
	at.problem("POST of a lot", at.do("POST", "/4", strings.Repeat("x", api.MaxMemberBytes+1)), 413, "too_large")
	for _, tt := range []string{"POST /4?force=true", "POST /4?x=1", "DELETE /4?force", "DELETE /4?force=1", "DELETE /4?force=false",
		"DELETE /4?force=true&force=true", "DELETE /4?x=1", "DELETE /4?%zz"} {
		method, target, _ := strings.Cut(tt, " ")
		at.problem(tt, at.do(method, target, "http://d:4"), 400, "bad_request")
	}
	if len(got) != 0 || at.proposed != 0 {
		t.Fatalf("%+v reached the leader, %d proposals", got, at.proposed)
	}
	for _, tt := range []struct {
		method, target, body string
		want                 reconfig.Request
	}{
		{"POST", "/4", "http://d:4", reconfig.Request{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}},
		{"POST", "/4", " http://D:4\n", reconfig.Request{Op: membership.OpAdd, ID: 4, PeerURL: "http://d:4"}},
		{"DELETE", "/4", "", reconfig.Request{Op: membership.OpRemove, ID: 4}},
		{"DELETE", "/4?force=true", "", reconfig.Request{Op: membership.OpRemove, ID: 4, Force: true}},
	} {
		got = nil
		at.want(at.do(tt.method, tt.target, tt.body), 204, "")
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s %s: %+v, want %+v", tt.method, tt.target, got, tt.want)
		}
	}
	for _, err := range []error{problem.ErrMemberExists, problem.ErrMemberRemoved, problem.ErrLastVoter, problem.ErrMemberUnknown, problem.ErrWouldLose, problem.ErrInProgress} {
		at.leader = func(reconfig.Request) (reconfig.Reply, error) {
			return reconfig.Reply{Code: problem.CodeOf(err), Detail: "why"}, nil
		}
		if detail := at.problem(err.Error(), at.do("POST", "/4", "http://d:4"), problem.Of(err).Status, problem.CodeOf(err)); detail != "why" {
			t.Errorf("%v: the detail is %q", err, detail)
		}
	}
}

// Guarantee: nobody loses a node who meant a key. As long as there is a key of
// that name anywhere, DELETE /ID says which forms are clear; only who forces it
// is taken at their word.
func TestAPIMemberOrKey(t *testing.T) {
	at := newAPITest(t)
	var got []reconfig.Request
	at.leader = func(r reconfig.Request) (reconfig.Reply, error) {
		got = append(got, r)
		return reconfig.Reply{}, nil
	}
	at.do("PUT", "/2", "a key")
	at.do("PUT", "/77", "a key that is no node's")
	// This node has not heard of the key yet: only a linearizable read finds it.
	at.kv.state.Items.Delete("2")
	at.a.keys.Fresh.Confirm = func(context.Context) error {
		at.asked++
		at.kv.state.Items.Set("2", &state.Item{ModRevision: 1})
		return at.fails
	}
	for _, id := range []string{"2", "77"} {
		at.asked = 0
		detail := at.problem("DELETE", at.do("DELETE", "/"+id, ""), 409, "ambiguous")
		for _, form := range []string{"DELETE /v1/kv/" + id, "DELETE /v1/members/" + id} {
			if !strings.Contains(detail, form) {
				t.Errorf("%q does not name %s", detail, form)
			}
		}
		if at.asked != 1 {
			t.Errorf("%d linearizable reads, want one", at.asked)
		}
	}
	at.fails = problem.ErrUnavailable
	at.problem("DELETE, unconfirmed", at.do("DELETE", "/2", ""), 503, "unavailable")
	at.problem("DELETE, unconfirmed", at.do("DELETE", "/3", ""), 503, "unavailable")
	if len(got) != 0 {
		t.Fatalf("%+v reached the leader", got)
	}
	at.want(at.do("POST", "/2", "http://b:2"), 204, "")
	at.want(at.do("DELETE", "/2?force=true", ""), 204, "")
	at.fails = nil
	for _, target := range []string{"/3", "/3?force=true", "/v1/members/3"} {
		at.problem("DELETE under a condition", at.do("DELETE", target, "", "If-Match", `"1"`), 400, "bad_request")
	}
	at.want(at.do("DELETE", "/3", ""), 204, "")
	at.want(at.do("DELETE", "/v1/members/2", ""), 204, "")
	at.do("DELETE", "/v1/kv/77", "")
	at.want(at.do("DELETE", "/77", ""), 204, "")
	if len(got) != 5 {
		t.Errorf("%+v reached the leader", got)
	}
}

// Guarantee: a membership request waits for a leader, and says whether it may
// have happened: not if no leader was ever asked.
func TestAPIMemberTimeout(t *testing.T) {
	for _, asked := range []bool{false, true} {
		testkit.InBubble(t, func(t *testing.T) {
			at := newAPITest(t)
			if asked {
				at.leader = func(reconfig.Request) (reconfig.Reply, error) {
					return reconfig.Reply{}, errors.New("connection refused")
				}
			} else {
				at.leaders.Set(0, 2)
			}
			start := time.Now()
			w := at.do("DELETE", "/2", "")
			if asked {
				at.problem("asked", w, 504, "outcome_unknown")
			} else {
				at.problem("not asked", w, 503, "no_leader")
			}
			if time.Since(start) != 5*time.Second {
				t.Errorf("answered after %v", time.Since(start))
			}
		})
	}
}
