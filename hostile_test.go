package main

import (
	"fmt"
	"net/http"
	"raftkv/internal/lease"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"strings"
	"testing"
	"time"
)

// Guarantee: no body of JSON that is made to be dear is: each is refused at once, whichever
// resource it is sent to, and changes nothing.
func TestAPIJSONBombs(t *testing.T) {
	at := newTxnTest(t)
	at.a.txns.MaxValue = 1 << 20
	whole := int(4 * at.a.txns.MaxValue)
	digits := strings.Repeat("9", 1<<20)
	bodies := map[string]string{
		"brackets as long as any body": strings.Repeat("[", whole), "one more": strings.Repeat("[", whole+1),
		"braces": strings.Repeat(`{"a":`, whole/5), "pairs": strings.Repeat("[]", whole/2), "quotes": strings.Repeat(`"`, whole),
		"an open string": `{"ttl":"` + strings.Repeat("a", whole-8), "backslashes": `{"ttl":"` + strings.Repeat(`\`, whole-8), "blanks": strings.Repeat(" ", whole+1),
		"a long number": digits, "minus signs": strings.Repeat("-", whole),
	}
	// Each name that a resource knows, with what is no value of it.
	names := map[string][]string{
		"POST /v1/txn": {`{"%s":1}`, `{"if":%s}`, `{"if":[%s]}`, `{"then":[%s]}`, `{"else":[{"get":%s}]}`, `{"then":[{"get":{"key":%s}}]}`, `{"if":[{"key":"k","mod_revision":%s}]}`,
			`{"if":[{"key":"k","lease":%s}]}`, `{"then":[{"list":{"prefix":"","limit":%s}}]}`, `{"then":[{"put":{"key":"k","value":"","lease":%s}}]}`, `{"then":[{"add":{"key":"k","delta":%s}}]}`},
		"POST /v1/leases":     {`{"ttl":%s}`, `{"%s":1}`},
		"POST /v1/members":    {`{"id":%s}`, `{"peer_url":%s}`, `{"role":%s}`},
		"PATCH /v1/members/1": {`{"peer_url":%s}`, `{"role":%s}`},
		"POST /v1/leader":     {`{"id":%s}`},
	}
	values := []string{digits, "-" + digits, "1e" + digits, "1e999999999", "0." + digits, "18446744073709551616", "-1", "1.5",
		strings.Repeat("[", 1000), strings.Repeat("[", 500) + strings.Repeat("]", 500), strings.Repeat(`{"key":`, 500) + "1" + strings.Repeat("}", 500)}
	for route, forms := range names {
		method, target, _ := strings.Cut(route, " ")
		send := func(what, body string) {
			began := time.Now()
			w := at.do(method, target, body)
			if w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge {
				t.Errorf("%s: %s: %d %.200s, want 400 or 413", route, what, w.Code, w.Body)
			}
			if w.Body.Len() > 1<<10 {
				t.Errorf("%s: %s: an answer of %d bytes", route, what, w.Body.Len())
			}
			if took := time.Since(began); took > 10*time.Second { // it is some ms
				t.Errorf("%s: %s took %v", route, what, took)
			}
		}
		for what, body := range bodies {
			send(what, body)
		}
		for _, form := range forms {
			for _, value := range values {
				send(fmt.Sprintf("%.60s as %.20s", form, value), fmt.Sprintf(form, value))
			}
		}
	}
	for _, number := range []string{digits, "-" + digits, "1e9", "[1]", strings.Repeat(" ", 1<<20), "0x10"} {
		if w := at.do("POST", "/v1/add?key=k", number); w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("add of %.20s: %d", number, w.Code)
		}
	}
	if at.proposed != 0 || at.kv.state.Keys() != 0 {
		t.Errorf("%d were proposed", at.proposed)
	}
}

// Guarantee: a transaction that lists everything over and over is refused, whether or not
// it writes, and at the bound it is answered.
func TestAPITxnListsOfEverything(t *testing.T) {
	at := newTxnTest(t)
	at.a.txns.MaxValue = 1 << 20
	for i := range txn.MaxItems + 1 {
		at.kv.state.Apply(state.Command{Kind: state.KindPut, Key: fmt.Sprintf("k/%05d", i), Value: []byte("v")})
	}
	lists := func(n, limit int) string {
		one := fmt.Sprintf(`,{"list":{"prefix":"","limit":%d}}`, limit)
		return strings.Repeat(one, n)[1:]
	}
	write := `,{"put":{"key":"new","value":"v"}}`
	for _, then := range []string{lists(txn.MaxOps, txn.MaxItems), lists(2, txn.MaxItems), lists(txn.MaxOps-1, txn.MaxItems) + write, lists(txn.MaxOps-1, txn.MaxItems/(txn.MaxOps-1)+1) + write} {
		at.problem("lists of everything", at.do("POST", "/v1/txn", `{"then":[`+then+`]}`), 413, "too_large")
	}
	at.a.txns.MaxValue = 1000 // the bytes are bounded, too
	at.problem("bytes", at.do("POST", "/v1/txn", `{"then":[`+lists(1, txn.MaxItems)+`]}`), 413, "too_large")
	at.a.txns.MaxValue = 1 << 20
	if at.kv.has("new") {
		t.Error("what was refused has written")
	}
	for _, then := range []string{lists(1, txn.MaxItems), lists(txn.MaxOps-1, txn.MaxItems/(txn.MaxOps-1)) + write} {
		if w := at.do("POST", "/v1/txn", `{"then":[`+then+`]}`); w.Code != http.StatusOK {
			t.Errorf("as many items as there may be: %d %.200s", w.Code, w.Body)
		}
	}
}

// Guarantee: a lease takes 10,000 keys and no more, by whichever request, and lets go of
// one for another.
func TestAPILeaseFull(t *testing.T) {
	at := newTxnTest(t)
	at.do("POST", "/v1/leases", `{"ttl":"10s"}`)
	at.do("POST", "/v1/leases", `{"ttl":"10s"}`)
	for i := range lease.MaxKeys {
		if w := at.do("PUT", fmt.Sprintf("/k%05d?lease=1", i), "v"); w.Code != http.StatusNoContent {
			t.Fatalf("key %d: %d %s", i, w.Code, w.Body)
		}
	}
	revision := at.kv.state.Revision
	at.problem("one more", at.do("PUT", "/more?lease=1", "v"), 409, "lease_full")
	at.problem("one more", at.do("PUT", "/v1/kv/more?lease=1", "v", "If-None-Match", "*"), 409, "lease_full")
	at.problem("one more", at.do("POST", "/v1/kv?prefix=p&lease=1", "v"), 409, "lease_full")
	at.problem("one more", at.do("POST", "/v1/txn", `{"then":[{"put":{"key":"other","value":"v"}},{"put":{"key":"more","value":"v","lease":1}}]}`), 409, "lease_full")
	if at.kv.has("more") || at.kv.has("other") || at.kv.state.Revision != revision {
		t.Error("what was refused has happened")
	}
	for what, w := range map[string]int{
		"one that it has":   at.do("PUT", "/k00000?lease=1", "w").Code,
		"of another":        at.do("PUT", "/more?lease=2", "v").Code,
		"one goes":          at.do("DELETE", "/v1/kv/k00001", "").Code,
		"and one may come":  at.do("PUT", "/more?lease=1", "v").Code,
		"it is kept alive":  at.do("PUT", "/v1/leases/2", "").Code - 200 + 204,
		"and revoked whole": at.do("DELETE", "/v1/leases/1", "").Code,
	} {
		if w != http.StatusNoContent {
			t.Errorf("%s: %d", what, w)
		}
	}
	if keys := at.kv.state.Keys(); keys != 0 {
		t.Errorf("%d keys are left of a lease of %d", keys, lease.MaxKeys)
	}
}
