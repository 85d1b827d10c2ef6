//go:build unix

package process

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"testing"
	"time"
)

// procKeys is how many keys the tests of size have; RAFTKV_TEST_SCALE sets it. The state file is much larger than the log.
func procKeys() int {
	if n, err := strconv.Atoi(os.Getenv("RAFTKV_TEST_SCALE")); err == nil {
		return n
	}
	return testkit.SoakOr(300_000, 1_000_000)
}

func procScaleKey(i int) string { return fmt.Sprintf("scale/%08d", i) }

func procScaleValue(i int) string { return strings.Repeat(fmt.Sprintf("%016d", i*i), 8) } // 128 bytes

// newLargeCluster lays out three nodes whose data directories are restored from
// a backup of n keys: the quickest way to a large store.
func newLargeCluster(t *testing.T, n int, flags ...string) *procCluster {
	t.Helper()
	st := state.New(testkit.Peers())
	fillState(t, st, n, func(i int) []byte { return statetest.Put(procScaleKey(i), procScaleValue(i)) })
	return newRestoredCluster(t, st, flags...)
}

// fillState applies n commands, many at a time.
func fillState(t *testing.T, st *state.State, n int, command func(i int) []byte) {
	t.Helper()
	for i := 0; i < n; {
		var commands [][]byte
		for ; i < n && len(commands) < 1000; i++ {
			commands = append(commands, command(i))
		}
		statetest.Apply(t, st, commands...)
	}
}

// newRestoredCluster lays out three nodes whose data directories are restored from a
// backup of a state.
func newRestoredCluster(t *testing.T, st *state.State, flags ...string) *procCluster {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.state")
	f, err := os.Create(file)
	testkit.Must(t, err)
	testkit.Must(t, state.Write(f, st))
	testkit.Must(t, f.Close())
	c := newProcCluster(t, 3, flags...)
	for _, i := range c.ids() {
		procCommand(t, config.ExitOK, "restore", file, "--data-dir", c.nodes[i].dataDir, "--id", fmt.Sprint(i), "--cluster", c.list)
	}
	return c
}

// Guarantee: a fourth node joins a cluster that holds a million keys, under
// load, with one command; becomes a voter by itself, and serves the right
// values. Nobody else loses leadership or fails a request over it.
func TestProcJoinLargeCluster(t *testing.T) {
	t.Parallel()
	n := procKeys()
	c := newLargeCluster(t, n)
	c.start()
	leader := c.leader()
	term := c.status(leader).Term
	node := c.newNode(4)
	node.args = c.args(node, c.list+","+procURL(node.peerPort), "--join")
	load := c.startLoad(8, 1, 2, 3)
	load.waitMore(100)

	began := time.Now()
	c.launch(4)
	procEventually(t, 2*time.Minute, "node 4 is ready", func() error {
		if !c.ready(4) {
			return problem.ErrNotReady
		}
		return nil
	})
	ready := time.Since(began)
	c.waitVoters(leader, 1, 2, 3, 4)
	t.Logf("%d keys: ready after %v, a voter after %v", n, ready, time.Since(began))
	load.waitMore(100)
	load.finish()

	if len(load.errs) > 0 {
		t.Errorf("%d requests failed, for example %s", len(load.errs), load.errs[0])
	}
	if now := c.status(leader); now.Term != term || now.Leader != leader {
		t.Errorf("node %d led in term %d; now it is node %d in term %d", leader, term, now.Leader, now.Term)
	}
	c.wantAll(load.acked, 4)
	for range 2000 {
		i := rand.IntN(n)
		c.wantGet(4, procScaleKey(i), procScaleValue(i))
	}
	c.kill(c.follower()) // it counts: with it, three of four are a majority
	c.put(4, "end", "1")
}
