package client

import (
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"
)

// maxKey is the length of the longest key, in bytes.
const maxKey = 4096

// ReadOption says how fresh a read has to be. Without one a read reflects every write that
// was acknowledged anywhere before it began.
type ReadOption interface {
	ListOption
	applyRead(*readOptions)
}

// ListOption says what of a range is told, and how. Each ReadOption is one, too.
type ListOption interface{ applyList(*listOptions) }

// WriteOption is a condition or a lifetime of a write.
type WriteOption interface{ applyWrite(*writeOptions) }

type readOptions struct {
	stale       bool
	maxAge      time.Duration
	minRevision uint64
	ownWrites   bool
	wrong       string
}

type listOptions struct {
	readOptions
	limit         int
	after         string
	start, end    string
	reverse       bool
	keysOnly, one bool
}

type writeOptions struct {
	absent, present bool
	revision        uint64
	ttl             time.Duration
	lease           uint64
	wrong           string
}

type (
	readOption  func(*readOptions)
	listOption  func(*listOptions)
	writeOption func(*writeOptions)
)

func (f readOption) applyRead(o *readOptions)    { f(o) }
func (f readOption) applyList(o *listOptions)    { f(&o.readOptions) }
func (f listOption) applyList(o *listOptions)    { f(o) }
func (f writeOption) applyWrite(o *writeOptions) { f(o) }

// Stale reads what the node that is asked has, at once: usually a few milliseconds old,
// and much older if it is cut off. MaxAge bounds that.
func Stale() ReadOption { return readOption(func(o *readOptions) { o.stale = true }) }

// MaxAge asks another node if one has not heard from the leader for longer than d, and fails
// with TooStale if that is so of all. It goes with Stale, MinRevision or ReadYourWrites.
func MaxAge(d time.Duration) ReadOption {
	return readOption(func(o *readOptions) {
		o.maxAge = d
		if d <= 0 {
			o.wrong = "MaxAge must be positive"
		}
	})
}

// MinRevision reads what the node that is asked has once it has applied the revision r,
// without asking the leader.
func MinRevision(r uint64) ReadOption {
	return readOption(func(o *readOptions) { o.minRevision = r })
}

// ReadYourWrites reads, of whichever node, nothing older than what this client has written
// or read before (Client.Revision), without asking the leader.
func ReadYourWrites() ReadOption { return readOption(func(o *readOptions) { o.ownWrites = true }) }

// IfAbsent writes only if there is no such key; else the call fails with
// PreconditionFailed. Of many who try at the same time one succeeds.
func IfAbsent() WriteOption { return writeOption(func(o *writeOptions) { o.absent = true }) }

// IfPresent writes only if the key is there; else the call fails with PreconditionFailed.
func IfPresent() WriteOption { return writeOption(func(o *writeOptions) { o.present = true }) }

// IfRevision writes only if the key's ModRevision is r; else the call fails with
// PreconditionFailed, and Error.Revision is the one that the key has. Revision 0 is that of
// a missing key, as for IfAbsent.
func IfRevision(r uint64) WriteOption {
	return writeOption(func(o *writeOptions) {
		if r == 0 {
			o.absent = true
		}
		o.revision = r
	})
}

// TTL lets the key go away by itself after d, 100 ms to a year, unless it is written again. It
// counts from when the call was made: the key is never gone before, and goes within two
// seconds after as long as the cluster commits.
func TTL(d time.Duration) WriteOption {
	return writeOption(func(o *writeOptions) {
		o.ttl = d
		if d <= 0 {
			o.wrong = "TTL must be positive"
		}
	})
}

// WithLease binds the key to a lease: it goes away when that ends. The call fails with
// NoSuchLease if that has ended already.
func WithLease(id uint64) WriteOption {
	return writeOption(func(o *writeOptions) {
		o.lease = id
		if id == 0 {
			o.wrong = "a lease's ID is not 0"
		}
	})
}

// Limit ends a list after n items, and a Groups after n items and groups.
func Limit(n int) ListOption {
	return listOption(func(o *listOptions) {
		o.limit = n
		if n <= 0 {
			o.wrong = "Limit must be positive"
		}
	})
}

