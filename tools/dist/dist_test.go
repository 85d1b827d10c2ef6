package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checkout is where the repository is, seen from the tests.
const checkout = "../.."

// need skips a test that lacks a program, or fails it where all tests must run.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("RAFTKV_TEST_ALL") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a program in a directory and returns what it prints.
func command(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A version of a release is a tag, and orders in a package as it does as a tag.
func TestCheckVersion(t *testing.T) {
	for version, right := range map[string]bool{
		"v0.9.0": true, "v1.2.3": true, "v1.2.3-rc.1": true,
		"": false, "v": false, "1.2.3": false, "v1.2": false, "v1.2.3+build": false, "v01.2.3": false, "vv1.2.3": false, "v1.2.3 ": false, "../v1.2.3": false,
	} {
		if err := checkVersion(version); (err == nil) != right {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestParsePlatforms(t *testing.T) {
	if list, err := parsePlatforms("all"); err != nil || len(list) != 4 {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := parsePlatforms("darwin/arm64,linux/amd64"); err != nil || !slices.Equal(list, []platform{{"darwin", "arm64"}, {"linux", "amd64"}}) {
		t.Errorf("%v, %v", list, err)
	}
	for _, text := range []string{"", "linux", "linux/386", "linux/amd64,linux/amd64", "all,linux/amd64"} {
		if list, err := parsePlatforms(text); err == nil {
			t.Errorf("%q: %v", text, list)
		}
	}
}

// A wrong command line is 2, and says all that is wrong; a fault is 1.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"-h"}, 0, nil},
		{[]string{"-nosuch"}, 2, []string{"-nosuch"}},
		{[]string{"-platforms", "plan9/386", "more"}, 2, []string{"-version", "plan9/386", "more"}},
		{[]string{"-version", "v1.2.3", "-root", t.TempDir()}, 1, []string{"git"}},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), tt.args, &out, &errs); code != tt.code {
			t.Errorf("%q: exit code %d, %s", tt.args, code, &errs)
		}
		for _, want := range tt.says {
			if !strings.Contains(errs.String(), want) {
				t.Errorf("%q: does not say %s: %s", tt.args, want, &errs)
			}
		}
	}
}

// Guarantee: settings of the user's own for the go command do not change what is built.
func TestGoEnv(t *testing.T) {
	p := platform{"linux", "arm64"}
	settings := func() string {
		r := &release{root: checkout}
		text, err := r.output(t.Context(), goEnv(p), "go", "env", "GOOS", "GOARCH", "CGO_ENABLED", "GOFLAGS", "GOARM64", "GOAMD64", "GOWORK", "GOEXPERIMENT", "GOFIPS140", "GODEBUG")
		must(t, err)
		return text
	}
	want := settings()
	for name, value := range map[string]string{
		"GOOS": "darwin", "GOARCH": "386", "CGO_ENABLED": "1", "GOFLAGS": "-tags=x", "GOARM64": "v9.0", "GOAMD64": "v3", "GOWORK": "/nowhere/go.work",
		"GOEXPERIMENT": "arenas", "GOFIPS140": "latest", "GODEBUG": "madvdontneed=0",
	} {
		t.Setenv(name, value)
	}
	if got := settings(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Guarantee: a release is made of what is committed alone, and of nothing else than its tag
// stands for.
func TestReadCheckout(t *testing.T) {
	need(t, "git")
	dir := t.TempDir()
	git := func(args ...string) string {
		return strings.TrimSpace(command(t, dir, "git", append([]string{"-c", "user.name=x", "-c", "user.email=x@x.invalid"}, args...)...))
	}
	read := func() (*release, error) { return readCheckout(t.Context(), dir, "v1.2.3") }
	refused := func(what string) {
		t.Helper()
		if _, err := read(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want an error with %q: %v", what, err)
		}
	}
	git("init", "-q")
	refused("HEAD")
	must(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	git("add", "a")
	git("commit", "-qm", "a")
	r, err := read()
	must(t, err)
	if r.commit != git("rev-parse", "HEAD") || r.tagged || time.Since(r.time) > time.Hour || r.number() != "1.2.3" {
		t.Errorf("%+v", r)
	}
	must(t, os.WriteFile(filepath.Join(dir, "new.go"), nil, 0o600)) // go build would take it
	git("config", "status.showUntrackedFiles", "no")
	git("config", "core.excludesFile", filepath.Join(dir, ".git/mine"))
	must(t, os.WriteFile(filepath.Join(dir, ".git/mine"), []byte("*.go\n"), 0o600))
	refused("new.go")
	must(t, os.Remove(filepath.Join(dir, "new.go")))
	must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("changed"), 0o600))
	refused("not clean")
	git("checkout", "-q", "a")
	git("tag", "-a", "-m", "x", "v1.2.3") // a tag of its own, which points to the commit
	if r, err = read(); err != nil || !r.tagged {
		t.Errorf("%+v, %v", r, err)
	}
	git("commit", "-q", "--allow-empty", "-m", "b")
	refused("v1.2.3 is at")
	git("tag", "-f", "v1.2.3")
	if r, err = read(); err != nil || !r.tagged {
		t.Errorf("%+v, %v", r, err)
	}
}

// Guarantee: a directory that holds something else is not replaced.
func TestReplaceable(t *testing.T) {
	dir := t.TempDir()
	must(t, replaceable(filepath.Join(dir, "none")))
	must(t, replaceable(dir))
	must(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
	if err := replaceable(dir); err == nil {
		t.Error("it would be replaced")
	}
	must(t, os.WriteFile(filepath.Join(dir, sumsFile), nil, 0o600))
	must(t, replaceable(dir))
}

// Nothing is passed on without its license.
func TestLicenseFiles(t *testing.T) {
	dir := t.TempDir()
	add := func(name string) { must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600)) }
	add("NOTICE")
	add("license.go.txt.bak")
	must(t, os.Remove(filepath.Join(dir, "license.go.txt.bak")))
	if files, err := licenseFiles(dir); err == nil {
		t.Errorf("with a notice alone: %v", files)
	}
	for _, name := range []string{"LICENSE.md", "PATENTS", "main.go", "License-of-the-docs"} {
		add(name)
	}
	files, err := licenseFiles(dir)
	must(t, err)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	if !slices.Equal(files, []string{"LICENSE.md", "NOTICE", "PATENTS"}) {
		t.Errorf("%v", files)
	}
}

// fakeRelease is one whose program is built for this machine alone, in a moment, because the
// tests of the program have built all of it already. For the others it is a stub.
func fakeRelease(t *testing.T) *release {
	t.Helper()
	root, err := filepath.Abs(checkout)
	must(t, err)
	r := &release{version: "v1.2.3-rc.1", root: root, commit: strings.Repeat("0123456789abcdef", 3)[:40], time: time.Unix(1_700_000_000, 0).UTC()}
	program := filepath.Join(t.TempDir(), "raftkv")
	command(t, root, "go", "build", "-buildvcs=false", "-ldflags", r.linkFlags(), "-o", program, ".")
	r.build = func(_ context.Context, p platform, file string) error {
		if p == host() {
			return os.Link(program, file)
		}
		return os.WriteFile(file, []byte(p.String()), 0o755)
	}
	return r
}

// listed are the entries of a .tar.gz: mode and name.
func listed(t *testing.T, file string, each func(h *tar.Header, data []byte)) (names []string) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		must(t, err)
		data, err := io.ReadAll(r)
		must(t, err)
		names = append(names, fmt.Sprintf("%o %s", h.Mode, h.Name))
		each(h, data)
	}
}

