package main

import (
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Ensure that Ctrl-C, a signal to the process group of the terminal, ends the
// benchmark and not the servers under it.
func TestServersAreInAnotherGroup(t *testing.T) {
	runtime.LockOSThread() // the server dies with the thread that starts it
	defer runtime.UnlockOSThread()
	p, err := startProcess(filepath.Join(t.TempDir(), "log"), "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	group, err := syscall.Getpgid(p.pid())
	if err != nil || group == syscall.Getpgrp() {
		t.Errorf("it is in group %d, with the benchmark: %v", group, err)
	}
}
