package transfer

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"raftkv/internal/config"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The formats that import reads. All are JSON, of which one item after the other is
// read. Bad UTF-8, half a surrogate pair and doubled names are errors, so that no key
// is taken for another.

// The values of --format.
const (
	formatAuto   = "auto"
	formatRaftkv = "raftkv" // export, GET /v1/kv as application/x-ndjson
	formatConsul = "consul" // consul kv export, and GET /v1/kv/?recurse of Consul
	formatEtcd   = "etcd"   // etcdctl get --prefix -w json
)

// maxItemBytes bounds how much of a file is read for one item: the largest value and the
// longest key that a node takes, each byte of them as an escape of JSON, and what is around
// them. No server that a file may come from takes larger ones.
const maxItemBytes int64 = escapeBytes*(config.MaxValueLimit+config.MaxKeyBytes) + 64<<10

const escapeBytes = 6 // as \u0001

// entry is a key of a file.
type entry struct {
	key   string
	value []byte
	ends  bool   // it had a TTL or a lease
	flags uint64 // Consul's
}

// reader reads a file of one of the formats.
type reader struct {
	format string
	in     *meteredReader
	dec    *jsontext.Decoder
	next   func(r *reader) (entry, error)

	items  uint64  // so many were read
	begun  bool    // the first item was looked for
	headed bool    // raftkv: the line with the revision was there
	ended  bool    // what ends the items was there
	count  *uint64 // how many keys there have to be, once the file has said it
	more   bool    // etcd: it says that it does not hold all
	values bool    // etcd: a key with a value was there
}

// newReader reads in as a format. That auto stands for is known after the first call
// of Next, and nothing is read before.
func newReader(in io.Reader, format string) *reader {
	m := &meteredReader{in: bufio.NewReader(in), most: maxItemBytes, left: maxItemBytes}
	return &reader{format: format, in: m, dec: jsontext.NewDecoder(m)}
}

// Next returns the next item, and io.EOF behind the last one if the file is whole.
func (r *reader) Next() (entry, error) {
	e, err := r.readNext()
	switch {
	case err == nil:
		r.items++
	case errors.Is(err, io.EOF):
		err = r.end()
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("behind %s: the file ends in the middle: it is not whole", items(r.items))
	default:
		err = fmt.Errorf("behind %s: %w", items(r.items), err)
	}
	return e, err
}

func items(n uint64) string {
	if n == 1 {
		return "1 item"
	}
	return fmt.Sprint(n, " items")
}

func (r *reader) readNext() (entry, error) {
	if !r.begun {
		if err := r.begin(); err != nil {
			return entry{}, err
		}
		r.begun = true
	}
	r.in.left = r.in.most
	return r.next(r)
}

// begin finds out the format if it has to, and reads what is before the first item.
func (r *reader) begin() error {
	if r.format == formatAuto {
		format, err := guess(r.in.in)
		if err != nil {
			return err
		}
		r.format = format
	}
	switch r.format {
	case formatRaftkv:
		r.next = (*reader).nextRaftkv
		return nil
	case formatConsul:
		r.next = (*reader).nextConsul
		return r.expect(jsontext.BeginArray, "a JSON array, as consul kv export writes it")
	default:
		r.next = (*reader).nextEtcd
		if err := r.expect(jsontext.BeginObject, "a JSON object, as etcdctl get -w json writes it"); err != nil {
			return err
		}
		return r.etcdMembers()
	}
}

// guessBytes is how much of a file is looked at to find out its format.
const guessBytes = 4 << 10

// guess tells a format by the first bracket and the first name.
func guess(in *bufio.Reader) (string, error) {
	head, err := in.Peek(guessBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = bytes.TrimLeft(head, " \t\r\n")
	if len(head) == 0 {
		return "", errors.New("there is nothing in it")
	}
	if head[0] == '[' {
		return formatConsul, nil
	}
	dec := jsontext.NewDecoder(bytes.NewReader(head))
	if open, err := dec.ReadToken(); err == nil && open.Kind() == '{' {
		if name, err := dec.ReadToken(); err == nil && name.Kind() == '"' {
			switch name.String() {
			case "header", "kvs", "count":
				return formatEtcd, nil
			case "revision", "key":
				return formatRaftkv, nil
			}
		}
	}
	return "", errors.New("this looks like none of the formats; --format raftkv, consul or etcd says which it is")
}

func (r *reader) expect(want jsontext.Token, what string) error {
	got, err := r.dec.ReadToken()
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("there is nothing in it")
	case err != nil:
		return err
	case got.Kind() != want.Kind():
		return fmt.Errorf("expected %s", what)
	}
	return nil
}

// end checks at the end of a file that it is whole.
func (r *reader) end() error {
	switch {
	case r.headed && !r.ended:
		return fmt.Errorf("behind %s: the last line, with the number of keys, is missing: the file is not whole", items(r.items))
	case r.more:
		return fmt.Errorf("there are only the first %d keys in it: etcdctl was called with --limit", r.items)
	case r.count != nil && *r.count != r.items:
		return fmt.Errorf("there are %d keys in it, and it says itself that there should be %d", r.items, *r.count)
	case r.format == formatRaftkv && r.items == 0 && !r.ended:
		return errors.New("there is nothing in it")
	case r.format == formatEtcd && r.items > 0 && !r.values:
		return errors.New("no key in it has a value: etcdctl was called with --keys-only")
	}
	return io.EOF
}

// raftkvLine is a line of an export: its first, an item, its last, or why it broke off.
type raftkvLine struct {
	Revision    *uint64        `json:"revision"`
	Key         *string        `json:"key"`
	Value       *string        `json:"value"`
	ValueBase64 *string        `json:"value_base64"`
	ExpiresIn   *float64       `json:"expires_in_seconds"`
	Lease       uint64         `json:"lease"`
	End         bool           `json:"end"`
	Count       *uint64        `json:"count"`
	Error       jsontext.Value `json:"error"`
}

