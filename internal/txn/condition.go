package txn

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/record"
)

// ConditionKind says what must hold for a write to happen. The values are on disk.
type ConditionKind byte

const (
	Always       ConditionKind = 0 // unconditional
	IfExists     ConditionKind = 1 // If-Match: *
	IfMissing    ConditionKind = 2 // If-None-Match: *
	IfAtRevision ConditionKind = 3 // If-Match: "REV"
)

// Condition is what a write of one key asks of that key. It is decided when the command
// is applied, not before it is proposed, so that it sees exactly the writes that precede
// it in the log.
type Condition struct {
	Kind     ConditionKind
	Revision uint64 // the mod_revision wanted by IfAtRevision
}

// AppendTo appends the encoding of c.
func (c Condition) AppendTo(b []byte) []byte {
	b = append(b, byte(c.Kind))
	if c.Kind == IfAtRevision {
		b = binary.AppendUvarint(b, c.Revision)
	}
	return b
}

// ReadCondition reads what AppendTo has written.
func ReadCondition(r *record.Reader) (c Condition, err error) {
	c.Kind = ConditionKind(r.Byte())
	if c.Kind > IfAtRevision {
		return c, fmt.Errorf("%w: condition %d", record.ErrUnknownCommand, c.Kind)
	}
	if c.Kind == IfAtRevision {
		c.Revision = r.Uvarint()
	}
	return c, nil
}

// Holds decides a condition for a key whose item is it, nil if there is none.
func (c Condition) Holds(it *Item) bool {
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

// Transactions of one operation have encodings of their own, which are shorter.

// AppendAdd appends the encoding of an addition to the number that a key holds.
func AppendAdd(b []byte, c Condition, life Lifetime, key string, delta int64) []byte {
	b = record.AppendString(AppendLife(c.AppendTo(b), life), life.Owner)
	return binary.AppendVarint(record.AppendString(b, key), delta)
}

// ReadAdd reads what AppendAdd has written.
func ReadAdd(r *record.Reader) (c Condition, t *Txn, err error) {
	if c, err = ReadCondition(r); err != nil {
		return c, nil, err
	}
	op := Op{Kind: Add}
	if op.Life, err = ReadLife(r); err != nil {
		return c, nil, err
	}
	op.Life.Owner, op.Key, op.Delta = string(r.Bytes()), string(r.Bytes()), readSigned(r)
	r.End()
	return c, &Txn{Owner: op.Life.Owner, Then: []Op{op}}, nil
}

// AppendAppendHead appends the encoding of an append up to its value, which ends it.
func AppendAppendHead(b []byte, life Lifetime, prefix string) []byte {
	return record.AppendString(record.AppendString(AppendLife(b, life), life.Owner), prefix)
}

// ReadAppend reads an append. The value aliases the bytes.
func ReadAppend(r *record.Reader) (*Txn, error) {
	life, err := ReadLife(r)
	if err != nil {
		return nil, err
	}
	life.Owner = string(r.Bytes())
	op := Op{Kind: Append, Key: string(r.Bytes()), Life: life, Value: r.B}
	return &Txn{Owner: life.Owner, Then: []Op{op}}, nil
}
