package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a server that keeps what it was asked, and answers all with one body.
type recorder struct {
	mu     sync.Mutex
	asked  []*http.Request
	bodies []string
	answer string
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.asked, rec.bodies = append(rec.asked, r), append(rec.bodies, string(body))
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case r.Method == http.MethodPut && !strings.Contains(r.URL.Path, "lease"):
		w.Header().Set("ETag", `"7"`)
		w.WriteHeader(http.StatusNoContent)
	default:
		_, _ = io.WriteString(w, rec.answer)
	}
}

func record(t *testing.T, dial dialer, answer string) (*recorder, *httpClient) {
	rec := &recorder{answer: answer}
	s := httptest.NewServer(rec)
	t.Cleanup(s.Close)
	clients, err := dial(strings.TrimPrefix(s.URL, "http://"), 2, valueMaker{size: usualSize, nonce: 5}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(clients) })
	return rec, clients[1].(*httpClient)
}

// Ensure that a transaction compares the revision that the client's own key has had from
// the transaction before, and writes that key and the one that was asked for, each with
// its value; and that one that does not succeed is an error.
func TestTransactionRequest(t *testing.T) {
	v := valueMaker{size: usualSize, nonce: 5}
	for name, tt := range map[string]struct {
		dial          dialer
		answer        string
		first, second string // revisions
	}{
		"raftkv":  {dialRaftkv, `{"succeeded":true,"revision":18446744073709551615,"results":[]}`, "7", "18446744073709551615"},
		"gateway": {dialGateway, `{"header":{"cluster_id":"3","revision":"41"},"succeeded":true}`, "41", "41"},
	} {
		rec, c := record(t, tt.dial, tt.answer)
		for _, key := range []uint64{123, 9876} {
			if err := c.do(txn, key); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		rec.answer = `{"header":{"revision":"42"},"succeeded":false,"revision":42}`
		if err := c.do(txn, 1); err == nil {
			t.Errorf("%s: a transaction that failed passed", name)
		}
		for i, want := range []string{tt.first, tt.second} {
			key := []uint64{123, 9876}[i]
			type gatewayPut struct{ Key, Value []byte }
			var body struct {
				If []struct {
					Key string
					Mod json.Number `json:"mod_revision"`
				}
				Then    []struct{ Put struct{ Key, Value string } }
				Compare []struct {
					Key []byte
					Mod json.Number `json:"mod_revision"`
				}
				Success []struct {
					Put gatewayPut `json:"request_put"`
				}
			}
			if err := json.Unmarshal([]byte(rec.bodies[i+1]), &body); err != nil {
				t.Fatalf("%s: %q: %v", name, rec.bodies[i+1], err)
			}
			guard, revision := "", ""
			var puts []string
			for _, f := range body.If {
				guard, revision = f.Key, f.Mod.String()
			}
			for _, f := range body.Compare {
				guard, revision = string(f.Key), f.Mod.String()
			}
			for _, p := range body.Then {
				puts = append(puts, p.Put.Key, p.Put.Value)
			}
			for _, p := range body.Success {
				puts = append(puts, string(p.Put.Key), string(p.Put.Value))
			}
			own := string(appendKey(nil, firstGuard+1))
			if guard != own || revision != want {
				t.Errorf("%s: it compares %s with %s, want %s with %s", name, guard, revision, own, want)
			}
			if len(puts) != 4 || puts[0] != own || puts[2] != string(appendKey(nil, key)) || puts[3] != string(v.make(key)) {
				t.Errorf("%s: it writes %q", name, puts)
			}
		}
	}
}

// Ensure that a list is asked for by the keys that are in it, and that an answer with
// fewer is an error.
func TestListRequest(t *testing.T) {
	whole := strings.Repeat(`"mod_revision"`, listed)
	rec, c := record(t, dialRaftkv, whole)
	if err := c.do(list, 7321); err != nil {
		t.Error(err)
	}
	if got := rec.asked[0].URL.RawQuery; got != "prefix=key-000000007&limit=1000" {
		t.Errorf("asked for %s", got)
	}
	rec.answer = whole[1:]
	if err := c.do(list, 1); err == nil {
		t.Error("a list with too few keys passed")
	}
	rec, c = record(t, dialGateway, whole)
	if err := c.do(list, 7321); err != nil {
		t.Error(err)
	}
	var body struct {
		Key   []byte
		End   []byte `json:"range_end"`
		Limit int
	}
	if err := json.Unmarshal([]byte(rec.bodies[0]), &body); err != nil {
		t.Fatal(err)
	}
	if string(body.Key) != "key-000000007000" || string(body.End) != "key-000000008000" || body.Limit != listed {
		t.Errorf("%s to %s, %d", body.Key, body.End, body.Limit)
	}
}

// Ensure that a client keeps a lease of its own alive, which it makes once and revokes at
// its end, and that a lease that has gone is an error.
func TestLeaseRequests(t *testing.T) {
	for name, tt := range map[string]struct {
		dial         dialer
		answer, gone string
		want         []string
	}{
		"raftkv": {dialRaftkv, `{"id":12,"ttl_seconds":60}`, "", []string{
			`POST /v1/leases {"ttl":"60s"}`, "PUT /v1/leases/12 ", "PUT /v1/leases/12 ", "DELETE /v1/leases/12 "}},
		"gateway": {dialGateway, `{"ID":"12","TTL":"60"}`, `{"ID":"12"}`, []string{
			`POST /v3/lease/grant {"TTL":60}`, `POST /v3/lease/keepalive {"ID":"12"}`, `POST /v3/lease/keepalive {"ID":"12"}`, `POST /v3/lease/revoke {"ID":"12"}`}},
	} {
		rec, c := record(t, tt.dial, tt.answer)
		for range 2 {
			if err := c.do(keepAlive, 0); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		var got []string
		c.close()
		for i, r := range rec.asked {
			got = append(got, r.Method+" "+r.URL.Path+" "+rec.bodies[i])
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q", name, got)
		}
		if rec, c := record(t, tt.dial, tt.answer); tt.gone != "" {
			if err := c.do(keepAlive, 0); err != nil {
				t.Error(err)
			}
			rec.answer = tt.gone
			if err := c.do(keepAlive, 0); err == nil {
				t.Errorf("%s: a lease that has gone passed", name)
			}
		}
	}
}

// Ensure that no two PUTs have the same Idempotency-Key, and that each has its value.
func TestOnceRequest(t *testing.T) {
	rec, one := record(t, dialRaftkvOnce, "")
	v := valueMaker{size: usualSize, nonce: 5}
	for range 3 {
		if err := one.do(put, 44); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for i, r := range rec.asked {
		field := r.Header.Get("Idempotency-Key")
		if len(field) != len(`"0123456789abcdef-000000000001";keep=10`) || !strings.HasSuffix(field, `";keep=10`) || seen[field] {
			t.Errorf("Idempotency-Key: %s", field)
		}
		seen[field] = true
		if rec.bodies[i] != string(v.make(44)) || r.URL.Path != "/"+string(appendKey(nil, 44)) {
			t.Errorf("%s %q", r.URL.Path, rec.bodies[i])
		}
	}
}

func TestNumberAfter(t *testing.T) {
	for body, want := range map[string]uint64{`{"n":5}`: 5, `{"n":"17"}`: 17, `"n":18446744073709551615,`: 18446744073709551615, `"n":3`: 3} {
		if got, err := numberAfter([]byte(body), `"n":`); err != nil || got != want {
			t.Errorf("%s: %d, %v", body, got, err)
		}
	}
	for _, body := range []string{"", `{"m":5}`, `"n":`, `"n":x`, `"n":-1`, `"n":99999999999999999999`} {
		if _, err := numberAfter([]byte(body), `"n":`); err == nil {
			t.Errorf("%q: no error", body)
		}
	}
}
