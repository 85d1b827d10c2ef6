package client

import "time"

// What a program needs that has to have ended before a hold does.

// Until returns up to when the lease is held for sure, if nothing keeps it alive any
// more: its context ends then at the latest. It moves on each time the lease was kept alive,
// and is in the past once the lease was lost.
func (l *Lease) Until() time.Time {
	if l.ctx.Err() != nil {
		return time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.life - elapsed(l.sent))
}

// Until is that of the lease under which the lock is held; now, if it is not held.
func (m *Mutex) Until() time.Time { return m.h.until() }

// Until is that of the lease under which this Election leads; now, if it does not.
func (e *Election) Until() time.Time { return e.h.until() }

func (h *holding) until() time.Time {
	if lease, _ := h.current(); lease != nil {
		return lease.Until()
	}
	return time.Now()
}
