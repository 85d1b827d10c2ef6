//go:build unix

package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"raftkv/internal/entry"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// The tests of this file have a part that is about time, which counts only at full size
// and where nothing else runs: beside other tests they only log it.

// soaks tells whether the tests run at full size.
func soaks() bool { return testkit.SoakOr(false, true) }

// besideOthers has a test run beside others, but for a full one, which measures.
func besideOthers(t *testing.T) {
	if !soaks() {
		t.Parallel()
	}
}

// wantAtMost reports what took longer than it may, at full size.
func wantAtMost(t *testing.T, what string, got, most time.Duration) {
	t.Helper()
	if got > most && soaks() {
		t.Errorf("%s: %v, want at most %v", what, got, most)
		return
	}
	t.Logf("%s: %v of %v", what, got, most)
}

// latencies are how long some requests took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(took time.Duration) {
	l.mu.Lock()
	l.all = append(l.all, took)
	l.mu.Unlock()
}

// quantile is the shortest time that so large a part of all does not exceed.
func (l *latencies) quantile(part float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return 0
	}
	slices.Sort(l.all)
	return l.all[min(len(l.all)-1, int(part*float64(len(l.all))))]
}

func (l *latencies) String() string {
	return fmt.Sprintf("p50 %v, p99 %v, the longest %v", l.quantile(0.5), l.quantile(0.99), l.quantile(1))
}

// keepers are clients that each keep a lease alive, through the nodes in turn.
type keepers struct {
	c        *procCluster
	urls     []string
	client   *http.Client
	ttl      time.Duration
	every    time.Duration
	stop     chan struct{}
	done     sync.WaitGroup
	kept     atomic.Int64
	tries    atomic.Int64 // beside the first of each
	latest   atomic.Int64 // how late a lease was kept at most
	answered latencies
}

// hold makes a lease with a key, and begins to keep it alive. The key's value is the
// lease's ID.
func (k *keepers) hold(i int) error {
	sent := time.Now()
	r := procDo(k.client, http.MethodPost, k.urls[i%3]+"/v1/leases", fmt.Appendf(nil, `{"ttl":"%v"}`, k.ttl))
	var granted struct{ ID uint64 }
	if err := json.Unmarshal([]byte(r.body), &granted); err != nil || r.status != http.StatusCreated {
		return fmt.Errorf("POST /v1/leases: %v (%v)", r, err)
	}
	r = procDo(k.client, http.MethodPut, fmt.Sprintf("%s/v1/kv/held/%05d?lease=%d", k.urls[(i+1)%3], i, granted.ID), fmt.Append(nil, granted.ID))
	if r.status != http.StatusCreated {
		return fmt.Errorf("PUT with lease %d: %v", granted.ID, r)
	}
	k.done.Go(func() { k.keep(i, granted.ID, sent) })
	return nil
}

// keep sends a keepalive whenever it is time, and what fails again to the next node.
func (k *keepers) keep(i int, id uint64, last time.Time) {
	timer := time.NewTimer(k.every - time.Since(last))
	defer timer.Stop()
	for n := i; ; n++ {
		select {
		case <-k.stop:
			return
		case <-timer.C:
		}
		sent := time.Now()
		r := procDo(k.client, http.MethodPut, fmt.Sprintf("%s/v1/leases/%d", k.urls[n%3], id), nil)
		switch r.status {
		case http.StatusOK:
			late := time.Since(last)
			for most := k.latest.Load(); int64(late) > most && !k.latest.CompareAndSwap(most, int64(late)); most = k.latest.Load() {
			}
			k.answered.add(time.Since(sent))
			k.kept.Add(1)
			last = sent
			timer.Reset(max(0, k.every-time.Since(sent)))
		case http.StatusNotFound:
			k.c.t.Errorf("lease %d was lost, %v after it was kept alive: %v", id, time.Since(last), r)
			return
		default:
			k.tries.Add(1)
			timer.Reset(50 * time.Millisecond)
		}
	}
}

