package watch

import (
	"raftkv/internal/changelog"
	"raftkv/internal/list"
	"raftkv/internal/state"
	"strconv"
	"sync"
)

const (
	// PartBytes is how large a part of a revision's changes, or of a state, becomes at
	// most, unless it is a single change or item.
	PartBytes = 64 << 10
	// sharedBytes bounds what is kept encoded, so that watchers of the same share it, together
	// with the entries that it is of; the newest is kept in any case.
	sharedBytes = 16 << 20
)

// Form says how events are written.
type Form struct {
	list.Form
	// Lines is a JSON object a line, in place of server-sent events.
	Lines bool
}

// index tells the forms apart; it is below changelog.Forms.
func (f Form) index() (i int) {
	for bit, set := range []bool{f.KeysOnly, f.Base64, f.Lines} {
		if set {
			i |= 1 << bit
		}
	}
	return i
}

// NoID is the id of an event that moves nobody's position.
const NoID = ^uint64(0)

// Begin appends the beginning of an event up to its data, which is a JSON object. End
// belongs behind the data.
func (f Form) Begin(b []byte, event string, id uint64) []byte {
	if f.Lines {
		b = append(append(append(b, `{"event":"`...), event...), '"')
		if id != NoID {
			b = strconv.AppendUint(append(b, `,"id":`...), id, 10)
		}
		return append(b, `,"data":`...)
	}
	b = append(append(b, "event: "...), event...)
	if id != NoID {
		b = strconv.AppendUint(append(b, "\nid: "...), id, 10)
	}
	return append(b, "\ndata: "...)
}

// End appends what ends an event.
func (f Form) End(b []byte) []byte {
	if f.Lines {
		return append(b, "}\n"...)
	}
	return append(b, "\n\n"...)
}

// Position appends a position without an event.
func (f Form) Position(b []byte, id uint64) []byte {
	if f.Lines {
		return append(strconv.AppendUint(append(b, `{"event":"position","id":`...), id, 10), "}\n"...)
	}
	return append(strconv.AppendUint(append(b, "id: "...), id, 10), "\n\n"...)
}

// Comment appends what means nothing, and shows that the stream lives.
func (f Form) Comment(b []byte) []byte {
	if f.Lines {
		return append(b, `{"event":"comment"}`+"\n"...)
	}
	return append(b, ":\n\n"...)
}

var kindNames = [...]string{changelog.Put: "put", changelog.Delete: "delete", changelog.Expire: "expire"}

// KindOf returns the kind of a change of a name.
func KindOf(name string) (kind changelog.Kind, ok bool) {
	for k, n := range kindNames {
		if n == name {
			return changelog.Kind(k), true
		}
	}
	return 0, false
}

// change appends one change as a JSON object. What is left of a key's time is not told: it
// moves without a change.
func (f Form) change(b []byte, c *state.Change) []byte {
	b = append(append(append(b, `{"type":"`...), kindNames[c.Kind]...), '"')
	at := len(b)
	if c.Item == nil {
		b = append(list.AppendText(append(b, `{"key":`...), c.Key), '}')
	} else {
		b = f.Append(b, c.Key, c.Item, state.Left{Lease: c.Lease})
	}
	b[at] = ',' // in place of the brace of an object of its own
	return b
}

// Tell writes the changes of an entry for which a filter is, in parts of about PartBytes,
// of which only the last has the entry's revision as its id. Nothing is written where there
// are none. What write is given is valid until it returns. Who wants all of an entry gets
// what all others get, made once, and so takes no memory for it however long write lasts.
func (h *Hub) Tell(e *state.ChangeEntry, filter *Filter, f Form, write func(part []byte) error) error {
	for i := range e.Changes {
		if !filter.wants(&e.Changes[i]) {
			return f.tell(e, filter, write)
		}
	}
	return write(h.forms.of(e, filter, f))
}

func (f Form) tell(e *state.ChangeEntry, filter *Filter, write func(part []byte) error) error {
	var part, one []byte
	begin := func() {
		part = strconv.AppendUint(append(part[:0], `{"revision":`...), e.Revision, 10)
		part = append(part, `,"events":[`...)
	}
	begin()
	empty, out := len(part), []byte(nil)
	for i := range e.Changes {
		c := &e.Changes[i]
		if !filter.wants(c) {
			continue
		}
		one = f.change(one[:0], c)
		if len(part) > empty && len(part)+len(one) > PartBytes {
			out = f.End(append(append(f.Begin(out[:0], "change", NoID), part...), `],"more":true}`...))
			if err := write(out); err != nil {
				return err
			}
			begin()
		}
		if len(part) > empty {
			part = append(part, ',')
		}
		part = append(part, one...)
	}
	if len(part) == empty {
		return nil
	}
	return write(f.End(append(append(f.Begin(out[:0], "change", e.Revision), part...), "]}"...)))
}

// forms bounds what is kept encoded, and the entries that it keeps for that: the oldest goes
// first.
type forms struct {
	mu    sync.Mutex
	queue []sharedForm
	bytes int
}

type sharedForm struct {
	entry *state.ChangeEntry
	form  int
	bytes int // of both
}

// of returns an entry in a form, for a filter that wants all of it.
func (s *forms) of(e *state.ChangeEntry, filter *Filter, f Form) []byte {
	shared := &e.Told[f.index()]
	if told := shared.Load(); told != nil {
		return *told
	}
	s.mu.Lock() // also while it is made: the others who want it would make it, too
	defer s.mu.Unlock()
	if told := shared.Load(); told != nil {
		return *told
	}
	var whole []byte
	_ = f.tell(e, filter, func(part []byte) error { // whose error is what this returns
		whole = append(whole, part...)
		return nil
	})
	shared.Store(&whole)
	// The queue keeps the entry, too, which may be large where its values are not told.
	cost := cap(whole) + e.Size
	s.queue = append(s.queue, sharedForm{e, f.index(), cost})
	s.bytes += cost
	for s.bytes > sharedBytes && len(s.queue) > 1 {
		s.queue[0].entry.Told[s.queue[0].form].Store(nil)
		s.bytes -= s.queue[0].bytes
		s.queue[0] = sharedForm{}
		s.queue = s.queue[1:]
	}
	return whole
}
