//go:build unix

package process

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"raftkv/internal/config"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// procChecks is what a node says of the checks in its status.
type procChecks struct {
	Diverged     bool   `json:"diverged"`
	Disputed     bool   `json:"disputed"`
	CheckedIndex uint64 `json:"checked_index"`
	Level        uint64 `json:"level"`
	Leader       int    `json:"leader"`
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

// landing is a program that runs somewhere: what a cluster is upgraded from, node by node, and goes back to.
type landing struct {
	commit string
	level  uint64 // what it knows
	// build builds it from the history, once for all tests of the run.
	build func() (string, error)
}

func newLanding(commit string, level uint64) landing {
	return landing{commit, level, sync.OnceValues(func() (string, error) { return procBuildOld(commit) })}
}

// landings are the programs to upgrade from. Each landing adds its row: what has been released stays in use.
var landings = map[string]landing{
	"df375bd": newLanding("df375bdddc242708c7de31a34d13b58d0909112d", state.CheckLevel), // batches are not named, nobody vouches
	"b358d59": newLanding("b358d59d723be8612f201cf9ffb14b6ba3a538bc", state.LifeLevel),  // two histories vouch, and do not dispute
	"3d3ebaf": newLanding("3d3ebaf600ff3313904e87fbbb2fb17298f27286", state.LifeLevel),
	"e21f785": newLanding("e21f785e41cd90647881508481c9bafeacca6954", state.LifeLevel),  // the last to ask all followers of a read
	"5d687c3": newLanding("5d687c3d88596a4f3077da31305ec40c9970c6aa", state.LifeLevel),  // the last without leases
	"90e0eea": newLanding("90e0eea502951454ef9a1eb343a0ba1066d8410f", state.TxnLevel),   // the first with leases and transactions
	"8d8a771": newLanding("8d8a771a71f7ce46e5d9cd24c9556d3692bbb370", state.OnceLevel),  // the last without watches
	"7f4d0a0": newLanding("7f4d0a00802a698014aa88de292ec4d323274873", state.OnceLevel),  // the first with watches
	"0e20de4": newLanding("0e20de484e56bf448b5eab5ea5063dc0e724ec1a", state.DoorsLevel), // the first with TLS and rights
}

// errShallow is why a shallow clone has no older program.
var errShallow = errors.New("this is a shallow clone without the program to upgrade from: git fetch --unshallow")

// program returns the program of a landing. A shallow clone has none, and skips the test.
func (l landing) program(t testing.TB) string {
	t.Helper()
	bin, err := l.build()
	switch {
	case errors.Is(err, errShallow):
		t.Skipf("%v, or git fetch origin %s", err, l.commit)
	case errors.Is(err, errNoRepository):
		testkit.CannotRun(t, err.Error())
	case err != nil:
		t.Fatal(err)
	}
	return bin
}

// errNoRepository is why an unpacked archive has none.
var errNoRepository = errors.New("the program to upgrade from is in the git history, and this is no git repository")

// procBuildOld builds the program of a commit from the history.
func procBuildOld(commit string) (bin string, err error) {
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", args...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := git("cat-file", "-e", commit+"^{commit}"); err != nil {
		if shallow, err := git("rev-parse", "--is-shallow-repository"); err != nil {
			return "", fmt.Errorf("%w: %s", errNoRepository, shallow)
		} else if shallow == "true" {
			return "", errShallow
		}
		return "", fmt.Errorf("the history lacks %s: %s", commit, out)
	}
	dir, err := procBuildDir()
	if err != nil {
		return "", err
	}
	bin = filepath.Join(dir, "raftkv-of-"+commit[:7])
	tree := bin + ".tree"
	if out, err := git("worktree", "add", "--quiet", "--detach", tree, commit); err != nil {
		return "", fmt.Errorf("git worktree add: %w\n%s", err, out)
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".")
	build.Dir = tree
	if out, failed := build.CombinedOutput(); failed != nil {
		err = fmt.Errorf("go build of %s: %w\n%s", commit, failed, out)
	}
	if out, failed := git("worktree", "remove", "--force", tree); failed != nil {
		err = errors.Join(err, fmt.Errorf("git worktree remove: %w\n%s", failed, out))
	}
	return bin, err
}

// upgradeLoad is a crowd of clients that move on to the next node when one does not serve them. Each key is written once.
type upgradeLoad struct {
	stopped atomic.Bool
	clients sync.WaitGroup

	mu     sync.Mutex
	acked  map[string]string
	failed []string
}

