package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Item is a key with all that the store knows of it.
type Item struct {
	Key            string
	Value          []byte        // not nil; nil if keys alone were asked for
	CreateRevision uint64        // of its first write since it was last missing
	ModRevision    uint64        // of its last write: the ETag, and what IfRevision takes
	Version        uint64        // how many writes there were since the first, with it
	Lease          uint64        // that it is bound to; 0 if there is none
	ExpiresIn      time.Duration // until it goes away by itself, when the answer was made; 0 if it stays
}

// wireItem is an item as it travels.
type wireItem struct {
	Key            string  `json:"key"`
	Value          *string `json:"value"`
	Base64         *[]byte `json:"value_base64"`
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
	Lease          uint64  `json:"lease"`
	ExpiresIn      float64 `json:"expires_in_seconds"`
}

func (w *wireItem) item() Item {
	i := Item{Key: w.Key, CreateRevision: w.CreateRevision, ModRevision: w.ModRevision, Version: w.Version, Lease: w.Lease, ExpiresIn: seconds(w.ExpiresIn)}
	switch {
	case w.Base64 != nil:
		i.Value = *w.Base64
	case w.Value != nil:
		i.Value = []byte(*w.Value)
	}
	return i
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// keyTarget returns the path and the query of a request for one key. A key that something
// between could tidy up in a path, such as a//b, goes into the query.
func keyTarget(key string) (string, url.Values) {
	parts := strings.Split(key, "/")
	for i, part := range parts {
		if part == "" || part == "." || part == ".." {
			return "/v1/kv", url.Values{"key": {key}}
		}
		parts[i] = url.PathEscape(part)
	}
	return "/v1/kv/" + strings.Join(parts, "/"), make(url.Values)
}

// Get reads a key, with all that the store knows of it. One that is missing is an error that
// matches NotFound. Value is faster for those who need the bytes alone.
func (c *Client) Get(ctx context.Context, key string, opts ...ReadOption) (Item, error) {
	r, err := c.readKey(key, opts)
	if err != nil {
		return Item{}, err
	}
	r.header = acceptJSON
	var w wireItem
	if err := c.ask(ctx, r, &w); err != nil {
		return Item{}, err
	}
	return w.item(), nil
}

// Value reads the value of a key and the revision of its last write, which IfRevision takes.
// It is Get without the rest of an Item: a node sends the bytes as they are and not as JSON,
// which saves a quarter of the time of a small value, and most of that of a large one. A
// missing key is an error that matches NotFound.
func (c *Client) Value(ctx context.Context, key string, opts ...ReadOption) (value []byte, revision uint64, err error) {
	r, err := c.readKey(key, opts)
	if err != nil {
		return nil, 0, err
	}
	a, err := c.do(ctx, r)
	if err != nil {
		return nil, 0, err
	}
	if revision, err = c.tagged(r, a); err != nil {
		return nil, 0, err
	}
	if a.body == nil {
		a.body = []byte{}
	}
	return a.body, revision, nil
}

// readKey returns the request that reads a key.
func (c *Client) readKey(key string, opts []ReadOption) (*request, error) {
	path, q := keyTarget(key)
	wrong := badKey(key)
	if wrong == "" {
		wrong = c.reads(opts, q)
	}
	if wrong != "" {
		return nil, invalid("get", key, "%s", wrong)
	}
	return &request{op: "get", key: key, method: http.MethodGet, path: path, query: q, bound: maxAnswer}, nil
}

var acceptJSON = http.Header{"Accept": {"application/json"}}

// ask makes a request whose answer is JSON.
func (c *Client) ask(ctx context.Context, r *request, into any) error {
	a, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return c.garbled(r, a, err)
	}
	return nil
}

// garbled returns the error of an answer that cannot be understood. That of a write may
// have come after it.
func (c *Client) garbled(r *request, a *answer, err error) error {
	return &Error{
		Op: r.op, Key: r.key, Endpoint: a.from.base, Status: a.status, Attempts: 1, Unknown: r.effect != reading,
		cause:  fmt.Errorf("%w: %w", ErrStranger, err),
		Detail: fmt.Sprintf("the answer is not as it should be (%v): %q", err, strings.ToValidUTF8(clip(string(a.body), maxShown), "?")),
	}
}

