package state

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"raftkv/internal/statefile"
)

// The state knows of files only here.

// ReadFile loads a state file.
func ReadFile(path string) (*State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	s, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	return s, nil
}

// ReadBackup reads a state file, from stdin if its name is -.
func ReadBackup(stdin io.Reader, file string) (st *State, digest [sha256.Size]byte, err error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, digest, err
		}
		defer func() { _ = f.Close() }() // only read from
		in = f
	}
	sr, err := statefile.NewReader(in)
	if err == nil {
		st, err = readRecords(sr)
	}
	if err != nil {
		return nil, digest, fmt.Errorf("backup %s: %w", file, err)
	}
	return st, sr.Digest, nil
}
