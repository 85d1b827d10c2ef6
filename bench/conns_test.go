package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Ensure that a limit that is just enough is taken, and one less is refused with
// what to do.
func TestFilesForConnections(t *testing.T) {
	need := filesFor(10_000)
	if err := checkFiles(10_000, need); err != nil {
		t.Error(err)
	}
	if err := checkFiles(10_000, need-1); err == nil || !strings.Contains(err.Error(), "ulimit") {
		t.Errorf("one too few: %v", err)
	}
	// What raftkv leaves to clients is three quarters.
	if need*3/4 < 10_000 {
		t.Errorf("%d files for 10,000 connections", need)
	}
}

// Ensure that idle connections have all made a request and are all open.
func TestIdleConnectionsHaveMadeARequest(t *testing.T) {
	const conns = 40
	var requests, open atomic.Int64
	bare := newBareHandler()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		bare.ServeHTTP(w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	if _, err := openIdle(t.Context(), addr, dialRaftkv, conns); err == nil {
		t.Fatal("the keys are not there, and no error")
	}
	writers, err := dialRaftkv(addr, 1, valueMaker{size: usualSize}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for key := range uint64(conns) {
		if err := writers[0].do(put, key); err != nil {
			t.Fatal(err)
		}
	}
	closeAll(writers)
	requests.Store(0)
	idle, err := openIdle(t.Context(), addr, dialRaftkv, conns)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(idle)
	if got := requests.Load(); got != conns {
		t.Errorf("%d requests on %d connections", got, conns)
	}
	if got := open.Load(); got < conns {
		t.Errorf("%d connections are open, want %d", got, conns)
	}
}
