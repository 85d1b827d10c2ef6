package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/list"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// listed is a page as a client reads it.
type listed struct {
	Revision uint64 `json:"revision"`
	Items    []struct {
		Key   string  `json:"key"`
		Value *string `json:"value"`
		Mod   uint64  `json:"mod_revision"`
	} `json:"items"`
	Prefixes []string `json:"prefixes"`
	Next     string   `json:"next"`
	Count    *int     `json:"count"`
}

func (l listed) keys() (keys []string) {
	for _, it := range l.Items {
		keys = append(keys, it.Key)
	}
	return keys
}

// page asks for a list.
func (at *apiTest) page(query string) (l listed) {
	at.Helper()
	w := at.do("GET", "/v1/kv"+query, "")
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil || w.Code != http.StatusOK {
		at.Fatalf("GET /v1/kv%s: %d %.200q, %v", query, w.Code, w.Body, err)
	}
	return l
}

// fill writes keys, each with itself as value.
func (at *apiTest) fill(keys ...string) {
	for _, key := range keys {
		at.kv.state.Apply(state.Command{Kind: state.KindPut, Key: key, Value: []byte(key)})
	}
}

// Guarantee: a list has the keys under its prefix in order, says of which revision and
// how fresh it is, and may be asked for in ranges, in reverse, in groups and in pages.
func TestListPages(t *testing.T) {
	at := newAPITest(t)
	at.fill("a", "b/1", "b/2", "b/c/1", "b/c/2", "b/d", "c", "\U0010ffff")
	for _, tt := range []struct {
		query  string
		keys   string // with spaces between
		groups string
		next   string
	}{
		{"?prefix=b/", "b/1 b/2 b/c/1 b/c/2 b/d", "", ""},
		{"?prefix=b/&reverse=true", "b/d b/c/2 b/c/1 b/2 b/1", "", ""},
		{"?prefix=b/&reverse=false&keys_only=false&count=false", "b/1 b/2 b/c/1 b/c/2 b/d", "", ""},
		{"", "a b/1 b/2 b/c/1 b/c/2 b/d c \U0010ffff", "", ""},
		{"?prefix=", "a b/1 b/2 b/c/1 b/c/2 b/d c \U0010ffff", "", ""},
		{"?prefix=none", "", "", ""},
		{"?prefix=b", "b/1 b/2 b/c/1 b/c/2 b/d", "", ""},
		{"?prefix=%F4%8F%BF%BF", "\U0010ffff", "", ""},
		{"?start=b/2&end=b/d", "b/2 b/c/1 b/c/2", "", ""},
		{"?start=b/2&end=b/2", "", "", ""},
		{"?prefix=b/c/&start=a", "b/c/1 b/c/2", "", ""},
		{"?limit=2", "a b/1", "", "b/1"},
		{"?limit=2&start_after=b/1", "b/2 b/c/1", "", "b/c/1"},
		{"?limit=2&start_after=", "a b/1", "", "b/1"},
		{"?limit=8", "a b/1 b/2 b/c/1 b/c/2 b/d c \U0010ffff", "", ""},
		{"?limit=2&reverse=true", "\U0010ffff c", "", "c"},
		{"?limit=2&reverse=true&start_after=c", "b/d b/c/2", "", "b/c/2"},
		{"?delimiter=/", "a c \U0010ffff", "b/", ""},
		{"?delimiter=%2F&limit=2", "a", "b/", "b/"},
		{"?delimiter=/&limit=2&start_after=b/", "c \U0010ffff", "", ""},
		{"?delimiter=/&prefix=b/", "b/1 b/2 b/d", "b/c/", ""},
		{"?delimiter=/&prefix=b/&limit=3", "b/1 b/2", "b/c/", "b/c/"},
		{"?delimiter=/&prefix=b/&limit=2&reverse=true", "b/d", "b/c/", "b/c/"},
		{"?delimiter=/&prefix=b/&limit=2&reverse=true&start_after=b/c/", "b/2 b/1", "", ""},
		{"?delimiter=/&start_after=/", "a c \U0010ffff", "b/", ""}, // which is behind that
		{"?prefix=b/&limit=10000&consistency=stale", "b/1 b/2 b/c/1 b/c/2 b/d", "", ""},
		{"?keys_only=true&prefix=b/c&consistency=linearizable", "b/c/1 b/c/2", "", ""},
	} {
		p := at.page(tt.query)
		if got := strings.Join(p.keys(), " "); got != tt.keys || strings.Join(p.Prefixes, " ") != tt.groups || p.Next != tt.next || p.Revision != 8 {
			t.Errorf("%s: %q %q, next %q, revision %d", tt.query, got, p.Prefixes, p.Next, p.Revision)
		}
		for _, it := range p.Items {
			if only := strings.Contains(tt.query, "keys_only=true"); only != (it.Value == nil) || !only && *it.Value != it.Key || it.Mod == 0 {
				t.Errorf("%s: item %+v", tt.query, it)
			}
		}
	}
	at.want(at.do("GET", "/v1/kv?prefix=c&values=base64", ""), 200,
		`{"revision":8,"items":[{"key":"c","value_base64":"Yw==","create_revision":7,"mod_revision":7,"version":1}]}`+"\n")
	at.want(at.do("GET", "/v1/kv?prefix=b/&count=true", ""), 200, `{"revision":8,"count":5}`+"\n")
	at.want(at.do("GET", "/v1/kv?start=b/2&end=c&start_after=b/2&count=true&reverse=false&consistency=stale", ""), 200, `{"revision":8,"count":3}`+"\n")
}

