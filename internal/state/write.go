package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"raftkv/internal/problem"
	"raftkv/internal/record"
)

// ConditionKind says what must hold for a write to happen. The values are on disk.
type ConditionKind byte

const (
	always       ConditionKind = 0 // unconditional
	IfExists     ConditionKind = 1 // If-Match: *
	IfMissing    ConditionKind = 2 // If-None-Match: *
	IfAtRevision ConditionKind = 3 // If-Match: "REV"
)

// Condition is decided when the command is applied, not before it is
// proposed, so that it sees exactly the writes that precede it in the log.
type Condition struct {
	Kind     ConditionKind
	Revision uint64 // the mod_revision wanted by IfAtRevision
}

// EncodeWrite encodes a put or a delete.
func EncodeWrite(kind Kind, c Condition, key string, value []byte) []byte {
	b := make([]byte, 0, WriteOverhead+len(key)+len(value))
	return append(AppendWriteHead(b, kind, c, key), value...)
}

// WriteOverhead is how much longer than key and value a write is at most.
const WriteOverhead = 2 + 2*binary.MaxVarintLen64

// AppendWriteHead appends a write up to its value, which ends it.
func AppendWriteHead(b []byte, kind Kind, c Condition, key string) []byte {
	b = append(b, byte(kind), byte(c.Kind))
	if c.Kind == IfAtRevision {
		b = binary.AppendUvarint(b, c.Revision)
	}
	b = binary.AppendUvarint(b, uint64(len(key)))
	return append(b, key...)
}

// decodeWrite reads the fields of a put or a delete.
func decodeWrite(r *record.Reader, c *Command) error {
	c.condition.Kind = ConditionKind(r.Byte())
	if c.condition.Kind > IfAtRevision {
		return fmt.Errorf("%w: condition %d", record.ErrUnknownCommand, c.condition.Kind)
	}
	if c.condition.Kind == IfAtRevision {
		c.condition.Revision = r.Uvarint()
	}
	c.Key, c.Value = string(r.Bytes()), r.B
	if c.Kind == KindDelete && len(c.Value) > 0 {
		return record.ErrMalformed
	}
	return nil
}

func (s *State) put(c Command) Result {
	if c.condition.Kind != always {
		if old, _ := s.Items.Get(c.Key); !c.condition.holds(old) {
			return failed(problem.ErrPrecondition, old)
		}
	}
	s.Revision++
	it := &Item{
		// The command's bytes are a part of its entry's: keeping them
		// would keep the whole batch in memory.
		Value:          bytes.Clone(c.Value),
		CreateRevision: s.Revision,
		ModRevision:    s.Revision,
		Version:        1,
	}
	old, exists := s.Items.Set(c.Key, it) // nobody sees it before the lock is released
	if exists {
		it.CreateRevision, it.Version = old.CreateRevision, old.Version+1
		s.Bytes -= uint64(len(old.Value))
		s.Sum -= itemHash(c.Key, old)
	} else {
		s.Bytes += uint64(len(c.Key))
	}
	s.Bytes += uint64(len(it.Value))
	s.Sum += itemHash(c.Key, it)
	return Result{Revision: s.Revision, Created: !exists}
}

func (s *State) delete(c Command) Result {
	old, exists := s.Items.Get(c.Key)
	if !c.condition.holds(old) {
		return failed(problem.ErrPrecondition, old)
	}
	if !exists {
		return failed(problem.ErrNotFound, nil)
	}
	s.Revision++
	s.Bytes -= uint64(len(c.Key) + len(old.Value))
	s.Sum -= itemHash(c.Key, old)
	s.Items.Delete(c.Key)
	return Result{Deletion: s.Revision}
}

// holds decides a condition for a key whose item is it, nil if there is none.
func (c Condition) holds(it *Item) bool {
	switch c.Kind {
	case IfExists:
		return it != nil
	case IfMissing:
		return it == nil
	case IfAtRevision:
		return it != nil && it.ModRevision == c.Revision
	}
	return true
}

func failed(err error, it *Item) Result {
	r := Result{Err: err}
	if it != nil {
		r.Revision = it.ModRevision
	}
	return r
}
