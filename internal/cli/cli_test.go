package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"raftkv/internal/command"
	"raftkv/internal/config"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var update = flag.Bool("update", false, "write docs/cli.md")

// run runs a command line, and returns all of what came of it.
func run(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	code = Run(t.Context(), args, lookup, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// Guarantee: each command says what it does and shows an example, which the command takes.
func TestEveryCommandIsDescribed(t *testing.T) {
	eachCommand(Commands(), "", func(name string, c command.Command) {
		if !regexp.MustCompile(`^[a-z]+$`).MatchString(c.Name) || c.About == "" || strings.HasSuffix(c.About, ".") || c.About[0] < 'a' || c.About[0] > 'z' {
			t.Errorf("%s: its line is %q", name, c.About)
		}
		if !strings.HasSuffix(c.Long, ".") || (c.New == nil) != (len(c.Sub) > 0 && c.New == nil) {
			t.Errorf("%s: it says %q", name, c.Long)
		}
		if !strings.Contains(c.Example, "raftkv "+name) {
			t.Errorf("%s: no example", name)
		}
		for line := range strings.SplitSeq(c.Long+"\n"+c.Example, "\n") {
			if len(line) > 115 || strings.TrimRight(line, " ") != line {
				t.Errorf("%s: the line %q", name, line)
			}
		}
		if c.New != nil {
			checkFlags(t, name, c)
			checkExamples(t, name, c)
		}
	})
}

func checkFlags(t *testing.T, name string, c command.Command) {
	t.Helper()
	own, shared := c.Flags()
	seen := make(map[string]bool)
	for _, s := range slices.Concat(own, shared) {
		if seen[s.Flag] || s.Short != "" && seen[s.Short] || s.Flag == "token" || s.Flag == "help" || s.Flag == "version" {
			t.Errorf("%s: --%s is there twice, or must not be", name, s.Flag)
		}
		seen[s.Flag], seen[s.Short] = true, true
		if s.Help == "" || s.Set == nil || s.Env != "" && !strings.HasPrefix(s.Env, "RAFTKV_") || s.Env == "RAFTKV_KEY" || s.Env == "RAFTKV_FENCE" {
			t.Errorf("%s: --%s is %+v", name, s.Flag, s)
		}
	}
	if !seen["output"] || seen["endpoints"] != c.Remote {
		t.Errorf("%s has the flags %v", name, seen)
	}
}

// checkExamples reads the plain ones of the examples, and runs none.
func checkExamples(t *testing.T, name string, c command.Command) {
	t.Helper()
	read := 0
	for line := range strings.SplitSeq(strings.ReplaceAll(c.Example, "\\\n", ""), "\n") {
		rest, found := strings.CutPrefix(line, "raftkv "+name)
		if !found || strings.ContainsAny(rest, "'\"|<>$") {
			continue
		}
		read++
		made := c.New
		c.New = func() command.Action {
			a := made()
			a.Run = func(context.Context, *command.Call) error { return nil }
			return a
		}
		o := &command.Call{Env: func(string) (string, bool) { return "", false }, Stdin: strings.NewReader("")}
		if err := c.Run(t.Context(), o, strings.Fields(rest)); err != nil && len(c.Sub) == 0 {
			t.Errorf("%s: %v", line, err)
		}
		c.New = made
	}
	if read == 0 && c.Name != "completion" && c.Name != "help" && c.Name != "token" {
		t.Logf("%s: no example could be read", name)
	}
}

// Guarantee: a server that shares its environment with the commands does not complain of
// what they read.
func TestVariablesOfCommandsAreKnown(t *testing.T) {
	environ := []string{command.TokenVariable + "=x", "RAFTKV_FENCE=1", "RAFTKV_KEY=x"}
	eachCommand(Commands(), "", func(_ string, c command.Command) {
		own, shared := c.Flags()
		for _, s := range slices.Concat(own, shared) {
			if s.Env != "" && s.Flag != "force-new-cluster" {
				environ = append(environ, s.Env+"=x")
			}
		}
	})
	core, logs := observer.New(zap.DebugLevel)
	config.WarnEnvironment(config.DefaultConfig(), environ, zap.New(core))
	for _, e := range logs.All() {
		t.Errorf("%s %v", e.Message, e.ContextMap())
	}
}

// Guarantee: a wrong command is exit 2, and names the nearest right one, or those there are.
func TestWrongCommands(t *testing.T) {
	all := strings.Join(names(Commands()), ", ")
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"frobnicate"}, []string{`raftkv: there is no command "frobnicate"; there are ` + all, "With flags alone, raftkv is the server.", "Run raftkv --help"}},
		{[]string{"gett", "x"}, []string{`"gett"; did you mean get?`}},
		{[]string{"Restore"}, []string{`"Restore"; did you mean restore?`}},
		{[]string{"insepct"}, []string{"did you mean inspect?"}},
		{[]string{"stat"}, []string{"did you mean status?"}},
		{[]string{"member", "lst"}, []string{`raftkv member: there is no command "member lst"; did you mean list?`}},
		{[]string{"member", "frobnicate", "1"}, []string{"there are list, add, remove, promote, update"}},
		{[]string{"member"}, []string{"expected one of list, add, remove, promote, update"}},
		{[]string{"tls"}, []string{"expected one of ca, cert"}},
		{[]string{"tls", "--member", "1"}, []string{"expected one of ca, cert"}},
		{[]string{"tls", "client"}, []string{"there are ca, cert"}},
		{[]string{"leader", "mov"}, []string{"did you mean move?"}},
		{[]string{"help", "frobnicate"}, []string{`there is no command "frobnicate"; there are ` + all}},
		{[]string{"help", "member", "lst"}, []string{"did you mean list?"}},
		{[]string{"completion", "csh"}, []string{`SHELL "csh": expected one of bash, zsh, fish`}},
		{[]string{"completion"}, []string{"expected SHELL"}},
		{[]string{"version", "x"}, []string{`unexpected argument "x"`}},
	} {
		code, out, errs := run(t, nil, tt.args...)
		if code != config.ExitUsage || out != "" {
			t.Errorf("%q: exit %d\n%s%s", tt.args, code, out, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%q: %s is not named in\n%s", tt.args, want, errs)
			}
		}
	}
}

