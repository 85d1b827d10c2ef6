// Package once answers: was a request carried out before, and what came of it? A Table is
// a part of the replicated state: what came of each request that had an Idempotency-Key,
// for as long as the request asked for, so that a repeat gets the same answer and does
// nothing, on whichever node, after whatever change of leader. Like the state it is pure:
// it reads no clock. Time is that of the replicated clock, see package lease.
//
// The promise is that no record is forgotten before its time has passed since its request
// was sent. As with a lease, a record gets its deadline from the first tick behind it in
// the log. All records of a class that came between two ticks get the same one, so they
// are a span: a tick ends one for each class, however many records are in it. Records are
// dropped in the order in which they came, so nothing is ever moved within a queue.
package once

import (
	"encoding/binary"
	"math"
	"raftkv/internal/record"

	"github.com/cespare/xxhash/v2"
	"github.com/tidwall/btree"
)

// Bounds. What is decided in apply is a constant for ever.
const (
	// MaxName is how long an Idempotency-Key is at most, in bytes.
	MaxName = 128
	// MaxDropped is how many records one tick drops at most.
	MaxDropped = 2000
	// Cost is what a record takes in memory beside its texts, in bytes.
	Cost = 160
)

// Class says for how long a record is kept. The values are on disk.
type Class byte

// The classes. Few of them make a queue for each possible.
const (
	TenSeconds Class = 1
	Minute     Class = 2
	TenMinutes Class = 3
	classes          = 3
)

// keep is for how long the records of a class are kept, in ms.
func (c Class) keep() uint64 {
	return [...]uint64{TenSeconds: 10_000, Minute: 60_000, TenMinutes: 600_000}[c]
}

// Known reports whether this program knows the class.
func (c Class) Known() bool { return c >= TenSeconds && c <= classes }

// Key is what a record is found by. Another owner's key is another key.
type Key struct {
	Owner string // who asks; empty without rights
	Name  string // the request's Idempotency-Key
}

// text is the key as one string, by which records are sorted. No two keys have the same.
func (k Key) text() string {
	b := record.AppendString(make([]byte, 0, len(k.Owner)+len(k.Name)+3), k.Owner)
	return string(record.AppendString(b, k.Name))
}

// Print is the beginning of the SHA-256 of a request's command: it tells another request
// under the same key apart.
type Print [16]byte

// Record is what is kept of a request. It is immutable.
type Record struct {
	Print   Print
	Class   Class
	Outcome string // what came of it, as package state encodes it
	seq     uint64 // its place among all that ever were
}

// Table is all records. The zero value is an empty one.
type Table struct {
	last      uint64                    // the place that was given last
	sum       uint64                    // of the records' hashes
	deadlines uint64                    // likewise, of the spans
	bytes     uint64                    // of keys and outcomes
	owners    btree.Map[string, uint64] // how much memory the records of each take, as Bytes has it
	records   btree.Map[string, *Record]
	queues    [classes]queue // by class, from TenSeconds on
	said      head           // while it is read
}

// queue is the records of one class in the order in which they came.
type queue struct {
	names btree.Map[uint64, string] // the keys' texts, by place
	spans btree.Map[uint64, uint64] // by the place at which one ends: its deadline, in ms
}

// fresh reports whether records wait for their deadline.
func (q *queue) fresh() bool {
	newest, _, _ := q.names.Max()
	end, _, _ := q.spans.Max()
	return newest > end
}

// Copy returns a table that later changes of t do not touch, in time independent of the
// number of records.
func (t *Table) Copy() Table {
	c := *t
	if t.last == 0 {
		return c // nothing is shared
	}
	c.records, c.owners = *t.records.Copy(), *t.owners.Copy()
	for i := range t.queues {
		c.queues[i] = queue{*t.queues[i].names.Copy(), *t.queues[i].spans.Copy()}
	}
	return c
}

// Len is how many records there are.
func (t *Table) Len() int { return t.records.Len() }

// Bytes is about how much memory the records take.
func (t *Table) Bytes() uint64 { return t.bytes + uint64(t.Len())*Cost }

// BytesOf is Bytes of the records of one owner.
func (t *Table) BytesOf(owner string) uint64 {
	bytes, _ := t.owners.Get(owner)
	return bytes
}

// FileBytes is about how much the records take in a state file.
func (t *Table) FileBytes() uint64 { return t.bytes + uint64(t.Len())*fileCost }

// fileCost is about what a record takes there beside its texts, in bytes.
const fileCost = 40

