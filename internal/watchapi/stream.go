package watchapi

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strconv"
	"sync"
	"time"
)

const (
	// heldItems and heldBytes are how large a state may be to be held for a client as it was
	// found. A larger one is lent by the lists that are streamed.
	heldItems = 1000
	heldBytes = 1 << 20
	// bufferBytes is what is gathered before it is sent, and what a client that does not read
	// takes of memory until it is cut off.
	bufferBytes = 16 << 10
	// unsentBytes is what the system holds back for a client that does not read, beside what
	// its own buffer takes.
	unsentBytes = 64 << 10
)

// errTurnsOver: to begin once more would be no better, and keep others from being told theirs.
var errTurnsOver = fmt.Errorf("%w: while the state is sent, the changes behind it go out of the history; --watch-history makes that longer", problem.ErrOverloaded)

// errGone: the client does not read any more.
var errGone = errors.New("the client has gone")

// stream is one watch on its way to its client.
type stream struct {
	*Watches
	*request
	w    http.ResponseWriter
	r    *http.Request
	conn *http.ResponseController
	// alone is the connection, where nobody else writes to it; else nil.
	alone *web.HangUpConn
	ends  <-chan struct{} // closed when the client ends its side of the connection
	armed time.Time       // when the time for a write was set last

	watcher *watch.Watcher
	out     []byte // to be written next
	half    bool   // the client has ended its side of the connection
	lent    bool   // the state that was told last was a large one
	rest    *time.Timer
}

func newStream(s *Watches, q *request, w http.ResponseWriter, r *http.Request) *stream {
	st := &stream{Watches: s, request: q, w: w, r: r, conn: http.NewResponseController(w), ends: web.Half(r)}
	if conn, ok := r.Context().Value(web.ConnKey{}).(*web.HangUpConn); ok && r.ProtoMajor == 1 && r.TLS == nil {
		st.alone = conn
		_ = conn.LimitUnsent(unsentBytes) // a connection that cannot is bounded as the system has it
	}
	return st
}

// buffer is where what is to be sent is gathered. It is lent to streams while they have
// something to say: one that is quiet holds none.
type buffer []byte

var buffers = sync.Pool{New: func() any {
	const framing = 64 // a chunk has less around it
	b := make(buffer, 0, bufferBytes+framing)
	return &b
}}

func lend() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) giveBack() {
	*b = (*b)[:0]
	buffers.Put(b)
}

