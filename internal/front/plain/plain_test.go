package plain

import (
	"raftkv/internal/config"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const local = "Host: localhost\r\n"

// shape is a plain request, and what the front reads in it.
type shape struct {
	line, fields string
	want         Head
}

func list(s ...string) []string { return s }

func shapes() []shape {
	long := strings.Repeat("k", config.MaxKeyBytes)
	inLongForm := regexp.MustCompile(`^[A-Z]+ /(v1|%76%31)(/|%2F)kv(/|%2F)`)
	at := func(method, key string) Head { return Head{Method: method, Key: key, Host: []byte("localhost")} }
	with := func(h Head, set func(h *Head)) Head { set(&h); return h }
	put := with(at("PUT", "k"), func(h *Head) { h.hasLength = true })
	ss := []shape{
		// Methods, and both forms of a key.
		{"GET /k", local, at("GET", "k")},
		{"HEAD /k", local, at("HEAD", "k")},
		{"PUT /k", local + "Content-Length: 0\r\n", put},
		{"GET /v1/kv/k", local, at("GET", "k")},
		{"HEAD /v1/kv/k", local, at("HEAD", "k")},
		{"PUT /v1/kv/k", local + "Content-Length: 0\r\n", put},
		{"DELETE /v1/kv/k", local, at("DELETE", "k")},
		{"DELETE /v1/kv/k", local + "Content-Length: 0\r\n", with(at("DELETE", "k"), func(h *Head) { h.hasLength = true })},
		{"GET /k", local + "Content-Length: 0\r\n", with(at("GET", "k"), func(h *Head) { h.hasLength = true })},

		// Keys stand as they are, and are decoded once.
		{"GET //", local, at("GET", "/")},
		{"GET //a", local, at("GET", "/a")},
		{"GET /a/", local, at("GET", "a/")},
		{"GET /a//b", local, at("GET", "a//b")},
		{"GET /a/../b", local, at("GET", "a/../b")},
		{"GET /..", local, at("GET", "..")},
		{"GET /a%2Fb", local, at("GET", "a/b")},
		{"GET /a%2fb", local, at("GET", "a/b")},
		{"GET /%2F", local, at("GET", "/")},
		{"GET /a%252Fb", local, at("GET", "a%2Fb")},
		{"GET /a+b", local, at("GET", "a+b")},
		{"GET /a%20b%3Fc", local, at("GET", "a b?c")},
		{"GET /%e2%82%ac", local, at("GET", "€")},
		{"GET /-._~!$&'()*+,;=:@", local, at("GET", "-._~!$&'()*+,;=:@")},
		{"GET /0123456789", local, at("GET", "0123456789")},
		{"GET /azAZ", local, at("GET", "azAZ")},
		{"GET /V1/x", local, at("GET", "V1/x")},
		{"GET /v1x", local, at("GET", "v1x")},
		{"GET /metrics2", local, at("GET", "metrics2")},
		{"GET /v1/kv/metrics", local, at("GET", "metrics")},
		{"GET /v1/kv//a", local, at("GET", "/a")},
		{"GET /%76%31/kv/k", local, at("GET", "k")},
		{"GET /v1%2Fkv%2Fk", local, at("GET", "k")},
		{"GET /" + long, local, at("GET", long)},
		{"GET /v1/kv/" + long, local, at("GET", long)},
		// There can be no such keys, which package api says.
		{"GET /" + long + "k", local, at("GET", long+"k")},
		{"GET /v1/kv/", local, at("GET", "")},
		{"GET /%00", local, at("GET", "\x00")},
		{"GET /%FF", local, at("GET", "\xff")},

		// Parameters.
		{"GET /k?consistency=stale", local, with(at("GET", "k"), func(h *Head) { h.Query = "consistency=stale" })},
		{"HEAD /v1/kv/k?consistency=linearizable", local, with(at("HEAD", "k"), func(h *Head) { h.Query = "consistency=linearizable" })},

		{"PUT /k?ttl=1h30m", local + "Content-Length: 0\r\n", with(put, func(h *Head) { h.Query = "ttl=1h30m" })},
		{"PUT /k?lease=17", local + "Content-Length: 0\r\n", with(put, func(h *Head) { h.Query = "lease=17" })},
		{"GET /k?min_revision=7&max_age=1.5s&as=text&consistency=stale", local,
			with(at("GET", "k"), func(h *Head) { h.Query = "min_revision=7&max_age=1.5s&as=text&consistency=stale" })},

		// Conditions.
		{"GET /k", local + "If-None-Match: \"17\"\r\n", with(at("GET", "k"), func(h *Head) { h.NoneMatch = list(`"17"`) })},
		{"GET /k", local + "if-match:*\r\n", with(at("GET", "k"), func(h *Head) { h.Match = list("*") })},
		{"GET /k", local + "IF-MATCH: \r\n", with(at("GET", "k"), func(h *Head) { h.Match = list("") })}, // is refused, as any other that is wrong
		{"PUT /k", local + "If-Match: \"1\"\r\nIf-None-Match: *\r\nContent-Length: 0\r\n",
			with(put, func(h *Head) { h.Match, h.NoneMatch = list(`"1"`), list("*") })},
		{"GET /k", local + "If-None-Match: W/\"1\", \"2\"\r\n", with(at("GET", "k"), func(h *Head) { h.NoneMatch = list(`W/"1", "2"`) })},

		// Bodies.
		{"PUT /k", local + "Content-Length: 5\r\n", with(put, func(h *Head) { h.Length = 5 })},
		{"PUT /k", local + "content-length:65536\r\n", with(put, func(h *Head) { h.Length = MaxBody })},
		{"PUT /k", local + "Content-Length: 999999\r\n", with(put, func(h *Head) { h.Length = 999999 })}, // admit hands it over
		{"PUT /k", local + "Content-Length:\t 10 \t\r\n", with(put, func(h *Head) { h.Length = 10 })},

		// Connections.
		{"GET /k", local + "Connection: keep-alive\r\n", with(at("GET", "k"), func(h *Head) { h.connection = true })},
		{"GET /k", local + "Connection: Keep-Alive\r\n", with(at("GET", "k"), func(h *Head) { h.connection = true })},
		{"GET /k", local + "connection: close\r\n", with(at("GET", "k"), func(h *Head) { h.connection, h.Close = true, true })},
		{"GET /k", local + "Connection: CLOSE \r\n", with(at("GET", "k"), func(h *Head) { h.connection, h.Close = true, true })},

		// Names and white space.
		{"GET /k", "host:localhost\r\n", at("GET", "k")},
		{"GET /k", "HOST: \t localhost \t \r\n", at("GET", "k")},
		{"GET /k", "User-Agent: a\tb (c; d) \"e\"\r\n" + local + "aCCEPT: */*\r\n", at("GET", "k")},
		{"GET /k", local + "User-Agent:\r\n", at("GET", "k")},
		{"GET /k", local + "User-Agent: a\r\nUser-Agent: b\r\n", at("GET", "k")},

		// Browsers, of the same site.
		{"PUT /k", local + "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n",
			with(put, func(h *Head) { h.origin, h.site = true, 1 })},
		{"GET /k", local + "Sec-Fetch-Site: none\r\n", with(at("GET", "k"), func(h *Head) { h.site = 1 })},
	}
	for _, name := range []string{"127.0.0.1", "127.0.0.1:9121", "[::1]:9121", "kv.example", "evil.example", "localhost."} { // whose they are, admit asks
		ss = append(ss, shape{"GET /k", "Host: " + name + "\r\n", Head{Method: "GET", Key: "k", Host: []byte(name)}})
	}
	for i := range ss {
		ss[i].want.Long = inLongForm.MatchString(ss[i].line)
	}
	return ss
}

func (s shape) text() string { return s.line + " HTTP/1.1\r\n" + s.fields + "\r\n" }

// Guarantee: the plain shapes are read as they are meant, whatever comes behind them, and
// what has come of one is waited on.
func TestHeadPlain(t *testing.T) {
	for _, s := range shapes() {
		text := s.text()
		s.want.Bytes = len(text)
		for _, behind := range []string{"", "\r\n", "GET /", "\x00\n\n", text} {
			var got Head
			if why := got.Parse([]byte(text + behind)); why != Yes || !reflect.DeepEqual(got, s.want) {
				t.Errorf("%.80q and %.10q: %v %+v, want %+v", text, behind, why, got, s.want)
			}
		}
		for n := range len(text) {
			var h Head
			if why := h.Parse([]byte(text[:n])); why != More {
				t.Fatalf("of %.80q the first %d bytes: %d, want more", text, n, why)
			}
		}
	}
}

// Guarantee: what is not plain is handed over, whatever it is.
func TestHeadNotPlain(t *testing.T) {
	const length = "Content-Length: 0\r\n"
	for _, tt := range []struct {
		why          Reason
		line, fields string
	}{
		{Method, "POST /k", local}, {Method, "OPTIONS /k", local}, {Method, "PATCH /k", local}, {Method, "CONNECT k:1", local},
		{Method, "get /k", local}, {Method, "GET\t/k", local}, {Method, "PUTT /k", local}, {Method, " GET /k", local}, {Method, "", local},
		{Method, "\r\nGET /k", local}, {Method, "\x00GET /k", local}, {Method, "PRI *", ""},

		{Target, "GET /", local}, {Target, "GET *", local}, {Target, "GET k", local}, {Target, "GET http://localhost/k", local}, {Target, "GET  /k", local},
		{Target, "GET /k /l", local}, {Target, "GET /a b", local}, {Target, "GET /k#f", local}, {Target, "GET /k\t", local}, {Target, "GET /k ", local},
		{Target, "GET /a\\b", local}, {Target, "GET /a|b", local}, {Target, "GET /a\"b", local}, {Target, "GET /<a>", local}, {Target, "GET /[a]", local},
		{Target, "GET /{a}", local}, {Target, "GET /a^b", local}, {Target, "GET /a`b", local}, {Target, "GET /\x7f", local}, {Target, "GET /\x00", local},
		{Target, "GET /\xe2\x82\xac", local}, {Target, "GET /a%", local}, {Target, "GET /a%2", local}, {Target, "GET /a%zz", local}, {Target, "GET /a%+1", local},
		{Target, "DELETE /k", local}, {Target, "DELETE /7", local}, // a node
		{Target, "GET /v1", local}, {Target, "GET /v1/", local}, {Target, "GET /v1/kv", local}, {Target, "GET /v1/members", local}, {Target, "GET /v1/Kv/k", local},
		{Target, "GET /ui", local}, {Target, "GET /ui/x", local}, {Target, "GET /metrics", local}, {Target, "GET /metrics/x", local}, {Target, "GET /livez", local},
		{Target, "GET /readyz", local}, {Target, "GET /debug", local}, {Target, "GET /debug/pprof/", local}, {Target, "GET /%75i", local}, {Target, "GET /ui%2Fx", local},
		{Target, "PUT /v1/members/1", local + length}, {Target, "GET ?consistency=stale", local},

		{Query, "GET /k?", local}, {Query, "GET /k?consistency", local}, {Query, "GET /k?consistency=", local}, {Query, "GET /k?consistency=Stale", local},
		{Query, "GET /k?Consistency=stale", local}, {Query, "GET /k?consistency=stale&consistency=stale", local}, {Query, "GET /k?consistency=stale&", local},
		{Query, "GET /k?&consistency=stale", local}, {Query, "GET /k?consistency=stale;x", local}, {Query, "GET /k?consistency=st%61le", local},
		{Query, "GET /k?consistency=stale#", local}, {Query, "GET /k?consistency=stale?", local}, {Query, "GET /k?min_revision=+7", local}, {Query, "GET /k?min_revision=", local}, {Query, "GET /k?max_age=1%73", local},
		{Query, "GET /k?max_age=-1s", local}, {Query, "GET /k?as=html", local}, {Query, "GET /k?x", local}, {Query, "GET /k?x=1", local},
		{Query, "PUT /k?ttl=", local + length}, {Query, "PUT /k?ttl=1%73", local + length}, {Query, "PUT /k?lease=-1", local + length}, {Query, "GET /k?ttl=1s", local},
		{Query, "PUT /k?consistency=stale", local + length}, {Query, "DELETE /v1/kv/k?consistency=linearizable", local}, {Query, "PUT /k?", local + length},

		{Field, "GET /k", local + local}, {Field, "GET /k", "Host: localhost\r\nhost: other\r\n"}, {Field, "GET /k", "Host:\r\n"}, {Field, "GET /k", "Host: \t\r\n"},
		{Host, "GET /k", ""}, {Host, "PUT /k", length},

		{Field, "PUT /k", local + length + length}, {Field, "PUT /k", local + "Content-Length: 0\r\nContent-Length: 5\r\n"},
		{Field, "GET /k", local + "If-Match: *\r\nIf-Match: *\r\n"}, {Field, "GET /k", local + "If-None-Match: \"1\"\r\nIf-None-Match: \"2\"\r\n"},
		{Field, "GET /k", local + "If-Match: \r\nIf-Match: *\r\n"},
		{Field, "GET /k", local + "Connection: close\r\nConnection: close\r\n"}, {Field, "GET /k", local + "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n"},

		{Field, "GET /k", local + "Connection: upgrade\r\n"}, {Field, "GET /k", local + "Connection: close, te\r\n"}, {Field, "GET /k", local + "Connection: keep-alive, close\r\n"},
		{Field, "GET /k", local + "Connection:\r\n"},

		{Field, "GET /k", local + " folded\r\n"}, {Field, "GET /k", local + "User-Agent: a\r\n b\r\n"}, {Field, "GET /k", local + "User-Agent: a\r\n\tb\r\n"},
		{Field, "PUT /k", local + "Content-Length: 1\r\n 0\r\n"}, {Field, "GET /k", " " + local}, {Field, "GET /k", "\t" + local},
		{Field, "GET /k", "Host : localhost\r\n"}, {Field, "GET /k", "Host\t: localhost\r\n"}, {Field, "GET /k", local + "Accept\x00: */*\r\n"},
		{Field, "GET /k", local + "no colon\r\n"}, {Field, "GET /k", local + "Accept\r\n"}, {Field, "GET /k", local + ": x\r\n"}, {Field, "GET /k", local + ":\r\n"},
		{Field, "GET /k", local + "X-Unknown: x\r\n"}, {Field, "GET /k", local + "sec-ch-ua-platform-version: \"1\"\r\n"}, {Field, "GET /k", local + "\xc3\x84: x\r\n"},
		{Field, "GET /k", local + "If_Match: *\r\n"}, {Field, "GET /k", local + strings.Repeat("a", longestField) + ": x\r\n"},
		{Field, "GET /k", local + strings.Repeat("a", 3000) + ": x\r\n"},

		{Form, "GET /k", local + "User-Agent: a\rb\r\n"}, {Form, "GET /k", local + "User-Agent: a\x00\r\n"}, {Form, "GET /k", local + "User-Agent: \x7f\r\n"},
		{Form, "GET /k", local + "User-Agent: \xe2\x82\xac\r\n"}, {Form, "GET /k", local + "User-Agent: a\nHost: b\r\n"}, {Form, "GET /k", "Host: local\x0bhost\r\n"},
		{Form, "GET /k", local + "User-Agent: a\r\r\n"}, {Form, "PUT /k", local + "Content-Length: 0\n\r\n"},

		{Body, "PUT /k", local}, {Body, "GET /k", local + "Content-Length: 1\r\n"}, {Body, "HEAD /k", local + "Content-Length: 999999\r\n"},
		{Body, "DELETE /v1/kv/k", local + "Content-Length: 3\r\n"},

		{Field, "GET /k", "Host: localhost:/\r\n"}, {Field, "GET /k", "Host: localhost:@\r\n"}, {Field, "GET /k", "Host: localhost:a b\r\n"},
		{Field, "GET /k", "Host: localhost:\"\r\n"}, {Field, "GET /k", "Host: [::1%25lo]\r\n"}, {Field, "GET /k", "Host: localhost:<\r\n"},
		{Field, "GET /k", "Host: localhost:#\r\n"}, {Field, "GET /k", "Host: localhost:?\r\n"}, {Field, "GET /k", "Host: localhost:\\\r\n"},

		{Field, "GET /k", local + "Accept: application/json\r\nAccept: */*\r\n"}, {Field, "GET /k", local + "Accept:\r\n"},

		{Field, "GET /k", local + "Origin: http://localhost\r\n"}, {Field, "HEAD /k", local + "Sec-Fetch-Site: cross-site\r\n"},
		{Field, "PUT /k", local + length + "Origin: http://localhost\r\n"}, {Field, "PUT /k", local + length + "Origin: null\r\n"},
		{Field, "PUT /k", local + length + "Origin:\r\n"}, {Field, "DELETE /v1/kv/k", local + "Origin: http://localhost\r\n"},
		{Field, "PUT /k", local + length + "Sec-Fetch-Site: cross-site\r\n"}, {Field, "DELETE /v1/kv/k", local + "Sec-Fetch-Site: same-site\r\n"},
		{Field, "PUT /k", local + length + "Sec-Fetch-Site:\r\n"}, {Field, "PUT /k", local + length + "Sec-Fetch-Site: None\r\n"},
		{Field, "PUT /k", local + length + "Sec-Fetch-Site: x\r\nOrigin: http://localhost\r\n"},
	} {
		text := shape{line: tt.line, fields: tt.fields}.text()
		var h Head
		if why := h.Parse([]byte(text)); why != tt.why {
			t.Errorf("%.80q: %d, want %v", text, why, tt.why)
		}
	}
	for _, v := range []string{"", " ", " HTTP/1.0", " HTTP/0.9", " HTTP/2.0", " HTTP/1.2", " http/1.1", " HTTP/1.1 ", " HTTP/1.10", " HTTP/01.1", "\tHTTP/1.1", " HTTP/1.1\x00", " HTTP/1.1\r", " HTTP/1.1\n"} {
		var h Head
		if why := h.Parse([]byte("GET /k" + v + "\r\n" + local + "\r\n")); why != Version {
			t.Errorf("the version %q: %d", v, why)
		}
	}
	for _, n := range []string{"", "+1", "-0", "-1", "0x1", "1_0", "01", "00", "1.0", "1,1", "1, 1", "1 1", "1;", "a", "1000000", "0000000", "9223372036854775808", "\"1\"", "\uff11"} {
		var h Head
		if why := h.Parse([]byte("PUT /k HTTP/1.1\r\n" + local + "Content-Length: " + n + "\r\n\r\n")); why != Field && (n != "\uff11" || why != Form) {
			t.Errorf("Content-Length: %q: %d", n, why)
		}
	}
}

// Guarantee: nobody is kept waiting by the beginning of what cannot become plain.
func TestHeadBegins(t *testing.T) {
	get := "GET /k HTTP/1.1\r\nHost: localhost"
	for text, want := range map[string]Reason{
		"": More, "G": More, "GET ": More, "H": More, "P": More, "PU": More, "DELETE": More, get: More, get + "\r": More, get + "\r\n": More, get + "\r\n\r": More,
		"X": Method, "g": Method, "\r": Method, "\n": Method, "\x00": Method, "\x16\x03\x01": Method, " ": Method, "PO": Method, "PRI": Method, "GETT": Method,
		"GET\t": Method, "DELETE/": Method, "GET\n": Method, "GET\r\n": Method,
		"GET \n": Form, "GET /k HTTP/1.1\n": Form, get + "\n": Form, get + "\r\n\n": Form, get + "\n\r\n": Form, get + "\r\nA: b\nC": Form,
	} {
		var h Head
		if got := h.Parse([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// Guarantee: each entry of the table can be found.
func TestHeadFields(t *testing.T) {
	longest := 0
	for name := range plainFields {
		longest = max(longest, len(name))
		if name != strings.ToLower(name) {
			t.Errorf("%s is never found", name)
		}
	}
	if longest != longestField {
		t.Errorf("the longest name has %d bytes, not %d", longest, longestField)
	}
}

// contractFields are the fields of requests that the API has, or is to have, with a value
// that means something. Those that are understood are plain for some methods.
var contractFields = []struct {
	name, value string
	plain       []string // methods for which it is, for it is understood
}{
	{"Host", "", list("GET", "HEAD", "PUT", "DELETE")}, // every request here has it
	{"Content-Length", "5", list("PUT")},
	{"Connection", "close", list("GET", "HEAD", "PUT", "DELETE")},
	{"If-Match", `"7"`, list("GET", "HEAD", "PUT", "DELETE")},
	{"If-None-Match", "*", list("GET", "HEAD", "PUT", "DELETE")},
	{"Origin", "https://other.example", nil},
	{"Sec-Fetch-Site", "cross-site", nil},
	{"Sec-Fetch-Site", "same-site", nil},
	{"Accept", "*/*", list("GET", "HEAD", "PUT", "DELETE")},
	{"Accept", "application/json, text/plain, */*", list("GET", "HEAD", "PUT", "DELETE")},
	{"Accept", "application/json", nil},
	{"Accept", "application/x-ndjson", nil},
	{"Accept", "text/event-stream", nil},
	{"Idempotency-Key", `"a"`, list("GET", "HEAD", "PUT", "DELETE")},
	{"Idempotency-Key", `"a";keep=60`, list("GET", "HEAD", "PUT", "DELETE")},
	{"Authorization", "Bearer t", list("GET", "HEAD", "PUT", "DELETE")},
	{"Authorization", "", nil},
	{"Last-Event-ID", "7", nil},
	{"Transfer-Encoding", "chunked", nil},
	{"Expect", "100-continue", nil},
	{"Upgrade", "h2c", nil},
	{"HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA", nil},
	{"Access-Control-Request-Method", "PUT", nil},
	{"Access-Control-Request-Headers", "if-match", nil},
	{"Access-Control-Request-Private-Network", "true", nil},
	{"Cookie", "a=b", nil},
	// They are in HTTP, mean something there for reads or writes of a value, and package
	// api refuses some.
	{"Content-Range", "bytes 0-1/2", nil},
	{"Content-Encoding", "gzip", nil},
	{"Range", "bytes=0-1", nil},
	{"If-Range", `"7"`, nil},
	{"If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT", nil},
	{"If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT", nil},
	{"TE", "trailers", nil},
	{"Trailer", "Digest", nil},
	{"X-HTTP-Method-Override", "DELETE", nil},
	// Those of answers, should a client send them.
	{"ETag", `"7"`, nil},
	{"Vary", "Accept", nil},
	{"Retry-After", "1", nil},
	{"Location", "/k", nil},
	{"Allow", "GET", nil},
	{"Idempotent-Replayed", "true", nil},
	{"Raftkv-Consistency", "stale", nil},
	{"Raftkv-Revision", "7", nil},
	{"Raftkv-Leader-Contact", "7", nil},
	{"Raftkv-Cluster-Id", "7", nil},
}

// contractParams are the parameters that the API has, or is to have.
var contractParams = []string{
	"consistency=stale", "consistency=linearizable",
	"key=k", "prefix=p", "limit=10", "start_after=k", "start=a", "end=b", "reverse=true", "keys_only=true", "count=true", "delimiter=/",
	"all=true", "ttl=30s", "lease=1", "min_revision=7", "max_age=500ms", "wait=30s", "after_revision=7", "as=text", "values=base64", "force=true",
	"types=put", "state=true", "verbose", "verbose=true", "id=2", "role=voter", "keep=60", "peer_url=http://a:1", "seconds=1", "debug=1",
}

// plainNames are the parameters that are plain, for reads, and for a PUT.
var (
	plainNames = []string{"consistency", "min_revision", "max_age", "as"}
	plainOfPut = []string{"ttl", "lease"}
)

// Guarantee: of what a request asks for nothing is ignored here, also if it is asked for
// in a way that is not there yet.
func TestHeadIgnoresNothingThatMeansSomething(t *testing.T) {
	ask := func(method, query, fields string) (Reason, Head) {
		if method == "PUT" && !strings.Contains(strings.ToLower(fields), "content-length") {
			fields += "Content-Length: 0\r\n"
		}
		if query != "" {
			query = "?" + query
		}
		var h Head
		return h.Parse([]byte(method + " /v1/kv/k" + query + " HTTP/1.1\r\n" + local + fields + "\r\n")), h
	}
	for _, m := range []string{"GET", "HEAD", "PUT", "DELETE"} {
		for _, f := range contractFields {
			line := f.name + ": " + f.value + "\r\n"
			if f.name == "Host" {
				line = ""
			}
			for _, line := range []string{line, strings.ToLower(line), strings.ToUpper(line)} {
				if why, _ := ask(m, "", line); (why == Yes) != slices.Contains(f.plain, m) {
					t.Errorf("%s with %q: %d", m, line, why)
				}
			}
		}
		for _, p := range contractParams {
			name, _, _ := strings.Cut(p, "=")
			for query, want := range map[string]bool{
				p: true, "consistency=stale&" + p: name != "consistency", p + "&consistency=stale": name != "consistency",
				p + "&" + p: false, p + "&x=1": false, p + "&": false, "&" + p: false,
			} {
				switch {
				case m == "PUT":
					want = query == p && slices.Contains(plainOfPut, name)
				case want:
					want = slices.Contains(plainNames, name) && (m == "GET" || m == "HEAD")
				}
				if why, h := ask(m, query, ""); (why == Yes) != want || want && h.Query != query || !want && why != Query {
					t.Errorf("%s ?%s: %d", m, query, why)
				}
			}
		}
	}
}
