package process

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const unitPath = "deploy/systemd/raftkv.service"

// unitValues are the values of a setting in the unit, in order, word by word for each line.
func unitValues(t *testing.T, name string) (lines [][]string) {
	t.Helper()
	text, err := os.ReadFile(unitPath)
	testkit.Must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			lines = append(lines, strings.Fields(value))
		}
	}
	if lines == nil {
		t.Fatalf("%s has no %s", unitPath, name)
	}
	return lines
}

// allowedCalls are the system calls that the filter of the unit lets through.
func allowedCalls(t *testing.T) map[string]bool {
	t.Helper()
	var add func(name string, to map[string]bool)
	add = func(name string, to map[string]bool) {
		if !strings.HasPrefix(name, "@") {
			to[name] = true
			return
		}
		out, err := exec.Command("systemd-analyze", "syscall-filter", name).Output()
		if err != nil {
			t.Fatalf("systemd-analyze syscall-filter %s: %v", name, err)
		}
		for _, member := range strings.Split(string(out), "\n")[1:] {
			if member = strings.TrimSpace(member); member != "" && !strings.HasPrefix(member, "#") {
				add(member, to)
			}
		}
	}
	allowed := map[string]bool{}
	add("@default", allowed)
	for _, line := range unitValues(t, "SystemCallFilter") {
		named := map[string]bool{}
		without := strings.HasPrefix(line[0], "~")
		for _, name := range line {
			add(strings.TrimPrefix(name, "~"), named)
		}
		if !without {
			maps.Copy(allowed, named)
			continue
		}
		maps.DeleteFunc(allowed, func(name string, _ bool) bool { return named[name] })
	}
	return allowed
}

// Guarantee: the service that the packages install forbids nothing that a node does, by which
// system calls it makes, which sockets it opens, and which memory it asks for.
func TestProcUnitForbidsNothingNeeded(t *testing.T) {
	t.Parallel()
	testkit.NeedTools(t, "systemd-analyze")
	strace := findStrace(t)
	c := newProcCluster(t, 3, "--snapshot-count", "20", "--election-timeout", "2s", "--request-timeout", "20s")
	bin, err := procBinary()
	testkit.Must(t, err)
	socket, take := testkit.ServiceManager(t)
	trace := filepath.Join(c.dir, "trace")
	n := c.nodes[1]
	n.bin, n.env = strace, []string{"NOTIFY_SOCKET=" + socket}
	n.args = slices.Concat([]string{"-D", "-f", "-qq", "-s", "0", "-e", "signal=none", "-o", trace, "--", bin}, n.args,
		[]string{"--audit-log", filepath.Join(c.dir, "audit.log"), "--listen-metrics", fmt.Sprintf("localhost:%d", procFreePort(t))})
	c.start()
	for i := range 100 {
		c.put(1+i%3, fmt.Sprint("k", i%10), strings.Repeat("x", 1000))
	}
	c.wantGet(1, "k9", strings.Repeat("x", 1000))
	for _, path := range []string{"/metrics", "/v1/kv?prefix=", "/v1/snapshot", "/v1/members"} {
		if r := c.do("GET", 1, path, nil); r.status != 200 {
			t.Errorf("GET %s: %v", path, r)
		}
	}
	c.stop(1)
	if !slices.Contains(take(), "READY=1") {
		t.Error("it does not say that it is ready")
	}

	text, err := os.ReadFile(trace)
	testkit.Must(t, err)
	allowed, families := allowedCalls(t), unitValues(t, "RestrictAddressFamilies")[0]
	call := regexp.MustCompile(`^\d+ +(\w+)\((.*)`)
	seen := map[string]int{}
	for line := range strings.Lines(string(text)) {
		m := call.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name, args := m[1], m[2]
		if seen[name]++; !allowed[name] && seen[name] == 1 && name != "execve" && name != "exit_group" {
			t.Errorf("the unit forbids what a node does: %s", strings.TrimSpace(line))
		}
		if family, _, _ := strings.Cut(args, ","); name == "socket" && !slices.Contains(families, family) {
			t.Errorf("the unit forbids a socket of a node: %s", strings.TrimSpace(line))
		}
		if (name == "mmap" || name == "mprotect") && strings.Contains(args, "PROT_EXEC") && strings.Contains(args, "PROT_WRITE") {
			t.Errorf("the unit forbids memory that a node asks for: %s", strings.TrimSpace(line))
		}
	}
	for _, name := range []string{"fdatasync", "accept4", "socket", "mmap"} {
		if seen[name] == 0 {
			t.Errorf("the trace lacks %s, so it is none of a node", name)
		}
	}
	// The test sees what is forbidden.
	for name, want := range map[string]bool{"write": true, "openat": true, "chroot": false, "mount": false, "ptrace": false, "setuid": false, "reboot": false} {
		if allowed[name] != want {
			t.Errorf("allowed is %t: %s", !want, name)
		}
	}
}

// Guarantee: a node that the watchdog has aborted is started again. Go ends with exit code 2 then.
func TestProcUnitStartsAbortedNodes(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start(1)
	c.nodes[1].ending = true
	c.signal(1, syscall.SIGABRT)
	if out := c.waitExit(1, 2, procStopWithin); !strings.Contains(out, "goroutine 1 ") {
		t.Errorf("it does not say what it was doing:\n%s", procTail(out))
	}
	text, err := os.ReadFile(unitPath)
	testkit.Must(t, err)
	if unit := string(text); !strings.Contains(unit, "\nRestart=on-failure\n") || strings.Contains(unit, "\nRestartPreventExitStatus=") {
		t.Error("the unit makes an exception for it")
	}
}

// Guarantee: the settings that the packages' files and docs/install.md name are flags of the
// program.
func TestProcUnitSettings(t *testing.T) {
	t.Parallel()
	bin, err := procBinary()
	testkit.Must(t, err)
	help, err := exec.Command(bin, "--help").Output()
	testkit.Must(t, err)
	variable := regexp.MustCompile(`\bRAFTKV_([A-Z_]+)=`)
	for _, name := range []string{unitPath, "deploy/systemd/raftkv.env", "deploy/Dockerfile", "docs/install.md"} {
		text, err := os.ReadFile(name)
		testkit.Must(t, err)
		found := variable.FindAllSubmatch(text, -1)
		if len(found) == 0 {
			t.Errorf("%s names no setting", name)
		}
		for _, m := range found {
			flag := "--" + strings.ToLower(strings.ReplaceAll(string(m[1]), "_", "-"))
			if !strings.Contains(string(help), "  "+flag+" ") {
				t.Errorf("%s names %s, and there is no %s", name, m[0], flag)
			}
		}
	}
}
