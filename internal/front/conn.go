package front

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"raftkv/internal/api"
	"raftkv/internal/front/plain"
	"raftkv/internal/state"
	"raftkv/internal/tlsport"
	"raftkv/internal/web"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// conn is a connection, and the request on it that is being served. But for what is
// guarded by mu, it belongs to its own goroutine.
type conn struct {
	srv    *Server
	nc     net.Conn        // guarded by mu until secure has returned
	raw    syscall.RawConn // nil where one cannot write without waiting
	sealed *tlsport.Conn   // nc, if it is secured; else nil
	client *web.Client
	end    func() // closes a secured connection, whatever it is doing

	buf     []byte
	n       int  // buf[:n] has come, and is not used up
	ended   bool // the client sends nothing more
	head    plain.Head
	host    string // the last that was allowed
	shown   string // the last Authorization
	release func() // gives back what the body holds of the memory for all; or nil

	clock clock

	mu      sync.Mutex
	req     api.KeyRequest
	res     state.Result // what req waited for; written before the answering goroutine has the connection
	began   time.Time
	counted bool        // req began, and its end is not counted yet
	waits   bool        // req is not answered yet
	more    bool        // something has come behind req
	closing bool        // the connection ends behind the answer
	broken  bool        // nothing can be written
	rest    net.Buffers // what is left to write of the answer
	sleeps  bool        // the connection's goroutine waits for wake
	roused  bool        // its read was ended by a deadline
	wake    chan struct{}
}

// phase is what a connection is doing, for what may take too long.
type phase int64

const (
	busy   phase = iota // without a limit here
	idle                // until the next request
	first               // while nothing has come; past Limits.Head it becomes idle
	again               // until there is the rest of a head
	late                // until the rest of a body comes
	taking              // until the client takes an answer
	over                // the time was up

	phases = 8
)

// clock is a phase, and the sweep that ends it. Who wants to change it has to see
// whether its time was up before.
type clock struct{ at atomic.Int64 }

// enter begins a phase. False: the time of the one before was up.
func (c *clock) enter(p phase, until int64) bool {
	return phase(c.at.Swap(until*phases+int64(p))%phases) != over
}

// due reports whether a phase's time is up.
func (c *clock) due(tick int64) bool {
	at := c.at.Load()
	p := phase(at % phases)
	return p != busy && p != over && at/phases <= tick
}

// end ends a phase whose time is up, and returns it; else busy.
func (c *clock) end(tick int64) phase {
	at := c.at.Load()
	if c.due(tick) && c.at.CompareAndSwap(at, int64(over)) {
		return phase(at % phases)
	}
	return busy
}

// toIdle begins idle for a connection on which nothing has come yet. Clients open one before
// they need it: when theirs is the time limit of a head that has begun, such a client meets
// the end of the connection with its first request, of which it cannot tell what became.
func (c *clock) toIdle(tick, until int64) bool {
	at := c.at.Load()
	return phase(at%phases) == first && at/phases <= tick && c.at.CompareAndSwap(at, until*phases+int64(idle))
}

// until returns the sweep after which so much time has passed.
func (s *Server) until(limit time.Duration) int64 {
	return s.tick.Load() + 1 + int64((limit+sweepEvery-1)/sweepEvery)
}

// past is a deadline that gets a goroutine out of a read.
var past = time.Unix(1, 0)

