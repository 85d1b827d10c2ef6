package state

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/record"
)

// A raft entry of type EntryNormal carries one batch: the commands that one
// node gathered while its previous batch was on its way. The layout is a
// format byte, the batch's identity as four uvarints and, in format 2, a number
// of eight bytes, little-endian, and the commands, each with its length in front:
//
//	1 | node | boot | sequence | low | (length | kind | fields...)*
//	2 | node | boot | sequence | low | life | (length | kind | fields...)*
//
// The first byte versions the whole, the kind versions each command. Both are
// read strictly: what this version does not know stops the node, because
// skipping a command that other nodes apply would let the replicas diverge.

// The first byte of every batch.
const (
	BatchFormat     = 1
	lifeBatchFormat = 2 // from level 3 on
)

// knowsFormat reports whether a program of some level can read a batch.
func knowsFormat(format byte, level uint64) bool {
	return format == BatchFormat || format == lifeBatchFormat && level >= LifeLevel
}

// kind says what a command does. The values are on disk: never reuse one.
type kind byte

const (
	KindPut     kind = 1 // set a key
	KindDelete  kind = 2 // remove a key
	KindPublish kind = 3 // what a node announced before there were levels; only read

	KindAnnounce   kind = 4 // a node announces its client URL and its level
	kindCheckpoint kind = 5 // every node is to report the hash of its state
	kindReport     kind = 6 // a node's report
)

// conditionKind says what must hold for a write to happen. The values are on disk.
type conditionKind byte

const (
	always       conditionKind = 0 // unconditional
	IfExists     conditionKind = 1 // If-Match: *
	IfMissing    conditionKind = 2 // If-None-Match: *
	IfAtRevision conditionKind = 3 // If-Match: "REV"
)

// Condition is decided when the command is applied, not before it is
// proposed, so that it sees exactly the writes that precede it in the log.
type Condition struct {
	Kind     conditionKind
	Revision uint64 // the mod_revision wanted by IfAtRevision
}

// Command is one decoded change. Key and value alias the entry's bytes.
type Command struct {
	Kind      kind
	condition Condition
	Key       string
	Value     []byte

	Member    uint64 // KindPublish, KindAnnounce, kindReport: who
	Instance  uint64 // KindPublish, KindAnnounce: with which data directory
	clientURL string // KindPublish, KindAnnounce: where its clients find it
	level     uint64 // KindAnnounce: the level of commands that it knows

	full       bool   // kindCheckpoint: the hash is to be computed anew
	checkpoint uint64 // kindReport: which one it answers, by its index
	report     Report // kindReport: what it says
}

// BatchID identifies a batch for ever: the node that gathered it, which of
// its lives, and a count within that life. A batch that raft may have lost is
// proposed again under the same identity, and applied at most once.
type BatchID struct {
	Node, Boot, Seq uint64
	// Low: every batch of this life below it is settled, that is, was
	// applied or will never be proposed again. It keeps the replicated
	// window of applied sequences short.
	Low uint64
	// Life is the nonce of the life that gathered it; 0 in format 1.
	Life uint64
}

// AppendBatchHeader starts the encoding of a batch.
func AppendBatchHeader(b []byte, id BatchID) []byte {
	if id.Life == 0 {
		return record.AppendUvarints(append(b, BatchFormat), id.Node, id.Boot, id.Seq, id.Low)
	}
	b = record.AppendUvarints(append(b, lifeBatchFormat), id.Node, id.Boot, id.Seq, id.Low)
	return binary.LittleEndian.AppendUint64(b, id.Life)
}

// BatchNode returns the node that gathered a batch; 0 if data is none.
func BatchNode(data []byte) uint64 {
	r := record.Reader{B: data}
	if !knowsFormat(r.Byte(), ProgramLevel) {
		return 0
	}
	return r.Uvarint()
}

// AppendCommand adds one encoded command to a batch.
func AppendCommand(b, encoded []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(encoded)))
	return append(b, encoded...)
}

// EncodeWrite encodes a put or a delete.
func EncodeWrite(kind kind, c Condition, key string, value []byte) []byte {
	b := make([]byte, 0, WriteOverhead+len(key)+len(value))
	return append(AppendWriteHead(b, kind, c, key), value...)
}

