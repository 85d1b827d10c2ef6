package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// httpClient is one connection, lean, so that the servers get the CPU: each
// request is built once and only its key is changed, a request is one write,
// and fasthttp parses the answers into a response that is used again.
type httpClient struct {
	protocol
	conn     net.Conn
	in       *bufio.Reader
	resp     fasthttp.Response
	guard    uint64           // the key that its transactions compare
	prepared [operations]bool // what prepare was called for
	farewell []byte           // a request that it sends before it is closed
}

// protocol is how a server is spoken to.
type protocol struct {
	requests [operations]request
	success  [operations]func(resp *fasthttp.Response) bool
	unpack   func(body []byte) ([]byte, error) // takes the value out of an answer
	// prepare is what a client does before its first request of a kind; nil is nothing.
	prepare [operations]func(c *httpClient) error
	// revision returns that of the change that an answer is about.
	revision func(resp *fasthttp.Response) (uint64, error)
}

// request is a whole request with places for a key and a value's head.
type request struct {
	bytes   []byte
	value   []byte // as it is before encoding; nil without one
	keyAt   int
	valueAt int
	encoded bool // key and value are in base64
	lists   bool // the key stands for the list that it is in
	endAt   int  // of the list's end, where one is named
	// numberAt is where a transaction has the revision of its client's own key, onceAt
	// where a request has what tells it from all others; 0 is nowhere.
	numberAt, onceAt int
	once             uint64
}

// set makes it the request for another key.
func (r *request) set(key uint64) {
	if r.onceAt > 0 {
		r.once++
		setDigits(r.bytes[r.onceAt:r.onceAt+onceDigits], r.once)
	}
	switch {
	case r.lists && !r.encoded:
		var text [keySize]byte
		copy(r.bytes[r.keyAt:], appendKey(text[:0], key)[:keySize-listedDigits])
	case r.lists:
		r.encodeKey(r.keyAt, thousand(key))
		r.encodeKey(r.endAt, thousand(key)+listed)
	case r.encoded:
		r.encodeKey(r.keyAt, key)
	default:
		setKey(r.bytes[r.keyAt:r.keyAt+keySize], key)
	}
	if len(r.value) < headSize {
		return
	}
	setHead(r.value, key)
	if !r.encoded {
		copy(r.bytes[r.valueAt:], r.value[:headSize])
	} else {
		base64.StdEncoding.Encode(r.bytes[r.valueAt:], r.value[:headSize])
	}
}

func (r *request) encodeKey(at int, key uint64) {
	var text [keySize]byte
	base64.StdEncoding.Encode(r.bytes[at:], appendKey(text[:0], key))
}

// setNumber writes the revision that a transaction compares. JSON allows blanks before it.
func (r *request) setNumber(revision uint64) {
	copy(r.bytes[r.numberAt:], fmt.Sprintf("%*d", numberWidth, revision))
}

const (
	numberWidth = 20 // no number of 64 bits is longer
	onceDigits  = 12
)

// clone returns a copy for another connection.
func (r request) clone() request {
	r.bytes, r.value = bytes.Clone(r.bytes), bytes.Clone(r.value)
	return r
}

// dialRaftkv makes clients of raftkv's API.
func dialRaftkv(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	return raftkvOver(dialTCP, addr, n, v, limit)
}

// opener connects, for at most so long.
type opener func(addr string, limit time.Duration) (net.Conn, error)

// over makes a dialer of connections that open has made.
func over(open opener, dial func(opener, string, int, valueMaker, time.Duration) ([]client, error)) dialer {
	return func(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
		return dial(open, addr, n, v, limit)
	}
}

func raftkvOver(open opener, addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	key, value := appendKey(nil, 0), v.make(0)
	plain := func(line, body string) request {
		head := fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\n", line, addr)
		if body != "" {
			head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
		}
		head += "\r\n"
		return request{bytes: []byte(head + body), keyAt: strings.Index(head, string(key)), valueAt: len(head)}
	}
	requests := [operations]request{
		put:      plain(fmt.Sprintf("PUT /%s", key), string(value)),
		get:      plain(fmt.Sprintf("GET /%s", key), ""),
		getStale: plain(fmt.Sprintf("GET /%s?consistency=stale", key), ""),
		list:     raftkvList(addr),
		txn:      raftkvTxn(addr, value),
	}
	requests[put].value = value
	hasValue := func(r *fasthttp.Response) bool {
		return r.StatusCode() == fasthttp.StatusOK && len(r.Body()) == v.size
	}
	return dialHTTP(open, addr, n, limit, protocol{
		requests: requests,
		success: [operations]func(*fasthttp.Response) bool{
			put:       func(r *fasthttp.Response) bool { return r.StatusCode() == fasthttp.StatusNoContent },
			get:       hasValue,
			getStale:  hasValue,
			list:      hasList,
			txn:       hasSucceeded,
			keepAlive: func(r *fasthttp.Response) bool { return r.StatusCode() == fasthttp.StatusOK },
		},
		unpack:   func(body []byte) ([]byte, error) { return bytes.Clone(body), nil },
		prepare:  [operations]func(*httpClient) error{txn: (*httpClient).prepareTxn, keepAlive: raftkvLease(addr)},
		revision: raftkvRevision,
	})
}

