package main

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
	batchFormat     = 1
	lifeBatchFormat = 2 // from level 3 on
)

// knowsFormat reports whether a program of some level can read a batch.
func knowsFormat(format byte, level uint64) bool {
	return format == batchFormat || format == lifeBatchFormat && level >= lifeLevel
}

// commandKind says what a command does. The values are on disk: never reuse one.
type commandKind byte

const (
	kindPut     commandKind = 1 // set a key
	kindDelete  commandKind = 2 // remove a key
	kindPublish commandKind = 3 // what a node announced before there were levels; only read

	kindAnnounce   commandKind = 4 // a node announces its client URL and its level
	kindCheckpoint commandKind = 5 // every node is to report the hash of its state
	kindReport     commandKind = 6 // a node's report
)

// conditionKind says what must hold for a write to happen. The values are on disk.
type conditionKind byte

const (
	always       conditionKind = 0 // unconditional
	ifExists     conditionKind = 1 // If-Match: *
	ifMissing    conditionKind = 2 // If-None-Match: *
	ifAtRevision conditionKind = 3 // If-Match: "REV"
)

// condition is decided when the command is applied, not before it is
// proposed, so that it sees exactly the writes that precede it in the log.
type condition struct {
	kind     conditionKind
	revision uint64 // the mod_revision wanted by ifAtRevision
}

// command is one decoded change. Key and value alias the entry's bytes.
type command struct {
	kind      commandKind
	condition condition
	key       string
	value     []byte

	member    uint64 // kindPublish, kindAnnounce, kindReport: who
	instance  uint64 // kindPublish, kindAnnounce: with which data directory
	clientURL string // kindPublish, kindAnnounce: where its clients find it
	level     uint64 // kindAnnounce: the level of commands that it knows

	full       bool   // kindCheckpoint: the hash is to be computed anew
	checkpoint uint64 // kindReport: which one it answers, by its index
	report     report // kindReport: what it says
}

// batchID identifies a batch for ever: the node that gathered it, which of
// its lives, and a count within that life. A batch that raft may have lost is
// proposed again under the same identity, and applied at most once.
type batchID struct {
	node, boot, seq uint64
	// low: every batch of this life below it is settled, that is, was
	// applied or will never be proposed again. It keeps the replicated
	// window of applied sequences short.
	low uint64
	// life is the nonce of the life that gathered it; 0 in format 1.
	life uint64
}

// appendBatchHeader starts the encoding of a batch.
func appendBatchHeader(b []byte, id batchID) []byte {
	if id.life == 0 {
		return record.AppendUvarints(append(b, batchFormat), id.node, id.boot, id.seq, id.low)
	}
	b = record.AppendUvarints(append(b, lifeBatchFormat), id.node, id.boot, id.seq, id.low)
	return binary.LittleEndian.AppendUint64(b, id.life)
}

// batchNode returns the node that gathered a batch; 0 if data is none.
func batchNode(data []byte) uint64 {
	r := record.Reader{B: data}
	if !knowsFormat(r.Byte(), programLevel) {
		return 0
	}
	return r.Uvarint()
}

// appendCommand adds one encoded command to a batch.
func appendCommand(b, encoded []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(encoded)))
	return append(b, encoded...)
}

// encodeWrite encodes a put or a delete.
func encodeWrite(kind commandKind, c condition, key string, value []byte) []byte {
	b := make([]byte, 0, writeOverhead+len(key)+len(value))
	return append(appendWriteHead(b, kind, c, key), value...)
}

// writeOverhead is how much longer than key and value a write is at most.
const writeOverhead = 2 + 2*binary.MaxVarintLen64

// appendWriteHead appends a write up to its value, which ends it.
func appendWriteHead(b []byte, kind commandKind, c condition, key string) []byte {
	b = append(b, byte(kind), byte(c.kind))
	if c.kind == ifAtRevision {
		b = binary.AppendUvarint(b, c.revision)
	}
	b = binary.AppendUvarint(b, uint64(len(key)))
	return append(b, key...)
}

// encodeAnnounce encodes a node's announcement of its client URL, the instance
// of its data directory, and the level of commands that its program knows.
func encodeAnnounce(member, instance, level uint64, clientURL string) []byte {
	b := record.AppendUvarints([]byte{byte(kindAnnounce)}, member, instance, level)
	return append(b, clientURL...)
}

func encodeCheckpoint(full bool) []byte {
	return []byte{byte(kindCheckpoint), record.BoolByte(full)}
}

// encodeReport encodes a node's answer to the checkpoint at an index.
func encodeReport(member, checkpoint uint64, r report) []byte {
	b := record.AppendUvarints([]byte{byte(kindReport)}, member, checkpoint)
	b = append(b, record.BoolByte(r.void))
	return binary.LittleEndian.AppendUint64(b, r.hash)
}

// decodeBatch splits an entry into its identity and its commands.
func decodeBatch(data []byte) (batchID, []command, error) {
	r := record.Reader{B: data}
	format := r.Byte()
	if !r.Bad && !knowsFormat(format, programLevel) {
		return batchID{}, nil, fmt.Errorf("%w: batch format %d", record.ErrUnknownCommand, format)
	}
	id := batchID{node: r.Uvarint(), boot: r.Uvarint(), seq: r.Uvarint(), low: r.Uvarint()}
	if format == lifeBatchFormat {
		id.life = r.Uint64()
		r.Bad = r.Bad || id.life == 0
	}
	cmds := make([]command, 0, countCommands(r))
	for !r.Bad && len(r.B) > 0 {
		c, err := decodeCommand(r.Bytes())
		if err != nil {
			return batchID{}, nil, err
		}
		cmds = append(cmds, c)
	}
	if r.Bad {
		return batchID{}, nil, record.ErrMalformed
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

func decodeCommand(b []byte) (command, error) {
	r := record.Reader{B: b}
	c := command{kind: commandKind(r.Byte())}
	if r.Bad {
		return c, record.ErrMalformed
	}
	if levelOf(c.kind) > programLevel {
		return c, fmt.Errorf("%w: kind %d", record.ErrUnknownCommand, c.kind)
	}
	switch c.kind {
	case kindPut, kindDelete:
		c.condition.kind = conditionKind(r.Byte())
		if c.condition.kind > ifAtRevision {
			return c, fmt.Errorf("%w: condition %d", record.ErrUnknownCommand, c.condition.kind)
		}
		if c.condition.kind == ifAtRevision {
			c.condition.revision = r.Uvarint()
		}
		c.key, c.value = string(r.Bytes()), r.B
		if c.kind == kindDelete && len(c.value) > 0 {
			return c, record.ErrMalformed
		}
	case kindPublish:
		c.member, c.instance, c.clientURL = r.Uvarint(), r.Uvarint(), string(r.B)
	case kindAnnounce:
		c.member, c.instance, c.level = r.Uvarint(), r.Uvarint(), r.Uvarint()
		c.clientURL = string(r.B)
	case kindCheckpoint:
		c.full = r.Bool()
		r.End()
	case kindReport:
		c.member, c.checkpoint = r.Uvarint(), r.Uvarint()
		c.report = report{void: r.Bool(), hash: r.Uint64()}
		r.End()
	default:
		return c, fmt.Errorf("%w: kind %d", record.ErrUnknownCommand, c.kind)
	}
	if r.Bad {
		return c, record.ErrMalformed
	}
	return c, nil
}
