package state

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/entry"
	"raftkv/internal/record"
	"raftkv/internal/txn"
)

// Kind says what a command does. The values are on disk: never reuse one.
type Kind byte

const (
	KindPut     Kind = 1 // set a key
	KindDelete  Kind = 2 // remove a key
	KindPublish Kind = 3 // what a node announced before there were levels; only read

	KindAnnounce   Kind = 4 // a node announces its client URL and its level
	kindCheckpoint Kind = 5 // every node is to report the hash of its state
	kindReport     Kind = 6 // a node's report

	kindLeasedPut Kind = 7  // set a key that goes away by itself
	kindGrant     Kind = 8  // make a lease
	kindKeep      Kind = 9  // give a lease its whole time again
	kindRevoke    Kind = 10 // end a lease, with its keys

	kindDeletePrefix Kind = 11 // delete the keys that have a prefix
	kindAdd          Kind = 12 // add to the number that a key holds
	kindAppend       Kind = 13 // set the next key under a prefix
	kindTxn          Kind = 14 // compare, then write and read, all or nothing
	kindOnce         Kind = 15 // any of those that say repeatable, at most once
	kindDoors        Kind = 16 // a node says how it lets others in
)

// kindRow is what there is to know of one kind of command.
type kindRow struct {
	level  uint64 // from which on it may be in the log
	decode func(r *record.Reader, c *Command) error
	apply  func(s *State, c Command) Result
	// checks: it belongs to the checks themselves. Those alone are no reason for
	// another check, or an idle cluster would never rest.
	checks bool
	// heavy: one of it can change very many keys, so it ends its batch.
	heavy bool
	// counted: its first field says how much work it is.
	counted bool
	// repeatable: it may stand in a command under an Idempotency-Key.
	repeatable bool
}

// kinds has a row for each kind of command. A new one is a file with its encoding
// and what it does, and a row.
var kinds = [...]kindRow{
	KindPut:      {level: firstLevel, decode: decodeWrite, apply: (*State).put, repeatable: true},
	KindDelete:   {level: firstLevel, decode: decodeWrite, apply: (*State).delete, repeatable: true},
	KindPublish:  {level: firstLevel, decode: decodePublish, apply: (*State).announce},
	KindAnnounce: {level: firstLevel, decode: decodeAnnounce, apply: (*State).announce},
	kindCheckpoint: {level: CheckLevel, decode: decodeCheckpoint, checks: true, apply: func(s *State, c Command) Result {
		s.checkpoint(c.full)
		return Result{}
	}},
	kindReport: {level: CheckLevel, decode: decodeReport, checks: true, apply: func(s *State, c Command) Result {
		s.report(c.Member, c.checkpoint, c.report)
		return Result{}
	}},
	kindLeasedPut: {level: LeaseLevel, decode: decodeLeasedPut, apply: (*State).put, repeatable: true},
	kindGrant:     {level: LeaseLevel, decode: decodeLease, apply: (*State).grant, repeatable: true},
	kindKeep:      {level: LeaseLevel, decode: decodeLease, apply: (*State).keep},
	kindRevoke:    {level: LeaseLevel, decode: decodeLease, apply: (*State).revoke, heavy: true},

	kindDeletePrefix: {level: TxnLevel, decode: decodeDeletePrefix, apply: (*State).deletePrefix, heavy: true, repeatable: true},
	kindAdd:          {level: TxnLevel, decode: decodeAdd, apply: (*State).transact, repeatable: true},
	kindAppend:       {level: TxnLevel, decode: decodeAppend, apply: (*State).transact, repeatable: true},
	kindTxn:          {level: TxnLevel, decode: decodeTxn, apply: (*State).transact, counted: true, repeatable: true},

	kindOnce: {level: OnceLevel}, // it refers to the others, so init adds what it does

	kindDoors: {level: DoorsLevel, decode: decodeDoors, apply: (*State).openDoors},
}

func init() { kinds[kindOnce].decode, kinds[kindOnce].apply = decodeOnce, (*State).once }

// MaxBatchWork is how much work the commands of a batch are, unless the last of them is
// more: nothing else should have to wait longer for them in the same step.
const MaxBatchWork = 4096

// Work is about how many keys it takes to apply a command.
func Work(encoded []byte) int {
	row := rowOf(Kind(encoded[0]))
	switch {
	case row == nil:
		return 1
	case Kind(encoded[0]) == kindOnce:
		return workOnce(encoded)
	case row.heavy:
		return MaxBatchWork
	case row.counted:
		work, _ := binary.Uvarint(encoded[1:])
		return int(min(work, MaxBatchWork))
	}
	return 1
}

// rowOf returns the row of a kind, nil if this program does not know it.
func rowOf(kind Kind) *kindRow {
	if int(kind) >= len(kinds) || kinds[kind].decode == nil {
		return nil
	}
	return &kinds[kind]
}

// Command is one decoded change, of those that package entry has. Key and value alias the entry's bytes.
type Command struct {
	Kind      Kind
	condition Condition
	Key       string
	Value     []byte
	life      Lifetime    // kindLeasedPut: of the key; of a lease's commands its owner alone
	lease     uint64      // kindKeep, kindRevoke: which one; kindGrant: its time to live, in ms
	limit     uint64      // kindDeletePrefix: how many keys go at most; 0: all or none
	txn       *txn.Txn    // kindAdd, kindAppend, kindTxn
	once      *onceFields // kindOnce

	Member    uint64 // KindPublish, KindAnnounce, kindReport, kindDoors: who
	Instance  uint64 // KindPublish, KindAnnounce, kindDoors: with which data directory
	doors     string // kindDoors: how it lets others in
	clientURL string // KindPublish, KindAnnounce: where its clients find it
	level     uint64 // KindAnnounce: the level of commands that it knows

	full       bool   // kindCheckpoint: the hash is to be computed anew
	checkpoint uint64 // kindReport: which one it answers, by its index
	report     Report // kindReport: what it says
}

// DecodeBatch splits an entry into its identity and its commands.
func DecodeBatch(data []byte) (BatchID, []Command, error) {
	id, r, n, err := entry.Open(data)
	if err != nil {
		return BatchID{}, nil, err
	}
	cmds := make([]Command, n)
	var fields record.Reader // one for all: a row's function takes its address
	for i := range cmds {
		fields = record.Reader{B: r.Bytes()}
		if r.Bad {
			return BatchID{}, nil, record.ErrMalformed
		}
		if err := cmds[i].decode(&fields); err != nil {
			return BatchID{}, nil, err
		}
	}
	return id, cmds, nil
}

// DecodeCommand reads one command of a batch.
func DecodeCommand(b []byte) (c Command, err error) {
	err = c.decode(&record.Reader{B: b})
	return c, err
}

func (c *Command) decode(r *record.Reader) error {
	c.Kind = Kind(r.Byte())
	if r.Bad {
		return record.ErrMalformed
	}
	row := rowOf(c.Kind)
	if row == nil || row.level > ProgramLevel {
		return fmt.Errorf("%w: kind %d", record.ErrUnknownCommand, c.Kind)
	}
	if err := row.decode(r, c); err != nil {
		return err
	}
	if r.Bad {
		return record.ErrMalformed
	}
	return nil
}
