//go:build unix

package main

import (
	"net/http"
	"net/http/httptest"
	"raftkv/internal/listening"
	"raftkv/internal/peerclient"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// Guarantee: a process says who it is before it is ready, and a program that does not know the question is no one's double.
func TestWho(t *testing.T) {
	ask := peerclient.New()
	l, err := listenForPeers("127.0.0.1:0", listening.PeerServer(zap.NewNop()), ask, nil)
	testkit.Must(t, err)
	defer l.close()
	url := "http://" + l.Addr().String()
	for range 2 {
		if got, err := ask.Who(t.Context(), url); err != nil || got != ask.Process || got == 0 {
			t.Errorf("who is %x, %v; want %x", got, err, ask.Process)
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"not found": http.NotFound,
		"no number": func(w http.ResponseWriter, _ *http.Request) {
			web.WriteJSON(w, http.StatusOK, map[string]string{"process": "x"})
		},
		"zero": func(w http.ResponseWriter, _ *http.Request) {
			web.WriteJSON(w, http.StatusOK, map[string]string{"process": "0"})
		},
		"another": func(w http.ResponseWriter, _ *http.Request) {
			web.WriteJSON(w, http.StatusOK, map[string]int{"process": 1})
		},
	} {
		srv := httptest.NewServer(h)
		if got, err := ask.Who(t.Context(), srv.URL); err == nil {
			t.Errorf("%s: %x", name, got)
		}
		srv.Close()
	}
}

// Guarantee: what a node says when it cannot listen is true: only a port in use is called so.
func TestListenError(t *testing.T) {
	taken, err := listen("127.0.0.1:0", listening.PeerServer(zap.NewNop()))
	testkit.Must(t, err)
	defer taken.close()
	for addr, want := range map[string]string{
		taken.Addr().String():       "using the port",
		"no-such-name.invalid:0":    "the name has no address",
		"192.0.2.1:12379":           "no such address",
		"127.0.0.1:no-such-service": "cannot listen",
	} {
		_, err := listen(addr, listening.PeerServer(zap.NewNop()))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
		if err != nil && want != "using the port" && strings.Contains(err.Error(), "using the port") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
