package txn

import (
	"cmp"
	"fmt"
	"math"
	"raftkv/internal/problem"
	"slices"
	"strconv"
	"strings"
)

// Store is what a transaction is planned against. It does not change meanwhile.
type Store interface {
	// Get returns a key's item, nil if there is none.
	Get(key string) *Item
	// Ascend shows the items in the order of their keys, from a key on, until each
	// returns false.
	Ascend(from string, each func(key string, it *Item) bool)
	// Left returns what an item has left of its time.
	Left(it *Item) Left
	// LeaseRoom returns how many more keys a lease takes that an owner may name, and how
	// much of its time is left, in ms. False: there is none.
	LeaseRoom(id uint64, owner string) (room int, remaining uint64, ok bool)
}

// Change is what becomes of a key. No key has two.
type Change struct {
	Key   string
	Item  *Item    // what it is to be; nil: it goes. The item's lease is still to be given
	Life  Lifetime // of the key
	Keeps bool     // the key goes with what it went with before, whatever Life says
	at    int      // by which operation
}

// Found is an item that a transaction has seen.
type Found struct {
	Key  string
	Item *Item
	Left Left
}

// Left is what an item has left of its time.
type Left struct {
	Goes   bool   // by itself
	Millis uint64 // until then, by the replicated clock
	Lease  uint64 // with which it goes; 0: with none that has a name
}

// Result is what came of an operation.
type Result struct {
	Kind    OpKind
	Key     string  // that was written
	Deleted int     // keys
	Number  int64   // of Add: the new one; of Append: of the key among those of its revision
	Items   []Found // of Get none or one
	Next    string  // of List: behind which key to go on; empty at the end
	// TooLarge: it has happened before, and what it reads now is too large to tell.
	TooLarge bool
}

// Outcome is what came of a transaction.
type Outcome struct {
	Succeeded bool   // its conditions held
	Revision  uint64 // the store's behind it, and that of each key that it wrote
	Results   []Result
	Seen      int // how many items the results have
}

// plan is a transaction that is being planned.
type plan struct {
	store    Store
	revision uint64 // of what it changes
	changes  []Change
	byKey    map[string]int // index in changes
	sorted   []int          // indices in changes, in the order of keys
	room     map[uint64]int // by lease: how many more keys it takes
	names    int            // that were given
	seen     int
	bytes    uint64 // of the items seen
	most     uint64
}

// Plan returns what comes of t in a store at a revision, and how the store has to change,
// in the order of the operations. After an error nothing is to change.
func (t *Txn) Plan(s Store, revision uint64) (*Outcome, []Change, error) {
	if err := t.Check(); err != nil {
		return nil, nil, err
	}
	o := &Outcome{Succeeded: t.holds(s), Revision: revision}
	ops := t.ops(o.Succeeded)
	p := &plan{store: s, revision: revision + 1, byKey: map[string]int{}, room: map[uint64]int{}, most: t.MaxBytes}
	o.Results = make([]Result, len(ops))
	for i, op := range ops {
		if err := p.write(i, op, &o.Results[i]); err != nil {
			return nil, nil, fmt.Errorf("operation %d: %w", i, err)
		}
	}
	for i := range p.changes {
		p.sorted = append(p.sorted, i)
	}
	slices.SortFunc(p.sorted, func(a, b int) int { return cmp.Compare(p.changes[a].Key, p.changes[b].Key) })
	for i, op := range ops {
		if err := p.read(i, op, &o.Results[i]); err != nil {
			return nil, nil, fmt.Errorf("operation %d: %w", i, err)
		}
	}
	if len(p.changes) > 0 {
		o.Revision = p.revision
	}
	o.Seen = p.seen
	return o, p.changes, nil
}

// ops are the operations that happen.
func (t *Txn) ops(succeeded bool) []Op {
	if succeeded {
		return t.Then
	}
	return t.Else
}

// ReadAgain puts into an outcome of t what its reads find in a store now, or that it is
// too large: that t has happened has to be told all the same.
func (t *Txn) ReadAgain(s Store, o *Outcome) {
	p := &plan{store: s, most: t.MaxBytes}
	for i, op := range t.ops(o.Succeeded) {
		r, seen, bytes := &o.Results[i], p.seen, p.bytes
		if p.read(i, op, r) != nil {
			r.Items, r.Next, r.TooLarge = nil, "", true
			p.seen, p.bytes = seen, bytes
		}
	}
	o.Seen = p.seen
}

