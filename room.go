package main

import (
	"context"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/durable"
	"raftkv/internal/membership"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/storage"
	"raftkv/internal/wait"
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

// shortage is how short of room a disk is, or what is refused for it: everything
// that needs less shortage than there is.
type shortage int

const (
	plenty shortage = iota
	// shortForGrowth: less than the reserve is free. Writes that make the store
	// grow are refused.
	shortForGrowth
	// shortForPuts: half of the reserve is left for the log. All that put a value
	// are refused, so that the next quarter is for those that delete.
	shortForPuts
	// shortForDeletes: the last quarter is for what raft must write: changes of
	// the members, checks, elections. Deletes are refused, too.
	shortForDeletes
	// shortForEntries: half of that is for elections alone. This node takes no
	// entries from a leader any more, and proposes none.
	shortForEntries
)

const (
	// roomFirst and roomOften are the times between two looks at the disk, when
	// there is four times the reserve, and when there is less.
	roomFirst = time.Second
	roomOften = 100 * time.Millisecond
	// roomTold is how often a node that is short tells the leader, and the leader
	// what is refused.
	roomTold = time.Second
	// roomTrusted is how long what was heard counts.
	roomTrusted = 3 * time.Second
	// compactEvery is how often a node that is short asks itself for a snapshot,
	// which lets go of the log before it.
	compactEvery = time.Minute
	// roomMargin: this part of the reserve more must be free for a shortage to end.
	roomMargin = 16
	// snapshotReserve is what a snapshot that comes in leaves of the disk, until
	// the reserve is known: the log goes on meanwhile.
	snapshotReserve = 32 << 20
	// smallDisk: the reserve is at most this part of the disk.
	smallDisk = 3
)

// diskNote is what nodes tell each other of their disks.
type diskNote struct {
	From uint64 `json:"from"`
	// Short is how short of room the sender's disk is, Free what it has.
	Short shortage `json:"short"`
	Free  int64    `json:"free"`
	// Leads: it comes from the leader, and Refuse is what it lets nobody write.
	Leads  bool     `json:"leads,omitempty"`
	Refuse shortage `json:"refuse,omitempty"`
	// Full are the nodes because of which it does.
	Full []uint64 `json:"full,omitempty"`
}

// ruling is what is refused, and until when that counts.
type ruling struct {
	refuse shortage
	full   []uint64
	until  time.Time
}

// roomStore is what the roomKeeper needs of the state.
type roomStore interface {
	membership() (m membership.Membership, index uint64)
	used(key string) state.Holding
	// askForSnapshot has a snapshot of an index, or a later one, taken soon.
	askForSnapshot(index uint64)
}

// roomKeeper measures this node's disk, and knows what is refused.
type roomKeeper struct {
	log     *zap.Logger
	id      uint64
	cluster uint64
	dir     string
	minFree int64 // --min-free
	store   roomStore
	applied *wait.Index
	leaders *wait.Leadership
	storage *storage.Storage
	disk    func(dir string) (durable.Disk, error)
	// tell sends a note to the node at PeerURL.
	tell func(ctx context.Context, peerURL string, cluster uint64, n diskNote) error

	short atomic.Int64 // of this node's own disk
	free  atomic.Int64
	keep  atomic.Int64 // what snapshots that come in leave free
	ruled atomic.Pointer[ruling]

	mu      sync.Mutex
	heard   map[uint64]heardNote // by the leader
	sending map[uint64]bool
	group   sync.WaitGroup

	// Of run alone:
	reserve   int64 // --min-free, or less on a small disk
	measured  bool
	told      time.Time // when the leader or the others were last told
	toldShort bool      // that it is short: so the leader has to hear when it is not
	rules     bool      // as the leader it refuses something
	compacted time.Time
}

type heardNote struct {
	diskNote
	at time.Time
}

func newRoomKeeper(log *zap.Logger, cfg config.Config, st *storage.Opened, store roomStore, applied *wait.Index, leaders *wait.Leadership) *roomKeeper {
	r := &roomKeeper{
		log: log, id: cfg.ID, cluster: st.Identity.ClusterID, dir: cfg.DataDir, minFree: cfg.MinFree, store: store, applied: applied, leaders: leaders,
		storage: st.Storage, disk: durable.DiskOf, heard: make(map[uint64]heardNote), sending: make(map[uint64]bool),
	}
	r.keep.Store(snapshotReserve)
	return r
}

// reserveOf is the reserve on a disk of that size.
func reserveOf(minFree, total int64) int64 { return min(minFree, total/smallDisk) }

// judge says how short of room a disk is on which so much is free, and on which
// the log has so much more, reserved for it.
func judge(reserve, free, log int64) shortage {
	left := free + log
	switch {
	case reserve == 0:
		return plenty
	case left < reserve/8:
		return shortForEntries
	case left < reserve/4:
		return shortForDeletes
	case left < reserve/2:
		return shortForPuts
	case free < reserve:
		return shortForGrowth
	}
	return plenty
}

// run measures the disk until ctx ends.
func (r *roomKeeper) run(ctx context.Context) error {
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
			r.told = time.Time{} // the new one has to hear
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
func (r *roomKeeper) look() time.Duration {
	d, err := r.disk(r.dir)
	if err != nil {
		if !r.measured {
			r.log.Info("cannot tell how full the disk is; writes will not be refused when it becomes full", zap.Error(err))
			r.measured = true
		}
		return time.Minute
	}
	if reserve := reserveOf(r.minFree, d.Total); !r.measured || reserve != r.reserve {
		r.reserve, r.measured = reserve, true
		if reserve < r.minFree {
			r.log.Warn("the data directory is on a small disk: less than --min-free is kept free",
				zap.Int64("disk", d.Total), zap.Int64("min-free", r.minFree), zap.Int64("kept", reserve))
		}
		r.storage.Trouble.Keep.Store(reserve / 4)
		r.keep.Store(reserve / 4)
	}
	log, was := r.storage.Room.Left.Load(), shortage(r.short.Load())
	now := judge(r.reserve, d.Free, log)
	if now < was { // not for a moment only
		now = min(was, judge(r.reserve, d.Free-r.reserve/roomMargin, log))
	}
	r.free.Store(d.Free)
	r.short.Store(int64(now))
	if was != now {
		r.sayShort(was, now, d)
		r.told = time.Time{}
	}
	if now > plenty && time.Since(r.compacted) > compactEvery {
		// The log before a snapshot can go.
		r.compacted = time.Now()
		if r.storage.Tail.Grown.Load() > storage.LogSlack {
			r.store.askForSnapshot(r.applied.Get())
		}
	}
	if d.Free < 4*r.reserve {
		return roomOften
	}
	return roomFirst
}

func (r *roomKeeper) sayShort(was, now shortage, d durable.Disk) {
	say := r.log.Warn
	if now < was {
		say = r.log.Info
	}
	say("how short the disk is of room has changed", zap.Stringer("now", now), zap.Stringer("before", was),
		zap.Int64("free", d.Free), zap.Int64("min-free", r.reserve))
}

func (s shortage) String() string {
	switch s {
	case plenty:
		return "not short"
	case shortForGrowth:
		return "too short for writes that make the store grow"
	case shortForPuts:
		return "too short for writes of values"
	case shortForDeletes:
		return "too short for writes and deletes"
	}
	return "too short for more of the log"
}

// share tells the leader of this node's disk, or, on the leader, the others what
// is refused.
func (r *roomKeeper) share(ctx context.Context, leader uint64, now time.Time) {
	if leader == r.id {
		r.rule(ctx, now)
		return
	}
	r.rules = false
	short := shortage(r.short.Load())
	low := r.reserve > 0 && r.free.Load() < 2*r.reserve
	if leader == 0 || !(low || short > plenty || r.toldShort) || now.Sub(r.told) < roomTold {
		return
	}
	r.told, r.toldShort = now, low || short > plenty
	m, _ := r.store.membership()
	r.send(ctx, m.Members[leader], diskNote{From: r.id, Short: short, Free: r.free.Load()})
}

// rule judges, on the leader, what is to be refused.
func (r *roomKeeper) rule(ctx context.Context, now time.Time) {
	m, _ := r.store.membership()
	refuse, full := r.decide(m.Voters(), now)
	old := r.ruled.Load()
	if refuse == plenty && !r.rules {
		return // what a former leader has ruled, its own time ends
	}
	changed := old == nil || old.refuse != refuse || !slices.Equal(old.full, full)
	r.ruled.Store(&ruling{refuse, full, now.Add(roomTrusted)})
	if changed {
		r.log.Warn("the leader has judged what is to be refused, by how full the disks are",
			zap.Stringer("room", refuse), zap.Uint64s("full", full))
	}
	if !changed && now.Sub(r.told) < roomTold {
		return
	}
	r.told, r.rules = now, refuse > plenty
	for _, mem := range m.Sorted() {
		if mem.ID != r.id {
			r.send(ctx, mem, diskNote{From: r.id, Short: shortage(r.short.Load()), Free: r.free.Load(), Leads: true, Refuse: refuse, Full: full})
		}
	}
}

// decide returns the highest shortage for which the leader itself is short, or
// for which one more disk like that would cost the voters their majority.
func (r *roomKeeper) decide(voters []uint64, now time.Time) (refuse shortage, full []uint64) {
	own := shortage(r.short.Load())
	r.mu.Lock()
	defer r.mu.Unlock()
	for level := shortForDeletes; level > plenty; level-- {
		full = nil
		for _, id := range voters {
			n := r.heard[id]
			if id == r.id && own >= level || id != r.id && n.Short >= level && now.Sub(n.at) < roomTrusted {
				full = append(full, id)
			}
		}
		oneMore := len(full) > 0 && len(voters)-len(full)-1 < len(voters)/2+1
		if own >= level || oneMore {
			return level, full
		}
	}
	return plenty, nil
}

// send tells a member, unless it is still being told.
func (r *roomKeeper) send(ctx context.Context, to membership.Member, n diskNote) {
	if r.tell == nil || to.ID == 0 {
		return
	}
	r.mu.Lock()
	busy := r.sending[to.ID]
	r.sending[to.ID] = true
	r.mu.Unlock()
	if busy {
		return
	}
	r.group.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, roomTold)
		defer cancel()
		if err := r.tell(ctx, to.PeerURL, r.cluster, n); err != nil {
			r.log.Debug("could not tell a member of the disks", zap.Uint64("member", to.ID), zap.Error(err))
		}
		r.mu.Lock()
		r.sending[to.ID] = false
		r.mu.Unlock()
	})
}

