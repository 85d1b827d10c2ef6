//go:build unix

package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The README is a tutorial that works by copy and paste, and this test is who tries: it runs all its commands in a copy of
// the repository.

// copyRepository copies what git would: tracked files, and new ones that are not ignored.
func copyRepository(t *testing.T, dst string) {
	t.Helper()
	list, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Skipf("not a git work tree: %v", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(list), "\x00"), "\x00") {
		info, err := os.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue // removed but not committed, or a link
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dst, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

var readmePort = regexp.MustCompile(`(?:127\.0\.0\.1|localhost):([0-9]{2,5})\b`)

// Guarantee: the README's commands work as they stand and print what it says. make run shows what the nodes say and not what
// goreman does, and its last line is the command to type.
func TestReadme(t *testing.T) {
	markdown, err := os.ReadFile("README.md")
	testkit.Must(t, err)
	text := strings.Replace(string(markdown), "### Stop a node", "```sh\ncp run/cluster.log cluster.log\n```\n### Stop a node", 1)
	dir := runTutorial(t, "README.md", text)
	log, err := os.ReadFile(filepath.Join(dir, "cluster.log"))
	testkit.Must(t, err)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "run: all nodes are ready") || !strings.Contains(last, "curl -X PUT -d hello http://127.0.0.1:12380/my-key") {
		t.Errorf("the last line of make run is\n%s", last)
	}
	for _, no := range []string{"\x1b", "Starting raftkv", "on port 5", "Terminating"} {
		if strings.Contains(string(log), no) {
			t.Errorf("make run shows goreman's %q", no)
		}
	}
	if !strings.Contains(string(log), "\nraftkv2 | ") {
		t.Errorf("make run does not show what the nodes say:\n%s", log)
	}
}

// raftexampleReadme is what raftexample's README has its reader type, from top to bottom: one node, goreman's cluster, a node
// that is stopped and comes back, one that is added, one that is removed. Only the names of the programs are ours.
var raftexampleReadme = []string{
	"./raftkv --id 1 --cluster http://127.0.0.1:12379 --port 12380",
	"curl -L http://127.0.0.1:12380/my-key -XPUT -d hello",
	"curl -L http://127.0.0.1:12380/my-key",
	"go tool goreman start",
	"curl -L http://127.0.0.1:12380/my-key -XPUT -d foo",
	"go tool goreman run stop raftkv2",
	"curl -L http://127.0.0.1:12380/my-key -XPUT -d bar",
	"curl -L http://127.0.0.1:32380/my-key",
	"go tool goreman run start raftkv2",
	"curl -L http://127.0.0.1:22380/my-key",
	"curl -L http://127.0.0.1:12380/4 -XPOST -d http://127.0.0.1:42379",
	"./raftkv --id 4 --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379,http://127.0.0.1:42379 --port 42380 --join",
	"curl -L http://127.0.0.1:12380/3 -XDELETE",
}

// Guarantee: raftexample's README works here, and docs/raftexample.md, which goes through it, works as it stands there.
func TestRaftexampleReadme(t *testing.T) {
	markdown, err := os.ReadFile("docs/raftexample.md")
	testkit.Must(t, err)
	boxes := strings.Split(strings.Join(shBoxes(string(markdown)), ""), "\n")
	at := 0
	for _, command := range raftexampleReadme {
		for at < len(boxes) && boxes[at] != command && !strings.HasPrefix(boxes[at], command+" >") {
			at++
		}
		if at == len(boxes) {
			t.Fatalf("docs/raftexample.md does not have, behind those before it: %s", command)
		}
	}
	runTutorial(t, "docs/raftexample.md", builtBefore(t, string(markdown)))
}

// builtBefore has a document take the program that all tests run in place of one that it builds: to build one in another
// directory compiles each package anew, and TestReadme does.
func builtBefore(t *testing.T, markdown string) string {
	t.Helper()
	bin, err := procBinary()
	testkit.Must(t, err)
	before, after, found := strings.Cut(markdown, "\nmake build\n")
	if !found {
		t.Fatal("the document builds nothing")
	}
	return before + "\nln -s " + docQuote(bin) + " raftkv\n" + after
}

