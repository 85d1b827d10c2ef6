package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"raftkv/internal/access"
	"raftkv/internal/api"
	"raftkv/internal/audit"
	"raftkv/internal/config"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// auditPaper is where the audit log of a test goes.
type auditPaper struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *auditPaper) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// take returns what was written since it was last called.
func (p *auditPaper) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.text.String()
	p.text.Reset()
	return text
}

const auditToken = "not-to-be-seen-token"

// audited gives a node an audit log, and rights of which auditToken has some.
func (at *apiTest) audited(reads bool) *auditPaper {
	at.Helper()
	p := &auditPaper{}
	l, err := audit.Open(config.Config{ID: 1, Doors: config.Doors{AuditLog: "-", AuditReads: reads}}, p, zap.NewNop())
	testkit.Must(at, err)
	at.Cleanup(func() { testkit.Must(at, l.Close()) })
	p.take() // that it starts
	file := filepath.Join(at.TempDir(), "rights.yaml")
	testkit.Must(at, os.WriteFile(file, fmt.Appendf(nil, `entries:
  - name: deployer
    tokens: ["sha256:%x"]
    rights:
      - {right: [read, write], prefixes: ["app/"]}
      - {right: status}
anonymous:
  - {right: [read, write], prefixes: ["open/"]}
`, sha256.Sum256([]byte(auditToken))), 0o600))
	guard, err := access.Open(zap.NewNop(), file)
	testkit.Must(at, err)
	at.a.audit, at.a.guard = l, guard
	return p
}

// Guarantee: each request that is to be written has one line, whichever way it came, with who
// asked, what for, and what came of it, as the answer says; and no token or value is in it.
func TestAuditOfRequests(t *testing.T) {
	const value = "not-to-be-seen-value"
	bearer, wrong := []string{"Authorization", "Bearer " + auditToken}, []string{"Authorization", "Bearer another-" + auditToken}
	type line struct {
		Event, Name, From, Method, Route, Code, Outcome string
		Keys, Prefixes                                  []string
		Lease, Member, Revision                         uint64
		Status                                          int
		MS                                              *float64
	}
	for _, tt := range []struct {
		method, target, body string
		headers              []string
		want                 string // name, route, keys, prefixes, code, outcome
		read                 bool
	}{
		{"PUT", "/app/a", value, bearer, `deployer kv [app/a] [] done`, false},
		{"PUT", "/v1/kv/app/a", value, append([]string{"If-None-Match", "*"}, bearer...), `deployer kv [app/a] [] precondition_failed not_applied`, false},
		{"PUT", "/open/a", value, nil, ` kv [open/a] [] done`, false},
		{"DELETE", "/v1/kv/open/none", "", nil, ` kv [open/none] [] not_found not_applied`, false},
		{"PUT", "/b", value, bearer, `deployer kv [b] [] forbidden not_applied`, false},
		{"PUT", "/b", value, nil, ` kv [b] [] unauthenticated not_applied`, false},
		{"PUT", "/app/a", value, wrong, ` kv [app/a] [] unauthenticated not_applied`, false},
		{"GET", "/app/a", "", bearer, `deployer kv [app/a] [] done`, true},
		{"GET", "/b", "", bearer, `deployer kv [b] [] forbidden not_applied`, false},
		{"GET", "/app/a", "", wrong, ` kv [app/a] [] unauthenticated not_applied`, false},
		{"GET", "/v1/kv?prefix=app/", "", bearer, `deployer list [] [app/] done`, true},
		{"GET", "/v1/kv?prefix=", "", bearer, `deployer list [] [] forbidden not_applied`, false},
		{"PUT", "/v1/kv?key=app/q", value, bearer, `deployer list [app/q] [] done`, false},
		{"POST", "/v1/add?key=app/n", "1", bearer, `deployer add [app/n] [] done`, false},
		{"DELETE", "/v1/kv?prefix=app/none/", "", bearer, `deployer list [] [app/none/] done`, false},
		{"POST", "/v1/txn", `{"if":[{"key":"app/a","exists":true}],"then":[{"put":{"key":"app/b","value":"` + value + `"}}],"else":[{"list":{"prefix":"app/"}}]}`,
			append([]string{"Content-Type", "application/json"}, bearer...), `deployer txn [app/a app/b] [app/] done`, false},
		{"POST", "/v1/txn", `{"then":[{"put":{"key":"b","value":"` + value + `"}}]}`,
			append([]string{"Content-Type", "application/json"}, bearer...), `deployer txn [b] [] forbidden not_applied`, false},
		{"POST", "/v1/txn", `{"then":[{"get":{"key":"app/a"}}]}`,
			append([]string{"Content-Type", "application/json"}, bearer...), `deployer txn [app/a] [] done`, true},
		{"DELETE", "/v1/members/2", "", bearer, `deployer member [] [] forbidden not_applied`, false},
		{"GET", "/v1/status", "", bearer, `deployer status [] [] done`, true},
		{"GET", "/v1/snapshot", "", bearer, `deployer snapshot [] [] forbidden not_applied`, false},
		{"GET", "/metrics", "", bearer, ``, true},
		{"GET", "/livez", "", nil, ``, true},
	} {
		for _, reads := range []bool{false, true} {
			var revisions []uint64
			for _, way := range []string{"handler", "front"} {
				what := fmt.Sprintf("%s %s by %s, reads %t", tt.method, tt.target, way, reads)
				at := newAPITest(t)
				at.do("PUT", "/app/a", "before")
				p := at.audited(reads)
				at.invented = true // the answers themselves are other tests' business
				r := at.request(tt.method, tt.target, strings.NewReader(tt.body), tt.headers...)
				w := httptest.NewRecorder()
				if way == "front" {
					at.exchange(w, r)
				} else {
					w = at.serveHere(r)
				}
				// What is in the queue is written before the log ends; the front counts behind
				// its answer.
				if at.listener != nil {
					testkit.Must(at, at.listener.close())
				}
				testkit.Must(at, at.a.audit.Close())
				text := p.take()
				if strings.Contains(text, "not-to-be-seen") {
					t.Errorf("%s: %s", what, text)
				}
				lines := strings.SplitAfter(text, "\n")
				lines = lines[:len(lines)-2] // without the end
				if want := tt.want != "" && (reads || !tt.read); !want && len(lines) == 0 {
					continue
				} else if !want || len(lines) != 1 {
					t.Errorf("%s: %d lines: %s", what, len(lines), text)
					continue
				}
				var got line
				testkit.Must(t, json.Unmarshal([]byte(lines[0]), &got))
				said := strings.Join(strings.Fields(fmt.Sprintln(got.Route, got.Keys, got.Prefixes, got.Code, got.Outcome)), " ")
				if said = got.Name + " " + said; said != tt.want || got.Event != "request" || got.Method != tt.method || got.Status != w.Code || got.MS == nil || got.From == "" {
					t.Errorf("%s: %s%s\nwant %s", what, lines[0], said, tt.want)
				}
				if header := w.Header().Get("Raftkv-Revision"); header != "" && header != fmt.Sprint(got.Revision) {
					t.Errorf("%s: revision %d, the answer says %s", what, got.Revision, header)
				}
				revisions = append(revisions, got.Revision)
			}
			if len(revisions) == 2 && revisions[0] != revisions[1] {
				t.Errorf("%s %s: revisions %v", tt.method, tt.target, revisions)
			}
		}
	}
}

