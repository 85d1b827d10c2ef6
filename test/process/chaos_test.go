//go:build unix

package process

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"raftkv/internal/history"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

const chaosClients = 8

// chaosRun is the state of one test.
type chaosRun struct {
	t     *testing.T
	c     *procCluster
	start time.Time
	epoch atomic.Int64 // which keys are in use: new ones after each fault keep the histories short enough to be judged
	done  atomic.Bool

	mu      sync.Mutex
	history []porcupine.Operation
	tags    map[string]string // value → the one ETag under which it was ever seen
	values  map[string]string // key and ETag → value: the inverse
	wrong   []string          // answers that are not allowed
	counts  map[string]int
}

func (r *chaosRun) complain(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.wrong) < 20 {
		r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
	}
}

// seen checks that a value and its revision belong together wherever and whenever they are seen.
func (r *chaosRun) seen(key, value, tag string) {
	if tag == "" {
		r.complain("value %s of %s came without an ETag", value, key)
		return
	}
	r.mu.Lock()
	old, known := r.tags[value]
	r.tags[value] = tag
	other, taken := r.values[tag]
	r.values[tag] = value
	r.mu.Unlock()
	if known && old != tag {
		r.complain("value %s of %s has the ETags %s and %s: it was written twice", value, key, old, tag)
	}
	if taken && other != value {
		r.complain("ETag %s belongs to the values %s and %s", tag, other, value)
	}
}

