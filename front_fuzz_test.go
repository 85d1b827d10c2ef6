package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"raftkv/internal/front"
	"raftkv/internal/front/plain"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// The same bytes go to nodes with the front and to one without. Who talks to them must
// not be able to tell which is which.

const (
	// frontMaxValue is above what the front reads itself: there are bodies that it hands
	// over, and some that nobody takes.
	frontMaxValue = plain.MaxBody + 1000
	frontPatience = 30 * time.Second // with an answer
)

// frontNode is a lone node whose clients' bytes come in one of three ways.
type frontNode struct {
	*apiTest
	counts *prometheus.Registry // the front's
}

func newFrontNode(t *testing.T) *frontNode {
	n := &frontNode{newAPITest(t), prometheus.NewRegistry()}
	n.a.keys.MaxValue = frontMaxValue
	n.a.keys.Writes = proposeFunc(func(_ context.Context, cmd []byte) state.Result { return n.apply(cmd) })
	n.a.keys.Fresh.Confirm = func(context.Context) error { return nil }
	for _, w := range [][2]string{
		{"k", "a value"}, {"my-key", "hello"}, {"empty", ""}, {"a/b", "\x00\xff\r\n\r\n"}, {"v1", "reserved"}, {"large", strings.Repeat("0123456789abcdef", 17<<10/16)},
	} {
		n.apply(state.EncodeWrite(state.KindPut, state.Condition{}, w[0], []byte(w[1])))
	}
	return n
}

func (n *frontNode) apply(cmd []byte) state.Result {
	c, err := state.DecodeCommand(cmd)
	if err != nil {
		n.Errorf("proposed %x: %v", cmd, err)
	}
	n.kv.mu.Lock()
	defer n.kv.mu.Unlock()
	res := n.kv.state.Apply(c)
	n.kv.publishSize()
	n.kv.revision.Advance(n.kv.state.Revision)
	return res
}

func (n *frontNode) server() *http.Server { return listening.ClientServer(time.Minute, zap.NewNop()) }

// serveBy lets the node answer at l, until the returned function is called.
func (n *frontNode) serveBy(l *stoppableListener) (end func()) {
	var h http.Handler = n.a
	l.handler.Store(&h)
	if l.front != nil {
		l.front.Register(n.counts)
		l.front.Handle(plainRequests{n.a})
	}
	return func() { testkit.Must(n, l.close()) }
}

// tcp sends the pieces over TCP and returns all that comes back. It does not end its side
// before the answers to the requests have come: who waits for that keeps a client waiting.
func (n *frontNode) tcp(l *stoppableListener, requests []*http.Request, pieces ...[]byte) []byte {
	c, err := net.Dial("tcp", l.Addr().String())
	testkit.Must(n, err)
	defer c.Close()
	testkit.Must(n, c.SetDeadline(time.Now().Add(frontPatience)))
	sent, answered := make(chan struct{}), make(chan struct{})
	go func() { // beside reading: neither side may wait for the other
		defer close(sent)
		for _, p := range pieces {
			if _, err := c.Write(p); err != nil {
				return // it has been refused, which shows in the answer
			}
		}
		<-answered
		_ = c.(*net.TCPConn).CloseWrite() // likewise
	}()
	defer func() { <-sent }()
	var got bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &got))
	for len(requests) > 0 {
		resp, err := http.ReadResponse(in, requests[0])
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		if err != nil {
			break // it will show again in what came
		}
		if resp.StatusCode != http.StatusContinue {
			requests = requests[1:]
		}
	}
	close(answered)
	n.readAll(in)
	return got.Bytes()
}

// readAll reads to the end. Where a server closes a connection behind an answer, without
// having read all that was sent, TCP says so with a reset. Whether it had read it is a
// matter of time, so that is an end like others.
func (n *frontNode) readAll(r io.Reader) {
	n.Helper()
	if got, err := io.ReadAll(r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		n.Fatalf("behind %q: %v", got, err)
	}
}

