//go:build unix

package nowait

import (
	"errors"
	"io"
	"net"
	"raftkv/internal/testkit"
	"testing"
)

// Guarantee: what a client does not read is left over, and nobody waits for it.
func TestTry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	client, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	server, err := l.Accept()
	testkit.Must(t, errors.Join(err, l.Close()))
	w, raw := NewWriter(), RawConn(server)
	if n, err := w.Try(raw, []byte("small")); n != 5 || err != nil {
		t.Errorf("of 5 bytes %d were written, %v", n, err)
	}
	sent, piece := 5, make([]byte, 1<<20)
	for n := -1; n != 0; sent += n {
		if n, err = w.Try(raw, piece); err != nil || sent > 1<<30 {
			t.Fatalf("after %d bytes that nobody reads: %d, %v", sent, n, err)
		}
	}
	read, err := io.ReadFull(client, make([]byte, sent))
	if read != sent || err != nil {
		t.Errorf("of %d bytes %d came, %v", sent, read, err)
	}
	if n, err := w.Try(nil, piece); n != 0 || err != nil {
		t.Errorf("to no connection of the system's %d bytes were written, %v", n, err)
	}
	testkit.Must(t, errors.Join(client.Close(), server.Close()))
	if n, err := w.Try(raw, piece); n != 0 || err == nil {
		t.Errorf("to a connection that is closed %d bytes were written", n)
	}
	if RawConn(client) != nil && RawConn(nil) != nil {
		t.Error("no connection is taken for one of the system's")
	}
}