// Guarantee: a watch is written when it begins, while it goes on.
func TestAuditOfWatch(t *testing.T) {
	at := newAPITest(t)
	at.watches()
	p := at.audited(true)
	srv := httptest.NewUnstartedServer(at.a)
	srv.Config.ConnContext = web.ConnContext
	srv.Start()
	defer srv.Close()
	r, err := http.NewRequest("GET", srv.URL+"/v1/watch?prefix=app/", nil)
	testkit.Must(t, err)
	r.Header.Set("Authorization", "Bearer "+auditToken)
	resp, err := http.DefaultClient.Do(r)
	testkit.Must(t, err)
	text := ""
	testkit.Eventually(t, "the watch is written", func() bool {
		text += p.take()
		return strings.Contains(text, "\n")
	})
	if !strings.Contains(text, `"name":"deployer"`) || !strings.Contains(text, `"prefixes":["app/"]`) || !strings.Contains(text, `"outcome":"begun"`) {
		t.Error(text)
	}
	testkit.Must(t, resp.Body.Close())
	srv.Close()
	if text := p.take(); text != "" {
		t.Errorf("and again: %s", text)
	}
}

// Guarantee: an answer that breaks off has its line all the same: who takes all of a backup but
// its end has taken it. It breaks off here because there is no connection behind it.
func TestAuditOfWhatBreaksOff(t *testing.T) {
	at := newAPITest(t)
	p := at.audited(true)
	at.a.guard = nil
	for _, tt := range []struct{ target, accept, want string }{
		{"/v1/snapshot", "", `"route":"snapshot"`},
		{"/v1/kv?prefix=app/", "application/x-ndjson", `"route":"list","prefixes":["app/"]`},
	} {
		r := httptest.NewRequest("GET", "http://localhost"+tt.target, nil)
		r.Header.Set("Accept", tt.accept)
		func() {
			defer func() {
				if got := recover(); got != http.ErrAbortHandler {
					t.Errorf("GET %s ends with %v", tt.target, got)
				}
			}()
			at.a.ServeHTTP(httptest.NewRecorder(), r)
		}()
		text := ""
		testkit.Eventually(t, "it is written", func() bool {
			text += p.take()
			return strings.Contains(text, "\n")
		})
		if !strings.Contains(text, tt.want) || !strings.Contains(text, `"status":200,"outcome":"begun"`) {
			t.Error(text)
		}
	}
}

// Guarantee: without an audit log a request on the fast path costs no memory for it.
func TestAuditOffCostsNothing(t *testing.T) {
	at := newAPITest(t)
	a := plainRequests{at.a}
	q := &api.KeyRequest{Method: http.MethodPut, Key: "k"}
	q.Answer.Status = http.StatusNoContent
	base := testing.AllocsPerRun(200, func() { a.metrics.Count(a.log, q.Method, "kv", q.Answer.Status, time.Millisecond) })
	if got := testing.AllocsPerRun(200, func() { a.Answered(q, time.Now()) }); got != base {
		t.Errorf("%v allocations, counting alone takes %v", got, base)
	}
}
