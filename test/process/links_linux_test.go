package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/peerclient"
	"raftkv/internal/testkit"
	"raftkv/internal/transport"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What a network does that drops packets, and what the cluster does when it has
// healed. TCP alone would be silent after a cut for about as long as it took.

const (
	// linkWorksWithin is how soon after a heal a link works.
	linkWorksWithin = 2 * time.Second
	// linkSlack is what a loaded machine adds. After a cut of eight seconds TCP
	// alone takes up to six more.
	linkSlack = 1500 * time.Millisecond
)

// A fast election leaves most of the time to the link.
var linkFlags = []string{"--heartbeat-interval", "50ms", "--election-timeout", "500ms"}

const linkElection = time.Second // two election timeouts: raft waits one to two

// linkCut is a way to cut links, among a leader and its followers.
type linkCut struct {
	name string
	cut  func(l *netLab, leader, a, b int)
}

var linkCuts = []linkCut{
	{"between followers", func(l *netLab, _, a, b int) { l.sever(a, b) }},
	{"one direction between followers", func(l *netLab, _, a, b int) { l.cut(a, b) }},
	{"leader and follower", func(l *netLab, leader, a, _ int) { l.sever(leader, a) }},
	{"leader to follower only", func(l *netLab, leader, a, _ int) { l.cut(leader, a) }},
	{"follower to leader only", func(l *netLab, leader, a, _ int) { l.cut(a, leader) }},
	{"follower from all", func(l *netLab, leader, a, b int) { l.sever(leader, a); l.sever(b, a) }},
	{"follower to all only", func(l *netLab, leader, a, b int) { l.cut(a, leader); l.cut(a, b) }},
	{"flapping", func(l *netLab, leader, a, b int) {
		for range 10 {
			l.sever(leader, a)
			l.sever(a, b)
			time.Sleep(250 * time.Millisecond)
			l.heal()
			time.Sleep(20 * time.Millisecond)
		}
		l.sever(leader, a)
		l.sever(a, b)
	}},
}

// leader returns who leads, as node via knows, and the two others.
func (l *netLab) leader(via int) (leader, a, b int) {
	l.t.Helper()
	procEventually(l.t, procReadyWithin, "a leader is known", func() error {
		var st struct{ Leader int }
		r := l.do(http.MethodGet, via, "/v1/status", nil)
		if err := json.Unmarshal([]byte(r.body), &st); err != nil || st.Leader == 0 {
			return fmt.Errorf("status: %v", r)
		}
		leader = st.Leader
		return nil
	})
	return leader, leader%3 + 1, (leader+1)%3 + 1
}