// awaitPort waits for a port that is fixed. Some lie where the kernel takes ports
// for outgoing connections from, and one of those goes by.
func awaitPort(t *testing.T, port string) {
	t.Helper()
	var err error
	for range 60 {
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	testkit.CannotRun(t, fmt.Sprintf("the ports are fixed, and one is taken: %v", err))
}

// tutorialPorts is held by the tutorial that runs, since all use the same ports.
var tutorialPorts sync.Mutex

// runTutorial runs the commands of the document name in a copy of the repository, which it returns.
func runTutorial(t *testing.T, name, markdown string) string {
	t.Helper()
	procfile, err := os.ReadFile("Procfile")
	testkit.Must(t, err)
	// The ports are fixed: those in the text, those of the Procfile, the defaults, and goreman's own.
	return runTutorialAt(t, name, markdown, &tutorialPorts, markdown+string(procfile), "9021", "9121", "8555")
}

// runTutorialAt is runTutorial with ports of its own: those named in a text, and others. Who holds
// the lock has them.
func runTutorialAt(t *testing.T, name, markdown string, lock sync.Locker, named string, ports ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts whole clusters")
	}
	if os.Getenv("README_TEST") != "" {
		t.Skip("this is the README's own make test")
	}
	testkit.NeedTools(t, "bash", "git", "make", "curl")
	t.Parallel() // it mostly waits
	lock.Lock()
	defer lock.Unlock()
	commands, err := docCommands(markdown)
	testkit.Must(t, err)
	if len(commands) < 5 {
		t.Fatalf("only %d commands in the sh blocks", len(commands))
	}
	for _, m := range readmePort.FindAllStringSubmatch(named, -1) {
		ports = append(ports, m[1])
	}
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		awaitPort(t, port)
	}
	within := 4 * time.Minute
	if deadline, ok := t.Deadline(); ok {
		within = min(within, time.Until(deadline)-20*time.Second)
	}
	dir := t.TempDir()
	copyRepository(t, dir)
	start := time.Now()
	out, err := runDoc(t, name, commands, dir, within)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d commands in %v", len(commands), time.Since(start))
	return dir
}

var (
	docFence   = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	docAddress = regexp.MustCompile(`https?://([^/:\s'"]+)`)
)

// Guarantee: what is to be pasted speaks to this machine alone, and what is only to be looked at cannot be pasted: each of its
// commands begins with a $.
func TestReadmeBoxes(t *testing.T) {
	markdown, err := os.ReadFile("README.md")
	testkit.Must(t, err)
	boxes := docFence.FindAllStringSubmatch(string(markdown), -1)
	if len(boxes) < 10 {
		t.Fatalf("only %d boxes", len(boxes))
	}
	for _, box := range boxes {
		lang, text := box[1], box[2]
		prompt := strings.HasPrefix(text, "$ ") || strings.Contains(text, "\n$ ")
		switch {
		case lang == "sh" && prompt:
			t.Errorf("this box is run, and has a $:\n%s", text)
		case lang == "console" && !strings.HasPrefix(text, "$ "):
			t.Errorf("this box is to look at, and does not begin with a $:\n%s", text)
		case lang != "sh" && lang != "console":
			t.Errorf("a box of %q is neither:\n%s", lang, text)
		}
		for _, m := range docAddress.FindAllStringSubmatch(text, -1) {
			if m[1] != "127.0.0.1" {
				t.Errorf("a box names the foreign address %s:\n%s", m[1], text)
			}
		}
	}
}

