package testkit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// KeptConn is a connection of one client, which it keeps.
type KeptConn struct {
	net.Conn
	R *bufio.Reader // reads from the connection, and reads ahead
}

// DialKept opens a connection that ends with the test.
func DialKept(t testing.TB, addr string) *KeptConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	Must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	return &KeptConn{c, bufio.NewReader(c)}
}

// Get sends a request and returns its answer's status, and whether that was the
// connection's last.
func (c *KeptConn) Get() (status int, last bool, err error) {
	if _, err := fmt.Fprint(c, "GET /k HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return 0, false, err
	}
	resp, err := http.ReadResponse(c.R, nil)
	if err != nil {
		return 0, false, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Close, errors.Join(err, resp.Body.Close())
}

// Want checks what Get returns.
func (c *KeptConn) Want(t testing.TB, status int, last bool) {
	t.Helper()
	if s, l, err := c.Get(); s != status || l != last || err != nil {
		t.Fatalf("got %d, last %t, %v; want %d, %t", s, l, err, status, last)
	}
}
