package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
)

// EventType is what has happened to a key.
type EventType string

const (
	Put    EventType = "put"    // it was written, perhaps with the value that it had
	Delete EventType = "delete" // somebody deleted it
	Expire EventType = "expire" // its time to live or its lease has ended
)

// Event is what has happened to one key. A Delete and an Expire have the key alone.
type Event struct {
	Type EventType
	Item
}

// Change is what one revision of the store has changed, of the keys that are watched.
type Change struct {
	// Revision is the position behind this change: a watch that begins After it goes on with
	// the next. It is 0 while a watch with State is told what is there, since one cannot go on
	// behind half of that.
	Revision uint64
	Events   []Event
}

// Beginning as WatchConfig.After asks for all changes since the cluster was made, which a
// node remembers of a young cluster alone.
const Beginning = ^uint64(0)

// The codes of a HistoryError.
const (
	// HistoryGone: the node does not know all changes any more that came behind the position.
	HistoryGone Code = "history_gone"
	// UnknownRevision: the store has never had the revision. It went back to an older backup,
	// or the position is another cluster's.
	UnknownRevision Code = "unknown_revision"
)

// WatchConfig says what a watch tells of. Without Prefixes and Keys it tells of all keys.
type WatchConfig struct {
	Prefixes []string
	Keys     []string
	Types    []EventType // events of these types alone; all if there are none
	KeysOnly bool        // items come without their values

	// After is the revision behind which the watch begins; 0 begins now, and Beginning with
	// the first revision. It does not go together with State.
	After uint64

	// State tells what is there first, as Put events, and hides that changes were missed: once
	// a node cannot tell them any more, the watch tells the difference between what it has told
	// and what is there. A key that went away in the meantime is a Delete, whatever took it.
	// For that it remembers the names of the keys that it has told of.
	State bool

	// Synced is called, between two changes, when all has been told up to a revision: with State
	// whenever what is there has been told, else once the place is known where the watch begins
	// if that is now. Nil is not called.
	Synced func(revision uint64)

	// Interrupted is called with the reason each time that the watch ends at a node, before it
	// goes on at another one. Nil is not called.
	Interrupted func(err error)
}

// HistoryError ends a watch without State: changes behind a position cannot be told.
type HistoryError struct {
	Code  Code   // HistoryGone or UnknownRevision, which errors.Is finds
	After uint64 // the position behind which the watch was to go on
	// Now is a position from which a new watch can go on. What was changed up to there has to
	// be read, if it is needed.
	Now uint64
}

func (e *HistoryError) Error() string {
	return fmt.Sprintf("watch: %s: the changes behind revision %d cannot be told; read what is there, and go on behind revision %d", string(e.Code), e.After, e.Now)
}

// Unwrap returns the code, and ErrNotApplied as all calls that read do.
func (e *HistoryError) Unwrap() []error { return []error{e.Code, ErrNotApplied} }

// Watch tells of changes as they happen, each revision once and whole, in their order. When
// a node fails, stops or falls silent the watch goes on behind what it has told, at the
// next endpoint. It ends with an error: when ctx ends, when the request is refused (a
// missing right, say), when no endpoint has answered within the client's Timeout at its
// beginning, and, without State, with a HistoryError. Ranging over it again begins anew.
func (c *Client) Watch(ctx context.Context, cfg WatchConfig) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		w := newWatching(c, cfg)
		w.tell = func(ch Change) bool { return yield(ch, nil) }
		if err := w.run(ctx); err != nil {
			yield(Change{}, err)
		}
	}
}

// maxChangeBytes bounds the parts of one revision that are put together, and the state of
// which the names are gathered in one part. The largest that a node can make is a transaction
// of values of its greatest --max-value-size, 64 MiB, four times, in base64.
const maxChangeBytes = 384 << 20

// errEnough ends a watch whose reader has seen enough.
var errEnough = errors.New("nobody reads on")

