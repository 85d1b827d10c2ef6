package main

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
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

// testLane returns a lane with turns of these rates, each 1000 / rate ms long and
// with as many us of CPU.
func testLane(name string, rates ...float64) *laneResult {
	l := &laneResult{name: name, result: newResult()}
	for _, rate := range rates {
		l.turns = append(l.turns, turnFigures{rate: rate, p50: 1000 / rate, p99: 1000 / rate, cpu: 1000 / rate})
	}
	return l
}

// Ensure that a target is judged by the median of the ratios of turns that were
// neighbours, and that a lane with errors meets none.
func TestJudge(t *testing.T) {
	fast, slow := testLane("fast", 300, 900, 320, 310, 10), testLane("slow", 100, 300, 100, 100, 100)
	m := &measured{lanes: []*laneResult{fast, slow}, row: row{targets: []target{
		{lane: "fast", figure: figureRate, least: 3, rival: "slow"},
		{lane: "fast", figure: figureRate, least: 3.01, rival: "slow"},
		{lane: "fast", figure: figureP50, most: 0.34, rival: "slow"},
		{lane: "fast", figure: figureP99, most: 0.33, rival: "slow"},
		{lane: "fast", figure: figureCPU, most: 0.34, rival: "slow"},
		{lane: "fast", figure: figureRate, least: 1, rival: "not measured"},
	}}}
	met := func() (out []bool) {
		for _, v := range m.judge() {
			out = append(out, v.Met)
		}
		return out
	}
	if got, want := met(), []bool{true, false, true, false, true}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	v := m.judge()[0]
	if want := []float64{3, 3, 3.2, 3.1, 0.1}; !slices.Equal(v.Turns, want) || v.Median != 3 || v.Lowest != 0.1 || v.Highest != 3.2 {
		t.Errorf("got %+v, want turns of %v", v, want)
	}
	slow.fail(errors.New("refused"))
	if got := met(); slices.Contains(got, true) {
		t.Errorf("with an error: got %v", got)
	}
}

// Ensure that a turn in which nothing succeeded meets no target, and can be written
// as JSON.
func TestNothingToDivideBy(t *testing.T) {
	m := &measured{lanes: []*laneResult{testLane("a", 5), {name: "b", result: newResult(), turns: make([]turnFigures, 1)}},
		row: row{rate: 10, targets: []target{{lane: "a", figure: figureP99, most: 1, rival: "b"}}}}
	for _, l := range m.lanes {
		l.seconds = 1
	}
	var r report
	r.add([]outcome{m.outcome()})
	if err := r.write(filepath.Join(t.TempDir(), "r.json")); err != nil {
		t.Error(err)
	}
	if len(r.Targets) != 1 || r.Targets[0].Met {
		t.Errorf("%+v", r.Targets)
	}
}

// Ensure that each target can be computed from its own row.
func TestTargetsNameLanesOfTheirRow(t *testing.T) {
	for _, r := range rateRows() {
		for _, target := range r.targets {
			if !slices.Contains(r.lanes, target.lane) || !slices.Contains(r.lanes, target.rival) {
				t.Errorf("%s: %+v", r.name, target)
			}
			if (target.least == 0) == (target.most == 0) {
				t.Errorf("%s: %+v has not one bound", r.name, target)
			}
		}
	}
}

