package process

import (
	"syscall"
)

// procAttr makes the kernel send sig to a child when the test process dies, so that no server outlives its test.
func procAttr(sig syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: sig}
}