// Guarantee: pages of every length, also those that are looked up in a copy, give every
// key once, and the copies are let go.
func TestListEveryKeyOnce(t *testing.T) {
	at := newAPITest(t)
	var keys []string
	for i := range 2*list.MaxItems + 1 {
		keys = append(keys, fmt.Sprintf("k/%05d", i))
	}
	at.fill(keys...)
	for _, query := range []string{"?prefix=k/", "?limit=999", "?limit=1001", "?limit=10000", "?delimiter=/&prefix=k/&limit=5000"} {
		for _, reverse := range []bool{false, true} {
			var got []string
			sep, pages := "?", 0
			if strings.Contains(query, "?") {
				sep = "&"
			}
			for next := ""; next != "" || pages == 0; pages++ {
				p := at.page(query + sep + fmt.Sprintf("reverse=%t&keys_only=true&start_after=%s", reverse, url.QueryEscape(next)))
				got, next = append(got, p.keys()...), p.Next
			}
			if reverse {
				slices.Reverse(got)
			}
			if !slices.Equal(got, keys) {
				t.Errorf("%s, reverse %t: %d keys on %d pages", query, reverse, len(got), pages)
			}
		}
	}
}

// Guarantee: what is not understood, doubled, past a bound, or does not go together is
// refused, before the cluster is asked.
func TestListRefused(t *testing.T) {
	at := newAPITest(t)
	at.fill("a")
	long := strings.Repeat("k", config.MaxKeyBytes)
	for _, query := range []string{
		"limit=0", "limit=10001", "limit=-1", "limit=", "limit=x", "limit=1e3", "limit=99999999999999999999", "limit=1&limit=1", "limit=0x10",
		"x=1", "Prefix=a", "prefix=a&prefix=b", "prefix=a&x", "prefix=%zz", "prefix=a;b=c", "prefix=%FF", "prefix=a%00", "prefix=" + long + "k",
		"start=%C3", "start=" + long + "k", "start_after=%00", "start_after=" + long + "k", "end=", "end=%FF", "end=" + long + "k", "start=b&end=a",
		"delimiter=", "delimiter=.", "delimiter=//", "delimiter", "reverse", "reverse=1", "reverse=TRUE", "keys_only=yes", "count=2", "count=true&limit=5", "count=true&delimiter=/",
		"values=text", "values=", "consistency=maybe", "consistency=", "consistency=stale&consistency=stale", "key=a&prefix=b", "key=a&limit=1", "key=a&key=b", "key=", "key=%00",
		"ttl=5s", "all=true", "after_revision=", "after_revision=x", "after_revision=-1", "after_revision=1&after_revision=1", "wait=1s", "after_revision=1&wait=0s", "after_revision=1&wait=301s", "after_revision=1&wait=5",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			at.problem(method+" "+query, at.do(method, "/v1/kv?"+query, ""), 400, "bad_request")
		}
	}
	for _, query := range []string{"limit=5", "limit=1000", "delimiter=/", "count=true", "after_revision=1"} {
		at.problem("stream "+query, at.do("GET", "/v1/kv?"+query, "", "Accept", "application/x-ndjson"), 400, "bad_request")
	}
	at.problem("If-None-Match", at.do("GET", "/v1/kv", "", "If-None-Match", `"1"`), 400, "bad_request")
	at.problem("If-Match", at.do("GET", "/v1/kv", "", "If-Match", `*`), 400, "bad_request")
	at.problem("PUT", at.do("PUT", "/v1/kv", "v"), 400, "bad_request")
	at.problem("no such path", at.do("GET", "/v1/kvs?prefix=a", ""), 404, "no_such_path")
	for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"} {
		for _, query := range []string{"", "?prefix=a", "?key=a"} {
			if detail := at.problem("empty key", at.do(method, "/v1/kv/"+query, ""), 400, "bad_request"); !strings.Contains(detail, "GET /v1/kv?prefix=") {
				t.Errorf("%s /v1/kv/: %q does not name the form that lists", method, detail)
			}
		}
	}
	if at.asked+at.proposed != 0 || at.kv.state.Keys() != 1 {
		t.Errorf("%d reads, %d proposals, %d keys", at.asked, at.proposed, at.kv.state.Keys())
	}
	for _, query := range []string{"limit=1", "limit=10000", "prefix=" + long, "end=" + long, "start=" + long, "start_after=" + long} {
		if w := at.do("GET", "/v1/kv?"+query, ""); w.Code != http.StatusOK {
			t.Errorf("%.40s: %d %s", query, w.Code, w.Body)
		}
	}
}