// startUpgradeLoad starts clients that write to the nodes in turn, and read what they wrote from the next.
func (c *procCluster) startUpgradeLoad(clients int, nodes ...int) *upgradeLoad {
	l := &upgradeLoad{acked: make(map[string]string)}
	var urls []string
	for _, i := range nodes {
		urls = append(urls, c.url(i))
	}
	for w := range clients {
		l.clients.Go(func() {
			client := procClient(10 * time.Second)
			defer client.CloseIdleConnections()
			for n := 0; !l.stopped.Load(); n++ {
				key, value := fmt.Sprintf("load/%d/%d", w, n), fmt.Sprintf("%d of %d", n, w)
				if l.request(client, urls, n, http.MethodPut, key, value) {
					l.request(client, urls, n+1, http.MethodGet, key, value)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	return l
}

// request asks the nodes one after the other, from the n-th on, until one serves it, and reports whether one did. Beside
// the node that is being restarted another may be electing; but that is waited for, so one round and one more try are enough.
func (l *upgradeLoad) request(client *http.Client, urls []string, n int, method, key, value string) bool {
	var said []string
	for try := range len(urls) + 1 {
		url := urls[(n+try)%len(urls)] + "/" + key
		var r procReply
		if method == http.MethodPut {
			r = procDo(client, method, url, []byte(value))
		} else {
			r = procDo(client, method, url, nil)
		}
		if r.status == http.StatusNoContent || (method == http.MethodGet && r.status == http.StatusOK && r.body == value) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.acked[key] = value
			return true
		}
		said = append(said, fmt.Sprintf("%s %s: %v", method, url, r))
		if method == http.MethodGet && (r.status == http.StatusOK || r.status == http.StatusNotFound) {
			break // another value than was acknowledged
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) < 20 {
		l.failed = append(l.failed, strings.Join(said, "\n  "))
	}
	return false
}

// stop ends the load and returns what was acknowledged.
func (l *upgradeLoad) stop() map[string]string {
	l.stopped.Store(true)
	l.clients.Wait()
	return l.acked
}

// wantAgreement waits until the nodes have found, twice, that they hold the same, at the level.
func (c *procCluster) wantAgreement(when string, level uint64, nodes ...int) {
	c.t.Helper()
	var after uint64
	for range 2 {
		procEventually(c.t, procReadyWithin, when+": the nodes agree", func() error {
			for _, i := range nodes {
				s := c.checks(i)
				if s.Diverged || s.Level > level {
					c.t.Fatalf("%s: node %d says %+v, want level %d", when, i, s, level)
				}
				if s.Level != level || s.CheckedIndex <= after {
					return fmt.Errorf("node %d says %+v, want level %d and a check behind %d", i, s, level, after)
				}
			}
			return nil
		})
		after = c.checks(nodes[0]).CheckedIndex
	}
}

// restartAs stops a node in order and starts it with another program, "" for the one under test.
func (c *procCluster) restartAs(i int, bin string) {
	c.t.Helper()
	c.stop(i)
	c.nodes[i].bin = bin
	c.start(i)
}

// lead moves leadership to node i.
func (c *procCluster) lead(i int) {
	c.t.Helper()
	if r := c.do(http.MethodPost, i, "/v1/leader", fmt.Appendf(nil, `{"id":%d}`, i), "Content-Type", "application/json"); r.status != http.StatusOK {
		c.t.Fatalf("POST /v1/leader, %d: %v", i, r)
	}
}

// learnFrom has a new node, of another program than its leader's perhaps, get all from a snapshot of that leader's.
func (c *procCluster) learnFrom(leader, i int, bin string) {
	c.t.Helper()
	c.lead(leader)
	n := c.newNode(i)
	n.bin = bin
	n.args = c.args(n, c.list+fmt.Sprintf(",%d=%s", i, procURL(n.peerPort)), "--join")
	add := fmt.Appendf(nil, `{"id":%d,"peer_url":%q,"role":"learner"}`, i, procURL(n.peerPort))
	if r := c.do(http.MethodPost, leader, "/v1/members", add, "Content-Type", "application/json"); r.status != http.StatusCreated {
		c.t.Fatalf("POST /v1/members at node %d: %v", leader, r)
	}
	c.start(i)
	if s := c.checks(i); s.Leader != leader {
		c.t.Errorf("node %d has its state from node %d, and was to have it from node %d", i, s.Leader, leader)
	}
	if files, err := filepath.Glob(filepath.Join(n.dataDir, "snap", "*.state")); err != nil || len(files) == 0 {
		c.t.Errorf("node %d has no snapshot (%v)", i, err)
	}
}

// Guarantee: a running cluster of an older version is upgraded node by node, under load, and can go back as long as not
// every member has been upgraded: no write is lost, no request fails at clients that move on, and the replicas agree all
// the while. Snapshots go from either program to the other. Once every member runs the new program the level rises, if
// that knows a higher one; behind that the older one refuses to start and to join, and leaves the data as it was. If not,
// it can come back then, too.
func TestProcUpgrade(t *testing.T) {
	t.Parallel()
	for name, from := range landings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			procUpgrade(t, from.program(t), from.level)
		})
	}
}

func procUpgrade(t *testing.T, old string, before uint64) {
	c := newProcCluster(t, 3, "--check-interval", "100ms", "--snapshot-count", "200")
	c.oldToo = true
	for _, n := range c.nodes {
		n.bin = old
	}
	c.start()
	load := c.startUpgradeLoad(4, 1, 2, 3)
	defer load.stop()
	c.waitLevel(before)
	c.wantAgreement("before", before, 1, 2, 3)

	held := c.holdLease("before", before, 1, 2, 3)
	c.restartAs(1, "")
	c.wantAgreement("one of three upgraded", before, 1, 2, 3)
	watcher := c.followFrom("load/1/", 1, 2, 3)
	if before < state.LeaseLevel {
		put := c.do(http.MethodPut, 1, "/v1/kv/timed?ttl=10s", []byte("v"))
		procWantProblem(t, "a time to live before all know it", put, http.StatusServiceUnavailable, "upgrading")
	}
	once := func(i int) procReply {
		return c.do(http.MethodPost, i, "/v1/add?key=once", []byte("1"), "Idempotency-Key", "upgraded")
	}
	if before < state.OnceLevel {
		procWantProblem(t, "an Idempotency-Key before all know it", once(1), http.StatusServiceUnavailable, "upgrading")
	}
	c.learnFrom(1, 4, old) // a snapshot of the new program, installed by the old one
	if before < state.DoorsLevel {
		url := strings.Replace(procURL(c.nodes[2].peerPort), "http:", "https:", 1)
		patch := c.do(http.MethodPatch, 1, "/v1/members/2", fmt.Appendf(nil, `{"peer_url":%q}`, url), "Content-Type", "application/json")
		procWantProblem(t, "a URL with https before all know it", patch, http.StatusServiceUnavailable, "upgrading")
	}
	c.learnFrom(2, 5, "") // and the other way round
	c.wantAgreement("half-way", before, 1, 2, 3, 4, 5)

	c.restartAs(1, old) // with what the new program wrote: log, snapshots of its own, or one that was sent
	c.restartAs(5, old)
	c.wantAgreement("rolled back", before, 1, 2, 3, 4, 5)

	for _, i := range []int{4, 5, 3, 2} {
		c.restartAs(i, "")
	}
	c.wantAgreement("all but one upgraded", before, 1, 2, 3, 4, 5)
	c.restartAs(1, "")
	c.wantAgreement("all upgraded", state.ProgramLevel, 1, 2, 3, 4, 5)
	held = append(held, c.holdLease("after", state.ProgramLevel, 1, 2, 3, 4, 5)...)
	first := once(4)
	c.nodes[3].args = append(c.nodes[3].args, "--auth=off") // which it publishes
	c.restartAs(3, "")
	c.wantAgreement("one has doors of its own", state.ProgramLevel, 1, 2, 3, 4, 5)
	if again := once(3); first.status != http.StatusOK || again.status != first.status || again.body != first.body || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("a request under an Idempotency-Key: %v, and its repeat: %v", first, again)
	}
	for _, l := range held {
		l.release(5)
	}
	if before == state.ProgramLevel {
		c.restartAs(2, old)
		c.wantAgreement("one back from a level that has not risen", before, 1, 2, 3, 4, 5)
	}

	acked := load.stop()
	for _, what := range load.failed {
		t.Errorf("a request failed on every node:\n  %s", what)
	}
	if len(acked) < 100 {
		t.Errorf("only %d writes were acknowledged: this is no load", len(acked))
	}
	t.Logf("%d writes", len(acked))
	watcher.wantCopy(c, 3, "load/1/")
	watcher.stop()
	for key, value := range acked {
		c.wantGet(1+len(key+value)%5, key, value)
	}
	if before < state.ProgramLevel {
		c.wantOlderRefused(old, 1, 6)
	}
}

// heldLease is a lease that a client keeps alive through the nodes in turn, and the key that is bound to it.
type heldLease struct {
	c       *procCluster
	id      uint64
	key     string
	stopped chan struct{}
	done    sync.WaitGroup
}

// holdLease begins to hold a lease, if the cluster is at a level that has them.
func (c *procCluster) holdLease(name string, level uint64, nodes ...int) []*heldLease {
	c.t.Helper()
	if level < state.LeaseLevel {
		return nil
	}
	l := &heldLease{c: c, key: "held/" + name, stopped: make(chan struct{})}
	r := c.do(http.MethodPost, nodes[0], "/v1/leases", []byte(`{"ttl":"10s"}`))
	var granted struct{ ID uint64 }
	if err := json.Unmarshal([]byte(r.body), &granted); err != nil || r.status != http.StatusCreated {
		c.t.Fatalf("POST /v1/leases: %v (%v)", r, err)
	}
	l.id = granted.ID
	if r := c.do(http.MethodPut, nodes[1], fmt.Sprintf("/v1/kv/%s?lease=%d", l.key, l.id), []byte(name)); r.status/100 != 2 {
		c.t.Fatalf("PUT with lease %d: %v", l.id, r)
	}
	var urls []string
	for _, i := range nodes {
		urls = append(urls, c.url(i))
	}
	l.done.Go(func() {
		client := procClient(10 * time.Second)
		defer client.CloseIdleConnections()
		for n := 0; ; n++ {
			url := fmt.Sprintf("%s/v1/leases/%d", urls[n%len(urls)], l.id)
			if r := procDo(client, http.MethodPut, url, nil); r.status == http.StatusNotFound {
				c.t.Errorf("lease %d was lost: %v", l.id, r)
				return
			}
			select {
			case <-l.stopped:
				return
			case <-time.After(time.Second):
			}
		}
	})
	return []*heldLease{l}
}

// release checks that the key is there, ends the lease at node i, and checks that the key goes.
func (l *heldLease) release(i int) {
	l.c.t.Helper()
	close(l.stopped)
	l.done.Wait()
	if r := l.c.do(http.MethodGet, i, "/"+l.key, nil); r.status != http.StatusOK {
		l.c.t.Errorf("%s of lease %d: %v", l.key, l.id, r)
	}
	if r := l.c.do(http.MethodDelete, i, fmt.Sprintf("/v1/leases/%d", l.id), nil); r.status != http.StatusNoContent {
		l.c.t.Errorf("DELETE of lease %d: %v", l.id, r)
	}
	if r := l.c.do(http.MethodGet, i, "/"+l.key, nil); r.status != http.StatusNotFound {
		l.c.t.Errorf("%s of the revoked lease %d: %v", l.key, l.id, r)
	}
}

// wantOlderRefused checks that an older program neither starts in the directory of node i nor joins as node joiner.
func (c *procCluster) wantOlderRefused(old string, i, joiner int) {
	c.t.Helper()
	c.stop(i)
	n := c.nodes[i]
	before := procTree(c.t, n.dataDir)
	n.bin = old
	c.launch(i)
	if out := c.waitExit(i, config.ExitFault, 20*time.Second); !strings.Contains(out, "upgrade this node") {
		c.t.Errorf("the older program says:\n%s", procTail(out))
	}
	if !maps.Equal(before, procTree(c.t, n.dataDir)) {
		c.t.Error("the older program has changed the data directory")
	}
	n.bin = ""
	c.start(i)
	c.put(i, "k", "1")

	n = c.newNode(joiner)
	n.args = c.args(n, c.list+fmt.Sprintf(",%d=%s", joiner, procURL(n.peerPort)), "--join")
	n.bin = old
	c.launch(joiner)
	if out := c.waitExit(joiner, config.ExitFault, 20*time.Second); !strings.Contains(out, "upgrade this node") {
		c.t.Errorf("the older program, asked to join, says:\n%s", procTail(out))
	}
}