func (r *reader) nextRaftkv() (entry, error) {
	for {
		text, err := r.dec.ReadValue()
		if err != nil {
			return entry{}, err
		}
		if r.ended {
			return entry{}, errors.New("there is something behind the last line")
		}
		var line raftkvLine
		if err := json.Unmarshal(text, &line); err != nil {
			return entry{}, err
		}
		switch {
		case line.Error != nil:
			return entry{}, fmt.Errorf("the export broke off here: %s", line.Error)
		case line.Key != nil:
			return line.entry()
		case line.End && line.Count != nil:
			r.ended, r.count = true, line.Count
		case line.Revision != nil && r.items == 0 && !r.headed:
			r.headed = true
		default:
			return entry{}, fmt.Errorf("this is no line of an export: %s", clip(text))
		}
	}
}

func (l *raftkvLine) entry() (entry, error) {
	e := entry{key: *l.Key, ends: l.ExpiresIn != nil || l.Lease != 0}
	switch {
	case (l.Value == nil) == (l.ValueBase64 == nil):
		return e, fmt.Errorf("key %s has no value, or two", quote(e.key))
	case l.Value != nil:
		e.value = []byte(*l.Value)
		return e, nil
	}
	value, err := base64.StdEncoding.Strict().DecodeString(*l.ValueBase64)
	if err != nil {
		return e, fmt.Errorf("value of key %s: %w", quote(e.key), err)
	}
	e.value = value
	return e, nil
}

// consulPair is an element of what consul kv export writes. Consul's HTTP API writes
// the same names with capitals.
type consulPair struct {
	Key     *string `json:"key"`
	Flags   uint64  `json:"flags"`
	Value   []byte  `json:"value"`
	Session string  `json:"session"`
}

func (r *reader) nextConsul() (entry, error) {
	if r.dec.PeekKind() == ']' {
		return entry{}, r.closeDocument()
	}
	text, err := r.dec.ReadValue()
	if err != nil {
		return entry{}, err
	}
	var pair consulPair
	if err := json.Unmarshal(text, &pair, json.MatchCaseInsensitiveNames(true)); err != nil {
		return entry{}, err
	}
	if pair.Key == nil {
		return entry{}, fmt.Errorf("this has no key: %s", clip(text))
	}
	return entry{key: *pair.Key, value: pair.Value, flags: pair.Flags, ends: pair.Session != ""}, nil
}

// closeDocument reads the bracket that ends the items or the document, and makes sure
// that nothing is behind it. It returns io.EOF.
func (r *reader) closeDocument() error {
	if _, err := r.dec.ReadToken(); err != nil {
		return err
	}
	switch _, err := r.dec.ReadToken(); {
	case err == nil:
		return errors.New("there is something behind the end of the JSON")
	default:
		return err
	}
}

// etcdPair is an element of kvs in the answer of a range of etcd.
type etcdPair struct {
	Key   []byte         `json:"key"`
	Value []byte         `json:"value"`
	Lease jsontext.Value `json:"lease"` // a number, or text with one in it
}

// etcdMembers reads the members of the answer up to kvs, into which it steps, or to
// the end, where it returns io.EOF.
func (r *reader) etcdMembers() error {
	for {
		if r.dec.PeekKind() == '}' {
			return r.closeDocument()
		}
		name, err := r.dec.ReadToken()
		if err != nil {
			return err
		}
		field := name.String() // a token lasts until the next is looked at
		if field == "kvs" {
			if r.dec.PeekKind() != 'n' {
				return r.expect(jsontext.BeginArray, "kvs to be an array")
			}
		}
		value, err := r.dec.ReadValue()
		if err != nil {
			return err
		}
		switch field {
		case "count":
			n := new(uint64)
			if err := json.Unmarshal(bytes.Trim(value, `"`), n); err != nil {
				return err
			}
			r.count = n
		case "more":
			r.more = string(value) == "true"
		}
	}
}

func (r *reader) nextEtcd() (entry, error) {
	if r.dec.PeekKind() == ']' {
		if _, err := r.dec.ReadToken(); err != nil {
			return entry{}, err
		}
		return entry{}, r.etcdMembers()
	}
	text, err := r.dec.ReadValue()
	if err != nil {
		return entry{}, err
	}
	var pair etcdPair
	if err := json.Unmarshal(text, &pair); err != nil {
		return entry{}, err
	}
	r.values = r.values || len(pair.Value) > 0
	lease := string(bytes.Trim(pair.Lease, `"`))
	return entry{key: string(pair.Key), value: pair.Value, ends: lease != "" && lease != "0"}, nil
}

// meteredReader refuses to give out more than is left.
type meteredReader struct {
	in   *bufio.Reader
	most int64 // for an item
	left int64
}

func (m *meteredReader) Read(b []byte) (int, error) {
	if m.left <= 0 {
		return 0, fmt.Errorf("an item is larger than %d bytes", m.most)
	}
	n, err := m.in.Read(b[:min(int64(len(b)), m.left)])
	m.left -= int64(n)
	return n, err
}

// shownBytes is how much of a text from a file is shown.
const shownBytes = 100

func clip(text []byte) string {
	if len(text) <= shownBytes {
		return string(text)
	}
	return strings.ToValidUTF8(string(text[:shownBytes]), "") + "..."
}

// quote shows a key on one line, and only so much of it.
func quote(key string) string {
	if len(key) <= shownBytes {
		return fmt.Sprintf("%q", key)
	}
	return fmt.Sprintf("%q...", key[:shownBytes])
}
