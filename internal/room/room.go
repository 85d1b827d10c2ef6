// Package room answers: is there room on the disks of the cluster for this write?
// Each node tells the others how full its disk is; growing writes are refused,
// everywhere and before they are proposed, while one more full disk would cost the
// majority.
package room

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/peerclient"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/storage/walroom"
	"raftkv/internal/wait"
	"raftkv/internal/web"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Writes are refused before the disk is full. Each node keeps a reserve free,
// --min-free, and measures its disk. One whose room runs short tells the leader;
// the leader judges by all of them what the cluster can still take, and tells the
// others, who then refuse the rest before it is proposed. So long as all disks
// have room, nobody sends anything.

// Shortage is how short of room a disk is, and what is refused for it. Each value
// refuses its own kind of write, and those of all lower values.
type Shortage int

const (
	Plenty Shortage = iota // nothing is refused
	// ShortForGrowth: less than the reserve is free. Writes that make the store
	// grow are refused.
	ShortForGrowth
	// ShortForPuts: half of the reserve is left for the log. All that put a value
	// are refused, so that the next quarter is for those that delete.
	ShortForPuts
	// ShortForDeletes: the last quarter is for what raft must write: changes of
	// the members, checks, elections. Deletes are refused, too.
	ShortForDeletes
	// ShortForEntries: half of that is for elections alone. This node takes no
	// entries from a leader any more, and proposes none.
	ShortForEntries
)

const (
	// roomFirst, roomOften and roomLast are the times between two looks at the disk:
	// when there is four times the reserve, when there is less, and when there is less
	// than twice the reserve, where a fast disk is filled within a second.
	roomFirst = time.Second
	roomOften = 100 * time.Millisecond
	roomLast  = 20 * time.Millisecond
	// roomTold is how often a node that is short tells the leader, and the leader
	// what is refused.
	roomTold = time.Second
	// Trusted is how long what was heard counts.
	Trusted = 3 * time.Second
	// compactEvery is how often a node that is short asks itself for a snapshot,
	// which lets go of the log before it, and compactSoon how often if the log is
	// larger than what a snapshot would take.
	compactEvery = time.Minute
	compactSoon  = 5 * time.Second
	// roomMargin: this part of the reserve more must be free for a shortage to end.
	roomMargin = 16
	// SnapshotReserve is what a snapshot that comes in leaves of the disk, until
	// the reserve is known: the log goes on meanwhile.
	SnapshotReserve = 32 << 20
	// smallDisk: the reserve is at most this part of the disk.
	smallDisk = 3
)

// Note is what nodes tell each other of their disks.
type Note struct {
	From uint64 `json:"from"`
	// Short is how short of room the sender's disk is, Free what it has.
	Short Shortage `json:"short"`
	Free  int64    `json:"free"`
	// Leads: it comes from the leader, and Refuse is what it lets nobody write.
	Leads  bool     `json:"leads,omitempty"`
	Refuse Shortage `json:"refuse,omitempty"`
	// Full are the nodes because of which it does.
	Full []uint64 `json:"full,omitempty"`
}

// SaidBy returns who says it.
func (n Note) SaidBy() uint64 { return n.From }

// ruling is what is refused, and until when that counts.
type ruling struct {
	Refuse Shortage
	full   []uint64
	until  time.Time
}

// roomStore is what the Keeper needs of the state.
type roomStore interface {
	Membership() (m membership.Membership, index uint64)
	Used(key string) state.Holding
	// AskForSnapshot has a snapshot of an index, or a later one, taken soon.
	AskForSnapshot(index uint64)
}

