//go:build unix && !linux

package process

import "syscall"

// procAttr has no way here to tie the child's life to the test's: t.Cleanup alone ends it.
func procAttr(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true}
}