// hear takes a note from another node.
func (r *roomKeeper) hear(n diskNote) {
	leader, _, _ := r.leaders.Get()
	n.Short, n.Refuse = min(max(n.Short, plenty), shortForEntries), min(max(n.Refuse, plenty), shortForDeletes)
	switch {
	case n.Leads && n.From == leader && leader != r.id:
		r.ruled.Store(&ruling{n.Refuse, n.Full, time.Now().Add(roomTrusted)})
	case !n.Leads && leader == r.id:
		m, _ := r.store.membership()
		if _, ok := m.Members[n.From]; ok {
			r.mu.Lock()
			r.heard[n.From] = heardNote{n, time.Now()}
			r.mu.Unlock()
		}
	}
}

// refusing returns what is refused now.
func (r *roomKeeper) refusing() ruling {
	if v := r.ruled.Load(); v != nil && time.Now().Before(v.until) {
		return *v
	}
	return ruling{}
}

// admit refuses a command of a client's for which the disks have no room: a put
// of so many bytes, or with -1 a delete. It is asked before that is proposed, and
// never when it is applied: nodes may know different things at that moment.
func (r *roomKeeper) admit(key string, size int) error {
	v := r.refusing()
	if v.refuse == plenty {
		return nil
	}
	needs := shortForDeletes
	if size >= 0 {
		needs = shortForPuts
		if uint64(len(key)+size) > r.store.used(key).Old {
			needs = shortForGrowth
		}
	}
	if v.refuse < needs {
		return nil
	}
	return fmt.Errorf("%w: those of nodes %v are %v", problem.ErrDiskFull, v.full, v.refuse)
}

// dropsEntries reports whether a message has to be taken for lost, because the
// log has no room for its entries. raft sends them again.
func (r *roomKeeper) dropsEntries(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp && len(m.GetEntries()) > 0 && r.spent()
}

// spent reports whether what room there is, is for elections alone.
func (r *roomKeeper) spent() bool { return shortage(r.short.Load()) >= shortForEntries }
