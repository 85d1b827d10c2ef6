package front

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// Guarantee: a client that does not take its answers over TLS holds up nobody, and not the
// end of the server either, whoever closes its connection.
func TestFrontClosesSealedThatDoNotRead(t *testing.T) {
	ft, _, addr, client := secured(t, false)
	ft.store.values["k"] = "v"
	ft.store.values["large"] = strings.Repeat("x", 1<<20)
	raw, err := net.Dial("tcp", addr)
	testkit.Must(t, err)
	testkit.Must(t, raw.(*net.TCPConn).SetReadBuffer(4<<10))
	deaf := tls.Client(raw, client)
	defer raw.Close()
	for range 32 {
		_, err := io.WriteString(deaf, get("large"))
		testkit.Must(t, err)
	}
	taking := func() (c *conn) {
		ft.mu.Lock()
		defer ft.mu.Unlock()
		for c := range ft.conns {
			if phase(c.clock.at.Load()%phases) == taking {
				return c
			}
		}
		return nil
	}
	testkit.Eventually(t, "an answer is not taken", func() bool {
		c := taking()
		if c == nil {
			return false
		}
		time.Sleep(300 * time.Millisecond)
		return taking() == c
	})
	stuck, swept := taking(), make(chan struct{})
	go func() {
		defer close(swept)
		stuck.sweep(1 << 40)
	}()
	select {
	case <-swept:
	case <-time.After(10 * time.Second):
		t.Fatal("who looks after all connections waits for a client")
	}
	c, err := tls.Dial("tcp", addr, client)
	testkit.Must(t, err)
	defer c.Close()
	if status, _ := ask(t, c, get("k")); status != http.StatusOK {
		t.Errorf("another client: %d", status)
	}
}

// Guarantee: where all speak TLS, who does not begin a handshake is gone after the time for a
// head. Who has made one, and who may speak plain HTTP, may wait with the request.
func TestFrontEndsSilentAtTLS(t *testing.T) {
	for _, tt := range []struct{ optional, shakes, stays bool }{{false, false, false}, {false, true, true}, {true, false, true}} {
		ft, _, addr, client := secured(t, tt.optional)
		nc, err := net.Dial("tcp", addr)
		testkit.Must(t, err)
		if tt.shakes {
			nc = tls.Client(nc, client)
			testkit.Must(t, nc.(*tls.Conn).Handshake())
		}
		var c *conn
		testkit.Eventually(t, "the connection waits for what comes", func() bool {
			ft.mu.Lock()
			defer ft.mu.Unlock()
			for c = range ft.conns {
				p := phase(c.clock.at.Load() % phases)
				return p == first || p == again && !tt.shakes
			}
			return false
		})
		c.sweep(ft.until(testLimits.Head))
		testkit.Must(t, nc.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		_, err = nc.Read(make([]byte, 1))
		if stays := errors.Is(err, os.ErrDeadlineExceeded); stays != tt.stays {
			t.Errorf("%+v: %v", tt, err)
		}
		_ = nc.Close()
	}
}
