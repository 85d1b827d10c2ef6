package entry

import (
	"bytes"
	"errors"
	"raftkv/internal/record"
	"raftkv/internal/window"
	"testing"
)

// Guarantee: the layouts are those that are on disks.
func TestLayoutIsForever(t *testing.T) {
	plain, named := window.Batch{Node: 1, Boot: 2, Seq: 300, Low: 4}, window.Batch{Node: 1, Boot: 2, Seq: 300, Low: 4, Life: 5}
	for name, tt := range map[string]struct{ got, want []byte }{
		"batch":            {AppendCommand(AppendHeader(nil, plain), []byte("cmd")), []byte("\x01\x01\x02\xac\x02\x04\x03cmd")},
		"batch of a life":  {AppendCommand(AppendHeader(nil, named), []byte("cmd")), []byte("\x02\x01\x02\xac\x02\x04\x05\x00\x00\x00\x00\x00\x00\x00\x03cmd")},
		"tick":             {EncodeTick(7, 300), []byte("\x03\x01\x07\xac\x02")},
		"batch of nothing": {AppendHeader(nil, plain), []byte("\x01\x01\x02\xac\x02\x04")},
	} {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("%s: %x, want %x", name, tt.got, tt.want)
		}
	}
}

// Guarantee: what is no batch is told from what a newer program wrote, and neither is taken
// for a batch.
func TestOpenIsStrict(t *testing.T) {
	id := window.Batch{Node: 1, Boot: 2, Seq: 3, Low: 3, Life: 9}
	whole := AppendCommand(AppendCommand(AppendHeader(nil, id), []byte("a")), []byte("bc"))
	if got, r, n, err := Open(whole); err != nil || got != id || n != 2 || string(r.Bytes()) != "a" || string(r.Bytes()) != "bc" || NodeOf(whole) != 1 {
		t.Errorf("%+v, %d, %v", got, n, err)
	}
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":                {nil, record.ErrMalformed},
		"half an identity":       {whole[:3], record.ErrMalformed},
		"half a life":            {whole[:8], record.ErrMalformed},
		"no life":                {append([]byte{2, 1, 1, 1, 1}, make([]byte, 8)...), record.ErrMalformed},
		"a tick":                 {EncodeTick(1, 2), record.ErrMalformed},
		"half a tick":            {EncodeTick(1, 2)[:3], record.ErrMalformed},
		"a tick of another kind": {[]byte{3, 2, 1, 1}, record.ErrUnknownCommand},
		"another format":         {[]byte{4, 1, 1, 1, 1}, record.ErrUnknownCommand},
		"format 0":               {[]byte{0, 1, 1, 1, 1}, record.ErrUnknownCommand},
	} {
		if _, _, _, err := Open(tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if NodeOf(EncodeTick(1, 2)) != 0 || NodeOf(nil) != 0 {
		t.Error("a node is said to have gathered what is no batch")
	}
	if tick, ok, err := DecodeTick(EncodeTick(1, 2)); !ok || err != nil || tick != (Tick{1, 2}) {
		t.Errorf("%+v, %v, %v", tick, ok, err)
	}
	if _, ok, _ := DecodeTick(whole); ok {
		t.Error("a batch is taken for a tick")
	}
}