// withoutFront sends data to the node as net/http alone serves it.
func (n *frontNode) withoutFront(requests []*http.Request, data []byte) []byte {
	l, err := listen("127.0.0.1:0", n.server())
	testkit.Must(n, err)
	defer n.serveBy(l)()
	return n.tcp(l, requests, data)
}

// withFront sends the pieces to the node as the front serves it.
func (n *frontNode) withFront(requests []*http.Request, pieces ...[]byte) []byte {
	l, err := listenWithFront("127.0.0.1:0", n.server(), nil, frontMaxValue, zap.NewNop())
	testkit.Must(n, err)
	defer n.serveBy(l)()
	return n.tcp(l, requests, pieces...)
}

// inPieces is withFront on a connection from which no read gets more than a piece. TCP
// may join them.
func (n *frontNode) inPieces(pieces ...[]byte) []byte {
	srv, conns := n.server(), make(pieceListener, 1)
	behind := front.NewBehind(new(net.TCPAddr))
	fr := front.New(zap.NewNop(), front.Limits{
		Head: srv.ReadHeaderTimeout, Idle: srv.IdleTimeout, Answer: srv.WriteTimeout, Value: frontMaxValue,
	}, nil, behind.Give)
	fr.Register(n.counts)
	fr.Handle(plainRequests{n.a})
	srv.Handler, srv.ConnContext = n.a, web.ConnContext
	var both sync.WaitGroup
	both.Go(func() { _ = srv.Serve(web.HangUpListener{Listener: behind}) })
	both.Go(func() { _ = fr.Serve(conns) })
	c := &pieceConn{in: slices.DeleteFunc(pieces, func(p []byte) bool { return len(p) == 0 }), ended: make(chan struct{})}
	conns <- c
	select {
	case <-c.ended:
	case <-time.After(frontPatience):
		n.Fatalf("the connection does not end, behind %q", c.out.Bytes())
	}
	close(conns)
	testkit.Must(n, srv.Close())
	fr.Close()
	both.Wait()
	return c.out.Bytes()
}

// pieceListener is a listener whose connections are made by the test.
type pieceListener chan net.Conn

func (l pieceListener) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l pieceListener) Close() error   { return nil }
func (l pieceListener) Addr() net.Addr { return new(net.TCPAddr) }

// pieceConn is a connection whose client has sent all that it will, in pieces.
type pieceConn struct {
	mu    sync.Mutex
	in    [][]byte
	out   bytes.Buffer
	over  bool // for reading, by a deadline
	ended chan struct{}
	end   sync.Once
}

func (c *pieceConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.isEnded():
		return 0, net.ErrClosed
	case c.over:
		return 0, os.ErrDeadlineExceeded
	case len(c.in) == 0:
		return 0, io.EOF
	}
	n := copy(p, c.in[0])
	if c.in[0] = c.in[0][n:]; len(c.in[0]) == 0 {
		c.in = c.in[1:]
	}
	return n, nil
}

func (c *pieceConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isEnded() {
		return 0, net.ErrClosed
	}
	return c.out.Write(p)
}

func (c *pieceConn) isEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

func (c *pieceConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end.Do(func() { close(c.ended) })
	return nil
}

// CloseWrite is all that a client sees of an end.
func (c *pieceConn) CloseWrite() error { return c.Close() }

// SetReadDeadline takes deadlines that are over. Others never come to be.
func (c *pieceConn) SetReadDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = !at.IsZero() && !at.After(time.Now())
	return nil
}

func (c *pieceConn) SetDeadline(at time.Time) error   { return c.SetReadDeadline(at) }
func (c *pieceConn) SetWriteDeadline(time.Time) error { return nil }
func (c *pieceConn) LocalAddr() net.Addr              { return new(net.TCPAddr) }
func (c *pieceConn) RemoteAddr() net.Addr             { return new(net.TCPAddr) }

// sentRequests are the requests in data, as far as there are any, how many of them are
// whole, and how many bytes are behind them.
func sentRequests(data []byte) (sent []*http.Request, whole, rest int) {
	all := bytes.NewReader(data)
	r := bufio.NewReader(all)
	for {
		rest = all.Len() + r.Buffered()
		req, err := http.ReadRequest(r)
		if err != nil {
			return sent, len(sent), rest
		}
		sent = append(sent, req)
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return sent, len(sent) - 1, 0
		}
	}
}

