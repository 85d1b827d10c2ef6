package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// Guarantee: a write that was sent over a kept connection, and whose node then dies, may have
// happened, also if package net/http tries it once more by itself and finds nobody there.
func TestWriteSentBeforeTheNodeDied(t *testing.T) {
	for name, transport := range map[string]http.RoundTripper{"own": nil, "another": new(http.Transport)} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- serveOnceThenDie(l) }()
			c, err := New(Config{Endpoints: []string{"http://" + l.Addr().String()}, Transport: transport, Timeout: leastPause * 10})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Put(context.Background(), "a", []byte("1")); err != nil {
				t.Fatal(err)
			}
			_, err = c.Put(context.Background(), "a", []byte("2"))
			if err := <-served; err != nil {
				t.Fatal(err)
			}
			wantOutcome(t, err, true)
		})
	}
}

// serveOnceThenDie answers one write, takes in a second one over the same connection, and is
// gone without an answer.
func serveOnceThenDie(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for i := range 2 {
		r, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		if i == 0 {
			if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\nRaftkv-Cluster-Id: c\r\nEtag: \"1\"\r\n\r\n"); err != nil {
				return err
			}
		}
	}
	return errors.Join(l.Close(), conn.Close())
}

// slowBody is a transport that gives the head of an answer late, and its body some time later.
type slowBody struct{ head, body time.Duration }

func (s slowBody) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := sleep(r.Context(), s.head); err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	go func() {
		err := sleep(r.Context(), s.body)
		if err == nil {
			_, err = io.WriteString(pw, "1")
		}
		pw.CloseWithError(err)
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{"Raftkv-Cluster-Id": {"c"}, "Etag": {`"7"`}}, Body: pr, ContentLength: -1, Request: r}, nil
}

// Guarantee: a body has its own time, however late its head came.
func TestBodyHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: slowBody{attemptLimit - time.Millisecond, bodySilence - time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, _, err := c.Value(t.Context(), "a"); err != nil || time.Since(begun) > attemptLimit+bodySilence {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// Guarantee: a node that says again and again that there is more does not hold a list for ever.
func TestListWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, opts := range [][]ListOption{nil, {StartAfter("a")}, {Reverse()}, {Reverse(), StartAfter("b")}} {
			c, s := withScript(t, reply{status: 200, body: `{"revision":7,"items":[],"next":"b"}`})
			var last error
			for _, err := range c.List(t.Context(), "", opts...) {
				last = err
			}
			if !errors.Is(last, ErrStranger) || len(s.requests) > 2 {
				t.Errorf("%v after %d requests", last, len(s.requests))
			}
			wantOutcome(t, last, false)
		}
	})
}
