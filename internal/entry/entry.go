// Package entry answers: what does an entry of the log carry? It is a batch of commands,
// and then says whose, or a tick of the replicated clock. What the commands mean is the
// business of package state, which of the batches were applied that of package window, and
// what a tick does that of package lease. The layouts are on disk, for ever.
package entry

import (
	"encoding/binary"
	"fmt"
	"raftkv/internal/record"
	"raftkv/internal/window"
)

// A raft entry of type EntryNormal carries one batch: the commands that one
// node gathered while its previous batch was on its way, or is a tick. The layout is a
// format byte, the batch's identity as four uvarints and, in format 2, a number
// of eight bytes, little-endian, and the commands, each with its length in front:
//
//	1 | node | boot | sequence | low | (length | kind | fields...)*
//	2 | node | boot | sequence | low | life | (length | kind | fields...)*
//
// The first byte versions the whole, the kind versions each command. Both are
// read strictly: what this version does not know stops the node, because
// skipping a command that other nodes apply would let the replicas diverge.

// The first byte of every entry that is not empty.
const (
	BatchFormat     = 1
	lifeBatchFormat = 2 // from state.LifeLevel on
	tickFormat      = 3 // from state.LeaseLevel on
)

// isBatch reports whether this program can read a batch of a format.
func isBatch(format byte) bool { return format == BatchFormat || format == lifeBatchFormat }

// AppendHeader starts the encoding of a batch.
func AppendHeader(b []byte, id window.Batch) []byte {
	if id.Life == 0 {
		return record.AppendUvarints(append(b, BatchFormat), id.Node, id.Boot, id.Seq, id.Low)
	}
	b = record.AppendUvarints(append(b, lifeBatchFormat), id.Node, id.Boot, id.Seq, id.Low)
	return binary.LittleEndian.AppendUint64(b, id.Life)
}

// AppendCommand adds one encoded command to a batch.
func AppendCommand(b, encoded []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(encoded)))
	return append(b, encoded...)
}

// NodeOf returns the node that gathered a batch; 0 if data is none.
func NodeOf(data []byte) uint64 {
	r := record.Reader{B: data}
	if !isBatch(r.Byte()) {
		return 0
	}
	return r.Uvarint()
}

// Open reads the identity of a batch. The reader that it returns has the commands, n of
// them unless one is cut short, each with its length in front. The error is
// record.ErrUnknownCommand for a format that this program does not know, and
// record.ErrMalformed for what is no batch.
func Open(data []byte) (id window.Batch, commands record.Reader, n int, err error) {
	r := record.Reader{B: data}
	format := r.Byte()
	if !r.Bad && format == tickFormat {
		if _, _, err := DecodeTick(data); err != nil {
			return id, r, 0, err
		}
		return id, r, 0, record.ErrMalformed // no batch
	}
	if !r.Bad && !isBatch(format) {
		return id, r, 0, fmt.Errorf("%w: batch format %d", record.ErrUnknownCommand, format)
	}
	id = window.Batch{Node: r.Uvarint(), Boot: r.Uvarint(), Seq: r.Uvarint(), Low: r.Uvarint()}
	if format == lifeBatchFormat {
		id.Life = r.Uint64()
		r.Bad = r.Bad || id.Life == 0
	}
	if r.Bad {
		return id, r, 0, record.ErrMalformed
	}
	return id, r, count(r), nil
}

// count counts the commands in front of r.
func count(r record.Reader) (n int) {
	for len(r.B) > 0 && !r.Bad {
		r.Bytes()
		n++
	}
	return n
}

// kindTick follows the first byte of a tick.
const kindTick = 1

// Tick moves the replicated clock on. Nobody waits for it, and it is never offered again:
// what the clock says is true only where it stands.
//
//	3 | kind | term | clock
type Tick struct {
	Term  uint64 // in which it was appended, and alone counts
	Clock uint64 // ms
}

// EncodeTick encodes an entry that moves the replicated clock to now, in ms. It counts
// only in the term in which it was appended.
func EncodeTick(term, now uint64) []byte {
	return record.AppendUvarints([]byte{tickFormat, kindTick}, term, now)
}

// DecodeTick decodes an entry. ok: it is a tick.
func DecodeTick(data []byte) (t Tick, ok bool, err error) {
	r := record.Reader{B: data}
	if r.Byte() != tickFormat || r.Bad {
		return t, false, nil
	}
	kind := r.Byte()
	if !r.Bad && kind != kindTick {
		return t, true, fmt.Errorf("%w: tick of kind %d", record.ErrUnknownCommand, kind)
	}
	t = Tick{r.Uvarint(), r.Uvarint()}
	if r.End(); r.Bad {
		err = record.ErrMalformed
	}
	return t, true, err
}