// sweep ends what has taken too long.
func (c *conn) sweep(tick int64) {
	if !c.clock.due(tick) {
		return
	}
	if c.clock.toIdle(tick, c.srv.until(c.srv.limits.Idle-c.srv.limits.Head)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.clock.end(tick) {
	case busy:
	case late:
		_ = c.nc.SetReadDeadline(past) // fails where the connection is closed
	default:
		_ = c.nc.Close() // likewise
	}
}

// endIdle closes a connection that has had its answers. What has come of a further
// request was not begun.
func (c *conn) endIdle() { c.endIn(idle, again) }

// endExpired is endIdle for a client that has expired: also where nothing has come yet.
func (c *conn) endExpired() { c.endIn(idle, again, first) }

// endIn closes a connection that is in one of these phases.
func (c *conn) endIn(in ...phase) {
	at := c.clock.at.Load()
	if slices.Contains(in, phase(at%phases)) && c.clock.at.CompareAndSwap(at, int64(over)) {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.nc.Close() // nothing is lost
	}
}

// cut ends a connection at once.
func (c *conn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	_ = c.nc.Close() // what is lost was not acknowledged
	c.rouse()
}

// rouse gets the connection's goroutine to look at what is guarded by mu. The caller
// holds that.
func (c *conn) rouse() {
	if c.sleeps {
		c.sleeps = false
		c.wake <- struct{}{}
		return
	}
	c.roused = true
	_ = c.nc.SetReadDeadline(past) // fails where it is closed, which ends the read as well
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer c.srv.leave(c)
	handed := false
	defer func() {
		c.caught(recover())
		if !handed {
			_ = c.nc.Close() // for the second time perhaps
			c.srv.open.Add(-1)
			c.buf = nil // what req waits for may know of c for as long as it would have waited
		}
	}()
	c.clock.enter(c.srv.begins(), c.srv.until(c.srv.limits.Head))
	switch why, ok := c.secure(); {
	case !ok:
		return
	case why != plain.Yes:
		handed = true
		c.handOver(why)
		return
	}
	for {
		why, ok := c.read()
		if !ok {
			return
		}
		if why != plain.Yes {
			handed = true
			c.handOver(why)
			return
		}
		if !c.exchange() {
			return
		}
	}
}

// begins is what a new connection is doing. Where all speak TLS, to open one is to begin a
// handshake: who does not has shown no certificate either, and takes a place from those
// who have.
func (s *Server) begins() phase {
	if s.port != nil && !s.port.Optional {
		return again
	}
	return first
}

// caught counts and logs a panic. The connection ends by it, since its state is not
// known.
func (c *conn) caught(panicked any) {
	if panicked == nil {
		return
	}
	c.srv.panics.Add(1)
	c.srv.log.Error("a request has met a fault in the program; its connection ends", zap.Any("panic", panicked), zap.StackSkip("stack", 2))
	_ = c.nc.Close() // the fault is told already
	c.req.Answer.Status = http.StatusInternalServerError
	c.count()
}

// count counts the request, once.
func (c *conn) count() {
	if c.counted {
		c.counted = false
		(*c.srv.handler.Load()).Answered(&c.req, c.began)
	}
}

// fill reads once. An error says that the client is gone, or, if it is
// os.ErrDeadlineExceeded, that there is something to look at.
func (c *conn) fill() error {
	n, err := c.nc.Read(c.buf[c.n:])
	c.n += n
	if errors.Is(err, io.EOF) {
		c.ended = true
		return nil
	}
	return err
}

// read reads until there is a whole request that is plain, or one that is not. False:
// there is no client any more.
func (c *conn) read() (why plain.Reason, ok bool) {
	if why, ok = c.readHead(); !ok || why != plain.Yes {
		return why, ok
	}
	if why = c.admit(); why != plain.Yes {
		return why, true
	}
	if whole := c.head.Bytes + int(c.head.Length); c.n < whole {
		why = c.readBody(whole)
	}
	if why == plain.Yes && !c.clock.enter(busy, 0) {
		return plain.Slow, true // where the connection is closed, nothing comes of it
	}
	return why, true
}

// readHead reads until there is a whole head.
func (c *conn) readHead() (why plain.Reason, ok bool) {
	for begun := false; ; {
		if c.n > 0 {
			if why := c.head.Parse(c.buf[:c.n]); why != plain.More {
				return why, true
			}
			if !begun && !c.clock.enter(again, c.srv.until(c.srv.limits.Head)) {
				return plain.Yes, false
			}
			begun = true
		}
		switch {
		case c.ended && c.n == 0:
			return plain.Yes, false
		case c.ended:
			return plain.Form, true // broken off
		case c.n == len(c.buf):
			return plain.Size, true
		}
		if err := c.fill(); err != nil {
			return plain.Yes, false
		}
	}
}

// admit decides what the head does not tell by itself.
func (c *conn) admit() plain.Reason {
	h := c.srv.handler.Load()
	switch {
	case h == nil:
		return plain.Starting
	case c.head.Length > c.srv.limits.Value:
		return plain.Size
	case c.host == string(c.head.Host):
		return plain.Yes
	case !(*h).Allows(string(c.head.Host)):
		return plain.Host
	}
	c.host = string(c.head.Host)
	return plain.Yes
}

// readBody reads until there is a whole request.
func (c *conn) readBody(whole int) plain.Reason {
	if whole > bufferSize {
		release, ok := (*c.srv.handler.Load()).Hold(c.head.Length)
		if !ok {
			return plain.Size
		}
		c.release = release
		buf := make([]byte, whole)
		copy(buf, c.buf[:c.n])
		c.buf = buf
	}
	c.clock.enter(late, c.srv.until(patience))
	for c.n < whole {
		switch err := c.fill(); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return plain.Slow
		case err != nil, c.ended:
			return plain.Form // broken off
		}
	}
	return plain.Yes
}