// Get returns the record of a key, nil if there is none.
func (t *Table) Get(k Key) *Record {
	r, _ := t.records.Get(k.text())
	return r
}

// Add takes in what came of a request whose key has no record.
func (t *Table) Add(k Key, print Print, class Class, outcome string) {
	t.last++
	t.add(k.text(), &Record{Print: print, Class: class, Outcome: outcome, seq: t.last})
}

func (t *Table) add(text string, r *Record) {
	t.records.Set(text, r)
	t.queues[r.Class-1].names.Set(r.seq, text)
	t.sum += hash(text, r)
	t.bytes += uint64(len(text) + len(r.Outcome))
	owner := ownerIn(text)
	t.owners.Set(owner, t.BytesOf(owner)+weight(text, r))
}

// weight is how much memory a record takes.
func weight(text string, r *Record) uint64 { return uint64(len(text)+len(r.Outcome)) + Cost }

// ownerIn returns the owner of a key's text.
func ownerIn(text string) string {
	n, at := binary.Uvarint([]byte(text[:min(len(text), binary.MaxVarintLen64)]))
	return text[at:][:n]
}

// Scan shows all records, class by class in the order in which they came, with their
// deadlines, in ms; 0: it has none yet.
func (t *Table) Scan(each func(k Key, r *Record, deadline uint64)) {
	for i := range t.queues {
		q := &t.queues[i]
		q.names.Scan(func(seq uint64, text string) bool {
			rest := record.Reader{B: []byte(text)}
			k := Key{Owner: string(rest.Bytes()), Name: string(rest.Bytes())}
			r, _ := t.records.Get(text)
			each(k, r, q.deadline(seq))
			return true
		})
	}
}

// Tick gives all records that have none their deadline, and drops up to most of those
// whose deadline has passed. The clock is the replicated one, in ms.
func (t *Table) Tick(clock uint64, most int) (dropped int) {
	for i := range t.queues {
		q := &t.queues[i]
		if q.fresh() {
			end, _, _ := q.names.Max()
			deadline := clock + Class(i+1).keep() + 1 // a tick's milliseconds are rounded down
			if deadline < clock {
				deadline = math.MaxUint64
			}
			t.begin(Class(i+1), end, deadline)
		}
	}
	for i := range t.queues {
		q := &t.queues[i]
		for dropped < most {
			end, deadline, ok := q.spans.Min()
			if !ok || deadline > clock {
				break
			}
			seq, text, _ := q.names.PopMin()
			t.drop(text)
			if dropped++; seq == end {
				q.spans.Delete(end)
				t.deadlines -= spanHash(Class(i+1), end, deadline)
			}
		}
	}
	return dropped
}

// begin makes a span of all records of a class that have no deadline.
func (t *Table) begin(c Class, end, deadline uint64) {
	t.queues[c-1].spans.Set(end, deadline)
	t.deadlines += spanHash(c, end, deadline)
}

// drop takes out a record that is in no queue any more.
func (t *Table) drop(text string) {
	r, _ := t.records.Delete(text)
	t.sum -= hash(text, r)
	t.bytes -= uint64(len(text) + len(r.Outcome))
	owner := ownerIn(text)
	if left := t.BytesOf(owner) - weight(text, r); left > 0 {
		t.owners.Set(owner, left)
	} else {
		t.owners.Delete(owner)
	}
}

// Agenda is what a leader's ticks are for: whether records wait for their deadline, and
// when the first are due, in ms; 0: none has a deadline.
func (t *Table) Agenda() (fresh bool, next uint64) {
	for i := range t.queues {
		q := &t.queues[i]
		fresh = fresh || q.fresh()
		if _, deadline, ok := q.spans.Min(); ok && (next == 0 || deadline < next) {
			next = deadline
		}
	}
	return fresh, next
}

// hash is one record's part of the sum.
func hash(text string, r *Record) uint64 {
	var b [41]byte
	binary.LittleEndian.PutUint64(b[0:], xxhash.Sum64String(text))
	binary.LittleEndian.PutUint64(b[8:], xxhash.Sum64String(r.Outcome))
	binary.LittleEndian.PutUint64(b[16:], r.seq)
	copy(b[24:], r.Print[:])
	b[40] = byte(r.Class)
	return xxhash.Sum64(b[:])
}

// spanHash is one span's part of the sum of deadlines.
func spanHash(c Class, end, deadline uint64) uint64 {
	var b [17]byte
	binary.LittleEndian.PutUint64(b[0:], end)
	binary.LittleEndian.PutUint64(b[8:], deadline)
	b[16] = byte(c)
	return xxhash.Sum64(b[:])
}
