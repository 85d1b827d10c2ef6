//go:build !linux

package durable

// MaxFiles is how many descriptors this process may have open: elsewhere than on
// Linux it is not asked, and connections are not bounded.
func MaxFiles() int { return 1 << 30 }
