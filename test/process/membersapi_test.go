//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// json sends a request with a JSON body.
func (c *procCluster) json(method string, i int, path, body string) procReply {
	return c.do(method, i, path, []byte(body), "Content-Type", "application/json")
}

// wantMember checks that an answer is a member, and returns it.
func (c *procCluster) wantMember(what string, r procReply, status int) procMember {
	c.t.Helper()
	var m procMember
	if r.err != nil || r.status != status {
		c.t.Fatalf("%s: %v, want %d", what, r, status)
	}
	if err := json.Unmarshal([]byte(r.body), &m); err != nil {
		c.t.Fatalf("%s: %v in %q", what, err, r.body)
	}
	return m
}

// joining lays out a node that joins in one command, by its own URL and the
// peer URLs of others.
func (c *procCluster) joining(id int, seeds ...int) *procNode {
	n := c.newNode(id)
	c.joinBy(n, seeds...)
	return n
}

func (c *procCluster) joinBy(n *procNode, seeds ...int) {
	var urls []string
	for _, i := range seeds {
		urls = append(urls, procURL(c.nodes[i].peerPort))
	}
	urls = append(urls, fmt.Sprintf("%d=%s", n.id, procURL(n.peerPort)))
	n.args = c.args(n, strings.Join(urls, ","), "--join")
}