// Guarantee: a list's header says what it is, HEAD as GET, and a node that cannot read
// says so.
func TestListHeaders(t *testing.T) {
	at := newAPITest(t)
	at.fill("a")
	for query, asked := range map[string]int{"": 1, "?consistency=stale": 0, "?count=true": 1, "?limit=2000": 1} {
		for _, method := range []string{"GET", "HEAD"} {
			at.asked = 0
			w := at.do(method, "/v1/kv"+query, "")
			want := map[string]string{
				"Content-Type": "application/json", "Cache-Control": "no-cache, no-transform", "Raftkv-Revision": "1", "Vary": "Accept",
				"X-Content-Type-Options": "nosniff", "Raftkv-Consistency": "linearizable", "ETag": "",
			}
			if asked == 0 {
				want["Raftkv-Consistency"] = "stale"
			}
			for name, value := range want {
				if got := lastOf(w.Header(), name); got != value {
					t.Errorf("%s %s: %s is %q, want %q", method, query, name, got, value)
				}
			}
			if w.Code != 200 || at.asked != asked || (method == "HEAD") != (w.Body.Len() == 0) {
				t.Errorf("%s %s: %d %q, %d confirmations", method, query, w.Code, w.Body, at.asked)
			}
		}
	}
	w := at.do("HEAD", "/v1/kv", "", "Accept", "application/x-ndjson")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("HEAD of a stream: %d %v", w.Code, w.Header())
	}
	refused := func(what string, code string, queries ...string) {
		t.Helper()
		for _, query := range queries {
			for _, accept := range []string{"*/*", "application/x-ndjson"} {
				if accept != "*/*" && query != "" && !strings.HasPrefix(query, "?consistency") {
					continue
				}
				w := at.do("GET", "/v1/kv"+query, "", "Accept", accept)
				at.problem(what+" "+query, w, 503, code)
				if got := w.Header().Get("Cache-Control"); got != "no-store" {
					t.Errorf("%s %s: Cache-Control %q", what, query, got)
				}
			}
		}
	}
	at.fails = problem.ErrNoLeader
	refused("no leader", "no_leader", "", "?count=true", "?limit=5000", "", "", "", "") // a refused one holds no slot
	at.fails = nil
	at.kv.loading.Store(true)
	refused("loading", "not_ready", "", "?count=true", "?limit=5000", "?consistency=stale")
	at.kv.loading.Store(false)
	at.a.keys.Fresh.Applied = new(wait.Index)
	refused("a node that joins", "not_ready", "?consistency=stale")
}

