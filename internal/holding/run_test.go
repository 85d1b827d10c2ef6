package holding

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/client"
	"raftkv/internal/child"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeHold is a hold whose time is kept by hand.
type fakeHold struct {
	mu       sync.Mutex
	over     time.Time
	released []error // what release returns, one after the other
	releases int
	lose     context.CancelCauseFunc
	hold     hold
}

func newFakeHold(t *testing.T, ttl time.Duration) *fakeHold {
	f := &fakeHold{over: time.Now().Add(ttl)}
	ctx, lose := context.WithCancelCause(t.Context())
	f.lose = lose
	f.hold = hold{fence: 7, held: ctx, until: f.until, release: f.release}
	return f
}

func (f *fakeHold) until() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

func (f *fakeHold) extend(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = time.Now().Add(d)
}

func (f *fakeHold) release(ctx context.Context) error {
	f.releases++
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(f.released) > 0 {
		return f.released[0]
	}
	return nil
}

// fakeProcess is a command that does as it is told.
type fakeProcess struct {
	t        *testing.T
	cleanup  time.Duration // after TERM, it takes this long to end; negative: it does not
	left     bool          // it leaves something behind in its group
	done     chan struct{}
	code     int
	signals  []syscall.Signal
	term     time.Time // when End was called
	ended    time.Time // when the last of the group had ended
	killWhen time.Time
	endErr   error // of End, which does nothing then
}

func newFakeProcess(t *testing.T) *fakeProcess {
	return &fakeProcess{t: t, done: make(chan struct{})}
}

func (p *fakeProcess) exit(code int) { p.code = code; close(p.done) }

func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) Code() int             { return p.code }
func (p *fakeProcess) Group() int            { return 4711 }
func (p *fakeProcess) Empty() bool           { return !p.left }
func (p *fakeProcess) Signal(s syscall.Signal) error {
	p.signals = append(p.signals, s)
	if s == syscall.SIGINT {
		p.exit(130)
	}
	return nil
}

func (p *fakeProcess) End(kill time.Time) error {
	if p.endErr != nil {
		return p.endErr
	}
	p.term, p.killWhen = time.Now(), kill
	wait := time.Until(kill)
	if p.cleanup >= 0 {
		wait = min(wait, p.cleanup)
	}
	time.Sleep(max(0, wait))
	p.ended, p.left = time.Now(), false
	select {
	case <-p.done:
	default:
		p.exit(143)
	}
	return nil
}

// inBubble runs a command under a hold of 10 s, in virtual time.
func inBubble(t *testing.T, test func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h, p, said := newFakeHold(t, 10*time.Second), newFakeProcess(t), new(strings.Builder)
		r := &run{
			hold: h.hold, times: timesOf(10*time.Second, 2*time.Second), say: said, name: "raftkv lock",
			start: func() (process, error) { return p, nil },
		}
		test(t, r, h, p, said)
		if h.releases != 1 && p.endErr == nil {
			t.Errorf("given back %d times", h.releases)
		}
	})
}

// Guarantee: the exit status is the command's, and what it held is given back, also after a signal
// that has ended everything else.
func TestRunEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		go func() { time.Sleep(5 * time.Second); p.exit(3) }()
		if code, err := r.do(ctx); code != 3 || err != nil || said.Len() > 0 || !p.term.IsZero() {
			t.Errorf("%d, %v, %q", code, err, said)
		}
	})
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		h.released = []error{errors.New("no leader")}
		p.exit(0)
		if code, err := r.do(t.Context()); code != 0 || err != nil || !strings.Contains(said.String(), "not given back") || !strings.Contains(said.String(), "no leader") {
			t.Errorf("%d, %v, %q", code, err, said)
		}
	})
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		r.start = func() (process, error) { return nil, exec.ErrNotFound }
		if code, err := r.do(t.Context()); code != child.ExitNotFound || !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("%d, %v", code, err)
		}
	})
}

// Guarantee: signals reach the command.
func TestRunPassesSignals(t *testing.T) {
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		signals := make(chan os.Signal, 2)
		r.signals = signals
		signals <- syscall.SIGHUP
		signals <- syscall.SIGINT
		if code, err := r.do(t.Context()); code != 130 || err != nil || !slices.Equal(p.signals, []syscall.Signal{syscall.SIGHUP, syscall.SIGINT}) {
			t.Errorf("%d, %v, %v", code, err, p.signals)
		}
	})
}

