package main

import (
	"context"
	"fmt"
	"net/http/httptest"
	"raftkv/internal/api"
	"raftkv/internal/limits"
	"raftkv/internal/once"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"slices"
	"strings"
	"testing"
)

// Callers of a cluster with rights.
var site, job, boss, anonymous = ownersTable()

// ownersTable returns the callers of a table of rights by their certificates, and nobody.
func ownersTable() (site, job, boss, anonymous *rights.Caller) {
	const everything = "{right: [read, write], prefixes: [\"\"]}, {right: status}"
	table, _, err := rights.Parse([]byte("entries:\n" +
		"  - {name: web, cert: web, rights: [" + everything + "]}\n" +
		"  - {name: job, cert: job, rights: [" + everything + "]}\n" +
		"  - {name: boss, cert: boss, rights: all}\n" +
		"anonymous: [" + everything + "]\n"))
	if err != nil {
		panic(err) // the text above is wrong
	}
	var of [3]*rights.Caller
	for i, name := range []string{"web", "job", "boss"} {
		if of[i], err = table.Identify([]string{name}, ""); err != nil {
			panic(err)
		}
	}
	return of[0], of[1], of[2], table.Anonymous()
}

// by sends a request as a caller.
func (at *apiTest) by(c *rights.Caller, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := at.request(method, target, strings.NewReader(body), headers...)
	return at.serveHere(r.WithContext(rights.With(r.Context(), c)))
}

// plainBy has a request for a key answered as the front asks for it.
func (at *apiTest) plainBy(c *rights.Caller, q api.KeyRequest, body string) (status int, err error) {
	q.Caller, q.Length = c, int64(len(body))
	done := make(outcome, 1)
	if p := (plainRequests{at.a}); p.Begin(&q, []byte(body), done) {
		p.Finish(&q, <-done)
	}
	return q.Answer.Status, q.Answer.Err
}

// grant makes a lease of a caller's.
func (at *apiTest) grant(c *rights.Caller) (id uint64) {
	at.Helper()
	var l leaseAnswer
	at.into(at.by(c, "POST", "/v1/leases", `{"ttl":"10s"}`), 201, &l)
	return l.ID
}

// Guarantee: a lease is its owner's. To others it is none, whatever they try, and whoever
// may do everything can do all to it that its owner can.
func TestAPILeasesHaveOwners(t *testing.T) {
	at := newLeaseTest(t)
	id := at.grant(site)
	lease, query := fmt.Sprint("/v1/leases/", id), fmt.Sprint("?lease=", id)
	txn := func(key string) string {
		return fmt.Sprintf(`{"then":[{"put":{"key":%q,"value":"v","lease":%d}}]}`, key, id)
	}
	for name, c := range map[string]*rights.Caller{"another": job, "anonymous": anonymous} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			at.problem(name, at.by(c, method, lease, ""), 404, "no_such_lease")
		}
		at.problem(name, at.by(c, "PUT", "/v1/kv/k"+query, "v"), 409, "no_such_lease")
		at.problem(name, at.by(c, "POST", "/v1/kv?prefix=p/&lease="+fmt.Sprint(id), "v"), 409, "no_such_lease")
		at.problem(name, at.by(c, "POST", "/v1/txn", txn("k")), 409, "no_such_lease")
		at.problem(name, at.by(c, "POST", "/v1/txn", fmt.Sprintf(`{"then":[{"append":{"prefix":"p/","value":"v","lease":%d}}]}`, id)), 409, "no_such_lease")
		if _, err := at.plainBy(c, api.KeyRequest{Method: "PUT", Key: "k", Query: query[1:]}, "v"); err == nil || !strings.Contains(err.Error(), "no such lease") {
			t.Errorf("%s, by the front: %v", name, err)
		}
	}
	if at.kv.state.Keys() != 0 {
		t.Error("a key was written")
	}
	for name, c := range map[string]*rights.Caller{"owner": site, "boss": boss} {
		if w := at.by(c, "PUT", "/v1/kv/"+name+query, "v"); w.Code != 201 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if w := at.by(c, "POST", "/v1/kv?prefix="+name+"/&lease="+fmt.Sprint(id), "v"); w.Code != 201 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if w := at.by(c, "POST", "/v1/txn", txn(name+"-txn")); w.Code != 200 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if status, err := at.plainBy(c, api.KeyRequest{Method: "PUT", Key: name + "-plain", Query: query[1:]}, "v"); err != nil || status != 204 {
			t.Errorf("%s, by the front: %d, %v", name, status, err)
		}
		var l struct {
			leaseAnswer
			Owner string
		}
		if at.into(at.by(c, "PUT", lease, ""), 200, &l); l.ID != id {
			t.Errorf("%s: %+v", name, l)
		}
		if at.into(at.by(c, "GET", lease, ""), 200, &l); (l.Owner == "web") != (c == boss) || len(l.Keys) < 4 {
			t.Errorf("%s sees %+v", name, l)
		}
	}
	if w := at.by(boss, "DELETE", lease, ""); w.Code != 204 || at.kv.state.Keys() != 0 {
		t.Errorf("revoked by the boss: %d, %d keys", w.Code, at.kv.state.Keys())
	}
	at.problem("what is gone", at.by(boss, "PUT", lease, ""), 404, "no_such_lease")
	at.problem("what is gone", at.by(boss, "PUT", "/v1/kv/k"+query, "v"), 409, "no_such_lease")
}

