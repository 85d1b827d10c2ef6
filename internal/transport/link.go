package transport

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"path"
	"raftkv/internal/address"
	"raftkv/internal/membership"
	"raftkv/internal/meter"
	"raftkv/internal/peerclient"
	"raftkv/internal/web"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Whether the links to the peers work, and what is done about one that does not.
//
// When a network drops packets, no connection ends. TCP sends again and again,
// each time after twice the wait, so what was cut for a minute may stay silent
// for a minute after it has healed; and the side that only reads never learns
// of it at all. rafthttp sets no time limit on its connections (its streams'
// timeouts do not reach net/http), and its dialer cannot be replaced. But the
// streams of two nodes are ours on one side: a stream is read by the node that
// dialed it and written by the one that accepted it. So:
//
//   - A stream that this node writes ends when the peer's kernel has
//     acknowledged nothing for the limit (peerclient.LimitUnacked). rafthttp writes a
//     heartbeat of its own into each stream every 1.7 s.
//   - Each node asks every peer four times a limit for a sign of life, over a
//     connection of its own. The answer also says how many of the asker's
//     streams that peer still writes.
//   - A peer that gives no sign of life for the limit, or that lacks streams
//     which this node believes to read, is taken out of the transport and put
//     in again. That ends all that was dialed, and dials anew until it succeeds.
//
// A link that is idle is never silent, and one whose peer's process has ended
// is not either: there the kernel refuses the connection.

const (
	// linkLimitMin is the least limit: TCP waits at least 0.2 s before it sends
	// again, and asking should cost less than raft's own messages.
	linkLimitMin = time.Second
	// linkAsks is how often a peer is asked within a limit.
	linkAsks = 4
	// streamsPerPeer is how many streams a peer reads from this node.
	streamsPerPeer = 2
	// maxVain bounds the rest after connections that were made anew in vain, as
	// with a peer that refuses streams: 2, 4, ... 64 limits.
	maxVain = 6
)

// LinkPath is where a peer says that it is there. The asker's ID follows.
const LinkPath = "/raftkv/link/"

// linkAnswer is what a peer says there.
type linkAnswer struct {
	// missing counts the streams that the asker should be reading from the peer,
	// and that the peer does not have.
	Missing int `json:"missing"`
}

// linkLimit is how long a link may be silent.
func linkLimit(electionTimeout time.Duration) time.Duration {
	return max(2*electionTimeout, linkLimitMin)
}

// link is what this node knows of its link to a peer.
type link struct {
	heard  time.Time // when the last sign of life came
	short  time.Time // since when each answer has said that streams are missing; zero: it does not
	remade time.Time // when its connections were last made anew; zero: never
	vain   int       // how often since all streams were there, because some were missing
	asked  bool      // and has not answered yet
}

// broken returns what is wrong with a link, or "". active is since when
// rafthttp believes in one of its connections to the peer, zero for none.
func (l *link) broken(now, active time.Time, limit time.Duration) string {
	// A connection that came about was a sign of life, too. One that broke was
	// not, so a silence has the connections made anew once.
	sign := l.heard
	if active.After(sign) {
		sign = active
	}
	switch {
	case now.Sub(sign) >= limit && l.remade.Before(sign):
		return "it gives no sign of life"
	case !l.short.IsZero() && now.Sub(l.short) >= limit/2 && now.Sub(l.remade) >= limit<<l.vain:
		return "it has lost streams that this node believes to read"
	}
	return ""
}

// answered notes an answer.
func (l *link) answered(now time.Time, missing int) {
	l.heard = now
	switch {
	case missing == 0:
		l.short, l.vain = time.Time{}, 0
	case l.short.IsZero():
		l.short = now
	}
}

// madeAnew notes that the connections were made anew.
func (l *link) madeAnew(now time.Time) {
	l.remade = now
	if !l.short.IsZero() {
		l.short, l.vain = time.Time{}, min(l.vain+1, maxVain)
	}
}

