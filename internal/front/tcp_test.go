package front

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"raftkv/internal/testkit"
	"raftkv/internal/tlsport"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"go.uber.org/zap"
)

// Over TCP the answering goroutine writes, and the connection's own one goes on with the
// requests that came with the first.
func TestFrontPiecesOverTCP(t *testing.T) {
	overBoth(t, func(ft *frontTest, dial func() net.Conn) {
		ft.pieces(func() *client {
			c := dial()
			ft.Cleanup(func() { _ = c.Close() })
			return &client{ft, c, bufio.NewReader(c)}
		})
	})
}

// overBoth runs a test over plain connections, and over secured ones.
func overBoth(t *testing.T, test func(ft *frontTest, dial func() net.Conn)) {
	t.Run("plain", func(t *testing.T) {
		ft, addr := overTCP(t, nil)
		test(ft, func() net.Conn {
			c, err := net.Dial("tcp", addr)
			testkit.Must(t, err)
			testkit.Must(t, c.SetDeadline(time.Now().Add(time.Minute)))
			return c
		})
	})
	t.Run("secured", func(t *testing.T) {
		server, client := tlsPair(t)
		ft, addr := overTCP(t, tlsport.New(tlsport.Config{Log: zap.NewNop(), TLS: server, Names: certNames}))
		test(ft, func() net.Conn {
			c, err := tls.Dial("tcp", addr, client)
			testkit.Must(t, err)
			testkit.Must(t, c.SetDeadline(time.Now().Add(time.Minute)))
			return c
		})
	})
}

// overTCP serves real connections.
func overTCP(t *testing.T, port *tlsport.Port) (ft *frontTest, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	ft = &frontTest{T: t, store: newStore(), handed: make(chan net.Conn, 100)}
	ft.Server = New(zap.NewNop(), testLimits, port, func(c net.Conn) { ft.handed <- c })
	ft.Handle(ft.store)
	ended := make(chan error, 1)
	go func() { ended <- ft.Serve(l) }()
	t.Cleanup(func() {
		testkit.Must(t, l.Close())
		testkit.Must(t, <-ended)
		ft.Close()
	})
	return ft, l.Addr().String()
}

// Guarantee: clients that take no answer keep nobody waiting, and get all of it when
// they take it.
func TestFrontNeverRead(t *testing.T) { overBoth(t, neverRead) }

func neverRead(ft *frontTest, dial func() net.Conn) {
	t := ft.T
	const big, asks, clients = 64 << 10, 128, 100 // more than the system's buffers take
	ft.store.values["big"], ft.store.values["small"] = strings.Repeat("v", big), "value"
	alone := ft.slowestOf(dial, 1000)
	var deaf []net.Conn
	for range clients {
		c := dial()
		defer func() { _ = c.Close() }()
		go func() { _, _ = io.WriteString(c, strings.Repeat(get("big"), asks)) }() // waits, or fails where it is closed
		deaf = append(deaf, c)
	}
	stuck := func() (n uint64) {
		for n = ft.served.Load(); ; n = ft.served.Load() {
			time.Sleep(50 * time.Millisecond)
			if ft.served.Load() == n {
				return n
			}
		}
	}
	if n := stuck(); n < clients || n >= clients*asks {
		t.Fatalf("%d answers were made; the clients that read nothing asked for %d", n, clients*asks)
	}
	beside := ft.slowestOf(dial, 1000)
	t.Logf("p99 of others: %v alone, %v beside %d clients that never read", alone, beside, clients)
	for _, c := range deaf {
		in := bufio.NewReader(c)
		for range asks {
			resp, err := http.ReadResponse(in, nil)
			testkit.Must(t, err)
			if n, err := io.Copy(io.Discard, resp.Body); n != big || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
	}
}

// slowestOf gets a small value so often, and returns the 99th percentile of how long that
// took.
func (ft *frontTest) slowestOf(dial func() net.Conn, n int) time.Duration {
	ft.Helper()
	c := dial()
	defer func() { _ = c.Close() }()
	in := bufio.NewReader(c)
	var took []time.Duration
	for range n {
		began := time.Now()
		_, err := io.WriteString(c, get("small"))
		testkit.Must(ft, err)
		resp, err := http.ReadResponse(in, nil)
		testkit.Must(ft, err)
		_, err = io.Copy(io.Discard, resp.Body)
		testkit.Must(ft, err)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[n*99/100]
}

// Guarantee: a connection that was handed over takes no memory of the front, however long it
// lasts: ten thousand watches do.
func TestFrontLetsGo(t *testing.T) { overBoth(t, letsGo) }

func letsGo(ft *frontTest, dial func() net.Conn) {
	t := ft.T
	client := dial()
	defer func() { _ = client.Close() }()
	var of weak.Pointer[conn]
	testkit.Eventually(t, "the connection has come", func() bool {
		ft.mu.Lock()
		defer ft.mu.Unlock()
		for c := range ft.conns {
			of = weak.Make(c)
		}
		return of.Value() != nil
	})
	const text = "GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n"
	_, err := io.WriteString(client, text)
	testkit.Must(t, err)
	handed := <-ft.handed
	got := make([]byte, len(text))
	if _, err := io.ReadFull(handed, got); err != nil || string(got) != text {
		t.Fatalf("%q was handed over, %v", got, err)
	}
	_, err = io.WriteString(client, "x")
	testkit.Must(t, err)
	if _, err := io.ReadFull(handed, got[:1]); err != nil { // what was read before is used up
		t.Fatal(err)
	}
	testkit.Eventually(t, "the front has let go of it", func() bool {
		runtime.GC()
		return of.Value() == nil
	})
	testkit.Must(t, handed.Close())
	if n := ft.Open(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
}
