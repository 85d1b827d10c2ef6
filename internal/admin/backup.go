package admin

import (
	"context"
	"fmt"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/web"
	"strconv"
	"time"

	"go.uber.org/zap"
)

const (
	// MaxBackups bounds the backups under way at once. Each keeps what was
	// overwritten since it began in memory.
	MaxBackups = 2
	// BackupPace is the time in which a reader has to take each piece of
	// BackupPiece bytes; one that does not is cut off.
	BackupPace  = 30 * time.Second
	BackupPiece = 64 << 10
)

// backupStore gives copies of the state.
type backupStore interface {
	Status() state.Summary
	// CopyWhole returns the state as of now, in constant time.
	CopyWhole() (*state.State, error)
}

// Backups streams copies of the state to clients.
type Backups struct {
	log     *zap.Logger
	cluster uint64
	store   backupStore
	fresh   *api.Freshness
	Slots   chan struct{} // one for each under way
	pace    time.Duration

	life context.Context    // ends when the node stops
	End  context.CancelFunc // ends life, and with it the backups under way
}

// NewBackups returns the backups of the state that store holds. cluster is the
// cluster's ID, which names the file. End cuts off the backups under way, and those
// that begin after it.
func NewBackups(log *zap.Logger, cluster uint64, store backupStore, fresh *api.Freshness) *Backups {
	life, end := context.WithCancel(context.Background())
	return &Backups{log: log, cluster: cluster, store: store, fresh: fresh, Slots: make(chan struct{}, MaxBackups), pace: BackupPace, life: life, End: end}
}

// ServeSnapshot answers GET /v1/snapshot with a state file (package
// statefile) of what this node has applied.
func (b *Backups) ServeSnapshot(w http.ResponseWriter, r *http.Request) error {
	want, err := api.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if !r.ProtoAtLeast(1, 1) {
		// There a body that breaks off looks like one that has ended.
		return fmt.Errorf("%w: a backup needs HTTP/1.1", problem.ErrBadRequest)
	}
	if r.Method == http.MethodHead {
		if err := b.fresh.Prepare(w.Header(), r, want); err != nil {
			return err
		}
		s := b.store.Status()
		b.describe(w.Header(), s.Index, s.Revision)
		return nil
	}
	select {
	case b.Slots <- struct{}{}:
		defer func() { <-b.Slots }()
	default:
		return fmt.Errorf("%w: %d backups are under way", problem.ErrOverloaded, MaxBackups)
	}
	if err := b.fresh.Prepare(w.Header(), r, want); err != nil {
		return err
	}
	st, err := b.store.CopyWhole()
	if err != nil {
		return err
	}
	b.describe(w.Header(), st.Index, st.Revision)
	if err := b.send(w, st); err != nil {
		b.log.Warn("a backup broke off", zap.String("client", r.RemoteAddr), zap.Error(err))
		// The status is sent. What tells the client is that the body does not
		// end as it should; and the file has no end either.
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (b *Backups) describe(h http.Header, index, revision uint64) {
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="raftkv-%x-%d.state"`, b.cluster, index))
	h.Set("Raftkv-Revision", strconv.FormatUint(revision, 10))
}

// send writes a state to a client, at the client's pace.
func (b *Backups) send(w http.ResponseWriter, st *state.State) error {
	conn := http.NewResponseController(w)
	// A write that hangs must not keep the node from stopping.
	stop := wait.AfterFunc(b.life, func() { _ = conn.SetWriteDeadline(time.Now()) })
	defer stop()
	return state.Write(&web.PacedWriter{Out: w, Conn: conn, Piece: BackupPiece, Pace: b.pace, May: func() error { return web.Stopped(b.life) }}, st)
}