// Guarantee: the same commit makes the same bytes, wherever and whenever that is; the
// checksums fit; archives and packages hold what they should, and nothing of the machine that
// made them.
func TestRelease(t *testing.T) {
	need(t, "git", "sha256sum", "dpkg-deb", "rpm", "man", "bash")
	r := fakeRelease(t)
	out := filepath.Join(t.TempDir(), "dist")
	must(t, r.make(t.Context(), out, platforms))
	sums := command(t, out, "cat", sumsFile)
	command(t, out, "sha256sum", "--strict", "-c", sumsFile)
	if names := regexp.MustCompile(`(?m)  (.*)$`).FindAllString(sums, -1); len(names) != 8 {
		t.Errorf("%d files: %s", len(names), sums)
	}
	t.Run("again", func(t *testing.T) { sameAgain(t, r, sums) })
	t.Run("archive", func(t *testing.T) { checkArchives(t, r, out) })
	t.Run("deb", func(t *testing.T) { checkDeb(t, out) })
	t.Run("rpm", func(t *testing.T) { checkRPM(t, out) })
	t.Run("image", func(t *testing.T) { checkImage(t, r, out, false) })
	t.Run("docs", func(t *testing.T) { checkDocs(t, r, out) })
	left, err := os.ReadDir(filepath.Dir(out))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("it leaves something behind: %v", left)
	}
}

