//go:build unix

package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// procLoad is a crowd of writers. Each key is written once, so what was acknowledged can be looked up afterwards.
type procLoad struct {
	c    *procCluster
	stop atomic.Bool
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]string
	errs    []string
	slowest time.Duration
}

// startLoad starts workers that each write to one of the nodes, in turn.
func (c *procCluster) startLoad(workers int, nodes ...int) *procLoad {
	l := &procLoad{c: c, acked: map[string]string{}}
	for w := range workers {
		l.wg.Go(func() {
			for n := 0; !l.stop.Load(); n++ {
				l.put(nodes[w%len(nodes)], fmt.Sprintf("load-%d-%d", w, n), fmt.Sprintf("value %d of %d", n, w))
			}
		})
	}
	return l
}

func (l *procLoad) put(i int, key, value string) {
	start := time.Now()
	r := l.c.do(http.MethodPut, i, "/"+key, []byte(value))
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, took)
	if r.status == http.StatusNoContent {
		l.acked[key] = value
	} else if len(l.errs) < 1000 {
		l.errs = append(l.errs, fmt.Sprintf("%s PUT /%s at node %d after %v: %v", time.Now().Format("15:04:05.000"), key, i, took, r))
	}
}

func (l *procLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// waitMore waits until n more writes were acknowledged.
func (l *procLoad) waitMore(n int) {
	l.c.t.Helper()
	want := l.count() + n
	procEventually(l.c.t, 60*time.Second, fmt.Sprint(n, " more writes"), func() error {
		if got := l.count(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

func (l *procLoad) finish() {
	l.stop.Store(true)
	l.wg.Wait()
}

// wantAll checks that the nodes have all of what was acknowledged. A linearizable read first: from then on the node's
// own copy has to have it, and is what is looked at.
func (c *procCluster) wantAll(want map[string]string, nodes ...int) {
	c.t.Helper()
	for _, i := range nodes {
		procEventually(c.t, procReadyWithin, fmt.Sprintf("node %d reads", i), func() error {
			if r := c.do(http.MethodGet, i, "/no-such-key", nil); r.status != http.StatusNotFound {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		got := c.stale(i, want)
		missing, example := 0, ""
		for key, value := range want {
			if got[key] != value {
				missing++
				example = fmt.Sprintf("%s: %q, want %q", key, got[key], value)
			}
		}
		if missing > 0 {
			c.t.Errorf("node %d: %d of %d acknowledged writes are not there, for example %s", i, missing, len(want), example)
		}
	}
}

// stale returns what node i itself holds under the prefix that keys have in common, by lists: a request for each key is
// most of the time of a test with thousands of them.
func (c *procCluster) stale(i int, keys map[string]string) map[string]string {
	c.t.Helper()
	names := slices.Sorted(maps.Keys(keys))
	if len(names) == 0 {
		return nil
	}
	prefix := names[0]
	for !strings.HasPrefix(names[len(names)-1], prefix) { // of the first and the last, so of all
		prefix = prefix[:len(prefix)-1]
	}
	got := make(map[string]string)
	var page struct {
		Items []struct{ Key, Value string }
		Next  string
	}
	for after := ""; ; after = page.Next {
		q := url.Values{"prefix": {prefix}, "limit": {"1000"}, "consistency": {"stale"}}
		if after != "" {
			q.Set("start_after", after)
		}
		r := c.do(http.MethodGet, i, "/v1/kv?"+q.Encode(), nil)
		page.Items, page.Next = nil, ""
		if err := json.Unmarshal([]byte(r.body), &page); err != nil || r.status != http.StatusOK {
			c.t.Fatalf("a list of %q at node %d: %v (%v)", prefix, i, r, err)
		}
		for _, it := range page.Items {
			got[it.Key] = it.Value
		}
		if page.Next == "" {
			return got
		}
	}
}

// Guarantee: of 16,000 acknowledged writes, sent through a follower as fast as it takes them, each one is there on
// every node (A1, A5; raftexample lost 21 to 45 % of them).
func TestProc16000WritesThroughAFollower(t *testing.T) {
	t.Parallel()
	c := newProcCluster(t, 3)
	c.start()
	follower := c.follower()
	l := &procLoad{c: c, acked: map[string]string{}}
	start := time.Now()
	for w := range 64 {
		l.wg.Go(func() {
			for n := range 250 {
				l.put(follower, fmt.Sprintf("load-%d-%d", w, n), fmt.Sprintf("value %d of %d", n, w))
			}
		})
	}
	l.wg.Wait()
	t.Logf("16,000 writes in %v, the slowest took %v", time.Since(start), l.slowest)
	if len(l.acked) != 16000 {
		t.Errorf("%d writes were not acknowledged, for example %s", len(l.errs), l.errs[0])
	}
	c.wantAll(l.acked, 1, 2, 3)
}

// Guarantee: killing the leader shows as latency, not as errors, to requests sent to the other nodes,
// and loses nothing that was acknowledged.
func TestProcLeaderKilledUnderLoad(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	for range 2 {
		leader := c.leader()
		a, b := leader%3+1, (leader+1)%3+1
		l := c.startLoad(16, a, b)
		l.waitMore(200)
		c.kill(leader)
		l.waitMore(200)
		l.finish()
		t.Logf("%d writes, the slowest took %v", len(l.acked), l.slowest)
		for n, err := range l.errs {
			if n < 5 {
				t.Errorf("an error after the leader (node %d) was killed: %s", leader, err)
			}
		}
		c.start(leader)
		c.wantAll(l.acked, 1, 2, 3)
	}
}

// Guarantee: a graceful stop of the leader under load loses nothing and takes less than ten seconds; the others'
// clients see no error.
func TestProcSIGTERMUnderLoad(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	leader := c.leader()
	own := c.startLoad(8, leader)
	others := c.startLoad(8, leader%3+1, (leader+1)%3+1)
	own.waitMore(100)
	others.waitMore(100)
	start := time.Now()
	c.stop(leader)
	t.Logf("node %d stopped in %v", leader, time.Since(start))
	own.finish()
	others.waitMore(100)
	others.finish()
	if len(others.errs) > 0 {
		t.Errorf("%d errors at the other nodes, the first %s", len(others.errs), others.errs[0])
	}
	c.start(leader)
	c.wantAll(own.acked, 1, 2, 3)
	c.wantAll(others.acked, 1, 2, 3)
	// All at once: nobody is left to hand over to, and it ends all the same.
	l := c.startLoad(8, 1, 2, 3)
	l.waitMore(100)
	for i := 1; i <= 3; i++ {
		c.nodes[i].ending = true
		c.signal(i, syscall.SIGTERM)
	}
	for i := 1; i <= 3; i++ {
		c.waitExit(i, 0, procStopWithin)
	}
	l.finish()
	c.start()
	c.wantAll(l.acked, 1, 2, 3)
	c.wantAll(own.acked, 1, 2, 3)
}

// Guarantee: a client that is at work when a node stops hears so, on the connection that it has. Its next request has to
// come within a tenth of a second, which a busy machine may not grant this test each time; without the guarantee it
// never passes.
func TestProcStopTellsClients(t *testing.T) {
	c := newProcCluster(t, 1)
	for range 5 {
		c.start(1)
		conn := testkit.DialKept(t, fmt.Sprintf("127.0.0.1:%d", c.nodes[1].clientPort))
		conn.Want(t, http.StatusNotFound, false)
		c.nodes[1].ending = true
		c.signal(1, syscall.SIGTERM)
		procEventually(t, procStopWithin, "it stops", func() error {
			if out := c.nodes[1].output(); !strings.Contains(out, "stopping") {
				return errors.New(procTail(out))
			}
			return nil
		})
		time.Sleep(20 * time.Millisecond) // what a client does between requests; by now a stop that tells nobody is over
		status, last, err := conn.Get()
		c.waitExit(1, 0, procStopWithin)
		if err == nil {
			if status != http.StatusServiceUnavailable || !last {
				t.Errorf("got %d, last %t", status, last)
			}
			return
		}
		t.Log(err)
	}
	t.Error("no client was told")
}

// Guarantee: a second signal ends a node that is still waiting for a slow request.
func TestProcSecondSignal(t *testing.T) {
	c := newProcCluster(t, 1)
	c.start(1)
	conn := testkit.DialKept(t, fmt.Sprintf("127.0.0.1:%d", c.nodes[1].clientPort))
	conn.Want(t, http.StatusNotFound, false)
	if _, err := fmt.Fprint(conn, "PUT /k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n1"); err != nil {
		t.Fatal(err)
	}
	c.nodes[1].ending = true
	c.signal(1, syscall.SIGTERM)
	procEventually(t, procStopWithin, "it stops", func() error {
		if out := c.nodes[1].output(); !strings.Contains(out, "stopping") {
			return errors.New(procTail(out))
		}
		return nil
	})
	if !c.nodes[1].running() {
		t.Fatal("it did not wait for the request")
	}
	c.signal(1, syscall.SIGTERM)
	c.waitExit(1, -1, procStopWithin/2) // the request alone would hold it for longer
}

// Guarantee: what was acknowledged is on a majority's disks: killing all three at once loses none of it.
func TestProcAllKilledAtOnce(t *testing.T) {
	c := newProcCluster(t, 3, "--snapshot-count", "500")
	c.start()
	all := map[string]string{}
	for round := range 3 {
		l := &procLoad{c: c, acked: map[string]string{}}
		for w := range 24 {
			l.wg.Go(func() {
				for n := 0; !l.stop.Load(); n++ {
					l.put(w%3+1, fmt.Sprintf("round-%d-%d-%d", round, w, n), fmt.Sprint(n))
				}
			})
		}
		l.waitMore(800)
		c.kill(1, 2, 3)
		l.finish()
		maps.Copy(all, l.acked)
		c.start()
	}
	c.wantAll(all, 1, 2, 3)
}

// Guarantee: without a quorum nothing hangs and nothing is made up: a write ends in 503 (it did not happen) or 504 (it
// may have), within the time given.
func TestProcNoQuorum(t *testing.T) {
	t.Parallel() // it mostly waits for time-outs
	const timeout = 2 * time.Second
	c := newProcCluster(t, 3, "--request-timeout", timeout.String())
	c.start()
	c.put(1, "k", "1")
	left := c.leader()
	a, b := left%3+1, (left+1)%3+1
	c.wantGet(left, "k", "1")
	c.kill(a, b)
	type write struct {
		key string
		r   procReply
	}
	answers := make(chan write)
	try := func(n int) {
		for w := range n {
			go func() {
				key := fmt.Sprintf("lost-%d-%d", n, w)
				start := time.Now()
				r := c.do(http.MethodPut, left, "/"+key, []byte(key))
				if took := time.Since(start); took > timeout+2*time.Second {
					t.Errorf("PUT without quorum took %v, --request-timeout is %v", took, timeout)
				}
				answers <- write{key, r}
			}()
		}
	}
	try(8) // while it may still think that it leads
	var refused, unknown int
	var not []string
	collect := func(n int) {
		for range n {
			w := <-answers
			switch w.r.status {
			case 503:
				refused++
				not = append(not, w.key)
				procWantProblem(t, "PUT without quorum", w.r, 503, "no_leader")
				if w.r.header.Get("Retry-After") == "" {
					t.Error("503 without Retry-After")
				}
			case 504:
				unknown++
				procWantProblem(t, "PUT without quorum", w.r, 504, "outcome_unknown")
			default:
				t.Errorf("PUT without quorum: %v, want 503 or 504", w.r)
			}
		}
	}
	collect(8)
	procEventually(t, 10*time.Second, "the rest of the cluster has no leader", func() error {
		if s := c.status(left); s.ID != left || s.Leader != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if c.ready(left) {
		t.Error("ready without a leader")
	}
	try(4) // and when it knows
	collect(4)
	t.Logf("%d times 503, %d times 504", refused, unknown)
	for _, path := range []string{"/k", "/no-such-key"} {
		start := time.Now()
		r := c.do(http.MethodGet, left, path, nil)
		if r.status != 503 || time.Since(start) > timeout+2*time.Second {
			t.Errorf("GET %s without quorum: %v after %v, want 503", path, r, time.Since(start))
		}
	}
	r := c.do(http.MethodGet, left, "/k?consistency=stale", nil)
	if r.status != 200 || r.body != "1" || r.header.Get("Raftkv-Consistency") != "stale" ||
		r.header.Get("Raftkv-Revision") == "" || r.header.Get("Raftkv-Leader-Contact") == "" {
		t.Errorf("stale GET without quorum: %v, %v", r, r.header)
	}
	for _, m := range []string{"POST", "DELETE"} {
		start := time.Now()
		r := c.do(m, left, fmt.Sprintf("/%d", a), []byte(procURL(c.nodes[a].peerPort)))
		if r.status == 200 || m == "DELETE" && r.status == 204 || time.Since(start) > timeout+2*time.Second {
			t.Errorf("%s of a member without quorum: %v after %v", m, r, time.Since(start))
		}
	}
	c.stop(left) // I3
	c.start()
	c.wantGet(left, "k", "1")
	for _, key := range not {
		if r := c.do(http.MethodGet, a, "/"+key, nil); r.status != 404 {
			t.Errorf("%s was refused with 503, and is there: %v", key, r)
		}
	}
	c.waitVoters(left, 1, 2, 3)
}

// Guarantee: a client that hangs up leaves nothing behind, also without a quorum: at once if it resets the connection,
// after --request-timeout if it only ends it, which a client does too that waits for its answer.
func TestProcClientsThatHangUp(t *testing.T) {
	t.Parallel() // it mostly waits for time-outs
	const timeout = 12 * time.Second
	c := newProcCluster(t, 3, "--request-timeout", timeout.String())
	c.start()
	left := c.leader()
	c.kill(left%3+1, (left+1)%3+1)
	procEventually(t, 10*time.Second, "no leader", func() error {
		if s := c.status(left); s.ID != left || s.Leader != 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	goroutines := func() int {
		var n int
		for line := range strings.Lines(c.do(http.MethodGet, left, "/metrics", nil).body) {
			_, _ = fmt.Sscanf(line, "go_goroutines %d", &n)
		}
		return n
	}
	before := goroutines()
	ends, resets := procClient(500*time.Millisecond), procClient(500*time.Millisecond)
	resets.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return conn, conn.(*net.TCPConn).SetLinger(0)
	}
	for _, tt := range []struct {
		impatient *http.Client
		within    time.Duration
	}{{resets, timeout / 2}, {ends, timeout + 10*time.Second}} {
		var wg sync.WaitGroup
		for n := range 300 {
			wg.Go(func() {
				method := []string{http.MethodPut, http.MethodGet, http.MethodPost}[n%3]
				var body []byte // net/http notices a hang-up only once it has read the body
				if method != http.MethodGet {
					body = fmt.Appendf(nil, "http://127.0.0.1:%d", 10000+n)
				}
				r := procDo(tt.impatient, method, fmt.Sprintf("%s/%d", c.url(left), n+10), body)
				if r.err == nil && r.status != 503 && r.status != 429 {
					t.Errorf("%s without quorum: %v", method, r)
				}
			})
		}
		wg.Wait()
		tt.impatient.CloseIdleConnections()
		procEventually(t, tt.within, "the waiting is over", func() error {
			if now := goroutines(); before == 0 || now > before+50 {
				return fmt.Errorf("%d goroutines, there were %d", now, before)
			}
			return nil
		})
	}
}

// Guarantee: who ends its side of the connection behind its requests, as nc -N does, gets every answer, on the leader and
// on followers.
func TestProcHalfClosed(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	for n := range 5 {
		for i := 1; i <= 3; i++ {
			value := fmt.Sprint("value ", n, i)
			put := fmt.Sprintf("PUT /k HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(value), value)
			get := "GET /k HTTP/1.1\r\nHost: localhost\r\n\r\n"
			for _, requests := range []string{put, get, put + get, get + put + get, "GET /v1/members HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
				conn, err := net.Dial("tcp", strings.TrimPrefix(c.url(i), "http://"))
				testkit.Must(t, err)
				testkit.Must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
				_, err = io.WriteString(conn, requests)
				testkit.Must(t, err)
				testkit.Must(t, conn.(*net.TCPConn).CloseWrite())
				answer, err := io.ReadAll(conn)
				good := strings.Count(string(answer), "HTTP/1.1 20")
				if want := strings.Count(requests, "HTTP/1.1"); err != nil || good != want {
					t.Fatalf("node %d answers %q\nwith %q, %v; want %d times 2xx", i, requests, answer, err, want)
				}
				testkit.Must(t, conn.Close())
			}
			c.wantGet(i, "k", value)
		}
	}
}

// Guarantee: a leader that was away and does not know yet that another was elected answers no read from the past:
// the new value or 503.
func TestProcPausedLeaderIsNeverStale(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	for round := range 3 {
		old := c.leader()
		other := old%3 + 1
		c.put(old, "k", fmt.Sprint("old ", round))
		c.wantGet(old, "k", fmt.Sprint("old ", round))
		c.pause(old)
		want := fmt.Sprint("new ", round)
		c.put(other, "k", want) // waits for the election by itself
		// Some readers wait in the sleeper's socket, others come when it wakes.
		replies := make(chan procReply)
		read := func(n int) {
			for range n {
				go func() { replies <- c.do(http.MethodGet, old, "/k", nil) }()
			}
		}
		read(16)
		c.resume(old)
		read(16)
		for range 32 {
			r := <-replies
			if r.status == 200 && r.body == want {
				continue
			}
			if r.status != 503 {
				t.Errorf("round %d: read at the old leader: %v, want %q or 503", round, r, want)
			}
		}
		c.waitReady(old)
		c.wantGet(old, "k", want)
	}
}

// Guarantee: a node that just took in a snapshot has it on disk: kill -9 right then, and it starts again.
func TestProcKilledAfterTakingASnapshot(t *testing.T) {
	c := newProcCluster(t, 3, "--snapshot-count", "20")
	c.start()
	all := map[string]string{}
	for round := range 3 {
		away := c.follower()
		via := c.leader()
		c.kill(away)
		applied := c.status(via).AppliedIndex
		for n := range 400 {
			key := fmt.Sprintf("k-%d", n)
			all[key] = fmt.Sprintf("%d in round %d", n, round)
			c.put(via, key, all[key])
		}
		procEventually(t, 20*time.Second, "the log is behind a snapshot", func() error {
			if s := c.status(via); s.SnapshotIndex <= applied {
				return fmt.Errorf("snapshot_index %d, want more than %d", s.SnapshotIndex, applied)
			}
			return nil
		})
		c.launch(away)
		procEventually(t, procReadyWithin, "the node has caught up", func() error {
			if s := c.status(away); s.AppliedIndex < applied+300 {
				return fmt.Errorf("applied_index %d", s.AppliedIndex)
			}
			return nil
		})
		c.kill(away)
		c.start(away)
		c.wantAll(all, away)
	}
	// What is no longer needed is removed.
	for i := 1; i <= 3; i++ {
		for _, dir := range []string{"snap", "wal"} {
			if files, _ := os.ReadDir(filepath.Join(c.nodes[i].dataDir, dir)); len(files) > 20 {
				t.Errorf("node %d: %d files in %s/", i, len(files), dir)
			}
		}
	}
}

// Guarantee: two clusters whose ports got mixed up stay two: nodes of another cluster are refused on the wire.
func TestProcTwoClustersDoNotMerge(t *testing.T) {
	a, b := newProcCluster(t, 3), newProcCluster(t, 3)
	// The first two nodes of b have a typing error in their list: the peer port of a's third node instead of their own.
	urls := strings.Split(b.list, ",")
	wrong := strings.Join([]string{urls[0], urls[1], procURL(a.nodes[3].peerPort)}, ",")
	for i := 1; i <= 2; i++ {
		b.nodes[i].args = b.args(b.nodes[i], wrong)
	}
	delete(b.nodes, 3)
	b.start(1, 2) // before there is an a that would tell them
	a.start()
	term := a.status(1).Term
	check := func() {
		t.Helper()
		for n := range 50 {
			b.put(n%2+1, "whose", "b")
			b.put(n%2+1, fmt.Sprint("only-b-", n), "b")
			a.put(n%3+1, "whose", "a")
			a.put(n%3+1, fmt.Sprint("only-a-", n), "a")
		}
		for i := 1; i <= 3; i++ {
			a.wantGet(i, "whose", "a")
			if r := a.do("GET", i, "/only-b-7", nil); r.status != 404 {
				t.Errorf("cluster a has a key of b: %v", r)
			}
		}
		for i := 1; i <= 2; i++ {
			b.wantGet(i, "whose", "b")
			if r := b.do("GET", i, "/only-a-7", nil); r.status != 404 {
				t.Errorf("cluster b has a key of a: %v", r)
			}
		}
		if now := a.status(1).Term; now != term {
			t.Errorf("cluster a was disturbed: term %d, was %d", now, term)
		}
	}
	check()
	b.kill(1, 2) // and again, from a directory
	b.start(1, 2)
	check()
	// A first start beside a running stranger is refused, rather than left to wait for what never comes.
	c := newProcCluster(t, 1)
	c.nodes[1].args = c.args(c.nodes[1], c.list+","+procURL(a.nodes[3].peerPort))
	c.launch(1)
	if out := c.waitExit(1, 1, 20*time.Second); !strings.Contains(out, "another cluster") {
		t.Errorf("the message does not speak of another cluster:\n%s", procTail(out))
	}
}

// Guarantee: what a stranger throws at the peer port ends nobody.
func TestProcRubbishAtThePeerPort(t *testing.T) {
	c := newProcCluster(t, 3)
	c.start()
	rubbish := []byte(strings.Repeat("\xff\x00\x08\x01", 4096))
	for i := 1; i <= 3; i++ {
		for _, path := range []string{"/raft", "/raft/snapshot", "/raft/stream/message/1", "/raft/probing", "/", "/raft/../x"} {
			for _, m := range []string{"POST", "GET", "PUT"} {
				r := procDo(c.client, m, procURL(c.nodes[i].peerPort)+path, rubbish, "X-Etcd-Cluster-ID", "1000", "X-Raft-To", fmt.Sprint(i))
				if m == "POST" && r.err == nil && r.status < 400 && path != "/raft/probing" {
					t.Errorf("%s %s: %v, want a refusal", m, path, r)
				}
			}
		}
	}
	c.put(2, "k", "1")
	c.wantGet(3, "k", "1")
}