// dialGateway makes clients of etcd's HTTP gateway.
func dialGateway(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	return gatewayOver(dialTCP, addr, n, v, limit)
}

func gatewayOver(open opener, addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	code := base64.StdEncoding.EncodeToString
	key, value := code(appendKey(nil, 0)), v.make(0)
	post := func(path, body string) request {
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
			path, addr, len(body))
		return request{bytes: []byte(head + body), encoded: true, keyAt: len(head) + strings.Index(body, key)}
	}
	front := fmt.Sprintf(`{"key":"%s","value":"`, key)
	requests := [operations]request{
		put:      post("/v3/kv/put", front+code(value)+`"}`),
		get:      post("/v3/kv/range", fmt.Sprintf(`{"key":"%s"}`, key)),
		getStale: post("/v3/kv/range", fmt.Sprintf(`{"key":"%s","serializable":true}`, key)),
	}
	requests[list], requests[txn] = gatewayList(addr), gatewayTxn(addr, value)
	requests[put].value = value
	requests[put].valueAt = requests[put].keyAt - strings.Index(front, key) + len(front)
	hasValue := func(r *fasthttp.Response) bool {
		return r.StatusCode() == fasthttp.StatusOK && len(r.Body()) > base64.StdEncoding.EncodedLen(v.size)
	}
	return dialHTTP(open, addr, n, limit, protocol{
		requests: requests,
		success: [operations]func(*fasthttp.Response) bool{
			put:       func(r *fasthttp.Response) bool { return r.StatusCode() == fasthttp.StatusOK },
			get:       hasValue,
			getStale:  hasValue,
			list:      hasList,
			txn:       hasSucceeded,
			keepAlive: gatewayKept,
		},
		unpack:   unpackRange,
		prepare:  [operations]func(*httpClient) error{txn: (*httpClient).prepareTxn, keepAlive: gatewayLease(addr)},
		revision: func(r *fasthttp.Response) (uint64, error) { return numberAfter(r.Body(), `"revision":`) },
	})
}

// unpackRange takes the value out of the gateway's answer.
func unpackRange(body []byte) ([]byte, error) {
	var answer struct {
		KVs []struct{ Value []byte }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	if len(answer.KVs) != 1 {
		return nil, fmt.Errorf("%d keys in the answer", len(answer.KVs))
	}
	return answer.KVs[0].Value, nil
}

// dialHTTP connects n clients, for at most so long.
func dialHTTP(open opener, addr string, n int, limit time.Duration, p protocol) ([]client, error) {
	var clients []client
	for n := range n {
		conn, err := open(addr, limit)
		if err != nil {
			closeAll(clients)
			return nil, err
		}
		own := p
		for i, r := range p.requests {
			own.requests[i] = r.clone()
		}
		clients = append(clients, &httpClient{protocol: own, conn: conn, in: bufio.NewReader(conn), guard: firstGuard + uint64(n)})
	}
	return clients, nil
}

// dialTCP connects, for at most so long: one deadline for all requests costs
// nothing while they are sent.
func dialTCP(addr string, limit time.Duration) (net.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func closeAll(clients []client) {
	for _, c := range clients {
		c.close()
	}
}

func (c *httpClient) do(op operation, key uint64) error {
	if c.prepare[op] != nil && !c.prepared[op] {
		if err := c.prepare[op](c); err != nil {
			return err
		}
		c.prepared[op] = true
	}
	r := &c.requests[op]
	if op != keepAlive { // the lease is its client's
		r.set(key)
	}
	if err := c.send(r.bytes); err != nil {
		return err
	}
	if !c.success[op](&c.resp) {
		return statusError{c.resp.StatusCode(), clip(c.resp.Body())}
	}
	if op == txn {
		return c.noteRevision()
	}
	return nil
}

// send sends a request and reads the answer.
func (c *httpClient) send(request []byte) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	return c.resp.Read(c.in)
}

func (c *httpClient) value(key uint64) ([]byte, error) {
	if err := c.do(get, key); err != nil {
		return nil, err
	}
	return c.unpack(c.resp.Body())
}

func (c *httpClient) close() {
	if c.farewell != nil {
		_ = c.send(c.farewell) // a lease that is not revoked runs out
	}
	_ = c.conn.Close() // all that was sent has been answered
}
