package once

import (
	"errors"
	"raftkv/internal/record"
)

// How a table is written into the records of a state file, and what of it is in the hash
// of the state. The head is all of it that the hash takes: records and spans are in it by
// the sums of their hashes. Neither may ever change.

// errNotWhole: what was read is not what was written.
var errNotWhole = errors.New("the outcomes of its requests are not those of which it has the hash")

// head is what a table says of its records.
type head struct{ records, sum, deadlines uint64 }

func (t *Table) head() head { return head{uint64(t.Len()), t.sum, t.deadlines} }

// AppendHead appends what a table is beside its records. There is nothing to write of one
// that never had any.
func (t *Table) AppendHead(b []byte) []byte {
	if t.last == 0 {
		return b
	}
	h := t.head()
	return record.AppendUvarints(b, t.last, h.records, h.sum, h.deadlines)
}

// ReadHead reads what AppendHead wrote. What it says of the records is for Check.
func (t *Table) ReadHead(r *record.Reader) {
	t.last = r.Uvarint()
	t.said = head{r.Uvarint(), r.Uvarint(), r.Uvarint()}
}

// Write passes on each record, class by class in the order in which they came. whole says
// whether they are those whose hashes the table has summed up.
func (t *Table) Write(put func(payload []byte) error) (whole bool, err error) {
	var b []byte
	for i := range t.queues {
		q := &t.queues[i]
		q.names.Scan(func(seq uint64, text string) bool {
			r, ok := t.records.Get(text)
			if !ok {
				return true // Sound tells
			}
			b = record.AppendUvarints(b[:0], uint64(r.Class), seq, q.deadline(seq))
			b = append(b, r.Print[:]...)
			b = record.AppendString(b, r.Outcome)
			err = put(append(b, text...))
			return err == nil
		})
		if err != nil {
			return false, err
		}
	}
	return t.Sound(), nil
}

// deadline returns that of a record; 0: it has none yet.
func (q *queue) deadline(seq uint64) (deadline uint64) {
	q.spans.Ascend(seq, func(_, d uint64) bool {
		deadline = d
		return false
	})
	return deadline
}

// Read takes over a record that Write wrote.
func (t *Table) Read(r *record.Reader) {
	class, seq, deadline := r.Uvarint(), r.Uvarint(), r.Uvarint()
	rec := &Record{Class: Class(min(class, classes+1)), seq: seq}
	for i := range rec.Print {
		rec.Print[i] = r.Byte()
	}
	rec.Outcome = string(r.Bytes())
	text := Key{Owner: string(r.Bytes()), Name: string(r.Bytes())}.text()
	if r.End(); r.Bad || !rec.Class.Known() || seq == 0 || seq > t.last {
		r.Bad = true
		return
	}
	q := &t.queues[rec.Class-1]
	newest, _, _ := q.names.Max()
	end, last, _ := q.spans.Max()
	_, twice := t.records.Get(text)
	// Deadlines grow along a queue, and behind a record without one no other has any.
	if r.Bad = twice || seq <= newest || deadline != 0 && (deadline < last || newest != end); r.Bad {
		return
	}
	t.add(text, rec)
	if deadline == 0 {
		return
	}
	if deadline == last {
		q.spans.Delete(end)
		t.deadlines -= spanHash(rec.Class, end, last)
	}
	t.begin(rec.Class, seq, deadline)
}

// Check returns nil if a table that was read has the records that its head speaks of.
func (t *Table) Check() error {
	if t.head() != t.said {
		return errNotWhole
	}
	t.said = head{}
	return nil
}

// Sound reports whether the records are those of which the table has the sums. It takes
// time in proportion to their number.
func (t *Table) Sound() bool {
	sum, deadlines, queued := uint64(0), uint64(0), 0
	t.records.Scan(func(text string, r *Record) bool {
		sum += hash(text, r)
		if at, _ := t.queues[r.Class-1].names.Get(r.seq); at == text {
			queued++
		}
		return true
	})
	for i := range t.queues {
		t.queues[i].spans.Scan(func(end, deadline uint64) bool {
			deadlines += spanHash(Class(i+1), end, deadline)
			return true
		})
	}
	return sum == t.sum && deadlines == t.deadlines && queued == t.Len()
}
