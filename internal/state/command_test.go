package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"raftkv/internal/entry"
	"raftkv/internal/once"
	"raftkv/internal/record"
	"raftkv/internal/txn"
	"reflect"
	"strings"
	"testing"
)

// encodeCommand is the inverse of DecodeCommand.
func encodeCommand(c Command) []byte {
	switch c.Kind {
	case KindPublish: // no longer written
		return append(record.AppendUvarints([]byte{byte(KindPublish)}, c.Member, c.Instance), c.clientURL...)
	case KindAnnounce:
		return EncodeAnnounce(c.Member, c.Instance, c.level, c.clientURL)
	case kindCheckpoint:
		return EncodeCheckpoint(c.full)
	case kindReport:
		return EncodeReport(c.Member, c.checkpoint, c.report)
	case kindDoors:
		return EncodeDoors(c.Member, c.Instance, c.doors)
	case kindLeasedPut:
		return append(AppendLeasedPutHead(nil, c.condition, c.life, c.Key), c.Value...)
	case kindGrant:
		return EncodeGrant(c.lease, c.life.Owner)
	case kindKeep:
		return EncodeKeep(c.lease, c.life.Owner)
	case kindRevoke:
		return EncodeRevoke(c.lease, c.life.Owner)
	}
	switch c.Kind {
	case kindDeletePrefix:
		return EncodeDeletePrefix(c.Key, c.limit, c.life.Owner)
	case kindAdd:
		op := c.txn.Then[0]
		return EncodeAdd(c.condition, op.Life, op.Key, op.Delta)
	case kindAppend:
		op := c.txn.Then[0]
		return append(AppendAppendHead(nil, op.Life, op.Key), op.Value...)
	case kindTxn:
		return EncodeTxn(c.txn)
	case kindOnce:
		inner := encodeCommand(c.once.inner)
		b := AppendOnceHead(nil, c.once.key, c.once.class)
		copy(b[len(b)-len(c.once.print):], c.once.print[:])
		return append(b, inner...)
	}
	return EncodeWrite(c.Kind, c.condition, c.Key, c.Value)
}

func encodeBatch(id BatchID, cmds ...Command) []byte {
	b := entry.AppendHeader(nil, id)
	for _, c := range cmds {
		b = entry.AppendCommand(b, encodeCommand(c))
	}
	return b
}

// sameCommands compares without telling an empty value from a nil one.
func sameCommands(a, b []Command) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if !bytes.Equal(x.Value, y.Value) {
			return false
		}
		x.Value, y.Value = nil, nil
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

