package main

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	// The name of a program may hold spaces and brackets.
	text := "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 12 0 99 1000 200\n"
	got, err := parseStat(text)
	if want := 3 * time.Second; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 a b 13"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident([]byte("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t   2048 kB\nThreads:\t3\n"))
	if err != nil || got != 2<<20 {
		t.Errorf("got %d, %v", got, err)
	}
	if _, err := parseResident([]byte("Name:\tx\n")); err == nil {
		t.Error("no VmRSS, and no error")
	}
}

func TestOwnProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("needs /proc")
	}
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if size, err := resident(os.Getpid()); err != nil || size < 1<<20 {
		t.Errorf("%d bytes, %v", size, err)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for part, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.8: 4, 0.95: 5, 1: 5} {
		if got := quantile(values, part); got != want {
			t.Errorf("%v: got %v, want %v", part, got, want)
		}
	}
	if !slices.Equal(values, []float64{5, 1, 4, 2, 3}) {
		t.Error("the values were sorted in place")
	}
}

func TestSpread(t *testing.T) {
	if got := spread([]float64{900, 1000, 1100}); math.Abs(got-0.1) > 1e-9 {
		t.Errorf("got %v, want 0.1", got)
	}
	if got := spread(nil); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// Ensure that targets compare the lanes that they name, and that a lane with
// errors meets none.
func TestJudge(t *testing.T) {
	lane := func(name string, ops int64, took time.Duration) *laneResult {
		l := &laneResult{name: name, result: newResult()}
		for range ops {
			l.record(took)
		}
		l.seconds = 1
		return l
	}
	fast, slow := lane("fast", 300, time.Millisecond), lane("slow", 100, 4*time.Millisecond)
	m := &measured{lanes: []*laneResult{fast, slow}, row: row{targets: []target{
		{lane: "fast", figure: figureRate, least: 3, rival: "slow"},
		{lane: "fast", figure: figureRate, least: 3.1, rival: "slow"},
		{lane: "fast", figure: figureP50, most: 0.3, rival: "slow"},
		{lane: "fast", figure: figureP99, most: 0.2, rival: "slow"},
		{lane: "fast", figure: figureRate, least: 1, rival: "not measured"},
	}}}
	met := func() (out []bool) {
		for _, v := range m.judge() {
			out = append(out, v.Met)
		}
		return out
	}
	if got, want := met(), []bool{true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	slow.fail(errors.New("refused"))
	if got, want := met(), []bool{false, false, false, false}; !slices.Equal(got, want) {
		t.Errorf("with an error: got %v, want %v", got, want)
	}
}

func TestChosen(t *testing.T) {
	any := regexp.MustCompile("")
	rows := chosen(rateRows(), regexp.MustCompile("^PUT"), any, true)
	if len(rows) != 1 || slices.Contains(rows[0].lanes, grpcFollower) || rows[0].size != usualSize {
		t.Errorf("quick: %+v", rows)
	}
	rows = chosen(rateRows(), any, regexp.MustCompile("raftkv"), false)
	if len(rows) != len(rateRows()) || !slices.Equal(rows[0].lanes, []string{raftkvLeader, raftkvFollower}) {
		t.Errorf("lanes: %+v", rows)
	}
}

// stallingClient answers at once, but for one request.
type stallingClient struct {
	requests atomic.Int64
	stallAt  int64
	stall    time.Duration
	client
}

func (c *stallingClient) do(operation, uint64) error {
	if c.requests.Add(1) == c.stallAt {
		time.Sleep(c.stall)
	}
	return nil
}

// Ensure that requests that had to wait behind a slow one count from when they
// were due: of 1 s at 1000/s with a stall of 0.5 s, half of all wait, and a
// closed loop would have noticed one.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	c := &stallingClient{stallAt: 100, stall: 500 * time.Millisecond}
	l := load{keys: keyRange{count: 10}, rate: 1000, length: time.Second, read: get}
	res, err := l.run(t.Context(), []client{c}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.ops < 990 || res.ops > 1001 || res.errors > 0 {
		t.Errorf("%d requests, %d errors", res.ops, res.errors)
	}
	if p75 := res.ms(75); p75 < 150 || p75 > 450 {
		t.Errorf("p75 is %.0f ms, want about 250", p75)
	}
	if most := res.ms(100); most < 490 {
		t.Errorf("the longest took %.0f ms", most)
	}
}

// Ensure that an end is not put off until a server that is too slow has had all
// the requests that were due: here 2000, which would take it 20 s.
func TestOpenLoopEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	l := load{keys: keyRange{count: 10}, rate: 10_000, length: time.Minute, read: get}
	began := time.Now()
	if _, err := l.run(ctx, []client{&slowClient{}}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

type slowClient struct{ client }

func (c *slowClient) do(operation, uint64) error {
	time.Sleep(10 * time.Millisecond)
	return nil
}

// Ensure that a failure ends a worker, and is counted.
func TestErrorsAreCounted(t *testing.T) {
	addr, stop := serveTestBare(t)
	defer stop()
	clients, err := dialRaftkv(addr, 2, valueMaker{size: usualSize}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(clients)
	l := load{keys: keyRange{count: 10}, read: get, length: 50 * time.Millisecond}
	res, err := l.run(t.Context(), clients, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.errors != 2 || !strings.Contains(res.firstErr.Error(), "404") {
		t.Errorf("%d errors, %v; want two of status 404", res.errors, res.firstErr)
	}
}

func serveTestBare(t *testing.T) (addr string, stop func()) {
	s := httptest.NewServer(newBareHandler())
	return strings.TrimPrefix(s.URL, "http://"), s.Close
}

// Ensure that what a client writes is what it reads, for all sizes, and that a
// value of another turn is found out.
func TestClientAgainstBare(t *testing.T) {
	addr, stop := serveTestBare(t)
	defer stop()
	for _, size := range []int{16, 128, 64 << 10} {
		v := valueMaker{size: size, nonce: 7}
		clients, err := dialRaftkv(addr, 1, v, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		c := clients[0]
		if err := errors.Join(c.do(put, 1), c.do(put, 22), c.do(get, 1), c.do(getStale, 22)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(v.check(c, 1), v.check(c, 22)); err != nil {
			t.Error(err)
		}
		if err := (valueMaker{size: size, nonce: 8}).check(c, 1); err == nil {
			t.Errorf("size %d: another turn's value passed", size)
		}
		c.close()
	}
}

// Ensure that the requests to the gateway carry key and value.
func TestGatewayRequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	v := valueMaker{size: usualSize, nonce: 3}
	clients, err := dialGateway(l.Addr().String(), 1, v, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(clients)
	r := &clients[0].(*httpClient).requests[put]
	r.set(123456)
	_, body, _ := strings.Cut(string(r.bytes), "\r\n\r\n")
	got, err := unpackRange([]byte(`{"kvs":[` + body + `]}`))
	if err != nil || string(got) != string(v.make(123456)) {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.Contains(body, `"key":"a2V5LTAwMDAwMDEyMzQ1Ng=="`) {
		t.Errorf("the key is not in %s", body[:60])
	}
}

func TestSplit(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, int64(ms)*1e6) }
	samples := []sample{
		{at(0), 5 * time.Millisecond},   // before
		{at(8), 5 * time.Millisecond},   // into it
		{at(15), 1 * time.Millisecond},  // in it
		{at(5), 100 * time.Millisecond}, // around it
		{at(21), 5 * time.Millisecond},  // after
	}
	during, without := split(samples, []window{{at(10), at(20)}})
	if during.ops != 3 || without.ops != 2 {
		t.Errorf("%d during, %d without; want 3 and 2", during.ops, without.ops)
	}
}

func TestChart(t *testing.T) {
	c := &chart{file: "c.svg", title: "t", x: "x", y: "y", logY: true, binary: true}
	for _, x := range []float64{1, 1024, 1e6} {
		c.add("a", x, x)
		c.add("b", x, 2*x)
	}
	dir := t.TempDir()
	if err := c.draw(dir); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "c.svg"))
	if err != nil || !strings.Contains(string(svg), "1Ki") {
		t.Errorf("no tick for 1024: %v", err)
	}
	if len(c.curves) != 2 || len(c.outcome().Lines[1].Figures) != 3 {
		t.Errorf("%+v", c.curves)
	}
}

func TestLogTicks(t *testing.T) {
	var labels []string
	for _, tick := range (logTicks{}).Ticks(0.3, 2000) {
		if !tick.IsMinor() {
			labels = append(labels, tick.Label)
		}
	}
	if want := strings.Fields("0.1 0.2 0.5 1 2 5 10 20 50 100 200 500 1000 2000"); !slices.Equal(labels, want) {
		t.Errorf("labels %q, want %q", labels, want)
	}
}