// Guarantee: members are added, looked at, changed and removed over /v1/members, leadership moves over /v1/leader, on
// any node; what is not understood changes nothing.
func TestProcMembersAPI(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	via := c.follower()
	url4, url5 := procURL(procFreePort(t)), procURL(procFreePort(t))
	m := c.wantMember("POST", c.json("POST", via, "/v1/members", fmt.Sprintf(`{"peer_url":%q,"role":"learner"}`, url4)), 201)
	if m.ID != 4 || m.PeerURL != url4 || m.Role != "learner" {
		t.Errorf("added %+v", m)
	}
	if got := c.wantMember("GET", c.do("GET", c.leader(), "/v1/members/4", nil), 200); got != m {
		t.Errorf("GET says %+v", got)
	}
	for _, r := range []struct {
		method, path, body, code string
		status                   int
	}{
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q}`, url4), "member_exists", 409},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q,"id":3}`, url5), "member_exists", 409},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q,"id":0}`, url5), "bad_request", 400},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q,"role":"king"}`, url5), "bad_request", 400},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q,"Role":"voter"}`, url5), "bad_request", 400},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q,"peer_url":%q}`, url5, url5), "bad_request", 400},
		{"POST", "/v1/members", fmt.Sprintf(`{"peer_url":%q} {}`, url5), "bad_request", 400},
		{"POST", "/v1/members", `{"peer_url":"http://127.0.0.1/x"}`, "bad_request", 400},
		{"POST", "/v1/members", ``, "bad_request", 400},
		{"POST", "/v1/members?forse=true", fmt.Sprintf(`{"peer_url":%q}`, url5), "bad_request", 400},
		{"GET", "/v1/members/9", "", "not_found", 404},
		{"GET", "/v1/members/04", "", "bad_request", 400},
		{"GET", "/v1/members/4?x=1", "", "bad_request", 400},
		{"PUT", "/v1/members/4", "", "method_not_allowed", 405},
		{"PATCH", "/v1/members/9", `{"role":"voter"}`, "not_found", 404},
		{"PATCH", "/v1/members/4", `{}`, "bad_request", 400},
		{"PATCH", "/v1/members/4", `{"id":5}`, "bad_request", 400},
		{"PATCH", "/v1/members/4", fmt.Sprintf(`{"peer_url":%q}`, procURL(c.nodes[1].peerPort)), "member_exists", 409},
		{"DELETE", "/v1/members/9", "", "not_found", 404},
		{"POST", "/v1/leader", `{"id":4}`, "not_voter", 409},
		{"POST", "/v1/leader", `{"id":9}`, "not_found", 404},
		{"POST", "/v1/leader?force=true", `{"id":1}`, "bad_request", 400},
	} {
		procWantProblem(t, r.method+" "+r.path+" "+r.body, c.json(r.method, via, r.path, r.body), r.status, r.code)
	}
	form := c.do("POST", via, "/v1/leader", []byte(`{"id":1}`), "Content-Type", "text/plain")
	procWantProblem(t, "a text", form, 415, "unsupported_media_type")
	if !strings.Contains(form.body, "-H 'Content-Type: application/json'") {
		t.Errorf("the message does not say what to send: %s", form.body)
	}
	if m := c.wantMember("POST with an ID", c.json("POST", via, "/v1/members", fmt.Sprintf(`{"peer_url":%q,"id":8}`, url5)), 201); m.ID != 8 {
		t.Errorf("added %+v", m)
	}
	moved := procURL(procFreePort(t))
	for range 2 { // the second time there is nothing to change
		m := c.wantMember("PATCH", c.json("PATCH", via, "/v1/members/8", fmt.Sprintf(`{"peer_url":%q,"role":"learner"}`, moved)), 200)
		if m.PeerURL != moved || m.Role != "learner" {
			t.Errorf("PATCH gave %+v", m)
		}
	}
	for _, id := range []int{4, 8, 8} {
		if r := c.do("DELETE", via, fmt.Sprintf("/v1/members/%d", id), nil); r.status != 204 {
			t.Errorf("DELETE of %d: %v", id, r)
		}
	}
	procWantProblem(t, "a removed ID", c.json("POST", via, "/v1/members", fmt.Sprintf(`{"peer_url":%q,"id":4}`, url4)), 409, "member_removed")
	if m := c.wantMember("POST", c.json("POST", via, "/v1/members", fmt.Sprintf(`{"peer_url":%q}`, url4)), 201); m.ID != 9 {
		t.Errorf("the next free ID is %d, want 9", m.ID)
	}
	for _, to := range []int{1, 2, 3, 3} {
		if r := c.json("POST", via, "/v1/leader", fmt.Sprintf(`{"id":%d}`, to)); r.status != 200 || r.body != fmt.Sprintf("{\"leader\":%d}\n", to) {
			t.Errorf("leadership to %d: %v", to, r)
		}
		if s := c.status(to); s.Role != "leader" {
			t.Errorf("node %d is a %s", to, s.Role)
		}
	}
	if r := c.do("POST", 3, "/v1/leader", nil); r.status != 200 || r.body == "{\"leader\":3}\n" {
		t.Errorf("leadership to any other: %v", r)
	}
	// A voter becomes a learner, answers like any node, and becomes a voter again.
	if m := c.wantMember("PATCH", c.json("PATCH", 1, "/v1/members/3", `{"role":"learner"}`), 200); m.Role != "learner" {
		t.Errorf("PATCH gave %+v", m)
	}
	c.put(3, "k", "1")
	if list := c.members(3); len(list.Members) != 4 || !slices.Equal(list.voters(), []int{1, 2}) {
		t.Errorf("on the learner: %+v", list)
	}
	if m := c.wantMember("PATCH", c.json("PATCH", 3, "/v1/members/3", `{"role":"voter"}`), 200); m.Role != "voter" {
		t.Errorf("PATCH gave %+v", m)
	}
}