// Keeper measures this node's disk, and knows what is refused.
type Keeper struct {
	log     *zap.Logger
	id      uint64
	cluster uint64
	dir     string
	minFree int64 // --min-free
	store   roomStore
	applied *wait.Index
	leaders *wait.Leadership
	storage *storage.Storage
	Disk    func(dir string) (durable.Disk, error) // measures the file system that dir is on
	// Tell sends a note to the node at PeerURL.
	Tell func(ctx context.Context, peerURL string, cluster uint64, n Note) error

	short   atomic.Int64 // of this node's own disk
	free    atomic.Int64
	reserve atomic.Int64 // --min-free, or less on a small disk; 0 until the disk is measured
	Keep    atomic.Int64 // what snapshots that come in leave free
	ruled   atomic.Pointer[ruling]

	news    chan struct{} // a member has told the leader of another shortage
	mu      sync.Mutex
	heard   map[uint64]heardNote // by the leader
	sending map[uint64]bool
	told    map[uint64]time.Time // when a member was last told; empty: all have to hear
	group   sync.WaitGroup

	// Of run alone:
	measured  bool
	toldShort bool // that it is short: so the leader has to hear when it is not
	rules     bool // as the leader it refuses something
	compacted time.Time
}

type heardNote struct {
	Note
	at time.Time
}

// New returns a keeper that has not measured the disk yet and refuses nothing. Tell
// must be set before Run.
func New(log *zap.Logger, cfg config.Config, st *storage.Opened, store roomStore, applied *wait.Index, leaders *wait.Leadership) *Keeper {
	r := &Keeper{
		log: log, id: cfg.ID, cluster: st.Identity.ClusterID, dir: cfg.DataDir, minFree: cfg.MinFree, store: store, applied: applied, leaders: leaders,
		storage: st.Storage, Disk: durable.DiskOf, heard: make(map[uint64]heardNote), sending: make(map[uint64]bool),
		told: make(map[uint64]time.Time), news: make(chan struct{}, 1),
	}
	r.Keep.Store(SnapshotReserve)
	return r
}

// reserveOf is the reserve on a disk of that size.
func reserveOf(minFree, total int64) int64 { return min(minFree, total/smallDisk) }

// judge says how short of room a disk is on which so much is free, and on which so
// much can be written to the log.
func judge(reserve, free, left int64) Shortage {
	switch {
	case reserve == 0:
		return Plenty
	case left < reserve/8:
		return ShortForEntries
	case left < reserve/4:
		return ShortForDeletes
	case left < reserve/2:
		return ShortForPuts
	case free < reserve:
		return ShortForGrowth
	}
	return Plenty
}

// Run measures the disk until ctx ends.
func (r *Keeper) Run(ctx context.Context) error {
	defer r.group.Wait()
	if r.minFree == 0 {
		r.log.Info("writes are not refused when the disk becomes full: --min-free is 0")
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		leader, _, changed := r.leaders.Get()
		select {
		case <-timer.C:
		case <-changed:
			r.tellAnew() // the new one has to hear
			continue
		case <-r.news:
			r.share(ctx, leader, time.Now())
			continue
		case <-ctx.Done():
			return nil
		}
		every := r.look()
		r.share(ctx, leader, time.Now())
		timer.Reset(every)
	}
}

// look measures the disk, and returns when to do so again.
func (r *Keeper) look() time.Duration {
	d, err := r.Disk(r.dir)
	if err != nil {
		if !r.measured {
			r.log.Info("cannot tell how full the disk is; writes will not be refused when it becomes full", zap.Error(err))
			r.measured = true
		}
		return time.Minute
	}
	reserve := reserveOf(r.minFree, d.Total)
	if !r.measured || reserve != r.reserve.Load() {
		r.reserve.Store(reserve)
		r.measured = true
		if reserve < r.minFree {
			r.log.Warn("the data directory is on a small disk: less than --min-free is kept free",
				zap.Int64("disk", d.Total), zap.Int64("min-free", r.minFree), zap.Int64("kept", reserve))
		}
		r.storage.Trouble.Keep.Store(reserve / 4)
		r.Keep.Store(reserve / 4)
	}
	log, was := r.storage.Room, Shortage(r.short.Load())
	now, margin := judge(reserve, d.Free, log.Reach(d.Free)), reserve/roomMargin
	if now < was { // not for a moment only
		now = min(was, judge(reserve, d.Free-margin, log.Reach(d.Free)-margin))
	}
	if reserve > 0 && log.Waiting.Load() {
		now = ShortForEntries
	}
	r.free.Store(d.Free)
	r.short.Store(int64(now))
	if was != now {
		r.sayShort(was, now, d)
		r.tellAnew()
	}
	if now > Plenty {
		r.compact()
	}
	switch {
	case d.Free < 2*reserve:
		return roomLast
	case d.Free < 4*reserve:
		return roomOften
	}
	return roomFirst
}