// sameAgain makes the release once more, under other circumstances.
func sameAgain(t *testing.T, r *release, sums string) {
	t.Setenv("TZ", "Asia/Tokyo")
	t.Setenv("LC_ALL", "C")
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	t.Setenv("GOFLAGS", "-buildvcs=true")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	out := filepath.Join(t.TempDir(), "elsewhere")
	must(t, r.make(t.Context(), out, platforms))
	if again := command(t, out, "cat", sumsFile); again != sums {
		t.Errorf("made again:\n%sbefore:\n%s", again, sums)
	}
}

// inArchives is what all archives hold, behind the name of their directory.
var inArchives = []string{
	"755 /", "644 /CHANGELOG.md", "644 /INSTALL.md", "644 /LICENSE", "644 /LICENSES-OF-OTHERS", "644 /README.md",
	"755 /completions/", "644 /completions/_raftkv", "644 /completions/raftkv.bash", "644 /completions/raftkv.fish",
	"755 /man/", "644 /man/raftkv.1", "755 /raftkv",
}

func checkArchives(t *testing.T, r *release, out string) {
	for _, p := range platforms {
		dir := "raftkv-1.2.3-rc.1-" + p.os + "-" + p.arch
		want := slices.Clone(inArchives)
		if p.os == "linux" {
			want = append(want, "755 /systemd/", "640 /systemd/raftkv.env", "644 /systemd/raftkv.service", "644 /systemd/raftkv.sysusers")
		}
		for i, w := range want {
			mode, name, _ := strings.Cut(w, " ")
			want[i] = mode + " " + dir + name
		}
		got := listed(t, filepath.Join(out, dir+".tar.gz"), func(h *tar.Header, data []byte) {
			if !h.ModTime.Equal(r.time) || h.Uid != 0 || h.Gid != 0 || h.Uname != "root" {
				t.Errorf("%s: %v of %d:%d %s", h.Name, h.ModTime, h.Uid, h.Gid, h.Uname)
			}
			if !strings.HasSuffix(h.Name, "/") && len(data) == 0 {
				t.Errorf("%s is empty", h.Name)
			}
			if path.Base(h.Name) == "LICENSES-OF-OTHERS" {
				for _, module := range []string{"go.etcd.io/raft/v3", "go.uber.org/zap", "Go go1."} {
					if !bytes.Contains(data, []byte("\n"+module)) {
						t.Errorf("%s: there is no license of %s", p, module)
					}
				}
			}
		})
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has\n%q, want\n%q", dir, got, want)
		}
	}
	dir := t.TempDir()
	name := r.archiveName(host())
	command(t, dir, "tar", "xzf", filepath.Join(out, name+".tar.gz"))
	dir = filepath.Join(dir, name)
	if text := command(t, dir, "./raftkv", "--version"); !strings.HasPrefix(text, "raftkv v1.2.3-rc.1\nrevision "+r.commit+"\n") {
		t.Errorf("--version: %s", text)
	}
	checkMan(t, filepath.Join(dir, "man/raftkv.1"))
	command(t, dir, "bash", "-n", "completions/raftkv.bash")
	bash := "source completions/raftkv.bash; complete -p raftkv"
	if text := command(t, dir, "bash", "-c", bash); !strings.Contains(text, "raftkv") {
		t.Errorf("completion: %s", text)
	}
}

// checkMan looks at the man page as man shows it.
func checkMan(t *testing.T, file string) {
	t.Helper()
	text := command(t, "/", "man", "--warnings=w", "-l", file)
	for _, want := range []string{"RAFTKV(1)", "NAME", "raftkv get", "--cluster"} {
		if !strings.Contains(text, want) {
			t.Errorf("the man page lacks %q", want)
		}
	}
	if strings.Contains(text, "warning") && strings.Contains(text, ":") && regexp.MustCompile(`(?m)^(troff|groff|man|tbl): `).MatchString(text) {
		t.Errorf("man complains: %.1000s", text)
	}
}

// inPackages is what both kinds of packages hold.
var inPackages = map[string]string{
	"/etc/raftkv/raftkv.env":                           "-rw-r-----",
	"/usr/bin/raftkv":                                  "-rwxr-xr-x",
	"/usr/lib/systemd/system/raftkv.service":           "-rw-r--r--",
	"/usr/lib/sysusers.d/raftkv.conf":                  "-rw-r--r--",
	"/usr/share/bash-completion/completions/raftkv":    "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/raftkv.fish": "-rw-r--r--",
	"/usr/share/man/man1/raftkv.1.gz":                  "-rw-r--r--",
	"/usr/share/doc/raftkv/README.md":                  "-rw-r--r--",
	"/usr/share/doc/raftkv/CHANGELOG.md":               "-rw-r--r--",
	"/usr/share/doc/raftkv/INSTALL.md":                 "-rw-r--r--",
}

