package front

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"raftkv/internal/front/plain"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A connection counts once at every moment between its begin and its end, whoever
// serves it. Else there are more of them than a node can take, or fewer.
func TestFrontCountsConnectionsOnce(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		var now int64 // as it was when a connection was given away
		give := ft.handOver
		ft.handOver = func(c net.Conn) { now = ft.Open(); give(c) }
		plain, other := ft.dial(), ft.dial()
		plain.send(get("a"), 1000)
		other.send("POST /a HTTP/1.1\r\nHost: n\r\n\r\n", 1000)
		synctest.Wait()
		if after := ft.Open(); now != 2 || after != 2 {
			t.Errorf("of 2 connections one was handed over; at that moment there were %d, afterwards %d", now, after)
		}
		c := <-ft.handed
		testkit.Must(t, c.Close())
		_ = c.Close() // as net/http does
		synctest.Wait()
		if n := ft.Open(); n != 1 {
			t.Errorf("of 2 connections one was closed, twice; there are %d", n)
		}
	})
}

// Guarantee: requests are answered in their order, in whatever pieces they come, with
// bodies up to the bound.
func TestFrontPieces(t *testing.T) {
	inFront(t, func(ft *frontTest) { ft.pieces(ft.dial) })
}

func (ft *frontTest) pieces(dial func() *client) {
	for _, pieces := range []int{1, 2, 3, 7, 50, 100000} {
		c := dial()
		long := strings.Repeat("x", maxInline+1)
		c.send(put("a", "one")+get("a")+put("a", "")+get("a")+put("b", long)+get("b")+"HEAD /b"+hostLine+"\r\n"+
			get("nothing")+get("b?consistency=stale")+"DELETE /v1/kv/b"+hostLine+"\r\n"+get("b"), pieces)
		c.gets("PUT", 204, "")
		c.gets("GET", 200, "one")
		c.gets("PUT", 204, "")
		c.gets("GET", 200, "")
		c.gets("PUT", 204, "")
		c.gets("GET", 200, long)
		if got := c.gets("HEAD", 200, "").ContentLength; got != int64(len(long)) {
			ft.Errorf("HEAD tells of %d bytes", got)
		}
		c.gets("GET", 404, "*")
		c.gets("GET", 200, long)
		c.gets("DELETE", 204, "")
		c.gets("GET", 404, "*")
	}
	if n := ft.served.Load(); n != 6*11 || ft.store.counted != 6*11 {
		ft.Errorf("%d requests were served, %d counted", n, ft.store.counted)
	}
}

// Guarantee: what is handed over is all that came and was not answered, and nothing
// more, at the bounds of head and body as elsewhere.
func TestFrontHandsOver(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		longHead := "GET /" + strings.Repeat("k", bufferSize)
		for text, want := range map[string]plain.Reason{
			"POST /a" + hostLine + "\r\n":                    plain.Method,
			"GET /v1/status" + hostLine + "\r\n":             plain.Target,
			"GET /a HTTP/1.0\r\n\r\n":                        plain.Version,
			"GET /a?wait=1" + hostLine + "\r\n":              plain.Query,
			"GET /a" + hostLine + "Range: bytes=0-1\r\n\r\n": plain.Field,
			"GET /a HTTP/1.1\r\nHost: evil\r\n\r\n":          plain.Host,
			"GET /a HTTP/1.1\nHost: localhost\n\n":           plain.Form,
			"PUT /a" + hostLine + "\r\n":                     plain.Body,
			longHead[:bufferSize]:                            plain.Size,
			fmt.Sprintf("PUT /a%sContent-Length: %d\r\n\r\n", hostLine, plain.MaxBody+1) + "begin": plain.Size,
		} {
			was := ft.Server.handed[want].Load()
			c := ft.dial()
			c.send(put("a", "1")+text, 1000)
			c.gets("PUT", 204, "")
			got := make([]byte, len(text))
			if _, err := io.ReadFull(<-ft.handed, got); err != nil || string(got) != text {
				t.Errorf("%q was handed over as %q, %v", text, got, err)
			}
			if ft.Server.handed[want].Load() != was+1 {
				t.Errorf("%q was handed over for another reason", text)
			}
		}
		c := ft.dial()
		c.send(put("a", strings.Repeat("v", plain.MaxBody)), 1000)
		c.gets("PUT", 204, "")
		c.send("PUT /a"+hostLine+"Content-Length: 5\r\n\r\nab", 1000)
		nc := <-ft.handed // after a moment
		if ft.Server.handed[plain.Slow].Load() != 1 {
			t.Error("a body that does not come was handed over for another reason")
		}
		c.send("cde", 10)
		if got, err := io.ReadAll(io.LimitReader(nc, int64(len("PUT /a"+hostLine+"Content-Length: 5\r\n\r\nabcde")))); err != nil || !strings.HasSuffix(string(got), "abcde") {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// Guarantee: bodies that are under way are bounded together, and what they hold is
// given back, however they end.
func TestFrontBodies(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		ft.store.bodies = 3 * plain.MaxBody
		begin := fmt.Sprintf("PUT /a%sContent-Length: %d\r\n\r\n", hostLine, plain.MaxBody)
		var cs []*client
		for range 3 {
			c := ft.dial()
			c.send(begin, 1000)
			cs = append(cs, c)
		}
		synctest.Wait()
		if ft.store.bodies != 0 || len(ft.handed) > 0 {
			t.Fatalf("%d bytes are left, %d connections handed over", ft.store.bodies, len(ft.handed))
		}
		c := ft.dial()
		c.send(begin, 1000)
		if <-ft.handed; ft.Server.handed[plain.Size].Load() != 1 {
			t.Error("one body too many was not handed over for its size")
		}
		cs[0].send(strings.Repeat("x", plain.MaxBody), plain.MaxBody) // one comes whole
		cs[0].gets("PUT", 204, "")
		testkit.Must(t, cs[1].Close()) // one breaks off
		<-ft.handed                    // and one takes too long
		synctest.Wait()
		if ft.store.bodies != 3*plain.MaxBody {
			t.Errorf("%d bytes are held for ever", 3*plain.MaxBody-ft.store.bodies)
		}
	})
}

