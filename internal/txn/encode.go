package txn

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/record"
)

// The encoding of a transaction within a command. It is read strictly: what this program
// does not know stops the node.
//
//	work | owner | maximum of bytes | comparisons | then | else
//
// The work stands first, so that who makes batches of commands need not read the rest.

// AppendTo appends the encoding of t.
func (t *Txn) AppendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, t.Work())
	b = record.AppendString(b, t.Owner)
	b = record.AppendUvarints(b, t.MaxBytes, uint64(len(t.If)))
	for _, c := range t.If {
		b = record.AppendString(append(b, byte(c.Field)), c.Key)
		if c.Field == HasValue {
			b = appendBytes(b, c.Value)
		} else {
			b = binary.AppendUvarint(b, c.Number)
		}
	}
	return appendOps(appendOps(b, t.Then), t.Else)
}

func appendBytes(b, value []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(value))), value...)
}

func appendOps(b []byte, ops []Op) []byte {
	b = binary.AppendUvarint(b, uint64(len(ops)))
	for _, op := range ops {
		b = record.AppendString(append(b, byte(op.Kind)), op.Key)
		switch op.Kind {
		case Put, Append:
			b = appendBytes(AppendLife(b, op.Life), op.Value)
		case Add:
			b = binary.AppendVarint(AppendLife(b, op.Life), op.Delta)
		case List:
			b = record.AppendString(binary.AppendUvarint(b, op.Limit), op.After)
		}
	}
	return b
}

// AppendLife appends the kind of a lifetime and its value. Its owner stands elsewhere.
func AppendLife(b []byte, l Lifetime) []byte {
	return binary.AppendUvarint(append(b, byte(l.Kind)), l.Value)
}

// ReadLife reads what AppendLife has written.
func ReadLife(r *record.Reader) (l Lifetime, err error) {
	l.Kind = LifetimeKind(r.Byte())
	if l.Kind > WithLease {
		return l, fmt.Errorf("%w: lifetime %d", record.ErrUnknownCommand, l.Kind)
	}
	l.Value = r.Uvarint()
	return l, nil
}

// Read reads what AppendTo has written. Values alias the bytes.
func Read(r *record.Reader) (*Txn, error) {
	t := &Txn{}
	work := r.Uvarint()
	t.Owner, t.MaxBytes = string(r.Bytes()), r.Uvarint()
	for n := r.Uvarint(); n > 0 && !r.Bad; n-- {
		c, err := readComparison(r)
		if err != nil {
			return nil, err
		}
		t.If = append(t.If, c)
	}
	var err error
	if t.Then, err = readOps(r, t.Owner); err != nil {
		return nil, err
	}
	if t.Else, err = readOps(r, t.Owner); err != nil {
		return nil, err
	}
	r.End()
	r.Bad = r.Bad || work != t.Work()
	return t, nil
}

func readComparison(r *record.Reader) (c Comparison, err error) {
	c.Field = Field(r.Byte())
	if !r.Bad && (c.Field < Exists || c.Field > lastField) {
		return c, fmt.Errorf("%w: comparison %d", record.ErrUnknownCommand, c.Field)
	}
	c.Key = string(r.Bytes())
	if c.Field == HasValue {
		c.Value = r.Bytes()
		return c, nil
	}
	c.Number = r.Uvarint()
	r.Bad = r.Bad || c.Field <= AnyBelow && c.Number > 1
	return c, nil
}

func readOps(r *record.Reader, owner string) (ops []Op, err error) {
	for n := r.Uvarint(); n > 0 && !r.Bad; n-- {
		op, err := readOp(r, owner)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	return ops, nil
}

func readOp(r *record.Reader, owner string) (op Op, err error) {
	op.Kind = OpKind(r.Byte())
	if !r.Bad && (op.Kind < Put || op.Kind > lastOp) {
		return op, fmt.Errorf("%w: operation %d", record.ErrUnknownCommand, op.Kind)
	}
	op.Key = string(r.Bytes())
	switch op.Kind {
	case Put, Append, Add:
		if op.Life, err = ReadLife(r); err != nil {
			return op, err
		}
		op.Life.Owner = owner
		if op.Kind == Add {
			op.Delta = readSigned(r)
		} else {
			op.Value = r.Bytes()
		}
	case List:
		op.Limit, op.After = r.Uvarint(), string(r.Bytes())
	}
	return op, nil
}

// readSigned reads a number as binary.AppendVarint writes it. It returns 0 if r is bad.
func readSigned(r *record.Reader) int64 {
	u := r.Uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// AppendTo appends the encoding of what came of a transaction, without what it has read
// and what the transaction says itself.
//
//	succeeded | revision | number...
func (o *Outcome) AppendTo(b []byte) []byte {
	b = binary.AppendUvarint(append(b, record.BoolByte(o.Succeeded)), o.Revision)
	for _, r := range o.Results {
		switch r.Kind {
		case Delete:
			b = binary.AppendVarint(b, int64(r.Deleted))
		case Add, Append:
			b = binary.AppendVarint(b, r.Number)
		}
	}
	return b
}

// ReadOutcome reads what AppendTo has written of an outcome of t.
func ReadOutcome(r *record.Reader, t *Txn) *Outcome {
	o := &Outcome{Succeeded: r.Bool(), Revision: r.Uvarint()}
	for _, op := range t.ops(o.Succeeded) {
		res := Result{Kind: op.Kind}
		switch op.Kind {
		case Put:
			res.Key = op.Key
		case Delete:
			res.Key, res.Deleted = op.Key, int(readSigned(r))
		case Add:
			res.Key, res.Number = op.Key, readSigned(r)
		case Append:
			n := readSigned(r)
			res.Key, res.Number = nameOf(op.Key, o.Revision, n), n
		case Get, List:
			res.Key = op.Key
		}
		o.Results = append(o.Results, res)
	}
	return o
}