// Ensure that the summary has what a target is about, its median, its spread and
// what became of it, and that it comes back from the file.
func TestSummary(t *testing.T) {
	o := outcome{Row: "the row", Targets: []verdict{
		atLeast("rate of a / b", 2, 2.5, 1.75, 3.25),
		atMost("bytes a key", 500, 501),
		atMost("never measured", 1),
	}}
	var r report
	r.add([]outcome{o})
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	back, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	printTargets(&text, back.Targets)
	for _, want := range []string{
		"met      2.50 (1.75 to 3.25)    at least 2     the row: rate of a / b\n",
		"NOT MET  501.00                 at most 500    the row: bytes a key\n",
		"NOT MET  0.00                   at most 1      the row: never measured\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
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

// Ensure that the lanes of a system that is not installed are left out, that their
// row says so, and that other rows are as they were.
func TestWithoutASystem(t *testing.T) {
	for i, r := range without(rateRows(), settings{}, redisSystem, errors.New("it is not there")) {
		was, notes := rateRows()[i].lanes, rateRows()[i].notes
		had := slices.Contains(was, redisLane)
		if had {
			notes = append(notes, "skipped: redis: it is not there")
		}
		if slices.Contains(r.lanes, redisLane) || !slices.Equal(r.notes, notes) {
			t.Errorf("%s: %q, %q", r.name, r.lanes, r.notes)
		}
		if had != (len(r.lanes) == len(was)-1) {
			t.Errorf("%s: %q of %q, %q", r.name, r.lanes, was, r.notes)
		}
	}
}

// Ensure that the rows that are measured another time still have their lanes.
func TestWithoutASystemOnce(t *testing.T) {
	rows := rateRows()
	for _, r := range without(rows, settings{}, etcdSystem, errors.New("it is not there")) {
		if slices.Contains(r.lanes, grpcLeader) {
			t.Errorf("%s: %q", r.name, r.lanes)
		}
	}
	for _, r := range rows {
		if !slices.Contains(r.lanes, grpcLeader) || slices.Contains(r.lanes, "") {
			t.Errorf("%s: afterwards it has %q", r.name, r.lanes)
		}
	}
}

// Ensure that a turn of a row that asks for longer ones is as long, and that what it
// wrote is checked.
func TestTurnIsAsLongAsItsRowSays(t *testing.T) {
	addr, stop := serveTestBare(t)
	defer stop()
	n := &node{id: 1, client: addr, process: &process{cmd: &exec.Cmd{Process: &os.Process{Pid: os.Getpid()}}}}
	m := &measurer{settings: settings{length: 20 * time.Millisecond}}
	r := row{conns: 2, size: usualSize, keys: usualKeys, writes: 1, stretch: 3}
	res, err := m.once(t.Context(), &cluster{nodes: []*node{n}}, n, dialRaftkv, r, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := (60 * time.Millisecond).Seconds(); res.seconds != want || res.ops == 0 || len(res.written) == 0 {
		t.Errorf("%v s with %d requests, want %v s; written %v", res.seconds, res.ops, want, res.written)
	}
}

// Ensure that a lane with connections of its own has them, and that rows with more
// to do in a turn have longer ones.
func TestTurnsOfARow(t *testing.T) {
	s := settings{warm: time.Second, length: 2 * time.Second}
	if got := (row{stretch: 2}).turnSettings(s); got.warm != 2*time.Second || got.length != 4*time.Second {
		t.Errorf("%+v", got)
	}
	if got := (row{}).turnSettings(s); got != s {
		t.Errorf("%+v", got)
	}
	for _, r := range rateRows() {
		for _, name := range r.lanes {
			l := s.lane(name)
			if want := map[bool]int{true: 256}[name == raftkvAt256]; l.conns != want {
				t.Errorf("%s has %d connections of its own, want %d", name, l.conns, want)
			}
			if l.system == bareSystem && name != bareHandlerLane {
				t.Errorf("%s is not known", name)
			}
		}
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

// Ensure that a scenario that fails ends no other, that what it has measured before
// counts, and that an end that was asked for ends all.
func TestFailureEndsOneScenario(t *testing.T) {
	b := &bench{options: options{rows: regexp.MustCompile("a|b|d")}}
	ctx, cancel := context.WithCancel(t.Context())
	var ran []string
	part := func(name string, err error, last bool) scenario {
		return scenario{rows: []string{name}, measure: func(context.Context) ([]outcome, error) {
			ran = append(ran, name)
			if last {
				cancel()
			}
			return []outcome{{Row: name}}, err
		}}
	}
	failure := errors.New("it failed")
	out, err := b.measureAll(ctx, []scenario{
		part("a", failure, false), part("c", nil, false), part("b", nil, true), part("d", nil, false)})
	if !errors.Is(err, failure) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if want := []string{"a", "b"}; !slices.Equal(ran, want) || len(out) != 2 {
		t.Errorf("ran %q with outcomes %v, want %q", ran, out, want)
	}
}

// Ensure that the picture of a file has the lanes that were measured, at their
// rates, and no others.
func TestPicture(t *testing.T) {
	dir := t.TempDir()
	o := options{from: filepath.Join(dir, "r.json"), picture: filepath.Join(dir, "p.svg")}
	r := report{Machine: machine{Cores: 2}}
	r.add([]outcome{{Row: "PUT, 64 connections", Lines: []line{
		{Name: raftkvLeader, Turns: []float64{30_100, 31_900}, Figures: []figure{{Name: "rate/s", Value: 31_000}}},
		{Name: grpcLeader, Turns: []float64{8_100}, Figures: []figure{{Name: "rate/s", Value: 8_123}}},
	}}, skipped("GET, stale, 64 connections", errors.New("no reason"))})
	if err := r.write(o.from); err != nil {
		t.Fatal(err)
	}
	if err := drawFrom(o); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(o.picture)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		">raftkv<": true, ">31k<": true, ">etcd, gRPC<": true, ">8.1k<": true, ">PUT, 64<": true,
		"Redis": false, ">etcd, HTTP gateway<": false, "256": false,
	} {
		if strings.Contains(string(svg), text) != want {
			t.Errorf("%q is in it: %t", text, !want)
		}
	}
	if b := r.bars(raftkvLeader, []string{"another row", "PUT, 64 connections"}); len(b) != 1 || b[0] != (bar{1, 31_000, 30_100, 31_900}) {
		t.Errorf("%+v", b)
	}
	if err := (&report{}).draw(o.picture); err == nil {
		t.Error("a picture of nothing, and no error")
	}
}

func TestThousands(t *testing.T) {
	for rate, want := range map[float64]string{999: "999", 1000: "1.0k", 8123: "8.1k", 9949: "9.9k", 9950: "10k", 31_400: "31k"} {
		if got := thousands(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
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
