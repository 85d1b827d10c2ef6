package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// texts are the files of a release besides the program: the same for all platforms.
type texts struct {
	readme, changelog, install, license []byte
	licenses                            []byte // of all that is linked into the program
	man                                 []byte // the man page
	bash, zsh, fish                     []byte // completions
	unit, env, sysusers                 []byte // of systemd
}

// texts reads those of the checkout, and has the program write those that it knows best.
func (r *release) texts(ctx context.Context, program string, targets []platform) (t texts, err error) {
	for name, to := range map[string]*[]byte{
		"README.md": &t.readme, "CHANGELOG.md": &t.changelog, "LICENSE": &t.license, "docs/install.md": &t.install,
		"deploy/systemd/raftkv.service": &t.unit, "deploy/systemd/raftkv.env": &t.env, "deploy/systemd/raftkv.sysusers": &t.sysusers,
	} {
		if *to, err = os.ReadFile(filepath.Join(r.root, name)); err != nil {
			return t, err
		}
	}
	for _, s := range []struct {
		to   *[]byte
		args []string
	}{
		{&t.man, []string{"help", "--man"}},
		{&t.bash, []string{"completion", "bash"}},
		{&t.zsh, []string{"completion", "zsh"}},
		{&t.fish, []string{"completion", "fish"}},
	} {
		text, err := r.output(ctx, []string{}, program, s.args...)
		if err != nil {
			return t, err
		}
		*s.to = []byte(text)
	}
	t.licenses, err = r.licenses(ctx, targets)
	return t, err
}

// licenses returns the licenses of the modules, and of Go itself, that are linked into the
// program for one of the targets. They ask that whoever gets the program gets them, too.
func (r *release) licenses(ctx context.Context, targets []platform) ([]byte, error) {
	dirs := make(map[string]string) // of modules, by path and version
	const format = `{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}	{{.Dir}}{{end}}{{end}}`
	for _, p := range targets {
		list, err := r.output(ctx, goEnv(p), "go", "list", "-deps", "-f", format, ".")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(list) {
			if name, dir, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
				dirs[name] = dir
			}
		}
	}
	version, err := r.output(ctx, nil, "go", "env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	golang := strings.Fields(version)
	dirs["Go "+golang[0]] = golang[1]

	var text bytes.Buffer
	fmt.Fprintf(&text, "raftkv %s is made of the following, under these licenses.\n", r.version)
	for _, name := range sorted(dirs) {
		files, err := licenseFiles(dirs[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, file := range files {
			license, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&text, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 70), name, filepath.Base(file), bytes.TrimSpace(license))
		}
	}
	return text.Bytes(), nil
}

// licenseFiles returns the files of a module's directory that say under which terms it may
// be passed on. Without one it must not be.
func licenseFiles(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	licensed := false
	for _, e := range entries {
		stem, _, _ := strings.Cut(strings.ToUpper(e.Name()), ".")
		is := slices.Contains([]string{"LICENSE", "LICENCE", "COPYING"}, stem)
		if e.Type().IsRegular() && (is || stem == "NOTICE" || stem == "PATENTS") {
			files, licensed = append(files, filepath.Join(dir, e.Name())), licensed || is
		}
	}
	if !licensed {
		return nil, fmt.Errorf("%s has no license", dir)
	}
	return files, nil
}

// zipped compresses, to the same bytes each time.
func zipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b) // which names no file and no time
	_, err := w.Write(data)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}
