// Package watchtest answers: does a stream of changes tell what a cluster has changed? Changes is
// that, as the entries of the log say; a Follower is a client that follows the protocol, and
// compares all that it is told. It is for tests alone.
package watchtest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Watch is what a watcher asks for.
type Watch struct {
	Prefixes, Keys []string // none of both: everything
	Types          []string // none: all
	State          bool     // first what is there
	KeysOnly       bool
	Base64         bool
	NDJSON         bool
}

// Query is the query of its request.
func (w Watch) Query() url.Values {
	q := url.Values{}
	for _, p := range w.Prefixes {
		q.Add("prefix", p)
	}
	for _, k := range w.Keys {
		q.Add("key", k)
	}
	if len(w.Types) > 0 {
		q.Set("types", strings.Join(w.Types, ","))
	}
	if w.State {
		q.Set("state", "true")
	}
	if w.KeysOnly {
		q.Set("keys_only", "true")
	}
	if w.Base64 {
		q.Set("values", "base64")
	}
	return q
}

func (w Watch) matches(key string) bool {
	return len(w.Prefixes)+len(w.Keys) == 0 || slices.Contains(w.Keys, key) ||
		slices.ContainsFunc(w.Prefixes, func(p string) bool { return strings.HasPrefix(key, p) })
}

// pick returns those of some changes that it asks for, as it is told of them.
func (w Watch) pick(changes []Change) (picked []Change) {
	for _, c := range changes {
		if w.matches(c.Item.Key) && (len(w.Types) == 0 || slices.Contains(w.Types, c.Type)) {
			picked = append(picked, Change{c.Type, w.show(c.Item)})
		}
	}
	return picked
}

func (w Watch) show(it Item) Item {
	if w.KeysOnly {
		it.Value = ""
	}
	return it
}

// Message is what a stream says at once.
type Message struct {
	Event string // "comment", "position", "change", "reset", "state", "synced", "unavailable"
	ID    uint64
	HasID bool
	Retry int
	Data  []byte
}

// String tells what a failed test should show of it.
func (m Message) String() string {
	data := m.Data
	if len(data) > 200 {
		data = append(bytes.Clone(data[:200]), "…"...)
	}
	id := "-"
	if m.HasID {
		id = strconv.FormatUint(m.ID, 10)
	}
	return fmt.Sprintf("%s id %s %s", m.Event, id, data)
}

// Parser makes messages of bytes, as they come. What does not come whole says nothing.
type Parser struct {
	NDJSON bool
	line   []byte
	block  Message
	fields int // of the block
}

// Feed takes one byte, and returns what that completes.
func (p *Parser) Feed(b byte) (m Message, ok bool, err error) {
	if b != '\n' {
		p.line = append(p.line, b)
		return m, false, nil
	}
	line := p.line
	p.line = nil
	if p.NDJSON {
		m, err = parseLine(line)
		return m, err == nil, err
	}
	return p.field(line)
}

// field takes a line of an event stream (HTML, "Server-sent events").
func (p *Parser) field(line []byte) (m Message, ok bool, err error) {
	if len(line) == 0 {
		m, p.block = p.block, Message{}
		fields := p.fields
		p.fields = 0
		if m.Event == "" && m.HasID {
			m.Event = "position"
		}
		if m.Event == "" {
			m.Event = "comment"
		}
		if m.Event == "position" && m.Data != nil {
			return m, false, errors.New("data without an event")
		}
		return m, fields > 0, nil
	}
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	p.fields++
	switch string(name) {
	case "":
		return m, false, nil // a comment
	case "id":
		p.block.HasID = true
		p.block.ID, err = strconv.ParseUint(string(value), 10, 64)
	case "event":
		p.block.Event = string(value)
	case "retry":
		p.block.Retry, err = strconv.Atoi(string(value))
	case "data":
		p.block.Data = append(p.block.Data, value...)
	default:
		err = fmt.Errorf("unknown field %q", name)
	}
	return m, false, err
}

func parseLine(line []byte) (m Message, err error) {
	var told struct {
		Event string          `json:"event"`
		ID    *uint64         `json:"id"`
		Retry int             `json:"retry"`
		Data  json.RawMessage `json:"data"`
	}
	if err := strictly(line, &told); err != nil {
		return m, fmt.Errorf("line %.100q: %w", line, err)
	}
	m = Message{Event: told.Event, Retry: told.Retry, Data: told.Data}
	if told.ID != nil {
		m.ID, m.HasID = *told.ID, true
	}
	return m, nil
}

// strictly decodes JSON that has no name which is not known.
func strictly(text []byte, into any) error {
	if !utf8.Valid(text) {
		return errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more behind it")
	}
	return nil
}

// toldItem is an item or an event in JSON.
type toldItem struct {
	Type           string  `json:"type"`
	Key            string  `json:"key"`
	Value          *string `json:"value"`
	ValueBase64    *string `json:"value_base64"`
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
	Lease          uint64  `json:"lease"`
}

// item returns what it says. The error says that it has not the shape that was asked for.
func (t toldItem) item(w Watch, withValue bool) (it Item, err error) {
	it = Item{t.Key, "", t.CreateRevision, t.ModRevision, t.Version, t.Lease}
	switch {
	case t.Value != nil && t.ValueBase64 != nil:
		return it, fmt.Errorf("%s has two values", t.Key)
	case (t.Value != nil || t.ValueBase64 != nil) != (withValue && !w.KeysOnly):
		return it, fmt.Errorf("%s has a value: %t", t.Key, !withValue || w.KeysOnly)
	case t.Value != nil && w.Base64:
		return it, fmt.Errorf("%s has a value that is no base64", t.Key)
	case t.Value != nil:
		it.Value = *t.Value
	case t.ValueBase64 != nil:
		var raw []byte
		raw, err = base64.StdEncoding.DecodeString(*t.ValueBase64)
		it.Value = string(raw)
		if err == nil && !w.Base64 && utf8.Valid(raw) {
			err = fmt.Errorf("%s has text in base64", t.Key)
		}
	}
	return it, err
}

// looselyNamed decodes JSON that may have more names.
func looselyNamed(text []byte, into any) error { return json.Unmarshal(text, into) }
