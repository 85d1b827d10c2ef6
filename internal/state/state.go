// Package state answers: what does the log mean? A State is the replicated state
// machine: keys and values, members, which batches were applied, and what the
// replicas found of one another. It is pure: what it becomes depends on the
// committed entries and on nothing else, no clock, no goroutine, no random number.
// Commands, the state's hash and its records in files are defined here, for ever.
package state

import (
	"errors"
	"fmt"
	"raftkv/internal/address"
	"raftkv/internal/changelog"
	"raftkv/internal/entry"
	"raftkv/internal/lease"
	"raftkv/internal/membership"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/txn"

	"github.com/tidwall/btree"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Item is one key's value and history.
type Item = txn.Item

// State is the replicated state machine. It is pure: what it becomes depends
// on the committed entries and on nothing else, no clock, no goroutine, no
// random number. Every replica therefore holds the same state at the same
// index.
type State struct {
	Index, Term uint64                   // of the last entry applied; one unit with the rest
	Revision    uint64                   // counts the commands that changed something
	Bytes       uint64                   // of all keys and values
	Items       btree.Map[string, *Item] // by key
	Sum         uint64                   // of the items' hashes; hash.go
	Windows     map[uint64]Window        // by node: which of its batches were applied
	Membership  membership.Membership
	Leases      lease.Table
	Once        once.Table
	Level       uint64 // of the commands that every member knows; level.go
	Checks      Checks

	// Changes is what the last revisions changed. It is no part of what is replicated.
	Changes changelog.Log[Item]
}

// New returns an empty state with these voters, or of nobody.
func New(peers []address.Peer) *State {
	return &State{Windows: make(map[uint64]Window), Membership: membership.New(peers)}
}

// Copy returns a state that later changes of s do not touch, in time
// independent of the number of keys: the tree is copied on write.
func (s *State) Copy() *State {
	c := &State{Items: *s.Items.Copy(), Bytes: s.Bytes, Sum: s.Sum}
	for _, p := range parts {
		p.clone(s, c)
	}
	return c
}

// Get returns a key's item, nil if there is none.
func (s *State) Get(key string) *Item {
	it, _ := s.Items.Get(key)
	return it
}

// Scan shows all items in the order of their keys, until each returns false.
func (s *State) Scan(each func(key string, it *Item) bool) { s.Items.Scan(each) }

// Keys is how many keys there are.
func (s *State) Keys() uint64 { return uint64(s.Items.Len()) }

// DropItems lets go of all items, before a snapshot brings others. What is left
// is no state any more.
func (s *State) DropItems() {
	s.Items, s.Leases, s.Once = btree.Map[string, *Item]{}, lease.Table{}, once.Table{}
	s.Changes.Keep(s.Changes.Limit(), s.Revision)
}

// Summary tells of a state how far and how large it is.
type Summary struct {
	Index, term, Revision, Keys, Bytes uint64
	Level, Checked                     uint64 // the cluster's level; the newest checkpoint agreed on
	File                               uint64 // about how many bytes a state file takes
}

// Summary returns the figures of s, in constant time.
func (s *State) Summary() Summary {
	return Summary{s.Index, s.Term, s.Revision, s.Keys(), s.Bytes, s.Level, s.Checks.Checked, s.Bytes + s.Leases.Bytes() + s.Once.FileBytes()}
}

// Holding is what a state holds, and one key of it.
type Holding struct {
	Bytes, Keys uint64 // of the whole state, its leases included
	Old         uint64 // of the key and its value
	Exists      bool   // the state holds the key
}

// Weight is what s holds in bytes and in things that take memory beside them, leases
// among both.
func (s *State) Weight() (bytes, keys uint64) {
	return s.Bytes + s.Leases.Bytes(), s.Keys() + uint64(s.Leases.Len())
}

// Holding returns how much s holds in all, and whether it holds key.
func (s *State) Holding(key string) Holding {
	var h Holding
	h.Bytes, h.Keys = s.Weight()
	if it := s.Get(key); it != nil {
		h.Old, h.Exists = uint64(len(key)+len(it.Value)), true
	}
	return h
}

// Result is what became of one command.
type Result struct {
	Err error // nil, problem.ErrNotFound or problem.ErrPrecondition
	// Revision is the mod_revision of the key as it is now: the ETag to
	// report. 0: there is no such key.
	Revision uint64
	// Deletion: the store's revision at which keys were deleted.
	Deletion uint64
	Created  bool   // the key was not there before
	Deleted  int    // how many, where there may be several
	Lease    uint64 // the lease that was made or kept alive
	TTL      uint64 // all its time, in ms
	More     bool   // there are more keys that a deletion was about
	Txn      *txn.Outcome
	Replayed bool // all this came of the same request before
}

// ApplyBatch applies one batch, or nothing if it was applied before.
// Commands from a node that is not a member do nothing either: nobody waits
// for them, and a removed node must not leave a window behind.
func (s *State) ApplyBatch(id BatchID, cmds []Command) (results []Result, first bool) {
	if !s.admit(id) {
		return nil, false
	}
	results = make([]Result, len(cmds))
	for i, c := range cmds {
		results[i] = s.Apply(c)
	}
	s.Changes.Tell(s.Term)
	return results, true
}

// admit reports whether a batch is of a member, and had not been applied.
func (s *State) admit(id BatchID) bool {
	if _, ok := s.Membership.Members[id.Node]; !ok {
		return false
	}
	w := s.Windows[id.Node]
	first := w.Admit(id)
	s.Windows[id.Node] = w
	return first
}

// Apply applies one command, whose kind DecodeCommand has known.
func (s *State) Apply(c Command) Result { return rowOf(c.Kind).apply(s, c) }

// ApplyConfEntry applies the membership change of an entry. changed says whether it
// did anything; err is why it was refused, or record.ErrUnknownCommand, after which
// nothing may be applied any more.
func (s *State) ApplyConfEntry(e *raftpb.Entry) (cc *raftpb.ConfChange, change membership.Change, changed bool, err error) {
	cc, change, err = DecodeConfEntry(e)
	if errors.Is(err, record.ErrUnknownCommand) {
		return cc, change, false, err
	}
	s.Index, s.Term = e.GetIndex(), e.GetTerm()
	if err == nil {
		changed, err = s.ApplyChange(change)
	}
	return cc, change, changed, err
}

// ApplyChange applies a membership change, or says why it is refused. Programs of a lower
// level refuse a URL with https, so below the level all do.
func (s *State) ApplyChange(c membership.Change) (changed bool, err error) {
	if s.Level < DoorsLevel && address.IsHTTPS(c.PeerURL) && c.Op != membership.OpRemove {
		return false, fmt.Errorf("%w: %.300q, and the cluster is at level %d", problem.ErrBadPeerURL, c.PeerURL, s.Level)
	}
	done, err := s.Membership.Check(c)
	if err != nil || done {
		return false, err
	}
	s.Membership.Apply(c)
	if c.Op == membership.OpRemove {
		delete(s.Windows, c.ID)
		delete(s.Checks.Diverged, c.ID)
	}
	s.raiseLevel()
	return true, nil
}

// Outcome is what became of a batch, on its way to those who wait.
type Outcome struct {
	ID      BatchID
	Data    []byte   // the batch itself
	Results []Result // nil: it was not applied, or before
	Gone    int      // how many keys a tick, or a command about many, has deleted or looked at
}

// ApplyEntry applies one normal entry, and returns how many of its commands do not
// belong to the checks. After record.ErrMalformed the entry counts as one without
// commands; after another error nothing may be applied any more.
func (s *State) ApplyEntry(e *raftpb.Entry) (o Outcome, commands int, err error) {
	if err := s.goTo(e); err != nil {
		return o, 0, err
	}
	if len(e.GetData()) == 0 {
		return o, 0, nil // a new leader's first entry (thesis §6.4, step 1)
	}
	if t, ok, err := entry.DecodeTick(e.GetData()); ok && err == nil {
		o.Gone = s.tick(t)
		s.Changes.Tell(s.Term)
		return o, min(1, o.Gone), nil
	}
	id, cmds, err := DecodeBatch(e.GetData())
	if errors.Is(err, record.ErrMalformed) {
		return o, 0, err
	}
	if err != nil {
		return o, 0, fmt.Errorf("entry %d: %w; upgrade this node", e.GetIndex(), err)
	}
	o.ID, o.Data = id, e.GetData()
	o.Results, _ = s.ApplyBatch(id, cmds)
	for _, r := range o.Results {
		o.Gone += r.Deleted
		if r.Txn != nil {
			o.Gone += r.Txn.Seen
		}
	}
	return o, countWork(cmds), nil
}

// goTo makes the state that of an entry which is about to be applied.
func (s *State) goTo(e *raftpb.Entry) error {
	if e.GetIndex() != s.Index+1 {
		return fmt.Errorf("raft handed over entry %d after entry %d", e.GetIndex(), s.Index)
	}
	s.Index, s.Term = e.GetIndex(), e.GetTerm()
	return nil
}

// DecodeConfEntry takes the membership change out of its entry.
func DecodeConfEntry(e *raftpb.Entry) (*raftpb.ConfChange, membership.Change, error) {
	cc := &raftpb.ConfChange{}
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.GetData(), cc) != nil {
		return cc, membership.Change{}, record.ErrMalformed
	}
	change, err := membership.DecodeChange(cc.GetContext())
	if errors.Is(err, record.ErrUnknownCommand) {
		err = fmt.Errorf("entry %d: %w; upgrade this node", e.GetIndex(), err)
	}
	return cc, change, err
}

// Replay applies an entry for which nobody waits.
func (s *State) Replay(e *raftpb.Entry) error {
	_, err := s.ReplayCounting(e)
	return err
}

// ReplayCounting is Replay; it says how many commands there were beside those of
// the checks.
func (s *State) ReplayCounting(e *raftpb.Entry) (commands int, err error) {
	if e.GetType() == raftpb.EntryNormal {
		_, commands, err = s.ApplyEntry(e)
		if errors.Is(err, record.ErrMalformed) {
			err = nil
		}
		return commands, err
	}
	if _, _, _, err := s.ApplyConfEntry(e); errors.Is(err, record.ErrUnknownCommand) {
		return 0, err
	}
	return 0, nil // a refused change is void
}

// countWork counts the commands that do not belong to the checks themselves.
func countWork(cmds []Command) (n int) {
	for _, c := range cmds {
		if !rowOf(c.Kind).checks {
			n++
		}
	}
	return n
}
