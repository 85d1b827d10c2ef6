package peertls

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
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

// Guarantee: a node that is started without certificates again keeps no copy of its key, and
// nothing that is somebody else's is lost.
func TestNoCopyIsLeft(t *testing.T) {
	t.Parallel()
	ca, data := testkit.NewCA(t), t.TempDir()
	dir := filepath.Join(data, CopiesName)
	var none *Door
	testkit.Must(t, none.Copy(data)) // there is nothing
	_, d := openDoor(t, configOf(t.TempDir(), 1, ca, ca.Certificate(time.Hour, "1.raftkv")))
	testkit.Must(t, d.Copy(data))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600))
	if names, err := filepath.Glob(filepath.Join(dir, "*.pem")); len(names) != 2 || err != nil {
		t.Fatalf("copies %q, %v", names, err)
	}
	testkit.Must(t, none.Copy(data))
	if names, err := os.ReadDir(dir); len(names) != 1 || err != nil {
		t.Errorf("%v is left, %v", names, err)
	}
	testkit.Must(t, os.Remove(filepath.Join(dir, "notes")))
	testkit.Must(t, none.Copy(data))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}
