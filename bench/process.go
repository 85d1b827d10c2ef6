package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// process is a server that the benchmark has started.
type process struct {
	cmd     *exec.Cmd
	logPath string
	ended   chan struct{}
}

// startProcess starts a server with its output in a file. It dies with the
// benchmark, however that ends. To be called by main's goroutine only, because
// the kernel means the thread that started a process when it speaks of the
// process's parent: see main.
func startProcess(logPath string, args ...string) (*process, error) {
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the process has its own
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = underOurHand()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	p := &process{cmd: cmd, logPath: logPath, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // most are killed; who expects it to live looks at ended
	}()
	return p, nil
}

// kill ends the process as a crash would, and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.ended
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive returns an error with the end of the log once the process has ended.
func (p *process) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %s; its log ends:\n%s", p.cmd.Path, p.cmd.ProcessState, p.logTail())
	default:
		return nil
	}
}

func (p *process) logTail() string {
	const lines = 10
	text, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// cpuTick is the unit of times in /proc, the same on all Linux systems that
// Go runs on.
const cpuTick = 10 * time.Millisecond

// cpuTime returns how much CPU the processes have used together.
func cpuTime(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		used, err := parseStat(string(text))
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		sum += used
	}
	return sum, nil
}

// parseStat takes user and system time out of /proc/PID/stat: fields 14 and 15,
// and the second is the program's name in brackets, which may hold anything.
func parseStat(text string) (time.Duration, error) {
	_, rest, ok := cutLast(text, ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errors.New("unexpected format of /proc/PID/stat")
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * cpuTick, errors.Join(err, err2)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// resident returns the resident memory of a process in bytes.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseResident(text)
}

// parseResident takes VmRSS out of /proc/PID/status.
func parseResident(text []byte) (int64, error) {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/PID/status")
}

// waitFor tries until it succeeds, and returns the last error when the time is
// up. It looks often, because how long things take is what is measured.
func waitFor(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// sleep waits, or returns an error when the benchmark is to end.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
