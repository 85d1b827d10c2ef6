package observe

import (
	"sync"
	"time"
)

// overdueAfter is how many intervals of the checks may pass after a change
// before its check is late.
const overdueAfter = 3

// overdue knows since when there is something that no check has covered.
type overdue struct {
	interval time.Duration // 0: this node expects no checks

	mu      sync.Mutex
	since   time.Time // zero: everything is checked
	checked uint64    // the newest decided check at the last look
}

// look notes whether there is anything to check, and which check was the newest
// that was decided. Under writes there is always something, so
// the time begins anew with each check.
func (o *overdue) look(now time.Time, pending bool, checked uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !pending:
		o.since = time.Time{}
	case o.since.IsZero() || checked != o.checked:
		o.since = now
	}
	o.checked = checked
}

// seconds returns by how much a check is late, 0 if it is not.
func (o *overdue) seconds(now time.Time) float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.interval == 0 || o.since.IsZero() {
		return 0
	}
	return max(0, now.Sub(o.since)-overdueAfter*o.interval).Seconds()
}
