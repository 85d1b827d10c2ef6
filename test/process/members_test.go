//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

type procStatus struct {
	ID            int    `json:"id"`
	Role          string `json:"role"`
	Leader        int    `json:"leader"`
	Term          uint64 `json:"term"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	AppliedIndex  uint64 `json:"applied_index"`
	Keys          int    `json:"keys"`
}

// status is empty when the node does not answer.
func (c *procCluster) status(i int) procStatus {
	var s procStatus
	if r := c.do(http.MethodGet, i, "/v1/status", nil); r.status == http.StatusOK {
		if err := json.Unmarshal([]byte(r.body), &s); err != nil {
			c.t.Errorf("/v1/status of node %d: %v: %s", i, err, r.body)
		}
	}
	return s
}

// leader waits until all running nodes name the same one.
func (c *procCluster) leader() int {
	c.t.Helper()
	var leader int
	procEventually(c.t, procReadyWithin, "one leader", func() error {
		leader = 0
		for _, i := range c.ids() {
			if !c.nodes[i].running() {
				continue
			}
			s := c.status(i)
			if s.Leader == 0 || leader != 0 && s.Leader != leader {
				return fmt.Errorf("node %d: %+v, others say %d", i, s, leader)
			}
			leader = s.Leader
		}
		if n := c.nodes[leader]; n == nil || !n.running() {
			return fmt.Errorf("leader %d does not run", leader)
		}
		return nil
	})
	return leader
}

func (c *procCluster) follower() int {
	c.t.Helper()
	return c.leader()%3 + 1
}

type procMember struct {
	ID        int    `json:"id"`
	PeerURL   string `json:"peer_url"`
	ClientURL string `json:"client_url"`
	Role      string `json:"role"`
}

type procMembers struct {
	Members []procMember `json:"members"`
	Removed []int        `json:"removed"`
}

func (m procMembers) voters() []int {
	var ids []int
	for _, member := range m.Members {
		if member.Role == "voter" {
			ids = append(ids, member.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// waitVoters waits until node i names exactly these voters and no other member.
func (c *procCluster) waitVoters(i int, want ...int) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, fmt.Sprintf("node %d names the voters %v", i, want), func() error {
		if m := c.members(i); !slices.Equal(m.voters(), want) || len(m.Members) != len(want) {
			return fmt.Errorf("%+v", m)
		}
		return nil
	})
}

func (c *procCluster) members(i int) procMembers {
	var m procMembers
	if r := c.do(http.MethodGet, i, "/v1/members", nil); r.status == http.StatusOK {
		if err := json.Unmarshal([]byte(r.body), &m); err != nil {
			c.t.Errorf("/v1/members of node %d: %v: %s", i, err, r.body)
		}
	}
	return m
}

func (c *procCluster) remove(i, via int) {
	c.t.Helper()
	if r := c.do(http.MethodDelete, via, fmt.Sprintf("/%d", i), nil); r.status != http.StatusNoContent {
		c.t.Fatalf("DELETE /%d at node %d: %v, want 204", i, via, r)
	}
}

// Guarantee: raftexample's walk through membership works: add node 4 to a running cluster, at once remove node 3, which
// then ends by itself, exit 0, and says why; the others serve, and the removed one stays removed.
func TestProcAddAndRemove(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.put(1, "before", "1")
	c.addNode(4, 1)
	c.remove(3, 1)
	if out := c.waitExit(3, 0, 20*time.Second); !strings.Contains(strings.ToLower(out), "removed") {
		t.Errorf("node 3 ended without a word on its removal:\n%s", procTail(out))
	}
	c.waitReady(4)
	c.wantGet(4, "before", "1")
	for _, i := range []int{1, 2, 4} {
		c.put(i, "after", fmt.Sprint(i))
		for _, j := range []int{1, 2, 4} {
			c.wantGet(j, "after", fmt.Sprint(i))
		}
		c.waitVoters(i, 1, 2, 4)
		if m := c.members(i); !slices.Equal(m.Removed, []int{3}) {
			t.Errorf("node %d: removed %v, want [3]", i, m.Removed)
		}
	}
	// Asked again.
	url3, url4 := []byte(procURL(c.nodes[3].peerPort)), []byte(procURL(c.nodes[4].peerPort))
	c.remove(3, 2)
	procWantProblem(t, "POST of a removed ID", c.do("POST", 1, "/3", url3), 409, "member_removed")
	procWantProblem(t, "POST of a removed ID, new URL", c.do("POST", 4, "/3", []byte(procURL(procFreePort(t)))), 409, "member_removed")
	if r := c.do("POST", 2, "/4", url4); r.status != 204 {
		t.Errorf("POST of a member with its own URL: %v, want 204", r)
	}
	procWantProblem(t, "POST of a member with another URL", c.do("POST", 2, "/4", []byte(procURL(procFreePort(t)))), 409, "member_exists")
	procWantProblem(t, "POST of a URL that another has", c.do("POST", 2, "/5", url4), 409, "member_exists")
	procWantProblem(t, "DELETE of a stranger", c.do("DELETE", 2, "/77", nil), 404, "not_found")
	// Started again it learns that it is removed, and ends as before.
	c.launch(3)
	c.waitExit(3, 0, 20*time.Second)
	// Its directory does not matter: the others know, and an emptied one is refused.
	if err := os.RemoveAll(c.nodes[3].dataDir); err != nil {
		t.Fatal(err)
	}
	c.launch(3)
	n := c.nodes[3]
	n.ending = true
	select {
	case <-n.done:
	case <-time.After(20 * time.Second):
		t.Errorf("node 3, removed and emptied, still runs after 20 s")
	}
	c.put(2, "end", "1")
	c.wantGet(4, "end", "1")
}

// Guarantee: a node removed while it was down is never ready again: it learns of it from a peer and exits 0.
func TestProcRemovedWhileDown(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	c.put(3, "k", "1")
	term := c.status(1).Term
	c.kill(3)
	c.remove(3, 1)
	c.put(1, "k", "2")
	if c.status(1).Term != term {
		t.Logf("term went from %d to %d", term, c.status(1).Term)
	}
	term = c.status(1).Term
	c.launch(3)
	n := c.nodes[3]
	n.ending = true
	deadline := time.Now().Add(20 * time.Second)
	for n.running() && time.Now().Before(deadline) {
		if c.ready(3) {
			t.Error("the removed node says that it is ready")
			break
		}
		if r := c.do("GET", 3, "/k", nil); r.err == nil && r.status < 500 {
			t.Errorf("the removed node answers a read: %v", r)
			break
		}
		time.Sleep(procPoll)
	}
	if out := c.waitExit(3, 0, time.Until(deadline)); !strings.Contains(strings.ToLower(out), "removed") {
		t.Errorf("node 3 ended without a word on its removal:\n%s", procTail(out))
	}
	c.wantGet(2, "k", "2")
	if now := c.status(1).Term; now != term {
		t.Errorf("the removed node disturbed the others: term %d, was %d", now, term)
	}
}

// Guarantee: members with their URLs are replicated state, in the snapshot too: after any change everyone restarts with
// the old command lines.
func TestProcOldCommandLinesAfterAChange(t *testing.T) {
	t.Parallel() // it mostly waits for elections
	c := newProcCluster(t, 3, "--snapshot-count", "20")
	c.start()
	c.addNode(4, 2)
	c.waitReady(4)
	c.waitVoters(1, 1, 2, 3, 4)
	for n := range 300 {
		c.put(n%4+1, fmt.Sprint("k", n%30), fmt.Sprint(n))
	}
	for _, i := range c.ids() {
		procEventually(t, 20*time.Second, "the change is behind a snapshot", func() error {
			if s := c.status(i); s.SnapshotIndex < 100 {
				return fmt.Errorf("node %d: snapshot_index %d", i, s.SnapshotIndex)
			}
			return nil
		})
	}
	c.kill(1, 2, 3, 4)
	c.start()
	for _, i := range c.ids() {
		c.waitVoters(i, 1, 2, 3, 4)
		c.put(i, "k", fmt.Sprint(i))
		for _, j := range c.ids() {
			c.wantGet(j, "k", fmt.Sprint(i))
		}
	}
	// Node 4 counts: with two others down nothing goes, with one down everything does.
	c.kill(1)
	c.put(4, "k", "three of four")
	c.wantGet(3, "k", "three of four")
	c.start(1)
	c.remove(1, 4)
	c.waitExit(1, 0, 20*time.Second)
	c.kill(2, 3, 4)
	c.start(2, 3, 4)
	c.put(3, "k", "without 1")
	c.wantGet(4, "k", "without 1")
	c.waitVoters(2, 2, 3, 4)
}

// Guarantee: no URL that the transport would choke on gets into the log; in raftexample one trailing slash ended every
// node at every start.
func TestProcBadPeerURL(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	for _, url := range []string{
		"", " ", "http://127.0.0.1:12379/", "http://127.0.0.1", "127.0.0.1:12379", "http://127.0.0.1:12379/raft", "http://:12379",
		"http://127.0.0.1:0", "http://127.0.0.1:99999", "http://127.0.0.1:http", "ftp://127.0.0.1:12379", "http://u:p@127.0.0.1:12379",
		"http://127.0.0.1:12379?x=1", "http://127.0.0.1:12379#x", "http://127.0.0.1:12379,http://127.0.0.1:22379", "unix://127.0.0.1:12379",
		"http://[::1:12379", "http://127.0.0.1:12379\x00", "\xff\xfe", strings.Repeat("x", 2000),
	} {
		procWantProblem(t, fmt.Sprintf("POST /2 with %.60q", url), c.do("POST", 1, "/2", []byte(url)), 400, "bad_request")
	}
	procWantProblem(t, "POST /2 with 100 KB", c.do("POST", 1, "/2", make([]byte, 100_000)), 413, "too_large")
	procWantProblem(t, "POST /0", c.do("POST", 1, "/0", []byte("http://127.0.0.1:12379")), 400, "bad_request")
	c.put(1, "k", "1")
	c.kill(1)
	c.start()
	c.wantGet(1, "k", "1")
	c.waitVoters(1, 1)
}

// Guarantee: the last voter stays, and a new member that is not up costs nobody the quorum (C12).
func TestProcLastVoter(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	procWantProblem(t, "DELETE of the last voter", c.do("DELETE", 1, "/1", nil), 409, "last_voter")
	// A member that nobody has started: a learner, so the one voter goes on alone.
	dead := procURL(procFreePort(t))
	if r := c.do("POST", 1, "/2", []byte(dead)); r.status != 204 {
		t.Fatalf("POST /2: %v, want 204", r)
	}
	c.put(1, "k", "1")
	procWantProblem(t, "DELETE of the last voter beside a learner", c.do("DELETE", 1, "/1", nil), 409, "last_voter")
	c.kill(1)
	c.start()
	c.wantGet(1, "k", "1")
	c.remove(2, 1)
	c.put(1, "k", "2")
}

// Guarantee: removing the leader, asked of the leader itself, hands over first: it exits 0, the rest serves.
func TestProcRemoveLeader(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	first := c.leader()
	c.put(first, "k", "1")
	c.remove(first, first)
	c.waitExit(first, 0, 20*time.Second)
	second := c.leader()
	c.put(second, "k", "2")
	// Two are left; the one that leads goes too, the other is a cluster alone.
	c.remove(second, second)
	c.waitExit(second, 0, 20*time.Second)
	last := 6 - first - second
	c.waitReady(last)
	c.wantGet(last, "k", "2")
	c.put(last, "k", "3")
	c.waitVoters(last, last)
}

// Guarantee: 204 on a membership change means that it was made; raft drops all but one of several at a time.
func TestProcChangesAtTheSameTime(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	type answer struct {
		id int
		r  procReply
	}
	answers := make(chan answer)
	for id := 4; id <= 7; id++ {
		url := []byte(procURL(procFreePort(t)))
		go func() { answers <- answer{id, c.do("POST", id%3+1, fmt.Sprintf("/%d", id), url)} }()
	}
	var done []int
	for range 4 {
		a := <-answers
		switch {
		case a.r.status == 204:
			done = append(done, a.id)
		case a.r.status == 409 && a.r.code() == "change_in_progress": // it was not made, and says so
		default:
			t.Errorf("POST /%d: %v", a.id, a.r)
		}
	}
	if len(done) == 0 {
		t.Error("none of the four changes was made")
	}
	for i := 1; i <= 3; i++ {
		c.put(i, "k", fmt.Sprint(i)) // none of the new ones is up: they must not count
		var have []int
		for _, m := range c.members(i).Members {
			have = append(have, m.ID)
		}
		for _, id := range done {
			if !slices.Contains(have, id) {
				t.Errorf("node %d was added with 204, node %d does not list it: %v", id, i, have)
			}
		}
	}
}

// Guarantee: a node that joins under an ID whose URL the cluster knows otherwise is told so.
func TestProcJoinWithAnotherURL(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	announced := procURL(procFreePort(t))
	if r := c.do("POST", 1, "/2", []byte(announced)); r.status != 204 {
		t.Fatalf("POST /2: %v", r)
	}
	n := c.newNode(2)
	own := procURL(n.peerPort)
	n.args = c.args(n, c.list+",2="+own, "--join")
	c.launch(2)
	out := c.waitExit(2, 1, 20*time.Second)
	if !strings.Contains(out, own) || !strings.Contains(out, announced) {
		t.Errorf("the message names not both %s and %s:\n%s", own, announced, procTail(out))
	}
	c.put(1, "k", "1")
}

// Guarantee: the order of POST and --join does not matter, nor that of starting: a node that reaches no member yet
// waits, tells so, answers that it is not ready, can be stopped meanwhile, and takes part once it can; to add it then
// is no error.
func TestProcJoinBeforeItIsAdded(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start()
	c.put(1, "k", "1")
	c.kill(1)
	n := c.newNode(2)
	n.args = c.args(n, c.list+",2="+procURL(n.peerPort), "--join")
	waits := func() {
		t.Helper()
		procEventually(t, 10*time.Second, "node 2 says what it waits for", func() error {
			if out := n.output(); !strings.Contains(out, "waiting to join") {
				return fmt.Errorf("its log is %q", out)
			}
			return nil
		})
	}
	c.launch(2)
	waits()
	// Nobody listening is an answer too; silence is none.
	if r := c.do("GET", 2, "/readyz", nil); r.status != http.StatusServiceUnavailable && !procRefused(r.err) {
		t.Errorf("/readyz of a node that waits to join: %v, want 503", r)
	}
	c.stop(2)
	c.launch(2)
	waits()
	c.start(1)
	if r := c.do("POST", 1, "/2", []byte(procURL(n.peerPort))); r.status != http.StatusNoContent {
		t.Fatalf("POST /2: %v, want 204", r)
	}
	c.waitReady(2)
	c.wantGet(2, "k", "1")
	c.waitVoters(1, 1, 2)
}

// Guarantee: on every node, at once after a key was written on another, DELETE /ID leaves the node of the key's name alone.
func TestProcNodeOrKey(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	for n := range 30 {
		put, del, id := n%3+1, (n+1)%3+1, (n+2)%3+1
		c.put(put, fmt.Sprint(id), "a key")
		r := c.do("DELETE", del, fmt.Sprintf("/%d", id), nil)
		procWantProblem(t, "DELETE of a node or a key", r, 409, "ambiguous")
		for _, form := range []string{"DELETE /v1/kv/%d ", "DELETE /v1/members/%d "} {
			if !strings.Contains(r.body, fmt.Sprintf(form, id)) {
				t.Fatalf("%v does not name %s", r, fmt.Sprintf(form, id))
			}
		}
		if r := c.do("DELETE", put, fmt.Sprintf("/v1/kv/%d", id), nil); r.status != 204 {
			t.Fatalf("DELETE of the key: %v", r)
		}
	}
	c.waitVoters(1, 1, 2, 3)
	c.put(1, "3", "a key")
	if r := c.do("DELETE", 2, "/3?force=true", nil); r.status != 204 {
		t.Errorf("DELETE of the node, by force: %v", r)
	}
	c.waitExit(3, 0, 20*time.Second)
	c.wantGet(1, "3", "a key")
}
