package state

import (
	"encoding/hex"
	"errors"
	"raftkv/internal/record"
	"raftkv/internal/txn"
	"reflect"
	"testing"
)

// foreverTxn has every comparison and every operation. Its work is 7 comparisons, 1, and the
// longer of two lists of operations: 7 with 20 and 1000 items, or 2 with 3.
func foreverTxn() *txn.Txn {
	return &txn.Txn{
		Owner: "me", MaxBytes: 300,
		If: []txn.Comparison{
			{Field: txn.Exists, Key: "a", Number: 1},
			{Field: txn.AnyBelow, Key: "p/", Number: 0},
			{Field: txn.Mod, Key: "b", Number: 7},
			{Field: txn.Create, Key: "b", Number: 300},
			{Field: txn.Version, Key: "b", Number: 0},
			{Field: txn.Lease, Key: "b", Number: 9},
			{Field: txn.HasValue, Key: "c", Value: []byte("v")},
		},
		Then: []txn.Op{
			{Kind: txn.Put, Key: "a", Value: []byte("1"), Life: Lifetime{Owner: "me"}},
			{Kind: txn.Delete, Key: "b"},
			{Kind: txn.Add, Key: "n", Delta: -3, Life: Lifetime{Kind: ForTTL, Value: 5000, Owner: "me"}},
			{Kind: txn.Append, Key: "q/", Value: []byte("job"), Life: Lifetime{Kind: WithLease, Value: 9, Owner: "me"}},
			{Kind: txn.Get, Key: "a"},
			{Kind: txn.List, Key: "p/", Limit: 20, After: "p/3"},
			{Kind: txn.List, Key: "", Limit: 5000},
		},
		Else: []txn.Op{{Kind: txn.Get, Key: "a"}, {Kind: txn.List, Key: "p/", Limit: 3}},
	}
}

// Guarantee: commands of leases and transactions are written as they were when they first
// came into a log, and count for as much work. Logs that have them are read for ever, and a
// transaction whose work is not what its operations amount to is refused.
func TestCommandsAreForever(t *testing.T) {
	life := Lifetime{Kind: ForTTL, Value: 5000, Owner: "me"}
	for _, tt := range []struct {
		name    string
		encoded []byte
		want    string // in hexadecimal
		work    int
	}{
		{"put with a time to live", append(AppendLeasedPutHead(nil, Condition{Kind: IfAtRevision, Revision: 300}, life, "key"), "value"...), "0703ac02018827026d65036b657976616c7565", 1},
		{"put with a lease", append(AppendLeasedPutHead(nil, Condition{}, Lifetime{Kind: WithLease, Value: 9}, "key"), "value"...), "0700020900036b657976616c7565", 1},
		{"grant", EncodeGrant(5000, "me"), "088827026d65", 1},
		{"keep", EncodeKeep(9, "me"), "0909026d65", 1},
		{"doors", EncodeDoors(2, 300, "\x01\x02"), "1002ac020102", 1},
		{"revoke", EncodeRevoke(9, ""), "0a0900", 4096},
		{"deletion by prefix", EncodeDeletePrefix("p/", 300, "me"), "0bac02026d6502702f", 4096},
		{"addition", EncodeAdd(Condition{Kind: IfMissing}, life, "n", -3), "0c02018827026d65016e05", 1},
		{"append", append(AppendAppendHead(nil, Lifetime{}, "q/"), "job"...), "0d00000002712f6a6f62", 1},
		{"transaction of nothing", EncodeTxn(&txn.Txn{}), "0e010000000000", 1},
		{"transaction of everything", EncodeTxn(foreverTxn()), "0e8b08026d65ac0207010161010202702f0003016207040162ac02050162000601620907016301760701016100000131" +
			"02016203016e018827050402712f0209036a6f620501610602702f1403702f330600882700020501610602702f0300", 1035},
	} {
		if got := hex.EncodeToString(tt.encoded); got != tt.want {
			t.Errorf("%s is written as\n%s, want\n%s", tt.name, got, tt.want)
		}
		if got := Work(tt.encoded); got != tt.work {
			t.Errorf("%s is %d work, want %d", tt.name, got, tt.work)
		}
		written, err := hex.DecodeString(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeCommand(written); err != nil {
			t.Errorf("%s cannot be read: %v", tt.name, err)
		}
	}
	if _, err := DecodeCommand([]byte{14, 2, 0, 0, 0, 0, 0}); !errors.Is(err, record.ErrMalformed) {
		t.Errorf("work that is not what there is to do: %v", err)
	}
	c, err := DecodeCommand(EncodeTxn(foreverTxn()))
	if err != nil || !reflect.DeepEqual(c.txn, foreverTxn()) {
		t.Errorf("a transaction of everything is read as\n%+v, %v", c.txn, err)
	}
}

// Guarantee: how much work a transaction is stays as it was. Batches are cut by it, and a
// replica that reckons otherwise refuses the command.
func TestTxnWorkIsForever(t *testing.T) {
	ops := func(n int) []txn.Op { return make([]txn.Op, n) }
	list := func(limits ...uint64) (ops []txn.Op) {
		for _, n := range limits {
			ops = append(ops, txn.Op{Kind: txn.List, Limit: n})
		}
		return ops
	}
	for _, tt := range []struct {
		name string
		txn  txn.Txn
		want uint64
	}{
		{"nothing", txn.Txn{}, 1},
		{"a comparison", txn.Txn{If: make([]txn.Comparison, 1)}, 2},
		{"an operation", txn.Txn{Then: ops(1)}, 2},
		{"an operation if it fails", txn.Txn{Else: ops(1)}, 2},
		{"one of two lists", txn.Txn{If: make([]txn.Comparison, 3), Then: ops(2), Else: ops(5)}, 9},
		{"the other", txn.Txn{If: make([]txn.Comparison, 3), Then: ops(5), Else: ops(2)}, 9},
		{"items", txn.Txn{Then: list(20)}, 22},
		{"more items than there may be", txn.Txn{Then: list(1001)}, 1002},
		{"items twice", txn.Txn{Then: list(600, 600), Else: list(1000)}, 1203},
		{"fewer operations with more items", txn.Txn{Then: ops(100), Else: list(200)}, 202},
		{"as large as it may be", txn.Txn{If: make([]txn.Comparison, txn.MaxComparisons), Then: ops(txn.MaxOps)}, 897},
	} {
		if got := tt.txn.Work(); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
