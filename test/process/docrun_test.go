//go:build unix

package process

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A document whose commands are tested has them in blocks fenced as ```sh, which run in order, in one bash. Other fences
// (```console, ```text …) are only to look at. A line
//
//	# => TEXT
//
// after a command states what the command before it prints, all of it; several such lines are several lines of output.

// docCommand is one command of a document: as many lines as the shell needs to find it complete.
type docCommand struct {
	line int    // in the document, of its first line
	code string // with its newlines
	want []string
}

var docCommandFence = regexp.MustCompile("^ {0,3}(```+|~~~+)[ \t]*([^`]*)$")

// docCommands takes the commands out of the ```sh blocks of a Markdown text.
func docCommands(markdown string) ([]docCommand, error) {
	var commands []docCommand
	var fence string // the fence that opened the block, "" outside
	var isSh bool
	var current docCommand
	for n, line := range strings.Split(markdown, "\n") {
		if m := docCommandFence.FindStringSubmatch(line); m != nil {
			switch {
			case fence == "":
				fence, isSh = m[1], strings.TrimSpace(m[2]) == "sh"
				continue
			case strings.HasPrefix(m[1], fence) && strings.TrimSpace(m[2]) == "":
				if current.code != "" {
					return nil, fmt.Errorf("line %d: the block ends within the command of line %d", n+1, current.line)
				}
				fence = ""
				continue
			}
		}
		if fence == "" || !isSh {
			continue
		}
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "# =>"); ok && current.code == "" {
			if len(commands) == 0 {
				return nil, fmt.Errorf("line %d: no command before %q", n+1, line)
			}
			last := &commands[len(commands)-1]
			last.want = append(last.want, strings.TrimSpace(text))
			continue
		}
		if current.code == "" {
			if s := strings.TrimSpace(line); s == "" || strings.HasPrefix(s, "#") {
				continue
			}
			current.line = n + 1
		}
		current.code += line + "\n"
		complete, err := docComplete(current.code)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		if complete {
			commands = append(commands, current)
			current = docCommand{}
		}
	}
	if fence != "" {
		return nil, fmt.Errorf("the last block is not closed")
	}
	return commands, nil
}

// docComplete asks bash whether code needs no further line. A here-document that is still open is only a warning.
func docComplete(code string) (bool, error) {
	if strings.HasSuffix(code, "\\\n") {
		return false, nil
	}
	cmd := exec.Command("bash", "-n")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(code)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return len(out) == 0, nil
	case bytes.Contains(out, []byte("unexpected end of file")), bytes.Contains(out, []byte("unexpected EOF")):
		return false, nil
	default:
		return false, fmt.Errorf("%w: %s", err, out)
	}
}

// docScript makes one script of the commands. Each runs in the same shell, its stdout in a file of its own, so that
// a server in the background does not write into the output of the commands after it.
func docScript(name string, commands []docCommand, dir string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "__name=%s\n", docQuote(name))
	s.WriteString(`set -euo pipefail
__line=0 __file=
trap 'echo "$__name:$__line: exit $?" >&2' ERR
trap 'cat $__file; kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 143' TERM INT
__check() { # FILE WANT
	local got= line
	while IFS= read -r line || [ -n "$line" ]; do
		line=${line//$'\r'/} line=${line#"${line%%[![:space:]]*}"} line=${line%"${line##*[![:space:]]}"}
		got+=$line$'\n'
	done <"$1"
	while [[ $got == *$'\n' ]]; do got=${got%$'\n'}; done
	if [ "$got" != "$2" ]; then
		printf '%s:%s: printed\n%s\ninstead of\n%s\n' "$__name" "$__line" "$got" "$2" >&2
		exit 1
	fi
}
`)
	for n, c := range commands {
		file := docQuote(filepath.Join(dir, fmt.Sprintf("stdout-%d", n)))
		fmt.Fprintf(&s, "__line=%d __file=%s\nprintf '+ %%s\\n' %s\n{\n%s} >%s\ncat %s\n__file=\n",
			c.line, file, docQuote(strings.TrimSpace(c.code)), c.code, file, file)
		if c.want != nil {
			fmt.Fprintf(&s, "__check %s %s\n", file, docQuote(strings.TrimSpace(strings.Join(c.want, "\n"))))
		}
	}
	return s.String()
}

func docQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// runDoc runs the commands of the document name in dir. Whatever they leave running is gone when it returns.
func runDoc(t *testing.T, name string, commands []docCommand, dir string, within time.Duration) (string, error) {
	t.Helper()
	aux := t.TempDir()
	script := filepath.Join(aux, "script.sh")
	if err := os.WriteFile(script, []byte(docScript(name, commands, aux)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(aux, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := exec.Command("bash", script)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "RAFTKV_") || strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "MFLAGS")
	})
	cmd.Env = append(cmd.Env, "README_TEST=running")
	cmd.SysProcAttr = procAttr(syscall.SIGTERM) // a session of its own: how its processes are found again
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { docEndSession(cmd.Process.Pid) })
	err = cmd.Wait()
	if !stop() {
		err = fmt.Errorf("not done within %v: %w", within, err)
	}
	docEndSession(cmd.Process.Pid)
	out, readErr := os.ReadFile(log.Name())
	if readErr != nil {
		t.Error(readErr)
	}
	for n, c := range commands { // what ran in the background has more to tell by now
		if tail, readErr := os.ReadFile(filepath.Join(aux, fmt.Sprintf("stdout-%d", n))); err != nil && readErr == nil && strings.HasSuffix(c.code, "&\n") {
			out = fmt.Appendf(out, "\n%sprinted at the end:\n%s\n", c.code, procTail(string(tail)))
		}
	}
	return string(out), err
}

// docEndSession ends all processes of a session: SIGTERM, and SIGKILL for what is left after five seconds. Process
// groups would not do, goreman gives each of its children its own.
func docEndSession(sid int) {
	deadline := time.Now().Add(5 * time.Second)
	for sig := syscall.SIGTERM; ; time.Sleep(50 * time.Millisecond) {
		pids := docSession(sid)
		if len(pids) == 0 || time.Now().After(deadline.Add(5*time.Second)) {
			return
		}
		if time.Now().After(deadline) {
			sig = syscall.SIGKILL
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig) // it may just have ended
		}
	}
}

// docSession lists the live processes of a session; without /proc it knows the leader's group only.
func docSession(sid int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	if stats == nil && syscall.Kill(-sid, 0) == nil {
		return []int{-sid}
	}
	var pids []int
	for _, stat := range stats {
		data, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		// pid (comm) state ppid pgrp session …; comm may hold anything.
		f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(f) > 3 && f[3] == strconv.Itoa(sid) && f[0] != "Z" && f[0] != "X" {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// wantDoc runs the commands of a document in a new cluster, whose first node, which they ask, leads and in another one
// follows. also gets the cluster and the text behind that.
func wantDoc(t *testing.T, path string, also func(c *procCluster, text string)) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts whole clusters")
	}
	testkit.NeedTools(t, "bash", "curl", "jq")
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	commands, err := docCommands(string(text))
	testkit.Must(t, err)
	for role, leader := range map[string]int{"leader": 1, "follower": 2} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := newProcCluster(t, 3)
			c.start()
			if r := c.json(http.MethodPost, 1, "/v1/leader", fmt.Sprintf(`{"id":%d}`, leader)); r.status != http.StatusOK {
				t.Fatalf("leadership to node %d: %v", leader, r)
			}
			c.leader() // and all know it
			start := time.Now()
			out, err := runDoc(t, path, atFreePorts(t, c, commands), t.TempDir(), 2*time.Minute)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%d commands in %v", len(commands), time.Since(start))
			if also != nil {
				also(c, string(text))
			}
		})
	}
}
