package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// writtenConn is a connection on which a request comes. It notes what is written to it.
type writtenConn struct {
	net.Conn
	turn   chan bool // holds one value, which the test takes to hold writes up
	closed atomic.Bool

	mu     sync.Mutex
	writes [][]byte
	fails  bool
}

func newWrittenConn(t *testing.T, request string) *writtenConn {
	other, one := net.Pipe()
	c := &writtenConn{Conn: one, turn: make(chan bool, 1)}
	c.turn <- true
	go func() { _, _ = io.WriteString(other, request) }() // until it is read, or other is closed
	t.Cleanup(func() { testkit.Must(t, other.Close()) })
	return c
}

func (c *writtenConn) Write(p []byte) (int, error) {
	c.turn <- <-c.turn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails {
		return 0, errors.New("the other side is gone")
	}
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *writtenConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// take returns what was written since it was asked last.
func (c *writtenConn) take() (writes [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	writes, c.writes = c.writes, nil
	return writes
}

// oneConnListener accepts one connection.
type oneConnListener struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func listenOnce(c net.Conn) *oneConnListener {
	l := &oneConnListener{conns: make(chan net.Conn, 1)}
	l.closed, l.close = context.WithCancel(context.Background())
	l.conns <- c
	return l
}

func (l *oneConnListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
}

func (l *oneConnListener) Close() error { l.close(); return nil }

func (l *oneConnListener) Addr() net.Addr { return &net.TCPAddr{} }

// serveConn serves one connection of the peer listener until end is called.
func serveConn(c *writtenConn, h http.Handler) (end func()) {
	server := &http.Server{Handler: h, ConnContext: web.ConnContext}
	l := listenOnce(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(web.HangUpListener{Listener: l})
	}()
	return func() {
		_ = server.Close()
		<-done
	}
}

// oneStream is a stream of a kind that node 1 writes to node 2.
type oneStream struct {
	*writtenConn
	tr   *rafthttp.Transport
	lost atomic.Int64
}

// openStream is called in a bubble. hold may put something before rafthttp's handler.
func openStream(t *testing.T, kind string, hold func(http.Handler) http.Handler) *oneStream {
	t.Helper()
	s := &oneStream{}
	s.tr = &rafthttp.Transport{
		Logger: zap.NewNop(), ID: 1, ClusterID: 7, Raft: deafRaft{&s.lost}, ErrorC: make(chan error, 1),
		ServerStats: stats.NewServerStats("1", "1"), LeaderStats: stats.NewLeaderStats(zap.NewNop(), "1"),
	}
	testkit.Must(t, s.tr.Start())
	s.tr.AddPeer(2, []string{"http://127.0.0.1:1"})
	s.writtenConn = newWrittenConn(t, "GET /raft/stream/"+kind+"/2 HTTP/1.1\r\nHost: a\r\nX-Server-From: 2\r\nX-Server-Version: 3.7.0\r\n"+
		"X-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-Id: 7\r\nX-Raft-To: 1\r\n\r\n")
	end := serveConn(s.writtenConn, hold(s.tr.Handler()))
	t.Cleanup(func() {
		s.tr.Stop()
		end()
	})
	synctest.Wait()
	if head := s.take(); len(head) != 1 || !bytes.HasPrefix(head[0], []byte("HTTP/1.1 200 OK\r\n")) {
		t.Fatalf("the stream opens with %q", head)
	}
	return s
}

// send sends node 2 entries of these sizes, one a message, from index on.
func (s *oneStream) send(index uint64, sizes ...int) {
	for _, size := range sizes {
		e := &raftpb.Entry{Term: new(uint64(1)), Index: new(index + 1), Data: bytes.Repeat([]byte{byte(index)}, size)}
		s.tr.Send([]*raftpb.Message{{
			Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1)),
			LogTerm: new(uint64(1)), Index: new(index), Commit: new(index), Entries: []*raftpb.Entry{e},
		}})
		index++
	}
}

