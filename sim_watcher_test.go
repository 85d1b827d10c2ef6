//go:build unix

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"raftkv/internal/listening"
	"raftkv/internal/problem"
	"raftkv/internal/testkit"
	"raftkv/internal/watch/watchtest"
	"raftkv/internal/web"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// simWatches are the HTTP servers of simulated nodes, over which watchers come to them, and
// what the cluster has changed.
type simWatches struct {
	*simCluster
	changes *watchtest.Changes

	mu sync.Mutex
	of map[*server]*pipeListener
}

// watchIn has the nodes of a cluster serve watchers. It is called before the first starts.
func watchIn(c *simCluster) *simWatches {
	w := &simWatches{simCluster: c, of: make(map[*server]*pipeListener)}
	wire := c.wire
	c.wire = func(s *server) {
		if wire != nil {
			wire(s)
		}
		w.listen(s)
		w.serve(s)
	}
	return w
}

// listen has w.changes hear of all entries that a node applies: those that it had applied
// when it ended, and those that come.
func (w *simWatches) listen(s *server) {
	if w.changes == nil {
		w.changes = watchtest.NewChanges(s.storage.State)
	}
	first, err := s.storage.Mem.FirstIndex()
	testkit.Must(w.T, err)
	if to := s.storage.State.Index; first <= to {
		entries, err := s.storage.Mem.Entries(first, to+1, math.MaxUint64)
		testkit.Must(w.T, err)
		w.note(entries)
	}
	from, to := s.commitC, make(chan []commit)
	s.commitC = to
	s.group.Go(func() error {
		for {
			select {
			case commits := <-from:
				for _, c := range commits {
					w.note(c.entries)
				}
				select {
				case to <- commits:
				case <-s.life.Done():
					return nil
				}
			case <-s.life.Done():
				return nil
			}
		}
	})
}

func (w *simWatches) note(entries []*raftpb.Entry) {
	for _, e := range entries {
		if err := w.changes.Note(e); err != nil {
			w.T.Error(err)
		}
	}
}

// serve gives a node an HTTP server as it has over TCP, which lives as long as the node.
func (w *simWatches) serve(s *server) {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	h := listening.ClientServer(s.cfg.RequestTimeout, zap.NewNop())
	h.Handler, h.ConnContext = s.api, web.ConnContext
	s.group.Go(func() error {
		if err := h.Serve(web.HangUpListener{Listener: l}); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	s.group.Go(func() error {
		<-s.life.Done()
		return h.Close()
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of[s] = l
}

// dial opens a connection to a node; nil: it takes none.
func (w *simWatches) dial(s *server) *cutConn {
	w.mu.Lock()
	l := w.of[s]
	w.mu.Unlock()
	client, node := net.Pipe()
	c := &cutConn{Conn: client, left: math.MaxInt, node: &resetConn{Conn: node}}
	select {
	case l.conns <- c.node:
		return c
	case <-l.closed:
		return nil
	case <-s.life.Done():
		return nil
	}
}

// cutConn is a client's side of a connection, which breaks when so many bytes were read.
type cutConn struct {
	net.Conn
	node *resetConn
	left int
}

// errCut is why a connection broke: its client was told to break it there.
var errCut = errors.New("cut off")

// Read reads up to where the connection breaks.
func (c *cutConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errors.Join(errCut, c.Close())
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// resetConn is a node's side of it. The node sees a FIN when the client closes it, or a
// reset.
type resetConn struct {
	net.Conn
	reset atomic.Bool
}

// Read says so.
func (c *resetConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) && c.reset.Load() {
		err = syscall.ECONNRESET
	}
	return n, err
}

// watchSilence is how long a stream may say nothing.
const watchSilence = 16 * time.Second

// simWatcher is a client that follows a watch on one node after the other.
type simWatcher struct {
	watchtest.Follower
	w    *simWatches
	rng  *rand.Rand
	name string

	origin uint64                         // the position in the query of a browser; 0: there is none
	slow   atomic.Int64                   // how long it takes over a message now and then, in ns
	reads  bool                           // it reads on the node behind each change
	each   func(m watchtest.Message)      // is told of all that comes, if not nil
	until  func(m watchtest.Message) bool // whether it hangs up behind a message, if not nil

	mu   sync.Mutex
	seen uint64 // the position, for others
	open *cutConn
	done bool
}

func (w *simWatches) watcher(name string, watch watchtest.Watch) *simWatcher {
	v := &simWatcher{w: w, name: name, rng: rand.New(rand.NewPCG(w.Seed, uint64(len(name))))}
	for _, b := range []byte(name) {
		v.rng = rand.New(rand.NewPCG(v.rng.Uint64(), uint64(b)))
	}
	v.Watch, v.Truth = watch, w.changes
	return v
}

// request is the head of a request from where the follower is.
func (v *simWatcher) request() string {
	path, accept := "/v1/watch", "text/event-stream"
	query := v.Query()
	if v.NDJSON {
		accept = "application/x-ndjson"
	}
	position := ""
	last, ok := v.Begin()
	switch {
	case ok && (v.Browser || v.rng.IntN(2) == 0):
		position = fmt.Sprintf("Last-Event-ID: %d\r\n", last)
	case ok:
		query.Set("after_revision", strconv.FormatUint(last, 10))
	}
	if v.Browser && v.origin > 0 { // it can send no other request than the first
		query.Set("after_revision", strconv.FormatUint(v.origin, 10))
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: %s\r\n%s\r\n", path, accept, position)
}

// follow follows on one node until the stream ends, breaks behind so many bytes or is
// closed. It returns nil, or which promise was broken.
func (v *simWatcher) follow(s *server, bytes int) error {
	text := v.request()
	conn := v.w.dial(s)
	if conn == nil {
		return nil
	}
	conn.left = bytes
	conn.node.reset.Store(v.rng.IntN(2) == 0)
	defer conn.Close()
	if !v.opened(conn) {
		return nil
	}
	defer v.opened(nil)
	if err := conn.SetDeadline(time.Now().Add(watchSilence)); err != nil {
		return nil // the node has closed it
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodGet})
	if err != nil {
		return v.broke(s, "the answer", err)
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%q is answered with %d %s", text, resp.StatusCode, body)
	}
	p := watchtest.Parser{NDJSON: v.NDJSON}
	in := bufio.NewReader(resp.Body)
	for {
		b, err := in.ReadByte()
		if err != nil {
			return v.broke(s, "the stream", err)
		}
		m, ok, err := p.Feed(b)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := v.take(s, m); err != nil {
			return fmt.Errorf("on node %d: %w", s.cfg.ID, err)
		}
		if v.until != nil && v.until(m) {
			return nil
		}
		if slow := v.slow.Load(); slow > 0 && v.rng.IntN(8) == 0 {
			time.Sleep(time.Duration(v.rng.Int64N(slow)))
		}
		if conn.SetDeadline(time.Now().Add(watchSilence)) != nil {
			return nil
		}
	}
}

// broke judges how a stream has ended.
func (v *simWatcher) broke(s *server, what string, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%s of node %d says nothing for %v", what, s.cfg.ID, watchSilence)
	}
	return nil
}

func (v *simWatcher) take(s *server, m watchtest.Message) error {
	if err := v.Take(m); err != nil {
		return err
	}
	v.mu.Lock()
	v.seen = v.Last
	v.mu.Unlock()
	if v.each != nil {
		v.each(m)
	}
	if !v.reads || m.Event != "change" {
		return nil
	}
	want := v.Last
	if err := v.read(s, want, "?consistency=stale"); err != nil || v.rng.IntN(4) > 0 {
		return err
	}
	return v.read(s, want, "")
}

// read reads on a node, which has to be as far as what the node has told.
func (v *simWatcher) read(s *server, want uint64, query string) error {
	rec := httptest.NewRecorder()
	s.api.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "http://localhost/v1/kv/nothing"+query, nil))
	if rec.Code != http.StatusNotFound {
		return nil // it cannot tell, or not now
	}
	revision := rec.Header().Get("Raftkv-Revision")
	if got, err := strconv.ParseUint(revision, 10, 64); err == nil && got >= want {
		return nil
	}
	if rec.Header().Get("Raftkv-Revision") == "" { // the answer was an error of another kind
		return nil
	}
	return fmt.Errorf("a read%s shows revision %s behind change %d", query, revision, want)
}

// opened notes the connection that is open. False: none is to be opened any more.
func (v *simWatcher) opened(c *cutConn) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = c
	return !v.done
}

