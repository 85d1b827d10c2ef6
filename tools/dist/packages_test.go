package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func wantFiles(t *testing.T, list string, more ...string) {
	t.Helper()
	got := make(map[string]string)
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if f[0][0] == '-' {
			got[strings.TrimPrefix(f[len(f)-1], ".")] = f[0]
			if !strings.Contains(line, "root") || strings.Count(line, "root") < 2 {
				t.Errorf("not of root: %s", line)
			}
		}
	}
	for name, mode := range inPackages {
		if got[name] != mode {
			t.Errorf("%s is %q, want %s", name, got[name], mode)
		}
		delete(got, name)
	}
	for _, name := range more {
		if got[name] != "-rw-r--r--" {
			t.Errorf("%s is %q", name, got[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("it has these, too: %v", got)
	}
}

func checkDeb(t *testing.T, out string) {
	deb := filepath.Join(out, "raftkv_1.2.3~rc.1_amd64.deb")
	for field, want := range map[string]string{"Package": "raftkv", "Version": "1.2.3~rc.1", "Architecture": "amd64"} {
		if got := strings.TrimSpace(command(t, out, "dpkg-deb", "-f", deb, field)); got != want {
			t.Errorf("%s: %q", field, got)
		}
	}
	if got := strings.TrimSpace(command(t, out, "dpkg-deb", "-f", filepath.Join(out, "raftkv_1.2.3~rc.1_arm64.deb"), "Architecture")); got != "arm64" {
		t.Errorf("the other is of %q", got)
	}
	wantFiles(t, command(t, out, "dpkg-deb", "-c", deb), "/usr/share/doc/raftkv/copyright", "/usr/share/doc/raftkv/LICENSES-OF-OTHERS",
		"/usr/share/zsh/vendor-completions/_raftkv")
	control := t.TempDir()
	command(t, out, "dpkg-deb", "-e", deb, control)
	if conf := command(t, control, "cat", "conffiles"); conf != "/etc/raftkv/raftkv.env\n" {
		t.Errorf("conffiles: %q", conf)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		command(t, control, "sh", "-n", script)
	}
	root := t.TempDir()
	command(t, out, "dpkg-deb", "-x", deb, root)
	checkMan(t, filepath.Join(root, "usr/share/man/man1/raftkv.1.gz"))
	checkUnit(t, root)
}

// Guarantee: the unit of the package has nothing that systemd does not understand, and shuts
// the service in.
func checkUnit(t *testing.T, root string) {
	need(t, "systemd-analyze")
	const units = "usr/lib/systemd/system"
	targets, err := filepath.Glob("/" + units + "/*.target")
	must(t, err)
	if len(targets) == 0 {
		t.Fatal("there are no units of systemd itself")
	}
	verify := func() (string, error) {
		out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", "--root="+root, "raftkv.service").CombinedOutput()
		return string(out), err
	}
	command(t, root, "cp", append(targets, units)...)
	if out, err := verify(); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// What it is worth, where 10 is an open service and this unit has 1.7.
	command(t, root, "systemd-analyze", "security", "--offline=true", "--threshold=18", "--root="+root, "raftkv.service")

	unit := filepath.Join(root, units, "raftkv.service")
	text, err := os.ReadFile(unit)
	must(t, err)
	must(t, os.WriteFile(unit, bytes.Replace(text, []byte("WatchdogSec="), []byte("WatchdogSecs="), 1), 0o600))
	if out, err := verify(); err == nil {
		t.Errorf("an error in the unit is not found: %s", out)
	}
}

func checkRPM(t *testing.T, out string) {
	rpm := filepath.Join(out, "raftkv-1.2.3~rc.1-1.x86_64.rpm")
	query := func(file string, args ...string) string {
		return command(t, out, "rpm", append(append([]string{"-qp", "--nosignature"}, args...), file)...)
	}
	const fields = "%{NAME} %{VERSION}-%{RELEASE} %{ARCH} %{LICENSE} %{BUILDHOST} %{BUILDTIME}"
	if got := query(rpm, "--qf", fields); got != "raftkv 1.2.3~rc.1-1 x86_64 Apache-2.0 raftkv 1700000000" {
		t.Errorf("%q", got)
	}
	if got := query(filepath.Join(out, "raftkv-1.2.3~rc.1-1.aarch64.rpm"), "--qf", "%{ARCH} %{OS}"); got != "aarch64 linux" {
		t.Errorf("%q", got)
	}
	wantFiles(t, query(rpm, "-lv"), "/usr/share/licenses/raftkv/LICENSE", "/usr/share/licenses/raftkv/LICENSES-OF-OTHERS",
		"/usr/share/zsh/site-functions/_raftkv")
	if conf := query(rpm, "-c"); conf != "/etc/raftkv/raftkv.env\n" {
		t.Errorf("configuration files: %q", conf)
	}
	if flags := query(rpm, "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]"); !strings.Contains(flags, "/etc/raftkv/raftkv.env cn\n") {
		t.Errorf("an upgrade replaces settings: %s", flags)
	}
	if scripts := query(rpm, "--scripts"); strings.Count(scripts, "#!/bin/sh") != 3 {
		t.Errorf("%s", scripts)
	}
	command(t, out, "rpm", "-K", "--nosignature", rpm) // its digests
}

// Guarantee: the image has the program and the licenses alone, runs without rights, and can
// write to its volume. A program that is static, as that of the tests is not, runs in it.
func checkImage(t *testing.T, r *release, out string, static bool) {
	need(t, "buildah")
	if os.Getuid() != 0 {
		t.Skip("buildah mounts an image for root alone")
	}
	store := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		at := []string{"--root", store + "/root", "--runroot", store + "/run", "--storage-driver", "vfs"}
		return strings.TrimSpace(command(t, r.root, "buildah", append(at, args...)...))
	}
	t.Cleanup(func() { buildah("rm", "-a"); buildah("rmi", "-a", "-f") })
	buildah("bud", "-f", "deploy/Dockerfile", "--build-arg", "VERSION="+r.number(), "--build-arg", "TARGETARCH="+host().arch, "-t", "raftkv", out)
	c := buildah("from", "raftkv")
	root := buildah("mount", c)
	files := command(t, root, "find", ".", "-type", "f")
	if got := strings.Fields(files); !slices.Equal(sortedList(got), []string{
		"./usr/bin/raftkv", "./usr/share/licenses/raftkv/LICENSE", "./usr/share/licenses/raftkv/LICENSES-OF-OTHERS",
	}) {
		t.Errorf("the image has %s", files)
	}
	if got := command(t, root, "stat", "-c", "%u:%g %F", "var/lib/raftkv"); got != "65532:65532 directory\n" {
		t.Errorf("its volume is %s", got)
	}
	const format = "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.WorkingDir}} {{.OCIv1.Config.Volumes}}"
	if got := buildah("inspect", "--type", "image", "--format", format, "raftkv"); got != "65532:65532 [/usr/bin/raftkv] /var/lib/raftkv map[/var/lib/raftkv:{}]" {
		t.Errorf("the image is %s", got)
	}
	if !static {
		return
	}
	if got := buildah("run", "--isolation", "chroot", c, "--", "/usr/bin/raftkv", "--version"); !strings.HasPrefix(got, "raftkv "+r.version+"\n") {
		t.Errorf("--version in the image: %s", got)
	}
}

// sortedList sorts a list, and returns it.
func sortedList(list []string) []string {
	slices.Sort(list)
	return list
}
