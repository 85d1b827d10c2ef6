//go:build !linux

package client_test

import "syscall"

func endsWithUs() *syscall.SysProcAttr { return nil }