// Guarantee: a node joins in one command and says so; refusals name both sides and end it.
func TestProcJoinInOneCommand(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "1")
	n := c.joining(4, 1, 2)
	c.launch(4)
	c.waitReady(4)
	if out := n.output(); !strings.Contains(out, "added itself") {
		t.Errorf("node 4 does not say that it added itself:\n%s", procTail(out))
	}
	c.wantGet(4, "k", "1")
	c.waitVoters(3, 1, 2, 3, 4)
	// The two-step form is of the same effect, in this order too.
	if r := c.do("POST", 2, "/4", []byte(procURL(n.peerPort))); r.status != 204 {
		t.Errorf("POST /4 after it joined: %v", r)
	}
	c.stop(4)
	c.start(4)

	ends := func(n *procNode, what string, names ...string) {
		t.Helper()
		c.launch(n.id)
		out := c.waitExit(n.id, 1, 20*time.Second)
		for _, name := range names {
			if !strings.Contains(out, name) {
				t.Errorf("%s: the message does not name %s:\n%s", what, name, procTail(out))
			}
		}
	}
	c.remove(4, 1)
	c.waitExit(4, 0, 20*time.Second)
	if err := os.RemoveAll(n.dataDir); err != nil {
		t.Fatal(err)
	}
	ends(n, "a removed ID", "new ID")
	c.kill(3)
	taken := c.joining(5, 1, 2)
	taken.peerPort = c.nodes[3].peerPort
	c.joinBy(taken, 1, 2)
	ends(taken, "a URL that another has", "node 5", "member 3", procURL(taken.peerPort))
	c.start(3)
	c.waitVoters(1, 1, 2, 3)
}

// Guarantee: a node that wants to join waits for a cluster without a leader, and says so.
func TestProcJoinWithoutALeader(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3, "--request-timeout", "1s")
	c.start()
	c.put(1, "k", "1")
	c.kill(2, 3)
	n := c.joining(4, 1)
	c.launch(4)
	procEventually(t, 20*time.Second, "node 4 says what it waits for", func() error {
		if out := n.output(); !strings.Contains(out, "waiting to join") || !strings.Contains(out, "no leader") {
			return fmt.Errorf("its log is %q", out)
		}
		return nil
	})
	c.start(2)
	c.waitReady(4)
	c.wantGet(4, "k", "1")
}

// Guarantee: a dead node is replaced in two commands, by one with an empty directory and a new ID, at its own place.
func TestProcReplaceDeadNode(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "1")
	c.kill(3)
	n := c.joining(4, 1, 2)
	n.peerPort = c.nodes[3].peerPort
	c.joinBy(n, 1, 2)

	if r := c.do("DELETE", 1, "/v1/members/3", nil); r.status != 204 {
		t.Fatalf("DELETE: %v", r)
	}
	c.launch(4)
	c.waitReady(4)
	c.waitVoters(4, 1, 2, 4)
	c.wantGet(4, "k", "1")
	c.kill(1) // node 4 counts
	c.put(4, "k", "2")
	c.wantGet(2, "k", "2")
}

// Guarantee: a changed peer URL takes effect without a restart of the others, whether the node knew of it or was down;
// a node at an URL that the cluster does not know says so and ends.
func TestProcPeerURLChange(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "0")
	old := c.list
	for round, down := range []bool{false, true} {
		n := c.nodes[3]
		was := n.peerPort
		if down {
			c.kill(3)
		}
		n.peerPort = procFreePort(t)
		c.list = strings.Replace(c.list, procURL(was), procURL(n.peerPort), 1)
		patch := fmt.Sprintf(`{"peer_url":%q}`, procURL(n.peerPort))
		if m := c.wantMember("PATCH", c.json("PATCH", 1, "/v1/members/3", patch), 200); m.PeerURL != procURL(n.peerPort) {
			t.Errorf("PATCH gave %+v", m)
		}
		if !down {
			c.put(3, "k", "on") // it goes on, and says what to do
			procEventually(t, 10*time.Second, "node 3 tells its new URL", func() error {
				if out := n.output(); !strings.Contains(out, "restart it with the new one") || !strings.Contains(out, procURL(n.peerPort)) {
					return fmt.Errorf("its log is %q", procTail(out))
				}
				return nil
			})
			c.kill(3)
		}
		c.put(1, "k", fmt.Sprint(round))
		n.args = c.args(n, c.list)
		c.start(3)
		c.wantGet(3, "k", fmt.Sprint(round))
		c.kill(2) // node 3 counts: the others reach it where it is now
		c.put(1, "k", fmt.Sprint(round, " without 2"))
		c.wantGet(3, "k", fmt.Sprint(round, " without 2"))
		c.start(2)
	}
	// At a URL that nobody has told the cluster: it names both, and the way out.
	n := c.nodes[3]
	c.kill(3)
	known := n.peerPort
	n.peerPort = procFreePort(t)
	n.args = c.args(n, strings.Replace(c.list, procURL(known), procURL(n.peerPort), 1))
	c.launch(3)
	out := c.waitExit(3, 1, 20*time.Second)
	for _, want := range []string{procURL(known), procURL(n.peerPort), "PATCH"} {
		if !strings.Contains(out, want) {
			t.Errorf("the message does not name %s:\n%s", want, procTail(out))
		}
	}
	// Its old place, with the first list of all, is none either.
	n.args = c.args(n, old)
	c.launch(3)
	c.waitExit(3, 1, 20*time.Second)
	n.args, n.peerPort = c.args(n, c.list), known
	c.start(3)
	c.wantGet(3, "k", "1 without 2")
	// All at once: each goes by its own log.
	c.kill(1, 2, 3)
	c.start()
	c.wantGet(3, "k", "1 without 2")
}

