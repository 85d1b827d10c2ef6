package certs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"raftkv/internal/durable"
	"regexp"
	"slices"
)

// A library that reads certificate and key by itself, at each handshake, must not
// meet files that somebody is writing. So it is given copies. Certificate and key are
// one file, so nobody can read a half of a pair, and a name is never given to another
// content: who has read one half of a file may read the other later.

// copiesKept is how many copies there are: what is in force, and before that what
// those use who have not heard of the last changes yet.
const copiesKept = 3

// copyName is what copies are called, and temporary files of theirs.
var copyName = regexp.MustCompile(`^(pair|ca)-[0-9a-f]{16}\.pem(\.tmp\d*)?$`)

// prepareCopies makes the directory of copies, for this node alone, and removes what
// is left of an earlier run.
func (k *Keeper) prepareCopies() error {
	dir := k.cfg.Copies
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("directory for copies of certificates: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("directory for copies of certificates: %w", err)
	}
	return removeCopies(dir)
}

// RemoveCopies removes a directory of copies, if there is one: a node that has no
// certificates any more keeps no key of theirs. What is no copy stays, in the directory.
func RemoveCopies(dir string) error {
	if err := removeCopies(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	_ = os.Remove(dir) // it has something else in it
	return nil
}

func removeCopies(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("directory for copies of certificates: %w", err)
	}
	for _, e := range entries {
		if copyName.MatchString(e.Name()) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("old copy of a certificate: %w", err)
			}
		}
	}
	return nil
}

// KeepCopies has copies be kept in a directory from now on, of what is in force first.
// It is for whoever does not have the directory yet when the certificates are needed,
// and is called once, before anybody asks for the copies.
func (k *Keeper) KeepCopies(dir string) error {
	k.looking.Lock()
	defer k.looking.Unlock()
	k.cfg.Copies = dir
	if err := k.prepareCopies(); err != nil {
		return err
	}
	return k.copyFiles(k.inForce.Load())
}

// copiesOf returns the names of the copies of what is in a set.
func (k *Keeper) copiesOf(s *set) Files {
	if k.cfg.Copies == "" {
		return Files{}
	}
	h := sha256.New()
	for _, text := range [][]byte{s.text.cert, s.text.key, s.text.ca} {
		fmt.Fprintf(h, "%d\n%s", len(text), text)
	}
	name := func(what string) string {
		return filepath.Join(k.cfg.Copies, fmt.Sprintf("%s-%x.pem", what, h.Sum(nil)[:8]))
	}
	f := Files{Cert: name("pair"), Key: name("pair")}
	if k.cfg.Files.CA != "" {
		f.CA = name("ca")
	}
	return f
}

// CopiedFiles names copies of what is in force: they are whole, belong together, and
// never change. Certificate and key are one file. After two further changes a copy is
// gone, so whoever holds its name is to ask again after each.
func (k *Keeper) CopiedFiles() Files { return k.copiesOf(k.inForce.Load()) }

// copyFiles makes the copies of a set, and removes old ones.
func (k *Keeper) copyFiles(s *set) error {
	f := k.copiesOf(s)
	if f == (Files{}) {
		return nil
	}
	if err := writeCopy(f.Cert, slices.Concat(s.text.cert, []byte("\n"), s.text.key)); err != nil {
		return err
	}
	if f.CA != "" {
		if err := writeCopy(f.CA, s.text.ca); err != nil {
			return err
		}
	}
	k.copied = slices.DeleteFunc(k.copied, func(name string) bool { return name == f.Cert })
	k.copied = append(k.copied, f.Cert)
	for len(k.copied) > copiesKept {
		pair := k.copied[0]
		ca := filepath.Join(filepath.Dir(pair), "ca"+filepath.Base(pair)[len("pair"):])
		for _, name := range []string{pair, ca} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("old copy of a certificate: %w", err)
			}
		}
		k.copied = k.copied[1:]
	}
	return nil
}

// writeCopy writes a file that only this node can read. Its name stands for its
// content, so one that is there is left.
func writeCopy(name string, text []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, text) {
		return nil
	}
	err := durable.WriteFile(name, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy of a certificate: %w", err)
	}
	return nil
}
