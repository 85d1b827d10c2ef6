package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"raftkv/internal/limits"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// http2Test is a node whose clients speak HTTP/2, by way of the front or not.
type http2Test struct {
	*apiTest
	l *stoppableListener
	c *http.Client
}

// inHTTP2 runs a test with and without the front. set changes the server before it
// serves.
func inHTTP2(t *testing.T, set func(*http.Server), test func(ht *http2Test)) {
	for _, fronted := range []bool{true, false} {
		t.Run(fmt.Sprintf("front=%t", fronted), func(t *testing.T) {
			at, srv := newAPITest(t), listening.ClientServer(time.Minute, zap.NewNop())
			at.a.keys.MaxValue = 1 << 20
			set(srv)
			var l *stoppableListener
			var err error
			if fronted {
				l, err = listenWithFront("127.0.0.1:0", srv, nil, at.a.keys.MaxValue, zap.NewNop())
			} else {
				l, err = listen("127.0.0.1:0", srv)
			}
			testkit.Must(t, err)
			ended := make(chan error, 1)
			go func() { ended <- l.serve(at.a, plainRequests{at.a}) }()
			testkit.Eventually(t, "the handler", func() bool { return l.handler.Load() != nil })
			tr := &http.Transport{Protocols: new(http.Protocols)}
			tr.Protocols.SetUnencryptedHTTP2(true)
			t.Cleanup(func() {
				tr.CloseIdleConnections()
				testkit.Must(t, l.close())
				testkit.Must(t, <-ended)
			})
			test(&http2Test{at, l, &http.Client{Transport: openapitest.Transport(t, tr), Timeout: 30 * time.Second}})
		})
	}
}

func asItIs(*http.Server) {}

// do sends a request and returns its answer, whose body is read.
func (ht *http2Test) do(ctx context.Context, method, target string, body io.Reader) (*http.Response, string, error) {
	ht.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+ht.l.Addr().String()+target, body)
	testkit.Must(ht, err)
	resp, err := ht.c.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.ProtoMajor != 2 {
		ht.Errorf("%s %s was answered in %s", method, target, resp.Proto)
	}
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func (ht *http2Test) want(method, target, body string, status int, text string) *http.Response {
	ht.Helper()
	resp, got, err := ht.do(ht.Context(), method, target, strings.NewReader(body))
	if err != nil || resp.StatusCode != status || text != "" && got != text {
		ht.Fatalf("%s %s: %v %.200q, %v; want %d", method, target, resp, got, err, status)
	}
	return resp
}

// Guarantee: all that works in HTTP/1 works in HTTP/2, on one connection, which counts
// as one and is no longer counted when it is gone.
func TestHTTP2(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		large := strings.Repeat("0123456789abcdef", 1<<16)
		ht.want("PUT", "/v1/kv/k", "v", 201, "")
		resp := ht.want("GET", "/k", "", 200, "v")
		if h := resp.Header; h.Get("ETag") != `"1"` || h.Get("Raftkv-Cluster-Id") == "" || h.Get("Cross-Origin-Resource-Policy") == "" {
			t.Errorf("%v", h)
		}
		ht.want("HEAD", "/k", "", 200, "")
		ht.want("PUT", "/a//b", large, 204, "")
		ht.want("GET", "/a//b?consistency=stale", "", 200, large)
		ht.want("GET", "/none", "", 404, "")
		ht.want("PUT", "/k", large+"x", 413, "")
		ht.want("GET", "/k", "", 200, "v")
		ht.want("DELETE", "/v1/kv/k", "", 204, "")
		// Of a length that is not known before.
		if resp, _, err := ht.do(t.Context(), "PUT", "/k", io.MultiReader(strings.NewReader(large))); err != nil || resp.StatusCode != 204 {
			t.Errorf("%v, %v", resp, err)
		}
		if resp, text, err := ht.do(t.Context(), "PUT", "/k", io.MultiReader(strings.NewReader(large+"x"))); err != nil || resp.StatusCode != 413 {
			t.Errorf("%v %.200s, %v", resp, text, err)
		}
		small := large[:10_000]
		ht.want("PUT", "/small", small, 204, "")
		var all sync.WaitGroup
		for n := range 3 * web.HTTP2Streams { // more than go at once
			all.Go(func() {
				resp, text, err := ht.do(t.Context(), "GET", "/small?consistency=stale", nil)
				if err != nil || resp.StatusCode != 200 || text != small {
					t.Errorf("%d: %v, %v", n, resp, err)
				}
			})
		}
		all.Wait()
		if ht.l.open() == 0 {
			t.Error("no connection is counted")
		}
		ht.c.CloseIdleConnections()
		testkit.Eventually(t, "no connections", func() bool { return ht.l.open() == 0 })
	})
}

