//go:build unix

package process

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"raftkv/internal/state"
	"raftkv/internal/testkit"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// watchStream is one watch on a connection of its own. It looks no closer than it must, as
// the other clients of these tests.
type watchStream struct {
	conn net.Conn
	in   *bufio.Reader
	line []byte // the last one

	id   uint64 // of the last block, 0 without one
	data []byte // of the last block

	last  uint64          // position: of the last change
	seen  atomic.Uint64   // last, for others to look at
	sum   uint64          // of all changes
	delay []time.Duration // of each change
	reset bool            // it was told so
}

const watchLimit = 10 * time.Minute // for all that a stream does

// openWatch begins a watch at node i and returns once it has begun: it will see all that is
// written from then on. small has it take as little from the node as possible until it reads.
func (c *procCluster) openWatch(i int, query string, small bool) (*watchStream, error) {
	dialer := net.Dialer{Timeout: procReadyWithin}
	size := 64 << 10
	if small {
		dialer.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
			}), err)
		}
		size = 1 << 10
	}
	conn, err := dialer.Dial("tcp", c.addr(i))
	if err != nil {
		return nil, err
	}
	s := &watchStream{conn: conn}
	if err := s.begin(query, size); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

func (s *watchStream) begin(query string, size int) error {
	if err := s.conn.SetDeadline(time.Now().Add(watchLimit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.conn, "GET /v1/watch?%s HTTP/1.1\r\nHost: localhost\r\n\r\n", query); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(s.conn, size), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("a watch was answered with %s", resp.Status)
	}
	s.in = bufio.NewReaderSize(resp.Body, size)
	event, err := s.next()
	if err != nil || event != "" {
		return fmt.Errorf("a watch begins with %q: %w", event, err)
	}
	s.last = s.id
	s.seen.Store(s.last)
	return nil
}

// addr is where node i takes clients.
func (c *procCluster) addr(i int) string { return fmt.Sprintf("127.0.0.1:%d", c.nodes[i].clientPort) }

// next reads a block, and returns its event. That of a block which only moves the position
// is empty.
func (s *watchStream) next() (event string, err error) {
	s.id, s.data = 0, s.data[:0]
	for moved := false; ; {
		if err := s.readLine(); err != nil {
			return "", err
		}
		if len(s.line) == 0 {
			if event != "" || moved {
				return event, nil
			}
			continue // comments, or the time to wait
		}
		name, value, _ := bytes.Cut(s.line, []byte(": "))
		switch string(name) {
		case "event":
			event = string(value)
		case "id":
			moved = true
			if s.id, err = strconv.ParseUint(string(value), 10, 64); err != nil {
				return "", err
			}
		case "data":
			s.data = append(s.data, value...)
		}
	}
}

// readLine reads the next line, which lasts until the one behind it is read.
func (s *watchStream) readLine() error {
	line, err := s.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		var rest []byte
		line = bytes.Clone(line)
		rest, err = s.in.ReadBytes('\n')
		line = append(line, rest...)
	}
	if err != nil {
		return err
	}
	s.line = line[:len(line)-1]
	return nil
}

// follow reads changes of one key until those up to a revision have come, in a store in which
// nothing else changes: their revisions leave nothing out, unless a reset says so.
func (s *watchStream) follow(until *atomic.Uint64) error {
	for goal := until.Load(); goal == 0 || s.last < goal; goal = until.Load() {
		event, err := s.next()
		now := time.Now()
		switch {
		case err != nil:
			return fmt.Errorf("behind revision %d of %d: %w", s.last, goal, err)
		case event == "" && s.id >= s.last, event == "reset" && s.id >= s.last:
			s.reset = s.reset || event == "reset"
			s.last = s.id
		case event == "change" && s.id == s.last+1:
			stamp, err := hotStamp(s.data, s.id)
			if err != nil {
				return err
			}
			s.last, s.sum = s.id, hotSum(s.sum, s.id, stamp)
			s.seen.Store(s.last)
			s.delay = append(s.delay, now.Sub(hotBase)-time.Duration(stamp))
		default:
			return fmt.Errorf("behind revision %d: event %q with id %d: %.200s", s.last, event, s.id, s.data)
		}
	}
	return nil
}