// Guarantee: a lease that was made without rights is only for who may do everything. The keys that
// go with it may be any, so that it is not for who is not known, whose own leases are.
func TestAPILeasesFromBeforeRights(t *testing.T) {
	at := newLeaseTest(t)
	before, own := at.grant(nil), at.grant(anonymous)
	if w := at.by(nil, "PUT", fmt.Sprint("/v1/kv/secret/a?lease=", before), "v"); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	lease := fmt.Sprint("/v1/leases/", before)
	for _, c := range []*rights.Caller{anonymous, site} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			at.problem(method, at.by(c, method, lease, ""), 404, "no_such_lease")
		}
		at.problem("put", at.by(c, "PUT", fmt.Sprint("/v1/kv/k?lease=", before), "v"), 409, "no_such_lease")
		if w := at.by(c, "GET", "/v1/leases", ""); strings.Contains(w.Body.String(), fmt.Sprintf(`"id":%d,`, before)) {
			t.Errorf("%q sees it: %s", c.Name(), w.Body)
		}
	}
	for _, c := range []*rights.Caller{nil, boss} {
		if w := at.by(c, "PUT", lease, ""); w.Code != 200 {
			t.Errorf("%q: %d %s", c.Name(), w.Code, w.Body)
		}
	}
	for _, c := range []*rights.Caller{anonymous, nil, boss} {
		if w := at.by(c, "PUT", fmt.Sprint("/v1/leases/", own), ""); w.Code != 200 {
			t.Errorf("%q: %d %s", c.Name(), w.Code, w.Body)
		}
	}
	if w := at.by(boss, "DELETE", lease, ""); w.Code != 204 || at.kv.state.Keys() != 0 {
		t.Errorf("revoked by the boss: %d, %d keys", w.Code, at.kv.state.Keys())
	}
}

// Guarantee: lists show one's own leases, in whole pages, and all to who may see all.
func TestAPILeaseListsHaveOwners(t *testing.T) {
	at := newLeaseTest(t)
	of := map[string][]uint64{}
	for range 5 {
		for _, c := range []*rights.Caller{site, job, anonymous, boss} {
			id := at.grant(c)
			of[c.Name()], of["all"] = append(of[c.Name()], id), append(of["all"], id)
		}
	}
	of["boss"] = of["all"]
	for _, c := range []*rights.Caller{site, job, anonymous, boss, nil} {
		want := of[c.Name()]
		if c == nil {
			want = of["all"]
		}
		var ids []uint64
		for after := ""; ; {
			var page struct {
				Leases []struct {
					ID    uint64
					Owner string
				}
				Next uint64
			}
			at.into(at.by(c, "GET", "/v1/leases?limit=2"+after, ""), 200, &page)
			for _, l := range page.Leases {
				ids = append(ids, l.ID)
				if shown := c.Admin() && slices.Contains(of["web"], l.ID); shown != (l.Owner == "web") {
					t.Errorf("%q sees the owner of lease %d as %q", c.Name(), l.ID, l.Owner)
				}
			}
			if page.Next == 0 {
				break
			}
			after = fmt.Sprint("&start_after=", page.Next)
		}
		if !slices.Equal(ids, want) {
			t.Errorf("%q sees %d, want %d", c.Name(), ids, want)
		}
	}
}