// Put writes a key, and returns the revision of the write. Without TTL or WithLease the key
// stays, whatever it was before. Put is safe to be tried again by itself: however many
// attempts it takes, the write happens once at most.
func (c *Client) Put(ctx context.Context, key string, value []byte, opts ...WriteOption) (revision uint64, err error) {
	o, wrong := writes(opts)
	if k := badKey(key); k != "" {
		wrong = k
	}
	if wrong != "" {
		return 0, invalid("put", key, "%s", wrong)
	}
	path, q := keyTarget(key)
	o.life(q)
	r := &request{op: "put", key: key, method: http.MethodPut, path: path, query: q, header: o.headers(), body: value, effect: keyed}
	a, err := c.do(ctx, r)
	if err != nil {
		return 0, err
	}
	return c.tagged(r, a)
}

// tagged returns the revision in the ETag of an answer.
func (c *Client) tagged(r *request, a *answer) (uint64, error) {
	revision := tagOf(a.header)
	if revision == 0 {
		return 0, c.garbled(r, a, errors.New("it has no ETag"))
	}
	c.sawRevision(revision)
	return revision, nil
}

// Delete deletes a key, and reports whether it was there: a missing key is no error, unless
// there is a condition that it does not meet. It takes conditions, and no TTL or lease.
func (c *Client) Delete(ctx context.Context, key string, opts ...WriteOption) (deleted bool, err error) {
	o, wrong := writes(opts)
	switch k := badKey(key); {
	case k != "":
		wrong = k
	case o.ttl > 0 || o.lease > 0:
		wrong = "Delete takes neither TTL nor WithLease"
	}
	if wrong != "" {
		return false, invalid("delete", key, "%s", wrong)
	}
	path, q := keyTarget(key)
	_, err = c.do(ctx, &request{op: "delete", key: key, method: http.MethodDelete, path: path, query: q, header: o.headers(), effect: keyed})
	if errors.Is(err, NotFound) {
		return false, nil
	}
	return err == nil, err
}

// DeletePrefix deletes all keys that begin with prefix, in one revision, and returns how
// many there were. More than 10,000 are refused with TooLarge. An empty prefix is refused:
// see DeleteAll.
func (c *Client) DeletePrefix(ctx context.Context, prefix string) (deleted int, err error) {
	wrong := badPrefix(prefix)
	if prefix == "" {
		wrong = "the prefix is empty, which means all keys: DeleteAll deletes them"
	}
	if wrong != "" {
		return 0, invalid("delete", prefix, "%s", wrong)
	}
	n, _, err := c.deleteRange(ctx, prefix, url.Values{"prefix": {prefix}})
	return n, err
}

// deleteStep is how many keys DeleteAll deletes at a time.
const deleteStep = 10_000

// DeleteAll deletes all keys, 10,000 in a revision, and returns how many it has deleted, also
// with an error: that is of the step that failed, and the steps before it have happened.
func (c *Client) DeleteAll(ctx context.Context) (deleted int, err error) {
	for {
		n, more, err := c.deleteRange(ctx, "", url.Values{"all": {"true"}, "limit": {strconv.Itoa(deleteStep)}})
		deleted += n
		if err != nil || !more {
			return deleted, err
		}
	}
}

func (c *Client) deleteRange(ctx context.Context, prefix string, q url.Values) (int, bool, error) {
	var got struct {
		Deleted int  `json:"deleted"`
		More    bool `json:"more"`
	}
	err := c.ask(ctx, &request{op: "delete", key: prefix, method: http.MethodDelete, path: "/v1/kv", query: q, effect: keyed}, &got)
	return got.Deleted, got.More, err
}

