package state

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"raftkv/internal/lease"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/record"
	"raftkv/internal/txn"
)

// A command under an Idempotency-Key holds another one, which is applied at most once:
// what came of it is recorded with the key, and a repeat gets that.
//
//	15 | class | owner | name | print | command

// onceFields are those of a command under an Idempotency-Key.
type onceFields struct {
	key   once.Key
	class once.Class
	print once.Print
	inner Command
}

// AppendOnceHead appends what stands before a command to make it one under an
// Idempotency-Key. Once the command is complete, SealOnce must be called. It is for what
// comes in pieces; EncodeOnce does both.
func AppendOnceHead(b []byte, key once.Key, class once.Class) []byte {
	b = append(b, byte(kindOnce), byte(class))
	b = record.AppendString(record.AppendString(b, key.Owner), key.Name)
	return append(b, make([]byte, len(once.Print{}))...)
}

// SealOnce writes the print of a request into its command, of which the inner one begins
// at an index. like is that whose repeats are the same request.
func SealOnce(cmd []byte, inner int, like []byte) {
	sum := sha256.Sum256(like)
	copy(cmd[inner-len(once.Print{}):inner], sum[:])
}

// EncodeOnce makes a command one under an Idempotency-Key. like is as SealOnce has it.
func EncodeOnce(key once.Key, class once.Class, cmd, like []byte) []byte {
	head := AppendOnceHead(make([]byte, 0, OnceOverhead+len(key.Owner)+len(key.Name)+len(cmd)), key, class)
	b := append(head, cmd...)
	SealOnce(b, len(head), like)
	return b
}

// OnceOverhead is how much longer than owner and name the head is at most.
const OnceOverhead = 2 + 2*binary.MaxVarintLen64 + len(once.Print{})

func decodeOnce(r *record.Reader, c *Command) error {
	f := &onceFields{class: once.Class(r.Byte())}
	if !r.Bad && !f.class.Known() {
		return fmt.Errorf("%w: Idempotency-Key of class %d", record.ErrUnknownCommand, f.class)
	}
	f.key = once.Key{Owner: string(r.Bytes()), Name: string(r.Bytes())}
	for i := range f.print {
		f.print[i] = r.Byte()
	}
	c.once = f
	if r.Bad || len(r.B) == 0 {
		r.Bad = true
		return nil
	}
	if row := rowOf(Kind(r.B[0])); row == nil || !row.repeatable {
		return fmt.Errorf("%w: kind %d under an Idempotency-Key", record.ErrUnknownCommand, r.B[0])
	}
	return f.inner.decode(r)
}

// workOnce is the work of the inner command.
func workOnce(encoded []byte) int {
	r := record.Reader{B: encoded[2:]}
	r.Bytes()
	r.Bytes()
	if r.Bad || len(r.B) <= len(once.Print{}) {
		return 1
	}
	return Work(r.B[len(once.Print{}):])
}

// once applies a command under an Idempotency-Key, or says what came of it before.
func (s *State) once(c Command) Result {
	f := c.once
	if r := s.Once.Get(f.key); r != nil {
		if r.Print != f.print {
			return Result{Err: problem.ErrKeyReused}
		}
		return s.again(r.Outcome, &f.inner)
	}
	res := s.Apply(f.inner)
	if outcome, ok := encodeOutcome(res); ok {
		s.Once.Add(f.key, f.print, f.class, outcome)
	}
	return res
}

// again returns what came of a command before. What it read it reads anew.
func (s *State) again(outcome string, c *Command) Result {
	res, ok := decodeOutcome(outcome, c)
	if !ok {
		// It cannot happen: who wrote it knew no more kinds of outcomes. Memory may be bad.
		return Result{Err: fmt.Errorf("%w: what is recorded of the request cannot be read", problem.ErrInternal)}
	}
	res.Replayed = true
	if res.Txn != nil {
		c.txn.ReadAgain(s, res.Txn)
	}
	return res
}

// outcomeErrors are the errors that are recorded, by their places on disk, from 1 on.
// Others change nothing either, but the same request may succeed later.
var outcomeErrors = [...]error{
	1: problem.ErrNotFound,
	2: problem.ErrPrecondition,
	3: problem.ErrNoSuchLease,
	4: problem.ErrLeaseFull,
	5: problem.ErrNotANumber,
	6: problem.ErrOutOfRange,
}

// The flags of an outcome.
const (
	flagCreated = 1 << iota
	flagMore
	flagTxn
	allFlags = flagCreated | flagMore | flagTxn
)

// encodeOutcome encodes what came of a command.
//
//	error | revision | deletion | deleted | lease | ttl | flags | transaction
func encodeOutcome(res Result) (outcome string, ok bool) {
	code := 0
	for i, err := range outcomeErrors {
		if err != nil && errors.Is(res.Err, err) {
			code = i
		}
	}
	if res.Err != nil && code == 0 {
		return "", false
	}
	flags := uint64(0)
	if res.Created {
		flags |= flagCreated
	}
	if res.More {
		flags |= flagMore
	}
	if res.Txn != nil {
		flags |= flagTxn
	}
	b := record.AppendUvarints(make([]byte, 0, 24), uint64(code), res.Revision, res.Deletion, uint64(res.Deleted), res.Lease, res.TTL, flags)
	if res.Txn != nil {
		b = res.Txn.AppendTo(b)
	}
	return string(b), true
}

// decodeOutcome decodes what came of a command. False: this program has not written it.
func decodeOutcome(outcome string, c *Command) (res Result, ok bool) {
	r := record.Reader{B: []byte(outcome)}
	code := r.Uvarint()
	res = Result{Revision: r.Uvarint(), Deletion: r.Uvarint(), Deleted: int(r.Uvarint()), Lease: r.Uvarint(), TTL: r.Uvarint()}
	flags := r.Uvarint()
	res.Created, res.More = flags&flagCreated != 0, flags&flagMore != 0
	if code >= uint64(len(outcomeErrors)) || flags > allFlags || flags&flagTxn != 0 && c.txn == nil {
		return res, false
	}
	res.Err = outcomeErrors[code]
	if flags&flagTxn != 0 {
		res.Txn = txn.ReadOutcome(&r, c.txn)
	}
	r.End()
	return res, !r.Bad
}

// oncePart is what came of requests under an Idempotency-Key.
var oncePart = tablePart(onceHeadRecord, onceRecord, func(s *State) table { return &s.Once },
	func(from, to *State) { to.Once = from.Once.Copy() })

// Agenda is what the leader's ticks are for: for leases, and for the records of requests.
func (s *State) Agenda() lease.Agenda {
	a := s.Leases.Agenda()
	fresh, next := s.Once.Agenda()
	a.Fresh = a.Fresh || fresh
	if next > 0 && (a.Next == 0 || next < a.Next) {
		a.Next = next
	}
	return a
}