// StartAfter begins behind a key in the direction of the list, such as the last one that
// was told before; the key need not be there.
func StartAfter(key string) ListOption { return listOption(func(o *listOptions) { o.after = key }) }

// Start leaves out keys before key.
func Start(key string) ListOption { return listOption(func(o *listOptions) { o.start = key }) }

// End leaves out key and those behind it.
func End(key string) ListOption { return listOption(func(o *listOptions) { o.end = key }) }

// Reverse lists from the last key to the first.
func Reverse() ListOption { return listOption(func(o *listOptions) { o.reverse = true }) }

// KeysOnly leaves out values.
func KeysOnly() ListOption { return listOption(func(o *listOptions) { o.keysOnly = true }) }

// OneRevision lists what was there at one revision, however much it is, in one stream that a
// node holds open: a break is an error, and a reader has to take 1 MiB a second. Without it a
// list is read in pages, and each may be of a later revision than the one before.
func OneRevision() ListOption { return listOption(func(o *listOptions) { o.one = true }) }

// reads applies options to a query; the text says what is wrong with them.
func (c *Client) reads(opts []ReadOption, q url.Values) string {
	var o readOptions
	for _, opt := range opts {
		if opt != nil {
			opt.applyRead(&o)
		}
	}
	return o.add(c, q)
}

func (o *readOptions) add(c *Client, q url.Values) string {
	if o.wrong != "" {
		return o.wrong
	}
	least := o.minRevision
	if o.ownWrites {
		least = max(least, c.Revision())
	}
	switch {
	case o.stale && (o.ownWrites || o.minRevision > 0):
		return "Stale goes with neither MinRevision nor ReadYourWrites"
	case o.stale:
		q.Set("consistency", "stale")
	case least > 0:
		q.Set("min_revision", strconv.FormatUint(least, 10))
	}
	if o.maxAge > 0 && (o.stale || least > 0) {
		q.Set("max_age", o.maxAge.String())
	} else if o.maxAge > 0 && !o.ownWrites {
		return "MaxAge goes with Stale, MinRevision or ReadYourWrites"
	}
	return ""
}

// writes reads options; the text says what is wrong with them.
func writes(opts []WriteOption) (o writeOptions, wrong string) {
	for _, opt := range opts {
		if opt != nil {
			opt.applyWrite(&o)
		}
	}
	switch {
	case o.wrong != "":
	case o.absent && (o.present || o.revision > 0):
		o.wrong = "IfAbsent goes with neither IfPresent nor IfRevision"
	case o.ttl > 0 && o.lease > 0:
		o.wrong = "a key has a TTL or a lease, not both"
	}
	return o, o.wrong
}

// headers are the conditions.
func (o *writeOptions) headers() http.Header {
	h := make(http.Header, 1)
	switch {
	case o.absent:
		h.Set("If-None-Match", "*")
	case o.revision > 0:
		h.Set("If-Match", strconv.Quote(strconv.FormatUint(o.revision, 10)))
	case o.present:
		h.Set("If-Match", "*")
	}
	return h
}

// life puts how long the key lives into a query.
func (o *writeOptions) life(q url.Values) {
	if o.ttl > 0 {
		q.Set("ttl", o.ttl.String())
	}
	if o.lease > 0 {
		q.Set("lease", strconv.FormatUint(o.lease, 10))
	}
}

func (o *writeOptions) conditional() bool { return o.absent || o.present || o.revision > 0 }

// badKey says what keeps a text from being a key; "" if nothing does.
func badKey(key string) string {
	if key == "" {
		return "the key is empty"
	}
	return badPrefix(key)
}

// badPrefix is badKey for a text that may be empty.
func badPrefix(key string) string {
	switch {
	case len(key) > maxKey:
		return "the key has " + strconv.Itoa(len(key)) + " bytes, more than " + strconv.Itoa(maxKey)
	case !utf8.ValidString(key):
		return "the key is not UTF-8"
	}
	for i := range len(key) {
		if key[i] == 0 {
			return "the key has a NUL"
		}
	}
	return ""
}
