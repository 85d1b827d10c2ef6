package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"raftkv/internal/limits"
	"raftkv/internal/testkit"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk puts node i's data directory on a file system of its own, of so many MiB.
func (c *procCluster) smallDisk(i, mib int) {
	c.t.Helper()
	dir := c.nodes[i].dataDir
	testkit.Must(c.t, os.MkdirAll(dir, 0o700))
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		testkit.CannotRun(c.t, "no tmpfs: "+err.Error())
	}
	c.t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

func (c *procCluster) resizeDisk(i, mib int) {
	c.t.Helper()
	testkit.Must(c.t, syscall.Mount("none", c.nodes[i].dataDir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)))
}

// fillDisk makes node i's disk so large that just so many bytes are free on it.
func (c *procCluster) fillDisk(i int, free int64) {
	c.t.Helper()
	var st unix.Statfs_t
	testkit.Must(c.t, unix.Statfs(c.nodes[i].dataDir, &st))
	used := int64(st.Blocks-st.Bfree)*st.Bsize + free
	err := syscall.Mount("none", c.nodes[i].dataDir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", used))
	if err != nil && !errors.Is(err, syscall.EINVAL) { // it has grown meanwhile
		c.t.Fatal(err)
	}
}

// fillStore writes values through the nodes until each of them refuses one as
// disk_full, and returns how many were written.
func (c *procCluster) fillStore(name string, size, most int, ids ...int) (written []string) {
	c.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, i := range ids {
		for w := range 4 {
			wg.Go(func() {
				for n := 0; n < most; n++ {
					key := fmt.Sprintf("%s-%d-%d-%d", name, i, w, n)
					switch r := c.do(http.MethodPut, i, "/"+key, bytes.Repeat([]byte("x"), size)); {
					case r.status == http.StatusNoContent:
						mu.Lock()
						written = append(written, key)
						mu.Unlock()
					case r.code() == "disk_full" && r.status == http.StatusInsufficientStorage:
						return
					default:
						c.t.Errorf("PUT at node %d: %v", i, r)
						return
					}
				}
				c.t.Errorf("node %d has never refused a write", i)
			})
		}
	}
	wg.Wait()
	return written
}

// wantDiskFull checks that all nodes run, refuse what grows, serve reads, and delete,
// while just so much is free on some disks. The nodes may make room themselves, by
// a snapshot: then the disks are filled again.
func (c *procCluster) wantDiskFull(when string, written *[]string, free map[int]int64) {
	c.t.Helper()
	grown := 0
	for _, i := range c.ids() {
		procEventually(c.t, 20*time.Second, fmt.Sprintf("%s: node %d refuses to grow", when, i), func() error {
			for full, n := range free {
				c.fillDisk(full, n)
			}
			grown++ // one that is let in because the disk was not full yet is as large the next time
			if r := c.do(http.MethodPut, i, fmt.Sprintf("/grow-%s-%d", url.PathEscape(when), grown), []byte("x")); r.status != 507 || r.code() != "disk_full" {
				return fmt.Errorf("PUT: %v", r)
			}
			return nil
		})
		key := (*written)[0]
		*written = (*written)[1:]
		if r := c.do(http.MethodGet, i, "/"+key, nil); r.status != 200 {
			c.t.Errorf("%s: GET at node %d: %v", when, i, r)
		}
		if r := c.do(http.MethodDelete, i, "/v1/kv/"+key, nil); r.status != 204 {
			c.t.Errorf("%s: DELETE at node %d: %v", when, i, r)
		}
		if !c.nodes[i].running() {
			c.t.Fatalf("%s: node %d has ended\n%s", when, i, procTail(c.nodes[i].output()))
		}
	}
}

// One disk becomes full, by what clients write at the other nodes; then two; then
// all, to the last byte. No node ends, all of them serve reads and delete, all
// start again, and when the disks have room they take writes, without a restart.
func TestSoakProcFullDisks(t *testing.T) {
	testkit.NeedRoot(t)
	small, minFree, size := testkit.SoakOr(60, 400), testkit.SoakOr("12MiB", "128MiB"), testkit.SoakOr(100<<10, 400<<10)
	c := newProcCluster(t, 3, "--min-free", minFree)
	for _, i := range c.ids() {
		c.smallDisk(i, 3*small)
	}
	c.resizeDisk(1, small)
	c.start()
	written := c.fillStore("a", size, 2000, 2, 3)
	c.wantDiskFull("one small disk", &written, nil)
	c.wantDiskFull("two full disks", &written, map[int]int64{2: 4 << 20})
	empty := map[int]int64{1: 0, 2: 0, 3: 0}
	c.wantDiskFull("all disks without a byte", &written, empty)

	c.kill(1, 2, 3)
	for _, i := range c.ids() {
		c.fillDisk(i, 0)
	}
	c.start()
	c.wantDiskFull("after a start on full disks", &written, empty)

	for _, i := range c.ids() {
		c.resizeDisk(i, 4*small)
	}
	for _, i := range c.ids() {
		procEventually(t, 10*time.Second, "writes with room on the disks", func() error {
			if r := c.do(http.MethodPut, i, "/k"+strconv.Itoa(i), []byte("x")); r.status != 204 {
				return fmt.Errorf("PUT at node %d: %v", i, r)
			}
			return nil
		})
	}
	for _, key := range written[:10] { // and all that was acknowledged is there
		for _, i := range c.ids() {
			if r := c.do(http.MethodGet, i, "/"+key, nil); r.status != 200 || len(r.body) != size {
				t.Errorf("%s at node %d: %v", key, i, r)
			}
		}
	}
	for _, i := range c.ids() {
		c.stop(i)
	}
}

// unfinishedPut begins to write a value of 1 MiB and sends so many bytes of it.
func (c *procCluster) unfinishedPut(i, n, size int) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(c.url(i), "http://"), 5*time.Second)
	if err != nil {
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
	_, err = fmt.Fprintf(conn, "PUT /unfinished-%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n%s", n, strings.Repeat("x", size))
	return conn, err
}

