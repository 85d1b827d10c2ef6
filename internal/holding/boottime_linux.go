package holding

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the machine has started, with that in which it slept. All
// processes see the same.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return time.Duration(time.Now().UnixNano()) // every Linux that Go runs on has the clock
	}
	return time.Duration(t.Nano())
}
