//go:build unix

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// environment is one of a process.
func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}
}

// Guarantee: what a service manager has put into the environment is understood as it
// means it, at the bounds too, and what is not is said and does nothing.
func TestFind(t *testing.T) {
	const pid = 7
	for _, tt := range []struct {
		socket, usec, of string
		want             Manager
		wrong            string
	}{
		{"", "", "", Manager{}, ""},
		{"", "30000000", "7", Manager{}, ""}, // a watchdog that cannot be told
		{"/run/systemd/notify", "", "", Manager{socket: "/run/systemd/notify"}, ""},
		{"@abstract", "30000000", "7", Manager{socket: "@abstract", limit: 30 * time.Second}, ""},
		{"/s", "30000000", "", Manager{socket: "/s", limit: 30 * time.Second}, ""},
		{"/s", "30000000", "8", Manager{socket: "/s"}, ""}, // meant for a parent
		{"/s", "", "7", Manager{socket: "/s"}, ""},
		{"/s", "300000", "7", Manager{socket: "/s", limit: leastLimit}, ""},
		{"/s", "299999", "7", Manager{socket: "/s"}, "299999"},
		{"/s", "0", "", Manager{socket: "/s"}, "WATCHDOG_USEC"},
		{"/s", "-1", "", Manager{socket: "/s"}, "WATCHDOG_USEC"},
		{"/s", "30s", "", Manager{socket: "/s"}, "WATCHDOG_USEC"},
		{"/s", "3153600000000000", "", Manager{socket: "/s", limit: mostLimit}, ""},
		{"/s", "3153600000000001", "", Manager{socket: "/s"}, "WATCHDOG_USEC"},
		{"/s", "99999999999999999999", "", Manager{socket: "/s"}, "WATCHDOG_USEC"},
		{"run/notify", "30000000", "", Manager{}, "NOTIFY_SOCKET"},
		{"vsock:2:1234", "30000000", "", Manager{}, "NOTIFY_SOCKET"},
	} {
		got := Find(environment(map[string]string{"NOTIFY_SOCKET": tt.socket, "WATCHDOG_USEC": tt.usec, "WATCHDOG_PID": tt.of}), pid)
		if (got.wrong != nil) != (tt.wrong != "") || got.wrong != nil && !strings.Contains(got.wrong.Error(), tt.wrong) {
			t.Errorf("%+v: wrong is %v", tt, got.wrong)
		}
		if got.wrong = nil; got != tt.want {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
	if got := Find(environment(nil), pid); got != (Manager{}) {
		t.Errorf("without an environment: %+v", got)
	}
}

// told is a node of which the manager is told in virtual time, over a real socket.
type told struct {
	t      *testing.T
	hangs  atomic.Pointer[string] // nil: does not
	status atomic.Pointer[string]
	take   func() []string
	logs   *observer.ObservedLogs
	end    context.CancelFunc
	ended  chan error
}

func tell(t *testing.T, manager Manager, take func() []string) *told {
	core, logs := observer.New(zap.InfoLevel)
	n := &told{t: t, take: take, logs: logs, ended: make(chan error, 1)}
	ctx, end := context.WithCancel(t.Context())
	n.end = end
	n.status.Store(new("ready"))
	alive := func() error {
		if why := n.hangs.Load(); why != nil {
			return errors.New(*why)
		}
		return nil
	}
	teller := New(zap.New(core), manager, Node{Alive: alive, Status: func() string { return *n.status.Load() }})
	go func() { n.ended <- teller.Run(ctx) }()
	return n
}

// want sleeps, and then has exactly these lines come.
func (n *told) want(after time.Duration, lines ...string) {
	n.t.Helper()
	time.Sleep(after)
	if got := n.take(); !slices.Equal(got, lines) {
		n.t.Errorf("told %q, want %q", got, lines)
	}
}

// stop ends the node, and waits for that.
func (n *told) stop() {
	n.t.Helper()
	n.end()
	testkit.Must(n.t, <-n.ended)
}

// Guarantee: the service manager hears that the node serves, signs of life only while its
// loops make steps, its status when that changes, and that it stops.
func TestTells(t *testing.T) {
	socket, take := testkit.ServiceManager(t)
	testkit.InBubble(t, func(t *testing.T) {
		n := tell(t, Manager{socket: socket, limit: 3 * time.Second}, take)
		n.want(time.Millisecond, "READY=1", "WATCHDOG=1", "STATUS=ready")
		n.want(time.Second, "WATCHDOG=1")
		n.status.Store(new("not ready:\nno leader"))
		n.want(2*time.Second, "WATCHDOG=1", "STATUS=not ready: no leader", "WATCHDOG=1")
		n.hangs.Store(new("stuck; the raft loop"))
		n.want(30*time.Second, "STATUS=stuck; the raft loop")
		if got := testkit.Messages(n.logs); len(got) != 1 || !strings.Contains(got[0], "hangs") {
			t.Errorf("the log has %q", got)
		}
		n.hangs.Store(nil)
		n.want(time.Second, "WATCHDOG=1", "STATUS=not ready: no leader")
		n.stop()
		n.want(0, "STOPPING=1", "STATUS=stopping")
	})
}

// Without a watchdog there are no signs of life, and without a manager there is nothing.
func TestTellsWhatIsAskedFor(t *testing.T) {
	socket, take := testkit.ServiceManager(t)
	testkit.InBubble(t, func(t *testing.T) {
		n := tell(t, Manager{socket: socket}, take)
		n.want(time.Minute+time.Millisecond, "READY=1", "STATUS=ready")
		n.status.Store(new("other"))
		n.want(statusEvery, "STATUS=other")
		n.hangs.Store(new("stuck"))
		n.want(statusEvery, "STATUS=stuck")
		if got := testkit.Messages(n.logs); len(got) > 0 {
			t.Errorf("the log has %q", got)
		}
		n.stop()
		n.want(0, "STOPPING=1", "STATUS=stopping")

		none := tell(t, Manager{}, take)
		none.stop()
		wrong := tell(t, Manager{wrong: errors.New("WATCHDOG_USEC is odd")}, take)
		wrong.stop()
		if got := testkit.Messages(wrong.logs); len(got) != 1 {
			t.Errorf("the log has %q", got)
		}
		n.want(0)
	})
}

// Guarantee: a manager that cannot be reached stops nothing, is said, and is told all once
// it can be reached.
func TestTellsAgain(t *testing.T) {
	socket, take := testkit.ServiceManager(t)
	away := socket + ".away"
	testkit.Must(t, os.Rename(socket, away))
	testkit.InBubble(t, func(t *testing.T) {
		n := tell(t, Manager{socket: socket}, take)
		n.want(2*statusEvery + time.Millisecond)
		if got := testkit.Messages(n.logs); len(got) < 2 || !strings.Contains(got[0], "could not tell") {
			t.Errorf("the log has %q", got)
		}
		testkit.Must(t, os.Rename(away, socket))
		n.want(statusEvery, "READY=1", "STATUS=ready")
		n.stop()
	})
}

// A line of status is one line, and is cut at its bound, not within a character.
func TestOneLine(t *testing.T) {
	exact := strings.Repeat("é", mostStatus/2)
	for text, want := range map[string]string{
		"":              "",
		" a\n\tb\r\n c": "a b c",
		"X=1\nREADY=1":  "X=1 READY=1",
		exact:           exact,
		"x" + exact:     "x" + exact[:mostStatus-2],
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Guarantee: nothing waits for a manager that does not read.
func TestDeafManager(t *testing.T) {
	socket, take := testkit.ServiceManager(t)
	began := time.Now()
	var err error
	for i := 0; err == nil && i < 100_000; i++ {
		err = send(socket, fmt.Sprint("STATUS=", i))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > 20*sendLimit {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if len(take()) == 0 {
		t.Error("nothing has come")
	}
	if err := send(filepath.Join(t.TempDir(), "none"), "READY=1"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