// waitWatches waits until so many watches and waiting reads are open at node i.
func (c *procCluster) waitWatches(i, n int) {
	c.t.Helper()
	procEventually(c.t, procReadyWithin, fmt.Sprintf("%d watches or waiting reads are open at node %d", n, i), func() error {
		if open := c.metric(i, "raftkv_watchers"); open != float64(n) {
			return fmt.Errorf("%.0f are", open)
		}
		return nil
	})
}

// hotBase is from when the times are counted at which the hot key was written.
var hotBase = time.Now()

// hotKey is a key that many watch.
const hotKey = "hot"

const stampDigits = 19 // of a time in nanoseconds

// hotValue is a value that says when its PUT was sent, and is at least so long.
func hotValue(size int) (value string, stamp uint64) {
	stamp = uint64(time.Since(hotBase))
	text := fmt.Sprintf("%0*d", stampDigits, stamp)
	return text + strings.Repeat("x", max(0, size-len(text))), stamp
}

// hotStamp takes that out of the data of a change, which must be of one revision.
func hotStamp(data []byte, revision uint64) (stamp uint64, err error) {
	var head [40]byte
	begin := append(strconv.AppendUint(append(head[:0], `{"revision":`...), revision, 10), ',')
	_, rest, ok := bytes.Cut(data, []byte(`"value":"`))
	if !ok || len(rest) < stampDigits || !bytes.HasPrefix(data, begin) {
		return 0, fmt.Errorf("the change of revision %d is %.200s", revision, data)
	}
	for _, c := range rest[:stampDigits] {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("the value of revision %d is %.40s", revision, rest)
		}
		stamp = 10*stamp + uint64(c-'0')
	}
	return stamp, nil
}

// hotSum adds a change to the sum of those before.
func hotSum(sum, revision, stamp uint64) uint64 {
	return (sum+revision)*0x9E3779B97F4A7C15 + stamp
}

// hotWrites are the acknowledged PUTs of the hot key.
type hotWrites struct {
	mu     sync.Mutex
	acked  map[uint64]uint64 // stamps by revision
	latest atomic.Uint64     // the highest of these revisions
	end    atomic.Uint64     // the last revision, once all are written
}