// Guarantee: a node alone can move, having nobody to ask.
func TestProcSingleNodeMoves(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 1)
	c.start()
	c.put(1, "k", "1")
	n := c.nodes[1]
	old := n.args
	n.peerPort = procFreePort(t)
	url := procURL(n.peerPort)
	c.wantMember("PATCH", c.json("PATCH", 1, "/v1/members/1", fmt.Sprintf(`{"peer_url":%q}`, url)), 200)
	c.kill(1)
	c.launch(1)
	if out := c.waitExit(1, 1, 20*time.Second); !strings.Contains(out, url) {
		t.Errorf("at its old URL it does not name the new one:\n%s", procTail(out))
	}
	n.args = c.args(n, url)
	c.start(1)
	c.wantGet(1, "k", "1")
	n.args = old
	c.stop(1)
	c.launch(1)
	c.waitExit(1, 1, 20*time.Second)
}

// Guarantee: each node publishes its client URL when it has changed.
func TestProcClientURLChange(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	for _, i := range c.ids() {
		c.stop(i)
		c.nodes[i].clientPort = procFreePort(t)
		c.nodes[i].args = c.args(c.nodes[i], c.list)
		c.start(i)
		via := i%3 + 1
		procEventually(t, 10*time.Second, "another node tells the new client URL", func() error {
			m := c.wantMember("GET", c.do("GET", via, fmt.Sprintf("/v1/members/%d", i), nil), 200)
			if m.ClientURL != c.url(i) {
				return fmt.Errorf("%+v, want %s", m, c.url(i))
			}
			return nil
		})
	}
}

// Guarantee: a node that was down while every other one it knows was replaced is found by those that are there now.
func TestProcAllPeersReplacedWhileDown(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "k", "1")
	c.kill(3)
	for id := 4; id <= 5; id++ {
		c.joining(id, 1, 2, 4)
		if id == 4 {
			c.joinBy(c.nodes[4], 1, 2)
		}
		c.launch(id)
		c.waitReady(id)
	}
	c.waitVoters(4, 1, 2, 3, 4, 5)
	for _, old := range []int{1, 2} {
		c.remove(old, 5)
		c.waitExit(old, 0, 20*time.Second)
	}
	c.put(4, "k", "2")
	c.start(3)
	c.wantGet(3, "k", "2")
	c.waitVoters(3, 3, 4, 5)
	c.put(3, "k", "3")
}

// roamers are clients that go to the next node when one does not serve them: on a broken connection, 5xx or 429.
type roamers struct {
	t      testing.TB
	client *http.Client
	stop   chan struct{}
	wg     sync.WaitGroup

	urls    atomic.Pointer[[]string]
	served  atomic.Int64
	slowest atomic.Int64 // nanoseconds

	mu     sync.Mutex
	acked  map[string]string
	failed map[string]int // tries, by why
}

const roamFor = 10 * time.Second // how long a client tries one request

