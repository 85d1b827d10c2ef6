package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	pageItems     = 1000             // on a page of a list
	streamSilence = 40 * time.Second // after which a stream is given up
	maxLine       = 130 << 20        // of a stream: twice the largest value, in base64
)

// Entry is an item, or a group of keys that share a beginning, as a directory does.
type Entry struct {
	Item  *Item  // nil if this is a group
	Group string // the beginning that its keys share, with the delimiter at its end
}

// page is the answer to a list.
type page struct {
	Revision uint64     `json:"revision"`
	Items    []wireItem `json:"items"`
	Prefixes []string   `json:"prefixes"`
	Next     string     `json:"next"`
	Count    int        `json:"count"`
}

// List yields the items whose keys begin with prefix, in the order of the keys' bytes; all
// of them if it is empty. It reads pages as they are needed, each tried again as Get is. An
// error ends it: it comes once, with an empty item.
func (c *Client) List(ctx context.Context, prefix string, opts ...ListOption) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		o, q, err := c.lists("list", prefix, opts)
		if err == nil && o.one {
			c.streamed(ctx, prefix, o, q, yield)
			return
		}
		for e, err := range c.pages(ctx, prefix, o, q, err) {
			if err != nil {
				yield(Item{}, err)
				return
			}
			if !yield(*e.Item, nil) {
				return
			}
		}
	}
}

// Groups yields what is directly under prefix, as in a directory: items, and in place of
// all keys that have the delimiter behind the prefix, their group, once. Both come in the order
// of their bytes.
func (c *Client) Groups(ctx context.Context, prefix, delimiter string, opts ...ListOption) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		o, q, err := c.lists("list", prefix, opts)
		switch {
		case err != nil:
		case delimiter == "":
			err = invalid("list", prefix, "the delimiter is empty")
		case o.one:
			err = invalid("list", prefix, "OneRevision does not go with groups")
		default:
			q.Set("delimiter", delimiter)
		}
		c.pages(ctx, prefix, o, q, err)(yield)
	}
}

// Count returns how many keys begin with prefix, at one revision. It takes Start and End, and
// the options of reads.
func (c *Client) Count(ctx context.Context, prefix string, opts ...ListOption) (int, error) {
	o, q, err := c.lists("count", prefix, opts)
	if err != nil {
		return 0, err
	}
	if o.limit > 0 || o.after != "" || o.reverse || o.keysOnly || o.one {
		return 0, invalid("count", prefix, "Count takes Start, End and the options of reads alone")
	}
	q.Set("count", "true")
	var p page
	err = c.ask(ctx, &request{op: "count", key: prefix, method: http.MethodGet, path: "/v1/kv", query: q}, &p)
	return p.Count, err
}

// lists reads the options of a list, and returns its query.
func (c *Client) lists(op, prefix string, opts []ListOption) (o listOptions, q url.Values, err error) {
	for _, opt := range opts {
		if opt != nil {
			opt.applyList(&o)
		}
	}
	q = url.Values{"prefix": {prefix}}
	wrong := badPrefix(prefix)
	if wrong == "" {
		wrong = o.add(c, q)
	}
	if wrong != "" {
		return o, nil, invalid(op, prefix, "%s", wrong)
	}
	for name, text := range map[string]string{"start": o.start, "end": o.end, "start_after": o.after} {
		if text != "" {
			q.Set(name, text)
		}
	}
	if o.reverse {
		q.Set("reverse", "true")
	}
	if o.keysOnly {
		q.Set("keys_only", "true")
	}
	return o, q, nil
}