// Guarantee: while the hold is kept alive the command runs; when it is not, the command gets
// TERM with --grace left to clean up, and has ended before the hold is over.
func TestRunLost(t *testing.T) {
	for _, cleanup := range []time.Duration{0, time.Second, -1} {
		inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
			p.cleanup = cleanup
			go func() {
				for range 20 {
					time.Sleep(3 * time.Second)
					h.extend(10 * time.Second)
				}
			}()
			begun := time.Now()
			code, err := r.do(t.Context())
			last := begun.Add(60 * time.Second) // kept alive for the last time
			if !errors.Is(err, errLost) || code != 143 || !strings.Contains(said.String(), "ending the command") {
				t.Errorf("%d, %v, %q", code, err, said)
			}
			if at := p.term.Sub(last); at != 7500*time.Millisecond {
				t.Errorf("TERM %v after it was kept alive, want 7.5s: 2 s of grace and 0.5 s before its end", at)
			}
			if at := p.ended.Sub(last); at > 9500*time.Millisecond || at < 7500*time.Millisecond {
				t.Errorf("ended after %v, the hold was over after 10s", at)
			}
		})
	}
}

// Guarantee: when the hold is lost from one moment to the next, the command is killed at once.
func TestRunLostAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		p.cleanup = -1
		h.released = []error{client.ErrLeaseLost}
		begun := time.Now()
		go func() { time.Sleep(time.Second); h.lose(client.ErrLeaseLost) }()
		if _, err := r.do(t.Context()); !errors.Is(err, errLost) || p.ended.Sub(begun) != time.Second || strings.Contains(said.String(), "given back") {
			t.Errorf("%v after %v, %q", err, p.ended.Sub(begun), said)
		}
	})
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		h.lose(client.ErrLeaseLost)
		r.start = func() (process, error) { t.Error("started"); return p, nil }
		if _, err := r.do(t.Context()); !errors.Is(err, errLost) {
			t.Error(err)
		}
	})
	// Both at once: whether the command ended in time is not known.
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		r.start = func() (process, error) {
			h.lose(client.ErrLeaseLost)
			p.exit(0)
			return p, nil
		}
		if _, err := r.do(t.Context()); !errors.Is(err, errLost) {
			t.Error(err)
		}
	})
}

// Guarantee: while something runs that cannot be ended, such as a program of another user, the hold
// is not given back, and nothing says that it was ended.
func TestRunCannotBeEnded(t *testing.T) {
	for _, lost := range []bool{true, false} {
		inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
			p.endErr = syscall.EPERM
			if p.left = true; !lost {
				p.exit(0)
			}
			_, err := r.do(t.Context())
			if errors.Is(err, errLost) != lost || !errors.Is(err, errRunsOn) || !errors.Is(err, syscall.EPERM) {
				t.Errorf("lost %v: %v", lost, err)
			}
			if h.releases != 0 || !strings.Contains(said.String(), "not given back") {
				t.Errorf("lost %v: released %d times, %q", lost, h.releases, said)
			}
		})
	}
}

// Guarantee: what a command leaves behind does not run on without the hold.
func TestRunLeavesNothing(t *testing.T) {
	for _, left := range []time.Duration{10 * time.Second, time.Second} {
		inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
			p.left, p.cleanup = true, -1
			h.extend(left)
			r.times = times{grace: 400 * time.Millisecond, margin: 100 * time.Millisecond}
			p.exit(0)
			begun := time.Now()
			if code, err := r.do(t.Context()); code != 0 || err != nil || p.left || p.ended.Sub(begun) != 400*time.Millisecond {
				t.Errorf("%d, %v, %v", code, err, p.ended.Sub(begun))
			}
		})
	}
}

// fakeWatchman notes what a guard is told.
type fakeWatchman struct {
	told      []time.Time
	group     int
	dismissed int
}

func (w *fakeWatchman) Until(t time.Time) error { w.told = append(w.told, t); return nil }
func (w *fakeWatchman) Guard(group int) error   { w.group = group; return nil }
func (w *fakeWatchman) Dismiss() error          { w.dismissed++; return nil }

