package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// awaitWaiting waits until so many requests wait for a revision.
func (at *apiTest) awaitWaiting(n int) {
	at.Helper()
	testkit.Eventually(at, fmt.Sprintf("%d requests that wait", n), func() bool { return at.kv.revision.Waiting() == n })
}

// Guarantee: a read by revision is answered from this node, once it has applied that
// revision and not before, and the cluster is not asked.
func TestAPIMinRevision(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/k", "one")
	read := func(query, body, consistency string) {
		t.Helper()
		w := at.do("GET", "/v1/kv/k?"+query, "")
		at.want(w, 200, body)
		if got := w.Header().Get("Raftkv-Consistency"); got != consistency {
			t.Errorf("?%s: Raftkv-Consistency is %q, want %q", query, got, consistency)
		}
	}
	read("min_revision=0", "one", "min_revision")
	read("min_revision=1", "one", "min_revision")
	read("min_revision=1&consistency=stale", "one", "min_revision")
	answers := make(chan *httptest.ResponseRecorder, 2)
	for _, query := range []string{"min_revision=2", "min_revision=3"} {
		go func() { answers <- at.serveHere(at.request("GET", "/k?"+query, nil)) }()
	}
	at.awaitWaiting(2)
	at.do("PUT", "/k", "two")
	w := <-answers
	at.want(w, 200, "two")
	if got := w.Header().Get("Raftkv-Revision"); got != "2" {
		t.Errorf("Raftkv-Revision is %q", got)
	}
	at.awaitWaiting(1)
	at.do("DELETE", "/v1/kv/k", "")
	at.problem("deleted meanwhile", <-answers, 404, "not_found")
	at.want(at.do("PUT", "/3?", ""), 204, "") // a key
	if w := at.do("GET", "/v1/members?min_revision=4", ""); w.Code != 200 || w.Header().Get("Raftkv-Consistency") != "min_revision" {
		t.Errorf("members: %d %v", w.Code, w.Header())
	}
	if at.asked != 0 {
		t.Errorf("the cluster was asked %d times", at.asked)
	}
}

// Guarantee: nobody waits for a revision longer than --request-timeout, than the node
// takes requests, or than its client does; and none of them leaves anything behind.
func TestAPIMinRevisionEnds(t *testing.T) {
	for _, target := range []string{"/k?min_revision=9", "/v1/members?min_revision=9"} {
		at := newAPITest(t)
		at.a.keys.Fresh.Timeout = 20 * time.Millisecond
		w := at.do("GET", target, "")
		at.problem("too late", w, 503, "too_stale")
		if w.Header().Get("Retry-After") == "" {
			t.Error("without Retry-After")
		}
		at.awaitWaiting(0)

		at.a.keys.Fresh.Timeout = time.Hour
		ctx, hangUp := context.WithCancel(t.Context())
		left := make(chan struct{})
		go func() {
			defer close(left)
			at.serveHere(at.request("GET", target, nil).WithContext(ctx))
		}()
		at.awaitWaiting(1)
		hangUp()
		<-left
		at.awaitWaiting(0)

		stopped := make(chan *httptest.ResponseRecorder)
		go func() { stopped <- at.serveHere(at.request("GET", target, nil)) }()
		at.awaitWaiting(1)
		at.a.stop()
		at.problem("stopping", <-stopped, 503, "stopping")
	}
}

// Guarantee: max_age refuses what may be older, and says so.
func TestAPIMaxAge(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/k", "v")
	for _, query := range []string{"consistency=stale", "min_revision=1"} {
		heard := func(when *time.Time) { at.node.contacts.Leader = when }
		heard(nil)
		at.problem("never heard", at.do("GET", "/k?max_age=1h&"+query, ""), 503, "too_stale")
		at.want(at.do("GET", "/k?"+query, ""), 200, "v")
		long := time.Now().Add(-time.Minute)
		heard(&long)
		w := at.do("GET", "/k?max_age=59s&"+query, "")
		at.problem("too old", w, 503, "too_stale")
		if w.Header().Get("Raftkv-Leader-Contact") == "" {
			t.Errorf("it does not say how old: %v", w.Header())
		}
		at.want(at.do("GET", "/k?max_age=1h&"+query, ""), 200, "v")
		heard(new(time.Time)) // the only voter
		at.want(at.do("GET", "/k?max_age=1ms&"+query, ""), 200, "v")
	}
}