// Guarantee: who may do everything finds a lease that was made at another node a moment ago.
func TestAPILeaseOfAnotherNode(t *testing.T) {
	at := newLeaseTest(t)
	asked := 0
	at.a.keys.Fresh.Confirm = func(context.Context) error { // the node catches up
		if asked++; asked == 1 {
			at.kv.mu.Lock()
			defer at.kv.mu.Unlock()
			c, err := state.DecodeCommand(state.EncodeGrant(10_000, "web"))
			if err != nil {
				return err
			}
			return at.kv.state.Apply(c).Err
		}
		return nil
	}
	if w := at.by(boss, "PUT", "/v1/leases/1", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := at.by(boss, "PUT", "/v1/leases/1", ""); w.Code != 200 || asked != 1 {
		t.Errorf("%d, asked %d times", w.Code, asked)
	}
	if at.problem("not its owner", at.by(job, "PUT", "/v1/leases/1", ""), 404, "no_such_lease"); asked != 1 {
		t.Error("for who has no right to it, the cluster was asked")
	}
}

// Guarantee: an Idempotency-Key is its owner's. Another's request under the same key is
// another request, on every way to a command.
func TestAPIIdempotencyKeysHaveOwners(t *testing.T) {
	at := newLeaseTest(t)
	var seen []string
	for _, c := range []*rights.Caller{site, job, anonymous} {
		id := at.grant(c)
		for _, again := range []bool{false, true} {
			for i, send := range []func() *httptest.ResponseRecorder{
				func() *httptest.ResponseRecorder {
					return at.by(c, "POST", "/v1/add?key=n", "1", "Idempotency-Key", "a")
				},
				func() *httptest.ResponseRecorder {
					return at.by(c, "PUT", "/v1/kv/k", c.Name(), "Idempotency-Key", "b")
				},
				func() *httptest.ResponseRecorder {
					return at.by(c, "POST", "/v1/leases", `{"ttl":"10s"}`, "Idempotency-Key", "c")
				},
				func() *httptest.ResponseRecorder {
					return at.by(c, "PUT", fmt.Sprint("/v1/kv/l?lease=", id), c.Name(), "Idempotency-Key", "d")
				},
				func() *httptest.ResponseRecorder {
					return at.by(c, "POST", fmt.Sprint("/v1/kv?prefix=p/&lease=", id), c.Name(), "Idempotency-Key", "e")
				},
			} {
				w := send()
				if w.Code/100 != 2 || (w.Header().Get("Idempotent-Replayed") == "true") != again {
					t.Errorf("%q, request %d, again %v: %d %s %v", c.Name(), i, again, w.Code, w.Body, w.Header())
				}
				if i == 0 && !again {
					seen = append(seen, w.Body.String())
				}
			}
		}
	}
	if len(seen) != 3 || seen[0] == seen[1] || seen[1] == seen[2] || !strings.Contains(seen[2], "3") {
		t.Errorf("the numbers are %q", seen)
	}
}

// Guarantee: a repeat gets the answer of the first, though the lease that it named has ended
// meanwhile and with it its owner: also to who may do everything.
func TestAPIIdempotencyKeyOutlivesLease(t *testing.T) {
	for _, c := range []*rights.Caller{site, boss, nil} {
		at := newLeaseTest(t)
		id := at.grant(site)
		send := []func() *httptest.ResponseRecorder{
			func() *httptest.ResponseRecorder {
				return at.by(c, "PUT", fmt.Sprint("/v1/kv/l?lease=", id), "v", "Idempotency-Key", "a")
			},
			func() *httptest.ResponseRecorder {
				return at.by(c, "POST", fmt.Sprint("/v1/kv?prefix=p/&lease=", id), "v", "Idempotency-Key", "b")
			},
			func() *httptest.ResponseRecorder {
				return at.by(c, "POST", "/v1/txn", fmt.Sprintf(`{"then":[{"put":{"key":"t","value":"v","lease":%d}}]}`, id), "Idempotency-Key", "c")
			},
		}
		for i, s := range send {
			if w := s(); w.Code/100 != 2 {
				t.Errorf("%q, request %d: %d %s", c.Name(), i, w.Code, w.Body)
			}
		}
		if w := at.by(site, "DELETE", fmt.Sprint("/v1/leases/", id), ""); w.Code != 204 {
			t.Fatal(w.Code)
		}
		for i, s := range send {
			if w := s(); w.Code/100 != 2 || w.Header().Get("Idempotent-Replayed") != "true" {
				t.Errorf("%q, request %d again: %d %s", c.Name(), i, w.Code, w.Body)
			}
		}
	}
}

// Guarantee: no owner takes more than half of the room for outcomes; who has no rights to
// share it with has all of it.
func TestAPIIdempotencyTableOfOneOwner(t *testing.T) {
	for name, c := range map[string]*rights.Caller{"named": site, "anonymous": anonymous, "without rights": nil} {
		at := newLeaseTest(t)
		const room = 4096
		outcomes := limits.NewOutcomes(8*room, at.kv.View)
		at.a.keys.Outcomes, at.a.txns.Commands.Outcomes = outcomes, outcomes
		var last *httptest.ResponseRecorder
		for n := range 100 {
			if last = at.by(c, "PUT", "/k", "v", "Idempotency-Key", fmt.Sprintf("key-%03d", n)); last.Code != 204 {
				break
			}
		}
		at.problem(name, last, 429, "overloaded")
		used := at.kv.state.Once.BytesOf(c.Name())
		most := uint64(room)
		if c != nil {
			most /= 2
		}
		if used > most || used < most-2*once.Cost {
			t.Errorf("%s: %d bytes of %d", name, used, most)
		}
		if w := at.by(job, "POST", "/v1/add?key=n", "1", "Idempotency-Key", "other"); (w.Code == 200) != (c != nil) {
			t.Errorf("%s: another's request is %d", name, w.Code)
		}
	}
}
