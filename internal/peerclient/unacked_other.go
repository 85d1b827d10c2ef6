//go:build !linux

package peerclient

import (
	"syscall"
	"time"
)

// limitRaw does nothing where there is no such limit. There a stream ends
// when this node finds the link silent.
func limitRaw(syscall.RawConn, time.Duration) error { return nil }
