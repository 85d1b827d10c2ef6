//go:build unix

package durable

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// IsMountPoint reports whether a directory, in absolute terms and without links,
// is where something is mounted.
func IsMountPoint(dir string) (bool, error) {
	var own, parent syscall.Stat_t
	if err := syscall.Stat(dir, &own); errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if err := syscall.Stat(filepath.Dir(dir), &parent); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
	}
	if own.Dev != parent.Dev {
		return true, nil
	}
	// What is mounted may be another directory of the same device. Linux lists
	// all mounts; elsewhere such a directory is found when it cannot be renamed.
	f, err := os.Open("/proc/self/mountinfo")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // only read from
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && mountEscapes.Replace(fields[4]) == dir {
			return true, nil
		}
	}
	return false, lines.Err()
}

// mountEscapes undoes how the kernel writes the path of a mount point.
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
