package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// hangUpTest is an api behind a real listener. Its writes and linearizable reads
// wait for release, or until the request's context ends.
type hangUpTest struct {
	*apiTest
	*stoppableListener
	waiting chan struct{} // gets one for each that waits
	release chan struct{}
	gaveUp  chan struct{} // gets one for each write whose context ended
	left    chan struct{} // gets one for each request that was left
	eof     chan struct{} // gets one each time net/http ends a request's context
}

func newHangUpTest(t *testing.T) *hangUpTest {
	at := newAPITest(t)
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()))
	testkit.Must(t, err)
	ht := &hangUpTest{at, l, make(chan struct{}, 16), make(chan struct{}), make(chan struct{}, 16), make(chan struct{}, 16), make(chan struct{}, 16)}
	wait := func(ctx context.Context) bool {
		ht.waiting <- struct{}{}
		select {
		case <-ht.release:
			return true
		case <-ctx.Done():
			ht.gaveUp <- struct{}{}
			return false
		}
	}
	propose := at.a.keys.Writes.(proposeFunc)
	at.a.keys.Writes = proposeFunc(func(ctx context.Context, cmd []byte) state.Result {
		if !wait(ctx) {
			return state.Result{Err: problem.ErrOutcomeUnknown}
		}
		return propose(ctx, cmd)
	})
	at.a.keys.Fresh.Confirm = func(ctx context.Context) error {
		if !wait(ctx) {
			return problem.ErrUnavailable
		}
		return nil
	}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		go func() {
			<-r.Context().Done()
			ht.eof <- struct{}{}
		}()
		at.a.ServeHTTP(w, r)
		ht.left <- struct{}{}
	})
	l.handler.Store(&h)
	t.Cleanup(func() { testkit.Must(t, l.close()) })
	return ht
}

func (ht *hangUpTest) dial() *net.TCPConn {
	ht.Helper()
	c, err := net.Dial("tcp", ht.Addr().String())
	testkit.Must(ht, err)
	ht.Cleanup(func() { _ = c.Close() })
	testkit.Must(ht, c.SetDeadline(time.Now().Add(30*time.Second)))
	return c.(*net.TCPConn)
}

// happens fails the test if nothing comes from c.
func (ht *hangUpTest) happens(what string, c <-chan struct{}) {
	ht.Helper()
	select {
	case <-c:
	case <-ht.gaveUp:
		ht.Fatalf("a request gave up before this: %s", what)
	case <-time.After(30 * time.Second):
		ht.Fatalf("this does not happen: %s", what)
	}
}

// Guarantee: a client that sends nothing more, but is there, gets its answer, to
// every request that it has sent.
func TestHalfClosed(t *testing.T) {
	const host = " HTTP/1.1\r\nHost: localhost\r\n"
	put := "PUT /k" + host + "Content-Length: 5\r\n\r\nhello"
	for name, tt := range map[string]struct {
		requests []string
		statuses []int
	}{
		"put":         {[]string{put}, []int{204}},
		"chunked put": {[]string{"PUT /k" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"}, []int{204}},
		"get":         {[]string{"GET /k" + host + "\r\n"}, []int{404}},
		"members":     {[]string{"GET /v1/members" + host + "\r\n"}, []int{200}},
		"remove":      {[]string{"DELETE /3" + host + "\r\n"}, []int{204}},
		"last":        {[]string{"GET /k" + host + "Connection: close\r\n\r\n"}, []int{404}},
		"1.0":         {[]string{"GET /k HTTP/1.0\r\nHost: localhost\r\n\r\n"}, []int{404}},
		"pipelined": {[]string{put, "GET /k" + host + "\r\n", put, "HEAD /k" + host + "\r\n", "DELETE /v1/kv/k" + host + "\r\n"},
			[]int{204, 200, 204, 200, 204}},
	} {
		t.Run(name, func(t *testing.T) {
			ht := newHangUpTest(t)
			c := ht.dial()
			_, err := io.WriteString(c, strings.Join(tt.requests, "")) // in one segment
			testkit.Must(t, err)
			testkit.Must(t, c.CloseWrite())
			r := bufio.NewReader(c)
			for n, want := range tt.statuses {
				ht.happens("the request waits for the cluster", ht.waiting)
				ht.happens("net/http has met the end of the connection", ht.eof)
				ht.release <- struct{}{}
				method, _, _ := strings.Cut(tt.requests[n], " ")
				resp, err := http.ReadResponse(r, &http.Request{Method: method})
				testkit.Must(t, err)
				body, err := io.ReadAll(resp.Body)
				asked, rerr := http.ReadRequest(bufio.NewReader(strings.NewReader(tt.requests[n])))
				testkit.Must(t, rerr)
				openapitest.Check(t, openapitest.Of(asked, resp.StatusCode, resp.Header, body, err == nil))
				if resp.StatusCode != want || err != nil {
					t.Fatalf("answer %d is %d %s, %v; want %d", n, resp.StatusCode, body, err, want)
				}
			}
			if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
				t.Errorf("behind the answers: %q, %v", rest, err)
			}
		})
	}
}

// Guarantee: a client that is surely gone is not waited for.
func TestHungUp(t *testing.T) {
	ht := newHangUpTest(t)
	for _, request := range []string{"GET /k HTTP/1.1\r\nHost: localhost\r\n\r\n", "PUT /k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv"} {
		c := ht.dial()
		_, err := io.WriteString(c, request)
		testkit.Must(t, err)
		ht.happens("the request waits for the cluster", ht.waiting)
		testkit.Must(t, c.SetLinger(0)) // so that closing resets the connection
		testkit.Must(t, c.Close())
		select {
		case <-ht.left:
		case <-time.After(30 * time.Second):
			t.Fatalf("%q waits on for a client that is gone", request)
		}
	}
	if ht.proposed != 0 {
		t.Errorf("%d proposals", ht.proposed)
	}
}

// Guarantee: a client that has gone with a FIN is found to have gone by the first
// write that fails.
func TestHungUpByWrite(t *testing.T) {
	l, err := listen("127.0.0.1:0", listening.ClientServer(time.Minute, zap.NewNop()))
	testkit.Must(t, err)
	defer func() { testkit.Must(t, l.close()) }()
	gone, ended := make(chan struct{}), make(chan bool, 1)
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // net/http has met the FIN
		r, done := web.UntilHungUp(r)
		defer done()
		<-gone
		early := r.Context().Err() != nil
		out := http.NewResponseController(w)
		for err := error(nil); err == nil; err = out.Flush() {
			_, _ = w.Write([]byte("x")) // into a buffer
		}
		ended <- !early && r.Context().Err() != nil
	})
	l.handler.Store(&h)
	c, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	_, err = io.WriteString(c, "GET /k HTTP/1.1\r\nHost: localhost\r\n\r\n")
	testkit.Must(t, err)
	testkit.Must(t, c.Close())
	close(gone)
	select {
	case ok := <-ended:
		if !ok {
			t.Error("the context ended at the FIN, or not at the failed write")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("writes to a client that is gone do not fail")
	}
}
