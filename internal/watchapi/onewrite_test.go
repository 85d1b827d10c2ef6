package watchapi

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// countingListener counts the writes of its connections.
type countingListener struct {
	net.Listener
	writes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

// Guarantee: what a stream has to say at once leaves in one write, up to what is gathered, and
// arrives as it was said.
func TestOneWrite(t *testing.T) {
	sizes := []int{1, 2047, 2048, 2049, 4096, 10_000, bufferBytes - 1, bufferBytes}
	var writes atomic.Int64
	var said bytes.Buffer
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, done := web.UntilHungUp(r)
		defer done()
		s := newStream(nil, nil, w, r)
		if s.alone == nil {
			t.Error("the stream does not know its connection")
		}
		if err := s.flush(); err != nil { // the head
			t.Error(err)
		}
		for _, size := range sizes {
			before := writes.Load()
			b := lend()
			for i := range size {
				*b = append(*b, byte('a'+(i+size)%26))
			}
			said.Write(*b)
			if err := s.sendLent(b); err != nil {
				t.Error(err)
			}
			if n := writes.Load() - before; n != 1 {
				t.Errorf("%d bytes left in %d writes", size, n)
			}
		}
	})
	server := httptest.NewUnstartedServer(handler)
	server.Listener = web.HangUpListener{Listener: countingListener{server.Listener, &writes}}
	server.Config.ConnContext = web.ConnContext
	server.Start()
	defer server.Close()
	resp, err := http.Get(server.URL)
	testkit.Must(t, err)
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, said.Bytes()) || !slices.Equal(resp.TransferEncoding, []string{"chunked"}) {
		t.Errorf("%d of %d bytes arrived, %v, %v", len(got), said.Len(), resp.TransferEncoding, err)
	}
}

// Guarantee: a client that takes nothing is cut off when its time is up, nothing is written
// behind the piece of a chunk that it has got, and the system holds little of what it did not
// take.
func TestCutInAChunk(t *testing.T) {
	const most = 1 << 20 // without a bound the system takes 2.5 MiB at least
	cut := make(chan error, 1)
	sent := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, done := web.UntilHungUp(r)
		defer done()
		s := newStream(nil, nil, w, r)
		err := s.flush()
		s.armed = time.Now() // which is the test's to set
		for err == nil {
			if err = s.conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err == nil {
				b := lend()
				*b = append(*b, bytes.Repeat([]byte("x"), bufferBytes)...)
				err = s.sendLent(b)
				sent += bufferBytes
			}
		}
		cut <- err
		_ = s.conn.SetWriteDeadline(time.Time{}) // fails where it is closed
		if _, err := s.alone.Write([]byte("more")); err == nil {
			t.Error("something was written behind the piece of a chunk")
		}
	}))
	server.Listener = web.HangUpListener{Listener: server.Listener}
	server.Config.ConnContext = web.ConnContext
	server.Start()
	defer server.Close()
	resp, err := http.Get(server.URL)
	testkit.Must(t, err)
	defer func() { _ = resp.Body.Close() }()
	if err := <-cut; err == nil {
		t.Error("a client that takes nothing is not cut off")
	}
	if sent > most && runtime.GOOS == "linux" {
		t.Errorf("%d bytes were taken for a client that takes nothing, want at most %d", sent, most)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the answer ended as if it was whole")
	}
}
