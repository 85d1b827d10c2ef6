package watchtest

import (
	"errors"
	"fmt"
	"raftkv/internal/record"
	"raftkv/internal/state"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"go.etcd.io/raft/v3/raftpb"
)

// Item is a key with all that clients are told of it, but for what it has left of its
// time, which goes on without a change.
type Item struct {
	Key, Value                           string
	CreateRevision, ModRevision, Version uint64
	Lease                                uint64 // a named one; 0: none
}

// Change is what one revision made of one key.
type Change struct {
	Type string // put, delete or expire
	Item Item   // of delete and expire the key alone
}

// Changes is what a cluster has changed, by revision. It applies the entries of the log to
// a state of its own, and compares that before and after each command, so it knows nothing
// of how nodes find out what has changed.
type Changes struct {
	mu      sync.Mutex
	st      *state.State
	first   uint64                   // the revision at which it began
	waiting map[uint64]*raftpb.Entry // by index: others are missing before them
	terms   map[uint64]uint64        // by index, of all entries that were noted
	made    []revision               // one behind the other
	now     btree.Map[string, Item]  // all items
	began   btree.Map[string, Item]  // those at first
}

// revision is what one revision has changed, and what there was behind it.
type revision struct {
	number  uint64
	changes []Change
	items   btree.Map[string, Item]
}

// NewChanges begins with a state, which it copies.
func NewChanges(st *state.State) *Changes {
	c := &Changes{st: st.Copy(), first: st.Revision, waiting: make(map[uint64]*raftpb.Entry), terms: make(map[uint64]uint64)}
	c.st.Scan(func(key string, it *state.Item) bool {
		c.now.Set(key, c.item(key, it))
		return true
	})
	c.began = *c.now.Copy()
	return c
}

func (c *Changes) item(key string, it *state.Item) Item {
	return Item{key, it.Value, it.CreateRevision, it.ModRevision, it.Version, c.st.Left(it).Lease}
}

// Note takes in an entry that some node is about to apply. Each may come several times, in
// any order of the nodes. An error says that two nodes apply different entries.
func (c *Changes) Note(e *raftpb.Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	index := e.GetIndex()
	if term, ok := c.terms[index]; ok && term != e.GetTerm() {
		return fmt.Errorf("entry %d is applied of term %d and of term %d", index, term, e.GetTerm())
	}
	c.terms[index] = e.GetTerm()
	if index > c.st.Index {
		c.waiting[index] = e
	}
	for {
		next, ok := c.waiting[c.st.Index+1]
		if !ok {
			return nil
		}
		delete(c.waiting, c.st.Index+1)
		if err := c.apply(next); err != nil {
			return err
		}
	}
}

// apply applies the next entry, one command after the other.
func (c *Changes) apply(e *raftpb.Entry) error {
	if e.GetType() != raftpb.EntryNormal {
		return c.st.Replay(e)
	}
	id, commands, err := state.DecodeBatch(e.GetData())
	if err != nil || len(e.GetData()) == 0 { // a tick, or nothing
		before := c.st.Revision
		if _, _, err = c.st.ApplyEntry(e); err != nil && !errors.Is(err, record.ErrMalformed) {
			return err
		}
		return c.compare(before, "expire")
	}
	c.st.Index, c.st.Term = e.GetIndex(), e.GetTerm()
	if _, first := c.st.ApplyBatch(id, nil); !first {
		return nil
	}
	for _, cmd := range commands {
		before := c.st.Revision
		c.st.Apply(cmd)
		if err := c.compare(before, "delete"); err != nil {
			return err
		}
	}
	return nil
}

// compare notes what has changed since the revision before. gone is the type of what is
// not there any more.
func (c *Changes) compare(before uint64, gone string) error {
	if c.st.Revision == before {
		return nil
	}
	if c.st.Revision != before+1 {
		return fmt.Errorf("one command made revision %d from %d", c.st.Revision, before)
	}
	var changes []Change
	c.now.Scan(func(key string, _ Item) bool {
		if c.st.Get(key) == nil {
			changes = append(changes, Change{gone, Item{Key: key}})
		}
		return true
	})
	c.st.Scan(func(key string, it *state.Item) bool {
		if it.ModRevision == c.st.Revision {
			changes = append(changes, Change{"put", c.item(key, it)})
		}
		return true
	})
	for _, ch := range changes {
		if ch.Type == "put" {
			c.now.Set(ch.Item.Key, ch.Item)
		} else {
			c.now.Delete(ch.Item.Key)
		}
	}
	slices.SortFunc(changes, byKey)
	c.made = append(c.made, revision{c.st.Revision, changes, *c.now.Copy()})
	return nil
}

func byKey(a, b Change) int { return strings.Compare(a.Item.Key, b.Item.Key) }

// Revision is the newest revision that it knows.
func (c *Changes) Revision() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.st.Revision
}

// Of returns the changes of a revision that a watch asks for, in the order of their keys.
func (c *Changes) Of(number uint64, w Watch) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := slices.BinarySearchFunc(c.made, number, func(r revision, n uint64) int { return int(r.number) - int(n) })
	if !ok {
		return nil
	}
	return w.pick(c.made[at].changes)
}

// Next returns the first revision behind after, and before end, in which something has
// changed that a watch asks for. 0: there is none.
func (c *Changes) Next(after, end uint64, w Watch) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.made {
		if r.number > after && r.number < end && len(w.pick(r.changes)) > 0 {
			return r.number
		}
	}
	return 0
}

// At returns what there is at a revision under the filters of a watch. False: the
// revision is none of this history's, or not yet.
func (c *Changes) At(number uint64, w Watch) (items map[string]Item, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number < c.first || number > c.st.Revision {
		return nil, false
	}
	all := c.began.Copy()
	for _, r := range slices.Backward(c.made) {
		if r.number <= number {
			all = r.items.Copy()
			break
		}
	}
	items = make(map[string]Item)
	all.Scan(func(key string, it Item) bool {
		if w.matches(key) {
			items[key] = w.show(it)
		}
		return true
	})
	return items, true
}