// compact asks for a snapshot from time to time, since the log before it can go.
func (r *Keeper) compact() {
	grown, since := r.storage.Tail.Grown.Load(), time.Since(r.compacted)
	small := r.store.Used("").Bytes < uint64(max(grown, 0))
	if grown > walroom.LogSlack && (since > compactEvery || small && since > compactSoon) {
		r.compacted = time.Now()
		r.store.AskForSnapshot(r.applied.Get())
	}
}

func (r *Keeper) sayShort(was, now Shortage, d durable.Disk) {
	about := []zap.Field{logging.News, zap.Stringer("now", now), zap.Stringer("before", was), zap.Int64("free", d.Free), zap.Int64("min-free", r.reserve.Load())}
	if now < was {
		r.log.Info("the disk is less short of room", about...)
	} else {
		r.log.Warn("the disk has become short of room", about...)
	}
}

func (s Shortage) String() string {
	switch s {
	case Plenty:
		return "not short"
	case ShortForGrowth:
		return "too short for writes that make the store grow"
	case ShortForPuts:
		return "too short for writes of values"
	case ShortForDeletes:
		return "too short for writes and deletes"
	}
	return "too short for more of the log"
}

// share tells the leader of this node's disk, or, on the leader, the others what
// is refused.
func (r *Keeper) share(ctx context.Context, leader uint64, now time.Time) {
	if leader == r.id {
		r.rule(ctx, now)
		return
	}
	r.rules = false
	short := Shortage(r.short.Load())
	low := r.free.Load() < 2*r.reserve.Load()
	if leader == 0 || !(low || short > Plenty || r.toldShort) {
		return
	}
	m, _ := r.store.Membership()
	if r.send(ctx, m.Members[leader], Note{From: r.id, Short: short, Free: r.free.Load()}, now) {
		r.toldShort = low || short > Plenty
	}
}

// rule judges, on the leader, what is to be refused.
func (r *Keeper) rule(ctx context.Context, now time.Time) {
	m, _ := r.store.Membership()
	refuse, full := r.decide(m.Voters(), now)
	old := r.ruled.Load()
	if refuse == Plenty && !r.rules {
		return // what a former leader has ruled, its own time ends
	}
	changed := old == nil || old.Refuse != refuse || !slices.Equal(old.full, full)
	r.ruled.Store(&ruling{refuse, full, now.Add(Trusted)})
	if changed {
		r.log.Warn("the leader has judged what is to be refused, by how full the disks are", logging.News,
			zap.Stringer("room", refuse), zap.Uint64s("full", full))
		r.tellAnew()
	}
	r.rules = refuse > Plenty
	for _, mem := range m.Sorted() {
		if mem.ID != r.id {
			r.send(ctx, mem, Note{From: r.id, Short: Shortage(r.short.Load()), Free: r.free.Load(), Leads: true, Refuse: refuse, Full: full}, now)
		}
	}
}

// decide returns the highest shortage for which the leader itself is short, or
// for which one more disk like that would cost the voters their majority.
func (r *Keeper) decide(voters []uint64, now time.Time) (refuse Shortage, full []uint64) {
	own := Shortage(r.short.Load())
	r.mu.Lock()
	defer r.mu.Unlock()
	for level := ShortForDeletes; level > Plenty; level-- {
		full = nil
		for _, id := range voters {
			n := r.heard[id]
			if id == r.id && own >= level || id != r.id && n.Short >= level && now.Sub(n.at) < Trusted {
				full = append(full, id)
			}
		}
		oneMore := len(full) > 0 && len(voters)-len(full)-1 < len(voters)/2+1
		if own >= level || oneMore {
			return level, full
		}
	}
	return Plenty, nil
}

// tellAnew has all members told at once of what is new.
func (r *Keeper) tellAnew() {
	r.mu.Lock()
	clear(r.told)
	r.mu.Unlock()
}

