package listening

import (
	"net/http"
	"raftkv/internal/web"
	"time"

	"go.uber.org/zap"
)

// Time limits of the HTTP servers of both ports, and how long a head may be.
const (
	HeadLimit    = 5 * time.Second  // to send the request line and headers
	bodyLimit    = 30 * time.Second // to send a whole client request
	AnswerLimit  = 60 * time.Second // to take a whole answer
	IdleLimit    = 3 * time.Minute  // of a kept connection between requests
	MaxHeadBytes = 64 << 10
)

// ClientServer makes the HTTP server of the client API. Its clocks run while a request
// waits for the cluster, up to wait, so that comes on top.
func ClientServer(wait time.Duration, log *zap.Logger) *http.Server {
	s := &http.Server{
		ReadHeaderTimeout: HeadLimit,
		ReadTimeout:       bodyLimit + wait,
		WriteTimeout:      AnswerLimit + wait,
		IdleTimeout:       IdleLimit,
		MaxHeaderBytes:    MaxHeadBytes,
		ErrorLog:          zap.NewStdLog(log.Named("http")),
	}
	web.AllowHTTP2(s)
	return s
}

// PeerServer makes the HTTP server of the peer listener. Its connections are long-lived
// streams, so only the headers have a time limit.
func PeerServer(log *zap.Logger) *http.Server {
	return &http.Server{
		ReadHeaderTimeout: HeadLimit,
		IdleTimeout:       IdleLimit,
		MaxHeaderBytes:    MaxHeadBytes,
		ErrorLog:          zap.NewStdLog(log.Named("peer-http")),
	}
}
