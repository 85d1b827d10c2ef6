// Package txn answers: what would a transaction change, and what would it see? It has
// the items that a store holds, the conditions and operations of a transaction with their
// encoding, and the plan: what becomes of each key, worked out without a change to the
// store, so that a transaction happens whole or not at all. Package state carries plans
// out, and defines which commands are transactions. Like the state it is pure.
package txn

import (
	"fmt"
	"raftkv/internal/problem"
	"unsafe"
)

// Bounds. They are decided in apply, where all replicas must decide alike, so they are
// constants for ever.
const (
	// MaxOps is how many conditions a transaction has at most, and operations in each of
	// its lists. A condition of a client may be several comparisons.
	MaxOps         = 128
	MaxComparisons = 6 * MaxOps
	// MaxItems is how many items the results have at most, together.
	MaxItems = 1000
	// NameLength is how much longer than its prefix the key is that an append gives.
	NameLength = 20 + 1 + 3
)

// Item is one key's value and history. It is immutable: a write makes a new
// one, so that readers and snapshots may keep the old one without a lock.
type Item struct {
	Value          string
	CreateRevision uint64 // the revision at which the key came to be
	ModRevision    uint64 // the revision of its last change, its ETag
	Version        uint64 // how often it was written since it came to be
	Lease          uint64 // with which it goes; 0: it stays
}

// Bytes returns the value as bytes, which nobody may change.
func (it *Item) Bytes() []byte { return unsafe.Slice(unsafe.StringData(it.Value), len(it.Value)) }

// Lifetime says when a key that is written goes away by itself.
type Lifetime struct {
	Kind  LifetimeKind
	Value uint64 // of ForTTL: ms; of WithLease: the lease's ID
	Owner string // who writes; empty without rights
}

// LifetimeKind says what a Lifetime's value is. The values are on disk.
type LifetimeKind byte

const (
	ForEver   LifetimeKind = 0
	ForTTL    LifetimeKind = 1
	WithLease LifetimeKind = 2
)

// Field is what a comparison looks at. The values are on disk.
type Field byte

const (
	Exists    Field = 1 // of a key
	AnyBelow  Field = 2 // whether any key has a prefix
	Mod       Field = 3 // mod_revision; of a missing key 0, as the next three
	Create    Field = 4
	Version   Field = 5
	Lease     Field = 6 // that the key is bound to; a time to live of its own is none
	HasValue  Field = 7 // of a missing key never
	lastField       = HasValue
)

// Comparison is a condition of a transaction: a field is to be equal to something.
type Comparison struct {
	Field  Field
	Key    string // or the prefix
	Number uint64 // to which the field is to be equal; of Exists and AnyBelow 0 or 1
	Value  []byte // of HasValue
}

// OpKind says what an operation does. The values are on disk.
type OpKind byte

const (
	Put    OpKind = 1
	Delete OpKind = 2
	Add    OpKind = 3
	Append OpKind = 4
	Get    OpKind = 5
	List   OpKind = 6
	lastOp        = List
)

// String returns the name of the kind, as clients know it.
func (k OpKind) String() string {
	return [...]string{Put: "put", Delete: "delete", Add: "add", Append: "append", Get: "get", List: "list"}[k]
}

// writes reports whether such an operation writes a key that it names.
func (k OpKind) writes() bool { return k == Put || k == Delete || k == Add }

// Op is an operation.
type Op struct {
	Kind  OpKind
	Key   string // or the prefix, of Append and List
	Value []byte // of Put and Append
	Delta int64  // of Add
	// Life is the key's, of Put and Append, and of Add if that makes the key. Its owner is
	// that of the transaction.
	Life  Lifetime
	Limit uint64 // of List: how many items at most
	After string // of List: only keys behind this one
}

// Txn is a transaction: if all of If holds, Then happens, and otherwise Else.
type Txn struct {
	Owner      string // who asks; empty without rights
	MaxBytes   uint64 // how many bytes of keys and values the results have at most
	If         []Comparison
	Then, Else []Op
}

// OnlyReads reports whether the transaction can change nothing.
func (t *Txn) OnlyReads() bool {
	for _, ops := range [][]Op{t.Then, t.Else} {
		for _, op := range ops {
			if op.Kind.writes() || op.Kind == Append {
				return false
			}
		}
	}
	return true
}

// Growth returns by how many bytes of keys and values the store grows at most, and how
// many times to live come to be. Without any operation that could make it grow, ok is false.
func (t *Txn) Growth() (size, timed int, ok bool) {
	for _, ops := range [][]Op{t.Then, t.Else} {
		sum, n := 0, 0
		for _, op := range ops {
			switch op.Kind {
			case Put:
				sum += len(op.Key) + len(op.Value)
			case Append:
				sum += len(op.Key) + NameLength + len(op.Value)
			case Add:
				sum += len(op.Key) + maxDigits
			default:
				continue
			}
			ok = true
			if op.Life.Kind == ForTTL {
				n++
			}
		}
		size, timed = max(size, sum), max(timed, n)
	}
	return size, timed, ok
}

// Work is about how many keys the transaction looks at or changes at most.
func (t *Txn) Work() uint64 {
	work := uint64(0)
	for _, ops := range [][]Op{t.Then, t.Else} {
		sum := uint64(len(ops))
		for _, op := range ops {
			if op.Kind == List {
				sum += min(op.Limit, MaxItems)
			}
		}
		work = max(work, sum)
	}
	return work + uint64(len(t.If)) + 1
}

// Check returns problem.ErrTooLarge for a transaction with more in it than one may have,
// and problem.ErrBadRequest for one that writes a key twice.
func (t *Txn) Check() error {
	if len(t.If) > MaxComparisons || len(t.Then) > MaxOps || len(t.Else) > MaxOps {
		return fmt.Errorf("%w: a transaction has at most %d conditions, and operations in each list", problem.ErrTooLarge, MaxOps)
	}
	for _, ops := range [][]Op{t.Then, t.Else} {
		written := make(map[string]bool, len(ops))
		for _, op := range ops {
			if !op.Kind.writes() {
				continue
			}
			if written[op.Key] {
				return writtenTwice(op.Key)
			}
			written[op.Key] = true
		}
	}
	return nil
}

func writtenTwice(key string) error {
	return fmt.Errorf("%w: the key %.64q is written twice", problem.ErrBadRequest, key)
}
