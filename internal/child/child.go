// Package child answers: how is a command run, and how is it ended? A command has
// a process group of its own, so that it is ended with all that it has started in
// it. The package knows signals, exit codes and terminals, and nothing of why a
// command has to end.
package child

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes as shells have them.
const (
	ExitNotFound      = 127 // there is no such program
	ExitNotExecutable = 126 // there is one, and it cannot be run
	exitSignal        = 128 // and the number of the signal that ended it
)

// leavePoll is how often Leave looks whether a group is empty: nothing tells that.
const leavePoll = 5 * time.Millisecond

// Command is what to run.
type Command struct {
	Args   []string // the program, as a shell would look for it, and its arguments; no shell reads them
	Env    []string // the environment, as os.Environ has it
	Stdin  *os.File // nil: Input
	Input  []byte   // what is on stdin, if that is no file
	Stdout *os.File
	Stderr *os.File
}

// Child is a command that was started.
type Child struct {
	group int
	done  chan struct{}
	code  int // valid once done is closed

	// mu keeps a signal from being sent while the group's number is given up.
	mu   sync.Mutex
	gone bool // no process of the group is left

	others []int // the groups that processes below the command have made for themselves, as End has found them
}

// Find looks for a program as Start does. The error is one that Code knows.
func Find(program string) error {
	_, err := exec.LookPath(program)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return err
	}
	return nil
}

// Code returns the exit code for an error of Find or Start, as a shell has it.
func Code(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return ExitNotFound
	}
	return ExitNotExecutable
}

// Start starts a command. Where the system can do that (Linux) it is killed when this process
// ends without having waited for it. It gets the terminal if this process has it.
func Start(c Command) (*Child, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	if errors.Is(cmd.Err, exec.ErrDot) {
		cmd.Err = nil // PATH says so, and a shell would take it
	}
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Env, c.Stdin, c.Stdout, c.Stderr
	feed := func(<-chan struct{}) {}
	if c.Stdin == nil {
		read, write, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer func() { _ = read.Close() }() // the child has an end of its own
		cmd.Stdin = read
		feed = func(done <-chan struct{}) { writeInput(write, c.Input, done) }
	}
	tty := ownTerminal(c.Stdin)
	cmd.SysProcAttr = attributes()
	cmd.SysProcAttr.Setpgid = true
	if tty != nil {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(tty.Fd())
	}
	child := &Child{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The signal at the end of the parent is sent at the end of the thread that
		// started the child, so this thread stays as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			child.group = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			child.wait(tty)
		}
	}()
	err := <-started
	if err != nil {
		err = fmt.Errorf("start %s: %w", c.Args[0], err)
		closed := make(chan struct{})
		close(closed)
		feed(closed)
		return nil, err
	}
	// It is waited for here, and not by package os.
	err = cmd.Process.Release()
	go feed(child.done)
	return child, err
}

// writeInput writes a command's input, as much of it as the command reads while it
// runs, and closes the pipe.
func writeInput(pipe *os.File, input []byte, done <-chan struct{}) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = pipe.Write(input) // fails when the command does not read it all, as it may
		_ = pipe.Close()         // likewise
	}()
	select {
	case <-written:
	case <-done:
		_ = pipe.Close() // a process that the command has left behind may hold the other end
		<-written
	}
}

// wait waits until the command has ended. Package os does not tell of one that was
// stopped. Who suspends it at its terminal wants the shell back, which waits for this
// process, and this one cannot rest: what it keeps alive for the command would end.
// So the command goes on.
func (c *Child) wait(tty *os.File) {
	defer close(c.done)
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(c.group, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil: // cannot be: nobody else waits for it
			c.code = ExitNotExecutable
		case status.Stopped():
			if tty != nil && status.StopSignal() == syscall.SIGTSTP {
				_ = c.Signal(syscall.SIGCONT) // fails if it has ended, which is seen next
			}
			continue
		case status.Signaled():
			c.code = exitSignal + int(status.Signal())
		default:
			c.code = status.ExitStatus()
		}
		break
	}
	if tty != nil {
		takeTerminal(tty)
	}
}

// Done is closed when the command has ended. Others of its group may still run.
func (c *Child) Done() <-chan struct{} { return c.done }

