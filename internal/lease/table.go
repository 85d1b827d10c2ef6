package lease

import (
	"errors"
	"math"
	"raftkv/internal/record"
)

// How a table is written into the records of a state file, and what of it is in the
// hash of the state. Head is all of it that the hash takes: the leases are in it by the
// sum of their hashes, which is kept up to date with every change. Neither may ever
// change.

// Errors of a table that is read back.
var (
	ErrUnbound  = errors.New("a key is bound to a lease that is not there")
	errNotWhole = errors.New("its leases are not those of which it has the hash")
)

// AppendHead appends what a table is beside its leases. There is nothing to write of
// one that never had any.
func (t *Table) AppendHead(b []byte) []byte {
	if t.Last == 0 && t.Clock == 0 {
		return b
	}
	return record.AppendUvarints(b, t.Clock, t.Last, uint64(t.Len()), t.sum)
}

// head is what a table says of its leases.
type head struct{ leases, sum uint64 }

// ReadHead reads what AppendHead wrote. What it says of the leases is for Check.
func (t *Table) ReadHead(r *record.Reader) {
	t.Clock, t.Last = r.Uvarint(), r.Uvarint()
	t.said = head{r.Uvarint(), r.Uvarint()}
}

// Write passes on a record of each lease, in the order of their IDs. whole says whether
// they are those whose hashes the table has summed up.
func (t *Table) Write(put func(payload []byte) error) (whole bool, err error) {
	var b []byte
	t.leases.Scan(func(id uint64, l *Lease) bool {
		b = record.AppendUvarints(b[:0], id, l.TTL, l.Deadline, uint64(record.BoolByte(l.Private)))
		b = record.AppendString(b, l.Owner)
		err = put(b)
		return err == nil
	})
	return t.Sound(), err
}

// Read takes over a lease that Write wrote. It has no keys yet.
func (t *Table) Read(r *record.Reader) {
	id := r.Uvarint()
	l := &Lease{TTL: r.Uvarint(), Deadline: r.Uvarint(), Private: r.Bool(), Owner: string(r.Bytes())}
	r.End()
	if r.Bad = r.Bad || t.Get(id) != nil || id == 0 || id > t.Last; !r.Bad {
		t.set(id, nil, l)
	}
}

// Rebind binds a key as the table had it when it was written. The error is ErrUnbound.
func (t *Table) Rebind(id uint64, key string) error {
	old := t.Get(id)
	if old == nil || old.Private && old.Keys > 0 {
		return ErrUnbound
	}
	again := *old
	again.Keys++
	if again.key = ""; old.Private {
		again.key = key
	} else {
		t.bind(id, key)
	}
	t.set(id, old, &again)
	return nil
}

// Check returns nil if a table that was read has the leases that its head speaks of.
func (t *Table) Check() error {
	if said := (head{uint64(t.Len()), t.sum}); said != t.said {
		return errNotWhole
	}
	t.said = head{}
	return nil
}

// Sound reports whether the leases are those of which the table has the sum. It takes
// time in proportion to their number.
func (t *Table) Sound() bool {
	sum := uint64(0)
	t.leases.Scan(func(id uint64, l *Lease) bool {
		sum += hash(id, l)
		return true
	})
	return sum == t.sum
}

// Jump lets so many IDs go unused, so that none that the table gives from now on was
// given by the cluster from which the table comes. A table that has given none stays as
// it is, see Begin. False: there are no IDs left.
func (t *Table) Jump(n uint64) bool {
	if t.Last > math.MaxUint64-n {
		return false
	}
	if t.Last > 0 {
		t.Last += n
	}
	return true
}

// Begin lets a table that has not given an ID yet begin behind base.
func (t *Table) Begin(base uint64) {
	if t.Last == 0 {
		t.Last = base
	}
}
