package history

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// group is a possible state of the keys that operations can be about together. It is
// immutable.
type group struct {
	items []entry // in the order of their keys
	// given is the last key that an append was given. A later one is behind it, also when
	// the keys between them were deleted.
	given string
	// past is a time that has come: by then some key had to be alive no more. What
	// happens now is not over before it.
	past time.Time
	// done are the requests that happened under a name, in the order of their names.
	done []done
}

// done is what came of a request with a name.
type done struct {
	name   string
	ok     bool
	number int64
}

// entry is a key and what it holds.
type entry struct {
	Item
	unnamed bool      // an append wrote it that was told no key; Item.Key is made up
	ends    time.Time // it may be gone from then on; the zero time: it stays
	gone    time.Time // it must be gone from then on; the zero time: unknown
}

func (g *group) equal(other *group) bool {
	return g.given == other.given && g.past.Equal(other.past) &&
		slices.Equal(g.items, other.items) && slices.Equal(g.done, other.done)
}

// step returns the states in which the group may be when it has answered out to in.
func (g *group) step(in Input, out Output) (next []any) {
	for _, g := range g.expired(in, out) {
		if !out.Told.IsZero() && out.Told.Before(g.past) {
			continue
		}
		then, said := g.once(in, out)
		if then != nil && (out.Unknown || said.agrees(out)) {
			next = append(next, then)
		}
	}
	return next
}

// agrees reports whether a client was told what the model says. When it was told does not
// count.
func (o Output) agrees(told Output) bool {
	return o.OK == told.OK && o.Value == told.Value && o.Number == told.Number && o.Deleted == told.Deleted &&
		o.Key == told.Key && slices.Equal(o.Items, told.Items)
}

// sees reports whether what comes of an operation depends on a key.
func (in Input) sees(key string) bool {
	switch in.Kind {
	case Clear, List:
		return strings.HasPrefix(key, in.Key)
	case Exchange, Look:
		return key == in.Key || key == in.Key2
	case Put, Append:
		return false // the key is written, whether it was there or not
	}
	return key == in.Key
}

// expired returns the group as it may be when an operation comes to it: with and without
// each of the keys that it sees whose time may have passed.
func (g *group) expired(in Input, out Output) []*group {
	may := []*group{g}
	for _, e := range g.items {
		if e.ends.IsZero() || !in.sees(e.Key) || !out.Told.IsZero() && out.Told.Before(e.ends) {
			continue
		}
		with := may
		for _, g := range with {
			without := g.without(e.Key)
			if without.past.Before(e.ends) {
				without.past = e.ends
			}
			may = append(may, without)
		}
		if !e.gone.IsZero() && in.Sent.After(e.gone) {
			may = may[len(with):]
		}
	}
	return may
}

func (g *group) find(key string) (i int, found bool) {
	return slices.BinarySearchFunc(g.items, key, func(e entry, key string) int { return cmp.Compare(e.Key, key) })
}

// value returns what a key holds, "" if there is none.
func (g *group) value(key string) string {
	if i, found := g.find(key); found {
		return g.items[i].Value
	}
	return ""
}

// without returns the group without a key.
func (g *group) without(key string) *group {
	next := *g
	if i, found := g.find(key); found {
		next.items = slices.Delete(slices.Clone(g.items), i, i+1)
	}
	return &next
}

// with returns the group with a key that holds something; with a key that is gone, if that
// is nothing.
func (g *group) with(e entry) *group {
	if e.Value == "" {
		return g.without(e.Key)
	}
	next := *g
	i, found := g.find(e.Key)
	next.items = slices.Clone(g.items)
	if found {
		next.items[i] = e
	} else {
		next.items = slices.Insert(next.items, i, e)
	}
	return &next
}

// entry returns a key that is to hold a value for as long as the request asks.
func (in Input) entry(key, value string) entry {
	e := entry{Item: Item{key, value}}
	if in.TTL > 0 {
		e.ends = in.Sent.Add(in.TTL)
	}
	if in.TTL > 0 && in.Grace > 0 {
		e.gone = e.ends.Add(in.Grace)
	}
	return e
}

