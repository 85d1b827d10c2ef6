package main

import (
	"net"
	"strconv"
	"testing"
)

// Without this two nodes, or a node and an outgoing connection, want one port.
func TestNodesHavePortsOfTheirOwn(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	used := make(map[string]bool)
	for range 300 {
		if err := c.addNode(); err != nil {
			t.Fatal(err)
		}
		n := c.nodes[len(c.nodes)-1]
		for _, addr := range []string{n.client, n.peer, n.monitor} {
			_, text, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			if port, err := strconv.Atoi(text); err != nil || port >= 32768 || used[addr] {
				t.Fatalf("node %d: %s, used %t: %v", n.id, addr, used[addr], err)
			}
			used[addr] = true
		}
	}
}
