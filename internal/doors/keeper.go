package doors

import (
	"context"
	"fmt"
	"raftkv/internal/config"
	"raftkv/internal/logging"
	"raftkv/internal/membership"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// lookEvery is the time between two looks at what this node has to publish, and at what
	// others have published.
	lookEvery = time.Second
	// Patience is for how long the doors of members may differ before somebody is told: a
	// rolling restart takes its time.
	Patience = time.Minute
)

// Keeper publishes a node's doors, and compares them with those of the others. Its exported
// fields are set before Run.
type Keeper struct {
	log          *zap.Logger
	id, instance uint64
	flags        config.Doors

	// File returns what counts of the auth file that is in force. nil: there is none.
	File    func() File
	Members func() membership.Membership // as applied here
	Level   func() uint64                // of the cluster, likewise
	Propose func(ctx context.Context, cmd []byte) state.Result

	// rights is a member by which the cluster has rights; 0: none, as far as is applied here.
	rights atomic.Uint64

	mu     sync.Mutex
	differ map[uint64]difference
}

// difference is in what a member differs, and since when this node knows.
type difference struct {
	what  string
	since time.Time
	told  bool
}

// New returns the keeper of a node with a data directory of some instance.
func New(log *zap.Logger, id, instance uint64, flags config.Doors) *Keeper {
	return &Keeper{log: log, id: id, instance: instance, flags: flags, differ: make(map[uint64]difference)}
}

// Note takes in what the members have published, each time that the state changes, before
// anybody may read what has changed.
func (k *Keeper) Note(m *membership.Membership) {
	if k == nil {
		return // in tests of the store alone
	}
	k.rights.Store(RightsBy(m))
}

// RightsBy returns a member by which a cluster has rights; 0: there is none.
func RightsBy(m *membership.Membership) (by uint64) {
	for id, mem := range m.Members {
		if d, ok := decode(mem.Doors); ok && d.Rights.close() && (by == 0 || id < by) {
			by = id
		}
	}
	return by
}

// MayServe returns nil, or why this node answers clients nothing: it has no rights, and its
// cluster has. What it has published itself counts, too: a file that is missing after a
// restart is a mistake until somebody says that it is not.
func (k *Keeper) MayServe() error {
	if k.flags.AuthFile != "" || k.flags.Auth == config.AuthOff {
		return nil
	}
	switch by := k.rights.Load(); by {
	case 0:
		return nil
	case k.id:
		return lacking("this node itself went by an auth file before")
	default:
		return lacking(fmt.Sprintf("member %d goes by one", by))
	}
}

// MayAnswer is MayServe for a request for a path, without its first slash: whether a node
// lives and is ready it says also while it serves nobody, and to a watch it says it in the
// stream.
func (k *Keeper) MayAnswer(path, query string) error {
	if path == "livez" || path == "v1/watch" || path == "readyz" && query == "" {
		return nil
	}
	return k.MayServe()
}

func lacking(why string) error {
	return fmt.Errorf("%w: it has no auth file, and its cluster has rights: %s. Start it with --auth-file and the file that the others have; "+
		"to serve everybody without rights, start it with --auth=off", problem.ErrNotReady, why)
}

// own is what this node has to publish now.
func (k *Keeper) own() Doors {
	var file File
	if k.File != nil {
		file = k.File()
	}
	d := Of(&k.flags, file)
	if k.MayServe() != nil {
		d.Rights = Lacking
	}
	return d
}

// Run publishes and compares until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		k.look(ctx, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// look publishes once the cluster has the level, if something has changed.
func (k *Keeper) look(ctx context.Context, now time.Time) {
	if k.Level() < state.DoorsLevel {
		return
	}
	m, own := k.Members(), k.own()
	k.compare(&m, own, now)
	if me := m.Members[k.id]; me.Instance == k.instance && me.Doors != own.Encode() {
		if res := k.Propose(ctx, state.EncodeDoors(k.id, k.instance, own.Encode())); res.Err != nil {
			k.log.Debug("the doors of this node are not published yet", zap.Error(res.Err))
		}
	}
}

// compare notes in what the members differ from this node.
func (k *Keeper) compare(m *membership.Membership, own Doors, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.differ {
		if _, member := m.Members[id]; !member {
			delete(k.differ, id)
		}
	}
	for id, mem := range m.Members {
		d, ok := published(mem)
		what := ""
		if ok && id != k.id {
			what = d.against(own)
		}
		old, differed := k.differ[id]
		switch {
		case what == "":
			if delete(k.differ, id); old.told {
				k.log.Info("a member lets others in as this node does again", logging.News, zap.Uint64("member", id))
			}
			continue
		case !differed:
			old.since = now
		}
		if old.what = what; !old.told && now.Sub(old.since) > Patience {
			old.told = true
			k.log.Warn("a member lets others in otherwise than this node", logging.News, zap.Uint64("member", id), zap.String("what", what))
		}
		k.differ[id] = old
	}
}

// Differs says in what a member has differed from this node for longer than Patience, ""
// if it has not.
func (k *Keeper) Differs(id uint64) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.differ[id]; d.told {
		return d.what
	}
	return ""
}

// late returns the members that Differs has something to say of.
func (k *Keeper) late() (ids []uint64) {
	for _, id := range membership.SortedKeys(k.Members().Members) {
		if k.Differs(id) != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Notes are lines for the verbose probe about members that differ.
func (k *Keeper) Notes() string {
	var b strings.Builder
	for _, id := range k.late() {
		fmt.Fprintf(&b, "note member %d lets others in otherwise than this node: %s\n", id, k.Differs(id))
	}
	return b.String()
}

// Register adds what there is to count.
func (k *Keeper) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_doors_differ", "Members that have let others in otherwise than this node for over a minute.", func() float64 { return float64(len(k.late())) })
	meter.Gauge(reg, "raftkv_rights_lacking", "1 if this node has no auth file in a cluster with rights, and so serves nobody.", func() float64 {
		if k.MayServe() != nil {
			return 1
		}
		return 0
	})
}
