package openapitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Exchange is a request and its answer.
type Exchange struct {
	Method string
	URL    *url.URL
	Sent   http.Header // of the request
	Body   []byte      // of the request; nil: not known

	Status int
	Header http.Header
	Answer []byte
	Whole  bool // Answer is the body from its beginning to its end
}

func (x *Exchange) String() string {
	return fmt.Sprintf("%s %.200s, answered with %d %v %.300q", x.Method, x.URL, x.Status, x.Header, x.Answer)
}

// Check returns nil, or what of an exchange the document does not describe. Of a request
// it looks at what was accepted: the others may be wrong in any way.
func (d *Document) Check(x *Exchange) error {
	if noHTTP(x) {
		return nil
	}
	path := d.Path(x)
	params, err := url.ParseQuery(x.URL.RawQuery)
	if err == nil || x.Status >= 300 { // else it was accepted
		err = d.checkAt(x, path, params)
	}
	if err == nil && path == "/v1/kv" && params.Has("key") && d.paths[path][x.Method] != nil && x.Method != http.MethodPost {
		// A key in the query is the same as one in the path. What such a path cannot
		// answer, because it is of lists, the key cannot get here either.
		params.Del("key")
		err = d.checkAt(x, "/v1/kv/{key}", params)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; what the tests get is described in internal/openapi/openapi.yaml", x, err)
	}
	return nil
}

// noHTTP reports whether net/http has answered by itself: what is no HTTP, with a line of
// text, or what is about the server and no path. The document says so in words.
func noHTTP(x *Exchange) bool {
	if x.Method == http.MethodOptions && x.URL.Path == "*" {
		return x.Status == http.StatusOK && len(x.Answer) == 0
	}
	switch x.Status {
	case http.StatusBadRequest, http.StatusExpectationFailed, http.StatusRequestHeaderFieldsTooLarge, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		plain := strings.HasPrefix(x.Header.Get("Content-Type"), "text/plain") || x.Header["Content-Type"] == nil
		return plain && x.Header["Cache-Control"] == nil
	}
	return false
}

// Path returns the path of the document that a request is for; empty: none.
func (d *Document) Path(x *Exchange) string { return d.path(x.URL.Path) }

func (d *Document) path(path string) string {
	if d.paths[path] != nil && !strings.Contains(path, "{") {
		return path
	}
	if path == "" {
		return "/"
	}
	for _, family := range []string{"/v1/kv/{key}", "/v1/leases/{id}", "/v1/members/{id}", "/debug/pprof/{profile}"} {
		if prefix, _, _ := strings.Cut(family, "{"); strings.HasPrefix(path, prefix) {
			return family
		}
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "v1", "ui", "metrics", "livez", "readyz", "debug":
		return ""
	}
	if !strings.HasPrefix(path, "/") {
		return ""
	}
	return "/{key}"
}

func (d *Document) checkAt(x *Exchange, path string, params url.Values) error {
	if x.Method == http.MethodOptions && x.Status == http.StatusNoContent {
		return d.checkPreflight(x)
	}
	o := d.paths[path][x.Method]
	if o == nil {
		if x.Status == http.StatusMethodNotAllowed {
			if err := d.checkAllow(path, x.Header.Get("Allow")); err != nil {
				return err
			}
		}
		return d.checkAnswer(x, d.every[strconv.Itoa(x.Status)])
	}
	if err := d.checkAnswer(x, o.answers[strconv.Itoa(x.Status)]); err != nil {
		return fmt.Errorf("%s: %w", o.id, err)
	}
	if x.Status < 200 || x.Status > 299 {
		return nil
	}
	if err := d.checkRequest(x, o, params); err != nil {
		return fmt.Errorf("%s: the request was accepted, and %w", o.id, err)
	}
	return nil
}

// checkAllow holds the methods that a 405 names against those of the path.
func (d *Document) checkAllow(path, allow string) error {
	allowed := strings.Split(allow, ", ")
	for _, method := range allowed {
		if d.paths[path][method] == nil {
			return fmt.Errorf("the header Allow has %s, which the document does not have for %q", method, path)
		}
	}
	for method := range d.paths[path] {
		asNode := path == "/{key}" && (method == http.MethodPost || method == http.MethodDelete)
		if !asNode && !slices.Contains(allowed, method) {
			return fmt.Errorf("the header Allow does not have %s, which the document has for %q", method, path)
		}
	}
	return nil
}

// checkPreflight checks the answer to the question of a browser, which the document
// describes in words.
func (d *Document) checkPreflight(x *Exchange) error {
	for name := range x.Header {
		switch name {
		case "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Max-Age", "Cache-Control", "Raftkv-Cluster-Id":
			continue
		}
		if !d.general[name] {
			return fmt.Errorf("the header %s is not described", name)
		}
	}
	return nil
}

