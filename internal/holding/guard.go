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
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The guard is a second process, which ends the command when this one cannot: because it
// was killed, stopped, or is too slow. It reads up to when the hold is good, and ends the
// command's process group unless it is told of more in time. Its clock is one that
// goes on while the machine sleeps.

// guardVariable holds, in the environment of a guard, whom it guards: group, grace, margin.
// It is the one way to become a guard: it is nothing that users call.
const guardVariable = "RAFTKV_LOCK_GUARD"

// guardDone is the line that ends a guard in peace.
const guardDone = "done"

// guardProcess is the guard as the process that has started it sees it.
type guardProcess struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
	told int64
}

// startGuard starts a guard for a command.
func startGuard(p process, t times) (watchman, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startGuardOf(self, p, t)
}

// startGuardOf is startGuard with another program.
func startGuardOf(program string, p process, t times) (watchman, error) {
	cmd := exec.Command(program, "lock", "guard", "--", "guard")
	cmd.Env = []string{fmt.Sprintf("%s=%d,%d,%d", guardVariable, p.Group(), t.grace, t.margin/2)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends this process at its terminal is not for it
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
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
	g.told = at
	_, err := fmt.Fprintln(g.pipe, at)
	return err
}

// Dismiss ends the guard.
func (g *guardProcess) Dismiss() error {
	_, err := fmt.Fprintln(g.pipe, guardDone)
	return errors.Join(err, g.pipe.Close(), g.cmd.Wait())
}

// guarded is what a guard ends.
type guarded struct {
	times
	signal func(syscall.Signal) error // to the whole group
}

// guardOf returns what this process is to guard, or nil if it is no guard.
func guardOf(env func(string) (string, bool)) (*guarded, error) {
	text, ok := env(guardVariable)
	if !ok {
		return nil, nil
	}
	var numbers [3]int64
	fields := strings.Split(text, ",")
	for i := range numbers {
		if len(fields) != len(numbers) {
			return nil, fmt.Errorf("%s: expected three numbers", guardVariable)
		}
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil || n < 0 || i == 0 && n < 2 {
			return nil, fmt.Errorf("%s: %q is out of range", guardVariable, fields[i])
		}
		numbers[i] = n
	}
	group := int(numbers[0])
	return &guarded{
		times:  times{grace: time.Duration(numbers[1]), margin: time.Duration(numbers[2])},
		signal: func(sig syscall.Signal) error { return syscall.Kill(-group, sig) },
	}, nil
}

// watch guards until it is told that it is over, or the other end of in has gone, which
// means that nobody keeps the hold.
func (g *guarded) watch(in io.Reader, now func() time.Duration) error {
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
	return g.loop(lines, now)
}

func (g *guarded) loop(lines <-chan string, now func() time.Duration) error {
	var until time.Duration // 0: not told yet
	termed := false
	for {
		look := time.NewTimer(g.wait(until, termed, now()))
		select {
		case line, ok := <-lines:
			look.Stop()
			if line == guardDone {
				return nil
			}
			at, err := strconv.ParseInt(line, 10, 64)
			if !ok || err != nil {
				return g.signal(syscall.SIGKILL)
			}
			until = time.Duration(at)
		case <-look.C:
			switch left := until - now(); {
			case until == 0:
			case left <= g.margin:
				return g.signal(syscall.SIGKILL)
			case left <= g.grace+g.margin && !termed:
				termed = true
				if err := errors.Join(g.signal(syscall.SIGTERM), g.signal(syscall.SIGCONT)); err != nil {
					return err
				}
			}
		}
	}
}

// wait is how long nothing has to be done.
func (g *guarded) wait(until time.Duration, termed bool, now time.Duration) time.Duration {
	if until == 0 {
		return lookEvery
	}
	due := until - g.margin - now
	if !termed {
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
