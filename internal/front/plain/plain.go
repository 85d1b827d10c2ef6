package front

import (
	"bytes"
	"net/http"
	"net/url"
	"raftkv/internal/api"
	"slices"
	"strings"
)

// The table of plain shapes. Whoever adds a parameter or a header to requests for keys
// in package api enters it here, or it is handed over.

// plainMethods are the methods, each with the space behind it.
var plainMethods = []string{"GET ", "HEAD ", "PUT ", "DELETE "}

// plainParams are the parameters of reads in the query, with their values.
var plainParams = map[string][]string{"consistency": {"linearizable", "stale"}}

// plainFields are the fields of a header, in lower case, and what is done with each.
// Those that are ignored mean nothing to package api and to net/http either.
var plainFields = map[string]func(h *head, value []byte) bool{
	"host":           (*head).setHost,
	"content-length": (*head).setLength,
	"connection":     (*head).setConnection,
	"if-match":       func(h *head, v []byte) bool { return setOnce(&h.match, v) },
	"if-none-match":  func(h *head, v []byte) bool { return setOnce(&h.noneMatch, v) },
	"origin":         func(h *head, _ []byte) bool { h.origin = true; return true },
	"sec-fetch-site": (*head).setSite,

	// Who does not take any type may want an item in place of its value one day.
	"accept": func(_ *head, v []byte) bool { return bytes.Contains(v, []byte("*/*")) },

	"accept-encoding": ignore, "accept-language": ignore, "cache-control": ignore, "content-type": ignore,
	"dnt": ignore, "pragma": ignore, "priority": ignore, "referer": ignore, "sec-ch-ua": ignore, "sec-ch-ua-mobile": ignore,
	"sec-ch-ua-platform": ignore, "sec-fetch-dest": ignore, "sec-fetch-mode": ignore, "sec-gpc": ignore, "user-agent": ignore,
	"traceparent": ignore, "tracestate": ignore, "x-forwarded-for": ignore, "x-forwarded-host": ignore, "x-forwarded-proto": ignore,
	"x-real-ip": ignore, "x-request-id": ignore,
}

// longestField is the length of the longest name in plainFields.
const longestField = 18

// reason says why a request is not plain.
type reason int

const (
	starting reason = iota // the node does not serve yet
	method
	target
	query
	version
	field // of the header
	body
	size    // of the head, or of the body
	form    // anything else in how it is written
	host    // is not one of this node's, or is missing
	slow    // the body does not come
	reasons = int(iota)

	plain reason = -1 // it is
	more  reason = -2 // more of it has to come to tell
)

func (r reason) String() string {
	return [reasons]string{"starting", "method", "target", "query", "version", "header", "body", "size", "form", "host", "slow"}[r]
}

// head is the plain head of a request.
type head struct {
	method           string
	key, query       string
	host             []byte // within what was read
	match, noneMatch []string
	length           int64 // of the body
	hasLength        bool
	connection       bool // has Connection
	close            bool // which is close
	origin           bool // has Origin
	site             int8 // Sec-Fetch-Site: 0 has none, 1 is the same site, 2 is another
	bytes            int  // of the head
}

var endOfHead = []byte("\r\n\r\n")

// parse reads the head at the beginning of b: plain, more, or the reason why it is not
// plain.
func (h *head) parse(b []byte) reason {
	*h = head{}
	end := bytes.Index(b, endOfHead)
	if end < 0 {
		return begins(b)
	}
	h.bytes = end + len(endOfHead)
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n")) // each line of rest has its end
	if why := h.parseLine(line); why != plain {
		return why
	}
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if why := h.parseField(line); why != plain {
			return why
		}
	}
	return h.judge()
}

// begins tells whether b may be the beginning of a plain head. What never becomes one
// must not be waited for.
func begins(b []byte) reason {
	if !slices.ContainsFunc(plainMethods, func(m string) bool {
		n := min(len(m), len(b))
		return m[:n] == string(b[:n])
	}) {
		return method
	}
	for i := 0; ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return more
		}
		if i += n; b[i-1] != '\r' { // not at the beginning: there stands a method
			return form
		}
	}
}

// parseLine reads the request line.
func (h *head) parseLine(line []byte) reason {
	i := slices.IndexFunc(plainMethods, func(m string) bool { return len(line) > len(m) && string(line[:len(m)]) == m })
	if i < 0 {
		return method
	}
	h.method = strings.TrimSuffix(plainMethods[i], " ")
	line = line[len(plainMethods[i]):]
	url, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !ok {
		return version
	}
	path, params, hasQuery := bytes.Cut(url, []byte("?"))
	if !h.setKey(path) {
		return target
	}
	if hasQuery && !h.setQuery(params) {
		return query
	}
	return plain
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

func (h *head) setKey(path []byte) bool {
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
	key, ok := api.KeyOf(h.method, text)
	h.key = key
	return ok && err == nil
}

func (h *head) setQuery(params []byte) bool {
	h.query = string(params)
	if h.method != http.MethodGet && h.method != http.MethodHead {
		return false
	}
	name, value, _ := strings.Cut(h.query, "=") // more than one is not plain yet
	return slices.Contains(plainParams[name], value)
}

// parseField reads a line of the header.
func (h *head) parseField(line []byte) reason {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) > longestField {
		return field
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
		return field
	}
	for _, c := range value {
		if (c < ' ' || c > '~') && c != '\t' {
			return form
		}
	}
	if !set(h, bytes.Trim(value, " \t")) {
		return field
	}
	return plain
}

func ignore(*head, []byte) bool { return true }

func setOnce(lines *[]string, value []byte) bool {
	if *lines != nil {
		return false // RFC 9110 §5.3: lines that belong together
	}
	*lines = []string{string(value)}
	return true
}

func (h *head) setHost(value []byte) bool {
	if h.host != nil || len(value) == 0 {
		return false
	}
	for _, c := range value { // net/http refuses others, also in what should be a port
		if (!inPath[c] || c == '/' || c == '@') && c != '[' && c != ']' {
			return false
		}
	}
	h.host = value
	return true
}

// setLength takes what net/http could take in one way alone.
func (h *head) setLength(value []byte) bool {
	const digits = 6 // as many has MaxBody, and one more
	if h.hasLength || len(value) == 0 || len(value) > digits || len(value) > 1 && value[0] == '0' {
		return false
	}
	h.hasLength = true
	for _, c := range value {
		if c < '0' || c > '9' {
			return false
		}
		h.length = h.length*10 + int64(c-'0')
	}
	return true
}

func (h *head) setConnection(value []byte) bool {
	if h.connection {
		return false
	}
	h.connection = true
	h.close = bytes.EqualFold(value, []byte("close"))
	return h.close || bytes.EqualFold(value, []byte("keep-alive"))
}

func (h *head) setSite(value []byte) bool {
	if h.site != 0 {
		return false
	}
	if h.site = 2; string(value) == "same-origin" || string(value) == "none" {
		h.site = 1
	}
	return true
}

// judge decides what the lines tell only together.
func (h *head) judge() reason {
	switch {
	case h.host == nil:
		return host
	case h.site == 2, h.site == 0 && h.origin:
		return field // a browser's, which may have been tricked
	case h.method == http.MethodPut && !h.hasLength, h.method != http.MethodPut && h.length > 0:
		return body
	}
	return plain
}
