package process

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// procTerminal is a terminal, and what was written to it.
type procTerminal struct {
	keys   *os.File // what is typed goes here
	screen *os.File // for the programs

	mu    sync.Mutex
	shown bytes.Buffer
}

func newProcTerminal(t *testing.T) *procTerminal {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	screen, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tty := &procTerminal{keys: keys, screen: screen}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := keys.Read(b)
			tty.mu.Lock()
			tty.shown.Write(b[:n])
			tty.mu.Unlock()
			if err != nil {
				return // nobody has it open any more
			}
		}
	}()
	t.Cleanup(func() {
		_ = screen.Close()
		<-read
		_ = keys.Close()
	})
	return tty
}

func (tty *procTerminal) typed(t *testing.T, text, want string) {
	t.Helper()
	if _, err := tty.keys.WriteString(text); err != nil {
		t.Fatal(err)
	}
	procEventually(t, procToolWithin, "the terminal shows "+want, func() error {
		tty.mu.Lock()
		defer tty.mu.Unlock()
		if !strings.Contains(tty.shown.String(), want) {
			return fmt.Errorf("it shows %q", tty.shown.String())
		}
		return nil
	})
}

// Guarantee: at a terminal, what is typed is the command's, Ctrl-C ends it and not raftkv, which frees
// the lock, and Ctrl-Z does not make it keep the lock without running.
func TestProcLockTerminal(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	tty := newProcTerminal(t)
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	script := `trap 'echo "interrupted"; exit 5' INT; echo "begun"; read -r a; echo "first $a"; read -r b; echo "second $b"; while :; do sleep 0.01; done`
	cmd := exec.Command(bin, "lock", "tty", "--endpoints", c.url(1), "--", "sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty.screen, tty.screen, tty.screen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	if err := procStartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	tty.typed(t, "", "begun")
	tty.typed(t, "one\n", "first one")
	tty.typed(t, "\x1a", "^Z")
	tty.typed(t, "two\n", "second two")
	tty.typed(t, "\x03", "interrupted")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("%v, want exit 5: the command's", err)
	}
	if r := c.do("GET", 1, "/v1/kv/lock/tty", nil); r.status != 404 {
		t.Errorf("the lock is not free: %v", r)
	}
}
