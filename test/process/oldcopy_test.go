//go:build unix

package process

import (
	"fmt"
	"net/http"
	"os"
	"raftkv/internal/state"
	"strings"
	"sync"
	"testing"
	"time"
)

// putBack has a node that is down go on with an older copy of its directory.
func (c *procCluster) putBack(i int, dir string) {
	c.t.Helper()
	n := c.nodes[i]
	if err := os.RemoveAll(n.dataDir); err != nil {
		c.t.Fatal(err)
	}
	if err := os.CopyFS(n.dataDir, os.DirFS(dir)); err != nil {
		c.t.Fatal(err)
	}
	c.launch(i)
}

// stopForCopy stops a node and copies its directory.
func (c *procCluster) stopForCopy(i int) (dir string) {
	c.t.Helper()
	c.stop(i)
	dir = c.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(c.nodes[i].dataDir)); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// keepCopy copies the directory of a node as it is when the node stops, and starts the node again.
func (c *procCluster) keepCopy(i int) (dir string) {
	c.t.Helper()
	dir = c.stopForCopy(i)
	c.start(i)
	return dir
}

// waitLevel waits until the cluster uses what its programs know.
func (c *procCluster) waitLevel(level uint64) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, "the level", func() error {
		for _, i := range c.ids() {
			if s := c.checks(i); s.Level < level {
				return fmt.Errorf("node %d: %+v", i, s)
			}
		}
		return nil
	})
}

// Guarantee: clients that write through a node whose directory was put back from an older copy are told nothing false:
// what is acknowledged is there. The node ends and says what has happened, and each later start says it again.
func TestProcOldCopy(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.waitLevel(state.LifeLevel)
	c.put(1, "base", "v")
	leader, old := c.leader(), c.follower()
	other := 6 - leader - old
	dir := c.keepCopy(old)
	for i := range 50 {
		c.put(old, fmt.Sprint("lost", i), "v")
	}
	c.kill(old)
	if r := c.json(http.MethodPost, leader, "/v1/leader", fmt.Sprintf(`{"id":%d}`, other)); r.status != http.StatusOK {
		t.Fatalf("POST /v1/leader: %v", r)
	}
	c.putBack(old, dir)
	acked := make([][]string, 4)
	var clients sync.WaitGroup
	for i := range acked {
		clients.Go(func() {
			client := c.newClient(2 * time.Second)
			defer client.CloseIdleConnections()
			for n := range 200 {
				key := fmt.Sprintf("new%d-%d", i, n)
				if r := procDo(client, http.MethodPut, c.url(old)+"/"+key, []byte("v")); r.status == http.StatusNoContent {
					acked[i] = append(acked[i], key)
				} else if r.err != nil && !c.nodes[old].running() {
					return
				}
			}
		})
	}
	for range 3 { // and a supervisor that starts it again does not make it forget
		out := c.waitExit(old, 1, procReadyWithin)
		if !strings.Contains(out, "older copy") || !strings.Contains(out, "join under a new ID") {
			t.Errorf("it says:\n%s", procTail(out))
		}
		clients.Wait()
		c.launch(old)
	}
	c.waitExit(old, 1, procReadyWithin)
	for _, keys := range acked {
		for _, key := range keys {
			c.wantGet(other, key, "v")
		}
	}
	for i := range 50 {
		c.wantGet(leader, fmt.Sprint("lost", i), "v")
	}
}

// Guarantee: when a majority has forgotten acknowledged writes, the node that still has them notices as soon as it is
// back, and answers no request from its other history.
func TestProcTwoHistories(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.waitLevel(state.LifeLevel)
	c.put(1, "base", "v")
	knows, forgot := c.leader(), c.follower()
	third := 6 - knows - forgot
	dir := c.stopForCopy(forgot)
	c.kill(third) // before the other one starts: from an entry of its second life it would know that it is an older copy
	c.start(forgot)
	for i := range 20 {
		c.put(knows, fmt.Sprint("lost", i), "v")
	}
	time.Sleep(300 * time.Millisecond) // it has written down by then that they are committed
	c.kill(forgot, knows)
	c.putBack(forgot, dir)
	c.start(third)
	c.waitReady(forgot)
	c.put(forgot, "new", "v")
	c.launch(knows)
	procEventually(t, procReadyWithin, "the node that knows more has diverged", func() error {
		if s := c.checks(knows); !s.Diverged {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
	for _, key := range []string{"lost1", "new"} {
		if r := c.do(http.MethodGet, knows, "/"+key, nil); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "diverged") {
			t.Errorf("GET %s: %v", key, r)
		}
	}
	if r := c.do(http.MethodPut, knows, "/k", []byte("v")); r.status != http.StatusServiceUnavailable {
		t.Errorf("PUT: %v", r)
	}
	c.put(forgot, "new", "w")
	c.kill(third) // without it there is no majority, whatever the other one says that it has
	if r := c.do(http.MethodPut, forgot, "/k", []byte("v")); r.status == http.StatusNoContent {
		t.Error("a write was acknowledged that only one node has")
	}
}
