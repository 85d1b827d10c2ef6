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
	conn net.Conn
	in   *bufio.Reader
	resp fasthttp.Response
}

// protocol is how a server is spoken to.
type protocol struct {
	requests [3]request // by operation
	success  [3]func(resp *fasthttp.Response) bool
	unpack   func(body []byte) ([]byte, error) // takes the value out of an answer
}

// request is a whole request with places for a key and a value's head.
type request struct {
	bytes   []byte
	value   []byte // as it is before encoding; nil without one
	keyAt   int
	valueAt int
	encoded bool // key and value are in base64
}

// set makes it the request for another key.
func (r *request) set(key uint64) {
	if !r.encoded {
		setKey(r.bytes[r.keyAt:r.keyAt+keySize], key)
	} else {
		var text [keySize]byte
		base64.StdEncoding.Encode(r.bytes[r.keyAt:], appendKey(text[:0], key))
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

// clone returns a copy for another connection.
func (r request) clone() request {
	r.bytes, r.value = bytes.Clone(r.bytes), bytes.Clone(r.value)
	return r
}

// dialRaftkv makes clients of raftkv's API.
func dialRaftkv(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	key, value := appendKey(nil, 0), v.make(0)
	plain := func(line, body string) request {
		head := fmt.Sprintf("%s HTTP/1.1\r\nHost: %s\r\n", line, addr)
		if body != "" {
			head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
		}
		head += "\r\n"
		return request{bytes: []byte(head + body), keyAt: strings.Index(head, string(key)), valueAt: len(head)}
	}
	requests := [3]request{
		put:      plain(fmt.Sprintf("PUT /%s", key), string(value)),
		get:      plain(fmt.Sprintf("GET /%s", key), ""),
		getStale: plain(fmt.Sprintf("GET /%s?consistency=stale", key), ""),
	}
	requests[put].value = value
	hasValue := func(r *fasthttp.Response) bool {
		return r.StatusCode() == fasthttp.StatusOK && len(r.Body()) == v.size
	}
	return dialHTTP(addr, n, limit, protocol{
		requests: requests,
		success: [3]func(*fasthttp.Response) bool{
			put:      func(r *fasthttp.Response) bool { return r.StatusCode() == fasthttp.StatusNoContent },
			get:      hasValue,
			getStale: hasValue,
		},
		unpack: func(body []byte) ([]byte, error) { return bytes.Clone(body), nil },
	})
}

// dialGateway makes clients of etcd's HTTP gateway.
func dialGateway(addr string, n int, v valueMaker, limit time.Duration) ([]client, error) {
	code := base64.StdEncoding.EncodeToString
	key, value := code(appendKey(nil, 0)), v.make(0)
	post := func(path, body string) request {
		head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
			path, addr, len(body))
		return request{bytes: []byte(head + body), encoded: true, keyAt: len(head) + strings.Index(body, key)}
	}
	front := fmt.Sprintf(`{"key":"%s","value":"`, key)
	requests := [3]request{
		put:      post("/v3/kv/put", front+code(value)+`"}`),
		get:      post("/v3/kv/range", fmt.Sprintf(`{"key":"%s"}`, key)),
		getStale: post("/v3/kv/range", fmt.Sprintf(`{"key":"%s","serializable":true}`, key)),
	}
	requests[put].value = value
	requests[put].valueAt = requests[put].keyAt - strings.Index(front, key) + len(front)
	hasValue := func(r *fasthttp.Response) bool {
		return r.StatusCode() == fasthttp.StatusOK && len(r.Body()) > base64.StdEncoding.EncodedLen(v.size)
	}
	return dialHTTP(addr, n, limit, protocol{
		requests: requests,
		success: [3]func(*fasthttp.Response) bool{
			put:      func(r *fasthttp.Response) bool { return r.StatusCode() == fasthttp.StatusOK },
			get:      hasValue,
			getStale: hasValue,
		},
		unpack: unpackRange,
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
func dialHTTP(addr string, n int, limit time.Duration, p protocol) ([]client, error) {
	var clients []client
	for range n {
		conn, err := dialTCP(addr, limit)
		if err != nil {
			closeAll(clients)
			return nil, err
		}
		own := p
		for i, r := range p.requests {
			own.requests[i] = r.clone()
		}
		clients = append(clients, &httpClient{protocol: own, conn: conn, in: bufio.NewReader(conn)})
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
	r := &c.requests[op]
	r.set(key)
	if _, err := c.conn.Write(r.bytes); err != nil {
		return err
	}
	if err := c.resp.Read(c.in); err != nil {
		return err
	}
	if !c.success[op](&c.resp) {
		return statusError{c.resp.StatusCode(), clip(c.resp.Body())}
	}
	return nil
}

func (c *httpClient) value(key uint64) ([]byte, error) {
	if err := c.do(get, key); err != nil {
		return nil, err
	}
	return c.unpack(c.resp.Body())
}

func (c *httpClient) close() { _ = c.conn.Close() } // all that was sent has been answered