// limited starts node i with fewer descriptors than usual.
func (c *procCluster) limited(i, files int) {
	c.t.Helper()
	bin, err := procBinary()
	testkit.Must(c.t, err)
	n := c.nodes[i]
	n.bin = filepath.Join(c.dir, fmt.Sprintf("limited%d.sh", i))
	testkit.Must(c.t, os.WriteFile(n.bin, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", files, bin), 0o700))
}

// A node with few descriptors is given more connections than it has. It takes
// snapshots and serves who is connected; one too many hears why.
func TestProcFewDescriptors(t *testing.T) {
	c := newProcCluster(t, 1, "--snapshot-count", "20")
	c.limited(1, 256)
	c.start()
	put := func(n int) {
		t.Helper()
		if r := c.do(http.MethodPut, 1, "/k", []byte(strconv.Itoa(n))); r.status != 204 {
			t.Fatalf("PUT %d: %v", n, r)
		}
	}
	put(0)
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for n := range 300 {
		if conn, err := c.unfinishedPut(1, n, 3); conn != nil {
			conns = append(conns, conn)
			_ = err // it may be closed already
		}
	}
	taken := c.metric(1, "raftkv_snapshot_index")
	for n := range 200 {
		put(n)
	}
	procEventually(t, 20*time.Second, "a snapshot", func() error {
		if got := c.metric(1, "raftkv_snapshot_index"); got < taken+40 {
			return fmt.Errorf("the newest is at %v, as it was at %v before", got, taken)
		}
		return nil
	})
	if n := c.metric(1, `raftkv_snapshot_failures_total{what="write"}`); n != 0 {
		t.Errorf("%v snapshots failed", n)
	}
	refused, heard := 0, 0
	for _, conn := range conns[128:] {
		testkit.Must(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		answer, err := io.ReadAll(conn)
		if strings.Contains(string(answer), `"code":"overloaded"`) {
			heard++
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			refused++
		}
	}
	if refused < 170 || heard == 0 {
		t.Errorf("of the last %d connections %d were refused, and %d heard why", len(conns)-128, refused, heard)
	}
	if log := c.nodes[1].output(); !strings.Contains(log, "four fifths of the connections") {
		t.Error("nobody was warned")
	}
}

// Many bodies that lack their last byte do not take more memory than is meant for
// them, and do not keep others out.
func TestSoakProcUnfinishedBodies(t *testing.T) {
	many := testkit.SoakOr(300, 1500)
	c := newProcCluster(t, 1)
	c.start()
	before := c.peakMemory(1)
	var wg sync.WaitGroup
	conns := make([]net.Conn, many)
	for w := range 10 {
		wg.Go(func() {
			for n := w; n < many; n += 10 {
				conns[n], _ = c.unfinishedPut(1, n, 1<<20-1) // it may be refused
			}
		})
	}
	for n := range 50 { // meanwhile, and after
		if n == 25 {
			wg.Wait()
		}
		if r := c.do(http.MethodPut, 1, "/small", bytes.Repeat([]byte("s"), 1000)); r.status != 204 {
			t.Fatalf("a small write: %v", r)
		}
	}
	time.Sleep(limits.BodyPatience)
	if r := c.do(http.MethodPut, 1, "/large", bytes.Repeat([]byte("l"), 500<<10)); r.status != 204 {
		t.Errorf("a larger write: %v", r)
	}
	for _, conn := range conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
	if grown := c.peakMemory(1) - before; grown > 350<<20 {
		t.Errorf("it took %d MiB more", grown>>20)
	} else {
		t.Logf("it took %d MiB more", grown>>20)
	}
}
