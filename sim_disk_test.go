//go:build unix

package main

import (
	"errors"
	"fmt"
	"raftkv/internal/durable"
	"raftkv/internal/problem"
	"sync/atomic"
	"testing"
	"time"
)

// simDisks are disks of which so much is free, by node.
type simDisks map[uint64]*atomic.Int64

func simulateDisks(t *testing.T, n int, test func(c *simCluster, d simDisks)) {
	t.Helper()
	d := make(simDisks)
	for id := range uint64(n) {
		d[id+1] = new(atomic.Int64)
		d[id+1].Store(1 << 40)
	}
	wire := func(srv *server) {
		free := d[srv.cfg.ID]
		srv.room.Disk = func(string) (durable.Disk, error) { return durable.Disk{Free: free.Load(), Total: 1 << 41}, nil }
	}
	simulateSet(t, n, func(c *simCluster) { c.wire = wire }, func(c *simCluster) { test(c, d) })
}

// wantWrites waits until a growing write ends on all nodes that are up with err.
func (c *simCluster) wantWrites(err error) {
	c.T.Helper()
	for _, id := range c.Up() {
		c.Await(fmt.Sprintf("a growing write on node %d to end with %v", id, err), func() bool {
			return errors.Is(c.Nodes[id].Life.room.Admit("grow", 1), err)
		})
	}
}

// One disk of three is full: growing writes are refused on all nodes, whoever
// leads, and taken again when it is free. A healthy cluster says nothing of it.
func TestSimDiskFull(t *testing.T) {
	simulateDisks(t, 3, func(c *simCluster, d simDisks) {
		c.Put(1, "k", c.Value())
		c.wantWrites(nil)
		time.Sleep(time.Minute)
		if n := c.notes.Load(); n != 0 {
			t.Errorf("%d notes between nodes that have room", n)
		}
		follower := c.Followers()[0]
		d[follower].Store(200 << 20) // the node looks often from now on, and says so
		time.Sleep(5 * time.Second)
		d[follower].Store(127 << 20)
		time.Sleep(200 * time.Millisecond) // a fast disk writes 100 MiB in that time
		for _, id := range c.Up() {
			if err := c.Nodes[id].Life.room.Admit("grow", 1); !errors.Is(err, problem.ErrDiskFull) {
				t.Errorf("node %d has not heard in time that a disk is full: %v", id, err)
			}
		}
		for range 3 { // under each of several leaders, none of which has seen it before
			leader := c.Leader()
			c.Crash(leader)
			c.Await("another leader", func() bool { return c.Leader() != 0 })
			if leader != follower { // the other two have room
				c.wantWrites(problem.ErrDiskFull)
			}
			c.Start(leader)
			c.Await("it to be back", func() bool { return c.Nodes[leader].Life.caughtUp.Load() })
			c.wantWrites(problem.ErrDiskFull)
		}
		for _, id := range c.Up() {
			if err := c.Nodes[id].Life.room.Admit("k", -1); err != nil {
				t.Errorf("node %d: a delete: %v", id, err)
			}
		}
		d[follower].Store(1 << 40)
		c.wantWrites(nil)
		c.Put(1, "k", c.Value())
		before := c.notes.Load()
		time.Sleep(time.Minute)
		if n := c.notes.Load() - before; n > 4 {
			t.Errorf("%d notes after the disk is free", n)
		}
	})
}

// One disk of five is full: writes go on, and the node takes no more of the log
// than it has room for. When there is room again it catches up.
func TestSimDiskFullOfFive(t *testing.T) {
	simulateDisks(t, 5, func(c *simCluster, d simDisks) {
		leader, full := c.Leader(), c.Followers()[0]
		d[full].Store(0)
		c.Await("the node to see it", c.Nodes[full].Life.room.Spent)
		applied := c.Nodes[full].Life.kv.applied
		before := applied.Get()
		for range 20 {
			c.Put(leader, "k", c.Value())
		}
		if got := applied.Get(); got > before+1 { // one may have been on its way
			t.Errorf("node %d took entries up to %d, from %d on it had no room", full, got, before)
		}
		if err := c.Nodes[leader].Life.room.Admit("grow", 1); err != nil {
			t.Errorf("refused although another disk could go: %v", err)
		}
		d[full].Store(1 << 40)
		v := c.Value()
		c.Put(leader, "k", v)
		c.Want(full, "k", v)
	})
}
