package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// The requests for more than one key, for leases, and for what happens once.

// posted returns a whole request with a body, and where that begins.
func posted(method, path, addr, body string) (request string, bodyAt int) {
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		method, path, addr, len(body))
	return head + body, len(head)
}

// raftkvList asks for all keys that begin as the first of a list does, but for the
// digits in which they differ.
func raftkvList(addr string) request {
	prefix := appendKey(nil, 0)[:keySize-listedDigits]
	head := fmt.Sprintf("GET /v1/kv?prefix=%s&limit=%d HTTP/1.1\r\nHost: %s\r\n\r\n", prefix, listed, addr)
	return request{bytes: []byte(head), lists: true, keyAt: strings.Index(head, string(prefix))}
}

// gatewayList asks for the same, as a range that ends before the next list.
func gatewayList(addr string) request {
	key := encodedKey(0)
	front := fmt.Sprintf(`{"key":"%s","range_end":"`, key)
	text, at := posted("POST", "/v3/kv/range", addr, fmt.Sprintf(`%s%s","limit":%d}`, front, key, listed))
	return request{bytes: []byte(text), encoded: true, lists: true, keyAt: at + strings.Index(front, key), endAt: at + len(front)}
}

func encodedKey(key uint64) string { return base64.StdEncoding.EncodeToString(appendKey(nil, key)) }

// hasList tells whether an answer has as many keys as a list. Both systems say the
// revision of each under the same name.
func hasList(r *fasthttp.Response) bool {
	return r.StatusCode() == fasthttp.StatusOK && bytes.Count(r.Body(), []byte(`"mod_revision"`)) == listed
}

// Marks where a client's own key, a revision and a number of once stand in a request,
// until it is known which they are.
const (
	guardMark  = "guard-0000000000"
	numberMark = "                   0" // numberWidth bytes
	onceMark   = "000000000000"         // onceDigits bytes
)

// txnRequest makes a transaction of a body in which the key of the client's own, its
// revision, and the other key with its value are marked.
func txnRequest(path, addr, body, key string, encodedValue string, value []byte, encoded bool) request {
	text, _ := posted("POST", path, addr, body)
	const name = `{"key":"` // the value holds the key, too
	keyAt := strings.LastIndex(text, name+key) + len(name)
	return request{bytes: []byte(text), value: value, encoded: encoded, keyAt: keyAt,
		valueAt: keyAt + strings.Index(text[keyAt:], encodedValue), numberAt: strings.Index(text, numberMark)}
}

// raftkvTxn compares the revision of the client's own key, and writes that and another.
func raftkvTxn(addr string, value []byte) request {
	key := string(appendKey(nil, 0))
	body := fmt.Sprintf(`{"if":[{"key":"%[1]s","mod_revision":%[2]s}],"then":[{"put":{"key":"%[1]s","value":"%[4]s"}},{"put":{"key":"%[3]s","value":"%[4]s"}}]}`,
		guardMark, numberMark, key, value)
	return txnRequest("/v1/txn", addr, body, key, string(value), bytes.Clone(value), false)
}

// gatewayTxn does the same.
func gatewayTxn(addr string, value []byte) request {
	key, code := encodedKey(0), base64.StdEncoding.EncodeToString
	body := fmt.Sprintf(`{"compare":[{"key":"%[1]s","target":"MOD","mod_revision":%[2]s}],"success":[`+
		`{"request_put":{"key":"%[1]s","value":"%[4]s"}},{"request_put":{"key":"%[3]s","value":"%[4]s"}}]}`,
		code([]byte(guardMark)), numberMark, key, code(value))
	return txnRequest("/v3/kv/txn", addr, body, key, code(value), bytes.Clone(value), true)
}

var succeeded = []byte(`"succeeded":true`)

func hasSucceeded(r *fasthttp.Response) bool {
	return r.StatusCode() == fasthttp.StatusOK && bytes.Contains(r.Body(), succeeded)
}

