//go:build unix

package process

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"strings"
	"testing"
	"time"
)

// procBlob is a value of a mebibyte that differs from all others.
func procBlob(n int) string {
	return strings.Repeat(fmt.Sprintf("%015d\n", n), 1<<16)
}

// blobs writes n mebibytes through node i, over keys of which each node's state
// then holds a few dozen; want gets what was acknowledged.
func (c *procCluster) blobs(i, n int, want map[string]string) {
	c.t.Helper()
	for k := range n {
		key := fmt.Sprintf("blob%d", k%48)
		value := procBlob(int(time.Now().UnixNano() % 1e15))
		c.put(i, key, value)
		want[key] = value
	}
}

// killWhen waits until a file of a name appears in the snap directory of node
// watch, and kills node victim in that moment. False: the moment was missed.
func (c *procCluster) killWhen(watch, victim int, appears func(name string) bool) bool {
	c.t.Helper()
	snap := filepath.Join(c.nodes[watch].dataDir, "snap")
	for deadline := time.Now().Add(procReadyWithin); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		files, err := os.ReadDir(snap)
		for _, f := range files {
			if err == nil && appears(f.Name()) {
				c.kill(victim)
				return true
			}
		}
	}
	return false
}

// untilHit tries until a kill has hit its moment.
func (c *procCluster) untilHit(what string, try func() bool) {
	c.t.Helper()
	for range 5 {
		if try() {
			return
		}
	}
	c.t.Fatalf("the moment of %s was missed five times", what)
}

// lag has follower i miss more than the log that the others keep in memory.
func (c *procCluster) lag(i, via int, want map[string]string) {
	c.t.Helper()
	c.kill(i)
	time.Sleep(2 * time.Second) // for one election timeout, the others keep the log for it
	c.blobs(via, 60, want)
}

func procOwnTemp(name string) bool { return strings.Contains(name, ".state.tmp") }

func procUpload(name string) bool { return strings.HasPrefix(name, "tmp") }

// Guarantee: SIGKILL in the middle of saving, sending, receiving or loading a
// snapshot costs nothing: the node starts again, what was half done is gone, and
// every acknowledged value is there.
func TestProcKilledDuringSnapshots(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3, "--snapshot-count", "1")
	c.start()
	want := make(map[string]string)
	c.blobs(1, 48, want)

	saving := c.follower()
	c.untilHit("saving", func() bool {
		hit := make(chan bool)
		go func() { hit <- c.killWhen(saving, saving, procOwnTemp) }()
		c.blobs(c.leader(), 60, want)
		return <-hit
	})
	c.start(saving)

	receiving := c.follower()
	c.untilHit("receiving", func() bool {
		c.lag(receiving, c.leader(), want)
		c.launch(receiving)
		return c.killWhen(receiving, receiving, procUpload)
	})
	c.start(receiving)

	receiver := c.follower()
	var sender int
	c.untilHit("sending", func() bool {
		c.lag(receiver, c.leader(), want)
		sender = c.leader()
		c.launch(receiver)
		return c.killWhen(receiver, sender, procUpload)
	})
	c.start(sender)
	c.waitReady(receiver)

	loading := c.follower()
	c.untilHit("loading", func() bool {
		c.lag(loading, c.leader(), want)
		before, err := os.ReadDir(filepath.Join(c.nodes[loading].dataDir, "snap"))
		testkit.Must(t, err)
		old := make(map[string]bool)
		for _, f := range before {
			old[f.Name()] = true
		}
		c.launch(loading)
		return c.killWhen(loading, loading, func(name string) bool { return strings.HasSuffix(name, ".state") && !old[name] })
	})
	c.start(loading)

	c.put(loading, "end", "1")
	for i := 1; i <= 3; i++ {
		for key, value := range want {
			if r := c.do(http.MethodGet, i, "/"+key, nil); r.status != http.StatusOK || r.body != value {
				t.Errorf("node %d: GET /%s: status %d, %d bytes, not as acknowledged", i, key, r.status, len(r.body))
			}
		}
		procEventually(t, 20*time.Second, "only the newest snapshot is left", func() error {
			files, err := os.ReadDir(filepath.Join(c.nodes[i].dataDir, "snap"))
			if err == nil && (len(files) != 1 || !strings.HasSuffix(files[0].Name(), ".state")) {
				err = fmt.Errorf("node %d: %v", i, files)
			}
			return err
		})
	}
}