// watching is one watch, over all its connections. It runs in its reader's goroutine, and
// reads no faster than that.
type watching struct {
	client *Client
	cfg    WatchConfig
	tell   func(Change) bool // false: enough
	// These may be nil.
	moved func(revision uint64)      // is told each position, behind its change
	whole func(revision uint64) bool // is told that the state was told, before moved; false: enough
	heard func()                     // is told of each message

	position uint64 // all up to it was told
	placed   bool   // there is a position
	synced   bool   // Synced was called

	known map[string]uint64   // with State: the keys that were told, and their revisions
	seen  map[string]struct{} // those that the state has which is being told; else nil

	parts     []Event // of the revision partsOf, whose last part has not come
	partsOf   uint64
	partBytes int

	begun bool // a node has told something, ever
	fails int  // connections in a row that did not last, or did not come about
}

func newWatching(c *Client, cfg WatchConfig) *watching {
	w := &watching{client: c, cfg: cfg, synced: cfg.After > 0}
	switch {
	case cfg.State:
		w.known = map[string]uint64{}
	case cfg.After == Beginning:
		w.placed = true
	case cfg.After > 0:
		w.position, w.placed = cfg.After, true
	}
	return w
}

// check finds what no node would take.
func (w *watching) check() error {
	if w.cfg.State && w.cfg.After != 0 {
		return invalid("watch", "", "State tells all that is there, and does not go together with After")
	}
	for _, t := range w.cfg.Types {
		if t != Put && t != Delete && t != Expire {
			return invalid("watch", "", "there is no event of type %q", string(t))
		}
	}
	return nil
}

// run watches until the reader has enough, which is nil, or nothing more can be told.
func (w *watching) run(ctx context.Context) error {
	if err := w.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(w.client.closing, func() { cancel(ErrClosed) })()
	patience := time.Now().Add(w.client.timeout)
	for {
		err := w.connect(ctx)
		w.parts, w.partBytes = nil, 0 // the revision is told again, from its first part
		if errors.Is(err, errEnough) {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return watchEnded(cause)
		}
		if final(err) || !w.begun && !time.Now().Before(patience) {
			return err
		}
		if w.cfg.Interrupted != nil {
			w.cfg.Interrupted(err)
		}
		if err := sleep(ctx, w.pause(err)); err != nil {
			return watchEnded(err)
		}
	}
}

// watchEnded is the error of a watch that its reader ended.
func watchEnded(cause error) error { return &Error{Op: "watch", Detail: cause.Error(), cause: cause} }

const (
	watchJitter   = 250 * time.Millisecond // before the first of the other endpoints is asked
	watchMinPause = 500 * time.Millisecond // once each has been asked; it doubles
	watchMaxPause = 5 * time.Second
	watchSettled  = 5 * time.Second // a connection that lasted so long is no failure
)

// pause is how long to wait after a connection has ended. The other endpoints are asked
// almost at once, and then each again with longer and longer pauses. Chance is in all of
// them, since the readers of a node that ends come at the same time.
func (w *watching) pause(err error) time.Duration {
	w.fails++
	round := (w.fails - 1) / len(w.client.endpoints.all)
	if round == 0 && w.fails < max(2, len(w.client.endpoints.all)) {
		return jitter(0, watchJitter)
	}
	long := min(watchMaxPause, watchMinPause<<min(round, 10))
	if u := new(unavailableError); errors.As(err, &u) {
		long = min(watchMaxPause, max(long, u.retry))
	}
	return jitter(long/2, long)
}

// take takes in one message, and tells what it changes.
func (w *watching) take(m *watchMessage, size int) error {
	switch m.Event {
	case "position":
		return w.at(m)
	case "change":
		return w.change(m, size)
	case "reset":
		return w.reset(m)
	case "state":
		return w.state(m)
	case "synced":
		return w.end(m)
	case "unavailable":
		return &unavailableError{code: m.Data.Code, detail: m.Data.Detail, retry: time.Duration(min(m.Retry, 60_000)) * time.Millisecond}
	}
	return nil // a comment, or something that a later version says besides
}

// at takes in a position.
func (w *watching) at(m *watchMessage) error {
	if m.ID == nil {
		return strange("a position without an id")
	}
	if w.seen != nil {
		return strange("a position within the state")
	}
	if w.placed && *m.ID < w.position {
		return strange("the position %d behind %d", *m.ID, w.position)
	}
	w.move(*m.ID)
	if !w.cfg.State && !w.synced {
		w.sync(*m.ID)
	}
	return nil
}

