package transport

import (
	"net"
	"net/http"
	"raftkv/internal/web"
)

// One write for all that rafthttp has to say at once.
//
// rafthttp encodes a message in pieces, and flushes when no further message waits.
// net/http frames the pieces as chunks and passes them on through buffers of 2 and
// 4 KiB, so an entry of 8 KiB leaves in three writes: three packets, which may wake
// the reader three times. On a stream, what net/http writes therefore waits for
// rafthttp's flush. The bytes on the wire, the framing too, are the same.

// maxGathered bounds what waits for a flush. A round of 64 writes of 1 KiB fits;
// what is larger costs a write more, and is not copied.
const maxGathered = 128 << 10

// gatherer is what stands between net/http and the connection of a stream. It belongs
// to the goroutine that writes the stream.
type gatherer struct {
	conn net.Conn
	buf  []byte
	err  error // of the write that failed; the connection is closed then
}

// Write takes p over, and passes on what there is no room for.
func (g *gatherer) Write(p []byte) (int, error) {
	if g.err == nil && len(g.buf)+len(p) <= maxGathered {
		g.buf = append(g.buf, p...)
	} else {
		g.send(p)
	}
	if g.err != nil {
		return 0, g.err
	}
	return len(p), nil
}

// send writes what has gathered, and p behind it.
func (g *gatherer) send(p []byte) {
	if g.err != nil || len(g.buf)+len(p) == 0 {
		return
	}
	if len(p) == 0 {
		_, g.err = g.conn.Write(g.buf)
	} else {
		_, g.err = (&net.Buffers{g.buf, p}).WriteTo(g.conn)
	}
	g.buf = g.buf[:0]
	if g.err != nil {
		_ = g.conn.Close() // part of a chunk may have been written: nothing may follow it
	}
}

// gatheredStream is the answer on which rafthttp writes a stream.
type gatheredStream struct {
	http.ResponseWriter
	gatherer *gatherer
}

// Write fails after a flush that has failed. http.Flusher cannot say so itself.
func (s *gatheredStream) Write(p []byte) (int, error) {
	if s.gatherer.err != nil {
		return 0, s.gatherer.err
	}
	return s.ResponseWriter.Write(p)
}

// Flush writes all that was written before it.
func (s *gatheredStream) Flush() {
	s.ResponseWriter.(http.Flusher).Flush()
	s.gatherer.send(nil)
}

// gather returns an answer whose bytes wait for Flush. end is for when the handler
// is done with it. An answer on a connection that is not its own alone stays as it is.
func gather(w http.ResponseWriter, r *http.Request) (gathered http.ResponseWriter, end func()) {
	conn, ok := r.Context().Value(web.ConnKey{}).(*web.HangUpConn)
	if _, flushes := w.(http.Flusher); !ok || !flushes || r.ProtoMajor > 1 {
		return w, func() {}
	}
	g := &gatherer{conn: conn.Conn}
	conn.WriteThrough(g)
	return &gatheredStream{w, g}, func() {
		g.send(nil)
		conn.WriteThrough(nil)
	}
}
