package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"raftkv/internal/record"
	"reflect"
	"testing"
)

// encodeCommand is the inverse of decodeCommand.
func encodeCommand(c command) []byte {
	switch c.kind {
	case kindPublish: // no longer written
		return append(record.AppendUvarints([]byte{byte(kindPublish)}, c.member, c.instance), c.clientURL...)
	case kindAnnounce:
		return encodeAnnounce(c.member, c.instance, c.level, c.clientURL)
	case kindCheckpoint:
		return encodeCheckpoint(c.full)
	case kindReport:
		return encodeReport(c.member, c.checkpoint, c.report)
	}
	return encodeWrite(c.kind, c.condition, c.key, c.value)
}

func encodeBatch(id batchID, cmds ...command) []byte {
	b := appendBatchHeader(nil, id)
	for _, c := range cmds {
		b = appendCommand(b, encodeCommand(c))
	}
	return b
}

// sameCommands compares without telling an empty value from a nil one.
func sameCommands(a, b []command) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if !bytes.Equal(x.value, y.value) {
			return false
		}
		x.value, y.value = nil, nil
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

var commandSamples = []command{
	{kind: kindPut, key: "k", value: []byte("v")},
	{kind: kindPut, key: "", value: nil},
	{kind: kindPut, key: "k", value: []byte{0xff, 0xfe, 0, 0x80}},
	{kind: kindPut, key: "a\x00/é", condition: condition{kind: ifMissing}, value: bytes.Repeat([]byte("x"), 300)},
	{kind: kindPut, key: "k", condition: condition{kind: ifAtRevision, revision: math.MaxUint64}, value: []byte{1}},
	{kind: kindDelete, key: "k"},
	{kind: kindDelete, key: "k", condition: condition{kind: ifExists}},
	{kind: kindDelete, key: "k", condition: condition{kind: ifAtRevision, revision: 7}},
	{kind: kindPublish, member: 3, clientURL: "http://127.0.0.1:9121"},
	{kind: kindPublish, member: math.MaxUint64},
	{kind: kindAnnounce, member: 3, instance: 4, level: 5, clientURL: "http://127.0.0.1:9121"},
	{kind: kindAnnounce, member: math.MaxUint64, level: math.MaxUint64},
	{kind: kindCheckpoint},
	{kind: kindCheckpoint, full: true},
	{kind: kindReport, member: 3, checkpoint: 1 << 40, report: report{hash: math.MaxUint64}},
	{kind: kindReport, member: math.MaxUint64, report: report{void: true}},
}

// Guarantee: what a client wrote is what every replica applies, byte for byte,
// under the identity that was given to it.
func TestBatchRoundTrip(t *testing.T) {
	for _, id := range []batchID{
		{},
		{node: 1, boot: 2, seq: 3, low: 2},
		{node: math.MaxUint64, boot: math.MaxUint64, seq: math.MaxUint64, low: math.MaxUint64},
		{node: 1, boot: 2, seq: 3, low: 2, life: 1},
		{math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64},
	} {
		for n := range len(commandSamples) + 1 {
			got, cmds, err := decodeBatch(encodeBatch(id, commandSamples[:n]...))
			if err != nil || got != id || !sameCommands(cmds, commandSamples[:n]) {
				t.Fatalf("%+v with %d commands came back as %+v, %+v, %v", id, n, got, cmds, err)
			}
		}
	}
}

