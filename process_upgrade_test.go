//go:build unix

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// procChecks is what a node says of the checks in its status.
type procChecks struct {
	Diverged     bool   `json:"diverged"`
	CheckedIndex uint64 `json:"checked_index"`
	Level        uint64 `json:"level"`
}

func (c *procCluster) checks(i int) procChecks {
	var s procChecks
	if r := c.do(http.MethodGet, i, "/v1/status", nil); r.status == http.StatusOK {
		if err := json.Unmarshal([]byte(r.body), &s); err != nil {
			c.t.Errorf("/v1/status of node %d: %v: %s", i, err, r.body)
		}
	}
	return s
}

// procTree is the content of a directory's files, by name.
func procTree(t testing.TB, dir string) map[string][sha256.Size]byte {
	t.Helper()
	tree := make(map[string][sha256.Size]byte)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		tree[path] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// procLoad writes to the nodes in turn until it is stopped; stop returns what was acknowledged last, by key.
func (c *procCluster) procLoad() (stop func() map[string]string) {
	done, acked := make(chan struct{}), make(map[string]string)
	ids := c.ids()
	var urls []string
	for _, i := range ids {
		urls = append(urls, c.url(i))
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		client := procClient(10 * time.Second)
		defer client.CloseIdleConnections()
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
			key, value := fmt.Sprint("load", n%100), fmt.Sprint(n)
			// One of three nodes may be away, so a client goes to the next.
			for try := range len(urls) + 1 {
				r := procDo(client, http.MethodPut, urls[(n+try)%len(urls)]+"/"+key, []byte(value))
				if r.status == http.StatusNoContent {
					acked[key] = value
					break
				}
				delete(acked, key) // it may or may not have happened
			}
		}
	})
	return sync.OnceValue(func() map[string]string {
		close(done)
		writer.Wait()
		return acked
	})
}

// Guarantee: commands that came with a version are used only once every member has published that it knows them. So a
// running cluster is upgraded node by node; after that the older program refuses to start and to join, and leaves the
// data as it was.
func TestProcUpgrade(t *testing.T) {
	old, err := procBuild("raftkv-of-level-1", "-tags", "raftkv_level1")
	if err != nil {
		t.Fatal(err)
	}
	c := newProcCluster(t, 3, "--check-interval", "100ms", "--snapshot-count", "200")
	for _, n := range c.nodes {
		n.bin = old
	}
	c.start()
	stop := c.procLoad()
	defer stop()
	for _, i := range c.ids() {
		c.stop(i)
		c.nodes[i].bin = ""
		c.start(i)
		if i == 3 {
			break
		}
		// The older program ends at the first command that it does not know, which close would report.
		for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(procPoll) {
			for _, j := range c.ids() {
				if s := c.checks(j); s.Level > 1 || s.CheckedIndex != 0 || s.Diverged {
					t.Fatalf("with node 3 of level 1, node %d says %+v", j, s)
				}
			}
		}
	}
	after := uint64(0)
	for range 2 {
		procEventually(t, procReadyWithin, "the upgraded nodes check each other", func() error {
			for _, i := range c.ids() {
				if s := c.checks(i); s.Level != 3 || s.CheckedIndex <= after || s.Diverged {
					return fmt.Errorf("node %d: %+v, want a check behind %d", i, s, after)
				}
			}
			return nil
		})
		after = c.checks(1).CheckedIndex
	}
	acked := stop()
	if len(acked) == 0 {
		t.Error("no write was acknowledged")
	}
	for key, value := range acked {
		c.wantGet(1, key, value)
	}

	c.stop(1)
	n := c.nodes[1]
	before := procTree(t, n.dataDir)
	n.bin = old
	c.launch(1)
	if out := c.waitExit(1, 1, 20*time.Second); !strings.Contains(out, "upgrade this node") {
		t.Errorf("the older program says:\n%s", procTail(out))
	}
	if !maps.Equal(before, procTree(t, n.dataDir)) {
		t.Error("the older program has changed the data directory")
	}
	n.bin = ""
	c.start(1)
	c.put(1, "k", "1")

	n = c.newNode(4)
	n.args = c.args(n, c.list+",4="+procURL(n.peerPort), "--join")
	n.bin = old
	c.launch(4)
	if out := c.waitExit(4, 1, 20*time.Second); !strings.Contains(out, "upgrade this node") {
		t.Errorf("the older program, asked to join, says:\n%s", procTail(out))
	}
	if r := c.do(http.MethodPost, 1, "/4", []byte(procURL(n.peerPort))); r.status != http.StatusNoContent {
		t.Fatalf("POST /4: %v", r)
	}
	n.bin = ""
	c.start(4)
	c.waitVoters(1, 1, 2, 3, 4)
	c.wantGet(4, "k", "1")
}