// Guarantee: what rafthttp flushes at once, a message or all that waited, leaves in one
// write and at once; and the bytes are those that net/http would have written by itself.
func TestStreamWrites(t *testing.T) {
	t.Parallel()
	plain := func(h http.Handler) http.Handler { return h }
	for _, kind := range []string{"msgapp", "message"} {
		for _, tt := range []struct {
			name  string
			sizes []int // of the messages that wait when the first has been written
			want  int   // writes
		}{
			{"none waits", nil, 1},
			{"one small message", []int{10}, 2},
			{"one message", []int{8 << 10}, 2},
			{"many messages", []int{8 << 10, 1, 5000, 2048, 20 << 10}, 2},
			// What is too large and what is before it are two writes here, and one at a real connection.
			{"a message that is too large", []int{maxGathered}, 4},
		} {
			t.Run(kind+", "+tt.name, func(t *testing.T) {
				streams := func(hold func(http.Handler) http.Handler) (first, all []byte, writes int) {
					synctest.Test(t, func(t *testing.T) {
						s := openStream(t, kind, hold)
						s.send(4, 9000)
						synctest.Wait()
						was := s.take()
						first, writes = bytes.Join(was, nil), len(was)
						turn := <-s.turn // while others come to wait behind it
						s.send(5, 10)    // in one write with net/http alone, too
						synctest.Wait()
						s.send(6, tt.sizes...)
						synctest.Wait()
						s.turn <- turn
						synctest.Wait()
						was = s.take()
						all, writes = bytes.Join(was, nil), writes+len(was)
					})
					return first, all, writes
				}
				first, all, writes := streams(newOneLink(nil).HoldStreams)
				if writes != 1+tt.want {
					t.Errorf("%d writes, want %d", writes, 1+tt.want)
				}
				wantFirst, wantAll, plainly := streams(plain)
				if plainly <= writes {
					t.Errorf("net/http alone makes %d writes, which shows nothing", plainly)
				}
				if !bytes.Equal(first, wantFirst) || !bytes.Equal(all, wantAll) {
					t.Errorf("%d and %d bytes were written, which are not the %d and %d of net/http alone", len(first), len(all), len(wantFirst), len(wantAll))
				}
			})
		}
	}
}

// A write that fails ends the connection, and with the next message the stream.
func TestStreamWriteFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		s := openStream(t, "message", func(h http.Handler) http.Handler {
			held := newOneLink(nil).HoldStreams(h)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(ended)
				held.ServeHTTP(w, r)
			})
		})
		s.mu.Lock()
		s.fails = true
		s.mu.Unlock()
		s.send(4, 10)
		synctest.Wait()
		if !s.closed.Load() {
			t.Error("the connection is open after a write that failed")
		}
		select {
		case <-ended:
			t.Error("the stream ended with the write that failed: rafthttp learns of it with the next")
		default:
		}
		s.send(5, 10)
		synctest.Wait()
		select {
		case <-ended:
		default:
			t.Error("the stream goes on after a write that failed")
		}
		if s.lost.Load() == 0 {
			t.Error("raft does not hear that the message is lost")
		}
	})
}

// An answer of a handler that does not flush, as a refusal, is whole; what a handler
// left unflushed is written when it ends, and the connection serves the next request.
func TestStreamEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const request = "GET /raft/stream/message/2 HTTP/1.1\r\nHost: a\r\n\r\n"
		c := newWrittenConn(t, request+request)
		turn := 0
		defer serveConn(c, newOneLink(nil).HoldStreams(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if turn++; turn == 1 {
				w.(http.Flusher).Flush()
				_, err := w.Write(bytes.Repeat([]byte("x"), 5000))
				testkit.Must(t, err)
				return
			}
			http.Error(w, "no stream", http.StatusNotFound)
		})))()
		synctest.Wait()
		all := string(bytes.Join(c.take(), nil))
		_, body, _ := strings.Cut(all, "\r\n\r\n")
		want := "1388\r\n" + strings.Repeat("x", 5000) + "\r\n0\r\n\r\nHTTP/1.1 404 Not Found\r\n"
		if !strings.HasPrefix(body, want) || !strings.HasSuffix(body, "\r\n\r\nno stream\n") {
			t.Errorf("the two answers are %.200q ... %q", all, all[max(0, len(all)-200):])
		}
	})
}

// What waits for a flush is bounded.
func TestGathererBound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		pieces []int
		want   int // bytes on the connection before the flush
	}{
		{"the bound", []int{1, maxGathered - 1}, 0},
		{"one past it", []int{1, maxGathered}, maxGathered + 1},
		{"one past it, in one piece", []int{maxGathered + 1}, maxGathered + 1},
		{"past it, and more", []int{maxGathered, 1, 5}, maxGathered + 1},
	} {
		c := newWrittenConn(t, "")
		g := &gatherer{conn: c}
		var sent []byte
		for i, n := range tt.pieces {
			p := bytes.Repeat([]byte{byte('a' + i)}, n)
			sent = append(sent, p...)
			n, err := g.Write(p)
			testkit.Must(t, err)
			if n != len(p) {
				t.Errorf("%s: %d of %d bytes were taken", tt.name, n, len(p))
			}
		}
		got := bytes.Join(c.take(), nil)
		if len(got) != tt.want {
			t.Errorf("%s: %d bytes were written before the flush, want %d", tt.name, len(got), tt.want)
		}
		g.send(nil)
		if got = append(got, bytes.Join(c.take(), nil)...); !bytes.Equal(got, sent) {
			t.Errorf("%s: the bytes were changed on their way", tt.name)
		}
	}
}
