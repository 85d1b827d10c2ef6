package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// polled is what came of a read that waited.
type polled struct {
	status int
	header http.Header
	body   string
	took   time.Duration
}

// poll sends a read that may wait. headers are names and values.
func (wt *watchTest) poll(method, target string, headers ...string) <-chan polled {
	wt.Helper()
	ctx, end := context.WithTimeout(wt.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%s%s", wt.Addr(), target), nil)
	testkit.Must(wt, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	c := make(chan polled, 1)
	began := time.Now()
	go func() {
		defer end()
		p := polled{status: -1}
		if resp, err := http.DefaultTransport.RoundTrip(r); err == nil {
			body, _ := io.ReadAll(resp.Body)
			p = polled{resp.StatusCode, resp.Header, string(body), time.Since(began)}
			_ = resp.Body.Close()
		}
		c <- p
	}()
	return c
}

// waits returns once n reads wait.
func (wt *watchTest) waits(n int) {
	wt.Helper()
	testkit.Eventually(wt, fmt.Sprintf("%d reads wait", n), func() bool { return wt.srv.hub.Watching() == n })
}

// wantPolled checks an answer that has to come.
func wantPolled(t *testing.T, what string, c <-chan polled, status int, body string) polled {
	t.Helper()
	p := <-c
	if p.status != status || !strings.Contains(p.body, body) {
		t.Errorf("%s: %d %q, want %d %q", what, p.status, p.body, status, body)
	}
	return p
}

// Guarantee: a read with wait has its 304, 404 or 412 delayed until the key is such that the
// answer is another, and nothing else wakes it.
func TestPollKey(t *testing.T) {
	wt := newWatchTest(t)
	created := wt.poll("GET", "/k?wait=20s")
	short := wt.poll("GET", "/v1/kv/other?wait=50ms")
	if p := wantPolled(t, "in time", short, 404, "not_found"); p.took < 50*time.Millisecond {
		t.Errorf("it is told after %v", p.took)
	}
	wt.waits(1)
	for _, key := range []string{"/k1", "/K", "/other", "/v1/kv/k%2F"} {
		wt.do("PUT", key, "v")
	}
	wt.waits(1)
	wt.do("PUT", "/k", "one")
	if p := wantPolled(t, "created", created, 200, "one"); p.header.Get("ETag") != `"5"` || p.header.Get("Raftkv-Consistency") != "linearizable" {
		t.Errorf("%v", p.header)
	}
	wantPolled(t, "there already", wt.poll("GET", "/k?wait=20s"), 200, "one")

	next := wt.poll("GET", "/v1/kv/k?wait=20s&consistency=stale", "If-None-Match", `"5"`)
	item := wt.poll("GET", "/v1/kv/k?wait=20s&values=base64", "If-None-Match", `"5"`, "Accept", "application/json")
	gone := wt.poll("HEAD", "/v1/kv/k?wait=20s", "If-None-Match", `"5"`)
	match := wt.poll("GET", "/k?wait=20s&as=text", "If-Match", `"7"`)
	wt.waits(4)
	wt.do("PUT", "/k", "two")
	wantPolled(t, "the next one", next, 200, "two")
	wantPolled(t, "the next item", item, 200, `"value_base64":"dHdv"`)
	wantPolled(t, "its head", gone, 200, "")
	wt.waits(1)
	wt.do("PUT", "/k", "three")
	wantPolled(t, "the one meant", match, 200, "three")

	deleted := wt.poll("GET", "/k?wait=20s", "If-None-Match", `"7"`)
	still := wt.poll("GET", "/k?wait=100ms", "If-None-Match", `"7"`)
	wantPolled(t, "unchanged", still, 304, "")
	wt.waits(1)
	wt.do("DELETE", "/v1/kv/k", "")
	// The key is gone, which is an answer to wait for, too.
	wt.waits(1)
	wt.do("PUT", "/k", "four")
	wantPolled(t, "another key of the name", deleted, 200, "four")
	wantPolled(t, "another than meant", wt.poll("GET", "/k?wait=50ms", "If-Match", `"7"`), 412, "precondition_failed")
	wt.waits(0)
}

// Guarantee: a list with after_revision is there as soon as something under its prefix has
// changed, or when that cannot be told; nothing else wakes it.
func TestPollList(t *testing.T) {
	wt := newWatchTest(t)
	wt.do("PUT", "/p/1", "v")
	wt.do("PUT", "/q/1", "v")
	for target, want := range map[string]polled{
		"/v1/kv?prefix=p/&after_revision=0":                     {status: 200, body: `"key":"p/1"`},
		"/v1/kv?prefix=p/&after_revision=1":                     {status: 304},
		"/v1/kv?prefix=p/&after_revision=2":                     {status: 304},
		"/v1/kv?prefix=p/&after_revision=3":                     {status: 200, body: `"revision":2`}, // another history's
		"/v1/kv?prefix=p/&after_revision=3&consistency=stale":   {status: 304},                       // not here yet
		"/v1/kv?after_revision=1&count=true":                    {status: 200, body: `"count":2`},
		"/v1/kv?after_revision=2&count=true&wait=1ms":           {status: 304},
		"/v1/kv?after_revision=1&prefix=q/&limit=1&delimiter=/": {status: 200, body: `"key":"q/1"`},
	} {
		p := wantPolled(t, target, wt.poll("GET", target), want.status, want.body)
		head := wantPolled(t, "HEAD "+target, wt.poll("HEAD", target), want.status, "")
		if p.status == 304 && (p.header.Get("Raftkv-Revision") != "2" || p.header.Get("Cache-Control") == "no-store") || head.header.Get("Raftkv-Revision") != p.header.Get("Raftkv-Revision") {
			t.Errorf("%s: %v, %v", target, p.header, head.header)
		}
	}
	put, deleted := wt.poll("GET", "/v1/kv?prefix=p/&after_revision=2&wait=20s"), wt.poll("GET", "/v1/kv?prefix=q/1&after_revision=2&wait=20s")
	wt.waits(2)
	wt.do("PUT", "/o", "v")
	wt.do("PUT", "/p", "v")
	wt.waits(2)
	wt.do("PUT", "/p/2", "v")
	wantPolled(t, "a key under the prefix", put, 200, `"revision":5,"items":[{"key":"p/1"`)
	wt.do("DELETE", "/v1/kv/q/1", "")
	wantPolled(t, "a key that went", deleted, 200, `"revision":6,"items":[]`)

	wt.kv.mu.Lock()
	wt.kv.state.Changes.Keep(1<<20, 6)
	wt.kv.mu.Unlock()
	wantPolled(t, "what is not kept", wt.poll("GET", "/v1/kv?prefix=none&after_revision=5&wait=20s"), 200, `"items":[]`)
	if p := wantPolled(t, "in time", wt.poll("GET", "/v1/kv?prefix=none&after_revision=6&wait=50ms"), 304, ""); p.took < 50*time.Millisecond {
		t.Errorf("it is told after %v", p.took)
	}
}

// Guarantee: a read that waits ends with its node, with what keeps it from being told in
// time, and with its client.
func TestPollEnds(t *testing.T) {
	wt := newWatchTest(t)
	for _, target := range []string{"/k?wait=20s", "/v1/kv?prefix=k&after_revision=0&wait=20s"} {
		cut := wt.poll("GET", target)
		wt.waits(1)
		wt.told(problem.ErrNoLeader)
		wantPolled(t, "without a leader", cut, 503, "no_leader")
		wantPolled(t, "still", wt.poll("GET", target), 503, "no_leader")
		wantPolled(t, "who does not wait", wt.poll("GET", "/v1/kv?prefix=k&after_revision=0&consistency=stale"), 304, "")
		wt.told(nil)

		ht := hangUpTest{apiTest: wt.apiTest, stoppableListener: wt.stoppableListener}
		c := ht.dial()
		_, err := io.WriteString(c, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		testkit.Must(t, err)
		wt.waits(1)
		testkit.Must(t, c.CloseWrite()) // it has gone, or wants to know how it stands
		answer, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 404") && !strings.HasPrefix(string(answer), "HTTP/1.1 304") {
			t.Errorf("%q, %v", answer, err)
		}
		wt.waits(0)
	}
	stopped := wt.poll("GET", "/k?wait=20s")
	wt.waits(1)
	wt.a.stop()
	wantPolled(t, "stopping", stopped, 503, "stopping")
}

// Guarantee: wait is a time within its bounds, of a read.
func TestPollRefused(t *testing.T) {
	at := newAPITest(t)
	at.watches()
	at.do("PUT", "/k", "v")
	for _, wait := range []string{"", "0s", "999us", "5m1ms", "-1s", "5", "x", "1s&wait=1s"} {
		at.problem(wait, at.do("GET", "/k?wait="+wait, ""), 400, "bad_request")
	}
	at.problem("a write", at.do("PUT", "/k?wait=1s", "v"), 400, "bad_request")
	at.problem("a write", at.do("DELETE", "/v1/kv/k?wait=1s", ""), 400, "bad_request")
	for _, wait := range []string{"1ms", "5m"} {
		at.want(at.do("GET", "/k?wait="+wait, ""), 200, "v")
	}
}
