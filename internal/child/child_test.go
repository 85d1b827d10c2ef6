package child

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run starts a script with its output in a file, and returns how to read that.
func run(t *testing.T, c Command) (*Child, func() string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	if c.Env == nil {
		c.Env = os.Environ()
	}
	child, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Signal(syscall.SIGKILL)
		<-child.Done()
	})
	return child, func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func sh(script string, args ...string) Command {
	return Command{Args: append([]string{"sh", "-c", script}, args...)}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Guarantee: the exit code is the command's, 128 and the signal's number if one has ended it.
func TestCode(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		if c, _ := run(t, sh(script)); c.Code() != want {
			t.Errorf("%s: code %d, want %d", script, c.Code(), want)
		}
	}
}

// Guarantee: what cannot be run is said as shells do: 127 if it is not there, else 126.
func TestStartFails(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	garbled := filepath.Join(t.TempDir(), "garbled")
	if err := os.WriteFile(garbled, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]int{"no-such-program-anywhere": 127, "/no/such/program": 127, plain: 126, t.TempDir(): 126} {
		if err := Find(program); err == nil || Code(err) != want {
			t.Errorf("Find(%s): %v, code %d, want %d", program, err, Code(err), want)
		}
		if _, err := Start(Command{Args: []string{program}}); err == nil || Code(err) != want {
			t.Errorf("Start(%s): %v, code %d, want %d", program, err, Code(err), want)
		}
	}
	if _, err := Start(Command{Args: []string{garbled}}); err == nil || Code(err) != 127 {
		t.Errorf("Start(%s): %v, code %d, want 127", garbled, err, Code(err))
	}
	if err := Find("sh"); err != nil {
		t.Error(err)
	}
}

// Guarantee: a command's input is written as far as it reads it, and keeps nobody waiting otherwise.
func TestInput(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 1<<20)
	c := sh("wc -c")
	c.Input = large
	child, out := run(t, c)
	if child.Code() != 0 || strings.TrimSpace(out()) != "1048576" {
		t.Errorf("code %d, output %q", child.Code(), out())
	}
	c = sh("exit 5")
	c.Input = large
	if child, _ := run(t, c); child.Code() != 5 {
		t.Errorf("code %d of a command that reads nothing, want 5", child.Code())
	}
	c = sh("sleep 1000 & exit 6") // somebody still has the pipe
	c.Input = large
	child, _ = run(t, c)
	if child.Code() != 6 {
		t.Errorf("code %d of a command that leaves one behind, want 6", child.Code())
	}
	if child.Empty() {
		t.Error("the group is empty, and one of it sleeps")
	}
	if err := child.End(time.Now()); err != nil || !child.Empty() {
		t.Errorf("End: %v, empty %v", err, child.Empty())
	}
}

// Guarantee: End lets a command clean up, ends all of its group, and does not wait beyond its time.
func TestEnd(t *testing.T) {
	t.Run("cleans up", func(t *testing.T) {
		c, out := run(t, sh("trap 'echo cleaned; exit 9' TERM; echo ready; while :; do sleep 0.01; done"))
		eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
		if err := c.End(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if c.Code() != 9 || !strings.Contains(out(), "cleaned") {
			t.Errorf("code %d, output %q", c.Code(), out())
		}
	})
	t.Run("ignores TERM", func(t *testing.T) {
		// The child of the shell inherits that TERM is ignored.
		c, out := run(t, sh("trap '' TERM; echo ready; sleep 1000"))
		eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
		at := time.Now().Add(200 * time.Millisecond)
		if err := c.End(at); err != nil {
			t.Fatal(err)
		}
		if early := time.Until(at); early > 0 || c.Code() != 137 || !c.Empty() {
			t.Errorf("ended %v early, code %d, empty %v", early, c.Code(), c.Empty())
		}
	})
	t.Run("no time is left", func(t *testing.T) {
		c, out := run(t, sh("trap 'echo cleaned' TERM; echo ready; while :; do sleep 0.01; done"))
		eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
		if err := c.End(time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if c.Code() != 137 || strings.Contains(out(), "cleaned") {
			t.Errorf("code %d, output %q", c.Code(), out())
		}
	})
	t.Run("stopped", func(t *testing.T) {
		c, out := run(t, sh("trap 'echo cleaned; exit 9' TERM; echo ready; while :; do sleep 0.01; done"))
		eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
		if err := c.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if err := c.End(time.Now().Add(time.Minute)); err != nil || c.Code() != 9 {
			t.Errorf("%v, code %d: TERM does not reach one that is stopped", err, c.Code())
		}
	})
	t.Run("grandchildren", func(t *testing.T) {
		c, out := run(t, sh("(trap '' TERM; echo ready; sleep 1000) & wait"))
		eventually(t, "ready", func() bool { return strings.Contains(out(), "ready") })
		if err := c.End(time.Now().Add(100 * time.Millisecond)); err != nil || !c.Empty() {
			t.Errorf("%v, empty %v", err, c.Empty())
		}
	})
	t.Run("twice", func(t *testing.T) {
		c, _ := run(t, sh("exit 0"))
		<-c.Done()
		for range 2 {
			if err := c.End(time.Now()); err != nil {
				t.Error(err)
			}
		}
	})
}

// Guarantee: a command's environment has what was set, once, and not what was left out.
func TestEnvironment(t *testing.T) {
	got := Environment([]string{"A=1", "B=2", "TOKEN=secret", "TOKEN_FILE=f", "C=a=b", "odd"}, map[string]string{"B": "new", "Z": ""}, "TOKEN")
	if want := []string{"A=1", "TOKEN_FILE=f", "C=a=b", "odd", "B=new", "Z="}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if code := Code(errors.Join(exec.ErrNotFound)); code != 127 {
		t.Error(code)
	}
}