// Guarantee: a client has as long as with net/http, and no longer.
func TestFrontTimeLimits(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		closes := func(c *client, want time.Duration) {
			t.Helper()
			began := time.Now()
			c.isClosed()
			if took := time.Since(began); took < want || took > want+3*sweepEvery {
				t.Errorf("closed after %v, want %v", took, want)
			}
		}
		closes(ft.dial(), testLimits.Idle) // nothing comes
		c := ft.dial()
		time.Sleep(testLimits.Idle - time.Second)
		c.send(get("a"), 100)
		c.gets("GET", 404, "*")
		c = ft.dial()
		c.send("GET /a HT", 100)
		closes(c, testLimits.Head)
		c = ft.dial()
		c.send(put("a", strings.Repeat("v", 1000)), 1000)
		c.gets("PUT", 204, "")
		time.Sleep(testLimits.Idle - time.Second)
		c.send(get("a"), 100)
		c.gets("GET", 200, "*")
		closes(c, testLimits.Idle)
		c = ft.dial()
		c.send(get("a"), 100)
		c.gets("GET", 200, "*")
		c.send("GET", 100)
		closes(c, testLimits.Head)
		for _, query := range []string{"", "?consistency=stale"} { // which another goroutine answers
			c = ft.dial()
			c.send(get("a"+query), 1000)
			began := time.Now()
			for open := int64(1); open > 0; open = ft.Open() { // it takes no answer
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took < testLimits.Answer || took > testLimits.Answer+3*time.Second {
				t.Errorf("who takes no answer was closed after %v", took)
			}
		}
		ft.store.held = true
		c = ft.dial()
		c.send(get("a"), 100)
		time.Sleep(time.Hour) // how long a request may wait for the cluster is not known here
		ft.store.release(1, state.Result{})
		c.gets("GET", 200, "*")
	})
}

// Guarantee: a client that has gone is not waited for; one that only sends nothing
// more gets its answers.
func TestFrontHangUp(t *testing.T) {
	ft, addr := overTCP(t, nil)
	ft.store.held = true
	dial := func(text string) *net.TCPConn {
		c, err := net.Dial("tcp", addr)
		testkit.Must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		testkit.Must(t, c.SetDeadline(time.Now().Add(time.Minute)))
		_, err = io.WriteString(c, text)
		testkit.Must(t, err)
		return c.(*net.TCPConn)
	}
	waits := func(n int) func() bool {
		return func() bool {
			ft.store.mu.Lock()
			defer ft.store.mu.Unlock()
			return len(ft.store.waiting) == n
		}
	}
	half := dial(get("a") + get("b"))
	testkit.Must(t, half.CloseWrite())
	testkit.Eventually(t, "a request waits", waits(1))
	gone := []*net.TCPConn{dial(get("a")), dial(get("a") + get("b")), dial(get("a"))}
	testkit.Eventually(t, "all wait", waits(4))
	_, err := io.WriteString(gone[2], get("b")) // while the first waits
	testkit.Must(t, err)
	for _, c := range gone {
		testkit.Must(t, c.SetLinger(0)) // closing resets the connection
		testkit.Must(t, c.Close())
	}
	testkit.Eventually(t, "who has gone is given up", func() bool {
		ft.store.mu.Lock()
		defer ft.store.mu.Unlock()
		return ft.store.gaveUp == 3 && ft.store.counted == 3
	})
	ft.store.release(4, state.Result{}) // those that were given up, too
	testkit.Eventually(t, "the second request waits", waits(1))
	ft.store.release(1, state.Result{})
	answers, err := io.ReadAll(half)
	if n := bytes.Count(answers, []byte("HTTP/1.1 404")); n != 2 || err != nil {
		t.Errorf("%d answers, %v: %s", n, err, answers)
	}
}

