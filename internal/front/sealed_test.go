package front

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
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