// Guarantee: the guard hears up to when the hold is good, and of the end.
func TestRunTellsGuard(t *testing.T) {
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		w := new(fakeWatchman)
		r.guard = func(times) (watchman, error) { return w, nil }
		r.start = func() (process, error) {
			if len(w.told) == 0 {
				t.Error("the command was started before the guard knew of anything")
			}
			return p, nil
		}
		later := time.Now().Add(13 * time.Second)
		go func() {
			time.Sleep(3 * time.Second)
			h.extend(10 * time.Second)
			time.Sleep(2 * time.Second)
			p.exit(0)
		}()
		if _, err := r.do(t.Context()); err != nil || w.dismissed != 1 || w.group != 4711 {
			t.Errorf("%v, dismissed %d times", err, w.dismissed)
		}
		if last := w.told[len(w.told)-1]; !last.Equal(later) || len(w.told) < 10 {
			t.Errorf("told %v", w.told)
		}
	})
	inBubble(t, func(t *testing.T, r *run, h *fakeHold, p *fakeProcess, said *strings.Builder) {
		r.guard = func(times) (watchman, error) { return nil, errors.New("no process") }
		p.exit(0)
		if code, err := r.do(t.Context()); code != 0 || err != nil || !strings.Contains(said.String(), "no process") {
			t.Errorf("%d, %v, %q", code, err, said)
		}
	})
}

// guardRun runs a guard in virtual time.
func guardRun(t *testing.T, test func(tell chan<- string, now func() time.Duration)) (signals []string) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		now := func() time.Duration { return time.Hour + time.Since(begun) }
		g := &guarding{now: now, times: times{grace: 2 * time.Second, margin: 250 * time.Millisecond}}
		g.signal = func(group int, s syscall.Signal) error {
			signals = append(signals, fmt.Sprint(group, " ", s, " ", time.Since(begun)))
			if group > 100 {
				return syscall.ESRCH
			}
			return nil
		}
		g.below = func(group int) []int { // a program below command 8 has a group of its own, and then another one
			if group != 8 {
				return nil
			}
			return []int{108 + len(signals)}
		}
		lines, ended := make(chan string), make(chan error)
		go func() { ended <- g.loop(lines) }()
		test(lines, now)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return signals
}

func at(now time.Duration) string { return fmt.Sprint("until ", int64(now)) }

// Guarantee: a guard ends the command when it hears of nothing in time, or when who started
// it has died, and leaves it alone otherwise.
func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		what string
		test func(tell chan<- string, now func() time.Duration)
		want []string
	}{
		{"held", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			tell <- "group 7"
			for range 30 {
				tell <- at(now() + 10*time.Second)
				time.Sleep(time.Second)
			}
			tell <- guardDone
		}, nil},
		{"not told on", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			tell <- "group 7"
		}, []string{"7 terminated 7.75s", "7 continued 7.75s", "7 killed 9.75s"}},
		{"groups below", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			tell <- "group 8"
		}, []string{"8 terminated 7.75s", "108 terminated 7.75s", "8 continued 7.75s", "108 continued 7.75s", "8 killed 9.75s", "108 killed 9.75s", "112 killed 9.75s"}},
		{"dead, with groups below: they are of nobody then", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			tell <- "group 8"
			close(tell)
		}, []string{"8 killed 0s"}},
		{"told of the group late", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			time.Sleep(9 * time.Second)
			tell <- "group 7"
		}, []string{"7 terminated 9s", "7 continued 9s", "7 killed 9.75s"}},
		{"dead", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			tell <- "group 7"
			time.Sleep(time.Second)
			close(tell)
		}, []string{"7 killed 1s"}},
		{"dead before there was a command", func(tell chan<- string, now func() time.Duration) {
			tell <- at(now() + 10*time.Second)
			close(tell)
		}, nil},
		{"no command in time", func(tell chan<- string, now func() time.Duration) { tell <- at(now() + 10*time.Second) }, nil},
		{"nonsense", func(tell chan<- string, now func() time.Duration) {
			tell <- "group 7"
			tell <- "nonsense"
		}, []string{"7 killed 0s"}},
		{"too late", func(tell chan<- string, now func() time.Duration) {
			tell <- "group 7"
			tell <- at(now() - time.Second)
		}, []string{"7 killed 0s"}},
		{"no group can be that", func(tell chan<- string, now func() time.Duration) { tell <- "group 1" }, nil},
		{"nor that", func(tell chan<- string, now func() time.Duration) { tell <- "group -7" }, nil},
	} {
		if got := guardRun(t, tt.test); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}

