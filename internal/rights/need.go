package rights

import (
	"fmt"
	"strings"
)

// Right is a kind of what a client may do.
type Right uint8

// The rights. Read and Write are of keys, the others of the node or of its cluster.
const (
	Read   Right = iota // of keys: get, list, count, stream, wait for, watch, compare
	Write               // of keys: put, delete, append, and the leases that keys are bound to
	Backup              // a copy of all there is
	Status              // members, status, metrics, and all that the probes have to say
	Admin               // all of these on all keys, and changes of members, the leader, profiles

	rightsCount = int(iota)
)

var rightNames = [rightsCount]string{"read", "write", "backup", "status", "admin"}

// String returns the name that the file has for a right.
func (r Right) String() string { return rightNames[r] }

// ofKeys reports whether a right is given for some keys.
func (r Right) ofKeys() bool { return r == Read || r == Write }

// Need is what a request needs a right for. It is made of what the request says, never of
// what is there.
type Need struct {
	right Right
	kind  needKind
	// A key and a prefix are from. A range is from inclusive to to, which is exclusive and,
	// where it is empty, has no end.
	from, to string
}

type needKind uint8

const (
	nothing  needKind = iota
	ofNode            // no keys
	anything          // read or write, of any key
	someKey
	oneKey
	allBelow
	between
)

// Nothing is the need of what all may do.
func Nothing() Need { return Need{} }

// OfNode is the need of a right that is not of keys.
func OfNode(r Right) Need { return Need{right: r, kind: ofNode} }

// OnAnything is the need to read or to write at least one key.
func OnAnything() Need { return Need{right: Read, kind: anything} }

// OnSome is the need of a right on at least one key, whichever that is.
func OnSome(r Right) Need { return Need{right: r, kind: someKey} }

// OnKey is the need of a right on one key.
func OnKey(r Right, key string) Need { return Need{right: r, kind: oneKey, from: key} }

// OnPrefix is the need of a right on all keys that begin with a prefix; "" is all keys.
func OnPrefix(r Right, prefix string) Need { return Need{right: r, kind: allBelow, from: prefix} }

// OnRange is the need of a right on all keys that begin with a prefix, are not below start,
// and are below end; an empty end is none.
func OnRange(r Right, prefix, start, end string) Need {
	n := Need{right: r, kind: between, from: max(prefix, start), to: behind(prefix)}
	if end != "" && (n.to == "" || end < n.to) {
		n.to = end
	}
	if start <= prefix && n.to == behind(prefix) {
		return OnPrefix(r, prefix)
	}
	return n
}

// behind returns the lowest text that is above all that begin with a prefix; "" is none.
func behind(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if c := prefix[i]; c != 0xff {
			return prefix[:i] + string([]byte{c + 1})
		}
	}
	return ""
}

// within reports whether all keys that a need is of begin with a prefix. Where it is of no
// key at all, since its end is below its start, it may say either.
func (n *Need) within(prefix string) bool {
	if !strings.HasPrefix(n.from, prefix) {
		return false
	}
	if n.kind != between || prefix == "" {
		return true
	}
	end := behind(prefix)
	return end == "" || n.to != "" && n.to <= end
}

// clipped bounds what a message repeats of a key.
const clipped = 64

func clip(s string) string {
	if len(s) > clipped {
		return s[:clipped] + "..."
	}
	return s
}

// String says what for a right is needed, as in: write on the key "a".
func (n Need) String() string {
	switch n.kind {
	case nothing:
		return "nothing"
	case anything:
		return "read or write on any key"
	case someKey:
		return n.right.String() + " on any key"
	case oneKey:
		return fmt.Sprintf("%s on the key %q", n.right, clip(n.from))
	case allBelow:
		if n.from == "" {
			return fmt.Sprintf(`%s on all keys (prefix "")`, n.right)
		}
		return fmt.Sprintf("%s on all keys that begin with %q", n.right, clip(n.from))
	case between:
		if n.to == "" {
			return fmt.Sprintf("%s on all keys from %q on", n.right, clip(n.from))
		}
		return fmt.Sprintf("%s on all keys from %q to below %q", n.right, clip(n.from), clip(n.to))
	}
	return n.right.String()
}