// holds decides the conditions.
func (t *Txn) holds(s Store) bool {
	for _, c := range t.If {
		if !c.holds(s) {
			return false
		}
	}
	return true
}

func (c *Comparison) holds(s Store) bool {
	if c.Field == AnyBelow {
		found := false
		s.Ascend(c.Key, func(key string, _ *Item) bool {
			found = strings.HasPrefix(key, c.Key)
			return false
		})
		return found == (c.Number == 1)
	}
	it := s.Get(c.Key)
	if c.Field == Exists {
		return (it != nil) == (c.Number == 1)
	}
	if it == nil {
		return c.Field != HasValue && c.Number == 0
	}
	switch c.Field {
	case Mod:
		return it.ModRevision == c.Number
	case Create:
		return it.CreateRevision == c.Number
	case Version:
		return it.Version == c.Number
	case Lease:
		return s.Left(it).Lease == c.Number
	}
	return it.Value == string(c.Value)
}

// write plans an operation that changes a key.
func (p *plan) write(i int, op Op, r *Result) (err error) {
	r.Kind, r.Key = op.Kind, op.Key
	if op.Kind == Append {
		if r.Key, r.Number, err = p.name(op.Key); err != nil {
			return err
		}
	} else if !op.Kind.writes() {
		return nil
	}
	old := p.store.Get(r.Key)
	ch := Change{Key: r.Key, Life: op.Life, at: i}
	switch op.Kind {
	case Delete:
		if old == nil {
			return nil
		}
		r.Deleted = 1
	case Add:
		if r.Number, err = sumOf(old, op.Delta); err != nil {
			return err
		}
		ch.Keeps = old != nil
		ch.Item = p.item(old, strconv.FormatInt(r.Number, 10))
	default:
		ch.Item = p.item(old, string(op.Value))
	}
	if _, twice := p.byKey[ch.Key]; twice {
		return writtenTwice(ch.Key) // by a name that was given
	}
	if !ch.Keeps {
		if err := p.bind(ch, old); err != nil {
			return err
		}
	}
	p.byKey[ch.Key] = len(p.changes)
	p.changes = append(p.changes, ch)
	return nil
}

// maxNames is how many keys one transaction may name, those that are taken included.
const maxNames = 1000

// name returns the next key under a prefix. One that somebody else has written by its
// whole name already is left alone.
func (p *plan) name(prefix string) (key string, n int64, err error) {
	for p.names < maxNames {
		key, n = nameOf(prefix, p.revision, int64(p.names)), int64(p.names)
		p.names++
		if _, written := p.byKey[key]; !written && p.store.Get(key) == nil {
			return key, n, nil
		}
	}
	return "", 0, fmt.Errorf("%w: all names of revision %d under %.64q are taken", problem.ErrBadRequest, p.revision, prefix)
}

// nameOf is the key that an append gives.
func nameOf(prefix string, revision uint64, n int64) string {
	return prefix + fmt.Sprintf("%020d-%03d", revision, n)
}

// item returns what a key that was old will be.
func (p *plan) item(old *Item, value string) *Item {
	it := &Item{Value: value, CreateRevision: p.revision, ModRevision: p.revision, Version: 1}
	if old != nil {
		it.CreateRevision, it.Version = old.CreateRevision, old.Version+1
	}
	return it
}

// bind makes sure that the lease of a key takes it, and that which it had is free of it.
func (p *plan) bind(ch Change, old *Item) error {
	had := uint64(0)
	if old != nil {
		had = p.store.Left(old).Lease
	}
	if ch.Item != nil && ch.Life.Kind == WithLease {
		id := ch.Life.Value
		room, _, ok := p.store.LeaseRoom(id, ch.Life.Owner)
		switch {
		case !ok:
			return problem.ErrNoSuchLease
		case had == id:
			return nil
		case room+p.room[id] <= 0:
			return problem.ErrLeaseFull
		}
		p.room[id]--
	}
	if had != 0 {
		p.room[had]++
	}
	return nil
}

const (
	maxDigits = 20 // of a number of 64 bits, with its sign
	maxNumber = 64 // bytes of a value that is looked at as a number
)

