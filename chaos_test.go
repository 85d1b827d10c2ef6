//go:build unix

package main

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
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

type chaosKind int

const (
	chaosGet       chaosKind = iota
	chaosPut                 // always
	chaosCreate              // If-None-Match: *
	chaosSwap                // If-Match: the ETag under which the client saw the value expect
	chaosDelete              // always; 404 says that there was nothing
	chaosDeleteOld           // If-Match
)

// Each value is written at most once in a run, so a condition on a mod_revision is one on the value seen with it.
type chaosInput struct {
	kind   chaosKind
	key    string
	value  string // what it writes
	expect string // what the condition asks for
}

type chaosOutput struct {
	unknown bool   // it may have happened, at any time after the call, or never
	ok      bool   // 2xx; else 404 or 412, which are observations too
	value   string // what a read saw, "" for 404
}

// chaosModel is a register for each key; the state is its value, "" when it is missing.
var chaosModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(chaosInput).key
			byKey[key] = append(byKey[key], op)
		}
		return slices.Collect(maps.Values(byKey))
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out, now := input.(chaosInput), output.(chaosOutput), state.(string)
		var met bool // is its condition met
		next := now  // the state if so
		switch in.kind {
		case chaosGet:
			return out.value == now, now
		case chaosPut:
			met, next = true, in.value
		case chaosCreate:
			met, next = now == "", in.value
		case chaosSwap:
			met, next = now == in.expect, in.value
		case chaosDelete:
			met, next = now != "", ""
		case chaosDeleteOld:
			met, next = now == in.expect, ""
		}
		if !met {
			next = now
		}
		return out.unknown || out.ok == met, next
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(chaosInput), output.(chaosOutput)
		what := [...]string{"get", "put", "create", "swap", "delete", "deleteOld"}[in.kind]
		if in.kind == chaosGet {
			return fmt.Sprintf("get → %q", out.value)
		}
		result := map[bool]string{true: "ok", false: "no"}[out.ok]
		if out.unknown {
			result = "?"
		}
		return fmt.Sprintf("%s(%s→%s) %s", what, in.expect, in.value, result)
	},
}

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
func (r *chaosRun) request(hc *http.Client, client, node int, in chaosInput, tag string) procReply {
	method, headers := http.MethodPut, []string(nil)
	switch in.kind {
	case chaosGet:
		method = http.MethodGet
	case chaosCreate:
		headers = []string{"If-None-Match", "*"}
	case chaosSwap:
		headers = []string{"If-Match", tag}
	case chaosDelete:
		method = http.MethodDelete
	case chaosDeleteOld:
		method, headers = http.MethodDelete, []string{"If-Match", tag}
	}
	call := time.Since(r.start).Nanoseconds()
	reply := procDo(hc, method, r.c.url(node)+"/v1/kv/"+in.key, []byte(in.value), headers...)
	end := time.Since(r.start).Nanoseconds()

	var out chaosOutput
	keep := true
	switch code := reply.code(); {
	case procRefused(reply.err):
		keep = false
	case reply.err != nil || reply.status == 504 && code == "outcome_unknown":
		out.unknown, end = true, math.MaxInt64
		keep = in.kind != chaosGet
	case reply.status == 503 && slices.Contains([]string{"no_leader", "stopping", "not_ready", "unavailable"}, code),
		reply.status == 429 && code == "overloaded":
		keep = false // it did not happen; if it is seen all the same, the history is not linearizable
	case in.kind == chaosGet && reply.status == 200:
		out.ok, out.value = true, reply.body
		r.seen(in.key, reply.body, reply.header.Get("ETag"))
	case in.kind == chaosGet && reply.status == 404:
	case in.kind != chaosGet && reply.status == 204:
		out.ok = true
		if method == http.MethodPut {
			r.seen(in.key, in.value, reply.header.Get("ETag"))
		}
	case in.kind == chaosDelete && reply.status == 404:
	case (in.kind == chaosCreate || in.kind == chaosSwap || in.kind == chaosDeleteOld) && reply.status == 412:
	case in.kind == chaosDeleteOld && reply.status == 404: // missing: the condition fails, told as 404
	default:
		r.complain("%s %s at node %d: %v", method, in.key, node, reply)
		keep = false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if keep {
		r.history = append(r.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	}
	kind := "write"
	if in.kind == chaosGet {
		kind = "read"
	}
	switch {
	case out.unknown:
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
	hc := procClient(4 * time.Second)
	defer hc.CloseIdleConnections()
	type sight struct{ value, tag string }
	last := map[string]sight{} // what it saw last of each key
	for n := 0; !r.done.Load(); n++ {
		epoch := r.epoch.Load()
		if epoch > 0 && rng.IntN(8) == 0 {
			epoch = rng.Int64N(epoch) // nothing of the past may change by itself
		}
		in := chaosInput{key: fmt.Sprintf("chaos-%d-%d", epoch, rng.IntN(3)), value: fmt.Sprintf("c%d-%d", id, n)}
		node := rng.IntN(3) + 1
		var tag string
		switch p := rng.IntN(100); {
		case p < 45:
			in.kind, in.value = chaosGet, ""
		case p < 70:
			in.kind = chaosPut
		case p < 78:
			in.kind = chaosCreate
		case p < 90 && last[in.key].tag != "":
			in.kind, in.expect, tag = chaosSwap, last[in.key].value, last[in.key].tag
		case p < 95 && last[in.key].tag != "":
			in.kind, in.value, in.expect, tag = chaosDeleteOld, "", last[in.key].value, last[in.key].tag
		default:
			in.kind, in.value = chaosDelete, ""
		}
		reply := r.request(hc, id, node, in, tag)
		if in.kind == chaosGet && reply.status == 200 {
			last[in.key] = sight{reply.body, reply.header.Get("ETag")}
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
	hc := procClient(10 * time.Second)
	keys := map[string]bool{}
	for _, op := range r.history {
		keys[op.Input.(chaosInput).key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		var first procReply
		for i := 1; i <= 3; i++ {
			reply := r.request(hc, chaosClients, i, chaosInput{kind: chaosGet, key: key}, "")
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
	switch porcupine.CheckOperationsTimeout(chaosModel, r.history, time.Minute) {
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
	_, info := porcupine.CheckOperationsVerbose(chaosModel, r.history, 20*time.Second)
	if err := porcupine.VisualizePath(chaosModel, info, filepath.Join(dir, "history.html")); err != nil {
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

// The judge has to notice what it is there for.
func TestChaosModel(t *testing.T) {
	op := func(in chaosInput, out chaosOutput, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	put := func(v string, call, end int64) porcupine.Operation {
		return op(chaosInput{kind: chaosPut, value: v}, chaosOutput{ok: true}, call, end)
	}
	get := func(v string, call, end int64) porcupine.Operation {
		return op(chaosInput{kind: chaosGet}, chaosOutput{ok: v != "", value: v}, call, end)
	}
	unknown := op(chaosInput{kind: chaosPut, value: "u"}, chaosOutput{unknown: true}, 3, math.MaxInt64)
	swap := func(from, to string, ok bool, call, end int64) porcupine.Operation {
		return op(chaosInput{kind: chaosSwap, value: to, expect: from}, chaosOutput{ok: ok}, call, end)
	}
	del := op(chaosInput{kind: chaosDelete}, chaosOutput{ok: true}, 3, 4)
	for name, test := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"read what was written":       {[]porcupine.Operation{put("a", 1, 2), get("a", 3, 4)}, true},
		"stale read":                  {[]porcupine.Operation{put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)}, false},
		"lost write":                  {[]porcupine.Operation{put("a", 1, 2), get("", 3, 4)}, false},
		"unknown write happened":      {[]porcupine.Operation{put("a", 1, 2), unknown, get("u", 5, 6)}, true},
		"unknown write never":         {[]porcupine.Operation{put("a", 1, 2), unknown, get("a", 5, 6)}, true},
		"unknown write came and went": {[]porcupine.Operation{put("a", 1, 2), unknown, get("u", 5, 6), get("a", 7, 8)}, false},
		"refused write seen":          {[]porcupine.Operation{put("a", 1, 2), get("refused", 3, 4)}, false},
		"two swaps won":               {[]porcupine.Operation{put("a", 1, 2), swap("a", "b", true, 3, 5), swap("a", "c", true, 4, 6)}, false},
		"one swap won":                {[]porcupine.Operation{put("a", 1, 2), swap("a", "b", true, 3, 5), swap("a", "c", false, 4, 6)}, true},
		"deleted":                     {[]porcupine.Operation{put("a", 1, 2), del, get("", 5, 6)}, true},
		"deleted and back":            {[]porcupine.Operation{put("a", 1, 2), del, get("a", 5, 6)}, false},
	} {
		if got := porcupine.CheckOperations(chaosModel, test.history); got != test.want {
			t.Errorf("%s: linearizable %v, want %v", name, got, test.want)
		}
	}
}