var commandSamples = []Command{
	{Kind: KindPut, Key: "k", Value: []byte("v")},
	{Kind: KindPut, Key: "", Value: nil},
	{Kind: KindPut, Key: "k", Value: []byte{0xff, 0xfe, 0, 0x80}},
	{Kind: KindPut, Key: "a\x00/é", condition: Condition{Kind: IfMissing}, Value: bytes.Repeat([]byte("x"), 300)},
	{Kind: KindPut, Key: "k", condition: Condition{Kind: IfAtRevision, Revision: math.MaxUint64}, Value: []byte{1}},
	{Kind: KindDelete, Key: "k"},
	{Kind: KindDelete, Key: "k", condition: Condition{Kind: IfExists}},
	{Kind: KindDelete, Key: "k", condition: Condition{Kind: IfAtRevision, Revision: 7}},
	{Kind: KindPublish, Member: 3, clientURL: "http://127.0.0.1:9121"},
	{Kind: KindPublish, Member: math.MaxUint64},
	{Kind: KindAnnounce, Member: 3, Instance: 4, level: 5, clientURL: "http://127.0.0.1:9121"},
	{Kind: KindAnnounce, Member: math.MaxUint64, level: math.MaxUint64},
	{Kind: kindCheckpoint},
	{Kind: kindCheckpoint, full: true},
	{Kind: kindReport, Member: 3, checkpoint: 1 << 40, report: Report{Hash: math.MaxUint64}},
	{Kind: kindReport, Member: math.MaxUint64, report: Report{Void: true}},
	{Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: ForTTL, Value: math.MaxUint64}, Value: []byte("v")},
	{Kind: kindLeasedPut, Key: "k", life: Lifetime{Kind: WithLease, Value: 7, Owner: "web"}, condition: Condition{Kind: IfAtRevision, Revision: 300}},
	{Kind: kindLeasedPut, condition: Condition{Kind: IfMissing}},
	{Kind: kindGrant, lease: 1000},
	{Kind: kindGrant, lease: math.MaxUint64, life: Lifetime{Owner: "web"}},
	{Kind: kindKeep, lease: 1, life: Lifetime{Owner: "web"}},
	{Kind: kindRevoke, lease: math.MaxUint64},
	{Kind: kindDeletePrefix, Key: "p/", limit: 10, life: Lifetime{Owner: "web"}},
	{Kind: kindDeletePrefix},
	{Kind: kindAdd, condition: Condition{Kind: IfAtRevision, Revision: 300}, txn: &txn.Txn{Owner: "web", Then: []txn.Op{
		{Kind: txn.Add, Key: "n", Delta: math.MinInt64, Life: Lifetime{Kind: ForTTL, Value: 5, Owner: "web"}}}}},
	{Kind: kindAppend, txn: &txn.Txn{Then: []txn.Op{{Kind: txn.Append, Key: "jobs/", Value: []byte("v"), Life: Lifetime{Kind: WithLease, Value: 300}}}}},
	{Kind: kindTxn, txn: &txn.Txn{}},
	{Kind: kindTxn, txn: &txn.Txn{Owner: "web", MaxBytes: 1 << 21,
		If: []txn.Comparison{{Field: txn.Exists, Key: "k", Number: 1}, {Field: txn.AnyBelow, Key: ""}, {Field: txn.Mod, Key: "k", Number: 1 << 60},
			{Field: txn.Lease, Key: "k", Number: 7}, {Field: txn.HasValue, Key: "k", Value: []byte("v")}},
		Then: []txn.Op{{Kind: txn.Put, Key: "a", Value: []byte("1"), Life: Lifetime{Kind: ForTTL, Value: 30_000, Owner: "web"}}, {Kind: txn.Delete, Key: "b"},
			{Kind: txn.Add, Key: "n", Delta: -1, Life: Lifetime{Owner: "web"}}, {Kind: txn.Append, Key: "q/", Value: []byte("x"), Life: Lifetime{Owner: "web"}}},
		Else: []txn.Op{{Kind: txn.Get, Key: "a"}, {Kind: txn.List, Key: "q/", Limit: 10, After: "q/1"}},
	}},
	{Kind: kindDoors, Member: 2, Instance: math.MaxUint64, doors: "\x01\x01\x02\x01"},
	{Kind: kindDoors, Member: 2, Instance: 1},
	{Kind: kindOnce, once: &onceFields{key: once.Key{Name: "7b"}, class: once.TenMinutes, print: once.Print{1, 2}, inner: Command{Kind: KindPut, Key: "k", Value: []byte("v")}}},
	{Kind: kindOnce, once: &onceFields{key: once.Key{Owner: "web", Name: strings.Repeat("n", once.MaxName)}, class: once.TenSeconds,
		inner: Command{Kind: kindTxn, txn: &txn.Txn{Then: []txn.Op{{Kind: txn.Put, Key: "a", Value: []byte("1")}}}}}},
}

// Guarantee: what a client wrote is what every replica applies, byte for byte,
// under the identity that was given to it.
func TestBatchRoundTrip(t *testing.T) {
	for _, id := range []BatchID{
		{},
		{Node: 1, Boot: 2, Seq: 3, Low: 2},
		{Node: math.MaxUint64, Boot: math.MaxUint64, Seq: math.MaxUint64, Low: math.MaxUint64},
		{Node: 1, Boot: 2, Seq: 3, Low: 2, Life: 1},
		{Node: math.MaxUint64, Boot: math.MaxUint64, Seq: math.MaxUint64, Low: math.MaxUint64, Life: math.MaxUint64},
	} {
		for n := range len(commandSamples) + 1 {
			got, cmds, err := DecodeBatch(encodeBatch(id, commandSamples[:n]...))
			if err != nil || got != id || !sameCommands(cmds, commandSamples[:n]) {
				t.Fatalf("%+v with %d commands came back as %+v, %+v, %v", id, n, got, cmds, err)
			}
		}
	}
}

