//go:build unix

package process

import (
	"errors"
	"fmt"
	"net/http"
	"raftkv/internal/state"
	"sync"
	"testing"
	"time"
)

// Guarantee: a cluster in which two histories contradict each other, and too few nodes are up to tell which one counts,
// is upgraded node by node: nothing is acknowledged, and nobody accused, by either program or between the two. When the
// third node is back, the side that has a majority serves, and the other one serves nothing.
func TestProcUpgradeInADispute(t *testing.T) {
	t.Parallel()
	old := landings["b358d59"].program(t)
	c := newProcCluster(t, 3, "--request-timeout", "500ms", "--election-timeout", "500ms", "--heartbeat-interval", "50ms")
	c.oldToo = true
	for _, n := range c.nodes {
		n.bin = old
	}
	c.start()
	c.waitLevel(state.LifeLevel)
	knows, forgot, third := c.forgetOneSide()

	began := time.Now()
	c.kill(third)
	c.launch(knows)
	c.wantNothingSettled("both are old", knows, forgot)
	c.stop(forgot)
	c.nodes[forgot].bin = ""
	c.launch(forgot)
	c.wantNothingSettled("one is new", knows, forgot)
	c.stop(knows)
	c.nodes[knows].bin = ""
	c.launch(knows)
	c.wantNothingSettled("both are new", knows, forgot)
	for _, i := range []int{knows, forgot} {
		procEventually(t, procReadyWithin, "both say that they dispute", func() error {
			if s := c.checks(i); !s.Disputed {
				return fmt.Errorf("node %d says %+v", i, s)
			}
			return nil
		})
	}

	c.start(third) // the old program tells what it has, too
	c.waitReady(forgot)
	procEventually(t, procReadyWithin, "the node that knows more has diverged", func() error {
		if s := c.checks(knows); !s.Diverged {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
	c.writeOn(third, "new")
	c.restartAs(third, "")
	t.Logf("upgraded in %v", time.Since(began))
	for _, i := range []int{forgot, third} {
		c.writeOn(i, "new")
		c.wantGet(i, "base", "v")
		if s := c.checks(i); s.Diverged || s.Disputed {
			t.Errorf("node %d, of the majority, says %+v", i, s)
		}
	}
	for _, key := range []string{"lost1", "new"} {
		if r := c.do(http.MethodGet, knows, "/"+key, nil); r.status != http.StatusServiceUnavailable {
			t.Errorf("GET %s at the one that is out: %v", key, r)
		}
	}
}

// forgetOneSide makes two histories in a cluster of three: one node, which is down, knows writes of which another one
// has forgotten that it acknowledged them, because it was put back, and which the third never heard of.
func (c *procCluster) forgetOneSide() (knows, forgot, third int) {
	c.t.Helper()
	c.writeOn(1, "base")
	knows, forgot = c.leader(), c.follower()
	third = 6 - knows - forgot
	dir := c.stopForCopy(forgot)
	c.kill(third) // before the other one starts: from an entry of its second life it would know that it is an older copy
	c.start(forgot)
	for i := range 20 {
		c.writeOn(knows, fmt.Sprint("lost", i))
	}
	c.stop(knows) // in order, so that it has written down what is committed
	c.kill(forgot)
	c.putBack(forgot, dir)
	c.start(third)
	c.waitReady(forgot)
	for range 3 { // each tells the disk of the third node that the one before is committed
		c.writeOn(forgot, "new")
	}
	return knows, forgot, third
}

// writeOn writes on a node, and tries again if it takes too long.
func (c *procCluster) writeOn(i int, key string) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, fmt.Sprintf("a write on node %d", i), func() error {
		if r := c.do(http.MethodPut, i, "/"+key, []byte("v")); r.status != http.StatusNoContent {
			return fmt.Errorf("PUT /%s: %v", key, r)
		}
		return nil
	})
}

// wantNothingSettled waits until two nodes of different histories have heard of each other, and checks that neither
// acknowledges anything or is accused.
func (c *procCluster) wantNothingSettled(when string, nodes ...int) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, when+": one of them leads", func() error {
		if c.checks(nodes[0]).Leader == 0 || c.checks(nodes[0]).Leader != c.checks(nodes[1]).Leader {
			return errors.New("not yet")
		}
		return nil
	})
	var writes sync.WaitGroup
	for _, i := range nodes {
		writes.Go(func() {
			if r := c.do(http.MethodPut, i, "/k", []byte("v")); r.status == http.StatusNoContent {
				c.t.Errorf("%s: node %d has acknowledged a write", when, i)
			}
		})
	}
	writes.Wait()
	for _, i := range nodes {
		if s := c.checks(i); s.Diverged {
			c.t.Errorf("%s: node %d is accused: %+v", when, i, s)
		}
	}
}
