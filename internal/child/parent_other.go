//go:build !linux

package child

import "syscall"

// attributes tie nothing to the end of this process: only Linux can.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// seesZombies: onlyZombies does not know.
const seesZombies = false

// onlyZombies returns false: it is known on Linux only.
func onlyZombies(int) bool { return false }

// Below returns nothing: it is known on Linux only.
func Below(int) []int { return nil }
