package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

// What the packages say of themselves.
const (
	packageName = "raftkv"
	maintainer  = "The raftkv maintainers <maintainers@raftkv.invalid>"
	license     = "Apache-2.0"
	description = "replicated key-value server\n" +
		"raftkv keeps keys and values on several machines, by the raft protocol, and serves them over\n" +
		"plain HTTP: every acknowledged write is on the disks of a majority. The package has the server,\n" +
		"its command line, and a systemd service that is not enabled before it is configured."
)

// scripts are run by the package managers. All of them know the service.
var scripts = nfpm.Scripts{
	PostInstall: "deploy/packages/postinstall.sh",
	PreRemove:   "deploy/packages/preremove.sh",
	PostRemove:  "deploy/packages/postremove.sh",
}

// format is a kind of package.
type format struct {
	nfpm.Packager
	zshDir     string // where its systems look for completions
	licenseDir string
	license    string // the name of the license in licenseDir
}

var formats = []format{
	{deb.Default, "/usr/share/zsh/vendor-completions", "/usr/share/doc/raftkv", "copyright"},
	{rpm.DefaultRPM, "/usr/share/zsh/site-functions", "/usr/share/licenses/raftkv", "LICENSE"},
}

// packages writes the packages of a platform.
func (r *release) packages(to string, p platform, program []byte, t texts) (err error) {
	man, err := zipped(t.man)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(to, "package-") // nfpm reads files
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for i, f := range formats {
		own := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		contents, err := r.contents(own, []file{
			{"/usr/bin/raftkv", program, 0o755},
			{"/usr/lib/systemd/system/raftkv.service", t.unit, 0o644},
			{"/usr/lib/sysusers.d/raftkv.conf", t.sysusers, 0o644},
			{environmentFile, t.env, 0o640},
			{"/usr/share/man/man1/raftkv.1.gz", man, 0o644},
			{"/usr/share/bash-completion/completions/raftkv", t.bash, 0o644},
			{f.zshDir + "/_raftkv", t.zsh, 0o644},
			{"/usr/share/fish/vendor_completions.d/raftkv.fish", t.fish, 0o644},
			{"/usr/share/doc/raftkv/README.md", t.readme, 0o644},
			{"/usr/share/doc/raftkv/CHANGELOG.md", t.changelog, 0o644},
			{"/usr/share/doc/raftkv/INSTALL.md", t.install, 0o644},
			{f.licenseDir + "/" + f.license, t.license, 0o644},
			{f.licenseDir + "/LICENSES-OF-OTHERS", t.licenses, 0o644},
		})
		if err != nil {
			return err
		}
		if err := r.pkg(to, f, p, contents); err != nil {
			return err
		}
	}
	return nil
}

// environmentFile is what an operator edits; an upgrade leaves it as it is.
const environmentFile = "/etc/raftkv/raftkv.env"

// contents puts files where nfpm reads them, and says where they go.
func (r *release) contents(dir string, list []file) (files.Contents, error) {
	all := files.Contents{{
		Destination: filepath.Dir(environmentFile), Type: files.TypeDir,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: r.time},
	}}
	for i, f := range list {
		from := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(from, f.data, 0o600); err != nil {
			return nil, err
		}
		kind := files.TypeFile
		if f.name == environmentFile {
			kind = files.TypeConfigNoReplace
		}
		all = append(all, &files.Content{
			Source: from, Destination: f.name, Type: kind,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: os.FileMode(f.mode), MTime: r.time},
		})
	}
	return all, nil
}

// pkg writes one package.
func (r *release) pkg(to string, f format, p platform, contents files.Contents) (err error) {
	in := func(name string) string { return filepath.Join(r.root, name) }
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: packageName, Version: r.version, Arch: p.arch, Platform: p.os, MTime: r.time,
		Maintainer: maintainer, Vendor: "raftkv", License: license, Description: description,
		Section: "database", Priority: "optional", DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Contents: contents,
			Scripts:  nfpm.Scripts{PostInstall: in(scripts.PostInstall), PreRemove: in(scripts.PreRemove), PostRemove: in(scripts.PostRemove)},
			RPM:      nfpm.RPM{BuildHost: packageName, Group: "Unspecified"},
		},
	})
	out, err := os.Create(filepath.Join(to, f.ConventionalFileName(info)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return f.Package(info, out)
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