func (d *Document) checkAnswer(x *Exchange, a *answer) error {
	if a == nil {
		return fmt.Errorf("the status %d is not described", x.Status)
	}
	for name, values := range x.Header {
		s := a.headers[name]
		switch {
		case s == nil && !d.general[name]:
			return fmt.Errorf("the header %s is not described for %d", name, x.Status)
		case s == nil:
			continue
		case len(values) != 1:
			return fmt.Errorf("the header %s is there %d times", name, len(values))
		}
		if err := d.validate(s, valueOf(s, values[0])); err != nil {
			return fmt.Errorf("the header %s: %w", name, err)
		}
	}
	for _, name := range a.required {
		if x.Header[name] == nil {
			return fmt.Errorf("the header %s is missing", name)
		}
	}
	if len(a.content) == 0 {
		if len(x.Answer) > 0 {
			return errors.New("no body is described")
		}
		return nil
	}
	s, media, err := pick(a.content, x.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if x.Method == http.MethodHead || !x.Whole && !streamed[media] {
		return nil
	}
	return d.checkBody(s, media, x.Answer)
}

// streamed are types of which each line or block is checked by itself, and the last one
// may have broken off.
var streamed = map[string]bool{"application/x-ndjson": true, "text/event-stream": true}

// pick returns the schema of a body by its type.
func pick(content map[string]*schema, contentType string) (s *schema, media string, err error) {
	media, _, err = mime.ParseMediaType(contentType)
	if err != nil && contentType != "" {
		return nil, "", fmt.Errorf("the type %q: %w", contentType, err)
	}
	for _, key := range []string{media, "*/*"} {
		if s := content[key]; s != nil {
			return s, media, nil
		}
	}
	return nil, "", fmt.Errorf("the type %q is not described, but %q", contentType, slices.Sorted(maps.Keys(content)))
}

func (d *Document) checkBody(s *schema, media string, body []byte) error {
	switch media {
	case "application/json", "application/problem+json":
		return d.checkJSON(s, body)
	case "application/x-ndjson":
		for line := range bytes.Lines(body) {
			if len(bytes.TrimSpace(line)) == 0 {
				continue // ends a line that broke off
			}
			if err := d.checkJSON(s, line); err != nil && json.Valid(line) {
				return fmt.Errorf("line %.200q: %w", line, err)
			}
		}
		return nil
	case "text/event-stream":
		for block := range blocks(body) {
			message, err := eventOf(block)
			if err == nil {
				err = d.validate(s, message)
			}
			if err != nil {
				return fmt.Errorf("block %.200q: %w", block, err)
			}
		}
		return nil
	}
	if s.kind == "string" || strings.HasPrefix(media, "text/") {
		return d.validate(s, string(body))
	}
	return nil
}

func (d *Document) checkJSON(s *schema, text []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("the body is no JSON: %w", err)
	}
	return d.validate(s, value)
}

// valueOf is what the text of a header or a parameter means by its schema.
func valueOf(s *schema, text string) any {
	switch s.kind {
	case "integer", "number":
		return json.Number(text)
	case "boolean":
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	}
	return text
}

// ofHTTP are headers of requests that HTTP or browsers have use for, on any request.
var ofHTTP = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Connection": true, "Content-Length": true, "Content-Type": true, "Content-Encoding": true,
	"Expect": true, "Host": true, "Origin": true, "Referer": true, "Transfer-Encoding": true, "User-Agent": true, "Cache-Control": true, "Pragma": true, "Te": true,
	"Authorization":  true, // securitySchemes describe it
	"Sec-Fetch-Site": true, "Sec-Fetch-Mode": true, "Sec-Fetch-Dest": true, "Access-Control-Request-Method": true, "Access-Control-Request-Headers": true,
}

// checkRequest checks a request that was accepted.
func (d *Document) checkRequest(x *Exchange, o *operation, params url.Values) error {
	for name, values := range params {
		s := o.parameters["query "+name]
		if s == nil {
			return fmt.Errorf("the parameter %s is not described", name)
		}
		if s.kind == "array" { // it may be there several times
			all := make([]any, len(values))
			for i, value := range values {
				all[i] = value
			}
			if err := d.validate(s, all); err != nil {
				return fmt.Errorf("its parameter %s: %w", name, err)
			}
			continue
		}
		for _, value := range values {
			if err := d.validate(s, valueOf(s, value)); err != nil {
				return fmt.Errorf("its parameter %s: %w", name, err)
			}
		}
	}
	for name, values := range x.Sent {
		s := o.parameters["header "+name]
		if s == nil {
			if ofHTTP[name] {
				continue
			}
			return fmt.Errorf("the header %s is not described", name)
		}
		if err := d.validate(s, valueOf(s, strings.Join(values, ", "))); err != nil {
			return fmt.Errorf("its header %s: %w", name, err)
		}
	}
	if len(x.Body) == 0 || o.body == nil {
		return nil
	}
	if s := o.body["application/json"]; s != nil {
		return d.checkJSON(s, x.Body)
	}
	s, media, err := pick(o.body, x.Sent.Get("Content-Type"))
	if err != nil {
		return err
	}
	return d.checkBody(s, media, x.Body)
}
