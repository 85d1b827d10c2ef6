package main

import (
	"net/http"
	"raftkv/internal/listening"
	"raftkv/internal/peerclient"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func sockopt(t *testing.T, c syscall.Conn, level, opt int) (value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	testkit.Must(t, err)
	var operr error
	testkit.Must(t, raw.Control(func(fd uintptr) { value, operr = unix.GetsockoptInt(int(fd), level, opt) }))
	testkit.Must(t, operr)
	return value
}

// On the peer listener the kernel limits what is written into streams and
// nothing else: a snapshot may wait for its receiver as long as transport.StallLimit. It
// keeps all connections alive, and limits those on which this node asks.
func TestLinkSocketOptions(t *testing.T) {
	t.Parallel()
	l, err := listen("127.0.0.1:0", listening.PeerServer(zap.NewNop()))
	testkit.Must(t, err)
	defer func() { testkit.Must(t, l.close()) }()
	ls := transport.NewLinks(zap.NewNop(), 1, 7, time.Millisecond, 1500*time.Millisecond)
	options := make(chan [2]int, 1)
	look := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		conn := peerclient.ConnOf(r.Context()).(syscall.Conn)
		options <- [2]int{
			sockopt(t, conn, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT), sockopt(t, conn, unix.SOL_SOCKET, unix.SO_KEEPALIVE),
		}
	})
	mux := http.NewServeMux()
	mux.Handle("/raft/", look)
	mux.Handle("/raft/stream/", ls.HoldStreams(look))
	h := http.Handler(mux)
	l.handler.Store(&h) // before the first request comes: serve would do so a little later
	go func() { _ = l.serve(h, nil) }()
	for path, want := range map[string][2]int{
		"/raft/stream/msgapp/2":    {3000, 1},
		"/raft/stream/msgapp/none": {0, 1},
		"/raft/snapshot":           {0, 1},
	} {
		c := &http.Client{Transport: &http.Transport{}} // with a connection of its own
		resp, err := c.Get("http://" + l.Addr().String() + path)
		testkit.Must(t, err)
		testkit.Must(t, resp.Body.Close())
		if got := <-options; got != want {
			t.Errorf("%s: limit and keep-alive %v, want %v", path, got, want)
		}
		c.CloseIdleConnections()
	}
	conn, err := peerclient.NewDialer().DialContext(t.Context(), "tcp", l.Addr().String())
	testkit.Must(t, err)
	defer conn.Close()
	if got := sockopt(t, conn.(syscall.Conn), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != int(peerclient.Unacked.Milliseconds()) {
		t.Errorf("what this node asks is limited to %d ms, want %v", got, peerclient.Unacked)
	}
	if got := sockopt(t, conn.(syscall.Conn), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); got != int(peerclient.Unacked.Seconds()) {
		t.Errorf("it is kept alive after %d s, want %v", got, peerclient.Unacked)
	}
}