// Guarantee: a key may be named in the query, and then means what it means in the path,
// whatever it is.
func TestKeyInQuery(t *testing.T) {
	for _, key := range []string{"a", "a//b", "..", "a/../b", "/", "a b", "a+b", "a&b=c", "a?b", "%2F", "é", "prefix", "v1/kv", strings.Repeat("k", config.MaxKeyBytes)} {
		at := newAPITest(t)
		target := "/v1/kv?key=" + url.QueryEscape(key)
		w := at.do("PUT", target, "value")
		if w.Code != http.StatusCreated || w.Header().Get("ETag") != `"1"` || !at.kv.has(key) {
			t.Errorf("PUT %.60s: %d %s", target, w.Code, w.Body)
		}
		for _, target := range []string{target, target + "&consistency=stale", "/v1/kv?consistency=linearizable&key=" + url.QueryEscape(key)} {
			at.want(at.do("GET", target, ""), 200, "value")
			same := at.do("GET", strings.Replace("/v1/kv/"+url.PathEscape(key)+"?"+strings.Trim(strings.Replace(target, "key="+url.QueryEscape(key), "", 1)[len("/v1/kv?"):], "&"), "/v1/kv/?", "/v1/kv/", 1), "")
			if got := at.do("GET", target, ""); !maps.EqualFunc(got.Header(), same.Header(), slices.Equal) {
				t.Errorf("GET %s: header %v, want %v", target, got.Header(), same.Header())
			}
			at.want(at.do("HEAD", target, ""), 200, "")
		}
		at.want(at.do("GET", target, "", "If-None-Match", `"1"`), 304, "")
		at.problem("a condition", at.do("PUT", target, "w", "If-None-Match", "*"), 412, "precondition_failed")
		at.problem("a parameter", at.do("PUT", target+"&consistency=stale", "w"), 400, "bad_request")
		at.want(at.do("DELETE", target, "", "If-Match", `"1"`), 204, "")
		at.problem("it is gone", at.do("GET", target, ""), 404, "not_found")
		at.problem("it is gone", at.do("DELETE", target, ""), 404, "not_found")
	}
}

