package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// What a right that goes does to what is under way.

// Guarantee: a read that has waited until it is fresh enough is answered by the rights as they are
// then, whichever way it came.
func TestRightsGoWhileAReadWaits(t *testing.T) {
	const some = "entries:\n- {name: a, tokens: TOKEN(a), rights: [{right: read, prefixes: [%s]}]}\n"
	at := newAPITest(t)
	at.a.txns.Owners.Fresh = at.a.keys.Fresh
	file := newRightsFile(t, fmt.Sprintf(some, "p/"))
	at.a.guard = file.Guard
	at.a.keys.Fresh.Confirm = func(context.Context) error {
		file.change(fmt.Sprintf(some, "q/"))
		return nil
	}
	for _, tt := range []struct{ method, target, body string }{
		{"GET", "/p/k", ""}, {"HEAD", "/p/k", ""}, {"GET", "/v1/kv?key=p/k", ""}, {"GET", "/v1/kv?prefix=p/", ""}, {"GET", "/v1/kv?prefix=p/&count=true", ""},
		{"POST", "/v1/txn", `{"then":[{"get":{"key":"p/k"}}]}`},
	} {
		file.change(fmt.Sprintf(some, "p/"))
		r := at.request(tt.method, tt.target, strings.NewReader(tt.body), "Authorization", "Bearer a")
		if w := at.serveHere(r); w.Code != 403 {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, w.Code, w.Body)
		}
	}
	file.change(fmt.Sprintf(some, "p/"))
	q, done := api.KeyRequest{Method: "GET", Key: "p/k", Query: "min_revision=1000", Authorization: "Bearer a"}, make(outcome, 1)
	if !(plainRequests{at.a}).Begin(&q, nil, done) {
		t.Fatal(q.Answer.Err)
	}
	file.change(fmt.Sprintf(some, "q/"))
	plainRequests{at.a}.Finish(&q, state.Result{})
	if !errors.Is(q.Answer.Err, problem.ErrForbidden) {
		t.Errorf("on the fast path: %d %v", q.Answer.Status, q.Answer.Err)
	}
}

// Guarantee: a watch ends within a second after its right has gone, and says so; it comes back
// to 403. Others go on.
func TestRightsOfAWatchGo(t *testing.T) {
	const entry = "- {name: %s, tokens: TOKEN(%s), rights: [{right: read, prefixes: [%s]}]}\n"
	wt := newWatchTest(t)
	entries := func(a string) string {
		return "entries:\n" + fmt.Sprintf(entry, "a", "a", a) + fmt.Sprintf(entry, "b", "b", "''") + "- {name: w, tokens: TOKEN(w), rights: all}\n"
	}
	file := newRightsFile(t, entries("p/"))
	wt.a.guard = file.Guard
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for _, accept := range []string{"text/event-stream", lines} {
		file.change(entries("p/"))
		var now uint64
		testkit.Must(t, wt.kv.Look(func(s *state.State) { now = s.Revision }))
		w := wt.watch("prefix=p/", append(as("a"), "Accept", accept)...)
		stays := wt.watch("prefix=p/", append(as("b"), "Accept", accept)...)
		w.wants(fmt.Sprint(now))
		stays.wants(fmt.Sprint(now))
		file.change(entries("p/, q/"))
		wt.do("PUT", "/p/k", "v", as("w")...)
		for _, w := range []*watching{w, stays} {
			if e := w.next(); e.Event != "change" || e.ID != fmt.Sprint(now+1) {
				t.Fatalf("the stream says %s", e)
			}
		}
		began := time.Now()
		file.change(entries("q/"))
		w.wants("unavailable forbidden")
		w.ends()
		if took := time.Since(began); took > time.Second {
			t.Errorf("it has ended after %v", took)
		}
		wt.do("PUT", "/p/k", "v", as("w")...)
		if e := stays.next(); e.Event != "change" || e.ID != fmt.Sprint(now+2) {
			t.Fatalf("the stream of the other says %s", e)
		}
		stays.end()
		wantPolled(t, "it comes back", wt.poll("GET", "/v1/watch?prefix=p/", as("a")...), 403, "forbidden")
		wt.waits(0)
	}
}

// Guarantee: reads that wait end within a second after their right has gone, with 403.
func TestRightsOfAPollGo(t *testing.T) {
	const some = "entries:\n- {name: a, tokens: TOKEN(a), rights: [{right: read, prefixes: [%s]}]}\n"
	wt := newWatchTest(t)
	file := newRightsFile(t, fmt.Sprintf(some, "p/"))
	wt.a.guard = file.Guard
	key := wt.poll("GET", "/p/k?wait=20s", "Authorization", "Bearer a")
	list := wt.poll("GET", "/v1/kv?prefix=p/&after_revision=0&wait=20s", "Authorization", "Bearer a")
	wt.waits(2)
	began := time.Now()
	file.change(fmt.Sprintf(some, "q/"))
	wantPolled(t, "a key", key, 403, "forbidden")
	wantPolled(t, "a list", list, 403, "forbidden")
	if took := time.Since(began); took > time.Second {
		t.Errorf("they have ended after %v", took)
	}
	file.change("entries:\n- {name: b, tokens: TOKEN(b), rights: all}\n")
	wantPolled(t, "nobody any more", wt.poll("GET", "/p/k?wait=20s", "Authorization", "Bearer a"), 401, "unauthenticated")
}

// Guarantee: a list that is streamed ends when its right goes, also where its reader is slow, and
// its end says so.
func TestRightsOfAStreamGo(t *testing.T) {
	const some = "entries:\n- {name: a, tokens: TOKEN(a), rights: [{right: read, prefixes: [%s]}]}\n"
	wt := newWatchTest(t)
	wt.a.keys.MaxValue = 1 << 20
	file := newRightsFile(t, fmt.Sprintf(some, "''"))
	for i := range 64 {
		wt.do("PUT", fmt.Sprint("/k", i), strings.Repeat("v", 1<<20))
	}
	wt.a.guard = file.Guard
	r, err := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://%s/v1/kv", wt.Addr()), nil)
	testkit.Must(t, err)
	r.Header.Set("Accept", lines)
	r.Header.Set("Authorization", "Bearer a")
	resp, err := http.DefaultTransport.RoundTrip(r)
	testkit.Must(t, err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	_, err = io.ReadFull(resp.Body, make([]byte, 1<<10))
	testkit.Must(t, err)
	file.change(fmt.Sprintf(some, "q/"))
	rest, err := io.ReadAll(resp.Body)
	if err == nil || !strings.Contains(string(rest[max(0, len(rest)-1000):]), `"code":"forbidden"`) {
		t.Errorf("the stream ends with %v after %d bytes: %.300q", err, len(rest), rest[max(0, len(rest)-300):])
	}
}