func (w *watching) move(revision uint64) {
	w.position, w.placed = revision, true
	w.client.sawRevision(revision)
	if w.moved != nil {
		w.moved(revision)
	}
}

func (w *watching) sync(revision uint64) {
	w.synced = true
	if w.cfg.Synced != nil {
		w.cfg.Synced(revision)
	}
}

// change gathers the parts of a revision, and tells them together.
func (w *watching) change(m *watchMessage, size int) error {
	revision := m.Data.Revision
	switch {
	case m.Data.More == (m.ID != nil) || m.ID != nil && *m.ID != revision:
		return strange("a change of revision %d whose id does not go with it", revision)
	case w.seen != nil:
		return strange("a change within the state")
	case w.placed && revision <= w.position:
		return strange("a change of revision %d behind %d", revision, w.position)
	case len(w.parts) > 0 && w.partsOf != revision:
		return strange("half of revision %d behind half of %d", revision, w.partsOf)
	}
	if w.partBytes += size; w.partBytes > maxChangeBytes {
		return &Error{Op: "watch", Code: TooLarge, Detail: fmt.Sprintf("revision %d has more than %d bytes", revision, maxChangeBytes), cause: TooLarge}
	}
	w.parts, w.partsOf = append(w.parts, m.events()...), revision
	if m.Data.More {
		return nil
	}
	events := w.parts
	w.parts, w.partBytes = nil, 0
	for _, e := range events {
		w.learn(e)
	}
	w.client.sawRevision(revision)
	if err := w.pass(revision, events); err != nil {
		return err
	}
	w.move(revision)
	return nil
}

// learn remembers what was told, with State.
func (w *watching) learn(e Event) {
	switch {
	case w.known == nil:
	case e.Type == Put:
		w.known[e.Key] = e.ModRevision
	default:
		delete(w.known, e.Key)
	}
}

// pass tells the events that the reader wants.
func (w *watching) pass(revision uint64, events []Event) error {
	if w.cfg.State && len(w.cfg.Types) > 0 { // the nodes leave out nothing, so that known is right
		events = slices.DeleteFunc(events, func(e Event) bool { return !slices.Contains(w.cfg.Types, e.Type) })
	}
	if len(events) > 0 && !w.tell(Change{Revision: revision, Events: events}) {
		return errEnough
	}
	return nil
}

// reset begins the state anew, or ends a watch without one.
func (w *watching) reset(m *watchMessage) error {
	w.parts, w.partBytes = nil, 0
	if !w.cfg.State {
		if m.ID == nil {
			return strange("a reset without an id")
		}
		return &HistoryError{Code: m.Data.Code, After: w.position, Now: *m.ID}
	}
	w.placed, w.position = false, 0
	w.seen = map[string]struct{}{}
	return nil
}

// state tells what of a part of the state is new.
func (w *watching) state(m *watchMessage) error {
	if w.seen == nil {
		return strange("a state without a reset")
	}
	var events []Event
	for i := range m.Data.Items {
		item := m.Data.Items[i].item()
		w.seen[item.Key] = struct{}{}
		if at, ok := w.known[item.Key]; ok && at == item.ModRevision {
			continue
		}
		events = append(events, Event{Type: Put, Item: item})
		w.known[item.Key] = item.ModRevision
	}
	return w.pass(0, events)
}

// end tells what the state does not have any more, and that this was all.
func (w *watching) end(m *watchMessage) error {
	if w.seen == nil || m.ID == nil {
		return strange("the end of a state that did not begin")
	}
	var gone []Event
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		if _, ok := w.seen[key]; !ok {
			gone = append(gone, Event{Type: Delete, Item: Item{Key: key}})
			delete(w.known, key)
		}
	}
	w.seen = nil
	if err := w.pass(0, gone); err != nil {
		return err
	}
	if w.whole != nil && !w.whole(*m.ID) {
		return errEnough
	}
	w.move(*m.ID)
	w.sync(*m.ID)
	return nil
}
