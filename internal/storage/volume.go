package storage

import (
	"os"
	"strings"
)

// A data directory that is the root of a volume: it holds what the file system
// puts there, and it cannot be renamed.

// isFileSystems reports whether something at the top of a directory belongs to
// the file system: what fsck found on ext4, and the snapshots of a filer or of
// ZFS. It is nobody's data, and stays where it is.
func isFileSystems(f os.DirEntry) bool {
	switch f.Name() {
	case "lost+found", ".snapshot", ".zfs":
		return f.IsDir()
	}
	return false
}

// Where raftkv recover works within a directory that cannot be renamed.
const (
	RecoveringName = "recovering"       // the new directory, while it is made
	SetAsidePrefix = "before-recovery-" // and a number: an old one
)

// IsSetAside reports whether something at the top of a data directory is what a
// recovery has set aside there.
func IsSetAside(f os.DirEntry) bool { return f.IsDir() && strings.HasPrefix(f.Name(), SetAsidePrefix) }

// DataNames are what makes up a data directory, beside its lock; the log last,
// since a directory that has it counts as one.
var DataNames = []string{"snap", "mark", "wal"}