// Guarantee: a request in HTTP/2 that its client gives up does not wait on, and the
// others on its connection do.
func TestHTTP2HungUp(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		left := make(chan error, 1)
		get := func(ctx context.Context) {
			_, _, err := ht.do(ctx, "GET", "/k?min_revision=1", nil)
			left <- err
		}
		ctx, cancel := context.WithCancel(t.Context())
		ht.want("GET", "/none?consistency=stale", "", 404, "")
		go get(ctx)
		go get(t.Context())
		ht.awaitWaiting(2)
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the client got %v", err)
		}
		ht.awaitWaiting(1)
		ht.want("PUT", "/k", "v", 204, "")
		testkit.Must(t, <-left)
	})
}

// http2Beginning is what tells HTTP/2 from HTTP/1.
const http2Beginning = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// http2Preface begins a connection: behind that, a frame with no settings.
var http2Preface = append([]byte(http2Beginning), 0, 0, 0, 4, 0, 0, 0, 0, 0)

// raw opens a connection and sends something on it.
func (ht *http2Test) raw(sent []byte) net.Conn {
	ht.Helper()
	c, err := net.Dial("tcp", ht.l.Addr().String())
	testkit.Must(ht, err)
	ht.Cleanup(func() { _ = c.Close() })
	testkit.Must(ht, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = c.Write(sent)
	testkit.Must(ht, err)
	return c
}

// Guarantee: a connection in HTTP/2 may do no more than it is told at its beginning.
func TestHTTP2Bounds(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		c := ht.raw(http2Preface)
		var head [9]byte
		_, err := io.ReadFull(c, head[:])
		testkit.Must(t, err)
		if head[3] != 4 {
			t.Fatalf("the first frame is %x, not of settings", head)
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		_, err = io.ReadFull(c, payload)
		testkit.Must(t, err)
		settings := make(map[uint16]uint32)
		for s := payload; len(s) >= 6; s = s[6:] {
			settings[binary.BigEndian.Uint16(s)] = binary.BigEndian.Uint32(s[2:])
		}
		for id, most := range map[uint16]uint32{3: web.HTTP2Streams, 4: 64 << 10, 5: 16 << 10, 6: listening.MaxHeadBytes + 1<<10} {
			if got, ok := settings[id]; !ok || got > most {
				t.Errorf("setting %d is %d, %t; want %d at most", id, got, ok, most)
			}
		}
		// One stream too many is refused, and the others are not: GET /k?min_revision=9.
		block := []byte{0x82, 0x86, 0x04, 17}
		block = append(block, "/k?min_revision=9"...)
		block = append(append(block, 0x01, 9), "localhost"...)
		var many bytes.Buffer
		for n := range web.HTTP2Streams + 1 {
			many.Write([]byte{0, 0, byte(len(block)), 1, 5})
			testkit.Must(t, binary.Write(&many, binary.BigEndian, uint32(2*n+1)))
			many.Write(block)
		}
		_, err = c.Write(many.Bytes())
		testkit.Must(t, err)
		ht.awaitWaiting(web.HTTP2Streams)
		_, refused := readFrame(t, c, 3) // RST_STREAM
		if refused != 2*web.HTTP2Streams+1 {
			t.Errorf("stream %d is refused", refused)
		}
		testkit.Must(t, c.Close())
		ht.awaitWaiting(0)
	})
}

// readFrame reads on until there is a frame of a type.
func readFrame(t *testing.T, c net.Conn, kind byte) (payload []byte, stream uint32) {
	t.Helper()
	for {
		if got, _, stream, payload := anyFrame(t, c); got == kind {
			return payload, stream
		}
	}
}

// Guarantee: in HTTP/2, too, who is slow with the beginning, with a body, or with the
// next request does not hold on to anything.
func TestHTTP2Slow(t *testing.T) {
	const limit = 200 * time.Millisecond
	inHTTP2(t, func(s *http.Server) { s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = limit, limit, limit }, func(ht *http2Test) {
		in, out := io.Pipe()
		defer func() { _ = out.Close() }()
		go func() { _, _ = out.Write([]byte("a part")) }()
		if resp, text, err := ht.do(t.Context(), "PUT", "/k", in); err != nil || resp.StatusCode != 408 {
			t.Errorf("a slow body: %v %s, %v", resp, text, err)
		}
		for name, sent := range map[string]string{"of what it is": "PRI * HTTP/2.0\r\n", "of the preface": "PRI * HTTP/2.0\r\n\r\nSM", "without a request": string(http2Preface)} {
			if _, err := io.Copy(io.Discard, ht.raw([]byte(sent))); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection stays open", name)
			}
		}
		testkit.Eventually(t, "no connections", func() bool { return ht.l.open() == 0 })
	})
}

