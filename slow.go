package main

import (
	"net/http"
	"time"

	"go.uber.org/zap"
)

// What takes so long that an operator should hear of it.
const (
	// slowSyncAfter is how long the log may take to be written and synced. Nothing is
	// acknowledged sooner, and past the election timeout leaders are lost to it.
	slowSyncAfter = 100 * time.Millisecond
	// slowRequestAfter is how long a request may take. One that waits for an election
	// takes longer, at the default election timeout.
	slowRequestAfter = time.Second
)

// noteSync says that a sync of the log, which began then, was slow.
func (s *storage) noteSync(began time.Time) {
	if took := time.Since(began); took > slowSyncAfter {
		s.log.Warn("slow sync of the log: the disk is slow, or busy", zap.Duration("took", took))
	}
}

// noteRequest says that a request was slow. Which key it was of is nobody's
// business. How long a download takes is up to who takes it.
func (a *api) noteRequest(r *http.Request, route string, status int, took time.Duration) {
	if took > slowRequestAfter && route != "snapshot" && route != "pprof" {
		a.log.Warn("slow request", zap.String("method", methodLabel(r.Method)), zap.String("route", route),
			zap.Int("status", status), zap.Duration("took", took))
	}
}
