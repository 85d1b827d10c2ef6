//go:build unix

package process

import (
	"net/http"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
	"time"
)

// Guarantee: a service manager hears that a node serves once its ports do, how it does,
// signs of life as often as it asks for them, and that the node stops.
func TestProcServiceManager(t *testing.T) {
	t.Parallel()
	socket, take := testkit.ServiceManager(t)
	c := newProcCluster(t, 1)
	c.nodes[1].env = []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=900000"}
	c.launch(1)
	var told []string
	await := func(what string, there func() bool) {
		t.Helper()
		testkit.Eventually(t, what, func() bool { told = append(told, take()...); return there() })
	}
	await("READY=1", func() bool { return slices.Contains(told, "READY=1") })
	if told[0] != "READY=1" {
		t.Errorf("it begins with %q", told)
	}
	// A port that listens takes the connection; what it answers is not the point yet.
	if r := c.do(http.MethodGet, 1, "/livez", nil); r.err != nil || r.status != http.StatusOK {
		t.Errorf("GET /livez when it is said to serve: %v", r)
	}
	await("a status of a leader", func() bool { return slices.Contains(told, "STATUS=ready: node 1 is leader in term 2, led by node 1") })
	signs := func() (n int) {
		for _, line := range told {
			if line == "WATCHDOG=1" {
				n++
			}
		}
		return n
	}
	before, began := signs(), time.Now()
	await("three more signs of life", func() bool { return signs() >= before+3 })
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("three signs of life in %v, for a limit of 0.9 s", took)
	}
	c.stop(1)
	told = append(told, take()...)
	if n := len(told); !slices.Equal(told[n-2:], []string{"STOPPING=1", "STATUS=stopping"}) {
		t.Errorf("it ends with %q", told[n-2:])
	}

	// A watchdog of a parent, and a manager that is not there, are no reason not to start.
	c.nodes[1].env = []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=900000", "WATCHDOG_PID=1"}
	c.start(1)
	await("READY=1 again", func() bool { return slices.Contains(told[len(told)-min(len(told), 2):], "READY=1") })
	time.Sleep(time.Second)
	c.stop(1)
	if now := take(); slices.Contains(now, "WATCHDOG=1") {
		t.Errorf("it sends signs of life that it was not asked for: %q", now)
	}
	c.nodes[1].env = []string{"NOTIFY_SOCKET=" + socket + "-not-there"}
	c.start(1)
	c.stop(1)
	if out := c.nodes[1].output(); !strings.Contains(out, "could not tell the service manager") {
		t.Errorf("it does not say that there is no manager:\n%s", procTail(out))
	}
}
