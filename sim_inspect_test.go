//go:build unix

package main

import (
	"fmt"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/storagetest"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"testing"
)

// Guarantee: two nodes at the same index show the same checksum, which is also
// that of a backup.
func TestSimInspectTellsReplicasAlike(t *testing.T) {
	simulate(t, 3, func(c *simCluster) {
		for i := range 20 {
			c.Put(c.Leader(), fmt.Sprint("k", i%7), c.Value())
		}
		c.Leader()
		var sums []string
		var dirs []string
		for _, id := range c.Up() {
			node := c.Nodes[id]
			c.Await("all applied", func() bool {
				h, at := node.Life.Hash()
				lh, lat := c.Nodes[c.Leader()].Life.Hash()
				return h == lh && at == lat
			})
		}
		st := c.Nodes[1].Life.kv.copyState()
		for _, id := range c.Up() {
			c.Crash(id)
			dirs = append(dirs, c.Nodes[id].Dir)
		}
		for _, dir := range dirs {
			f, err := storage.Examine(dir)
			testkit.Must(t, err)
			now, err := f.Replay(st.Index)
			testkit.Must(t, err)
			digest, err := state.DigestOf(now)
			testkit.Must(t, err)
			sums = append(sums, fmt.Sprintf("%x", digest))
		}
		_, out, _ := runCommand(t, "inspect", storagetest.BackupFile(t, st))
		if len(slices.Compact(sums)) != 1 || !strings.Contains(out, sums[0]) {
			t.Errorf("%v\n%s", sums, out)
		}
	})
}
