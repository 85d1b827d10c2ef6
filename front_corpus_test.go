package main

import (
	"maps"
	"math/rand/v2"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/front/plain"
	"raftkv/internal/sim"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// frontCase is what a client sends on one connection.
type frontCase struct{ name, sent string }

// request makes a request to this machine. Lines are of its header, the last its body.
func frontRequest(line string, lines ...string) string {
	body := ""
	if len(lines) > 0 {
		lines, body = lines[:len(lines)-1], lines[len(lines)-1]
	}
	return line + " HTTP/1.1\r\nHost: 127.0.0.1:9121\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n" + body
}

// frontPut writes value under a key.
func frontPut(path, value string, lines ...string) string {
	return frontRequest("PUT "+path, slices.Concat(lines, []string{"Content-Length: " + strconv.Itoa(len(value)), value})...)
}

// What a browser sends beside what says for whom it asks.
var browserFields = []string{
	"Connection: keep-alive",
	"Cache-Control: max-age=0",
	`sec-ch-ua: "Chromium";v="130", "Google Chrome";v="130", "Not?A_Brand";v="99"`,
	"sec-ch-ua-mobile: ?0",
	`sec-ch-ua-platform: "Linux"`,
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
	"Accept-Encoding: gzip, deflate, br, zstd",
	"Accept-Language: en-GB,en;q=0.9,de;q=0.8",
}

// frontBrowsers are a browser's requests: pages that somebody opens or is sent to, and
// those of pages of this node and of others.
func frontBrowsers() (cases []frontCase) {
	page := func(site string) []string {
		return slices.Concat(browserFields, []string{
			"Upgrade-Insecure-Requests: 1", "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
			"Sec-Fetch-Site: " + site, "Sec-Fetch-Mode: navigate", "Sec-Fetch-User: ?1", "Sec-Fetch-Dest: document",
		})
	}
	script := func(site, origin string, more ...string) []string {
		fields := slices.Concat(browserFields, []string{
			"Accept: */*", "Sec-Fetch-Site: " + site, "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty", "Referer: " + origin + "/",
		})
		return append(fields, more...)
	}
	const own, other = "http://127.0.0.1:9121", "https://other.example"
	get := func(fields ...string) string { return frontRequest("GET /k", append(fields, "")...) }
	add := func(name string, sent ...string) { cases = append(cases, frontCase{name, strings.Join(sent, "")}) }
	add("browser opens", get(page("none")...))
	add("browser is sent from elsewhere", get(page("cross-site")...))
	add("browser fetches", get(script("same-origin", own)...), frontRequest("HEAD /k", append(script("same-origin", own), "")...))
	add("browser writes", frontPut("/k", "v", script("same-origin", own, "Origin: "+own, "Content-Type: text/plain;charset=UTF-8")...),
		frontRequest("DELETE /v1/kv/k", append(script("same-origin", own, "Origin: "+own), "")...))
	add("browser writes if", frontPut("/k", "v", script("same-origin", own, "Origin: "+own, `If-Match: "2"`)...))
	add("browser fetches across", get(script("cross-site", other, "Origin: "+other)...))
	add("browser fetches across ports", get(script("same-site", "http://127.0.0.1:8080", "Origin: http://127.0.0.1:8080")...))
	add("browser asks first", frontRequest("OPTIONS /k", append(script("cross-site", other, "Origin: "+other, "Access-Control-Request-Method: PUT"), "")...))
	add("browser writes across", frontPut("/k", "v", script("cross-site", other, "Origin: "+other)...), get())
	add("browser deletes across", frontRequest("DELETE /v1/kv/k", append(script("same-site", other, "Origin: "+other), "")...))
	const app = "https://app.example"
	add("an allowed page asks first", frontRequest("OPTIONS /k", append(script("cross-site", app, "Origin: "+app, "Access-Control-Request-Method: PUT"), "")...))
	add("an allowed page", get(script("cross-site", app, "Origin: "+app)...), frontPut("/k", "v", script("cross-site", app, "Origin: "+app)...),
		frontRequest("GET /none", append(script("cross-site", app, "Origin: "+app), "")...), frontRequest("OPTIONS /k", append(script("cross-site", app, "Origin: "+app), "")...))
	add("embeds", get(slices.Concat(browserFields, []string{"Accept: image/*,*/*", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"})...), get())
	add("old browser writes across", frontPut("/k", "v", "Origin: "+other), get())
	add("old browser writes", frontPut("/k", "v", "Origin: "+own))
	add("sandbox writes", frontPut("/k", "v", "Origin: null"))
	add("Firefox", get("User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0", "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
		"Accept-Language: en-US,en;q=0.5", "Accept-Encoding: gzip, deflate, br, zstd", "DNT: 1", "Sec-GPC: 1", "Connection: keep-alive",
		"Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: none", "Priority: u=0, i"))
	return cases
}

// frontCalls are more of what the API takes, and refuses.
func frontCalls() (cases []frontCase) {
	add := func(name string, sent ...string) { cases = append(cases, frontCase{name, strings.Join(sent, "")}) }
	get := func(target string, lines ...string) string { return frontRequest("GET "+target, append(lines, "")...) }
	rm := func(target string, lines ...string) string {
		return frontRequest("DELETE "+target, append(lines, "")...)
	}
	add("both forms", get("/k"), get("/v1/kv/k"), get("/v1/kv/v1"), frontRequest("HEAD /k"), frontRequest("HEAD /v1/kv/none"), get("/none"))
	add("write and read", frontPut("/a", "1"), get("/a"), frontPut("/a", ""), get("/a"), rm("/v1/kv/a"), get("/a"), rm("/v1/kv/a"))
	add("conditions of reads", get("/k", `If-None-Match: "1"`), get("/k", `If-None-Match: "1", "2", W/"3", "4", "5", "6"`), get("/k", "If-None-Match: *"),
		get("/none", "If-None-Match: *"), get("/k", `If-Match: "99"`), get("/k", "If-Match: *"), get("/k", "If-Match:"), get("/k", "If-None-Match: 1"),
		get("/k", `If-Match: "1`), frontRequest("HEAD /k", "If-None-Match: *", ""), frontRequest("HEAD /k", "If-Match: x", ""))
	add("conditions of writes", frontPut("/k", "v", `If-Match: "99"`), frontPut("/k", "v", "If-Match: *"), frontPut("/k", "v", "If-None-Match: *"),
		frontPut("/new", "v", "If-None-Match: *"), frontPut("/none", "v", "If-Match: *"), frontPut("/k", "v", `If-Match: W/"1"`), frontPut("/k", "v", `If-Match: "a"`),
		frontPut("/k", "v", `If-Match: "1", "2"`), frontPut("/k", "v", `If-None-Match: "1"`), frontPut("/k", "v", "If-Match: *", "If-None-Match: *"),
		frontPut("/k", "v", "If-Match: "), frontPut("/k", "v", "If-Match: ,"), rm("/v1/kv/k", `If-Match: "99"`), rm("/v1/kv/k", "If-Match: *"), rm("/v1/kv/k", "If-None-Match: *"))
	add("empty If-Match", frontPut("/k", "v", "If-Match:"), get("/k"))
	add("several lines of If-Match", frontPut("/k", "v", `If-Match: "1"`, `If-Match: "2"`), get("/k", `If-None-Match: "98"`, "If-None-Match: *"))
	add("consistency", get("/k?consistency=stale"), get("/k?consistency=linearizable"), get("/none?consistency=stale"), frontRequest("HEAD /k?consistency=stale"))
	add("min_revision", get("/k?min_revision=1"), get("/none?min_revision=0"), get("/k?min_revision=6&max_age=1h"), get("/k?min_revision=006"), frontRequest("HEAD /k?min_revision=1"))
	add("as text", get("/k?as=text"), get("/none?as=text"), get("/k?as=text", "If-None-Match: *"), get("/k?as=text&consistency=stale"), get("/k?min_revision=1&as=text"))
	add("times to live", frontPut("/t?ttl=30s", "v"), get("/t"), frontPut("/t?ttl=30", "v"), frontPut("/t?ttl=99ms", "v"), frontPut("/t?ttl=9000h", "v"), frontPut("/t?ttl=", "v"),
		frontPut("/t?ttl=%31s", "v"), frontPut("/t?ttl=1s&ttl=1s", "v"), frontPut("/v1/kv/u?ttl=1s", "v", "If-None-Match: *"), frontPut("/t?ttl=1s", "v", `If-Match: "99"`))
	add("leases", frontPut("/t?lease=1", "v"), frontPut("/t?lease=2", "v"), frontPut("/t?lease=0", "v"), frontPut("/t?lease=01", "v"), frontPut("/t?lease=1&ttl=1s", "v"),
		frontPut("/t?lease=99999999999999999999", "v"), get("/t?lease=1"), rm("/v1/kv/t?lease=1"), rm("/v1/kv/t"))
	add("ages", get("/k?consistency=stale&max_age=1h"), get("/k?consistency=stale&max_age=1ms"), get("/k?max_age=1h"), get("/k?consistency=stale&max_age=30"),
		get("/k?consistency=stale&max_age=0s"), get("/k?consistency=stale&max_age=..s"), get("/k?consistency=stale&max_age=9000h"), get("/k?max_age=1h&consistency=linearizable"))
	for _, q := range []string{"?min_revision=1&consistency=linearizable", "?min_revision=99999999999999999999", "?min_revision=1&min_revision=1", "?min_revision=x", "?min_revision=", "?as=html", "?as", "?as=text&as=text", "?%61s=text", "?max_age=%31h",
		"?", "?consistency", "?consistency=", "?consistency=Stale", "?consistency=stale&consistency=stale", "?consistency=stale&x=1", "?x", "?ttl=30s", "?consistency=%73tale", "?;", "?%zz", "?consistency=stale#"} {
		add("query "+q, get("/k"+q), frontPut("/k"+q, "v"), rm("/v1/kv/k"+q))
	}
	long := strings.Repeat("k", config.MaxKeyBytes)
	for _, p := range []string{
		"//", "//a", "/a//b", "/a/../b", "/..", "/a%2Fb", "/a%2fb", "/%2F", "/%", "/%2", "/%zz", "/%00", "/a%00b", "/%FF", "/%C3%BC", "/\xc3\xbc", "/a|b", "/a^b", "/[a]",
		"/a%20b", "/a+b", "/;a=b", "/a:b", "/:80", "/1", "/v1", "/v1/", "/v1/kv", "/v1/kv/", "/v1/kv//", "/v1/kv/%00", "/v1/status", "/v1/members", "/v1/none", "/ui",
		"/ui/x", "/%75i", "/ui%2Fx", "/metrics", "/livez", "/readyz", "/debug", "/debug/pprof/", "/", "*", "k", "", "127.0.0.1:9121", "http://127.0.0.1:9121/k",
		"http://evil.example/k", "http:///k", "http:k", "/a#b", "/a b", "/\x00", "/\x7f", "/\xff", "/" + long, "/" + long + "k", "/v1/kv/" + strings.Repeat("%6b", config.MaxKeyBytes),
	} {
		name := p[:min(len(p), 30)]
		add("target "+name, get(p), get("/k"))
		add("write to "+name, frontPut(p, "v"), rm(p), get("/k"))
	}
	for _, h := range []string{"localhost", "LOCALHOST:9121", "[::1]:9121", "[::1]", "::1", "kv.example", "KV.example:80", "node1.example:9121", "evil.example", "localhost.evil.example", "127.0.0.1:9121:80",
		"localhost:", "localhost:a", "localhost:a b", "localhost:/", "localhost:@", "localhost:<", "localhost:\"", "[localhost]", "[[localhost]]:1", "a b", "kv.example@evil", "127.0.0.1, evil.example", "", "%6cocalhost", "localhost:\xff"} {
		add("host "+h, "GET /k HTTP/1.1\r\nHost: "+h+"\r\n\r\n", "PUT /k HTTP/1.1\r\nContent-Length: 1\r\nHost: "+h+"\r\n\r\nx")
	}
	add("methods", get("/k"), frontRequest("OPTIONS /k"), frontRequest("PATCH /k"), frontRequest("TRACE /k"), frontRequest("get /k"), get("/k"))
	add("a node", frontRequest("POST /4", "Content-Length: 21", "http://127.0.0.1:9999"), get("/v1/members"), rm("/4"), rm("/k"))
	add("sizes", frontPut("/k", strings.Repeat("s", 3000)), get("/k"), frontPut("/k", strings.Repeat("s", 4096)), get("/k"), frontPut("/k", strings.Repeat("m", 20_000)), get("/k"),
		frontRequest("HEAD /k"), frontPut("/k", strings.Repeat("l", plain.MaxBody-1)), get("/k"), frontPut("/k", strings.Repeat("l", plain.MaxBody)), get("/k"))
	add("larger", frontPut("/k", strings.Repeat("l", plain.MaxBody+1)), get("/k"))
	add("largest", frontPut("/k", strings.Repeat("l", frontMaxValue)), get("/k"))
	add("too large", frontPut("/k", strings.Repeat("l", frontMaxValue+1)), get("/k"))
	add("large and a condition", frontPut("/k", strings.Repeat("l", 20_000), `If-Match: "99"`), frontPut("/k", strings.Repeat("l", 20_000), "If-Match:"), get("/k"))
	add("large value", get("/large"), get("/large", "If-None-Match: *"), frontRequest("HEAD /large"), get("/large"))
	add("long head", frontRequest("GET /k", "User-Agent: "+strings.Repeat("a", 3900), ""), frontRequest("GET /k", "User-Agent: "+strings.Repeat("a", 5000), ""), get("/k"))
	add("longest head", get("/k"), frontRequest("GET /k", "User-Agent: "+strings.Repeat("a", 80_000), ""), get("/k"))
	return cases
}

// frontTricks are what somebody sends who wants two readers to see different requests.
func frontTricks() (cases []frontCase) {
	const hidden = "GET /k HTTP/1.1\r\nHost: 127.0.0.1:9121\r\n\r\n"
	add := func(name string, sent ...string) { cases = append(cases, frontCase{name, strings.Join(sent, "")}) }
	put := func(body string, lines ...string) string { return frontRequest("PUT /k", append(lines, body)...) }
	chunked := "5\r\nhello\r\n0\r\n\r\n"

	add("CL and TE", put(chunked, "Content-Length: 4", "Transfer-Encoding: chunked"), hidden)
	add("TE and CL", put(chunked, "Transfer-Encoding: chunked", "Content-Length: 15"), hidden)
	for _, te := range []string{"Transfer-Encoding: chunked", "transfer-encoding:chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, chunked",
		"Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:\tchunked", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
		"Transfer-Encoding:\r\n chunked", "Transfer-Encoding:\x0bchunked", "X: y\nTransfer-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "\tTransfer-Encoding: chunked", "Transfer_Encoding: chunked", "Transfer-Encoding: chunked\x00", "TE: chunked", "Transfer-Encoding:"} {
		add("only "+te, put(chunked, te), hidden)
		add("CL and "+te, put(chunked, "Content-Length: 15", te), hidden)
	}
	for _, cl := range []string{"+5", "-5", "05", "005", "5 ", " 5", "5\t", "5, 5", "5,5", "5, 6", "0x5", "5.0", "5e0", "5;", "", "five", "\xef\xbc\x95", "99999999999999999999", "18446744073709551621", "5\x00", "5\r", "\"5\"", "1_0", "5 5"} {
		add("CL "+cl, put("hello", "Content-Length: "+cl), hidden)
		add("GET with CL "+cl, frontRequest("GET /k", "Content-Length: "+cl, "hello"), hidden)
	}
	add("two CLs", put("hello", "Content-Length: 5", "Content-Length: 5"), hidden)
	add("two CLs that differ", put("hello"+hidden, "Content-Length: 5", "Content-Length: 46"), hidden)
	add("two CLs that differ, the other way", put("hello"+hidden, "Content-Length: 46", "Content-Length: 5"), hidden)
	add("CL 0 and a body", put(hidden, "Content-Length: 0"))
	add("no CL and a body", put(hidden))
	add("folded CL", put("hello", "Content-Length:\r\n 5"), hidden)
	add("CL with a fold", put("hello", "Content-Length: 5\r\n 0"), hidden)
	add("CL with a space before the colon", put("hello", "Content-Length : 5"), hidden)
	add("CL and bare LF", put("hello", "X: y\nContent-Length: 5"), hidden)
	add("CL and bare CR", put("hello", "X: y\rContent-Length: 5"), hidden)
	add("body of GET", frontRequest("GET /k", "Content-Length: 5", "hello"), hidden)
	add("body of HEAD", frontRequest("HEAD /k", "Content-Length: 46", hidden), hidden)
	add("body of DELETE", frontRequest("DELETE /v1/kv/k", "Content-Length: 5", "hello"), hidden)
	add("body too short", put("hell", "Content-Length: 5"))
	add("body of nothing", put("", "Content-Length: 5"))
	add("large body too short", put(strings.Repeat("v", 10_000), "Content-Length: 20000"))
	add("body too long", put("hello!", "Content-Length: 5"), hidden)
	add("chunked", put(chunked, "Transfer-Encoding: chunked"), hidden)
	add("chunks with extensions and trailers", put("5;a=b\r\nhello\r\n0\r\nTrailer: x\r\nHost: evil\r\n\r\n", "Transfer-Encoding: chunked", "Trailer: Trailer"), hidden)
	add("bad chunk", put("5\r\nhelloX\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), hidden)
	add("chunk that is not there", put("5\r\nhel", "Transfer-Encoding: chunked"))
	add("expects", put("hello", "Content-Length: 5", "Expect: 100-continue"), hidden)
	add("expects something else", put("hello", "Content-Length: 5", "Expect: 200-ok"), hidden)

	get := func(lines ...string) string { return frontRequest("GET /k", append(lines, "")...) }
	for _, line := range []string{"X-Unknown: 1", "no colon", ":", ": value", "Host: evil.example", "host: 127.0.0.1:9121", " folded", "\tfolded", "User-Agent: a\r\n b", "User-Agent: a\x00b", "User-Agent: a\rb", "User-Agent: a\nb",
		"User-Agent: a\r\r", "User-Agent: \xff", "User-Agent: \x7f", "User\xffAgent: a", "User Agent: a", "Accept\x00: */*", "Accept : */*", "(): a", "Connection: upgrade", "Connection: close, keep-alive", "Connection: \"close\"",
		"Connection: Host", "Connection:", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Upgrade: websocket", "Upgrade: h2c", "Range: bytes=0-1", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT", "If-Range: \"1\"",
		"Accept: application/json", "Accept:", "Cookie: a=b", "Authorization: Bearer t", "Idempotency-Key: \"a\"", "Content-Range: bytes 0-1/2", "Content-Encoding: gzip", "Last-Event-ID: 3",
		"Sec-Fetch-Site:", "Sec-Fetch-Site: x", "Origin:", "Origin: null", "X-Forwarded-Host: evil.example", "Forwarded: host=evil.example", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /v1/members"} {
		add("field "+line, get(line), hidden)
		add("write with field "+line, frontPut("/k", "hello", line), hidden)
	}
	add("doubled Host", "GET /k HTTP/1.1\r\nHost: 127.0.0.1:9121\r\nHost: 127.0.0.1:9121\r\n\r\n", hidden)
	add("Host first evil", "GET /k HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1:9121\r\n\r\n", hidden)
	add("no Host", "GET /k HTTP/1.1\r\n\r\n", hidden)
	add("no fields at all", "GET /k\r\n\r\n", hidden)
	add("space before the first field", "GET /k HTTP/1.1\r\n Host: 127.0.0.1:9121\r\n\r\n", hidden)
	for _, v := range []string{"HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3", "http/1.1", "HTTP/1.1 ", " HTTP/1.1", "HTTP/1.10", "HTTP/01.1", "HTTPS/1.1", "HTTP 1.1", "HTTP/1.1\x00", ""} {
		add("version "+v, "GET /k "+v+"\r\nHost: 127.0.0.1:9121\r\n\r\n", hidden)
	}
	add("1.0 and keep-alive", "GET /k HTTP/1.0\r\nConnection: keep-alive\r\nHost: 127.0.0.1:9121\r\n\r\n", hidden)
	add("1.0 without Host", "GET /k HTTP/1.0\r\n\r\n", hidden)
	for _, almost := range []string{"PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", "PRI * HTTP/2.0\r\nHost: localhost\r\n\r\nSM\r\n\r\n", "PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n"} {
		add("almost HTTP/2 "+almost, almost, hidden)
		if !strings.HasPrefix(http2Beginning, almost) { // else the rest is waited for
			add("almost HTTP/2 later "+almost, hidden, almost)
		}
	}
	add("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x9e\x0d\x0a\x0d\x0a\x00")
	add("SSH", "SSH-2.0-OpenSSH_9.2p1\r\n")
	add("Redis", "*1\r\n$4\r\nPING\r\n")
	add("proxied", "CONNECT 127.0.0.1:9121 HTTP/1.1\r\nHost: 127.0.0.1:9121\r\n\r\n", hidden)
	add("bare LFs", "GET /k HTTP/1.1\nHost: 127.0.0.1:9121\n\n", hidden)
	add("one bare LF", "GET /k HTTP/1.1\r\nHost: 127.0.0.1:9121\n\r\n", hidden)
	add("ends with a bare LF", "GET /k HTTP/1.1\r\nHost: 127.0.0.1:9121\r\n\n", hidden)
	add("bare CRs", "GET /k HTTP/1.1\rHost: 127.0.0.1:9121\r\r", hidden)
	add("CRLF before", "\r\n"+hidden, hidden)
	add("CRLF behind", frontPut("/k", "v")+"\r\n"+hidden)
	add("CRLF behind a read", hidden+"\r\n\r\n"+hidden)
	add("nothing")
	add("a byte", "G")
	add("half a line", "GET /k HT")
	add("half a head", "GET /k HTTP/1.1\r\nHost: 127")
	add("whole and half", hidden, "GET /k HTTP/1.1\r\nHo")
	add("whole and garbage", hidden, "\x00\x01\x02")
	add("behind close", get("Connection: close"), hidden)
	add("behind a write and close", frontPut("/k", "1", "Connection: close"), frontPut("/k", "2"))
	add("pipelined", frontPut("/p", "1"), "GET /p HTTP/1.1\r\nHost: localhost\r\n\r\n", frontRequest("HEAD /p"), frontPut("/p", "2", "If-Match: *"), get("If-None-Match: *"),
		frontRequest("DELETE /v1/kv/p"), frontRequest("GET /p"), hidden)
	add("pipelined to another host", hidden, "GET /k HTTP/1.1\r\nHost: evil.example\r\n\r\n", hidden)
	add("pipelined, handed over between", hidden, frontRequest("GET /v1/status"), hidden, put(chunked, "Transfer-Encoding: chunked"), hidden, frontRequest("BREW /k"), hidden)
	add("pipelined POST", frontRequest("POST /k", "Content-Length: 1", "x"), "\r\n", hidden)
	add("many", strings.Repeat(hidden, 50), strings.Repeat(frontPut("/p", "value"), 50), strings.Repeat("GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n", 20))
	return cases
}

// frontCorpus is all that there is to begin with.
func frontCorpus(t testing.TB) (cases []frontCase) {
	t.Helper()
	clients := frontClients(t)
	for _, name := range slices.Sorted(maps.Keys(clients)) {
		cases = append(cases, frontCase{name, string(clients[name])})
	}
	return slices.Concat(cases, frontBrowsers(), frontCalls(), frontTricks())
}

// Guarantee: to the clients that there are, and to whoever tries to trick it, the front
// answers as net/http does; and it serves more than half of what is in order.
func TestFrontCorpus(t *testing.T) {
	valid, served := 0, 0
	for _, c := range frontCorpus(t) {
		t.Run(c.name, func(t *testing.T) {
			r := newReference(t, []byte(c.sent))
			counts := r.compare(t, 0)
			for _, split := range []int{len(c.sent) / 2, max(len(c.sent)-1, 0)} {
				if other := r.compareInPieces(t, split); other["served"] != counts["served"] {
					t.Errorf("split at %d %d requests are served, else %d", split, other["served"], counts["served"])
				}
			}
			for _, a := range r.answers {
				// What is refused for how it is written, or for what it asks, is not in order.
				switch a.status {
				case http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusNotModified, http.StatusNotFound, http.StatusPreconditionFailed:
					valid++
				}
			}
			served += counts["served"]
		})
	}
	if t.Logf("of %d requests in order %d were served by the front", valid, served); served*2 < valid {
		t.Errorf("of %d requests in order the front has served %d", valid, served)
	}
}

// Guarantee: it makes no difference how what is sent comes apart on its way.
func TestFrontAnySplit(t *testing.T) {
	r := newReference(t, []byte(frontPut("/k", "hello", "If-Match: *")+frontRequest("HEAD /k")+frontRequest("GET /v1/members")+frontRequest("GET /k")))
	for split := range len(r.sent) {
		if counts := r.compareInPieces(t, split); counts["served"] != 2 {
			t.Errorf("split at %d: %d requests are served, want those before the one that is handed over", split, counts["served"])
		}
	}
}

// frontMixer makes requests of the lines of all others.
type frontMixer struct {
	*rand.Rand
	lines, fields []string
}

func newFrontMixer(t testing.TB, seed uint64) *frontMixer {
	t.Helper()
	m := &frontMixer{Rand: rand.New(rand.NewPCG(seed, 11))}
	for _, c := range frontCorpus(t) {
		for line := range strings.SplitSeq(c.sent, "\r\n") {
			switch {
			case line == "", len(line) > 500:
			case strings.Contains(line, " HTTP/1.1"):
				m.lines = append(m.lines, line)
			default:
				m.fields = append(m.fields, line)
			}
		}
	}
	return m
}

func (m *frontMixer) one(of []string) string { return of[m.IntN(len(of))] }

// request returns one that is mostly in order: else few would get past their first fault.
func (m *frontMixer) request() string {
	often := func() bool { return m.IntN(10) < 9 }
	line := m.one([]string{"GET /k", "PUT /k", "HEAD /v1/kv/k", "DELETE /v1/kv/k", "GET /large", "PUT /v1/kv/n"}) + " HTTP/1.1"
	if !often() {
		line = m.one(m.lines)
	}
	fields := []string{line}
	if often() {
		fields = append(fields, "Host: localhost")
	}
	body := ""
	if strings.HasPrefix(line, "PUT") == often() {
		body = strings.Repeat("v", m.IntN(10))
		if !often() {
			body = strings.Repeat("v", m.IntN(6000)) // more than a buffer has room for
		}
		fields = append(fields, "Content-Length: "+strconv.Itoa(len(body)))
	}
	for m.IntN(2) == 0 {
		fields = append(fields, m.one(m.fields))
	}
	m.Shuffle(len(fields)-1, func(i, j int) { fields[i+1], fields[j+1] = fields[j+1], fields[i+1] })
	return strings.Join(fields, "\r\n") + "\r\n\r\n" + body
}

// Guarantee: that of TestFrontCorpus, for what nobody has thought of.
func TestSoakFrontMixes(t *testing.T) {
	m := newFrontMixer(t, sim.Seed(t))
	requests, served := 0, 0
	for range testkit.SoakOr(300, 100_000) {
		var sent strings.Builder
		for range 1 + m.IntN(4) {
			sent.WriteString(m.request())
		}
		r := newReference(t, []byte(sent.String()))
		requests += len(r.requests)
		served += r.compare(t, m.IntN(sent.Len()))["served"]
	}
	t.Logf("%d requests, of which the front has served %d", requests, served)
	if served*3 < requests {
		t.Error("most are handed over: that is no test")
	}
}