// Write appends p.
func (b *buffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// run serves the stream until it cannot go on, and returns why: nil where the client has
// gone.
func (s *stream) run() error {
	// net/http reads ahead, to see when the client hangs up. The time that a request may take
	// to arrive is over some time.
	_ = s.conn.SetReadDeadline(time.Time{}) // without it, a client that has gone is noticed later
	if !s.form.Lines {
		s.out = fmt.Appendf(s.out, "retry: %d\n\n", retry())
	}
	if err := s.flush(); err != nil {
		return s.ended(err)
	}
	return s.ended(s.serve())
}

func (s *stream) ended(err error) error {
	if s.watcher != nil {
		s.watcher.Close()
	}
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// serve settles where the stream begins, and follows the changes from there.
func (s *stream) serve() error {
	if err := s.May(); err != nil {
		return err
	}
	now, err := s.revision()
	if err != nil {
		return err
	}
	if !s.from || s.after > now {
		// What was acknowledged before is to be known here before anything is said of now, or of a
		// position that this node has not reached.
		if err := s.confirm(); err != nil {
			return err
		}
		if now, err = s.revision(); err != nil {
			return err
		}
	}
	begin := now
	if s.from {
		begin = min(s.after, now)
	}
	if s.watcher, err = s.Hub.Watch(s.filter, begin); err != nil {
		return err
	}
	defer rights.WhileMay(s.r.Context(), s.watcher.End, s.needs...)()
	// A write to a client that does not read must not keep the node from stopping.
	defer s.watcher.WhenEnded(func() { _ = s.conn.SetWriteDeadline(time.Now().Add(farewell)) })()
	switch {
	case s.from && s.after > now: // a position of another history
		err = s.reset("unknown_revision", 0)
	case !s.from && s.state:
		err = s.reset("start", 0)
	case !s.from:
		s.out = s.form.Position(s.out, begin)
		err = s.flush()
	}
	if err != nil {
		return err
	}
	return s.follow()
}

// revision is that of the store, as this node has applied it.
func (s *stream) revision() (revision uint64, err error) {
	err = s.Look(func(st *state.State) { revision = st.Revision })
	return revision, err
}

// told is where a stream waits for a round of ReadIndex.
type told chan state.Result

// Done implements rounds.Waiter.
func (t told) Done(res state.Result) { t <- res }

// confirm waits until this node has applied all that was acknowledged before.
func (s *stream) confirm() error {
	done := make(told, 1)
	if err := s.Fresh.Start(done); err != nil {
		return err
	}
	for {
		wait := time.NewTimer(quiet)
		select {
		case res := <-done:
			wait.Stop()
			return res.Err
		case <-wait.C:
			s.out = s.form.Comment(s.out)
			if err := s.flush(); err != nil {
				return err
			}
		case <-s.r.Context().Done():
			wait.Stop()
			return errGone
		}
	}
}

// reset tells the client to forget what it has, and where it goes on: from now, with the
// state if it wants that.
func (s *stream) reset(code string, oldest uint64) error {
	if code != "start" {
		s.Hub.CountReset()
	}
	data := append(append([]byte(`{"code":"`), code...), '"')
	if oldest > 0 {
		data = strconv.AppendUint(append(data, `,"oldest":`...), oldest, 10)
	}
	data = append(data, '}')
	if s.state {
		// The client knows nothing until it is synced. One that was cut off before that and came
		// back with an older position would get changes without what they change, if another node
		// still had them.
		s.out = s.form.End(append(s.form.Begin(s.out, "reset", 0), data...))
		return s.tellState()
	}
	now, err := s.revision()
	if err != nil {
		return err
	}
	s.watcher.Move(now)
	s.out = s.form.End(append(s.form.Begin(s.out, "reset", now), data...))
	return s.flush()
}

// held is a state that is small enough to be held.
type held struct {
	keys   []string
	items  []*state.Item
	leases []uint64
}

// tellState tells what is there, of one revision, behind which the watcher then goes on.
func (s *stream) tellState() error {
	var some held
	var revision uint64
	small, size := true, 0
	err := s.Look(func(st *state.State) {
		revision = st.Revision
		s.filter.Walk(st, func(key string, it *state.Item) bool {
			size += len(key) + len(it.Value)
			if small = len(some.keys) < heldItems && size <= heldBytes; small {
				some.keys, some.items = append(some.keys, key), append(some.items, it)
				some.leases = append(some.leases, st.Left(it).Lease)
			}
			return small
		})
	})
	if err := cmp.Or(err, s.watcher.Why()); err != nil {
		return err
	}
	if s.lent = !small; small {
		p := s.statePart(revision)
		for i, key := range some.keys {
			if err := p.add(key, some.items[i], some.leases[i], s.write); err != nil {
				return err
			}
		}
		err = p.end(s.write)
	} else {
		revision, err = s.tellLent()
	}
	if err != nil {
		return err
	}
	s.watcher.Move(revision)
	s.out = s.form.Begin(s.out, "synced", revision)
	s.out = append(strconv.AppendUint(append(s.out, `{"revision":`...), revision, 10), '}')
	s.out = s.form.End(s.out)
	return s.flush()
}

// tellLent tells a large state.
func (s *stream) tellLent() (revision uint64, err error) {
	// A client that cannot get the state now keeps its position, behind which another node may
	// be able to go on: the reset is told once there is something behind it.
	st, done, err := s.Lists.Lend()
	if err != nil {
		return 0, err
	}
	defer done()
	if err := s.flush(); err != nil {
		return 0, err
	}
	s.armed = time.Time{} // what follows sets times of its own
	out := s.Lists.Paced(s.w)
	write := func(b []byte) error {
		if why := s.watcher.Why(); why != nil {
			return why
		}
		n, err := out.Write(b)
		if err != nil && n > 0 {
			return errGone // behind half an event nothing can be said any more
		}
		return err
	}
	p := s.statePart(st.Revision)
	s.filter.Walk(st, func(key string, it *state.Item) bool {
		err = p.add(key, it, st.Left(it).Lease, write)
		return err == nil
	})
	if err != nil {
		return 0, err
	}
	return st.Revision, p.end(write)
}

// statePart gathers items for an event.
type statePart struct {
	form     watch.Form
	revision uint64
	b, one   []byte
	empty    int // the length of b without items
}

func (s *stream) statePart(revision uint64) *statePart {
	p := &statePart{form: s.form, revision: revision}
	p.begin()
	return p
}

func (p *statePart) begin() {
	p.b = p.form.Begin(p.b[:0], "state", watch.NoID)
	p.b = append(strconv.AppendUint(append(p.b, `{"revision":`...), p.revision, 10), `,"items":[`...)
	p.empty = len(p.b)
}

// add adds an item, and writes those before it if there is no room for it beside them.
func (p *statePart) add(key string, it *state.Item, lease uint64, write func([]byte) error) error {
	p.one = p.form.Append(p.one[:0], key, it, state.Left{Lease: lease})
	if len(p.b) > p.empty && len(p.b)+len(p.one) > watch.PartBytes {
		if err := p.end(write); err != nil {
			return err
		}
		p.begin()
	}
	if len(p.b) > p.empty {
		p.b = append(p.b, ',')
	}
	p.b = append(p.b, p.one...)
	return nil
}

// end writes the items that there are.
func (p *statePart) end(write func([]byte) error) error {
	if len(p.b) == p.empty {
		return nil
	}
	return write(p.form.End(append(p.b, "]}"...)))
}

// follow tells of changes until the stream ends.
func (s *stream) follow() error {
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	for due, begun := false, false; ; { // begun: anew, just now
		said, more, upto, err := s.step()
		var gone *watch.Gone
		isGone := errors.As(err, &gone)
		if isGone && begun && s.lent {
			return errTurnsOver
		}
		begun = isGone
		switch {
		case isGone:
			if err := s.reset("history_gone", gone.Oldest); err != nil {
				return err
			}
			said = true
		case errors.Is(err, problem.ErrNotReady): // a snapshot is on its way in
			if due, err = s.await(silence, due); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case due && !said:
			s.out = s.form.Position(s.out, upto)
			if err := s.flush(); err != nil {
				return err
			}
			said = true
		}
		if said {
			silence.Reset(s.silence())
		}
		if said && !more { // who is behind must not be held up
			if err := s.pause(s.Hub.Spacing()); err != nil {
				return err
			}
		}
		if due, err = s.wait(silence); err != nil {
			return err
		}
	}
}

// await waits a little for the state, and comments on a silence that has become long. late says
// that it was so before.
func (s *stream) await(silence *time.Timer, late bool) (due bool, err error) {
	select {
	case <-silence.C:
		late = true
	default:
	}
	if late {
		s.out = s.form.Comment(s.out)
		if err := s.flush(); err != nil {
			return false, err
		}
		silence.Reset(s.silence())
	}
	return false, s.pause(loadingPoll)
}

func (s *stream) silence() time.Duration {
	if s.half {
		return probe
	}
	return quiet
}

// wait waits for a change, or until the stream has been silent for long enough: due.
func (s *stream) wait(silence *time.Timer) (due bool, err error) {
	half := s.ends
	if s.half {
		half = nil
	}
	select {
	case <-s.watcher.Wake():
	case <-silence.C:
		return true, nil
	case <-half:
		s.half = true
		return true, nil
	case <-s.watcher.Ended():
		return false, s.watcher.Why()
	case <-s.r.Context().Done():
		return false, errGone
	}
	return false, nil
}

// pause waits a while.
func (s *stream) pause(long time.Duration) error {
	if long <= 0 {
		return nil
	}
	if s.rest == nil {
		s.rest = time.NewTimer(long)
	} else {
		s.rest.Reset(long)
	}
	defer s.rest.Stop()
	select {
	case <-s.rest.C:
		return nil
	case <-s.watcher.Ended():
		return s.watcher.Why()
	case <-s.r.Context().Done():
		return errGone
	}
}

// step tells the changes that are there, and returns up to where the client knows all. said:
// something was written. more: there is more to tell.
func (s *stream) step() (said, more bool, upto uint64, err error) {
	if err := cmp.Or(s.May(), s.watcher.Why()); err != nil { // before anything is taken
		return false, false, 0, err
	}
	b, err := s.watcher.Take()
	if err != nil || len(b.Entries) == 0 {
		return false, b.More, b.Upto, err
	}
	out := lend()
	for _, e := range b.Entries {
		err := s.Hub.Tell(e, &s.filter, s.form, func(part []byte) (err error) {
			said = true
			if len(*out)+len(part) > bufferBytes {
				if err, out = s.sendLent(out), lend(); err != nil {
					return err
				}
			}
			if len(part) > bufferBytes {
				return s.send(part) // it may be shared, which a copy is not
			}
			*out = append(*out, part...)
			return nil
		})
		if err != nil {
			out.giveBack()
			return said, false, 0, err
		}
	}
	return said, b.More, b.Upto, s.sendLent(out)
}

// write sends b behind what else there is to say.
func (s *stream) write(b []byte) error {
	if err := s.flush(); err != nil {
		return err
	}
	return s.send(b)
}

// flush sends what there is to say. A stream that is quiet holds no buffer.
func (s *stream) flush() error {
	out := s.out
	s.out = nil
	return s.send(out)
}

// send sends b, or finds that the client does not take it.
func (s *stream) send(b []byte) error {
	for {
		part := b[:min(len(b), watch.PartBytes)]
		err := s.arm()
		if err == nil && len(part) > 0 {
			_, err = s.w.Write(part)
		}
		if b = b[len(part):]; err == nil && len(b) == 0 {
			err = s.conn.Flush()
		}
		if err != nil {
			return errGone
		}
		if len(b) == 0 {
			return nil
		}
	}
}

// arm sets the time that the client may take from now on. To set it takes a tenth of what a
// write takes, so it is not set each time, and may be a little longer.
func (s *stream) arm() error {
	now := time.Now()
	if now.Sub(s.armed) <= writeLimitStep {
		return nil
	}
	s.armed = now
	err := s.conn.SetWriteDeadline(now.Add(writeLimit + writeLimitStep))
	if err == nil && s.watcher != nil && s.watcher.Why() != nil {
		return s.conn.SetWriteDeadline(now.Add(farewell)) // as was set when it ended, perhaps before this
	}
	return err
}

// sendLent sends what is in a buffer, in one write, and gives the buffer back. net/http alone
// frames it as a chunk and passes it on through buffers of 2 and 4 KiB, in three writes, each
// of which may wake the client.
func (s *stream) sendLent(b *buffer) error {
	if s.alone == nil {
		defer b.giveBack()
		return s.send(*b)
	}
	if len(*b) == 0 {
		b.giveBack()
		return nil
	}
	framed := lend()
	defer framed.giveBack()
	s.alone.WriteThrough(framed)
	_, err := s.w.Write(*b)
	if err == nil {
		err = s.conn.Flush()
	}
	s.alone.WriteThrough(nil)
	b.giveBack() // the write may take long
	if err == nil {
		err = s.arm()
	}
	if err != nil {
		return errGone
	}
	if _, err := s.alone.Write(*framed); err != nil {
		_ = s.alone.Close() // part of a chunk may have been written: nothing may follow it
		return errGone
	}
	return nil
}