// prepareTxn writes the key that the client's transactions compare, and so learns its
// revision.
func (c *httpClient) prepareTxn() error {
	if err := c.do(put, c.guard); err != nil {
		return err
	}
	r := &c.requests[txn]
	mark, key := []byte(guardMark), appendKey(nil, c.guard)
	if r.encoded {
		mark, key = []byte(base64.StdEncoding.EncodeToString(mark)), []byte(encodedKey(c.guard))
	}
	r.bytes = bytes.ReplaceAll(r.bytes, mark, key)
	return c.noteRevision()
}

// noteRevision has the next transaction compare the revision that the last answer is of.
func (c *httpClient) noteRevision() error {
	revision, err := c.revision(&c.resp)
	if err == nil {
		c.requests[txn].setNumber(revision)
	}
	return err
}

// raftkvRevision: a transaction says it in its body, a PUT in its header.
func raftkvRevision(r *fasthttp.Response) (uint64, error) {
	if tag := r.Header.Peek("ETag"); len(tag) > 0 {
		return strconv.ParseUint(strings.Trim(string(tag), `"`), 10, 64)
	}
	return numberAfter(r.Body(), `"revision":`)
}

// numberAfter returns the number behind a name, which may be in quotes.
func numberAfter(body []byte, name string) (uint64, error) {
	_, rest, ok := bytes.Cut(body, []byte(name))
	if !ok {
		return 0, fmt.Errorf("no %s in %q", name, clip(body))
	}
	text := strings.TrimPrefix(string(rest[:min(len(rest), numberWidth+2)]), `"`)
	if end := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		text = text[:end]
	}
	return strconv.ParseUint(text, 10, 64)
}

// lease makes a lease by a request, and returns the number that the answer has behind a
// name.
func (c *httpClient) lease(grant, name string) (id uint64, err error) {
	if err := c.send([]byte(grant)); err != nil {
		return 0, err
	}
	if c.resp.StatusCode()/100 != 2 {
		return 0, statusError{c.resp.StatusCode(), clip(c.resp.Body())}
	}
	return numberAfter(c.resp.Body(), name)
}

// raftkvLease gives a client a lease of its own.
func raftkvLease(addr string) func(c *httpClient) error {
	return func(c *httpClient) error {
		grant, _ := posted("POST", "/v1/leases", addr, fmt.Sprintf(`{"ttl":"%ds"}`, leaseSeconds))
		id, err := c.lease(grant, `"id":`)
		line := func(method string) []byte {
			return fmt.Appendf(nil, "%s /v1/leases/%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", method, id, addr)
		}
		if err == nil {
			c.requests[keepAlive].bytes, c.farewell = line("PUT"), line("DELETE")
		}
		return err
	}
}

func gatewayLease(addr string) func(c *httpClient) error {
	return func(c *httpClient) error {
		grant, _ := posted("POST", "/v3/lease/grant", addr, fmt.Sprintf(`{"TTL":%d}`, leaseSeconds))
		id, err := c.lease(grant, `"ID":`)
		of := func(path string) []byte {
			text, _ := posted("POST", path, addr, fmt.Sprintf(`{"ID":"%d"}`, id))
			return []byte(text)
		}
		if err == nil {
			c.requests[keepAlive].bytes, c.farewell = of("/v3/lease/keepalive"), of("/v3/lease/revoke")
		}
		return err
	}
}

// gatewayKept: a lease that has gone has no time.
func gatewayKept(r *fasthttp.Response) bool {
	ttl, err := numberAfter(r.Body(), `"TTL":`)
	return r.StatusCode() == fasthttp.StatusOK && err == nil && ttl == leaseSeconds
}

// dialRaftkvOnce makes clients of raftkv whose PUTs each have an Idempotency-Key of their
// own, kept for ten seconds, so that as many are forgotten as come.
func dialRaftkvOnce(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	clients, err := dialRaftkv(addr, n, v, limit)
	for _, c := range clients {
		r := &c.(*httpClient).requests[put]
		field := fmt.Appendf(nil, "Idempotency-Key: \"%016x-%s\";keep=10\r\n", rand.Uint64(), onceMark)
		at := bytes.Index(r.bytes, []byte("Content-Length"))
		r.bytes = bytes.Join([][]byte{r.bytes[:at], field, r.bytes[at:]}, nil)
		r.valueAt += len(field)
		r.onceAt = at + bytes.Index(field, []byte(onceMark))
	}
	return clients, err
}