// Guarantee: who takes JSON and nothing else gets an item; all others get the bytes, and
// a cache is told that there are two forms.
func TestItemAsJSON(t *testing.T) {
	at := newAPITest(t)
	at.do("PUT", "/k", "v")
	at.do("PUT", "/k", "w")
	at.do("PUT", "/bin", "\xff")
	const k = `{"key":"k","value":"w","create_revision":1,"mod_revision":2,"version":2}` + "\n"
	const only = "application/json"
	for _, tt := range []struct{ target, accept, want string }{
		{"/k", only, k}, {"/v1/kv/k", only, k}, {"/v1/kv?key=k", only, k}, {"/k?consistency=stale", only, k}, {"/k", "Application/JSON;q=0.5", k},
		{"/k?values=base64", only, `{"key":"k","value_base64":"dw==","create_revision":1,"mod_revision":2,"version":2}` + "\n"},
		{"/v1/kv?values=base64&key=k&consistency=stale", only, `{"key":"k","value_base64":"dw==","create_revision":1,"mod_revision":2,"version":2}` + "\n"},
		{"/bin", only, `{"key":"bin","value_base64":"/w==","create_revision":3,"mod_revision":3,"version":1}` + "\n"},
		{"/k", "", "w"}, {"/k", "*/*", "w"}, {"/k", "application/json, */*", "w"}, {"/k", "application/json, text/plain, */*", "w"}, {"/k", "text/html", "w"},
		{"/k", "application/x-ndjson", "w"},
	} {
		var headers []string
		if tt.accept != "" {
			headers = []string{"Accept", tt.accept}
		}
		w := at.do("GET", tt.target, "", headers...)
		at.want(w, 200, tt.want)
		mediaType := "application/octet-stream"
		if tt.want != "w" {
			mediaType = only
		}
		tag := `"2"`
		if tt.target == "/bin" {
			tag = `"3"`
		}
		for name, value := range map[string]string{"Content-Type": mediaType, "Vary": "Accept", "ETag": tag, "Raftkv-Revision": "3",
			"Cache-Control": "no-cache, no-transform", "X-Content-Type-Options": "nosniff"} {
			if got := lastOf(w.Header(), name); got != value {
				t.Errorf("%s, Accept %q: %s is %q, want %q", tt.target, tt.accept, name, got, value)
			}
		}
		if w := at.do("GET", tt.target, "", append(headers, "If-None-Match", tag)...); w.Code != 304 || lastOf(w.Header(), "Vary") != "Accept" || w.Header().Get("ETag") != tag {
			t.Errorf("%s, Accept %q: %d %v", tt.target, tt.accept, w.Code, w.Header())
		}
		if w := at.do("HEAD", tt.target, "", headers...); w.Code != 200 || w.Header().Get("Content-Length") != fmt.Sprint(len(tt.want)) {
			t.Errorf("HEAD %s, Accept %q: %d %v", tt.target, tt.accept, w.Code, w.Header())
		}
	}
	at.problem("a missing key", at.do("GET", "/none", "", "Accept", only), 404, "not_found")
	for _, query := range []string{"values=base64", "values=base64&values=base64"} {
		at.problem("bytes with "+query, at.do("GET", "/k?"+query, ""), 400, "bad_request")
	}
	for _, query := range []string{"values=x", "values=", "values=base64&values=base64", "values=base64&x=1", "limit=1"} {
		at.problem("JSON with "+query, at.do("GET", "/k?"+query, "", "Accept", only), 400, "bad_request")
	}
	at.problem("a write", at.do("PUT", "/k?values=base64", "v", "Accept", only), 400, "bad_request")
	at.want(at.do("PUT", "/k", "v", "Accept", only), 204, "")
}

// list opens a stream in the bubble of a backup.
func (b *backupTest) list(query string) *http.Response {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), "GET", "http://127.0.0.1:9121/v1/kv"+query, nil)
	testkit.Must(b.T, err)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := b.client.Do(req)
	testkit.Must(b.T, err)
	b.Cleanup(func() { resp.Body.Close() })
	return resp
}

// streamed reads a stream, with a pause behind each line: its revision, its keys with
// their revisions, its last line, and how it ends.
func (b *backupTest) streamed(resp *http.Response, pause func()) (revision uint64, items map[string]uint64, last string, err error) {
	b.Helper()
	items = make(map[string]uint64)
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return revision, items, last, err
		}
		var l struct {
			Revision uint64 `json:"revision"`
			Key      string `json:"key"`
			Mod      uint64 `json:"mod_revision"`
		}
		testkit.Must(b.T, json.Unmarshal([]byte(line), &l))
		if l.Key != "" {
			items[l.Key] = l.Mod
		}
		revision, last = max(revision, l.Revision), line
		pause()
	}
}

