package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"raftkv/internal/lease"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/txn"
	"strings"
)

// Commands that compare, compute, or are about keys that they do not name. Additions and
// appends are transactions of one operation.

// MaxDeleted is how many keys one deletion by prefix deletes at most. It is decided in
// apply, so it is a constant for ever.
const MaxDeleted = 10_000

// EncodeDeletePrefix encodes a deletion of the first limit keys with a prefix; with 0, of
// all of them, or of none if they are more than MaxDeleted.
func EncodeDeletePrefix(prefix string, limit uint64, owner string) []byte {
	b := binary.AppendUvarint([]byte{byte(kindDeletePrefix)}, limit)
	return record.AppendString(record.AppendString(b, owner), prefix)
}

func decodeDeletePrefix(r *record.Reader, c *Command) error {
	c.limit, c.life.Owner, c.Key = r.Uvarint(), string(r.Bytes()), string(r.Bytes())
	r.End()
	return nil
}

func (s *State) deletePrefix(c Command) Result {
	limit := min(c.limit, MaxDeleted)
	if c.limit == 0 {
		limit = MaxDeleted
	}
	var keys []string
	more := false
	s.Ascend(c.Key, func(key string, _ *Item) bool {
		if !strings.HasPrefix(key, c.Key) {
			return false
		}
		if more = uint64(len(keys)) == limit; !more {
			keys = append(keys, key)
		}
		return !more
	})
	if more && c.limit == 0 {
		return failed(fmt.Errorf("%w: more than %d keys; limit=%d deletes as many at a time", problem.ErrTooLarge, MaxDeleted, MaxDeleted), nil)
	}
	if len(keys) > 0 {
		s.Revision++
	}
	for _, key := range keys {
		s.erase(key, s.Get(key))
	}
	return Result{Deletion: s.Revision, Deleted: len(keys), More: more}
}

// EncodeAdd encodes an addition to the number that a key holds. life counts if the key is
// missing.
func EncodeAdd(c Condition, life Lifetime, key string, delta int64) []byte {
	return txn.AppendAdd([]byte{byte(kindAdd)}, c, life, key, delta)
}

func decodeAdd(r *record.Reader, c *Command) (err error) {
	c.condition, c.txn, err = txn.ReadAdd(r)
	return err
}

// AppendAppendHead appends the encoding of an append up to its value, which ends it.
func AppendAppendHead(b []byte, life Lifetime, prefix string) []byte {
	return txn.AppendAppendHead(append(b, byte(kindAppend)), life, prefix)
}

func decodeAppend(r *record.Reader, c *Command) (err error) {
	c.txn, err = txn.ReadAppend(r)
	return err
}

// EncodeTxn encodes a transaction.
func EncodeTxn(t *txn.Txn) []byte { return t.AppendTo([]byte{byte(kindTxn)}) }

func decodeTxn(r *record.Reader, c *Command) (err error) {
	c.txn, err = txn.Read(r)
	return err
}

// transact carries out a transaction, whole or not at all.
func (s *State) transact(c Command) Result {
	if c.condition.Kind != always {
		if old := s.Get(c.txn.Then[0].Key); !c.condition.Holds(old) {
			return failed(problem.ErrPrecondition, old)
		}
	}
	o, changes, err := c.txn.Plan(s, s.Revision)
	if err != nil {
		// Whoever adds or appends knows of no list with places.
		if inner := errors.Unwrap(err); c.Kind != kindTxn && inner != nil {
			err = inner
		}
		return failed(err, nil)
	}
	s.Revision = o.Revision
	for _, ch := range changes {
		s.change(ch)
	}
	return Result{Revision: s.Revision, Txn: o}
}

// change carries out a part of a plan.
func (s *State) change(ch txn.Change) {
	old := s.Get(ch.Key)
	if ch.Item == nil {
		s.erase(ch.Key, old)
		return
	}
	id := uint64(0)
	switch {
	case ch.Keeps:
		id = old.Lease
	case ch.Life.Kind != forEver:
		id, _ = s.bind(ch.Key, ch.Life, old) // the plan has made sure that it can be
	}
	s.place(ch.Key, ch.Item.Value, id)
}

// Ascend implements txn.Store.
func (s *State) Ascend(from string, each func(key string, it *Item) bool) { s.Items.Ascend(from, each) }

// LeaseRoom implements txn.Store.
func (s *State) LeaseRoom(id uint64, owner string) (room int, remaining uint64, ok bool) {
	l := s.Leases.Named(id, owner)
	if l == nil {
		return 0, 0, false
	}
	return lease.MaxKeys - int(l.Keys), s.Leases.Remaining(l), true
}