// WriteOverhead is how much longer than key and value a write is at most.
const WriteOverhead = 2 + 2*binary.MaxVarintLen64

// AppendWriteHead appends a write up to its value, which ends it.
func AppendWriteHead(b []byte, kind kind, c Condition, key string) []byte {
	b = append(b, byte(kind), byte(c.Kind))
	if c.Kind == IfAtRevision {
		b = binary.AppendUvarint(b, c.Revision)
	}
	b = binary.AppendUvarint(b, uint64(len(key)))
	return append(b, key...)
}

// EncodeAnnounce encodes a node's announcement of its client URL, the instance
// of its data directory, and the level of commands that its program knows.
func EncodeAnnounce(member, instance, level uint64, clientURL string) []byte {
	b := record.AppendUvarints([]byte{byte(KindAnnounce)}, member, instance, level)
	return append(b, clientURL...)
}

func EncodeCheckpoint(full bool) []byte {
	return []byte{byte(kindCheckpoint), record.BoolByte(full)}
}

// EncodeReport encodes a node's answer to the checkpoint at an index.
func EncodeReport(member, checkpoint uint64, r Report) []byte {
	b := record.AppendUvarints([]byte{byte(kindReport)}, member, checkpoint)
	b = append(b, record.BoolByte(r.Void))
	return binary.LittleEndian.AppendUint64(b, r.Hash)
}

// DecodeBatch splits an entry into its identity and its commands.
func DecodeBatch(data []byte) (BatchID, []Command, error) {
	r := record.Reader{B: data}
	format := r.Byte()
	if !r.Bad && !knowsFormat(format, ProgramLevel) {
		return BatchID{}, nil, fmt.Errorf("%w: batch format %d", record.ErrUnknownCommand, format)
	}
	id := BatchID{Node: r.Uvarint(), Boot: r.Uvarint(), Seq: r.Uvarint(), Low: r.Uvarint()}
	if format == lifeBatchFormat {
		id.Life = r.Uint64()
		r.Bad = r.Bad || id.Life == 0
	}
	cmds := make([]Command, 0, countCommands(r))
	for !r.Bad && len(r.B) > 0 {
		c, err := DecodeCommand(r.Bytes())
		if err != nil {
			return BatchID{}, nil, err
		}
		cmds = append(cmds, c)
	}
	if r.Bad {
		return BatchID{}, nil, record.ErrMalformed
	}
	return id, cmds, nil
}

// countCommands counts the commands in front of r.
func countCommands(r record.Reader) (n int) {
	for len(r.B) > 0 && !r.Bad {
		r.Bytes()
		n++
	}
	return n
}

func DecodeCommand(b []byte) (Command, error) {
	r := record.Reader{B: b}
	c := Command{Kind: kind(r.Byte())}
	if r.Bad {
		return c, record.ErrMalformed
	}
	if levelOf(c.Kind) > ProgramLevel {
		return c, fmt.Errorf("%w: kind %d", record.ErrUnknownCommand, c.Kind)
	}
	switch c.Kind {
	case KindPut, KindDelete:
		c.condition.Kind = conditionKind(r.Byte())
		if c.condition.Kind > IfAtRevision {
			return c, fmt.Errorf("%w: condition %d", record.ErrUnknownCommand, c.condition.Kind)
		}
		if c.condition.Kind == IfAtRevision {
			c.condition.Revision = r.Uvarint()
		}
		c.Key, c.Value = string(r.Bytes()), r.B
		if c.Kind == KindDelete && len(c.Value) > 0 {
			return c, record.ErrMalformed
		}
	case KindPublish:
		c.Member, c.Instance, c.clientURL = r.Uvarint(), r.Uvarint(), string(r.B)
	case KindAnnounce:
		c.Member, c.Instance, c.level = r.Uvarint(), r.Uvarint(), r.Uvarint()
		c.clientURL = string(r.B)
	case kindCheckpoint:
		c.full = r.Bool()
		r.End()
	case kindReport:
		c.Member, c.checkpoint = r.Uvarint(), r.Uvarint()
		c.report = Report{Void: r.Bool(), Hash: r.Uint64()}
		r.End()
	default:
		return c, fmt.Errorf("%w: kind %d", record.ErrUnknownCommand, c.Kind)
	}
	if r.Bad {
		return c, record.ErrMalformed
	}
	return c, nil
}