// Links are the links of a node to those that it has told the transport of.
type Links struct {
	log     *zap.Logger
	self    uint64
	cluster uint64
	Limit   time.Duration // how long a link may be silent
	tick    time.Duration
	remade  atomic.Uint64 // connections to a peer made anew
	// Ask asks the peer at a URL for a sign of life.
	Ask func(ctx context.Context, peerURL string, cluster, self uint64) (missing int, err error)
	// ActiveSince is since when the transport believes in a connection to a peer.
	ActiveSince func(id uint64) time.Time
	// Unreachable is told that what was on its way to a peer is lost.
	Unreachable func(id uint64)
	// Opened is told that a peer has begun to read a stream from this node.
	Opened func()
	Group  *errgroup.Group // of the goroutines that the links start

	// peersMu guards what follows, and is held while a peer is added to the
	// transport or taken out of it: the apply loop does that as the membership
	// says, watch when a link is broken.
	peersMu   sync.Mutex
	Transport PeerDirectory
	connected map[uint64]string // in the transport, but for those that LetGo still has to take out
	receiving map[uint64]int    // snapshots on their way to a peer
	outdated  map[uint64]bool   // peers whose connections are to be made anew, when they may be
	renews    bool              // certificates have changed before
	renewed   uint64            // the last of those that were made anew; 0: none was
	renewedAt time.Time

	mu      sync.Mutex
	peers   map[uint64]*link
	streams map[uint64]map[*heldStream]bool // that this node writes, by who reads
}

// heldStream is a stream that this node writes.
type heldStream struct {
	kind string
	conn net.Conn
}

// NewLinks returns the links of node self, to nobody yet. A link may be silent for two
// election timeouts, or for a second if that is longer. The caller sets Ask,
// ActiveSince, Unreachable, Group and Transport before it uses the links.
func NewLinks(log *zap.Logger, self, cluster uint64, tick, electionTimeout time.Duration) *Links {
	return &Links{
		log: log, self: self, cluster: cluster, Limit: linkLimit(electionTimeout), tick: tick,
		Opened: func() {}, connected: make(map[uint64]string), receiving: make(map[uint64]int), outdated: make(map[uint64]bool),
		peers: make(map[uint64]*link), streams: make(map[uint64]map[*heldStream]bool),
	}
}

// follow makes peers those that are watched. If this node has slept, what it
// has not heard meanwhile says nothing.
func (ls *Links) follow(peers map[uint64]string, now time.Time, slept bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for id := range peers {
		if l := ls.peers[id]; l == nil {
			ls.peers[id] = &link{heard: now}
		} else if slept {
			l.heard = now
		}
	}
	maps.DeleteFunc(ls.peers, func(id uint64, _ *link) bool { _, ok := peers[id]; return !ok })
}

// Hear notes that a raft message came from a node.
func (ls *Links) Hear(id uint64) {
	now := time.Now()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.peers[id]; l != nil {
		l.heard = now
	}
}

// update runs f on what is known of a peer, unless it is no longer one.
func (ls *Links) update(id uint64, f func(*link)) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.peers[id]; l != nil {
		f(l)
	}
}

// hold notes a stream until release is called.
func (ls *Links) hold(id uint64, s *heldStream) (release func()) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.streams[id] == nil {
		ls.streams[id] = make(map[*heldStream]bool)
	}
	ls.streams[id][s] = true
	return func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		delete(ls.streams[id], s)
		if len(ls.streams[id]) == 0 {
			delete(ls.streams, id)
		}
	}
}

// missing counts the streams that a peer should be reading and that are not held.
func (ls *Links) missing(id uint64) int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.peers[id] == nil {
		return 0 // it is no peer, and gets none
	}
	kinds := make(map[string]bool)
	for s := range ls.streams[id] {
		kinds[s.kind] = true
	}
	return max(0, streamsPerPeer-len(kinds))
}

// hangUp closes the connections on which this node writes streams to a peer.
// rafthttp would wait, when it lets the peer go, for a write that TCP does not
// give up yet, and with it all that sends to any peer.
func (ls *Links) hangUp(id uint64) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for s := range ls.streams[id] {
		conn := s.conn
		if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
			conn = secured.NetConn() // a farewell of TLS would wait, too
		}
		if conn != nil {
			_ = conn.Close() // it is given up, whatever it says to that
		}
	}
}

