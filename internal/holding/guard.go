package holding

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"raftkv/internal/child"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The guard is a second process, which ends the command when this one cannot: because it
// was killed, stopped, or is too slow. It reads up to when the hold is good, and ends the
// command's process group unless it is told of more in time. Its clock is one that
// goes on while the machine sleeps.

// guardVariable holds, in the environment of a guard, its times: grace and margin in
// nanoseconds. It is the one way to become a guard: it is nothing that users call.
const guardVariable = "RAFTKV_LOCK_GUARD"

// The lines that a guard reads. Two of them have a number behind them.
const (
	guardUntil = "until" // up to when the hold is good, as bootTime has it
	guardGroup = "group" // the process group of the command
	guardDone  = "done"  // the command has ended
)

// guardProcess is the guard as the process that has started it sees it.
type guardProcess struct {
	cmd  *exec.Cmd
	pipe *os.File
	told int64
}

// tellLimit bounds telling a guard something. Somebody may have stopped it, and what has
// been told fills the pipe then.
const tellLimit = 50 * time.Millisecond

// startGuard starts a guard.
func startGuard(t times) (watchman, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startGuardOf(self, t)
}

// startGuardOf is startGuard with another program.
func startGuardOf(program string, t times) (watchman, error) {
	cmd := exec.Command(program, "lock", "guard", "--", "guard")
	cmd.Env = []string{fmt.Sprintf("%s=%d,%d", guardVariable, t.grace, t.margin/2)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends this process at its terminal is not for it
	read, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }() // the guard has an end of its own
	cmd.Stdin = read
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, pipe.Close())
	}
	return &guardProcess{cmd: cmd, pipe: pipe}, nil
}

// Until tells the guard up to when the hold is good.
func (g *guardProcess) Until(t time.Time) error {
	at := int64(bootTime() + time.Until(t))
	if at-g.told < int64(time.Millisecond) {
		return nil // two clocks are never read at once
	}
	if err := g.tell(guardUntil, at); err != nil {
		return err
	}
	g.told = at
	return nil
}

// Guard tells the guard whom it guards.
func (g *guardProcess) Guard(group int) error {
	return g.tell(guardGroup, group)
}

// tell writes a line to the guard.
func (g *guardProcess) tell(words ...any) error {
	if err := g.pipe.SetWriteDeadline(time.Now().Add(tellLimit)); err != nil {
		return err
	}
	_, err := fmt.Fprintln(g.pipe, words...)
	return err
}

// Dismiss ends the guard, also one that was stopped.
func (g *guardProcess) Dismiss() error {
	err := g.tell(guardDone)
	_ = g.cmd.Process.Kill() // fails if it has ended by itself
	err = errors.Join(err, g.pipe.Close())
	if ended := g.cmd.Wait(); !errors.As(ended, new(*exec.ExitError)) {
		err = errors.Join(err, ended)
	}
	return err
}

// guarding is what a guard knows.
type guarding struct {
	times
	signal func(group int, sig syscall.Signal) error
	below  func(group int) []int // the groups that processes below the command have made for themselves
	now    func() time.Duration

	group  int           // 0: there is none yet
	others []int         // those below that were seen
	until  time.Duration // 0: not told yet
	termed bool
}

// guardOf returns what this process is to do as a guard, or nil if it is none.
func guardOf(env func(string) (string, bool)) (*guarding, error) {
	text, ok := env(guardVariable)
	if !ok {
		return nil, nil
	}
	grace, margin, ok := strings.Cut(text, ",")
	g, errG := strconv.ParseInt(grace, 10, 64)
	m, errM := strconv.ParseInt(margin, 10, 64)
	if !ok || errG != nil || errM != nil || g < 0 || m < 0 {
		return nil, fmt.Errorf("%s: expected two times", guardVariable)
	}
	return &guarding{
		times:  times{grace: time.Duration(g), margin: time.Duration(m)},
		signal: func(group int, sig syscall.Signal) error { return syscall.Kill(-group, sig) },
		below:  child.Below,
		now:    bootTime,
	}, nil
}

// watch guards until it is told that it is over, or the other end of in has gone, which
// means that nobody keeps the hold.
func (g *guarding) watch(in io.Reader) error {
	// Whoever ends a whole service signals the guard, too, and the command may take a
	// while to clean up.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return g.loop(lines)
}

func (g *guarding) loop(lines <-chan string) error {
	for {
		look := time.NewTimer(g.wait())
		select {
		case line := <-lines:
			look.Stop()
			if line == guardDone {
				return nil
			}
			if !g.hear(line) {
				return g.kill()
			}
		case <-look.C:
			switch left := g.until - g.now(); {
			case g.until == 0:
			case left <= g.margin:
				g.look()
				return g.kill()
			case left <= g.grace+g.margin && !g.termed && g.group != 0:
				g.termed = true
				g.look()
				if err := errors.Join(g.all(syscall.SIGTERM), g.all(syscall.SIGCONT)); err != nil {
					return err
				}
			}
		}
	}
}

// hear takes in a line. It is false for one that cannot be, as that at the end of the input.
func (g *guarding) hear(line string) bool {
	what, number, _ := strings.Cut(line, " ")
	n, err := strconv.ParseInt(number, 10, 64)
	switch {
	case err != nil || n < 1:
		return false
	case what == guardUntil:
		g.until = time.Duration(n)
	case what == guardGroup && n > 1:
		g.group = int(n)
	default:
		return false
	}
	return true
}

// look finds the groups below the command. That is done only while the process that has
// started the command is there, which has not waited for it: its number is its own.
func (g *guarding) look() {
	if g.group == 0 {
		return
	}
	for _, group := range g.below(g.group) {
		if !slices.Contains(g.others, group) {
			g.others = append(g.others, group)
		}
	}
}

// all sends a signal to the command's group and to those below.
func (g *guarding) all(sig syscall.Signal) error {
	err := g.signal(g.group, sig)
	for _, group := range g.others {
		if below := g.signal(group, sig); !errors.Is(below, syscall.ESRCH) {
			err = errors.Join(err, below)
		}
	}
	return err
}

// kill kills the command, if there is one yet.
func (g *guarding) kill() error {
	if g.group == 0 {
		return nil
	}
	return g.all(syscall.SIGKILL)
}

// wait is how long nothing has to be done.
func (g *guarding) wait() time.Duration {
	if g.until == 0 {
		return lookEvery
	}
	due := g.until - g.margin - g.now()
	if !g.termed && g.group != 0 {
		due -= g.grace
	}
	return min(max(due, 0), lookEvery)
}

// environment is that of a command under a hold.
func environment(environ []string, h hold, key string, keepToken bool) []string {
	set := map[string]string{"RAFTKV_FENCE": strconv.FormatUint(h.fence, 10), "RAFTKV_KEY": key}
	if keepToken {
		return child.Environment(environ, set)
	}
	return child.Environment(environ, set, child.TokenVariables...)
}

// passedOn are the signals that a command gets from whoever sends them to this process.
func passedOn() (<-chan os.Signal, func()) {
	signals := make(chan os.Signal, 16)
	list := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		list = append(list, syscall.SIGHUP)
	}
	signal.Notify(signals, list...)
	return signals, func() { signal.Stop(signals) }
}

// withoutEnd is ctx for what has to be done after its end.
func withoutEnd(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}