// once is apply, for a request that may have a name, under which it happens once. A repeat
// is told what the first was, but for what it reads.
func (g *group) once(in Input, out Output) (*group, Output) {
	if in.Once == "" {
		return g.apply(in, out)
	}
	i, found := slices.BinarySearchFunc(g.done, in.Once, func(d done, name string) int { return cmp.Compare(d.name, name) })
	if found {
		said := Output{OK: g.done[i].ok, Number: g.done[i].number}
		if in.Kind == Exchange && !said.OK {
			said.Items = g.both(in)
		}
		return g, said
	}
	then, said := g.apply(in, out)
	if then == nil {
		return nil, said
	}
	next := *then
	next.done = slices.Insert(slices.Clone(then.done), i, done{in.Once, said.OK, said.Number})
	return &next, said
}

// apply returns what the group becomes by an operation, and what a client is told of it.
// nil: that cannot be. Of what the client was told, out, it takes the name that the
// cluster has given to a key.
func (g *group) apply(in Input, out Output) (*group, Output) {
	now := g.value(in.Key)
	// on is a write under a condition.
	on := func(met bool, value string) (*group, Output) {
		if !met {
			return g, Output{}
		}
		return g.with(in.entry(in.Key, value)), Output{OK: true}
	}
	switch in.Kind {
	case Get:
		return g, Output{OK: out.OK, Value: now} // 404 or an empty answer: the value tells
	case Put:
		return on(true, in.Value)
	case Create:
		return on(now == "", in.Value)
	case Swap:
		return on(now == in.Expect, in.Value)
	case Delete:
		return on(now != "", "")
	case DeleteOld:
		return on(now == in.Expect, "")
	case Add:
		return g.add(in)
	case Exchange:
		if now != in.Expect || g.value(in.Key2) != in.Expect2 {
			return g, Output{Items: g.both(in)}
		}
		return g.with(in.entry(in.Key, in.Value)).with(entry{Item: Item{in.Key2, in.Value2}}), Output{OK: true}
	case Look:
		return g, Output{OK: true, Items: g.both(in)}
	case Append:
		return g.append(in, out)
	case Clear:
		next := *g
		next.items = slices.DeleteFunc(slices.Clone(g.items), func(e entry) bool { return strings.HasPrefix(e.Key, in.Key) })
		return &next, Output{OK: true, Deleted: len(g.items) - len(next.items)}
	}
	return g.list(in, out)
}

// add adds to a number. A key that is there lives as long as before.
func (g *group) add(in Input) (*group, Output) {
	e := in.entry(in.Key, "0")
	if i, found := g.find(in.Key); found {
		e = g.items[i]
	}
	n, err := strconv.ParseInt(e.Value, 10, 64)
	if err != nil {
		return g, Output{}
	}
	e.Value = strconv.FormatInt(n+in.Delta, 10)
	return g.with(e), Output{OK: true, Number: n + in.Delta}
}

// both returns which of the two keys are there, in the order in which they were asked for.
func (g *group) both(in Input) (items []Item) {
	for _, key := range []string{in.Key, in.Key2} {
		if value := g.value(key); value != "" {
			items = append(items, Item{key, value})
		}
	}
	return items
}

// append writes a key behind all that were given.
func (g *group) append(in Input, out Output) (*group, Output) {
	e := in.entry(out.Key, in.Value)
	if out.Unknown {
		e.Key, e.unnamed = in.Key+"?"+in.Value, true
		return g.with(e), Output{}
	}
	if out.Key <= g.given || !strings.HasPrefix(out.Key, in.Key) {
		return nil, Output{}
	}
	next := g.with(e)
	next.given = out.Key
	return next, Output{OK: true, Key: out.Key}
}

// list shows keys. What an append wrote whose answer was lost gets its name by this.
func (g *group) list(in Input, out Output) (*group, Output) {
	next := g
	for _, e := range g.items {
		i := slices.IndexFunc(out.Items, func(it Item) bool { return it.Value == e.Value })
		if !e.unnamed || i < 0 || !strings.HasPrefix(e.Key, in.Key) {
			continue
		}
		next = next.without(e.Key)
		if _, taken := next.find(out.Items[i].Key); taken {
			return nil, Output{}
		}
		e.Key, e.unnamed = out.Items[i].Key, false
		next = next.with(e)
	}
	var items []Item
	for _, e := range next.items {
		if strings.HasPrefix(e.Key, in.Key) {
			items = append(items, e.Item)
		}
	}
	return next, Output{OK: true, Items: items}
}
