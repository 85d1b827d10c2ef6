package main

import (
	"testing"
)

// Without this the persist loop zeroes nothing, and nobody notices but by the
// clock.
func TestSimZeroesSegments(t *testing.T) {
	simulate(t, 1, func(c *simCluster) {
		c.Leader()
		st := c.Nodes[1].Life.storage
		for range 20 {
			c.Put(1, "k", c.Value())
		}
		c.Stop(1)
		if !st.Next.Off && st.Next.At == 0 {
			t.Error("not one piece")
		}
		if st.Next.File != nil {
			t.Error("the file is still open")
		}
		c.Start(1)
		c.Leader()
	})
}
