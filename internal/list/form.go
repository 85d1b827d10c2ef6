package list

import (
	"encoding/base64"
	"io"
	"raftkv/internal/state"
	"strconv"
	"unicode/utf8"
)

// MaxPageBytes bounds the items and groups of a page as they are sent. A page has at
// least one of them, however large that is.
const MaxPageBytes = 8 << 20

// PieceBytes is how much is encoded before it is written.
const PieceBytes = 64 << 10

// Form says how items are told. Whoever adds a field to items adds it to Append, where
// all answers get it from.
type Form struct {
	KeysOnly bool // without values
	Base64   bool // values in one shape, whether or not they are text
}

// Append appends an item as a JSON object. left is what it has left of its time.
func (f Form) Append(b []byte, key string, it *state.Item, left state.Left) []byte {
	b = AppendText(append(b, `{"key":`...), key)
	switch {
	case f.KeysOnly:
	case !f.Base64 && utf8.ValidString(it.Value):
		b = AppendText(append(b, `,"value":`...), it.Value)
	default:
		b = base64.StdEncoding.AppendEncode(append(b, `,"value_base64":"`...), it.Bytes())
		b = append(b, '"')
	}
	b = strconv.AppendUint(append(b, `,"create_revision":`...), it.CreateRevision, 10)
	b = strconv.AppendUint(append(b, `,"mod_revision":`...), it.ModRevision, 10)
	b = strconv.AppendUint(append(b, `,"version":`...), it.Version, 10)
	if left.Goes {
		b = strconv.AppendFloat(append(b, `,"expires_in_seconds":`...), float64(left.Millis)/1000, 'f', -1, 64)
	}
	if left.Lease != 0 {
		b = strconv.AppendUint(append(b, `,"lease":`...), left.Lease, 10)
	}
	return append(b, '}')
}

// AppendText appends UTF-8 as a JSON string (RFC 8259 §7), which may contain all but
// quotes, backslashes and control characters as they are. The line ends that Unicode has
// besides are escaped, too: some readers of lines take them for one.
func AppendText[T string | []byte](b []byte, text T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' && (c < 0x80 || !lineEnd(text[i:])) {
			continue
		}
		b = append(b, text[from:i]...)
		from = i + 1
		switch c {
		case 0xc2:
			b = append(b, `\u0085`...)
			from++
		case 0xe2:
			b = append(b, '\\', 'u', '2', '0', '2', text[i+2]-0xa8+'8')
			from += 2
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, text[from:]...), '"')
}

// lineEnd reports whether text begins with U+0085, U+2028 or U+2029.
func lineEnd[T string | []byte](text T) bool {
	switch {
	case text[0] == 0xc2:
		return len(text) > 1 && text[1] == 0x85
	case text[0] == 0xe2:
		return len(text) > 2 && text[1] == 0x80 && text[2]|1 == 0xa9
	}
	return false
}

// WritePage writes a page of a query as JSON, in pieces of about PieceBytes. It ends at
// MaxPageBytes, and more says whether there is anything behind the entries: in both
// cases "next" is what the last one has to be followed by, for After.
func (q *Query) WritePage(w io.Writer, revision uint64, entries []Entry, more bool) error {
	b := strconv.AppendUint([]byte(`{"revision":`), revision, 10)
	b = append(b, `,"items":[`...)
	var groups, one []byte
	size, items, given := 0, 0, 0
	for _, e := range entries {
		if e.Item == nil {
			one = AppendText(one[:0], e.Key)
		} else {
			one = q.Append(one[:0], e.Key, e.Item, e.Left)
		}
		if size += len(one) + 1; size > MaxPageBytes && given > 0 {
			more = true
			break
		}
		given++
		if e.Item == nil {
			groups = append(append(groups, one...), ',')
			continue
		}
		if items++; items > 1 {
			b = append(b, ',')
		}
		if b = append(b, one...); len(b) < PieceBytes {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	b = append(b, ']')
	if q.Groups {
		b = append(append(b, `,"prefixes":[`...), groups[:max(0, len(groups)-1)]...)
		b = append(b, ']')
	}
	if more {
		b = AppendText(append(b, `,"next":`...), entries[given-1].Key)
	}
	_, err := w.Write(append(b, "}\n"...))
	return err
}

// WriteAll writes all items of a query, a JSON object a line, in pieces of about
// PieceBytes. Only who sees the last line has got all of them.
func (q *Query) WriteAll(w io.Writer, s *state.State) (err error) {
	b := strconv.AppendUint([]byte(`{"revision":`), s.Revision, 10)
	b = append(b, "}\n"...)
	n := uint64(0)
	q.Walk(&s.Items, func(key string, it *state.Item) bool {
		n++
		if b = append(q.Append(b, key, it, s.Left(it)), '\n'); len(b) < PieceBytes {
			return true
		}
		_, err = w.Write(b)
		b = b[:0]
		return err == nil
	})
	if err != nil {
		return err
	}
	b = strconv.AppendUint(append(b, `{"end":true,"count":`...), n, 10)
	_, err = w.Write(append(b, "}\n"...))
	return err
}