// Add adds delta to the decimal number at a key, and returns the new one. A missing key
// counts as 0. TTL counts only if this creates the key; what is there keeps its time. It
// fails with NotANumber if something else is there, and with OutOfRange beyond 64 bits. However
// many attempts it takes, it adds once at most.
func (c *Client) Add(ctx context.Context, key string, delta int64, opts ...WriteOption) (int64, error) {
	o, wrong := writes(opts)
	switch k := badKey(key); {
	case k != "":
		wrong = k
	case o.lease > 0:
		wrong = "Add takes no lease; AddOp in a transaction does"
	}
	if wrong != "" {
		return 0, invalid("add", key, "%s", wrong)
	}
	q := url.Values{"key": {key}}
	o.life(q)
	r := &request{op: "add", key: key, method: http.MethodPost, path: "/v1/add", query: q, header: o.headers(), body: strconv.AppendInt(nil, delta, 10), effect: keyed}
	a, err := c.do(ctx, r)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(a.body), 10, 64)
	if err != nil {
		return 0, c.garbled(r, a, err)
	}
	_, err = c.tagged(r, a)
	return n, err
}

// Append writes a value under a new key that begins with prefix, and returns it. Later
// keys are behind earlier ones in a list, so this makes a queue. It takes TTL and
// WithLease, and no condition. However many attempts it takes, there is one such key.
func (c *Client) Append(ctx context.Context, prefix string, value []byte, opts ...WriteOption) (key string, revision uint64, err error) {
	o, wrong := writes(opts)
	switch k := badPrefix(prefix); {
	case k != "":
		wrong = k
	case o.conditional():
		wrong = "Append takes no condition"
	}
	if wrong != "" {
		return "", 0, invalid("append", prefix, "%s", wrong)
	}
	q := url.Values{"prefix": {prefix}}
	o.life(q)
	r := &request{op: "append", key: prefix, method: http.MethodPost, path: "/v1/kv", query: q, body: value, effect: keyed}
	a, err := c.do(ctx, r)
	if err != nil {
		return "", 0, err
	}
	name, found := strings.CutPrefix(a.header.Get("Location"), "/v1/kv/")
	key, err = url.PathUnescape(name)
	if err != nil || !found {
		return "", 0, c.garbled(r, a, errors.New("it does not name the key"))
	}
	revision, err = c.tagged(r, a)
	return key, revision, err
}

// ErrKeep ends an Update that has nothing to change: its function returns it.
var ErrKeep = errors.New("leave the key as it is")

// Update reads a key, calls change with its value, and writes what that returns, if nobody
// wrote the key meanwhile; else it begins again, until its time is up. exists tells a
// missing key from an empty value. change may be called several times, so it should do
// nothing but compute. If it returns ErrKeep, Update writes nothing and returns the revision
// that the key has, 0 if there is none; any other error ends Update and is returned as it is. The
// key stays bound to its lease; a key that would go away by a TTL is an error, since the
// write would make it stay.
func (c *Client) Update(ctx context.Context, key string, change func(old []byte, exists bool) ([]byte, error)) (revision uint64, err error) {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for pause := leastPause; ; pause = min(2*pause, mostPause) {
		item, err := c.Get(limited, key)
		if err != nil && !errors.Is(err, NotFound) {
			return 0, err
		}
		if item.ExpiresIn > 0 && item.Lease == 0 {
			return 0, invalid("update", key, "the key has a TTL, which the write would take away")
		}
		value, fault := change(item.Value, err == nil)
		if errors.Is(fault, ErrKeep) {
			return item.ModRevision, nil
		}
		if fault != nil {
			return 0, fault
		}
		opts := []WriteOption{IfRevision(item.ModRevision)}
		if item.Lease > 0 {
			opts = append(opts, WithLease(item.Lease))
		}
		revision, err = c.Put(limited, key, value, opts...)
		if !errors.Is(err, PreconditionFailed) {
			return revision, err
		}
		select {
		case <-time.After(rand.N(pause)):
		case <-limited.Done():
			return 0, &Error{Op: "update", Key: key, Detail: "others wrote the key each time", Attempts: 1, cause: err, ended: limited.Err()}
		}
	}
}
