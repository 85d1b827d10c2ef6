package process

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/memory"
	"raftkv/internal/storage"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memoryCgroup makes a control group with a limit, and returns the file that takes a process in.
func memoryCgroup(t *testing.T, limit string) (procs string) {
	t.Helper()
	testkit.NeedRoot(t)
	const v1, v2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
	dir, file := filepath.Join(v1, fmt.Sprintf("raftkv-test-%d-%d", os.Getpid(), rand.Uint32())), "memory.limit_in_bytes"
	if !storage.Exists(filepath.Join(v1, file)) {
		dir, file = filepath.Join(v2, filepath.Base(dir)), "memory.max"
	}
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		t.Cleanup(func() {
			// It goes when the last process has.
			for range 100 {
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(procPoll)
			}
		})
		err = os.WriteFile(filepath.Join(dir, file), []byte(limit), 0o644)
	}
	if err != nil {
		testkit.CannotRun(t, fmt.Sprintf("no memory control group: %v", err))
	}
	return filepath.Join(dir, "cgroup.procs")
}

// Guarantee: a node in a control group of 300 MB fills up to its default quota and lives, answers as many writes then
// for its CPU time as half of what it did before, and starts again within the limit, with large values and with tiny
// ones. Without this it is killed when it is half full, and again at each start, on all nodes alike.
func TestSoakMemoryLimit(t *testing.T) {
	const limit = 300 << 20
	for _, size := range testkit.SoakOr([]int{500_000}, []int{500_000, 100, 10_000}) {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			procs := memoryCgroup(t, fmt.Sprint(limit))
			c := newProcCluster(t, 1)
			bin, err := procBinary()
			testkit.Must(t, err)
			n := c.nodes[1]
			n.bin, n.args = "/bin/sh", slices.Concat([]string{"-c", `echo $$ >"$0" && exec "$@"`, procs, bin}, n.args)
			c.start()
			value := []byte(procBlob(size)[:size])
			put := func(key uint64) error {
				r := c.do(http.MethodPut, 1, fmt.Sprintf("/key%d", key), value)
				if r.err != nil || r.status != http.StatusNoContent {
					return fmt.Errorf("PUT %d: %v", key, r)
				}
				return nil
			}
			// cost is the CPU time of so many writes to keys below a bound.
			cost := func(writes int, keys uint64) time.Duration {
				before := n.cpuTime(t)
				atOnce(t, func(i uint64) error {
					if i >= uint64(writes) {
						return errors.New("")
					}
					return put(rand.Uint64N(keys))
				})
				return n.cpuTime(t) - before
			}
			writes := testkit.SoakOr(60, min(2000, 100_000_000/size))
			early := cost(writes, 10)

			var full atomic.Pointer[string]
			var filled atomic.Uint64
			atOnce(t, func(i uint64) error {
				err := put(i)
				if err != nil {
					text := err.Error()
					full.Store(&text)
					return errors.New("")
				}
				filled.Add(1)
				return nil
			})
			if text := full.Load(); text == nil || !strings.Contains(*text, "quota_exceeded") {
				t.Fatalf("after %d keys: %s, want the quota to say no", filled.Load(), *text)
			}
			if held := filled.Load() * uint64(size+memory.KeyCost); held < limit/3 {
				t.Errorf("only %d keys fit", filled.Load())
			}
			late := cost(writes, filled.Load()/2)
			t.Logf("%d keys; %d writes took %v of CPU at first, and %v when it is full; %.1f %% of all is the collector's",
				filled.Load(), writes, early, late, 100*c.metric(1, "raftkv_gc_cpu_share"))
			if late > 2*early+time.Second/5 {
				t.Errorf("writes cost %v of CPU when it is full, and %v before", late, early)
			}
			for range testkit.SoakOr(1, 2) {
				c.kill(1)
				c.start()
				if r := c.do(http.MethodGet, 1, "/key0", nil); r.status != http.StatusOK || r.body != string(value) {
					t.Errorf("GET after a start within the limit: %v", r)
				}
			}
			testkit.Must(t, put(0))
			if r := c.do(http.MethodPut, 1, "/one-more", bytes.Repeat(value, 2)); r.status != http.StatusInsufficientStorage {
				t.Errorf("a new key of %d bytes after the start: %v, want 507", 2*size, r)
			}
		})
	}
}

// atOnce calls f with 0, 1, 2 … from eight goroutines until it fails.
func atOnce(t *testing.T, f func(i uint64) error) {
	t.Helper()
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				if err := f(next.Add(1) - 1); err != nil {
					if err.Error() != "" {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
}

// cpuTime is what the process has taken of the processors.
func (n *procNode) cpuTime(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	testkit.Must(t, err)
	var user, system int64
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	testkit.Must(t, err)
	const ticks = 100 // a second; the kernel's for every architecture
	return time.Duration(user+system) * time.Second / ticks
}