// Guarantee: what contradicts itself or cannot be meant is refused, and told.
func TestAPIFreshnessStrict(t *testing.T) {
	at := newAPITest(t)
	for query, hint := range map[string]string{
		"consistency=linearizable&min_revision=1": "min_revision is for", "consistency=linearizable&max_age=1s": "max_age is for",
		"max_age=1s": "max_age is for", "min_revision=-1": "not a revision", "min_revision=18446744073709551616": "not a revision",
		"min_revision=": "not a revision", "min_revision=1.5": "not a revision",
		"consistency=stale&max_age=30": "as in 30s", "consistency=stale&max_age=": "500ms or 30s", "consistency=stale&max_age=0s": "must be",
		"consistency=stale&max_age=999us": "must be", "consistency=stale&max_age=8760h1ns": "must be", "consistency=stale&max_age=-1s": "must be",
		"min_revision=1&min_revision=1": "twice", "as=html": "not text",
	} {
		if detail := at.problem(query, at.do("GET", "/k?"+query, ""), 400, "bad_request"); !strings.Contains(detail, hint) {
			t.Errorf("?%s: %s; want %q", query, detail, hint)
		}
	}
	at.node.contacts.Leader = new(time.Time)
	at.do("PUT", "/k", "v")
	for _, query := range []string{"consistency=stale&max_age=1ms", "consistency=stale&max_age=8760h", "min_revision=1&max_age=1ms&as=text"} {
		at.want(at.do("GET", "/k?"+query, ""), 200, "v")
	}
}

// Guarantee: a value can be shown by a browser, which then may do nothing for it.
func TestAPIAsText(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/k", "<script>alert(1)</script>")
	for target, want := range map[string][2]string{
		"/k":                                 {"application/octet-stream", ""},
		"/k?as=text":                         {"text/plain; charset=utf-8", "sandbox"},
		"/v1/kv/k?as=text&consistency=stale": {"text/plain; charset=utf-8", "sandbox"},
		"/v1/kv/k?min_revision=1&as=text":    {"text/plain; charset=utf-8", "sandbox"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			h := at.do(method, target, "").Header()
			if h.Get("Content-Type") != want[0] || h.Get("Content-Security-Policy") != want[1] || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %v", method, target, h)
			}
		}
	}
	at.problem("a write as text", at.do("PUT", "/k?as=text", "v"), 400, "bad_request")
}

// Guarantee: in a cluster, a read by the revision of a write sees it on every node, also
// on one that is cut off while it asks, as soon as that has it.
func TestSimMinRevision(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		leader := c.Leader()
		read := func(id uint64) (int, string) {
			return c.http(id, http.MethodGet, fmt.Sprintf("k?min_revision=%d", c.Nodes[leader].Life.kv.Status().Revision))
		}
		for range 5 {
			v := c.Value()
			c.Put(leader, "k", v)
			for _, id := range c.Up() {
				if status, body := read(id); status != 200 || body != v {
					t.Errorf("node %d: %d %s, want %s", id, status, body, v)
				}
			}
		}
		behind := c.Followers()[0]
		c.Net.Isolate(behind, leader, c.Followers()[1])
		v := c.Value()
		c.Put(leader, "k", v)
		if status, body := read(behind); status != 503 || !strings.Contains(body, `"too_stale"`) {
			t.Errorf("cut off: %d %s", status, body)
		}
		healed := make(chan struct{})
		go func() {
			defer close(healed)
			time.Sleep(time.Second)
			c.Net.Heal()
		}()
		if status, body := read(behind); status != 200 || body != v {
			t.Errorf("connected again: %d %s, want %s", status, body, v)
		}
		<-healed
	})
}
