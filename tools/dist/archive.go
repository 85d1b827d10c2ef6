package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// file is one of an archive.
type file struct {
	name string // within the directory that the archive has
	data []byte
	mode int64
}

// archiveName is what an archive is called, and the directory in it.
func (r *release) archiveName(p platform) string {
	return "raftkv-" + r.number() + "-" + p.os + "-" + p.arch
}

// archive writes the archive of a platform.
func (r *release) archive(to string, p platform, program []byte, t texts) error {
	files := []file{
		{"raftkv", program, 0o755},
		{"README.md", t.readme, 0o644},
		{"CHANGELOG.md", t.changelog, 0o644},
		{"INSTALL.md", t.install, 0o644},
		{"LICENSE", t.license, 0o644},
		{"LICENSES-OF-OTHERS", t.licenses, 0o644},
		{"man/raftkv.1", t.man, 0o644},
		{"completions/raftkv.bash", t.bash, 0o644},
		{"completions/_raftkv", t.zsh, 0o644},
		{"completions/raftkv.fish", t.fish, 0o644},
	}
	if p.os == "linux" {
		files = append(files,
			file{"systemd/raftkv.service", t.unit, 0o644},
			file{"systemd/raftkv.env", t.env, 0o640},
			file{"systemd/raftkv.sysusers", t.sysusers, 0o644},
		)
	}
	name := r.archiveName(p)
	data, err := r.tar(name, files)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, name+".tar.gz"), data, 0o644)
}

// tar packs files into an archive with one directory. Nothing of this machine gets into it:
// not the order of files, nor their times, nor their owners.
func (r *release) tar(dir string, files []file) ([]byte, error) {
	dirs := map[string]bool{}
	for _, f := range files {
		dirs[path.Join(dir, path.Dir(f.name))] = true
	}
	for d := range dirs {
		files = append(files, file{name: d + "/", mode: 0o755})
	}
	for i, f := range files {
		if f.data != nil {
			files[i].name = path.Join(dir, f.name)
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		head := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: r.time, Uname: "root", Gname: "root", Format: tar.FormatUSTAR}
		if f.data == nil {
			head.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(head); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return zipped(b.Bytes())
}
