//go:build !linux

package main

// maxFiles is how many descriptors this process may have open: elsewhere than on
// Linux it is not asked, and connections are not bounded.
func maxFiles() int { return 1 << 30 }