// Guarantee: nobody becomes a guard by accident.
func TestGuardOf(t *testing.T) {
	for text, ok := range map[string]bool{"5,6": true, "": false, "12": false, "-5,6": false, "5,x": false, "5,6,7": false, "99999999999999999999,1": false} {
		g, err := guardOf(func(string) (string, bool) { return text, true })
		if (err == nil) != ok || (g != nil) != ok {
			t.Errorf("%q: %v, %v", text, g, err)
		}
	}
	if g, err := guardOf(func(string) (string, bool) { return "", false }); g != nil || err != nil {
		t.Errorf("%v, %v", g, err)
	}
}

// Guarantee: a command gets the fencing token and the key, and no other token.
func TestEnvironment(t *testing.T) {
	environ := []string{"HOME=/", "RAFTKV_TOKEN=secret", "RAFTKV_TOKEN_FILE=f", "RAFTKV_FENCE=1", "RAFTKV_ENDPOINTS=e"}
	got := environment(environ, hold{fence: 42}, "lock/a", false)
	if want := []string{"HOME=/", "RAFTKV_ENDPOINTS=e", "RAFTKV_FENCE=42", "RAFTKV_KEY=lock/a"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = environment(environ, hold{fence: 42}, "lock/a", true)
	if want := []string{"HOME=/", "RAFTKV_TOKEN=secret", "RAFTKV_TOKEN_FILE=f", "RAFTKV_ENDPOINTS=e", "RAFTKV_FENCE=42", "RAFTKV_KEY=lock/a"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// guardOnly returns a program that is a guard: this one.
func guardOnly(t *testing.T) string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guard")
	script := "#!/bin/sh\nexec " + self + " -test.run '^TestGuardProcess$'\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A real command and a real guard: the test program is the guard, as raftkv is otherwise.
func TestGuardProcess(t *testing.T) {
	if g, err := guardOf(os.LookupEnv); g != nil || err != nil {
		if err == nil {
			err = g.watch(os.Stdin)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		what string
		do   func(w watchman)
		code int // 0: it lives on
	}{
		{"not told on", func(w watchman) { _ = w.Until(time.Now().Add(300 * time.Millisecond)) }, 128 + 9},
		{"dead", func(w watchman) { _ = w.(*guardProcess).pipe.Close() }, 128 + 9},
		{"dismissed", func(w watchman) {
			if err := errors.Join(w.Until(time.Now().Add(time.Second)), w.Dismiss()); err != nil {
				t.Error(err)
			}
		}, 0},
	} {
		p, err := child.Start(child.Command{Args: []string{"sh", "-c", "trap '' TERM; sleep 1000"}, Env: os.Environ(), Stdin: null})
		if err != nil {
			t.Fatal(err)
		}
		w, err := startGuardOf(guardOnly(t), times{grace: 50 * time.Millisecond, margin: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Guard(p.Group()); err != nil {
			t.Fatal(err)
		}
		tt.do(w)
		if tt.code == 0 {
			time.Sleep(50 * time.Millisecond)
			if p.Empty() {
				t.Errorf("%s: the command has ended", tt.what)
			}
			if err := p.End(time.Now()); err != nil {
				t.Error(err)
			}
		}
		if code := p.Code(); tt.code != 0 && code != tt.code {
			t.Errorf("%s: code %d, want %d", tt.what, code, tt.code)
		}
		_ = w.(*guardProcess).cmd.Wait()
	}
}

// Guarantee: a guard that somebody has stopped, and that reads nothing any more, holds nobody
// up: what it cannot be told is an error, and it can be dismissed.
func TestGuardStopped(t *testing.T) {
	w, err := startGuardOf(guardOnly(t), times{grace: 50 * time.Millisecond, margin: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	g := w.(*guardProcess)
	if err := g.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 1; ; i++ {
			if err := w.Until(time.Now().Add(time.Duration(i) * time.Hour)); err != nil {
				break
			}
		}
		_ = w.Dismiss() // it cannot be told, which does not matter
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("a stopped guard is waited for")
		_ = g.cmd.Process.Kill()
		<-ended
	}
}
