// Package plain answers: is a request for a key one of the plain shapes, and what does its
// head say? Its table lists the shapes. Whatever is not in it is not plain.
package plain

import (
	"bytes"
	"net/http"
	"net/url"
	"raftkv/internal/api"
	"slices"
	"strings"
)

// MaxBody bounds the body of a plain request, in bytes.
const MaxBody = 64 << 10

// The table of plain shapes. Whoever adds a parameter or a header to requests for keys
// in package api enters it here, or it is handed over.

// plainMethods are the methods, each with the space behind it.
var plainMethods = []string{"GET ", "HEAD ", "PUT ", "DELETE "}

// plainParams are the parameters in the query by method, with the values that are plain.
// Each is there once at most.
var plainParams = map[string][]plainParam{
	http.MethodGet: ofReads, http.MethodHead: ofReads,
	http.MethodPut: {
		{"ttl", func(v string) bool { return only(v, "0123456789.hmsun") }},
		{"lease", func(v string) bool { return only(v, "0123456789") }},
	},
}

var ofReads = []plainParam{
	{"consistency", func(v string) bool { return v == "linearizable" || v == "stale" }},
	{"min_revision", func(v string) bool { return only(v, "0123456789") }},
	{"max_age", func(v string) bool { return only(v, "0123456789.hmsun") }},
	{"as", func(v string) bool { return v == "text" }},
}

type plainParam struct {
	name  string
	plain func(value string) bool
}

// only reports whether a value has such characters, and no others.
func only(value, set string) bool { return value != "" && strings.Trim(value, set) == "" }

// plainFields are the fields of a header, in lower case, and what is done with each.
// Those that are ignored mean nothing to package api and to net/http either.
var plainFields = map[string]func(h *Head, value []byte) bool{
	"host":            (*Head).setHost,
	"content-length":  (*Head).setLength,
	"connection":      (*Head).setConnection,
	"if-match":        func(h *Head, v []byte) bool { return setOnce(&h.Match, v) },
	"if-none-match":   func(h *Head, v []byte) bool { return setOnce(&h.NoneMatch, v) },
	"idempotency-key": func(h *Head, v []byte) bool { return setOnce(&h.RequestKey, v) },
	"authorization":   (*Head).setAuthorization,
	"origin":          func(h *Head, _ []byte) bool { h.origin = true; return true },
	"sec-fetch-site":  (*Head).setSite,

	// Who does not take any type may want an item in place of its value one day.
	"accept": func(_ *Head, v []byte) bool { return bytes.Contains(v, []byte("*/*")) },

	"accept-encoding": ignore, "accept-language": ignore, "cache-control": ignore, "content-type": ignore,
	"dnt": ignore, "pragma": ignore, "priority": ignore, "referer": ignore, "sec-ch-ua": ignore, "sec-ch-ua-mobile": ignore,
	"sec-ch-ua-platform": ignore, "sec-fetch-dest": ignore, "sec-fetch-mode": ignore, "sec-gpc": ignore, "user-agent": ignore,
	"traceparent": ignore, "tracestate": ignore, "x-forwarded-for": ignore, "x-forwarded-host": ignore, "x-forwarded-proto": ignore,
	"x-real-ip": ignore, "x-request-id": ignore,
}

// longestField is the length of the longest name in plainFields.
const longestField = 18

// Reason says why a request is not plain.
type Reason int

// The reasons.
const (
	Starting Reason = iota // the node does not serve yet
	Method
	Target
	Query
	Version
	Field // of the header
	Body
	Size    // of the head, or of the body
	Form    // anything else in how it is written
	Host    // is not one of this node's, or is missing
	Slow    // the body does not come
	Reasons = int(iota)

	Yes  Reason = -1 // it is
	More Reason = -2 // more of it has to come to tell
)

func (r Reason) String() string {
	return [Reasons]string{"starting", "method", "target", "query", "version", "header", "body", "size", "form", "host", "slow"}[r]
}

// Head is the plain head of a request.
type Head struct {
	Method           string
	Key, Query       string
	Long             bool   // the key came as /v1/kv/KEY
	Host             []byte // within what was read
	Match, NoneMatch []string
	RequestKey       []string // Idempotency-Key
	Authorization    []byte   // as it stands there, within what was read; nil: there is none
	Length           int64    // of the body
	hasLength        bool
	connection       bool // has Connection
	Close            bool // which is close
	origin           bool // has Origin
	site             int8 // Sec-Fetch-Site: 0 has none, 1 is the same site, 2 is another
	Bytes            int  // of the head
}

var endOfHead = []byte("\r\n\r\n")

// Parse reads the head at the beginning of b: plain, more, or the reason why it is not
// Yes.
func (h *Head) Parse(b []byte) Reason {
	*h = Head{}
	end := bytes.Index(b, endOfHead)
	if end < 0 {
		return begins(b)
	}
	h.Bytes = end + len(endOfHead)
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n")) // each line of rest has its end
	if why := h.parseLine(line); why != Yes {
		return why
	}
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if why := h.parseField(line); why != Yes {
			return why
		}
	}
	return h.judge()
}