// pages yields what a list has, a page at a time. With err it yields that alone.
func (c *Client) pages(ctx context.Context, prefix string, o listOptions, q url.Values, err error) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for left := o.limit; ; {
			n := pageItems
			if o.limit > 0 {
				n = min(n, left)
			}
			q.Set("limit", strconv.Itoa(n))
			var p page
			if err := c.ask(ctx, &request{op: "list", key: prefix, method: http.MethodGet, path: "/v1/kv", query: q, bound: maxAnswer}, &p); err != nil {
				yield(Entry{}, err)
				return
			}
			entries := p.entries(o.reverse)
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			left -= len(entries)
			if p.Next == "" || o.limit > 0 && left <= 0 {
				return
			}
			if last := q.Get("start_after"); last != "" && (p.Next > last) == o.reverse || p.Next == last {
				yield(Entry{}, strangeList(prefix, p.Next, last))
				return
			}
			q.Set("start_after", p.Next)
		}
	}
}

// strangeList is the error of a list that would have no end.
func strangeList(prefix, next, last string) error {
	return &Error{Op: "list", Key: prefix, Attempts: 1, cause: strange("behind %q it goes on with %q", clip(last, maxShown), clip(next, maxShown))}
}

// entries returns the items and the groups of a page in their order.
func (p *page) entries(reverse bool) []Entry {
	entries := make([]Entry, 0, len(p.Items)+len(p.Prefixes))
	for i := range p.Items {
		item := p.Items[i].item()
		entries = append(entries, Entry{Item: &item})
	}
	if len(p.Prefixes) == 0 {
		return entries
	}
	for _, g := range p.Prefixes {
		entries = append(entries, Entry{Group: g})
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		if reverse {
			a, b = b, a
		}
		return cmp.Compare(a.name(), b.name())
	})
	return entries
}

func (e Entry) name() string {
	if e.Item != nil {
		return e.Item.Key
	}
	return e.Group
}

// streamed yields the items of one revision.
func (c *Client) streamed(ctx context.Context, prefix string, o listOptions, q url.Values, yield func(Item, error) bool) {
	if !o.keysOnly {
		q.Set("values", "base64") // as text a value can be six times as long
	}
	r := &request{
		op: "list", key: prefix, method: http.MethodGet, path: "/v1/kv", query: q,
		header: http.Header{"Accept": {"application/x-ndjson"}}, silence: streamSilence,
	}
	a, err := c.open(ctx, r)
	if err != nil {
		yield(Item{}, err)
		return
	}
	defer func() { _ = a.stream.Close() }()
	told := 0
	lines := bufio.NewReaderSize(a.stream, 64<<10)
	for {
		var line struct {
			wireItem
			End   bool     `json:"end"`
			Count int      `json:"count"`
			Error *problem `json:"error"`
		}
		text, err := readLine(lines, maxLine)
		if err == nil {
			err = json.Unmarshal(text, &line)
		}
		switch {
		case err == nil && line.End && line.Count == told:
			return
		case err == nil && line.End:
			err = fmt.Errorf("%w: it ends after %d items, and says %d", ErrStranger, told, line.Count)
		case err == nil && line.Error != nil:
			err = line.Error.Code
		}
		if err != nil {
			yield(Item{}, c.brokenOff(r, a, line.Error, err))
			return
		}
		if line.Key == "" {
			continue // the first line, or one of a kind that is not known yet
		}
		told++
		if !yield(line.item(), nil) || told == o.limit {
			return
		}
	}
}

// brokenOff returns the error of a stream that ended too soon.
func (c *Client) brokenOff(r *request, a *answer, p *problem, err error) error {
	c.lost(a.from)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	e := &Error{Op: r.op, Key: r.key, Endpoint: a.from.base, Status: a.status, Attempts: 1, cause: err, Detail: "the stream broke off: " + err.Error()}
	if p != nil {
		e.Code, e.Detail = p.Code, p.Detail
	}
	return e
}

// readLine reads a line without its end. One that is longer than most is an error; so is the
// end of the stream within a line.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		switch {
		case err == nil && line == nil:
			return bytes.TrimSuffix(part, []byte("\n")), nil
		case err != nil && err != bufio.ErrBufferFull:
			return nil, err
		case len(line)+len(part) > most:
			return nil, fmt.Errorf("%w: a line has more than %d bytes", ErrStranger, most)
		}
		if line = append(line, part...); err == nil {
			return bytes.TrimSuffix(line, []byte("\n")), nil
		}
	}
}