// frontAnswer is an answer as it was sent, but for the date and the order of its fields.
type frontAnswer struct {
	status int
	text   string
}

// answersIn tells the answers to requests apart. What is behind the last one that can be
// read, if there is anything, comes as it is.
func answersIn(t testing.TB, raw []byte, to []*http.Request) (answers []frontAnswer) {
	all := bytes.NewReader(raw)
	r := bufio.NewReader(all)
	at := func() int { return len(raw) - all.Len() - r.Buffered() }
	for {
		begin := at()
		if begin == len(raw) {
			return answers
		}
		var req *http.Request
		if len(to) > 0 {
			req = to[0]
		}
		resp, err := http.ReadResponse(r, req)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
		}
		if err != nil {
			return append(answers, frontAnswer{0, string(raw[begin:])})
		}
		if resp.StatusCode != http.StatusContinue && len(to) > 0 {
			x := openapitest.Of(req, resp.StatusCode, resp.Header, body, true)
			x.Sent = maps.Clone(x.Sent)
			maps.DeleteFunc(x.Sent, func(name string, _ []string) bool { return name != "If-Match" && name != "If-None-Match" }) // any others are there too
			openapitest.Check(t, x)
			to = to[1:]
		}
		head, _, _ := bytes.Cut(raw[begin:], []byte("\r\n\r\n"))
		answers = append(answers, frontAnswer{resp.StatusCode, plainAnswer(string(head), string(body))})
	}
}

var changesByItself = regexp.MustCompile(`"uptime_seconds":\d+`)

// plainAnswer is an answer without what differs between any two nodes.
func plainAnswer(head, body string) string {
	fields := strings.Split(head, "\r\n")
	fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "Date: ") })
	slices.Sort(fields[1:])
	// What a node counts and how long it runs is its own, also what has to do with its
	// clients: two nodes without a front would not agree either.
	if slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "Content-Type: text/plain; version=0.0.4") }) {
		fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "Content-Length: ") })
		body = "metrics"
	}
	body = changesByItself.ReplaceAllString(body, `"uptime_seconds":0`)
	return strings.Join(fields, "\n") + "\n\n" + body
}

// left is what clients have left behind: the state, and what was counted of them.
func (n *frontNode) left() string {
	lines := n.counted()
	n.kv.mu.Lock()
	defer n.kv.mu.Unlock()
	n.kv.state.Scan(func(key string, it *state.Item) bool {
		lines = append(lines, fmt.Sprintf("%.100q %d %d %.100q", key, it.ModRevision, len(it.Value), it.Value))
		return true
	})
	return fmt.Sprintf("%s\nthe sum of all is %x", strings.Join(lines, "\n"), sha256.Sum256(statetest.Bytes(n, n.kv.state)))
}

// counted is how many requests of what kind the node has answered, and how many it still
// thinks there are.
func (n *frontNode) counted() (lines []string) {
	families, err := n.a.metrics.Registry.Gather()
	testkit.Must(n, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "raftkv_request_duration_seconds":
				lines = append(lines, fmt.Sprintf("%v %d", m.GetLabel(), m.GetHistogram().GetSampleCount()))
			case "raftkv_requests_in_flight":
				lines = append(lines, fmt.Sprintf("%v in flight", m.GetGauge().GetValue()))
			}
		}
	}
	return lines
}

// frontCounts returns what the front has counted, by result.
func (n *frontNode) frontCounts() map[string]int {
	families, err := n.counts.Gather()
	testkit.Must(n, err)
	counts := make(map[string]int)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name = l.GetValue()
			}
			counts[name] += int(m.GetCounter().GetValue())
		}
	}
	return counts
}

// reference is what a node without the front makes of what a client sends.
type reference struct {
	sent     []byte
	requests []*http.Request
	whole    int // of the requests
	rest     int // bytes behind the last request
	answers  []frontAnswer
	left     string
}

