package main

import (
	"io"
	"net/http"
	"raftkv/internal/limits"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

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