// let gives back what a body held of all bodies' memory.
func (c *conn) let() {
	if c.release != nil {
		c.release()
		c.release = nil
	}
}

// exchange serves the request that was read. False: the connection ends.
func (c *conn) exchange() bool {
	used := c.head.Bytes + int(c.head.Length)
	waits := c.begin(c.n > used)
	c.n = copy(c.buf, c.buf[used:c.n])
	if len(c.buf) > bufferSize { // then nothing was behind the request
		c.buf = make([]byte, bufferSize)
	}
	if waits {
		return c.await()
	}
	scratch := c.srv.scratch.Get().(*[]byte)
	defer c.srv.scratch.Put(scratch)
	out, value := c.render((*scratch)[:0])
	*scratch = out[:0]
	c.count()
	return c.write(buffers(out, value))
}

// begin begins the request that was read, and reports whether it waits.
func (c *conn) begin(more bool) bool {
	defer c.let()
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.head
	c.req = api.KeyRequest{Method: h.Method, Key: h.Key, Long: h.Long, Query: h.Query, IfMatch: h.Match, IfNoneMatch: h.NoneMatch,
		IdempotencyKey: h.RequestKey, Length: h.Length}
	if c.shown != string(h.Authorization) {
		c.shown = string(h.Authorization)
	}
	c.req.Client, c.req.Authorization = c.client, c.shown
	c.began, c.closing = time.Now(), h.Close
	c.counted, c.more = true, more
	c.waits = (*c.srv.handler.Load()).Begin(&c.req, c.buf[h.Bytes:h.Bytes+int(h.Length)], c)
	return c.waits
}

// write writes what is left of an answer, and waits for the client with it.
func (c *conn) write(rest net.Buffers) bool {
	c.clock.enter(taking, c.srv.until(c.srv.limits.Answer))
	err := c.put(rest)
	return c.clock.enter(idle, c.srv.until(c.srv.limits.Idle)) && err == nil && !c.closing
}

// await reads on until the request is answered, into what is left of the buffer. False:
// the connection ends.
func (c *conn) await() bool {
	for {
		var err error
		if c.hasRoom() {
			err = c.fill()
		}
		rest, next := c.settle(err)
		switch next {
		case goOn:
			return true
		case writeOn:
			return c.write(rest)
		case end:
			return false
		case sleep:
			<-c.wake
		}
	}
}

// hasRoom reports whether there is something to read, and room for it.
func (c *conn) hasRoom() bool { return c.n < len(c.buf) && !c.ended }