// sumOf adds to the number that an item holds; a missing one counts as 0. The error is
// problem.ErrNotANumber or problem.ErrOutOfRange.
func sumOf(it *Item, delta int64) (int64, error) {
	n := int64(0)
	if it != nil {
		var err error
		if n, err = parseNumber(it.Value); err != nil {
			return 0, err
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return 0, fmt.Errorf("%w: %d and %d", problem.ErrOutOfRange, n, delta)
	}
	return n + delta, nil
}

// parseNumber reads a decimal number, behind which a newline may stand. The error is
// problem.ErrNotANumber or problem.ErrOutOfRange. It does not repeat the value: errors get
// to where values must not be.
func parseNumber(text string) (int64, error) {
	digits := strings.TrimSuffix(text, "\n")
	if len(digits) > maxNumber {
		return 0, fmt.Errorf("%w: it has %d bytes", problem.ErrNotANumber, len(text))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err == nil:
		return n, nil
	case isNumber(digits):
		return 0, fmt.Errorf("%w: there is one of %d digits", problem.ErrOutOfRange, len(digits))
	}
	return 0, fmt.Errorf("%w: it has %d bytes", problem.ErrNotANumber, len(text))
}

// isNumber reports whether text is a decimal number, of any size.
func isNumber(text string) bool {
	if text != "" && (text[0] == '-' || text[0] == '+') {
		text = text[1:]
	}
	return text != "" && strings.Trim(text, "0123456789") == ""
}

// read plans an operation that changes nothing. It sees what those before it have changed.
func (p *plan) read(i int, op Op, r *Result) error {
	switch op.Kind {
	case Get:
		it, ch := p.store.Get(op.Key), (*Change)(nil)
		if n, ok := p.byKey[op.Key]; ok && p.changes[n].at < i {
			ch = &p.changes[n]
			it = ch.Item
		}
		if it == nil {
			return nil
		}
		return p.see(op.Key, it, ch, r)
	case List:
		return p.list(i, op, r)
	}
	return nil
}

// list goes through the keys of the store and those that were written, in one order.
func (p *plan) list(i int, op Op, r *Result) (err error) {
	from := op.Key
	if op.After != "" {
		from = max(from, op.After+"\x00") // no key has a NUL, so this is the next that could be
	}
	written, _ := slices.BinarySearchFunc(p.sorted, from, func(n int, from string) int { return cmp.Compare(p.changes[n].Key, from) })
	// show takes one item in, and reports whether to go on.
	show := func(key string, it *Item, ch *Change) bool {
		switch {
		case !strings.HasPrefix(key, op.Key):
			return false
		case uint64(len(r.Items)) == op.Limit:
			if len(r.Items) > 0 {
				r.Next = r.Items[len(r.Items)-1].Key
			}
			return false
		}
		err = p.see(key, it, ch, r)
		return err == nil
	}
	// showWritten does so for what was written, in front of a key of the store.
	showWritten := func(before string, all bool) bool {
		for ; written < len(p.sorted); written++ {
			ch := &p.changes[p.sorted[written]]
			if !all && ch.Key >= before {
				return true
			}
			if ch.at < i && ch.Item != nil && !show(ch.Key, ch.Item, ch) {
				return false
			}
		}
		return true
	}
	more := true
	p.store.Ascend(from, func(key string, it *Item) bool {
		if more = showWritten(key, false); !more {
			return false
		}
		if n, ok := p.byKey[key]; ok && p.changes[n].at < i {
			return true // it comes as it was written, or not at all
		}
		more = show(key, it, nil)
		return more
	})
	if more {
		showWritten("", true)
	}
	return err
}

// see takes an item into a result. ch is what made it so, nil if the store has it.
func (p *plan) see(key string, it *Item, ch *Change, r *Result) error {
	p.seen++
	p.bytes += uint64(len(key) + len(it.Value))
	if p.seen > MaxItems {
		return fmt.Errorf("%w: the results have more than %d items", problem.ErrTooLarge, MaxItems)
	}
	if p.bytes > p.most {
		return fmt.Errorf("%w: the results have more than %d bytes of keys and values", problem.ErrTooLarge, p.most)
	}
	f := Found{Key: key, Item: it}
	switch {
	case ch == nil:
		f.Left = p.store.Left(it)
	case ch.Keeps:
		f.Left = p.store.Left(p.store.Get(key))
	case ch.Life.Kind == ForTTL:
		f.Left = Left{Goes: true, Millis: ch.Life.Value}
	case ch.Life.Kind == WithLease:
		_, remaining, ok := p.store.LeaseRoom(ch.Life.Value, ch.Life.Owner)
		f.Left = Left{Goes: ok, Millis: remaining, Lease: ch.Life.Value}
	}
	r.Items = append(r.Items, f)
	return nil
}
