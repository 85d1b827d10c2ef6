package main

import (
	"testing"
)

// Without this the persist loop zeroes nothing, and nobody notices but by the
// clock.
func TestSimZeroesSegments(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.leader()
		st := c.nodes[1].srv.storage
		for range 20 {
			c.put(1, "k", c.value())
		}
		c.stop(1)
		if !st.Next.Off && st.Next.At == 0 {
			t.Error("not one piece")
		}
		if st.Next.File != nil {
			t.Error("the file is still open")
		}
		c.start(1)
		c.leader()
	})
}
