package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
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
