package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
)

// sumsFile lists the checksums of all other files, as sha256sum -c takes it.
const sumsFile = "SHA256SUMS"

// platform is an operating system and a processor, as Go names them.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// platforms are all that a release is made for.
var platforms = []platform{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}}

// parsePlatforms reads a list of platforms.
func parsePlatforms(text string) (list []platform, err error) {
	if text == "all" {
		return platforms, nil
	}
	for name := range strings.SplitSeq(text, ",") {
		at := slices.IndexFunc(platforms, func(p platform) bool { return p.String() == name })
		switch {
		case at < 0:
			return nil, fmt.Errorf("-platforms: %q is none of %v", name, platforms)
		case slices.Contains(list, platforms[at]):
			return nil, fmt.Errorf("-platforms: %s twice", name)
		}
		list = append(list, platforms[at])
	}
	return list, nil
}

// checkVersion returns an error unless version is what a tag of a release is called. Build
// metadata is refused, because package managers order versions by it, and semantic
// versioning does not.
func checkVersion(version string) error {
	number, v := strings.CutPrefix(version, "v")
	parsed, err := semver.StrictNewVersion(number)
	if !v || err != nil || parsed.Metadata() != "" {
		return fmt.Errorf("-version: %q is no version of a release, as v1.2.3 or v1.2.3-rc.1", version)
	}
	return nil
}

// release is what is to be made, and of what.
type release struct {
	version string // as the tag: v1.2.3
	root    string // the checkout
	commit  string
	time    time.Time // of the commit, and so of every file
	tagged  bool      // the commit has the version's tag

	// build makes the program for a platform, and puts it into a file.
	build func(ctx context.Context, p platform, file string) error
}

// readCheckout returns the release of what is checked out in root. What is not committed
// could not be made again, so there must be nothing of the kind.
func readCheckout(ctx context.Context, root, version string) (*release, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	r := &release{version: version, root: root}
	git := func(args ...string) string {
		text, gerr := r.output(ctx, nil, "git", args...)
		err = cmp.Or(err, gerr)
		return strings.TrimSpace(text)
	}
	// The user's own settings may hide new files, which go build would take.
	changed := git("-c", "core.excludesFile="+os.DevNull, "status", "--porcelain", "--untracked-files=normal")
	r.commit = git("rev-parse", "--verify", "HEAD")
	seconds, terr := strconv.ParseInt(git("log", "-1", "--format=%ct"), 10, 64)
	tag := git("for-each-ref", "--format=%(objectname) %(*objectname)", "refs/tags/"+version)
	switch {
	case err != nil:
		return nil, err
	case terr != nil:
		return nil, fmt.Errorf("time of the commit: %w", terr)
	case changed != "":
		return nil, fmt.Errorf("%s is not clean; commit these, or put them away:\n%s", root, changed)
	case tag != "" && !slices.Contains(strings.Fields(tag), r.commit):
		return nil, fmt.Errorf("the tag %s is at %s, and %s is checked out: git checkout %s", version, tag, r.commit, version)
	}
	r.tagged, r.time = tag != "", time.Unix(seconds, 0).UTC()
	return r, nil
}

// number is the version without its first letter.
func (r *release) number() string { return strings.TrimPrefix(r.version, "v") }

// output runs a program in the checkout and returns what it prints.
func (r *release) output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = r.root, env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// goEnv is the environment in which the go command does the same on any machine.
func goEnv(p platform) []string {
	return append(os.Environ(), "GOOS="+p.os, "GOARCH="+p.arch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOAMD64=v1", "GOARM64=v8.0",
		"GOWORK=off", "GOEXPERIMENT=", "GOFIPS140=off", "GODEBUG=")
}

// goBuild builds the program: static, without paths of this machine, and with version and
// commit as the release has them. What Go would stamp by itself depends on which tags the
// clone has.
func (r *release) goBuild(ctx context.Context, p platform, file string) error {
	_, err := r.output(ctx, goEnv(p), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w "+r.linkFlags(), "-o", file, ".")
	return err
}

// linkFlags puts version and commit into the program.
func (r *release) linkFlags() string {
	const pkg = "raftkv/internal/version"
	return fmt.Sprintf("-X %s.version=%s -X %s.revision=%s", pkg, r.version, pkg, r.commit)
}

// make makes all files of the release in out, which it replaces once they are complete.
func (r *release) make(ctx context.Context, out string, targets []platform) (err error) {
	if err := replaceable(out); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".dist-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	made := filepath.Join(work, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return err
	}
	programs, err := r.programs(ctx, work, targets)
	if err != nil {
		return err
	}
	texts, err := r.texts(ctx, programs[host()], targets)
	if err != nil {
		return err
	}
	for _, p := range targets {
		program, err := os.ReadFile(programs[p])
		if err != nil {
			return err
		}
		if err := r.pack(made, p, program, texts); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := writeSums(made); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(out), os.Rename(made, out))
}

// replaceable returns an error if a directory is there that was not made by a release.
func replaceable(out string) error {
	entries, err := os.ReadDir(out)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(out, sumsFile)); err != nil {
		return fmt.Errorf("%s is no release, and is not replaced by one: %w", out, err)
	}
	return nil
}

// host is the platform of this process.
func host() platform { return platform{runtime.GOOS, runtime.GOARCH} }

// programs builds the program for all targets and for this machine, which has to run it.
func (r *release) programs(ctx context.Context, work string, targets []platform) (map[platform]string, error) {
	files := make(map[platform]string)
	for _, p := range append(slices.Clip(targets), host()) {
		if files[p] != "" {
			continue
		}
		files[p] = filepath.Join(work, "raftkv-"+p.os+"-"+p.arch)
		if err := r.build(ctx, p, files[p]); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if text, err := r.output(ctx, []string{}, files[host()], "--version"); err != nil {
		return nil, err
	} else if want := "raftkv " + r.version + "\nrevision " + r.commit + "\n"; !strings.HasPrefix(text, want) {
		return nil, fmt.Errorf("the program says that it is\n%swhich does not begin with\n%s", text, want)
	}
	return files, nil
}

// pack makes all files of a platform.
func (r *release) pack(to string, p platform, program []byte, t texts) error {
	if err := r.archive(to, p, program, t); err != nil {
		return err
	}
	if p.os != "linux" {
		return nil
	}
	return r.packages(to, p, program, t)
}

// writeSums lists the checksums of what is in a directory.
func writeSums(dir string) error {
	entries, err := os.ReadDir(dir) // in order of their names
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sum.Sum(nil), e.Name())
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(text.String()), 0o644)
}