// request sends one request and adds it to the history, unless it is known to have had no effect and seen nothing.
func (r *chaosRun) request(hc *http.Client, client, node int, in history.Input, tag string) procReply {
	method, headers := http.MethodPut, []string(nil)
	switch in.Kind {
	case history.Get:
		method = http.MethodGet
	case history.Create:
		headers = []string{"If-None-Match", "*"}
	case history.Swap:
		headers = []string{"If-Match", tag}
	case history.Delete:
		method = http.MethodDelete
	case history.DeleteOld:
		method, headers = http.MethodDelete, []string{"If-Match", tag}
	}
	call := time.Since(r.start).Nanoseconds()
	reply := procDo(hc, method, r.c.url(node)+"/v1/kv/"+in.Key, []byte(in.Value), headers...)
	end := time.Since(r.start).Nanoseconds()

	var out history.Output
	keep := true
	switch code := reply.code(); {
	case procRefused(reply.err):
		keep = false
	case reply.err != nil || reply.status == 504 && code == "outcome_unknown":
		out.Unknown, end = true, math.MaxInt64
		keep = in.Kind != history.Get
	case reply.status == 503 && slices.Contains([]string{"no_leader", "stopping", "not_ready", "unavailable"}, code),
		reply.status == 429 && code == "overloaded":
		keep = false // it did not happen; if it is seen all the same, the history is not linearizable
	case in.Kind == history.Get && reply.status == 200:
		out.OK, out.Value = true, reply.body
		r.seen(in.Key, reply.body, reply.header.Get("ETag"))
	case in.Kind == history.Get && reply.status == 404:
	case in.Kind != history.Get && (reply.status == 204 || reply.status == 201):
		out.OK = true
		if method == http.MethodPut {
			r.seen(in.Key, in.Value, reply.header.Get("ETag"))
		}
	case in.Kind == history.Delete && reply.status == 404:
	case (in.Kind == history.Create || in.Kind == history.Swap || in.Kind == history.DeleteOld) && reply.status == 412:
	case in.Kind == history.DeleteOld && reply.status == 404: // missing: the condition fails, told as 404
	default:
		r.complain("%s %s at node %d: %v", method, in.Key, node, reply)
		keep = false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if keep {
		r.history = append(r.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	}
	kind := "write"
	if in.Kind == history.Get {
		kind = "read"
	}
	switch {
	case out.Unknown:
		r.counts[kind+" unknown"]++
	case !keep:
		r.counts[kind+" refused"]++
	default:
		r.counts[kind+" answered"]++
	}
	return reply
}

// client sends random requests until the run is done.
func (r *chaosRun) client(id int, rng *rand.Rand) {
	hc := r.c.newClient(4 * time.Second)
	defer hc.CloseIdleConnections()
	type sight struct{ value, tag string }
	last := map[string]sight{} // what it saw last of each key
	for n := 0; !r.done.Load(); n++ {
		epoch := r.epoch.Load()
		if epoch > 0 && rng.IntN(8) == 0 {
			epoch = rng.Int64N(epoch) // nothing of the past may change by itself
		}
		in := history.Input{Key: fmt.Sprintf("chaos-%d-%d", epoch, rng.IntN(3)), Value: fmt.Sprintf("c%d-%d", id, n)}
		node := rng.IntN(3) + 1
		var tag string
		switch p := rng.IntN(100); {
		case p < 45:
			in.Kind, in.Value = history.Get, ""
		case p < 70:
			in.Kind = history.Put
		case p < 78:
			in.Kind = history.Create
		case p < 90 && last[in.Key].tag != "":
			in.Kind, in.Expect, tag = history.Swap, last[in.Key].value, last[in.Key].tag
		case p < 95 && last[in.Key].tag != "":
			in.Kind, in.Value, in.Expect, tag = history.DeleteOld, "", last[in.Key].value, last[in.Key].tag
		default:
			in.Kind, in.Value = history.Delete, ""
		}
		reply := r.request(hc, id, node, in, tag)
		if in.Kind == history.Get && reply.status == 200 {
			last[in.Key] = sight{reply.body, reply.header.Get("ETag")}
		}
		time.Sleep(time.Duration(rng.IntN(4000)) * time.Microsecond) // the pace that keeps the history small enough
	}
}

// faults makes trouble until the time is over and leaves every node running.
func (r *chaosRun) faults(rng *rand.Rand, total time.Duration, all bool) {
	every := min(3*time.Second, total/4)
	for end := time.Now().Add(total); time.Now().Before(end); r.epoch.Add(1) {
		time.Sleep(every / 3) // quiet: not a wait for something, but the rhythm of the faults
		node := rng.IntN(3) + 1
		if rng.IntN(2) == 0 {
			for _, i := range r.c.ids() {
				if s := r.c.status(i); s.Leader == i {
					node = i
				}
			}
		}
		length := time.Duration(rng.Int64N(int64(every * 2 / 3)))
		switch kind := rng.IntN(5); {
		case all:
			r.t.Logf("%6v: SIGKILL to all", time.Since(r.start).Round(time.Millisecond))
			r.c.kill(1, 2, 3)
			for _, i := range rng.Perm(3) {
				r.c.launch(i + 1)
			}
			time.Sleep(length)
		case kind < 2:
			r.t.Logf("%6v: SIGKILL to node %d for %v", time.Since(r.start).Round(time.Millisecond), node, length)
			r.c.kill(node)
			time.Sleep(length)
			r.c.launch(node)
		case kind < 4:
			r.t.Logf("%6v: SIGSTOP to node %d for %v", time.Since(r.start).Round(time.Millisecond), node, length)
			r.c.pause(node)
			time.Sleep(length)
			r.c.resume(node)
		default: // one killed, another paused: no quorum for a while
			other := node%3 + 1
			r.t.Logf("%6v: SIGKILL to node %d, SIGSTOP to node %d for %v", time.Since(r.start).Round(time.Millisecond), node, other, length)
			r.c.kill(node)
			r.c.pause(other)
			time.Sleep(length)
			r.c.launch(node)
			r.c.resume(other)
		}
	}
}

// judge heals the cluster, compares the nodes and has the history checked.
func (r *chaosRun) judge() {
	t, c := r.t, r.c
	c.waitReady(1, 2, 3)
	hc := c.newClient(10 * time.Second)
	keys := map[string]bool{}
	for _, op := range r.history {
		keys[op.Input.(history.Input).Key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		var first procReply
		for i := 1; i <= 3; i++ {
			reply := r.request(hc, chaosClients, i, history.Input{Kind: history.Get, Key: key}, "")
			if reply.err != nil || reply.status != 200 && reply.status != 404 {
				t.Errorf("after healing: GET %s at node %d: %v", key, i, reply)
			}
			if i == 1 {
				first = reply
			} else if reply.status != first.status || reply.body != first.body && reply.status == 200 ||
				reply.header.Get("ETag") != first.header.Get("ETag") {
				t.Errorf("the nodes differ: %s is %v at node 1, %v at node %d", key, first, reply, i)
			}
		}
	}
	for _, wrong := range r.wrong {
		t.Error(wrong)
	}
	t.Logf("%d operations on %d keys: %v", len(r.history), len(keys), r.counts)
	if r.counts["write answered"] < 50 || r.counts["read answered"] < 50 {
		t.Errorf("too little was answered to tell anything: %v", r.counts)
	}
	switch porcupine.CheckOperationsTimeout(history.Model, r.history, time.Minute) {
	case porcupine.Unknown:
		t.Errorf("the history of %d operations was too much to be judged within a minute", len(r.history))
	case porcupine.Illegal:
		t.Error("the history is not linearizable")
	}
	if !t.Failed() {
		return
	}
	dir, err := os.MkdirTemp("", "raftkv-chaos-") // kept
	if err != nil {
		t.Fatal(err)
	}
	_, info := porcupine.CheckOperationsVerbose(history.Model, r.history, 20*time.Second)
	if err := porcupine.VisualizePath(history.Model, info, filepath.Join(dir, "history.html")); err != nil {
		t.Error(err)
	}
	for _, n := range c.nodes {
		if log, err := os.ReadFile(n.logPath); err == nil {
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(n.logPath)), log, 0o644)
		}
	}
	t.Logf("history and logs are kept in %s", dir)
}

func runChaos(t *testing.T, killAll bool) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	total := testkit.SoakOr(8*time.Second, 10*time.Minute)
	if s := os.Getenv("RAFTKV_CHAOS_SECONDS"); s != "" {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || n < 0 {
			t.Fatalf("RAFTKV_CHAOS_SECONDS=%s is no number of seconds", s)
		}
		total = time.Duration(n * float64(time.Second))
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("RAFTKV_CHAOS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("RAFTKV_CHAOS_SEED=%s: %v", s, err)
		}
		seed = n
	}
	t.Logf("RAFTKV_CHAOS_SEED=%d RAFTKV_CHAOS_SECONDS=%v", seed, total.Seconds())
	// A short clock makes more elections in the same time; few commands between snapshots make those part of it.
	c := newProcCluster(t, 3, "--heartbeat-interval", "50ms", "--election-timeout", "500ms", "--request-timeout", "2s", "--snapshot-count", "200")
	c.start()
	r := &chaosRun{t: t, c: c, start: time.Now(), tags: map[string]string{}, values: map[string]string{}, counts: map[string]int{}}
	var wg sync.WaitGroup
	for id := range chaosClients {
		wg.Go(func() { r.client(id, rand.New(rand.NewPCG(seed, uint64(id+1)))) })
	}
	r.faults(rand.New(rand.NewPCG(seed, 0)), total, killAll)
	c.waitReady(1, 2, 3) // a last stretch without faults
	r.done.Store(true)
	wg.Wait()
	r.judge()
}

// Guarantee: reads and writes, conditional ones too, are linearizable under SIGKILL and SIGSTOP of random nodes.
func TestChaosOneNodeAtATime(t *testing.T) { runChaos(t, false) }

// Guarantee: the same when all three are killed at once and started again.
func TestChaosAllNodesAtOnce(t *testing.T) { runChaos(t, true) }
