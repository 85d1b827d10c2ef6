package state

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

// The state knows of files only here.

// ReadFile loads a state file. digest is the SHA-256 at its end.
func ReadFile(path string) (st *State, digest [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, digest, err
	}
	defer func() { _ = f.Close() }() // only read from
	if st, digest, err = readDigest(f); err != nil {
		return nil, digest, fmt.Errorf("state file %s: %w", path, err)
	}
	return st, digest, nil
}

// ReadBackup is ReadFile, but from stdin if the name is -.
func ReadBackup(stdin io.Reader, file string) (st *State, digest [sha256.Size]byte, err error) {
	if file != "-" {
		return ReadFile(file)
	}
	if st, digest, err = readDigest(stdin); err != nil {
		return nil, digest, fmt.Errorf("backup from standard input: %w", err)
	}
	return st, digest, nil
}