// next is what a connection's goroutine does while its request is served.
type next int

const (
	readOn next = iota
	sleep
	goOn    // with the next request
	writeOn // the rest of the answer
	end
)

// settle looks at what became of the request, after a read that ended in err.
func (c *conn) settle(err error) (rest net.Buffers, _ next) {
	c.mu.Lock()
	defer c.mu.Unlock()
	late := errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case err != nil && !late || c.broken:
		if c.waits { // and nobody does any more
			c.waits = false
			(*c.srv.handler.Load()).GiveUp(&c.req)
			c.count()
		}
		return nil, end
	case c.roused && c.nc.SetReadDeadline(time.Time{}) != nil:
		return nil, end
	}
	c.roused = false
	switch {
	case c.waits && c.hasRoom():
		c.more = c.n > 0
		return nil, readOn
	case c.waits:
		c.sleeps = true
		return nil, sleep
	case c.rest != nil:
		rest, c.rest = c.rest, nil
		return rest, writeOn
	case c.closing:
		return nil, end
	}
	return nil, goOn
}

// handOver gives the connection to the net/http server, with what was read.
func (c *conn) handOver(why plain.Reason) {
	c.let()
	c.mu.Lock()
	c.clock.enter(busy, 0)
	err := c.nc.SetReadDeadline(time.Time{})
	c.mu.Unlock()
	srv := c.srv // closed is kept as long as the connection, which c and its buffer need not be
	closed := func() { srv.open.Add(-1) }
	if c.sealed != nil {
		if c.end != nil {
			c.client.EndBy(c.end)
		}
		c.clock.enter(taking, srv.until(srv.limits.Answer)) // whoever asks for new keys must take the answer, too
		err = errors.Join(err, c.sealed.Flush())
		if !c.clock.enter(busy, 0) {
			err = errors.Join(err, net.ErrClosed)
		}
		c.sealed.Hold(false)
	}
	if c.sealed != nil && c.sealed.IsHTTP2() {
		c.sealed.Closed(closed)
		srv.pass(c.sealed.Conn, why, err)
		return
	}
	r := &resumed{Conn: c.nc, client: c.client, closed: closed}
	r.from = io.MultiReader(bytes.NewReader(c.buf[:c.n]), c.nc) // which lets go of the buffer
	if c.sealed != nil {
		srv.pass(&resumedTLS{r, c.sealed}, why, err)
		return
	}
	srv.pass(r, why, err)
}

// pass gives a connection away, unless it is broken.
func (s *Server) pass(nc net.Conn, why plain.Reason, broken error) {
	if broken != nil {
		_ = nc.Close()
		return
	}
	s.handed[why].Add(1)
	s.handOver(nc)
}

// resumedTLS is a resumed connection that is secured. net/http knows it by ConnectionState.
type resumedTLS struct {
	*resumed
	sealed interface{ ConnectionState() tls.ConnectionState }
}

// ConnectionState is what was agreed on when the connection was secured.
func (r *resumedTLS) ConnectionState() tls.ConnectionState { return r.sealed.ConnectionState() }

// resumed is a connection of which something was read already.
type resumed struct {
	net.Conn
	client *web.Client
	from   io.Reader
	once   sync.Once
	closed func() // called once
}

// Client is who is at the other end.
func (r *resumed) Client() *web.Client { return r.client }

// Close implements net.Conn.
func (r *resumed) Close() error {
	err := r.Conn.Close()
	r.once.Do(r.closed)
	return err
}

// Read reads first what was read already.
func (r *resumed) Read(p []byte) (int, error) { return r.from.Read(p) }

// CloseWrite lets net/http end its side of the connection first.
func (r *resumed) CloseWrite() error {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn is for options of the connection. What was read already, only Read returns.
func (r *resumed) SyscallConn() (syscall.RawConn, error) {
	if sys, ok := r.Conn.(syscall.Conn); ok {
		return sys.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