func (h *hotWrites) put(w *writer, size int) error {
	value, stamp := hotValue(size)
	revision, err := w.put(hotKey, value)
	if err != nil || revision == 0 {
		return fmt.Errorf("revision %d, %w", revision, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked[revision] = stamp
	h.latest.Store(max(h.latest.Load(), revision))
	return nil
}

// finish writes the last change, and tells the watchers before which it will be.
func (h *hotWrites) finish(c *procCluster, i int) (last uint64) {
	c.t.Helper()
	last = h.latest.Load() + 1
	h.end.Store(last)
	value, stamp := hotValue(0)
	h.acked[last] = stamp
	if tag := c.put(i, hotKey, value); tag != fmt.Sprintf(`"%d"`, last) {
		c.t.Fatalf("the last change is of revision %s, want %d", tag, last)
	}
	return last
}

// sum is what a watcher that has seen everything has.
func (h *hotWrites) sum(after uint64) (sum uint64) {
	for revision := after + 1; revision <= h.end.Load(); revision++ {
		sum = hotSum(sum, revision, h.acked[revision])
	}
	return sum
}

// needFiles skips a test that needs more connections at one node than processes may have:
// a node keeps a quarter of its files for other purposes.
func needFiles(t *testing.T, conns int) {
	t.Helper()
	var limit syscall.Rlimit
	testkit.Must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if need := uint64(conns)*3/2 + 256; limit.Max < need {
		testkit.CannotRun(t, fmt.Sprintf("it needs a limit of %d open files, and that is %d (ulimit -Hn)", need, limit.Max))
	}
}

// manyAtOnce calls f for 0 to n-1, many at a time, and returns what that returned.
func manyAtOnce[T any](t *testing.T, n int, f func(i int) (T, error)) []T {
	t.Helper()
	all := make([]T, n)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for i := int(next.Add(1) - 1); i < n && !t.Failed(); i = int(next.Add(1) - 1) {
				var err error
				if all[i], err = f(i); err != nil {
					t.Errorf("%d of %d: %v", i, n, err)
				}
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// putRate writes through node i from many connections for a while, and returns how many PUTs
// a second were answered.
func (c *procCluster) putRate(i int, length time.Duration, put func(w *writer) error) float64 {
	c.t.Helper()
	var done atomic.Int64
	var workers sync.WaitGroup
	began := time.Now()
	for range 64 {
		w, err := c.newWriter(i)
		testkit.Must(c.t, err)
		workers.Go(func() {
			defer w.conn.Close()
			for time.Since(began) < length {
				if err := put(w); err != nil {
					c.t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	workers.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}

// wantAtLeast reports a ratio that is too low, at full size, and notes it otherwise.
func wantAtLeast(t *testing.T, what string, got, least float64) {
	t.Helper()
	if got < least && soaks() {
		t.Errorf("%s: %.2f, want at least %.2f", what, got, least)
		return
	}
	t.Logf("%s: %.2f, at least %.2f", what, got, least)
}

func middle[T cmp.Ordered](values []T) T { return slices.Sorted(slices.Values(values))[len(values)/2] }

// Guarantee: 10,000 watches that have nothing to tell fit on one node with less than 1 GiB of
// memory, last, and do not slow writes to other keys: a tenth is promised, a fifth is what
// this test still takes for the machine's noise.
func TestSoakIdleWatches(t *testing.T) {
	besideOthers(t)
	n, turns, length := testkit.SoakOr(300, 10_000), testkit.SoakOr(1, 5), testkit.SoakOr(200*time.Millisecond, 4*time.Second)
	needFiles(t, n+64)
	c := newProcCluster(t, 3)
	c.start()
	c.waitLevel(state.ProgramLevel)
	leader := c.leader()
	put := func(w *writer) error {
		i := rand.IntN(10_000)
		_, err := w.put(procScaleKey(i), procScaleValue(i))
		return err
	}
	c.putRate(leader, length, put) // the first requests touch new memory
	var alone, beside, parts []float64
	for turn := range turns {
		alone = append(alone, c.putRate(leader, length, put))
		before := c.metric(leader, "process_resident_memory_bytes")
		began := time.Now()
		watches := manyAtOnce(t, n, func(i int) (*watchStream, error) {
			query := fmt.Sprintf("key=idle/%05d", i)
			if i%2 == 1 {
				query = fmt.Sprintf("prefix=idle/%05d/", i)
			}
			return c.openWatch(leader, query, true)
		})
		opened := time.Since(began)
		beside = append(beside, c.putRate(leader, length, put))
		parts = append(parts, beside[turn]/alone[turn])
		memory := c.metric(leader, "process_resident_memory_bytes")
		t.Logf("%d watches opened in %v: %.0f MiB, %.0f before; %.0f PUTs/s beside them, %.0f alone",
			n, opened.Round(time.Millisecond), memory/(1<<20), before/(1<<20), beside[turn], alone[turn])
		if memory >= 1<<30 {
			t.Errorf("%.0f MiB with %d watches, want less than 1024", memory/(1<<20), n)
		}
		// Each still sees its key, and nothing else.
		revision, err := strconv.ParseUint(strings.Trim(c.put(leader, "idle/00000", "now"), `"`), 10, 64)
		testkit.Must(t, err)
		wantQuiet(t, watches, revision)
	}
	t.Logf("PUTs a second: %.0f alone, %.0f beside", alone, beside)
	wantAtLeast(t, "PUTs beside idle watches, of those alone, in the middle one of the turns", middle(parts), 0.8)
}

// wantQuiet ends watches, of which the first alone has a change to see.
func wantQuiet(t *testing.T, watches []*watchStream, revision uint64) {
	t.Helper()
	manyAtOnce(t, len(watches), func(i int) (struct{}, error) {
		s, want := watches[i], ""
		if i == 0 {
			want = "change"
		} else if err := s.conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil { // what has come has come
			return struct{}{}, err
		}
		event, err := s.next()
		for err == nil && event == "" {
			event, err = s.next()
		}
		if event != want || i == 0 && s.id != revision || i > 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			return struct{}{}, fmt.Errorf("event %q with id %d, %w", event, s.id, err)
		}
		return struct{}{}, s.conn.Close()
	})
}

// Guarantee: 1,000 watchers of one key, through the leader and through a follower, see each
// of its changes once and in order while it changes 1,000 times a second.
func TestSoakHotWatches(t *testing.T) {
	besideOthers(t)
	n, rate, length := testkit.SoakOr(40, 1000), testkit.SoakOr(100, 1000), testkit.SoakOr(time.Second, 20*time.Second)
	needFiles(t, n+64)
	c := newProcCluster(t, 3)
	c.start()
	leader := c.leader()
	for _, at := range []int{leader, leader%3 + 1} {
		h := &hotWrites{acked: map[uint64]uint64{}}
		watches := manyAtOnce(t, n, func(int) (*watchStream, error) { return c.openWatch(at, "key="+hotKey, false) })
		start := watches[0].last
		var watchers sync.WaitGroup
		for i, s := range watches {
			watchers.Go(func() {
				if err := s.follow(&h.end); err != nil {
					t.Errorf("watcher %d: %v", i, err)
				}
			})
		}
		stop := make(chan struct{})
		time.AfterFunc(length, func() { close(stop) })
		puts := &latencies{}
		c.paced(leader, rate, stop, func(w *writer, at time.Time) error {
			err := h.put(w, 128)
			puts.add(time.Since(at))
			return err
		})
		last := h.finish(c, leader)
		watchers.Wait()
		delays := &latencies{}
		for i, s := range watches {
			if s.sum != h.sum(start) || s.reset {
				t.Errorf("watcher %d has not seen what was written: reset %v", i, s.reset)
			}
			delays.all = append(delays.all, s.delay...)
			testkit.Must(t, s.conn.Close())
		}
		t.Logf("%d watchers at node %d (%d leads) of %d changes in %v: %v; PUTs: %v", n, at, leader, last-start, length, delays, puts)
		if late := puts.quantile(0.99); late > time.Second {
			t.Logf("the PUTs are late by %v at p99: this machine is too busy to say how late their watchers are", late)
			continue
		}
		wantAtMost(t, "from a PUT to each watcher, p99", delays.quantile(0.99), time.Second)
	}
}

// Guarantee: 10,000 requests that wait for one key are all answered within a second of its
// change, with what it was changed to; a key that comes into being is such a change.
func TestSoakLongPolls(t *testing.T) {
	besideOthers(t)
	n, rounds := testkit.SoakOr(300, 10_000), testkit.SoakOr(2, 5)
	needFiles(t, n+64)
	c := newProcCluster(t, 3)
	c.start()
	leader := c.leader()
	conns := manyAtOnce(t, n, func(int) (*writer, error) { return c.newWriter(leader) })
	tag := ""
	for round := range rounds {
		sent := manyAtOnce(t, n, func(i int) (struct{}, error) {
			condition := ""
			if tag != "" {
				condition = "If-None-Match: " + tag + "\r\n"
			}
			_, err := fmt.Fprintf(conns[i].conn, "GET /v1/kv/polled?wait=60s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", condition)
			return struct{}{}, err
		})
		c.waitWatches(leader, len(sent))
		value := fmt.Sprint("value ", round)
		answers := &latencies{}
		var began time.Time
		var waiting sync.WaitGroup
		first := make(chan struct{})
		for i, w := range conns {
			waiting.Go(func() {
				_ = w.conn.SetReadDeadline(time.Now().Add(procReadyWithin)) // a read says what is wrong with it
				resp, err := http.ReadResponse(w.in, nil)
				<-first
				took := time.Since(began)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
				}
				if err != nil || resp.StatusCode != http.StatusOK || string(body) != value {
					t.Errorf("long poll %d: %q, %v, want %q", i, body, err, value)
					return
				}
				answers.add(took)
			})
		}
		began = time.Now()
		close(first)
		tag = c.put(leader, "polled", value)
		waiting.Wait()
		if t.Failed() {
			return
		}
		t.Logf("%d long polls: %v", n, answers)
		wantAtMost(t, "the last answer to a long poll", answers.quantile(1), time.Second)
	}
	for _, w := range conns {
		testkit.Must(t, w.conn.Close())
	}
}

// Guarantee: watchers that stop reading, while a large value is overwritten until the history
// of changes has turned over several times, cost others nothing: writes go on as before, the
// node's memory is bounded, and others see all changes. They themselves are cut off, or are
// told with a reset that they have missed some.
func TestSoakStalledWatches(t *testing.T) {
	besideOthers(t)
	n, turns := testkit.SoakOr(20, 200), testkit.SoakOr(1, 3)
	history := testkit.SoakOr(4, 64) // MiB
	const size, over = 100 << 10, 3  // of values; how often history turns over
	puts := int64(over * history << 20 / size)
	c := newProcCluster(t, 3, fmt.Sprintf("--watch-history=%dMiB", history))
	c.start()
	leader := c.leader()
	h := &hotWrites{acked: map[uint64]uint64{}}
	readers := manyAtOnce(t, 8, func(int) (*watchStream, error) { return c.openWatch(leader, "key="+hotKey, false) })
	start := readers[0].last
	var reading sync.WaitGroup
	for i, s := range readers {
		reading.Go(func() {
			if err := s.follow(&h.end); err != nil {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	// Where this process gets no time the readers must not miss what they would have read.
	keepUp := func() {
		for _, s := range readers {
			for h.latest.Load() > s.seen.Load()+uint64(history<<20/size/4) && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
		}
	}
	write := func() float64 {
		var next atomic.Int64
		began := time.Now()
		var writers sync.WaitGroup
		for range 16 {
			w, err := c.newWriter(leader)
			testkit.Must(t, err)
			writers.Go(func() {
				defer w.conn.Close()
				for next.Add(1) <= puts && !t.Failed() {
					keepUp()
					if err := h.put(w, size); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writers.Wait()
		return float64(puts) / time.Since(began).Seconds()
	}
	memory := func() float64 { return c.metric(leader, "process_resident_memory_bytes") / (1 << 20) }
	write()
	var parts []float64
	var stalled []*watchStream
	for range turns {
		alone, before := write(), memory()
		some := manyAtOnce(t, n, func(int) (*watchStream, error) { return c.openWatch(leader, "key="+hotKey, true) })
		beside := write()
		with := memory()
		parts = append(parts, beside/alone)
		t.Logf("%d watchers that do not read: %.0f PUTs/s, %.0f without; %.0f MiB, %.0f before", n, beside, alone, with, before)
		if most := before + 64 + float64(n)/2; with > most {
			t.Errorf("%.0f MiB with %d watchers that do not read, want at most %.0f", with, n, most)
		}
		stalled = append(stalled, some...)
	}
	last := h.finish(c, leader)
	cut := 0
	for i, s := range stalled {
		err := s.follow(&h.end)
		switch {
		case err == nil && !s.reset:
			t.Errorf("watcher %d, which did not read, has missed nothing", i)
		case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET):
			cut++
		case err != nil:
			t.Errorf("watcher %d, which did not read: %v", i, err)
		}
		testkit.Must(t, s.conn.Close())
	}
	reading.Wait()
	for i, s := range readers {
		if s.sum != h.sum(start) || s.reset {
			t.Errorf("reader %d has not seen all of %d changes: reset %v", i, last-start, s.reset)
		}
		testkit.Must(t, s.conn.Close())
	}
	t.Logf("of %d watchers that did not read %d were cut off, the others reset", len(stalled), cut)
	wantAtLeast(t, "PUTs beside watchers that do not read, of those alone, in the middle one of the turns", middle(parts), 0.7)
}
