package web

import (
	"io"
	"net/http"
)

// HTTP/2, over TLS or in the clear with prior knowledge. A connection of it does the work of many, so
// what many could take is bounded for one.
const (
	// HTTP2Streams is how many requests may be under way on one connection.
	HTTP2Streams = 100
	// http2Frame is the largest frame that a client may send, the least that can be said.
	http2Frame = 16 << 10
	// http2Ahead is how much of all bodies on a connection, and of each, may come before
	// somebody reads it: it is in nobody's budget.
	http2Ahead = 64 << 10
	// http2Rest is how much of a body is still taken before its request is refused: all
	// of a value that is somewhat too large. It costs time, and no memory.
	http2Rest = 4 << 20
)

// AllowHTTP2 lets a server take HTTP/2 beside HTTP/1, with the time limits that it has.
func AllowHTTP2(s *http.Server) {
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true) // over TLS, where it was agreed on
	s.Protocols.SetUnencryptedHTTP2(true)
	s.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: HTTP2Streams, MaxReadFrameSize: http2Frame,
		MaxReceiveBufferPerConnection: http2Ahead, MaxReceiveBufferPerStream: http2Ahead,
		WriteByteTimeout: s.WriteTimeout,
	}
}

// takeRest reads what is left of a body in HTTP/2, within the request's time to arrive.
// An answer ends the stream, and what comes of the body after that is answered with an
// error: a client that meets the error before it has read the answer loses that.
func takeRest(r *http.Request) {
	if r.ProtoMajor == 2 {
		_, _ = io.CopyN(io.Discard, r.Body, http2Rest) // the answer tells more than an error here
	}
}