// Guarantee: git ignores what the README's commands make.
func TestReadmeLeavesNothingForGit(t *testing.T) {
	for _, name := range []string{"raftkv", "run/one/wal/0.tmp", "run/hello.backup", "run/2.before-recovery-1/mark", "raftkv-1/mark", "raftkv-4/mark", "raftkv-2.before-recovery-1/mark"} {
		out, err := exec.Command("git", "check-ignore", "--quiet", name).CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
		case errors.As(err, &exit) && exit.ExitCode() == 1:
			t.Errorf("git does not ignore %s", name)
		default:
			t.Skipf("not a git work tree: %v %s", err, out)
		}
	}
	markdown, err := os.ReadFile("README.md")
	testkit.Must(t, err)
	// Whatever a command of the README writes is in run, but for the program.
	for _, m := range regexp.MustCompile(`(?:>|-o |--data-dir )([a-zA-Z][^\s;&]*)`).FindAllStringSubmatch(strings.Join(shBoxes(string(markdown)), "\n"), -1) {
		if !strings.HasPrefix(m[1], "run/") {
			t.Errorf("a command of the README makes %s, outside of run/", m[1])
		}
	}
}

func shBoxes(markdown string) []string {
	var boxes []string
	for _, box := range docFence.FindAllStringSubmatch(markdown, -1) {
		if box[1] == "sh" {
			boxes = append(boxes, box[2])
		}
	}
	return boxes
}

const readmeSample = "# Title\n\n```sh\n" + `x=1
echo one; echo "two $x"   # a comment
# => one
# => two 1

# only a comment
cat <<END
  in a \
document
END
# => in a document
for i in 1 2; do
    echo "$i" |
        tr 12 ab
done
# => a
# => b
sleep 300 &
` + "```\n\n```console\n$ false\n```\n\n~~~text\n```sh\nfalse\n```\n~~~\n\n```sh\n" + `echo "$x" \
    "still the same shell"
# => 1 still the same shell
cd "$(mktemp -d ./sub-XXXX)"
true &&
  true
printf ''
# =>
` + "```\n"

// The extractor is put to the test itself: what runs, what does not, and that a wrong output is noticed.
func TestReadmeExtractor(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip(err)
	}
	commands, err := docCommands(readmeSample)
	if err != nil {
		t.Fatal(err)
	}
	var lines []int
	for _, c := range commands {
		lines = append(lines, c.line)
	}
	if want := []int{4, 5, 10, 15, 21, 35, 38, 39, 41}; !slices.Equal(lines, want) {
		t.Errorf("commands begin at the lines %v, want %v", lines, want)
	}
	out, err := runDoc(t, "README.md", commands, t.TempDir(), time.Minute)
	if err != nil {
		t.Errorf("the sample fails: %v\n%s", err, out)
	}
	for name, bad := range map[string]struct{ text, want string }{
		"wrong output":   {"```sh\necho a\n# => b\n```\n", "README.md:2: printed"},
		"more output":    {"```sh\necho a; echo b\n# => a\n```\n", "README.md:2: printed"},
		"failure":        {"```sh\ntrue\nfalse\n```\n", "README.md:3: exit 1"},
		"failure inside": {"```sh\nfalse | true\n```\n", "README.md:2: exit 1"},
		"unset variable": {"```sh\necho $no_such_variable\n```\n", "no_such_variable"},
	} {
		commands, err := docCommands(bad.text)
		if err != nil {
			t.Fatal(name, err)
		}
		if out, err := runDoc(t, "README.md", commands, t.TempDir(), time.Minute); err == nil || !strings.Contains(out, bad.want) {
			t.Errorf("%s: %v, %q does not hold %q", name, err, out, bad.want)
		}
	}
	for name, bad := range map[string]string{
		"open command": "```sh\necho 'a\n```\n", "open block": "```sh\necho a\n", "syntax": "```sh\nfi\n```\n", "nothing before": "```sh\n# => a\n```\n",
	} {
		if commands, err := docCommands(bad); err == nil {
			t.Errorf("%s: no error, but %v", name, commands)
		}
	}
	// The time bound holds, and nothing survives it, not even in a group of its own.
	hang, err := docCommands("```sh\nset -m; sleep 301 & set +m\nsleep 302\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := runDoc(t, "README.md", hang, t.TempDir(), 500*time.Millisecond); err == nil || time.Since(start) > 20*time.Second {
		t.Errorf("a script that hangs: %v after %v", err, time.Since(start))
	}
}