// Guarantee: a fault in the program ends the connection on which it showed, is counted,
// and ends nothing else.
func TestFrontPanics(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		for n, key := range []string{"panic-at-once", "panic-late"} {
			c := ft.dial()
			c.send(get(key), 1000)
			c.isClosed()
			synctest.Wait()
			if got := ft.panics.Load(); got != uint64(n+1) || ft.store.counted != ft.store.begun {
				t.Errorf("%d panics are counted, not %d; of %d requests the end of %d", got, n+1, ft.store.begun, ft.store.counted)
			}
		}
		c := ft.dial()
		c.send(put("a", "1"), 1000)
		c.gets("PUT", 204, "")
	})
}

// Guarantee: who asks for the end of the connection gets it, and so do those that were
// told that the node is stopping; in both cases behind the answer.
func TestFrontCloses(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		for _, query := range []string{"", "?consistency=stale"} {
			c := ft.dial()
			c.send("GET /a"+query+hostLine+"Connection: close\r\n\r\n", 1000)
			if resp := c.gets("GET", 404, "*"); !resp.Close {
				t.Error("no Connection: close")
			}
			c.isClosed()
		}
		ft.store.held = true
		c := ft.dial()
		c.send(get("a")+get("b"), 1000)
		synctest.Wait()
		ft.store.release(1, state.Result{Err: problem.ErrStopping})
		if resp := c.gets("GET", 503, "*"); !resp.Close {
			t.Error("no Connection: close")
		}
		c.isClosed()
	})
}

// Guarantee: a stop closes who has no request, lets the others have their answer, and
// ends.
func TestFrontShutdown(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		resting, beginning, asking := ft.dial(), ft.dial(), ft.dial()
		resting.send(put("a", "1"), 1000)
		resting.gets("PUT", 204, "")
		beginning.send(put("a", "1")+"GET /a HT", 1000)
		beginning.gets("PUT", 204, "")
		ft.store.held = true
		asking.send(get("a"), 1000)
		synctest.Wait()
		var stopped atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			testkit.Must(t, ft.Shutdown(ft.Context()))
			stopped.Store(true)
		}()
		resting.isClosed()
		began := time.Now()
		if beginning.isClosed(); time.Since(began) > time.Second {
			t.Error("it has waited for the rest of a head")
		}
		time.Sleep(time.Minute)
		if stopped.Load() {
			t.Fatal("it has stopped with a request under way")
		}
		ft.store.release(1, state.Result{})
		asking.gets("GET", 200, "1")
		asking.isClosed()
		<-done
		late, theirs := net.Pipe()
		ft.l.conns <- theirs
		if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a connection after the stop: %v", err)
		}
	})
}

// Guarantee: a stop does not wait for longer than it was told to, and closing ends
// everything at once, with requests that wait.
func TestFrontClose(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		ft.store.held = true
		reads, sleeps := ft.dial(), ft.dial()
		reads.send(get("a"), 1000)
		sleeps.send(get("a")+get("b"), 1000) // more came than is being served
		synctest.Wait()
		ctx, cancel := context.WithTimeout(ft.Context(), time.Second)
		defer cancel()
		if err := ft.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
		ft.Server.Close()
		reads.isClosed()
		sleeps.isClosed()
		if ft.store.gaveUp != 2 || ft.store.counted != 2 {
			t.Errorf("%d were given up, %d counted", ft.store.gaveUp, ft.store.counted)
		}
		ft.store.release(2, state.Result{}) // nobody is there any more
	})
}

// Guarantee: until there is a handler all is handed over.
func TestFrontStarting(t *testing.T) {
	inFront(t, func(ft *frontTest) {
		ft.handler.Store(nil)
		c := ft.dial()
		c.send(get("a"), 1000)
		if <-ft.handed; ft.Server.handed[plain.Starting].Load() != 1 {
			t.Error("it was handed over for another reason")
		}
	})
}