// Code is the exit code of a command that has ended, 128 and the number of the
// signal if one has ended it.
func (c *Child) Code() int {
	<-c.done
	return c.code
}

// Group is the number of the command's process group.
func (c *Child) Group() int { return c.group }

// Signal sends a signal to the whole group. None of it being left is no error.
func (c *Child) Signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil
	}
	err := syscall.Kill(-c.group, sig)
	if errors.Is(err, syscall.ESRCH) {
		select {
		case <-c.done:
			c.gone = true // from here on the number may be somebody else's
		default:
		}
		return nil
	}
	return err
}

// Empty reports whether no process of the group is left that still runs. One that has
// ended and that nobody has waited for yet, as the first process of a container may
// take its time to, does not.
func (c *Child) Empty() bool {
	select {
	case <-c.done:
	default:
		return false
	}
	if err := c.Signal(0); err != nil && !seesZombies {
		return errors.Is(err, syscall.EPERM) // there are zombies alone, some systems say like this
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return true
	}
	for range 2 { // the second look finds what was started during the first
		if !onlyZombies(c.group) {
			return false
		}
	}
	return true
}

// look finds the groups below the command.
func (c *Child) look() {
	found := Below(c.group)
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done: // its number may be somebody else's
		return
	default:
	}
	for _, group := range found {
		if !slices.Contains(c.others, group) {
			c.others = append(c.others, group)
		}
	}
}

// othersGone reports whether none of the groups below the command is left. One that was
// empty is forgotten, since its number may become somebody else's.
func (c *Child) othersGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others = slices.DeleteFunc(c.others, onlyZombies)
	return len(c.others) == 0
}

// End ends the whole group, and on Linux the groups that processes below a command which
// still runs have made for themselves: TERM, then KILL at a time. It returns when they are
// empty, or a process does not even end by KILL within killWait, which is an error.
func (c *Child) End(kill time.Time) error {
	c.look()
	if time.Until(kill) > 0 {
		if err := c.signals(syscall.SIGTERM, syscall.SIGCONT); err != nil {
			return err
		}
		if c.leave(kill) {
			return nil
		}
	}
	c.look() // what was made meanwhile
	if err := c.signals(syscall.SIGKILL); err != nil {
		return err
	}
	if !c.leave(time.Now().Add(killWait)) {
		return fmt.Errorf("processes of group %d, or below it, still run after SIGKILL", c.group)
	}
	return nil
}

// killWait is how long a killed process may take to end: one that waits for a disk
// cannot be ended before the disk answers.
const killWait = 5 * time.Second

// signals sends signals to the group and to those below it.
func (c *Child) signals(sigs ...syscall.Signal) error {
	c.mu.Lock()
	others := slices.Clone(c.others)
	c.mu.Unlock()
	var errs []error
	for _, sig := range sigs {
		errs = append(errs, c.Signal(sig))
		for _, group := range others {
			if err := syscall.Kill(-group, sig); !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// leave waits until the groups are empty, and reports whether they are by then.
func (c *Child) leave(by time.Time) bool {
	for !c.Empty() || !c.othersGone() {
		if !time.Now().Before(by) {
			return false
		}
		select {
		case <-c.done:
			time.Sleep(min(leavePoll, max(0, time.Until(by))))
		case <-time.After(max(0, time.Until(by))):
		}
	}
	return true
}

// Environment returns an environment with variables set, and without those that
// are named in without.
func Environment(environ []string, set map[string]string, without ...string) []string {
	var env []string
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if _, replaced := set[name]; !replaced && !slices.Contains(without, name) {
			env = append(env, variable)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}

// ownTerminal returns f if it is the terminal of this process, whose group is in
// its foreground, else nil.
func ownTerminal(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	if err != nil || group != unix.Getpgrp() {
		return nil
	}
	return f
}

// takeTerminal makes this process's group the foreground of its terminal again. A
// process in the background that asks for that is stopped unless it ignores the signal.
func takeTerminal(tty *os.File) {
	signal.Ignore(syscall.SIGTTOU)
	defer signal.Reset(syscall.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp()) // a terminal that has gone needs no owner
}

// TokenVariables are what a command does not get in its environment unless somebody
// says so: it could tell others the token.
var TokenVariables = []string{"RAFTKV_TOKEN", "RAFTKV_TOKEN_FILE"}
