// Package version answers: which build of the program is this?
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
)

// version is the version of raftkv. A release build sets it with
// -ldflags "-X raftkv/internal/version.version=...".
var version = "dev"

// revision is the commit, if the build sets it likewise, as one without version control does.
var revision = ""

// unknownRevision is the revision of a build that was not told of one, as with
// -buildvcs=false.
const unknownRevision = "unknown"

// build is what a program knows of how it was made.
type build struct {
	Version   string // that of a release, or of the module, or dev
	Revision  string // the commit, with +dirty if the source was changed since
	GoVersion string
	libraries []string // the two that it stands on, with their versions
}

// This is that of this program.
var This = sync.OnceValue(func() build {
	info, _ := debug.ReadBuildInfo()
	return newBuild(version, revision, info)
})

// newBuild reads the information that the go command put into a program, nil if
// it put none. What a release build set as its version and revision counts more.
func newBuild(version, revision string, info *debug.BuildInfo) build {
	b := build{Version: version, Revision: unknownRevision, GoVersion: runtime.Version()}
	if revision != "" {
		b.Revision = revision
	}
	if info == nil {
		return b
	}
	if v := info.Main.Version; version == "dev" && v != "" && v != "(devel)" {
		b.Version = v
	}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && s.Value != "" && revision == "":
			b.Revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if revision == "" && b.Revision != unknownRevision {
		b.Revision += dirty
	}
	for _, dep := range info.Deps {
		if dep.Path == "go.etcd.io/raft/v3" || dep.Path == "go.etcd.io/etcd/server/v3" {
			b.libraries = append(b.libraries, dep.Path+" "+dep.Version)
		}
	}
	return b
}

// Text is what --version prints.
func (b build) Text() string {
	revision := "revision " + b.Revision
	if b.Revision == unknownRevision {
		revision = "unknown revision: built without version control"
	}
	text := fmt.Sprintf("raftkv %s\n%s\n%s %s/%s\n", b.Version, revision, b.GoVersion, runtime.GOOS, runtime.GOARCH)
	for _, lib := range b.libraries {
		text += lib + "\n"
	}
	return text
}
