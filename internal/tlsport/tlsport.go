// Package tlsport answers: is a connection secured, and who is at its other end?
//
// A handshake is made in a goroutine of its connection's own. Clients that begin one and
// do not go on hold up nobody: so many may be under way, and the oldest gives way to the
// next.
package tlsport

import (
	"container/list"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"raftkv/internal/meter"
	"raftkv/internal/web"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// MostHandshakes is how many handshakes of one port may be under way: one takes some
// 30 KiB, and a millisecond where the network is near.
const MostHandshakes = 512

// saidEvery is the time between two lines about handshakes that failed.
const saidEvery = time.Second

// handshakeRecord is the first byte of a TLS handshake. No HTTP request begins with it.
const handshakeRecord = 0x16

// IsTLS reports whether a connection whose first byte this is begins a handshake.
func IsTLS(first byte) bool { return first == handshakeRecord }

// Config is what a port needs.
type Config struct {
	Log  *zap.Logger
	Door string      // "client" or "peer", in metrics
	TLS  *tls.Config // of the server's side
	// Optional lets connections in that are not secured.
	Optional bool
	// Names returns the names that a verified certificate gives its holder.
	Names func(*x509.Certificate) []string
}

// Port secures the connections of one listener. It is made by New.
type Port struct {
	Config
	most int // handshakes under way; MostHandshakes, fewer in tests

	mu       sync.Mutex
	under    *list.List         // of *wire: handshakes under way, the oldest first
	verified map[*Conn]struct{} // those open whose client has shown a certificate

	valid   func(*tls.ConnectionState) error // as Recheck's, of what is in force now; nil: nothing changes
	changes atomic.Uint64                    // of what is in force

	made, failed, evicted, plain atomic.Uint64
	said                         atomic.Int64  // when the last line about failures was written
	unsaid                       atomic.Uint64 // failures since
}

// New returns a port for connections that are secured as c says.
func New(c Config) *Port {
	return &Port{Config: c, most: MostHandshakes, under: list.New(), verified: make(map[*Conn]struct{})}
}

// ErrNotSecured: somebody speaks plain HTTP to a port that takes TLS alone.
var ErrNotSecured = errors.New("a client does not speak TLS")

// errEvicted: newer handshakes needed the place.
var errEvicted = errors.New("too many handshakes were under way")

// Conn is a secured connection.
type Conn struct {
	*tls.Conn
	wire   *wire
	client *web.Client
	state  tls.ConnectionState
}

// Client is who is at the other end.
func (c *Conn) Client() *web.Client { return c.client }

// SyscallConn is for options of the connection below.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.wire.SyscallConn() }

// IsHTTP2 reports whether HTTP/2 was agreed on: then net/http needs the *tls.Conn itself.
func (c *Conn) IsHTTP2() bool { return c.state.NegotiatedProtocol == "h2" }

// Closed has f called once the connection is closed, which it may be already.
func (c *Conn) Closed(f func()) {
	w := c.wire
	w.mu.Lock()
	gone, before := w.gone, w.closed
	if !gone {
		w.closed = func() { before(); f() }
	}
	w.mu.Unlock()
	if gone {
		f()
	}
}

// Handshake secures a connection from which begun was read already. It has no time limit:
// the caller closes nc if it takes too long. After an error, nc is closed.
func (p *Port) Handshake(nc net.Conn, begun []byte) (*Conn, error) {
	w := &wire{Conn: nc, begun: begun, closed: func() {}}
	place, changes := p.enter(w), p.changes.Load()
	secured := tls.Server(w, p.TLS)
	defer p.leave(place) // if there is a fault
	err := secured.Handshake()
	if !p.leave(place) {
		err = errors.Join(errEvicted, err)
	}
	if err != nil {
		_ = nc.Close() // the error is told already
		p.fail(nc, err)
		return nil, err
	}
	c := &Conn{Conn: secured, wire: w, state: secured.ConnectionState()}
	shown := len(c.state.VerifiedChains) > 0
	var names []string
	if shown {
		names = p.Names(c.state.PeerCertificates[0])
	}
	c.client = web.NewClient(nc.RemoteAddr().String(), true, names, func() { _ = nc.Close() })
	w.client = c.client
	if shown {
		p.watch(c)
		// Recheck has not seen it if what is in force has changed since the handshake began.
		if p.changes.Load() != changes {
			err = p.valid(&c.state)
		}
	}
	if err != nil {
		_ = w.Close() // the error is told already
		p.fail(nc, err)
		return nil, err
	}
	p.made.Add(1)
	return c, nil
}

// enter finds a handshake a place, of which it may deprive the oldest.
func (p *Port) enter(w *wire) *list.Element {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.under.Len() >= p.most {
		oldest := p.under.Remove(p.under.Front()).(*wire)
		_ = oldest.Close() // which ends its handshake
		p.evicted.Add(1)
	}
	return p.under.PushBack(w)
}

// leave gives a handshake's place back. False: it had none any more.
func (p *Port) leave(place *list.Element) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.under.Len()
	p.under.Remove(place) // does nothing to what is no longer in the list
	return p.under.Len() < was
}

// watch keeps a connection in mind whose client has shown a certificate.
func (p *Port) watch(c *Conn) {
	p.mu.Lock()
	p.verified[c] = struct{}{}
	p.mu.Unlock()
	c.Closed(func() {
		p.mu.Lock()
		delete(p.verified, c)
		p.mu.Unlock()
	})
}

// Recheck ends the connections whose client's certificate is not valid any more: it has
// expired, or its CA is no longer trusted. Answers that are under way are finished.
func (p *Port) Recheck(valid func(*tls.ConnectionState) error) {
	p.mu.Lock()
	all := slices.Collect(maps.Keys(p.verified))
	p.mu.Unlock()
	ended := 0
	for _, c := range all { // not under the lock: for many it takes seconds, and handshakes need it
		if !c.client.IsExpired() { // else it was told of, and had something to finish
			if valid(&c.state) == nil {
				continue
			}
			ended++
		}
		c.client.Expire()
	}
	if ended > 0 {
		p.Log.Info("ended connections whose certificates are not valid any more", zap.String("door", p.Door), zap.Int("connections", ended))
	}
}

// fail counts a handshake that failed, and says so, once in a while.
func (p *Port) fail(nc net.Conn, err error) {
	p.failed.Add(1)
	p.unsaid.Add(1)
	now := time.Now().UnixNano()
	if last := p.said.Load(); now-last < int64(saidEvery) || !p.said.CompareAndSwap(last, now) {
		return
	}
	p.Log.Warn("a TLS handshake has failed", zap.String("door", p.Door), zap.String("from", nc.RemoteAddr().String()),
		zap.Error(err), zap.Uint64("failed", p.unsaid.Swap(0)))
}

// NotTLS counts a connection whose first byte says that it is not secured. The error says
// that the port does not take those.
func (p *Port) NotTLS(nc net.Conn) error {
	if p.Optional {
		p.plain.Add(1)
		return nil
	}
	p.fail(nc, ErrNotSecured)
	return ErrNotSecured
}

// Register adds what there is to count.
func (p *Port) Register(reg prometheus.Registerer) {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"door": p.Door}, reg)
	meter.Counters(reg, "raftkv_tls_handshakes_total", "TLS handshakes with clients or peers, by what became of them.", "result",
		map[string]func() uint64{"made": p.made.Load, "failed": p.failed.Load, "evicted": p.evicted.Load, "plain": p.plain.Load})
}
