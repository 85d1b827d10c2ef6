package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"raftkv/internal/admin"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/limits"
	"raftkv/internal/list"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// testListener is a listener whose handler refuses once it is told to.
type testListener struct {
	*stoppableListener
	refuse atomic.Bool
}

func newTestListener(t *testing.T) *testListener {
	t.Helper()
	l, err := listen("127.0.0.1:0", listening.ClientServer(5*time.Second, zap.NewNop()))
	testkit.Must(t, err)
	tl := &testListener{stoppableListener: l}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if tl.refuse.Load() {
			w.Header().Set("Connection", "close")
			web.WriteProblem(w, nil, problem.ErrStopping)
		}
	})
	l.handler.Store(&h) // serve does so too, but later
	served := make(chan error)
	go func() { served <- l.serve(h, nil) }()
	t.Cleanup(func() {
		testkit.Must(t, l.close())
		testkit.Must(t, <-served)
	})
	return tl
}

// Guarantee: while a node stops, a request on a connection that is open is
// refused, with a reason, and not left in doubt; and the stop ends as soon as
// there are no connections.
func TestListenerAnswersWhileItStops(t *testing.T) {
	l := newTestListener(t)
	conns := []*testkit.KeptConn{testkit.DialKept(t, l.Addr().String()), testkit.DialKept(t, l.Addr().String())}
	for _, c := range conns {
		c.Want(t, http.StatusOK, false)
	}
	l.refuse.Store(true)
	stopped := make(chan error)
	go func() { stopped <- l.shutdown(t.Context(), time.Hour) }()
	for _, c := range conns {
		select {
		case err := <-stopped:
			t.Fatalf("stopped, with a connection open: %v", err)
		default:
		}
		c.Want(t, http.StatusServiceUnavailable, true)
	}
	testkit.Must(t, <-stopped)
	if n := l.conns.Load(); n != 0 {
		t.Errorf("%d connections open", n)
	}
}

// Guarantee: clients that say nothing hold up a stop for a bounded time only.
func TestListenerStopsWithIdleConnections(t *testing.T) {
	for name, linger := range map[string]time.Duration{"linger": time.Millisecond, "context": time.Hour} {
		t.Run(name, func(t *testing.T) {
			l := newTestListener(t)
			c := testkit.DialKept(t, l.Addr().String())
			c.Want(t, http.StatusOK, false)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if name == "context" {
				cancel()
			}
			if err := l.shutdown(ctx, linger); err != nil && name == "linger" {
				t.Fatal(err)
			}
			testkit.Must(t, l.close())
			if _, err := c.R.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection is open: %v", err)
			}
		})
	}
}

// Guarantee: docs/limits.md names the limits that are set.
func TestLimitsAreDocumented(t *testing.T) {
	data, err := os.ReadFile("docs/limits.md")
	testkit.Must(t, err)
	limitsPage := strings.Join(strings.Fields(string(data)), " ")
	wait := config.DefaultConfig().RequestTimeout
	srv := listening.ClientServer(wait, zap.NewNop())
	for _, claim := range []string{
		fmt.Sprintf("A request has %.0f s to arrive, %.0f s and `--request-timeout`", srv.ReadTimeout.Seconds(), (srv.ReadTimeout - wait).Seconds()),
		fmt.Sprintf("its headers, up to %d KiB, have %.0f s of them", srv.MaxHeaderBytes>>10, srv.ReadHeaderTimeout.Seconds()),
		fmt.Sprintf("up to %d requests at once on a connection", web.HTTP2Streams),
		fmt.Sprintf("An answer has %.0f s to be taken", srv.WriteTimeout.Seconds()),
		fmt.Sprintf("a backup %.0f s for each %d KiB", admin.BackupPace.Seconds(), admin.BackupPiece>>10),
		fmt.Sprintf("a streamed list %.0f s for each %d MiB", api.StreamPace.Seconds(), api.StreamPiece>>20),
		fmt.Sprintf("items on a page, 1 to %d; %d if it is not said. A page also ends at %d MiB", list.MaxItems, list.DefaultItems, list.MaxPageBytes>>20),
		fmt.Sprintf("A node streams %d lists at once", api.MaxStreams),
		fmt.Sprintf("take more than %d MiB together, unless there are some that have taken more than %.0f s", limits.BodyBudgetBytes>>20, limits.BodyPatience.Seconds()),
		fmt.Sprintf("`--min-free` (%d MiB, at most a third of the disk)", config.DefaultConfig().MinFree>>20),
		fmt.Sprintf("for its files and peers, %d or a quarter", limits.FilesKept),
		fmt.Sprintf("A signal stops it in order, within %.0f s", stopLimit.Seconds()),
	} {
		if !strings.Contains(limitsPage, claim) {
			t.Errorf("docs/limits.md does not say %q", claim)
		}
	}
}