// Guarantee: a stream has everything of exactly one revision, whatever is written, and
// deleted, while it is read; those that begin together share a copy.
func TestListStreamOfOneRevision(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		want := make(map[string]uint64)
		b.kv.state.Scan(func(key string, it *state.Item) bool { want[key] = it.ModRevision; return true })
		resp, other := b.list("?prefix=key/"), b.list("?reverse=true&keys_only=true")
		i := 0
		revision, items, last, err := b.streamed(resp, func() {
			i++
			for _, r := range [][2]string{{"PUT", "/key/63"}, {"PUT", fmt.Sprint("/key/", i)}, {"PUT", fmt.Sprint("/key/new", i)}, {"DELETE", fmt.Sprint("/v1/kv/key/", 64-i)}} {
				b.do(r[0], r[1], "other")
			}
		})
		if !errors.Is(err, io.EOF) || revision != 64 || !maps.Equal(items, want) || last != `{"end":true,"count":64}`+"\n" {
			t.Errorf("revision %d, %d items, %q, %v", revision, len(items), last, err)
		}
		for name, value := range map[string]string{"Content-Type": "application/x-ndjson", "Raftkv-Revision": "64", "Raftkv-Consistency": "linearizable",
			"Cache-Control": "no-cache, no-transform", "Vary": "Accept"} {
			if got := lastOf(resp.Header, name); got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
		revision, items, last, err = b.streamed(other, func() {})
		if !errors.Is(err, io.EOF) || revision != 64 || !maps.Equal(items, want) || last != `{"end":true,"count":64}`+"\n" {
			t.Errorf("the other: revision %d, %d items, %q, %v", revision, len(items), last, err)
		}
		revision, items, _, err = b.streamed(b.list("?prefix=key/new&consistency=stale"), func() {})
		if !errors.Is(err, io.EOF) || revision <= 64 || len(items) != i {
			t.Errorf("afterwards: revision %d, %d items, %v", revision, len(items), err)
		}
		synctest.Wait()
		if n := len(b.a.lists.Slots); n != 0 {
			t.Errorf("%d streams are under way", n)
		}
	})
}

// slowly reads 64 KiB in a little more than a second.
type slowly struct{ r io.Reader }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(70 * time.Millisecond)
	return s.r.Read(p[:min(len(p), 4096)])
}

// broken reads a stream that breaks off to its end, and returns the code of its last line.
func (b *backupTest) broken(status int, from io.Reader) string {
	b.Helper()
	body, err := io.ReadAll(from)
	if status != http.StatusOK {
		b.Errorf("a stream began with %d", status)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		b.Errorf("the body ends with %v, want an unexpected end", err)
	}
	if bytes.Contains(body, []byte(`"end"`)) {
		b.Error("what broke off has an end")
	}
	i := bytes.LastIndex(bytes.TrimSuffix(body, []byte("\n")), []byte("\n"))
	var l struct {
		Error struct{ Code, Detail, Outcome string }
	}
	_ = json.Unmarshal(body[i+1:], &l)
	return l.Error.Code
}

// Guarantee: a reader that is too slow is cut off within a minute, and told so if it still
// reads. Four are served at once.
func TestListStreamSlowReaders(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		var slow []*http.Response
		for range api.MaxStreams {
			slow = append(slow, b.list(""))
		}
		resp := b.list("")
		body, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), `"overloaded"`) {
			t.Errorf("one more stream: %d %s", resp.StatusCode, body)
		}
		if w := b.do("HEAD", "/v1/kv", "", "Accept", "application/x-ndjson"); w.Code != http.StatusOK {
			t.Errorf("HEAD beside them: %d", w.Code)
		}
		if w := b.do("GET", "/v1/kv?limit=2", ""); w.Code != http.StatusOK {
			t.Errorf("a page beside them: %d", w.Code)
		}
		code := make(chan string, 1)
		go func() { code <- b.broken(slow[0].StatusCode, slowly{slow[0].Body}) }()
		time.Sleep(api.StreamPace - time.Second)
		synctest.Wait()
		if n := len(b.a.lists.Slots); n != api.MaxStreams {
			t.Errorf("%d streams are under way before their time is up", n)
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if n := len(b.a.lists.Slots); n != 0 {
			t.Errorf("%d streams are still under way", n)
		}
		if got := <-code; got != "request_timeout" {
			t.Errorf("the last line of one that still reads has the code %q", got)
		}
		for _, resp := range slow[1:] {
			b.broken(resp.StatusCode, resp.Body)
		}
		if _, items, _, err := b.streamed(b.list(""), func() {}); !errors.Is(err, io.EOF) || len(items) != 64 {
			t.Errorf("afterwards: %d items, %v", len(items), err)
		}
	})
}

