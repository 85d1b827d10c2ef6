//go:build unix

package process

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// metric reads a value from node i's /metrics.
func (c *procCluster) metric(i int, name string) float64 {
	c.t.Helper()
	for line := range strings.SplitSeq(c.do(http.MethodGet, i, "/metrics", nil).body, "\n") {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				c.t.Fatalf("metric %s: %v", name, err)
			}
			return v
		}
	}
	c.t.Fatalf("node %d has no metric %s", i, name)
	return 0
}

// diskUse returns the bytes of all files in node i's data directory.
func (c *procCluster) diskUse(i int) (sum int64) {
	c.t.Helper()
	err := filepath.WalkDir(c.nodes[i].dataDir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return ignoreMissing(err)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return sum
}

// ignoreMissing: files come and go while the directory is read.
func ignoreMissing(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// Guarantee: however much is written, a node's disk stays under three times the
// state plus 256 MiB, and its memory under what it was after the first tenth,
// within a fifth. RAFTKV_TEST_WRITES=10000000 RAFTKV_TEST_KEYS=100000
// RAFTKV_TEST_VALUE=128 is the size at which this is promised; the test as it
// stands writes a log of 470 MiB over a state of 2 MiB.
func TestProcBounds(t *testing.T) {
	t.Parallel()
	number := func(name string, otherwise int) int {
		n, err := strconv.Atoi(os.Getenv(name))
		if err != nil {
			return otherwise
		}
		return n
	}
	writes, keys, size := number("RAFTKV_TEST_WRITES", 30000), number("RAFTKV_TEST_KEYS", 128), number("RAFTKV_TEST_VALUE", 16<<10)
	c := newProcCluster(t, 1)
	c.start()
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 32 {
		clients.Go(func() {
			value := make([]byte, size)
			for n := next.Add(1); n <= int64(writes); n = next.Add(1) {
				if r := c.do(http.MethodPut, 1, fmt.Sprintf("/key%d", int(n)%keys), value); r.status != http.StatusNoContent {
					t.Errorf("PUT: %v", r)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { clients.Wait(); close(done) }()
	// The most memory in the second tenth of the writes, and in the last.
	var second, last float64
	var disk int64
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(procPoll):
		}
		memory := c.metric(1, "process_resident_memory_bytes")
		switch at := int(next.Load()) * 10 / writes; {
		case at == 1:
			second = max(second, memory)
		case at >= 9:
			last = max(last, memory)
		}
		use, state := c.diskUse(1), c.metric(1, "raftkv_bytes")
		disk = max(disk, use)
		if float64(use) > 3*state+(256<<20) {
			t.Fatalf("%d MiB on disk for %.0f MiB of keys and values", use>>20, state/(1<<20))
		}
	}
	t.Logf("memory %.0f MiB, then %.0f MiB; disk at most %d MiB", second/(1<<20), last/(1<<20), disk>>20)
	if second == 0 || last > 1.2*second {
		t.Errorf("memory went from %.0f MiB to %.0f MiB", second/(1<<20), last/(1<<20))
	}
}
