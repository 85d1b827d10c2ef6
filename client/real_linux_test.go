package client_test

import "syscall"

// endsWithUs ends a process when the thread that started it does.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