// within measures how long after from something succeeds, which is tried again and again.
func (l *netLab) within(from time.Time, limit time.Duration, what string, try func() procReply) time.Duration {
	l.t.Helper()
	var took time.Duration
	procEventually(l.t, time.Until(from.Add(max(limit, 40*time.Second))), what, func() error {
		r := try()
		took = time.Since(from)
		if r.err != nil || r.status >= 300 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if took > limit {
		l.t.Errorf("%s: %v after the heal, want at most %v", what, took.Round(time.Millisecond), limit)
	}
	return took
}

var linkRemade = regexp.MustCompile(`(?m)^raftkv_links_remade_total (\d+)`)

// remade returns how often a node has made the connections to a peer anew.
func (l *netLab) remade(id int) int {
	l.t.Helper()
	m := linkRemade.FindStringSubmatch(l.do(http.MethodGet, id, "/metrics", nil).body)
	if m == nil {
		l.t.Fatalf("node %d does not say how often it made links anew", id)
	}
	n, _ := strconv.Atoi(m[1]) // digits
	return n
}

// After a cut, a read on a follower is answered soon, and so is a write that
// needs an election in which the followers need one another.
func testLinkCut(t *testing.T, how linkCut, length time.Duration) {
	t.Parallel()
	l := newNetLab(t, 3, linkFlags...)
	l.start()
	l.put(1, "k", "v")
	leader, a, b := l.leader(1)
	how.cut(l, leader, a, b)
	time.Sleep(length)
	l.heal()
	healed := time.Now()
	time.Sleep(200 * time.Millisecond)
	for _, id := range []int{a, b} {
		took := l.within(healed, linkWorksWithin+linkSlack, fmt.Sprintf("a read on node %d", id),
			func() procReply { return l.do(http.MethodGet, id, "/k", nil) })
		t.Logf("a read on node %d: %v after the heal", id, took.Round(time.Millisecond))
	}
	leader, a, b = l.leader(a) // the cut may have brought another
	began := time.Now()
	l.kill(leader)
	took := l.within(healed, began.Sub(healed)+linkWorksWithin+linkElection+linkSlack, "a write after the leader was killed",
		func() procReply { return l.do(http.MethodPut, b, "/k", []byte("w")) })
	t.Logf("a write on node %d: %v after the leader was killed", b, (took - began.Sub(healed)).Round(time.Millisecond))
	l.wantGet(a, "k", "w")
}

// What is cut for 8 s is silent longer than for 4 by TCP's clock: it sends again
// 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s after the first time.
func TestProcLinkCut(t *testing.T) {
	for _, tt := range []struct {
		how    int
		length time.Duration
	}{{0, 4 * time.Second}, {0, 8 * time.Second}, {5, 4 * time.Second}, {5, 8 * time.Second}} {
		t.Run(fmt.Sprint(linkCuts[tt.how].name, " ", tt.length), func(t *testing.T) { testLinkCut(t, linkCuts[tt.how], tt.length) })
	}
}

// After a cut the streams come back, too: single requests alone would do, but
// for more than half a minute no node would find out that it reads from nobody.
func TestProcLinkStreamsComeBack(t *testing.T) {
	t.Parallel()
	l := newNetLab(t, 3, linkFlags...)
	l.start()
	var st struct {
		Cluster string `json:"cluster_id"`
	}
	if err := json.Unmarshal([]byte(l.do(http.MethodGet, 1, "/v1/status", nil).body), &st); err != nil {
		t.Fatal(err)
	}
	_, a, b := l.leader(1)
	whole := func(from, to int) func() procReply {
		return func() procReply {
			r := procDo(l.client, http.MethodGet, fmt.Sprint(l.peerURL(from), transport.LinkPath, to), nil, peerclient.ClusterHeader, st.Cluster)
			if r.err == nil && r.status == http.StatusOK && strings.TrimSpace(r.body) != `{"missing":0}` {
				r.err = errors.New(r.body)
			}
			return r
		}
	}
	l.within(time.Now(), procReadyWithin, "all streams", whole(a, b))
	l.sever(a, b)
	procEventually(t, 20*time.Second, "the streams have ended", func() error {
		if r := whole(a, b)(); r.err == nil {
			return fmt.Errorf("node %d still writes them: %v", a, r)
		}
		return nil
	})
	l.heal()
	healed := time.Now()
	l.within(healed, linkWorksWithin+linkSlack, "the streams of one follower", whole(a, b))
	l.within(healed, linkWorksWithin+linkSlack, "the streams of the other", whole(b, a))
}

func TestSoakLinkCut(t *testing.T) {
	lengths := testkit.SoakOr([]time.Duration{5 * time.Second}, []time.Duration{4 * time.Second, 30 * time.Second, 120 * time.Second})
	for _, how := range testkit.SoakOr([]linkCut{linkCuts[1], linkCuts[4], linkCuts[7]}, linkCuts) {
		for _, length := range lengths {
			t.Run(fmt.Sprint(how.name, " ", length), func(t *testing.T) { testLinkCut(t, how, length) })
		}
	}
}

// A link on which nothing is sent is not taken for a broken one.
func TestSoakIdleLinks(t *testing.T) {
	t.Parallel()
	l := newNetLab(t, 3, linkFlags...)
	l.start()
	time.Sleep(testkit.SoakOr(8*time.Second, 30*time.Minute))
	for _, id := range l.ids() {
		if n := l.remade(id); n > 0 {
			t.Errorf("node %d made connections anew %d times while all links worked", id, n)
		}
	}
}

// A receiver that takes nothing for a while still gets its snapshot: the links
// have limits, its transfer has transport.StallLimit alone.
func TestSoakSnapshotToStoppedNode(t *testing.T) {
	t.Parallel()
	testkit.NeedTools(t, "tc")
	l := newNetLab(t, 3, append(linkFlags, "--snapshot-count", "10")...)
	l.start()
	leader, behind, other := l.leader(1)
	want := map[string]string{}
	l.lag(behind, leader, want)
	l.blobs(leader, 4, want)
	leader, _, _ = l.leader(other) // still, or again
	l.in(leader, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "160mbit", "burst", "64kb", "latency", "1s")
	l.launch(behind)
	procEventually(t, procReadyWithin, "a snapshot is on its way", func() error {
		names, err := os.ReadDir(filepath.Join(l.nodes[behind].dataDir, "snap"))
		if err != nil {
			return err
		}
		for _, name := range names {
			if procUpload(name.Name()) {
				return nil
			}
		}
		return errors.New("no file is coming in")
	})
	l.pause(behind)
	time.Sleep(testkit.SoakOr(5*time.Second, 20*time.Second))
	if n := l.remade(leader); n != 0 {
		t.Errorf("the leader has made connections anew %d times while it sends a snapshot", n)
	}
	l.resume(behind)
	l.waitReady(behind)
	for key, value := range want {
		l.wantGet(behind, key, value)
	}
	if log := l.nodes[leader].output(); strings.Contains(log, "snapshot not sent") || !strings.Contains(log, "snapshot sent") {
		t.Errorf("the snapshot did not go in one piece:\n%s", procTail(log))
	}
}

// A node that is stopped is not heard. The others make their links to it anew
// once, and it, which has heard nobody, at most each once; then all goes on.
func TestSoakStoppedNode(t *testing.T) {
	t.Parallel()
	l := newNetLab(t, 3, linkFlags...)
	l.start()
	l.put(1, "k", "v")
	_, a, b := l.leader(1)
	for range testkit.SoakOr(1, 100) {
		before := map[int]int{}
		for _, id := range l.ids() {
			before[id] = l.remade(id)
		}
		l.pause(a)
		time.Sleep(5 * time.Second)
		l.resume(a)
		l.within(time.Now(), linkWorksWithin+linkSlack, fmt.Sprintf("a read on node %d", a),
			func() procReply { return l.do(http.MethodGet, a, "/k", nil) })
		for _, id := range l.ids() {
			most := 1
			if id == a {
				most = 2 // on a busy machine its streams do not come back at once
			}
			if n := l.remade(id) - before[id]; n > most {
				t.Errorf("node %d made links anew %d times, want at most %d", id, n, most)
			}
		}
	}
	l.put(b, "k", "w")
}