// send tells a member, and returns true, unless the member has heard of late, or is
// still being told something older: then the next look tries again.
func (r *Keeper) send(ctx context.Context, to membership.Member, n Note, now time.Time) bool {
	if r.Tell == nil || to.ID == 0 {
		return false
	}
	r.mu.Lock()
	ok := !r.sending[to.ID] && now.Sub(r.told[to.ID]) >= roomTold
	if ok {
		r.sending[to.ID], r.told[to.ID] = true, now
	}
	r.mu.Unlock()
	if !ok {
		return false
	}
	r.group.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, roomTold)
		defer cancel()
		if err := r.Tell(ctx, to.PeerURL, r.cluster, n); err != nil {
			r.log.Debug("could not tell a member of the disks", zap.Uint64("member", to.ID), zap.Error(err))
		}
		r.mu.Lock()
		r.sending[to.ID] = false
		r.mu.Unlock()
	})
	return true
}

// Hear takes a note from another node.
func (r *Keeper) Hear(n Note) {
	leader, _, _ := r.leaders.Get()
	n.Short, n.Refuse = min(max(n.Short, Plenty), ShortForEntries), min(max(n.Refuse, Plenty), ShortForDeletes)
	switch {
	case n.Leads && n.From == leader && leader != r.id:
		r.ruled.Store(&ruling{n.Refuse, n.Full, time.Now().Add(Trusted)})
	case !n.Leads && leader == r.id:
		m, _ := r.store.Membership()
		if _, ok := m.Members[n.From]; ok {
			r.mu.Lock()
			changed := r.heard[n.From].Short != n.Short
			r.heard[n.From] = heardNote{n, time.Now()}
			r.mu.Unlock()
			if changed {
				select {
				case r.news <- struct{}{}:
				default: // it will look anyway
				}
			}
		}
	}
}

// Refusing returns what is refused now.
func (r *Keeper) Refusing() ruling {
	if v := r.ruled.Load(); v != nil && time.Now().Before(v.until) {
		return *v
	}
	return ruling{}
}

// Admit refuses a command of a client's for which the disks have no room: a put
// of so many bytes, or with -1 a delete. It is asked before that is proposed, and
// never when it is applied: nodes may know different things at that moment.
func (r *Keeper) Admit(key string, size int) error {
	v := r.Refusing()
	if v.Refuse == Plenty {
		return nil
	}
	needs := ShortForDeletes
	if size >= 0 {
		needs = ShortForPuts
		if uint64(len(key)+size) > r.store.Used(key).Old {
			needs = ShortForGrowth
		}
	}
	if v.Refuse < needs {
		return nil
	}
	return fmt.Errorf("%w: those of nodes %v are %v", problem.ErrDiskFull, v.full, v.Refuse)
}

// DropsEntries reports whether a message has to be taken for lost, because the
// log has no room for its entries. raft sends them again.
func (r *Keeper) DropsEntries(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp && len(m.GetEntries()) > 0 && r.Spent()
}

// Spent reports whether what room there is, is for elections alone. Much may have been
// written since the last look at the disk, so what the log has left is asked for now.
func (r *Keeper) Spent() bool {
	return Shortage(r.short.Load()) >= ShortForEntries || r.storage.Room.Reach(r.free.Load()) < r.reserve.Load()/8
}

// Path is the route on the peer listener by which nodes tell each other how
// full their disks are.
const Path = "/raftkv/disk"

// ServeNote takes what another node of a cluster says of its disk.
func (k *Keeper) ServeNote(cluster uint64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var n Note
		if !peerclient.Receive(w, r, cluster, peerclient.MaxBody, &n) {
			return
		}
		k.Hear(n)
		web.WriteJSON(w, http.StatusOK, struct{}{})
	}
}

// Tell tells the node at a URL how full the disks are.
func Tell(ask *peerclient.Client) func(ctx context.Context, peerURL string, cluster uint64, n Note) error {
	return func(ctx context.Context, peerURL string, cluster uint64, n Note) error {
		var none struct{}
		return ask.Post(ctx, peerURL+Path, cluster, n, &none)
	}
}