// Guarantee: an entry of a newer version stops the node instead of being
// skipped, and an entry that no version writes is told apart from it.
func TestDecodeBatchStrict(t *testing.T) {
	head := appendBatchHeader(nil, batchID{node: 1, boot: 2, seq: 3, low: 3})
	with := func(cmds ...[]byte) []byte {
		b := bytes.Clone(head)
		for _, c := range cmds {
			b = appendCommand(b, c)
		}
		return b
	}
	good := encodeWrite(kindPut, condition{}, "k", []byte("v"))
	over := bytes.Repeat([]byte{0xff}, binary.MaxVarintLen64+1)
	for _, tt := range []struct {
		name string
		data []byte
		want error
	}{
		{"nothing", nil, record.ErrMalformed},
		{"format 0", append([]byte{0}, head[1:]...), record.ErrUnknownCommand},
		{"format 3", append([]byte{3}, head[1:]...), record.ErrUnknownCommand},
		{"a life of 0", append(append([]byte{2}, head[1:]...), make([]byte, 8)...), record.ErrMalformed},
		{"half a life", append(append([]byte{2}, head[1:]...), 1, 2, 3, 4), record.ErrMalformed},
		{"format 3 alone", []byte{3}, record.ErrUnknownCommand},
		{"half an identity", head[:3], record.ErrMalformed},
		{"identity overflows", append([]byte{batchFormat}, over...), record.ErrMalformed},
		{"command longer than the entry", append(bytes.Clone(head), 200, 1), record.ErrMalformed},
		{"command length of 2^63", append(binary.AppendUvarint(bytes.Clone(head), 1<<63), 1), record.ErrMalformed},
		{"length overflows", append(bytes.Clone(head), over...), record.ErrMalformed},
		{"empty command", with(nil), record.ErrMalformed},
		{"kind alone", with([]byte{byte(kindPut)}), record.ErrMalformed},
		{"no key", with([]byte{byte(kindPut), 0}), record.ErrMalformed},
		{"key longer than the command", with([]byte{byte(kindPut), 0, 9, 'k'}), record.ErrMalformed},
		{"no revision", with([]byte{byte(kindPut), byte(ifAtRevision)}), record.ErrMalformed},
		{"publish of nobody", with([]byte{byte(kindPublish)}), record.ErrMalformed},
		{"kind 0", with([]byte{0, 0, 1, 'k'}), record.ErrUnknownCommand},
		{"announcement of nobody", with([]byte{byte(kindAnnounce)}), record.ErrMalformed},
		{"checkpoint of two minds", with([]byte{byte(kindCheckpoint), 2}), record.ErrMalformed},
		{"checkpoint and more", with([]byte{byte(kindCheckpoint), 1, 1}), record.ErrMalformed},
		{"report cut short", with([]byte{byte(kindReport), 1, 1, 0, 1, 2, 3, 4, 5, 6, 7}), record.ErrMalformed},
		{"report and more", with([]byte{byte(kindReport), 1, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}), record.ErrMalformed},
		{"kind 7", with([]byte{7, 0, 1, 'k'}), record.ErrUnknownCommand},
		{"kind 255", with([]byte{255}), record.ErrUnknownCommand},
		{"unknown after known", with(good, []byte{77}), record.ErrUnknownCommand},
		{"malformed after known", with(good, nil), record.ErrMalformed},
		{"another condition", with([]byte{byte(kindPut), byte(ifAtRevision) + 1, 5, 1, 'k'}), record.ErrUnknownCommand},
		{"condition 255", with([]byte{byte(kindDelete), 255, 1, 'k'}), record.ErrUnknownCommand},
	} {
		id, cmds, err := decodeBatch(tt.data)
		if !errors.Is(err, tt.want) || id != (batchID{}) || cmds != nil {
			t.Errorf("%s: %+v, %+v, %v; want nothing and %v", tt.name, id, cmds, err, tt.want)
		}
	}
}

// Guarantee: a cut entry is never applied as a different command.
func TestDecodeBatchCut(t *testing.T) {
	id := batchID{node: 1, boot: 2, seq: 300, low: 299}
	whole := encodeBatch(id, commandSamples...)
	for n := range whole {
		got, cmds, err := decodeBatch(whole[:n])
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
	data := encodeBatch(batchID{}, command{kind: kindPut, key: "a", value: []byte("1")}, command{kind: kindPut, key: "b", value: []byte("2")})
	_, cmds, err := decodeBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(cmds[0].value, "overflow"...)
	if _, again, err := decodeBatch(data); err != nil || !sameCommands(again, cmds) {
		t.Fatalf("appending to the first value changed the entry: %v", err)
	}
}

// checkDecode checks what must hold for any bytes at all.
func checkDecode(t *testing.T, data []byte) {
	t.Helper()
	id, cmds, err := decodeBatch(data)
	if err != nil {
		if !errors.Is(err, record.ErrMalformed) && !errors.Is(err, record.ErrUnknownCommand) {
			t.Fatalf("%x: an error of neither kind: %v", data, err)
		}
		return
	}
	again, cmds2, err := decodeBatch(encodeBatch(id, cmds...))
	if err != nil || again != id || !sameCommands(cmds, cmds2) {
		t.Fatalf("%x: %+v %+v became %+v %+v, %v", data, id, cmds, again, cmds2, err)
	}
}

// Guarantee: whatever gets into the log, decoding does not panic, because
// every node would panic again at every start; and it means one thing.
func FuzzDecodeBatch(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encodeBatch(batchID{node: 1, boot: 2, seq: 3, low: 3}, commandSamples...))
	f.Fuzz(checkDecode)
}

// Guarantee: the same, for damaged entries, in every test run.
func TestDecodeBatchDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	whole := encodeBatch(batchID{node: 1, boot: 2, seq: 3, low: 3}, commandSamples...)
	for range 2000 {
		b := bytes.Clone(whole)
		for range 1 + rnd.IntN(4) {
			b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		}
		checkDecode(t, b[:rnd.IntN(len(b)+1)])
	}
}
