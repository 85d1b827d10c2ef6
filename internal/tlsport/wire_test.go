package tlsport

import (
	"errors"
	"net"
	"raftkv/internal/testkit"
	"testing"
	"time"
)

// overTCP returns both ends of a connection, of which the first is a wire that holds.
func overTCP(t *testing.T) (c *Conn, client net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	client, err = net.Dial("tcp", l.Addr().String())
	testkit.Must(t, err)
	nc, err := l.Accept()
	testkit.Must(t, errors.Join(err, l.Close()))
	t.Cleanup(func() { _, _ = client.Close(), nc.Close() })
	c = &Conn{wire: &wire{Conn: nc, closed: func() {}}}
	c.Hold(true)
	return c, client
}

// Guarantee: so much is held and no more, and who has more be held is gone.
func TestHeldIsBounded(t *testing.T) {
	c, client := overTCP(t)
	if n, err := c.wire.Write(make([]byte, maxHeld)); n != maxHeld || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if n, err := c.wire.Write(make([]byte, 1)); n != 0 || !errors.Is(err, errHeld) {
		t.Errorf("one more: %d, %v", n, err)
	}
	testkit.Must(t, client.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection goes on: %v", err)
	}
}

// Guarantee: a connection is closed at once although somebody flushes what its client does
// not take, and whoever wants to know that it is closed is told once.
func TestCloseBesideFlush(t *testing.T) {
	c, _ := overTCP(t)
	told := make(chan string, 4)
	c.Closed(func() { told <- "before" })
	flushed := make(chan error, 1)
	go func() {
		for {
			_, err := c.wire.Write(make([]byte, maxHeld))
			if err = errors.Join(err, c.Flush()); err != nil {
				flushed <- err
				return
			}
		}
	}()
	testkit.Eventually(t, "a flush waits for the client", func() bool {
		before := c.flushing()
		time.Sleep(100 * time.Millisecond)
		return before && c.flushing()
	})
	_, _ = c.wire.Write([]byte("farewell"))
	closed := make(chan error, 1)
	go func() { closed <- c.wire.Close() }()
	select {
	case err := <-closed:
		testkit.Must(t, err)
	case <-time.After(time.Minute):
		t.Fatal("the end of a connection waits for its client")
	}
	if err := <-flushed; err == nil {
		t.Error("all was written")
	}
	_ = c.wire.Close() // for the second time
	c.Closed(func() { told <- "after" })
	if a, b := <-told, <-told; a != "before" || b != "after" || len(told) > 0 {
		t.Errorf("told %q, %q and %d more", a, b, len(told))
	}
}

func (c *Conn) flushing() bool {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return c.wire.flushes
}