func newReference(t *testing.T, sent []byte) *reference {
	t.Helper()
	// In HTTP/2 when something is answered is a matter of time; and where that begins
	// behind other requests the front lets it, as net/http does not.
	sent, _, _ = bytes.Cut(sent, []byte(http2Beginning))
	n := newFrontNode(t)
	r := &reference{sent: sent}
	r.requests, r.whole, r.rest = sentRequests(sent)
	r.answers = answersIn(n, n.withoutFront(r.requests[:r.whole], sent), r.requests)
	r.left = n.left()
	return r
}

// compare sends the same to nodes with the front, in two pieces, and complains of any
// difference. It returns what the front has counted.
func (r *reference) compare(t *testing.T, split int) map[string]int {
	t.Helper()
	split = min(split, len(r.sent))
	n := newFrontNode(t)
	r.compareWith(n, fmt.Sprintf("over TCP, split at %d", split), n.withFront(r.requests[:r.whole], r.sent[:split], r.sent[split:]))
	counts := n.frontCounts()
	if other := r.compareInPieces(t, split); other["served"] != counts["served"] {
		t.Fatalf("split at %d: of %.2000q %d are served over TCP, and in pieces %d", split, r.sent, counts["served"], other["served"])
	}
	return counts
}

// compareInPieces is compare on a connection that keeps the pieces apart.
func (r *reference) compareInPieces(t *testing.T, split int) map[string]int {
	t.Helper()
	split = min(split, len(r.sent))
	n := newFrontNode(t)
	r.compareWith(n, fmt.Sprintf("in pieces, split at %d", split), n.inPieces(r.sent[:split], r.sent[split:]))
	return n.frontCounts()
}

func (r *reference) compareWith(n *frontNode, how string, raw []byte) {
	n.Helper()
	got := answersIn(n, raw, r.requests)
	// net/http says nothing to less than four bytes that nothing comes behind, but not so
	// on a connection on which they are the first, as they are where it is given one.
	if last := len(got) - 1; r.rest > 0 && r.rest < 4 && last == len(r.answers) && got[last].status == http.StatusBadRequest {
		got = got[:last]
	}
	for i := range max(len(r.answers), len(got)) {
		want, is := frontAnswer{0, "nothing"}, frontAnswer{0, "nothing"}
		if i < len(r.answers) {
			want = r.answers[i]
		}
		if i < len(got) {
			is = got[i]
		}
		if is != want {
			n.Fatalf("%s: the answer %d to %.2000q is\n%.2000q\nwithout the front it is\n%.2000q", how, i+1, r.sent, is.text, want.text)
		}
	}
	if l := n.left(); l != r.left {
		n.Fatalf("%s: %.2000q has left behind\n%s\nwithout the front it has left\n%s", how, r.sent, l, r.left)
	}
	if n.frontCounts()["raftkv_front_panics_total"] != 0 {
		n.Fatalf("%s: %.2000q makes the front panic", how, r.sent)
	}
}

// frontClients are what real clients have sent, by their names. It was recorded between
// each of them and a node.
func frontClients(t testing.TB) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile("testdata/front/clients.txt")
	testkit.Must(t, err)
	clients := make(map[string][]byte)
	for line := range strings.Lines(string(data)) {
		name, quoted, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		sent, err := strconv.Unquote(quoted)
		testkit.Must(t, err)
		clients[name] = []byte(sent)
	}
	return clients
}

// Guarantee: what clients get, and leave behind, is the same with the front as without.
func FuzzFront(f *testing.F) {
	if flag.Lookup("test.fuzz").Value.String() != "" { // else TestFrontCorpus sends them
		for _, c := range frontCorpus(f) {
			if len(c.sent) < 4<<10 { // short ones are the better seeds
				f.Add([]byte(c.sent), uint16(len(c.sent)/2))
			}
		}
	}
	f.Add([]byte(frontPut("/k", "v")+frontRequest("GET /k")), uint16(10))
	f.Fuzz(func(t *testing.T, data []byte, split uint16) {
		newReference(t, data).compare(t, int(split)%(len(data)+1))
	})
}
