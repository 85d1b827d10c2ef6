//go:build !unix

package durable

// IsMountPoint does not know of mount points here: such a directory is found when
// it cannot be renamed.
func IsMountPoint(string) (bool, error) { return false, nil }
