package state

import (
	"encoding/binary"
	"raftkv/internal/changelog"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/txn"
)

// Condition is decided when the command is applied.
type Condition = txn.Condition

// The kinds of a condition.
const (
	always       = txn.Always
	IfExists     = txn.IfExists
	IfMissing    = txn.IfMissing
	IfAtRevision = txn.IfAtRevision
)

// EncodeWrite encodes a put or a delete.
func EncodeWrite(kind Kind, c Condition, key string, value []byte) []byte {
	b := make([]byte, 0, WriteOverhead+len(key)+len(value))
	return append(AppendWriteHead(b, kind, c, key), value...)
}

// WriteOverhead is how much longer than key and value a write is at most.
const WriteOverhead = 2 + 2*binary.MaxVarintLen64

// AppendWriteHead appends a write up to its value, which ends it.
func AppendWriteHead(b []byte, kind Kind, c Condition, key string) []byte {
	return record.AppendString(c.AppendTo(append(b, byte(kind))), key)
}

// decodeWrite reads the fields of a put or a delete.
func decodeWrite(r *record.Reader, c *Command) (err error) {
	if c.condition, err = txn.ReadCondition(r); err != nil {
		return err
	}
	c.Key, c.Value = string(r.Bytes()), r.B
	if c.Kind == KindDelete && len(c.Value) > 0 {
		return record.ErrMalformed
	}
	return nil
}

func (s *State) put(c Command) Result {
	if c.condition.Kind != always || c.life.Kind != forEver {
		return s.putIf(c)
	}
	return s.set(c.Key, c.Value, 0)
}

// putIf is put where something may be in the way.
func (s *State) putIf(c Command) Result {
	old, _ := s.Items.Get(c.Key)
	if !c.condition.Holds(old) {
		return failed(problem.ErrPrecondition, old)
	}
	id := uint64(0)
	if c.life.Kind != forEver {
		var err error
		if id, err = s.bind(c.Key, c.life, old); err != nil {
			return failed(err, nil)
		}
	}
	return s.set(c.Key, c.Value, id)
}

// set writes a key that the table of leases has bound to id already; else id is 0, and
// the key is freed.
func (s *State) set(key string, value []byte, id uint64) Result {
	s.Revision++
	// The command's bytes are a part of its entry's: keeping them would keep the whole
	// batch in memory.
	created := s.place(key, string(value), id)
	return Result{Revision: s.Revision, Created: created}
}

// place is set at the revision that the store has already. created: the key was not there.
func (s *State) place(key, value string, id uint64) (created bool) {
	it := &Item{
		Value:          value,
		CreateRevision: s.Revision,
		ModRevision:    s.Revision,
		Version:        1,
		Lease:          id,
	}
	old, exists := s.Items.Set(key, it) // nobody sees it before the lock is released
	if exists {
		it.CreateRevision, it.Version = old.CreateRevision, old.Version+1
		s.Bytes -= uint64(len(old.Value))
		s.Sum -= itemHash(key, old)
		if old.Lease != 0 && id == 0 {
			s.Leases.Unbind(old.Lease, key)
		}
	} else {
		s.Bytes += uint64(len(key))
	}
	s.Bytes += uint64(len(it.Value))
	s.Sum += itemHash(key, it)
	s.note(changelog.Put, key, it)
	return !exists
}

func (s *State) delete(c Command) Result {
	old, exists := s.Items.Get(c.Key)
	if !c.condition.Holds(old) {
		return failed(problem.ErrPrecondition, old)
	}
	if !exists {
		return failed(problem.ErrNotFound, nil)
	}
	s.Revision++
	s.erase(c.Key, old)
	return Result{Deletion: s.Revision}
}

// erase removes a key, whose item is old, at the revision that the store has already.
func (s *State) erase(key string, old *Item) {
	if old.Lease != 0 {
		s.Leases.Unbind(old.Lease, key)
	}
	s.remove(changelog.Delete, key)
}

// remove takes a key that is bound to no lease any more out of the items.
func (s *State) remove(why changelog.Kind, key string) {
	old, _ := s.Items.Delete(key)
	s.Bytes -= uint64(len(key) + len(old.Value))
	s.Sum -= itemHash(key, old)
	s.note(why, key, nil)
}

func failed(err error, it *Item) Result {
	r := Result{Err: err}
	if it != nil {
		r.Revision = it.ModRevision
	}
	return r
}
