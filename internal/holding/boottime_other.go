//go:build !linux

package holding

import "time"

// bootTime is a time that all processes see alike. It is that of the clock on the wall, since
// the system has no other that goes on while the machine sleeps.
func bootTime() time.Duration { return time.Duration(time.Now().UnixNano()) }