// Guarantee: leases that their clients keep alive are there, each with its key, while
// leaders are killed: at full size, 10,000 of ten seconds over a minute.
func TestSoakKeepalives(t *testing.T) {
	besideOthers(t)
	const holding = 64 // leases that are made at once
	n, kills, total := testkit.SoakOr(200, 10_000), testkit.SoakOr(1, 2), testkit.SoakOr(4*time.Second, time.Minute)
	c := newProcCluster(t, 3)
	c.start()
	c.waitLevel(state.ProgramLevel)
	client := procClient(10 * time.Second)
	client.Transport.(*http.Transport).MaxConnsPerHost = 512
	k := &keepers{c: c, client: client, ttl: testkit.SoakOr(3*time.Second, 10*time.Second),
		every: testkit.SoakOr(700*time.Millisecond, 3*time.Second), stop: make(chan struct{})}
	for _, i := range c.ids() {
		k.urls = append(k.urls, c.url(i))
	}
	var holders sync.WaitGroup
	for first := range holding {
		holders.Go(func() {
			for i := first; i < n; i += holding {
				if err := k.hold(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	holders.Wait()
	for range kills {
		time.Sleep(total / time.Duration(kills+1))
		leader := c.leader()
		c.kill(leader)
		c.start(leader)
	}
	time.Sleep(total / time.Duration(kills+1))
	for i := 1; i <= 3; i++ {
		c.wantHeld(i, n)
	}
	close(k.stop)
	k.done.Wait()
	client.CloseIdleConnections()
	t.Logf("%d leases, %d keepalives, %d sent again, at most %v between two; %v",
		n, k.kept.Load(), k.tries.Load(), time.Duration(k.latest.Load()), &k.answered)
	if least := int64(n) * int64(total/k.every) / 2; k.kept.Load() < least {
		t.Errorf("%d keepalives, want at least %d", k.kept.Load(), least)
	}
}

// wantHeld checks at node i that so many leases are there, each with its key.
func (c *procCluster) wantHeld(i, n int) {
	c.t.Helper()
	var leases struct {
		Leases []struct {
			ID   uint64
			Keys int `json:"key_count"`
		}
	}
	var keys struct {
		Items []struct {
			Key, Value string
			Lease      uint64
		}
	}
	for path, v := range map[string]any{"/v1/leases?limit=10000": &leases, "/v1/kv?prefix=held/&limit=10000": &keys} {
		r := c.do(http.MethodGet, i, path, nil)
		if err := json.Unmarshal([]byte(r.body), v); err != nil || r.status != http.StatusOK {
			c.t.Fatalf("GET %s at node %d: %v (%v)", path, i, r, err)
		}
	}
	there := map[uint64]bool{}
	for _, l := range leases.Leases {
		if there[l.ID] = true; l.Keys != 1 {
			c.t.Errorf("node %d: lease %d has %d keys", i, l.ID, l.Keys)
		}
	}
	for _, it := range keys.Items {
		if !there[it.Lease] || it.Value != fmt.Sprint(it.Lease) {
			c.t.Errorf("node %d: %s of lease %s is bound to %d", i, it.Key, it.Value, it.Lease)
		}
	}
	if len(there) != n || len(keys.Items) != n {
		c.t.Errorf("node %d has %d leases and %d keys, want %d of each", i, len(there), len(keys.Items), n)
	}
}

// dueKeys returns a state with n keys that all fall due within a second, and that time
// after what the replicated clock says.
func dueKeys(t *testing.T, n int, ttl time.Duration) *state.State {
	t.Helper()
	st := state.New(testkit.Peers())
	st.Level = state.ProgramLevel
	life := state.Lifetime{Kind: state.ForTTL, Value: uint64(ttl.Milliseconds())}
	fillState(t, st, n, func(i int) []byte {
		return append(state.AppendLeasedPutHead(nil, state.Condition{}, life, procScaleKey(i)), procScaleValue(i)...)
	})
	fillState(t, st, 1, func(int) []byte {
		return state.EncodeWrite(state.KindPut, state.Condition{}, "stays", []byte("1"))
	})
	for st.Leases.Agenda().Fresh {
		tickState(t, st, st.Leases.Clock+1)
	}
	return st
}

// tickState moves the replicated clock of a state, and returns how long that took.
func tickState(t *testing.T, st *state.State, clock uint64) time.Duration {
	t.Helper()
	e := &raftpb.Entry{Index: new(st.Index + 1), Term: new(st.Term), Type: raftpb.EntryNormal.Enum(), Data: entry.EncodeTick(st.Term, clock)}
	began := time.Now()
	_, _, err := st.ApplyEntry(e)
	took := time.Since(began)
	testkit.Must(t, err)
	return took
}

// Guarantee: however many keys fall due at once, they are gone within two seconds and
// 10 ms for each thousand, and reads go on beside that: no step of the apply loop is long.
func TestSoakMillionDue(t *testing.T) {
	besideOthers(t)
	n := testkit.SoakOr(20_000, 1_000_000)
	st := dueKeys(t, n, testkit.SoakOr(3*time.Second, 30*time.Second))
	c := newRestoredCluster(t, st)
	steps := &latencies{}
	for clock := st.Leases.Clock + 1<<40; st.Keys() > 1; clock++ {
		steps.add(tickState(t, st, clock))
	}
	t.Logf("%d ticks by themselves: %v", len(steps.all), steps)
	// What is longer than most are is the collector of this process, or another one.
	wantAtMost(t, "a tick of the clock, nine of ten", steps.quantile(0.9), 10*time.Millisecond)
	st = nil

	c.start()
	leader := c.leader()
	linearizable, stale, stop := &latencies{}, &latencies{}, make(chan struct{})
	var readers sync.WaitGroup
	var reading atomic.Bool
	read := func(l *latencies, url string) {
		client := procClient(10 * time.Second)
		defer client.CloseIdleConnections()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			sent := time.Now()
			if r := procDo(client, http.MethodGet, url, nil); r.status != http.StatusOK {
				t.Errorf("GET %s: %v", url, r)
				return
			}
			if reading.Load() {
				l.add(time.Since(sent))
			}
		}
	}
	for _, i := range c.ids() {
		readers.Go(func() { read(linearizable, c.url(i)+"/stays") })
	}
	readers.Go(func() { read(stale, c.url(leader)+"/stays?consistency=stale") })

	due := c.deadline(leader, procScaleKey(n-1))
	if keys := c.status(leader).Keys; keys != n+1 {
		t.Errorf("%d keys before they are due, want %d", keys, n+1)
	}
	time.Sleep(time.Until(due))
	reading.Store(true)
	left := func(i int) error {
		if keys := c.status(i).Keys; keys != 1 {
			return fmt.Errorf("%d keys are left", keys-1)
		}
		return nil
	}
	procEventually(t, testkit.SoakOr(15*time.Second, time.Minute), "all keys are gone", func() error { return left(leader) })
	took := time.Since(due)
	reading.Store(false)
	close(stop)
	readers.Wait()
	wantAtMost(t, fmt.Sprintf("%d keys gone", n), took, 2*time.Second+time.Duration(n/1000)*10*time.Millisecond)
	wantAtMost(t, "linearizable reads, p99", linearizable.quantile(0.99), 100*time.Millisecond)
	t.Logf("meanwhile %d linearizable reads through all nodes: %v", len(linearizable.all), linearizable)
	t.Logf("%d stale reads at the leader: %v", len(stale.all), stale)
	for _, i := range c.ids() {
		procEventually(t, procReadyWithin, fmt.Sprintf("all keys are gone at node %d", i), func() error { return left(i) })
		c.wantGet(i, "stays", "1")
	}
}

// deadline returns when a key falls due. What the cluster says of that is exact right
// behind a tick of its clock, and later than the truth otherwise: the earliest counts.
func (c *procCluster) deadline(i int, key string) (due time.Time) {
	c.t.Helper()
	for {
		sent := time.Now()
		r := c.do(http.MethodGet, i, "/"+key, nil, "Accept", "application/json")
		var it struct {
			Expires float64 `json:"expires_in_seconds"`
		}
		if err := json.Unmarshal([]byte(r.body), &it); err != nil || r.status != http.StatusOK || it.Expires == 0 {
			c.t.Fatalf("GET /%s: %v (%v)", key, r, err)
		}
		at := sent.Add(time.Duration(it.Expires * float64(time.Second)))
		if due.IsZero() || at.Before(due) {
			due = at
		}
		if time.Until(due) < time.Second { // two ticks at least are behind it
			return due
		}
		time.Sleep(procPoll)
	}
}

// pacedLoad is PUTs to the keys of a large cluster that are due at fixed times, and count
// from then, whatever the answers before do. It speaks HTTP by itself, since what a client
// takes of the processors the nodes do not have.
type pacedLoad struct {
	c    *procCluster
	node int
	keys int
	rate int

	mu      sync.Mutex
	acked   map[int][]uint64 // by key: the revisions
	samples []sample
}

// writer is one connection of it.
type writer struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func (c *procCluster) newWriter(node int) (*writer, error) {
	conn, err := net.Dial("tcp", c.addr(node))
	if err != nil {
		return nil, err
	}
	return &writer{conn: conn, in: bufio.NewReader(conn)}, nil
}

// put writes a key and returns the revision.
func (w *writer) put(key, value string) (revision uint64, err error) {
	w.out = fmt.Appendf(w.out[:0], "PUT /%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", key, len(value), value)
	if _, err := w.conn.Write(w.out); err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		line, err := w.in.ReadSlice('\n')
		switch {
		case err != nil:
			return 0, err
		case n == 0 && !bytes.HasPrefix(line, []byte("HTTP/1.1 204 ")):
			return 0, fmt.Errorf("PUT: %s", line)
		case len(line) == 2:
			return revision, nil
		}
		if tag, ok := bytes.CutPrefix(line, []byte("Etag: ")); ok {
			if revision, err = strconv.ParseUint(string(bytes.Trim(tag, "\"\r\n")), 10, 64); err != nil {
				return 0, err
			}
		}
	}
}

// sample is one of its requests.
type sample struct {
	due  time.Time
	took time.Duration
}

// run sends PUTs until stop is closed.
func (l *pacedLoad) run(stop <-chan struct{}) {
	l.c.paced(l.node, l.rate, stop, func(w *writer, at time.Time) error {
		i := rand.IntN(l.keys)
		revision, err := w.put(procScaleKey(i), procScaleValue(i))
		if err != nil || revision == 0 {
			return fmt.Errorf("revision %d, %w", revision, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.acked[i] = append(l.acked[i], revision)
		l.samples = append(l.samples, sample{at, time.Since(at)})
		return nil
	})
}

// paced has 64 writers send, so many times a second, until stop is closed. Each time is fixed
// before, and what is late is sent all the same.
func (c *procCluster) paced(node, rate int, stop <-chan struct{}, send func(w *writer, at time.Time) error) {
	due := make(chan time.Time, 100*rate)
	var workers sync.WaitGroup
	for range 64 {
		w, err := c.newWriter(node)
		if err != nil {
			c.t.Error(err)
			break
		}
		workers.Go(func() {
			defer w.conn.Close()
			for at := range due {
				if err := send(w, at); err != nil {
					c.t.Error(err)
					return
				}
			}
		})
	}
	began, sent := time.Now(), 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-stop:
			running = false
		case now := <-tick.C:
			for sent < int(now.Sub(began).Seconds()*float64(rate)) {
				sent++
				due <- began.Add(time.Duration(sent) * time.Second / time.Duration(rate))
			}
		}
	}
	close(due)
	workers.Wait()
}

// between is how long the requests took that were due within two times.
func (l *pacedLoad) between(from, to time.Time) *latencies {
	in := &latencies{}
	for _, s := range l.samples {
		if !s.due.Before(from) && s.due.Before(to) {
			in.add(s.took)
		}
	}
	return in
}

// streamed is what a stream has said: of which revision it is, and that of each key.
type streamed struct {
	revision uint64
	mods     []uint64 // by key, 0 where it is missing
	count    int
}

// readStream reads a stream of the keys of a large cluster. It looks no closer than it
// must: what it takes of the processors the nodes do not have.
func (c *procCluster) readStream(i, keys int) (s streamed, err error) {
	req, err := http.NewRequest(http.MethodGet, c.url(i)+"/v1/kv?prefix=scale/", nil)
	if err != nil {
		return s, err
	}
	req.Header.Set("Accept", "application/x-ndjson")
	client := procClient(0)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	number := func(line []byte, name string) uint64 {
		_, rest, _ := bytes.Cut(line, []byte(name))
		end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		n, _ := strconv.ParseUint(string(rest[:max(0, end)]), 10, 64) // 0 is none
		return n
	}
	s.mods = make([]uint64, keys)
	lines := bufio.NewReaderSize(resp.Body, 1<<20)
	end := false
	for n := 0; ; n++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && end:
			return s, nil
		case err != nil:
			return s, fmt.Errorf("line %d: %w", n, err)
		case end:
			return s, fmt.Errorf("line %d is behind the end: %s", n, line)
		case n == 0:
			s.revision = number(line, `{"revision":`)
		case bytes.HasPrefix(line, []byte(`{"end":true`)):
			end = true
			s.count = int(number(line, `"count":`))
		default:
			key, mod := number(line, `"key":"scale/`), number(line, `"mod_revision":`)
			if key >= uint64(keys) || mod == 0 || s.mods[key] != 0 {
				return s, fmt.Errorf("line %d: %s", n, line)
			}
			s.mods[key] = mod
		}
	}
}

// check compares a stream with the writes that were acknowledged: it must have the last
// one of each key up to its revision, and none behind it.
func (s streamed) check(acked map[int][]uint64) error {
	if missing := slices.Index(s.mods, 0); missing >= 0 || s.count != len(s.mods) {
		return fmt.Errorf("the stream ends with a count of %d, and lacks key %d", s.count, missing)
	}
	for key, mod := range s.mods {
		want := uint64(0)
		for _, revision := range acked[key] {
			if revision <= s.revision {
				want = max(want, revision)
			}
		}
		if mod > s.revision || want != 0 && mod != want || want == 0 && slices.Contains(acked[key], mod) {
			return fmt.Errorf("key %d is of revision %d in the stream of %d, want %d of %v", key, mod, s.revision, want, acked[key])
		}
	}
	return nil
}

// Guarantee: a stream of a million keys has all of them, of one revision, while they are
// written, and the p99 of 4,000 PUTs a second is no more than twice what it is without it.
func TestSoakStreamBesideWrites(t *testing.T) {
	besideOthers(t)
	n := testkit.SoakOr(20_000, 1_000_000)
	turns := testkit.SoakOr(1, 5)
	c := newLargeCluster(t, n)
	c.start()
	leader := c.leader()
	l := &pacedLoad{c: c, node: leader, keys: n, rate: testkit.SoakOr(1000, 4000), acked: map[int][]uint64{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { l.run(stop); close(done) }()
	alone := testkit.SoakOr(time.Second/2, 5*time.Second)
	time.Sleep(alone) // the first requests touch new memory
	var times []time.Time
	var streams []streamed
	for range turns {
		times = append(times, time.Now())
		time.Sleep(alone)
		times = append(times, time.Now())
		s, err := c.readStream(leader, n)
		if err != nil {
			t.Error(err)
		}
		streams = append(streams, s)
	}
	times = append(times, time.Now())
	close(stop)
	<-done
	var without, beside []time.Duration
	for i, s := range streams {
		if err := s.check(l.acked); err != nil {
			t.Error(err)
		}
		before, during := l.between(times[2*i], times[2*i+1]), l.between(times[2*i+1], times[2*i+2])
		t.Logf("a stream of %d keys took %v; PUTs beside it: %v; without: %v", s.count, times[2*i+2].Sub(times[2*i+1]).Round(time.Millisecond), during, before)
		without, beside = append(without, before.quantile(0.99)), append(beside, during.quantile(0.99))
	}
	slices.Sort(without)
	slices.Sort(beside)
	wantAtMost(t, "p99 of PUTs beside a stream, in the middle one of the turns", beside[turns/2], 2*without[turns/2])
}
