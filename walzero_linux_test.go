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
		if !st.Zeros.Off && st.Zeros.Written == 0 {
			t.Error("not one piece")
		}
		if st.Zeros.Next.File != nil || st.Zeros.Use.File != nil {
			t.Error("a file is still open")
		}
		c.Start(1)
		c.Leader()
	})
}