// Guarantee: a body in HTTP/2 is held in the same budget as all others, and gives way in
// it as they do, without its connection.
func TestHTTP2BodyBudget(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		ht.a.bodies = limits.NewBodyBudget(32 << 10)
		value := strings.Repeat("v", 24<<10)
		in, out := io.Pipe()
		defer func() { _ = out.Close() }()
		slow := make(chan string, 1)
		go func() {
			resp, text, err := ht.do(t.Context(), "PUT", "/slow", in)
			if err != nil {
				slow <- err.Error()
				return
			}
			slow <- fmt.Sprint(resp.StatusCode, " ", text)
		}()
		_, err := io.WriteString(out, value)
		testkit.Must(t, err)
		var got string
		testkit.Eventually(t, "the end of the slow one, for which others find no room", func() bool {
			_, _, err := ht.do(t.Context(), "PUT", "/k", strings.NewReader(value))
			testkit.Must(t, err)
			select {
			case got = <-slow:
				return true
			default:
				return false
			}
		})
		if !strings.HasPrefix(got, "429 ") || !strings.Contains(got, `"overloaded"`) {
			t.Errorf("the slow one: %s", got)
		}
		ht.want("GET", "/k", "", 200, value)
	})
}

// Guarantee: a node that stops answers what is under way in HTTP/2, says why it takes no
// more, and is not held up by connections that do nothing.
func TestHTTP2Stops(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		ht.want("GET", "/none", "", 404, "")
		idle := ht.raw(http2Preface)
		var asked atomic.Bool
		release := make(chan struct{})
		ht.a.keys.Fresh.Confirm = func(context.Context) error {
			asked.Store(true)
			<-release
			return nil
		}
		answer := make(chan int, 1)
		go func() {
			resp, _, err := ht.do(t.Context(), "GET", "/none", nil)
			if err != nil {
				t.Error(err)
				resp = &http.Response{}
			}
			answer <- resp.StatusCode
		}()
		testkit.Eventually(t, "the request", asked.Load)
		ht.a.stop()
		resp, text, err := ht.do(t.Context(), "GET", "/k", nil)
		if err != nil || resp.StatusCode != 503 || !strings.Contains(text, problem.CodeOf(problem.ErrStopping)) {
			t.Errorf("while it stops: %v %s, %v", resp, text, err)
		}
		down := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			down <- ht.l.shutdown(ctx, lameDuck)
		}()
		close(release)
		if got := <-answer; got != 404 {
			t.Errorf("what was under way is answered with %d", got)
		}
		testkit.Must(t, <-down)
		if _, err := io.Copy(io.Discard, idle); err != nil {
			t.Errorf("the idle connection ends in %v", err)
		}
		testkit.Eventually(t, "no connections", func() bool { return ht.l.open() == 0 })
	})
}

// Guarantee: in HTTP/2, who is refused before the body has come gets the whole answer: the
// body is taken first, and no reset of the stream for it overtakes the answer.
func TestHTTP2RefusalTakesBody(t *testing.T) {
	inHTTP2(t, asItIs, func(ht *http2Test) {
		for path, status := range map[string]string{"/v1/kv/x": "405", "/v1/add?key=n&unknown=1": "400"} {
			block := []byte{0x83, 0x86, 0x04, byte(len(path))} // POST of the path in http
			block = append(append(block, path...), 0x01, 9)
			block = append(block, "localhost"...)
			c := ht.raw(http2Preface)
			send := func(kind, flags, stream byte, payload []byte) {
				_, err := c.Write(append([]byte{0, 0, byte(len(payload)), kind, flags, 0, 0, 0, stream}, payload...))
				testkit.Must(t, err)
			}
			send(1, 4, 1, block) // HEADERS, and no end of the stream
			// The answer to a ping has come behind the answer to the request, if that
			// did not wait for the body.
			ping := func(text string) {
				send(6, 0, 0, []byte(text))
				for {
					kind, _, _, payload := anyFrame(t, c)
					if kind == 1 || kind == 3 {
						t.Fatalf("%s: a frame of type %d before the body was sent", path, kind)
					}
					if kind == 6 && string(payload) == text {
						return
					}
				}
			}
			for n := range 20 { // as many turns as the handler may need to be through
				ping(fmt.Sprintf("ping %03d", n))
			}
			send(0, 1, 1, []byte("1")) // DATA, the end of the stream
			var answer []byte
			for ended := false; !ended; {
				kind, flags, stream, payload := anyFrame(t, c)
				if kind == 3 {
					t.Fatalf("%s: the stream is reset with %x before the answer has come", path, payload)
				}
				if stream == 1 && kind == 0 {
					answer = append(answer, payload...)
				}
				ended = stream == 1 && kind <= 1 && flags&1 == 1
			}
			if !strings.Contains(string(answer), `"status":`+status) {
				t.Errorf("%s: %s", path, answer)
			}
			testkit.Must(t, c.Close())
		}
	})
}

// anyFrame reads the next frame.
func anyFrame(t *testing.T, c net.Conn) (kind, flags byte, stream uint32, payload []byte) {
	t.Helper()
	var head [9]byte
	_, err := io.ReadFull(c, head[:])
	testkit.Must(t, err)
	payload = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(c, payload)
	testkit.Must(t, err)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload
}