// begins tells whether b may be the beginning of a plain head. What never becomes one
// must not be waited for.
func begins(b []byte) Reason {
	if !slices.ContainsFunc(plainMethods, func(m string) bool {
		n := min(len(m), len(b))
		return m[:n] == string(b[:n])
	}) {
		return Method
	}
	for i := 0; ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return More
		}
		if i += n; b[i-1] != '\r' { // not at the beginning: there stands a method
			return Form
		}
	}
}

// parseLine reads the request line.
func (h *Head) parseLine(line []byte) Reason {
	i := slices.IndexFunc(plainMethods, func(m string) bool { return len(line) > len(m) && string(line[:len(m)]) == m })
	if i < 0 {
		return Method
	}
	h.Method = strings.TrimSuffix(plainMethods[i], " ")
	line = line[len(plainMethods[i]):]
	url, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !ok {
		return Version
	}
	path, params, hasQuery := bytes.Cut(url, []byte("?"))
	if !h.setKey(path) {
		return Target
	}
	if hasQuery && !h.setQuery(params) {
		return Query
	}
	return Yes
}

// inPath are the bytes that stand for themselves in a path (RFC 3986 §3.3).
var inPath = func() (set [256]bool) {
	for c := byte('0'); c <= 'z'; c++ {
		set[c] = c <= '9' || c >= 'a' || c >= 'A' && c <= 'Z'
	}
	for _, c := range []byte("-._~!$&'()*+,;=:@/") {
		set[c] = true
	}
	return set
}()

func (h *Head) setKey(path []byte) bool {
	escaped := false
	for _, c := range path {
		if escaped = escaped || c == '%'; !inPath[c] && c != '%' {
			return false
		}
	}
	if len(path) == 0 || path[0] != '/' {
		return false
	}
	text, err := string(path[1:]), error(nil)
	if escaped {
		text, err = url.PathUnescape(text)
	}
	ok := false
	h.Key, h.Long, ok = api.KeyOf(h.Method, text)
	return ok && err == nil
}

func (h *Head) setQuery(query []byte) bool {
	h.Query = string(query)
	params := plainParams[h.Method]
	seen := 0 // a bit for each parameter
	for rest, more := h.Query, true; more; {
		var param string
		param, rest, more = strings.Cut(rest, "&")
		name, value, _ := strings.Cut(param, "=")
		i := slices.IndexFunc(params, func(p plainParam) bool { return p.name == name })
		if i < 0 || seen&(1<<i) != 0 || !params[i].plain(value) {
			return false
		}
		seen |= 1 << i
	}
	return true
}

// parseField reads a line of the header.
func (h *Head) parseField(line []byte) Reason {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) > longestField {
		return Field
	}
	var lower [longestField]byte
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	set := plainFields[string(lower[:len(name)])]
	if set == nil {
		return Field
	}
	for _, c := range value {
		if (c < ' ' || c > '~') && c != '\t' {
			return Form
		}
	}
	if !set(h, bytes.Trim(value, " \t")) {
		return Field
	}
	return Yes
}

func ignore(*Head, []byte) bool { return true }

func setOnce(lines *[]string, value []byte) bool {
	if *lines != nil {
		return false // RFC 9110 §5.3: lines that belong together
	}
	*lines = []string{string(value)}
	return true
}

// setAuthorization takes one that says something: what another may mean, one reader decides.
func (h *Head) setAuthorization(value []byte) bool {
	if h.Authorization != nil || len(value) == 0 {
		return false
	}
	h.Authorization = value
	return true
}

func (h *Head) setHost(value []byte) bool {
	if h.Host != nil || len(value) == 0 {
		return false
	}
	for _, c := range value { // net/http refuses others, also in what should be a port
		if (!inPath[c] || c == '/' || c == '@') && c != '[' && c != ']' {
			return false
		}
	}
	h.Host = value
	return true
}

// setLength takes what net/http could take in one way alone.
func (h *Head) setLength(value []byte) bool {
	const digits = 6 // as many has MaxBody, and one more
	if h.hasLength || len(value) == 0 || len(value) > digits || len(value) > 1 && value[0] == '0' {
		return false
	}
	h.hasLength = true
	for _, c := range value {
		if c < '0' || c > '9' {
			return false
		}
		h.Length = h.Length*10 + int64(c-'0')
	}
	return true
}

func (h *Head) setConnection(value []byte) bool {
	if h.connection {
		return false
	}
	h.connection = true
	h.Close = bytes.EqualFold(value, []byte("close"))
	return h.Close || bytes.EqualFold(value, []byte("keep-alive"))
}

func (h *Head) setSite(value []byte) bool {
	if h.site != 0 {
		return false
	}
	if h.site = 2; string(value) == "same-origin" || string(value) == "none" {
		h.site = 1
	}
	return true
}

// judge decides what the lines tell only together.
func (h *Head) judge() Reason {
	switch {
	case h.Host == nil:
		return Host
	case h.site == 2, h.site == 0 && h.origin:
		return Field // a browser's, which may have been tricked
	case h.Method == http.MethodPut && !h.hasLength, h.Method != http.MethodPut && h.Length > 0:
		return Body
	}
	return Yes
}