// HoldStreams is in front of rafthttp's handler of streams.
func (ls *Links) HoldStreams(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := types.IDFromString(path.Base(r.URL.Path))
		if err != nil {
			next.ServeHTTP(w, r) // which refuses it
			return
		}
		conn := peerclient.ConnOf(r.Context())
		if err := peerclient.LimitUnacked(conn, ls.Limit); err != nil {
			ls.log.Warn("a stream has no time limit", zap.Stringer("to", id), zap.Error(err))
		}
		ls.Opened()
		defer ls.hold(uint64(id), &heldStream{path.Dir(r.URL.Path), conn})()
		w, end := gather(w, r)
		defer end()
		next.ServeHTTP(w, r)
	})
}

// Serve answers a peer that asks whether this node is there.
func (ls *Links) Serve(w http.ResponseWriter, r *http.Request) {
	id, err := address.ParseID(r.PathValue("id"))
	switch {
	case !peerclient.IsFor(r, ls.cluster):
		http.Error(w, "this is another cluster", http.StatusPreconditionFailed)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case peerclient.SenderIs(r.Context(), id) != nil:
		http.Error(w, peerclient.SenderIs(r.Context(), id).Error(), http.StatusForbidden)
	default:
		web.WriteJSON(w, http.StatusOK, linkAnswer{ls.missing(id)})
	}
}

// Connect tells the transport where the members are. It returns those that have
// moved.
func (ls *Links) Connect(m membership.Membership) (moved map[uint64]string) {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	moved = make(map[uint64]string)
	for id, mem := range m.Members {
		url, known := ls.connected[id]
		switch {
		case id == ls.self || url == mem.PeerURL:
			continue
		case known:
			ls.Transport.UpdatePeer(types.ID(id), []string{mem.PeerURL})
			moved[id] = mem.PeerURL
			if address.IsHTTPS(url) != address.IsHTTPS(mem.PeerURL) {
				ls.outdated[id] = true // else its streams would stay as they are
			}
		default:
			ls.Transport.AddPeer(types.ID(id), []string{mem.PeerURL})
			if ls.renews {
				ls.outdated[id] = true // package boot may have added it, before a change
			}
		}
		ls.connected[id] = mem.PeerURL
	}
	return moved
}

// Drop lets go of those that are no longer members, and returns them.
func (ls *Links) Drop(life context.Context, m membership.Membership) (gone []uint64) {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	for id := range ls.connected {
		if _, ok := m.Members[id]; !ok {
			ls.RemoveLater(life, id)
			delete(ls.connected, id)
			delete(ls.outdated, id)
			gone = append(gone, id)
		}
	}
	return gone
}

// FarewellTicks is how long a removed node has to learn of it from its own log.
const FarewellTicks = 3

// RemoveLater takes a former member out of the transport, a little later: its removal
// may still be on its way to it, and when it learns of that from its own log,
// requests that wait on it learn that they did not happen.
func (ls *Links) RemoveLater(life context.Context, id uint64) {
	ls.Group.Go(func() error {
		select {
		case <-time.After(FarewellTicks * ls.tick):
			ls.Transport.RemovePeer(types.ID(id))
		case <-life.Done(): // the transport stops as a whole
		}
		return nil
	})
}

// Watch asks the peers, judges and makes anew.
func (ls *Links) Watch(ctx context.Context) error {
	every := ls.Limit / linkAsks
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now, peers := time.Now(), ls.URLs()
		ls.follow(peers, now, now.Sub(last) > 2*every)
		last = now
		ls.renewOne(now)
		for id, url := range peers {
			ls.watchOne(ctx, id, url, now)
		}
	}
}

// watchOne asks a peer, unless it still owes an answer, and makes its
// connections anew if they are broken.
func (ls *Links) watchOne(ctx context.Context, id uint64, url string, now time.Time) {
	var ask bool
	var why string
	var silent time.Duration
	active := ls.ActiveSince(id)
	ls.update(id, func(l *link) {
		ask, l.asked = !l.asked, true
		why, silent = l.broken(now, active, ls.Limit), max(0, now.Sub(l.heard))
	})
	if why != "" && ls.remake(id) {
		ls.log.Warn("the link to a peer is broken: its connections are made anew",
			zap.Uint64("peer", id), zap.String("because", why), zap.Duration("silent", silent.Round(time.Millisecond)))
		ls.update(id, func(l *link) { l.madeAnew(now) })
		ls.remade.Add(1)
	}
	if ask {
		ls.Group.Go(func() error {
			ls.askOne(ctx, id, url)
			return nil
		})
	}
}