// stop ends what is followed, and all that would follow.
func (v *simWatcher) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done = true
	if v.open != nil {
		_ = v.open.Close()
	}
}

// at is the position at which it is.
func (v *simWatcher) at() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}

// node returns a random node that is up; nil: there is none.
func (w *simWatches) node(rng *rand.Rand) *server {
	w.Lives.Lock()
	defer w.Lives.Unlock()
	up := w.Up()
	if len(up) == 0 {
		return nil
	}
	return w.Nodes[up[rng.IntN(len(up))]].Life
}

// run follows on one node after the other, and is cut off at any byte, until it is
// stopped.
func (v *simWatcher) run() {
	for {
		v.mu.Lock()
		done := v.done
		v.mu.Unlock()
		if done {
			return
		}
		if v.rng.IntN(6) == 0 { // a client that begins anew
			v.HasLast, v.Whole, v.Copy = false, false, nil
		}
		bytes := math.MaxInt
		switch v.rng.IntN(6) {
		case 0:
			bytes = v.rng.IntN(800) // in the head, or soon behind it
		case 1, 2:
			bytes = v.rng.IntN(8000)
		case 3:
			bytes = v.rng.IntN(200_000)
		}
		s := v.w.node(v.rng)
		if s == nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		var patience *time.Timer
		if v.rng.IntN(2) == 0 {
			patience = time.AfterFunc(time.Duration(v.rng.Int64N(int64(20*time.Second))), v.hangUp)
		}
		err := v.follow(s, bytes)
		if patience != nil {
			patience.Stop()
		}
		if err != nil {
			v.w.T.Errorf("watcher %s: %v", v.name, err)
			return
		}
		time.Sleep(time.Duration(v.rng.Int64N(int64(300 * time.Millisecond))))
	}
}

// hangUp closes the connection that is open.
func (v *simWatcher) hangUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open != nil {
		_ = v.open.Close()
	}
}

// propose has a node carry out a command. What comes of it, the changes tell.
func (w *simWatches) propose(s *server, cmd []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if s == nil {
		return problem.ErrNoLeader
	}
	return s.proposals.Propose(ctx, cmd).Err
}