// Guarantee: docs/install.md names each file of a release.
func checkDocs(t *testing.T, r *release, out string) {
	text, err := os.ReadFile(filepath.Join(r.root, "docs/install.md"))
	must(t, err)
	entries, err := os.ReadDir(out)
	must(t, err)
	for _, e := range entries {
		name := strings.NewReplacer("1.2.3-rc.1", "0.9.0", "1.2.3~rc.1", "0.9.0").Replace(e.Name())
		// The second of a row stands there by what is different.
		for from, to := range map[string]string{"linux-arm64": "linux-amd64", "darwin-arm64": "darwin-amd64", "_arm64": "_amd64", "aarch64": "x86_64"} {
			name = strings.ReplaceAll(name, from, to)
		}
		if !bytes.Contains(text, []byte("| `"+name+"`")) {
			t.Errorf("docs/install.md does not have %s", name)
		}
	}
}

// Guarantee: a release is the same from two clones, one of which has built nothing before;
// its programs are static, say which they are, and name nothing of the machine.
func TestSoakReleaseIsReproducible(t *testing.T) {
	if os.Getenv("RAFTKV_SOAK") == "" {
		t.Skip("RAFTKV_SOAK=1 builds for all platforms, for minutes")
	}
	need(t, "git")
	root, err := filepath.Abs(checkout)
	must(t, err)
	const version = "v1.2.3"
	deliver := func(targets, cache string) (dir string, sums map[string]string) {
		dir = t.TempDir()
		clone := filepath.Join(dir, "clone")
		command(t, dir, "git", "clone", "-q", root, clone)
		if cache != "" {
			t.Setenv("GOCACHE", cache)
			command(t, clone, "git", "tag", version) // which must make no difference
		}
		var out, errs strings.Builder
		if code := run(t.Context(), []string{"-version", version, "-root", clone, "-platforms", targets}, &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		dir, sums = filepath.Join(clone, "dist"), make(map[string]string)
		for line := range strings.Lines(command(t, dir, "cat", sumsFile)) {
			sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
			sums[name] = sum
		}
		if changed := command(t, clone, "git", "status", "--porcelain"); changed != "" {
			t.Errorf("it changes the checkout: %s", changed)
		}
		return dir, sums
	}
	modules := strings.TrimSpace(command(t, root, "go", "env", "GOMODCACHE"))
	dir, sums := deliver("all", "")
	if len(sums) != 8 {
		t.Errorf("%d files: %v", len(sums), sums)
	}
	for _, p := range platforms {
		name := "raftkv-1.2.3-" + p.os + "-" + p.arch
		listed(t, filepath.Join(dir, name+".tar.gz"), func(h *tar.Header, data []byte) {
			if h.Name == name+"/raftkv" {
				checkProgram(t, p, data, root, filepath.Dir(dir), modules)
			}
		})
	}
	checkImage(t, &release{root: root, version: version}, dir, true)
	cache, err := os.MkdirTemp("", "raftkv-dist-cache-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(cache)) })
	_, again := deliver(host().String(), cache)
	if len(again) != 3 {
		t.Errorf("%d files: %v", len(again), again)
	}
	for name, sum := range again {
		if sums[name] != sum {
			t.Errorf("%s is not the same", name)
		}
	}
}

// checkProgram looks at what was built for a platform.
func checkProgram(t *testing.T, p platform, program []byte, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if bytes.Contains(program, []byte(path)) {
			t.Errorf("%s: the program names %s", p, path)
		}
	}
	if p.os != "linux" {
		if !bytes.HasPrefix(program, []byte{0xcf, 0xfa, 0xed, 0xfe}) {
			t.Errorf("%s: it is no program of macOS", p)
		}
		return
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	must(t, err)
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[p.arch]
	if f.Machine != machine {
		t.Errorf("%s: it is for %v", p, f.Machine)
	}
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP || s.Type == elf.PT_DYNAMIC {
			t.Errorf("%s: it is not static", p)
		}
	}
	if p == host() {
		file := filepath.Join(t.TempDir(), "raftkv")
		must(t, os.WriteFile(file, program, 0o755))
		if text := command(t, "/", file, "--version"); !strings.HasPrefix(text, "raftkv v1.2.3\nrevision ") {
			t.Errorf("--version: %s", text)
		}
	}
}