// Guarantee: a request that does not arrive in time is told so, when docs/limits.md
// says, whatever takes its body.
func TestRequestReadLimit(t *testing.T) {
	const limit = 35 * time.Second
	inBackupBubble(t, func(b *backupTest) {
		for _, tt := range []struct{ target, headers string }{
			{"PUT /k", "Content-Length: 10"},
			{"PUT /k", "Transfer-Encoding: chunked"},
			{"GET /k", "Content-Length: 10"},
			{"POST /2", "Content-Length: 10"},
			{"POST /v1/members", "Content-Type: application/json\r\nContent-Length: 10"},
		} {
			conn, err := b.dial(b.Context(), "", "")
			testkit.Must(t, err)
			defer conn.Close()
			began := time.Now()
			_, err = fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n\r\n", tt.target, tt.headers)
			testkit.Must(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			testkit.Must(t, err)
			if took := time.Since(began); resp.StatusCode != 408 || took != limit {
				t.Errorf("%+v: %s after %v, want 408 after %v", tt, resp.Status, took, limit)
			}
			body, err := io.ReadAll(resp.Body)
			testkit.Must(t, err)
			method, path, _ := strings.Cut(tt.target, " ")
			openapitest.Check(t, openapitest.Of(httptest.NewRequest(method, path, nil), resp.StatusCode, resp.Header, body, true))
			if !strings.Contains(string(body), `"code":"request_timeout"`) {
				t.Errorf("%+v: %s", tt, body)
			}
		}
		if b.proposed != 0 {
			t.Error("proposed")
		}
	})
}

// Without this clients take the descriptors that the log needs, or one that is
// turned away does not hear why; or a place that is free again is not given away.
func TestConnLimit(t *testing.T) {
	l := newTestListener(t)
	refusal, err := limits.TooManyConns()
	testkit.Must(t, err)
	core, logs := observer.New(zap.WarnLevel)
	l.limitTo(5, zap.New(core), refusal)
	var kept []*testkit.KeptConn
	get := func() (*testkit.KeptConn, int) {
		t.Helper()
		c := testkit.DialKept(t, l.Addr().String())
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // one that is refused may not take it
		resp, err := http.ReadResponse(c.R, nil)
		testkit.Must(t, err)
		body, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		if resp.StatusCode == 429 {
			openapitest.Check(t, openapitest.Of(httptest.NewRequest("GET", "/", nil), resp.StatusCode, resp.Header, body, true))
		}
		if resp.StatusCode == 429 && (!strings.Contains(string(body), `"code":"overloaded"`) || resp.Header.Get("Retry-After") != "1" || !resp.Close) {
			t.Errorf("refused with %v %s", resp.Header, body)
		}
		return c, resp.StatusCode
	}
	for i := range 5 {
		c, code := get()
		if code != 200 {
			t.Fatalf("connection %d: %d", i+1, code)
		}
		kept = append(kept, c)
	}
	if got := logs.FilterMessageSnippet("four fifths").Len(); got != 1 {
		t.Errorf("warned %d times", got)
	}
	for range 3 {
		if c, code := get(); code != 429 {
			t.Errorf("the sixth connection: %d", code)
		} else if _, err := c.R.ReadByte(); err == nil {
			t.Error("it stays open")
		}
	}
	if got := l.limit.Load().Refused.Load(); got != 3 {
		t.Errorf("%d refused", got)
	}
	testkit.Must(t, kept[0].Close())
	for end := time.Now().Add(30 * time.Second); ; {
		if _, code := get(); code == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a place that is free is not given away")
		}
	}
}