// askOne asks a peer for a sign of life.
func (ls *Links) askOne(ctx context.Context, id uint64, url string) {
	ctx, cancel := context.WithTimeout(ctx, ls.Limit)
	defer cancel()
	missing, err := ls.Ask(ctx, url, ls.cluster, ls.self)
	now := time.Now()
	ls.update(id, func(l *link) {
		l.asked = false
		switch {
		case err == nil:
			l.answered(now, missing)
		case errors.Is(err, syscall.ECONNREFUSED):
			l.heard, l.short = now, time.Time{} // by its kernel: the link works, the process has ended
		default:
			l.short = time.Time{}
		}
	})
}

// remake has the transport let a peer go, with all connections, and take it
// in again. It reports false if it may not: the peer has left, or a snapshot is
// on its way to it, which has limits of its own (StallLimit).
func (ls *Links) remake(id uint64) bool {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	url, ok := ls.connected[id]
	if !ok || ls.receiving[id] > 0 {
		return false
	}
	delete(ls.outdated, id) // a change that comes now counts again
	ls.hangUp(id)
	ls.Transport.RemovePeer(types.ID(id))
	ls.Transport.AddPeer(types.ID(id), []string{url})
	ls.Unreachable(id) // what was on its way is lost: raft sends it again
	return true
}

// Secure has the links follow the certificates of a door, which from now on knows where
// the members are.
func (ls *Links) Secure(door Door) {
	door.KnowMembers(ls.URLs)
	door.OnChange(ls.Renew)
}

// Renew has the connections to all peers be made anew, one peer after the other, and
// to none while a snapshot is on its way to it. It does not wait.
func (ls *Links) Renew() {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	ls.renews = true
	for id := range ls.connected {
		ls.outdated[id] = true
	}
}

// renewOne makes the connections to one peer anew, if those of some are outdated. The
// one before has been connected again, or has had its time.
func (ls *Links) renewOne(now time.Time) {
	ls.peersMu.Lock()
	ids := slices.Sorted(maps.Keys(ls.outdated))
	waits := ls.renewed != 0 && ls.ActiveSince(ls.renewed).IsZero() && now.Sub(ls.renewedAt) < ls.Limit
	ls.peersMu.Unlock()
	if waits {
		return
	}
	for _, id := range ids {
		if !ls.remake(id) {
			continue
		}
		ls.peersMu.Lock()
		ls.renewed, ls.renewedAt = id, now
		ls.peersMu.Unlock()
		ls.log.Info("the connections to a peer were made anew, as its certificates or its URL have changed", zap.Uint64("peer", id))
		return
	}
}

// URLs returns the peers in the transport.
func (ls *Links) URLs() map[uint64]string {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	return maps.Clone(ls.connected)
}

// Receives notes that a snapshot is on its way to a peer, until done is called.
func (ls *Links) Receives(id uint64) (done func()) {
	ls.peersMu.Lock()
	defer ls.peersMu.Unlock()
	ls.receiving[id]++
	return func() {
		ls.peersMu.Lock()
		defer ls.peersMu.Unlock()
		if ls.receiving[id]--; ls.receiving[id] == 0 {
			delete(ls.receiving, id)
		}
	}
}

// AskLink asks the node at a URL for a sign of life. Any answer is one: a program
// that does not know the route yet says that nothing is missing.
func AskLink(ask *peerclient.Client) func(ctx context.Context, peerURL string, cluster, self uint64) (missing int, err error) {
	return func(ctx context.Context, peerURL string, cluster, self uint64) (missing int, err error) {
		var answer linkAnswer
		err = ask.Get(ctx, peerURL+LinkPath+strconv.FormatUint(self, 10), cluster, &answer)
		if _, answered := errors.AsType[*peerclient.AnswerError](err); answered {
			return 0, nil
		}
		return answer.Missing, err
	}
}

// Register adds what there is to count.
func (ls *Links) Register(reg prometheus.Registerer) {
	meter.Counter(reg, "raftkv_links_remade_total", "Times that all connections to a peer were made anew because the link was broken.",
		func() float64 { return float64(ls.remade.Load()) })
}