// Guarantee: an entry of a newer version stops the node instead of being
// skipped, and an entry that no version writes is told apart from it.
func TestDecodeBatchStrict(t *testing.T) {
	head := entry.AppendHeader(nil, BatchID{Node: 1, Boot: 2, Seq: 3, Low: 3})
	with := func(cmds ...[]byte) []byte {
		b := bytes.Clone(head)
		for _, c := range cmds {
			b = entry.AppendCommand(b, c)
		}
		return b
	}
	good := EncodeWrite(KindPut, Condition{}, "k", []byte("v"))
	over := bytes.Repeat([]byte{0xff}, binary.MaxVarintLen64+1)
	for _, tt := range []struct {
		name string
		data []byte
		want error
	}{
		{"nothing", nil, record.ErrMalformed},
		{"format 0", append([]byte{0}, head[1:]...), record.ErrUnknownCommand},
		{"format 4", append([]byte{4}, head[1:]...), record.ErrUnknownCommand},
		{"a tick", entry.EncodeTick(1, 2), record.ErrMalformed}, // no batch
		{"a tick of another kind", []byte{3, 2, 1, 1}, record.ErrUnknownCommand},
		{"a tick and more", append(entry.EncodeTick(1, 2), 0), record.ErrMalformed},
		{"half a tick", entry.EncodeTick(1, 2)[:3], record.ErrMalformed},
		{"a life of 0", append(append([]byte{2}, head[1:]...), make([]byte, 8)...), record.ErrMalformed},
		{"half a life", append(append([]byte{2}, head[1:]...), 1, 2, 3, 4), record.ErrMalformed},
		{"format 4 alone", []byte{4}, record.ErrUnknownCommand},
		{"half an identity", head[:3], record.ErrMalformed},
		{"identity overflows", append([]byte{entry.BatchFormat}, over...), record.ErrMalformed},
		{"command longer than the entry", append(bytes.Clone(head), 200, 1), record.ErrMalformed},
		{"command length of 2^63", append(binary.AppendUvarint(bytes.Clone(head), 1<<63), 1), record.ErrMalformed},
		{"length overflows", append(bytes.Clone(head), over...), record.ErrMalformed},
		{"empty command", with(nil), record.ErrMalformed},
		{"kind alone", with([]byte{byte(KindPut)}), record.ErrMalformed},
		{"no key", with([]byte{byte(KindPut), 0}), record.ErrMalformed},
		{"key longer than the command", with([]byte{byte(KindPut), 0, 9, 'k'}), record.ErrMalformed},
		{"no revision", with([]byte{byte(KindPut), byte(IfAtRevision)}), record.ErrMalformed},
		{"publish of nobody", with([]byte{byte(KindPublish)}), record.ErrMalformed},
		{"kind 0", with([]byte{0, 0, 1, 'k'}), record.ErrUnknownCommand},
		{"announcement of nobody", with([]byte{byte(KindAnnounce)}), record.ErrMalformed},
		{"checkpoint of two minds", with([]byte{byte(kindCheckpoint), 2}), record.ErrMalformed},
		{"checkpoint and more", with([]byte{byte(kindCheckpoint), 1, 1}), record.ErrMalformed},
		{"report cut short", with([]byte{byte(kindReport), 1, 1, 0, 1, 2, 3, 4, 5, 6, 7}), record.ErrMalformed},
		{"report and more", with([]byte{byte(kindReport), 1, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}), record.ErrMalformed},
		{"lease of nothing", with([]byte{byte(kindGrant)}), record.ErrMalformed},
		{"lease and more", with(append(EncodeKeep(1, ""), 1)), record.ErrMalformed},
		{"another lifetime", with([]byte{byte(kindLeasedPut), 0, 3, 1, 0, 1, 'k'}), record.ErrUnknownCommand},
		{"lifetime without a key", with([]byte{byte(kindLeasedPut), 0, 1, 1, 0}), record.ErrMalformed},
		{"deletion and more", with(append(EncodeDeletePrefix("p", 1, ""), 0)), record.ErrMalformed},
		{"addition and more", with(append(EncodeAdd(Condition{}, Lifetime{}, "k", 1), 0)), record.ErrMalformed},
		{"addition of nothing", with([]byte{byte(kindAdd), 0, 0, 0, 0, 1, 'k'}), record.ErrMalformed},
		{"addition with another lifetime", with([]byte{byte(kindAdd), 0, 3, 0, 0, 1, 'k', 2}), record.ErrUnknownCommand},
		{"append to nothing", with([]byte{byte(kindAppend), 0, 0, 0}), record.ErrMalformed},
		{"transaction of other work", with([]byte{byte(kindTxn), 2, 0, 0, 0, 0, 0}), record.ErrMalformed},
		{"transaction and more", with([]byte{byte(kindTxn), 1, 0, 0, 0, 0, 0, 0}), record.ErrMalformed},
		{"transaction cut short", with([]byte{byte(kindTxn), 1, 0, 0, 0, 0}), record.ErrMalformed},
		{"another comparison", with([]byte{byte(kindTxn), 2, 0, 0, 1, 8, 1, 'k', 1, 0, 0}), record.ErrUnknownCommand},
		{"comparison of two minds", with([]byte{byte(kindTxn), 2, 0, 0, 1, 1, 1, 'k', 2, 0, 0}), record.ErrMalformed},
		{"another operation", with([]byte{byte(kindTxn), 2, 0, 0, 0, 1, 7, 1, 'k', 0}), record.ErrUnknownCommand},
		{"a billion comparisons", with(append([]byte{byte(kindTxn), 1, 0, 0}, 0xff, 0xff, 0xff, 0xff, 3)), record.ErrMalformed},
		{"doors of nobody", with([]byte{byte(kindDoors), 1}), record.ErrMalformed},
		{"kind 17", with([]byte{17, 0, 1, 'k'}), record.ErrUnknownCommand},
		{"kind 255", with([]byte{255}), record.ErrUnknownCommand},
		{"unknown after known", with(good, []byte{77}), record.ErrUnknownCommand},
		{"malformed after known", with(good, nil), record.ErrMalformed},
		{"another condition", with([]byte{byte(KindPut), byte(IfAtRevision) + 1, 5, 1, 'k'}), record.ErrUnknownCommand},
		{"condition 255", with([]byte{byte(KindDelete), 255, 1, 'k'}), record.ErrUnknownCommand},
	} {
		id, cmds, err := DecodeBatch(tt.data)
		if !errors.Is(err, tt.want) || id != (BatchID{}) || cmds != nil {
			t.Errorf("%s: %+v, %+v, %v; want nothing and %v", tt.name, id, cmds, err, tt.want)
		}
	}
}