// Guarantee: flags stand before the word of a command below another, too.
func TestFlagsBeforeSubcommand(t *testing.T) {
	code, _, errs := run(t, nil, "tls", "--dir", t.TempDir(), "ca", "--days", "0")
	if code != config.ExitUsage || !strings.Contains(errs, "raftkv tls ca: --days") {
		t.Errorf("exit %d\n%s", code, errs)
	}
}

// Guarantee: help of each command is the same in all its ways, exit 0, on standard output.
func TestHelp(t *testing.T) {
	if code, out, _ := run(t, nil, "help"); code != config.ExitOK || out != Usage() {
		t.Errorf("help: exit %d\n%s", code, out)
	}
	eachCommand(Commands(), "", func(name string, c command.Command) {
		words := strings.Fields(name)
		code, out, errs := run(t, nil, append([]string{"help"}, words...)...)
		if code != config.ExitOK || errs != "" || !strings.HasPrefix(out, "raftkv "+name) || !strings.Contains(out, "\nExample:\n") {
			t.Errorf("help %s: exit %d\n%s%s", name, code, out, errs)
		}
		for _, args := range [][]string{{"--help"}, {"-h"}, {"x", "--help", "--nonsense"}} {
			if c.New == nil && len(args) > 1 {
				continue
			}
			if code, other, errs := run(t, nil, append(slices.Clone(words), args...)...); len(c.Sub) == 0 && (code != config.ExitOK || other != out) {
				t.Errorf("%s %q: exit %d\n%s%s", name, args, code, other, errs)
			}
		}
		if !strings.Contains(Usage(), "raftkv "+words[0]+" ") {
			t.Errorf("--help does not name %s", name)
		}
	})
	for _, s := range serverSettings() {
		if !strings.Contains(Usage(), "\n  --"+s.Flag+" ") {
			t.Errorf("--help lacks --%s", s.Flag)
		}
	}
	if c, _ := find([]string{"get"}); !strings.Contains(helpOf("get"), c.Long) || !strings.Contains(helpOf("get"), "RAFTKV_TOKEN ") {
		t.Errorf("help get:\n%s", helpOf("get"))
	}
}

// Guarantee: with --output json help is the table of commands, and an error is JSON, too.
func TestHelpForPrograms(t *testing.T) {
	code, out, _ := run(t, nil, "help", "--output", "json")
	var all []description
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != config.ExitOK || len(all) != len(Commands()) {
		t.Fatalf("exit %d, %v\n%s", code, err, out)
	}
	if get := all[0]; get.Name != "get" || get.Args != "KEY" || get.Example == "" || get.Flags[0].Flag != "stale" {
		t.Errorf("%+v", get)
	}
	var failed struct {
		Error string
		Exit  int
	}
	code, out, errs := run(t, map[string]string{"RAFTKV_OUTPUT": "json"}, "help", "frobnicate")
	if err := json.Unmarshal([]byte(errs), &failed); err != nil || code != 2 || failed.Exit != 2 || !strings.Contains(failed.Error, "frobnicate") || out != "" {
		t.Errorf("exit %d, %v\n%s%s", code, err, out, errs)
	}
}

