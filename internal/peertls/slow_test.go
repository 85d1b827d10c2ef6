package peertls

import (
	"context"
	"errors"
	"io"
	"net"
	"raftkv/internal/testkit"
	"testing"
	"time"
)

// Guarantee: whoever is dialed and does not go on with the handshake costs a connection for
// so long, and no longer, whatever the question's own time is: net/http dials on after it.
func TestDialDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	ca := testkit.NewCA(t)
	ask, _ := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, l.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		var none struct{}
		asked <- ask.Get(ctx, "https://"+l.Addr().String()+"/raftkv/who", 0, &none)
	}()
	c, err := l.Accept()
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, c.Close()) })
	if err := <-asked; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the question ends with %v", err)
	}
	testkit.Must(t, c.SetReadDeadline(time.Now().Add(4*handshakeLimit)))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection does not end: %v", err)
	}
}