// Guarantee: a cut entry is never applied as a different command.
func TestDecodeBatchCut(t *testing.T) {
	id := BatchID{Node: 1, Boot: 2, Seq: 300, Low: 299}
	whole := encodeBatch(id, commandSamples...)
	for n := range whole {
		got, cmds, err := DecodeBatch(whole[:n])
		if err == nil && (got != id || len(cmds) >= len(commandSamples) || !sameCommands(cmds, commandSamples[:len(cmds)])) {
			t.Fatalf("the first %d bytes decode as %+v %+v", n, got, cmds)
		}
		if err != nil && !errors.Is(err, record.ErrMalformed) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
}

// Guarantee: a value may be appended to without writing into its neighbour.
func TestDecodedValueEndsWhereItEnds(t *testing.T) {
	data := encodeBatch(BatchID{}, Command{Kind: KindPut, Key: "a", Value: []byte("1")}, Command{Kind: KindPut, Key: "b", Value: []byte("2")})
	_, cmds, err := DecodeBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(cmds[0].Value, "overflow"...)
	if _, again, err := DecodeBatch(data); err != nil || !sameCommands(again, cmds) {
		t.Fatalf("appending to the first value changed the entry: %v", err)
	}
}

// checkDecode checks what must hold for any bytes at all.
func checkDecode(t *testing.T, data []byte) {
	t.Helper()
	id, cmds, err := DecodeBatch(data)
	if err != nil {
		if !errors.Is(err, record.ErrMalformed) && !errors.Is(err, record.ErrUnknownCommand) {
			t.Fatalf("%x: an error of neither kind: %v", data, err)
		}
		return
	}
	again, cmds2, err := DecodeBatch(encodeBatch(id, cmds...))
	if err != nil || again != id || !sameCommands(cmds, cmds2) {
		t.Fatalf("%x: %+v %+v became %+v %+v, %v", data, id, cmds, again, cmds2, err)
	}
}

// Guarantee: whatever gets into the log, decoding does not panic, because
// every node would panic again at every start; and it means one thing.
func FuzzDecodeBatch(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encodeBatch(BatchID{Node: 1, Boot: 2, Seq: 3, Low: 3}, commandSamples...))
	f.Fuzz(checkDecode)
}

// Guarantee: the same, for damaged entries, in every test run.
func TestDecodeBatchDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	whole := encodeBatch(BatchID{Node: 1, Boot: 2, Seq: 3, Low: 3}, commandSamples...)
	for range 2000 {
		b := bytes.Clone(whole)
		for range 1 + rnd.IntN(4) {
			b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		}
		checkDecode(t, b[:rnd.IntN(len(b)+1)])
	}
}

// Every kind of command and every part of the state has all that its row needs, and
// no record belongs to two parts.
func TestRowsAreComplete(t *testing.T) {
	sampled := make(map[Kind]bool)
	for _, c := range commandSamples {
		sampled[c.Kind] = true
	}
	for k, row := range kinds {
		if k > 0 && !sampled[Kind(k)] {
			t.Errorf("kind %d is not among the samples", k)
		}
		if k > 0 && (row.decode == nil || row.apply == nil || row.level < firstLevel || row.level > ProgramLevel) {
			t.Errorf("kind %d: %+v", k, row)
		}
	}
	seen := map[byte]bool{itemRecord: true, sumRecord: true}
	for i, p := range parts {
		if p.write == nil || p.restore == nil || p.clone == nil || p.reset == nil {
			t.Errorf("part %d lacks a function", i)
		}
		for _, kind := range p.records {
			if seen[kind] || partOf(kind) != &parts[i] {
				t.Errorf("part %d: record %d is not its own", i, kind)
			}
			seen[kind] = true
		}
	}
	if rowOf(0) != nil || rowOf(Kind(len(kinds))) != nil || rowOf(255) != nil || partOf(0) != nil {
		t.Error("a row for what there is not")
	}
}