// Guarantee: version and completion print, for people and for programs.
func TestOwnCommands(t *testing.T) {
	if code, out, _ := run(t, nil, "version"); code != 0 || !strings.HasPrefix(out, "raftkv ") || !strings.Contains(out, "go.etcd.io/raft/v3") && !strings.Contains(out, "go1.") {
		t.Errorf("exit %d\n%s", code, out)
	}
	var v map[string]string
	if code, out, _ := run(t, nil, "version", "-o", "json"); code != 0 || json.Unmarshal([]byte(out), &v) != nil || v["version"] == "" || v["go"] == "" {
		t.Errorf("exit %d\n%s", code, out)
	}
	for _, shell := range shells {
		code, out, errs := run(t, nil, "completion", shell)
		if code != 0 || errs != "" || !strings.Contains(out, "__complete") {
			t.Errorf("%s: exit %d\n%.200s%s", shell, code, out, errs)
		}
		if program, err := exec.LookPath(shell); err == nil {
			cmd := exec.CommandContext(t.Context(), program, "-n")
			cmd.Stdin = strings.NewReader(out)
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", shell, err, said)
			}
		}
	}
}

// Guarantee: commands, those below them, flags and their values are completed.
func TestCompletion(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
		not  string
	}{
		{[]string{""}, []string{"get\t", "put\t", "completion\t"}, "--id"},
		{[]string{"ge"}, []string{"get\t"}, "put"},
		{[]string{"--pee"}, []string{"--peer-cert-file\t"}, "get"},
		{[]string{"get", "--"}, []string{"--endpoints\t", "--stale\t", "--wait\t"}, "--if-absent"},
		{[]string{"put", "a", "b", "--if"}, []string{"--if-absent\t", "--if-revision\t"}, "--ttl"},
		{[]string{"put", "--if-absent", "a", "-"}, []string{"--ttl\t", "-f\t"}, ""},
		{[]string{"member", ""}, []string{"list\t", "add\t"}, "get"},
		{[]string{"member", "add", "--role", ""}, []string{"voter", "learner"}, "--force"},
		{[]string{"get", "--output", ""}, []string{"table", "json"}, "--stale"},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}, "get"},
	} {
		code, out, errs := run(t, nil, append([]string{"__complete"}, tt.args...)...)
		if code != 0 {
			t.Errorf("%q: exit %d\n%s%s", tt.args, code, out, errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%q: %q is not in\n%s", tt.args, want, out)
			}
		}
		if tt.not != "" && strings.Contains(out, tt.not) {
			t.Errorf("%q: %q is in\n%s", tt.args, tt.not, out)
		}
	}
	// Files are for what takes one, and for nothing else: 4 says no files, 0 files.
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"get", ""}, ":4\n"}, {[]string{"restore", ""}, ":0\n"}, {[]string{"put", "k", "--file", ""}, ":0\n"},
		{[]string{"put", "k", "--ttl", ""}, ":4\n"}, {[]string{"recover", "--data-dir", ""}, ":16\n"},
	} {
		if _, out, _ := run(t, nil, append([]string{"__complete"}, tt.args...)...); !strings.HasSuffix(out, tt.want) {
			t.Errorf("%q: %q, want %q", tt.args, out, tt.want)
		}
	}
}

// Guarantee: docs/cli.md says what the program says (go test ./internal/cli -update).
func TestReferenceIsCurrent(t *testing.T) {
	const file = "../../docs/cli.md"
	if *update {
		if err := os.WriteFile(file, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || string(text) != Reference() {
		t.Errorf("%s is not what raftkv help --markdown prints: go test ./internal/cli -update (%v)", file, err)
	}
	if code, out, _ := run(t, nil, "help", "--markdown"); code != 0 || out != Reference() {
		t.Errorf("exit %d", code)
	}
}

// Guarantee: the man page has every command, and man takes it without a word.
func TestManPage(t *testing.T) {
	code, out, errs := run(t, nil, "help", "--man")
	if code != 0 || errs != "" || !strings.Contains(out, `.TH "RAFTKV" "1"`) && !strings.Contains(out, ".TH RAFTKV 1") {
		t.Fatalf("exit %d\n%.300s%s", code, out, errs)
	}
	eachCommand(Commands(), "", func(name string, _ command.Command) {
		if !strings.Contains(out, "raftkv "+name+"\n") {
			t.Errorf("the man page lacks %s", name)
		}
	})
	if groff, err := exec.LookPath("groff"); err == nil {
		cmd := exec.CommandContext(t.Context(), groff, "-t", "-man", "-Tutf8", "-ww", "-z")
		cmd.Stdin = strings.NewReader(out)
		if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
			t.Errorf("groff: %v\n%.500s", err, said)
		}
	}
}