// Guarantee: a stream that ends with its node, or with its right to be believed, says so
// in its last line, and is no whole answer.
func TestListStreamBreaksOff(t *testing.T) {
	for code, end := range map[string]func(b *backupTest){
		"stopping": func(b *backupTest) { b.stop() },
		"diverged": func(b *backupTest) { b.kv.agreement.Divide() },
	} {
		inBackupBubble(t, func(b *backupTest) {
			hangs, reads := b.list(""), b.list("")
			_, err := io.CopyN(io.Discard, reads.Body, 100_000)
			testkit.Must(t, err)
			end(b)
			if got := b.broken(reads.StatusCode, reads.Body); got != code {
				t.Errorf("the last line has the code %q, want %q", got, code)
			}
			if code != "stopping" {
				return
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := len(b.a.lists.Slots); n != 0 {
				t.Errorf("%d streams are still under way", n)
			}
			b.broken(hangs.StatusCode, hangs.Body)
		})
	}
}

// Guarantee: a client that goes away ends its stream.
func TestListStreamClientGone(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		testkit.Must(t, b.list("").Body.Close())
		synctest.Wait()
		if n := len(b.a.lists.Slots); n != 0 {
			t.Errorf("%d streams are under way", n)
		}
	})
}

// Guarantee: lists, items and streams are what they are over real connections, too,
// beside the front.
func TestListOverConnections(t *testing.T) {
	at := newAPITest(t)
	at.fill("a/1", "a/2", "b")
	server := listening.ClientServer(time.Minute, at.srv.log)
	l, err := listenWithFront("127.0.0.1:0", server, nil, 100, at.srv.log)
	testkit.Must(t, err)
	var h http.Handler = at.a
	l.handler.Store(&h)
	l.front.Handle(plainRequests{at.a})
	defer func() { testkit.Must(t, l.close()) }()
	for _, tt := range []struct{ target, accept, want string }{
		{"/v1/kv?prefix=a/&keys_only=true&limit=1", "*/*", `{"revision":3,"items":[{"key":"a/1","create_revision":1,"mod_revision":1,"version":1}],"next":"a/1"}` + "\n"},
		{"/b", "application/json", `{"key":"b","value":"b","create_revision":3,"mod_revision":3,"version":1}` + "\n"},
		{"/b", "*/*", "b"},
		{"/v1/kv?key=b", "*/*", "b"},
		{"/v1/kv?prefix=b&values=base64", "application/x-ndjson",
			`{"revision":3}` + "\n" + `{"key":"b","value_base64":"Yg==","create_revision":3,"mod_revision":3,"version":1}` + "\n" + `{"end":true,"count":1}` + "\n"},
	} {
		req, err := http.NewRequestWithContext(context.Background(), "GET", "http://"+l.Addr().String()+tt.target, nil)
		testkit.Must(t, err)
		req.Header.Set("Accept", tt.accept)
		resp, err := (&http.Client{Transport: openapitest.Transport(t, http.DefaultTransport)}).Do(req)
		testkit.Must(t, err)
		body, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		testkit.Must(t, resp.Body.Close())
		if string(body) != tt.want || lastOf(resp.Header, "Vary") != "Accept" {
			t.Errorf("%s as %s: %q %v", tt.target, tt.accept, body, resp.Header)
		}
	}
}

// lastOf returns the last line of a header of that name.
func lastOf(h http.Header, name string) string {
	all := h.Values(name)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}