func (c *procCluster) roam(clients int, ids ...int) *roamers {
	r := &roamers{t: c.t, client: c.newClient(roamFor), stop: make(chan struct{}), acked: make(map[string]string), failed: make(map[string]int)}
	r.visit(c, ids...)
	for i := range clients {
		r.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-r.stop:
					return
				default:
				}
				key, value := fmt.Sprintf("roam-%d-%d", i, n%200), fmt.Sprintf("%d-%d", i, n)
				if !r.request(i+n, http.MethodPut, key, value) {
					return
				}
				r.mu.Lock()
				r.acked[key] = value
				r.mu.Unlock()
				if n%4 == 0 && !r.request(i+n, http.MethodGet, key, value) {
					return
				}
			}
		})
	}
	return r
}

// visit sets the nodes that the clients know of.
func (r *roamers) visit(c *procCluster, ids ...int) {
	var urls []string
	for _, i := range ids {
		urls = append(urls, c.url(i))
	}
	r.urls.Store(&urls)
}

// request tries the nodes in turn until one serves it. A write of the same value may be repeated.
func (r *roamers) request(first int, method, key, value string) bool {
	began := time.Now()
	var last procReply
	for try := first; time.Since(began) < roamFor; try++ {
		urls := *r.urls.Load()
		last = procDo(r.client, method, urls[try%len(urls)]+"/"+key, []byte(value))
		switch {
		case last.err == nil && (last.status == http.StatusNoContent || last.status == http.StatusOK && last.body == value):
			r.served.Add(1)
			if took := int64(time.Since(began)); took > r.slowest.Load() {
				r.slowest.Store(took)
			}
			return true
		case last.err == nil && last.status < 500 && last.status != http.StatusTooManyRequests:
			r.t.Errorf("%s /%s: %v", method, key, last)
			return false
		}
		why := fmt.Sprint(last.status, " ", last.code())
		if last.err != nil {
			why = "broken"
		}
		if procRefused(last.err) {
			why = "refused"
		}
		r.mu.Lock()
		r.failed[why]++
		r.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Errorf("%s /%s failed for %v; at last: %v", method, key, roamFor, last)
	return false
}

func (r *roamers) finish() {
	close(r.stop)
	r.wg.Wait()
	r.client.CloseIdleConnections()
	r.t.Logf("%d requests served, the slowest took %v; tries that failed: %v", r.served.Load(),
		time.Duration(r.slowest.Load()).Round(time.Millisecond), r.failed)
}

// Guarantee: from three nodes to five and back to three, every first node replaced, under load, with no failed request
// at clients that go to the next node; nothing acknowledged is lost.
func TestProcReplaceEveryNodeUnderLoad(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3, "--snapshot-count", "2000")
	c.start()
	load := c.roam(8, 1, 2, 3)
	join := func(id, seed int, now ...int) {
		t.Helper()
		c.joining(id, seed)
		c.launch(id)
		c.waitReady(id)
		procEventually(t, procReadyWithin, fmt.Sprintf("node %d is a voter", id), func() error {
			if m := c.wantMember("GET", c.do("GET", id, fmt.Sprintf("/v1/members/%d", id), nil), 200); m.Role != "voter" {
				return fmt.Errorf("%+v", m)
			}
			return nil
		})
		load.visit(c, now...)
	}
	leave := func(id, via int, now ...int) {
		t.Helper()
		load.visit(c, now...) // the clients that ask it meanwhile see it end
		if r := c.do("DELETE", via, fmt.Sprintf("/v1/members/%d", id), nil); r.status != 204 {
			t.Fatalf("DELETE of node %d via %d: %v", id, via, r)
		}
		c.waitExit(id, 0, 20*time.Second)
	}
	join(4, 1, 1, 2, 3, 4)
	join(5, 2, 1, 2, 3, 4, 5)
	leave(1, 5, 1, 2, 3, 4, 5)
	join(6, 3, 2, 3, 4, 5, 6)
	leave(2, 2, 2, 3, 4, 5, 6) // asked of the node itself
	leave(3, 6, 3, 4, 5, 6)
	load.visit(c, 4, 5, 6)
	load.finish()
	c.waitVoters(4, 4, 5, 6)
	c.wantAll(load.acked, 4, 5, 6)
}
