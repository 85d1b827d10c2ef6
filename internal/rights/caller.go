package rights

import (
	"context"
	"fmt"
	"raftkv/internal/problem"
	"slices"
	"strings"
)

// Caller is who asks, and what that one may do. It does not change. A nil *Caller is that of
// a node without rights: it may do everything, and has no name.
type Caller struct {
	name   string
	all    bool // admin
	given  [rightsCount]bool
	scopes [Admin]scope // of the rights of keys
}

// scope are the keys that a right is given for.
type scope struct {
	keys     map[string]struct{}
	prefixes []string // ascending; none begins with another
}

// Of returns a caller of a name who may do everything, or nothing at all.
func Of(name string, admin bool) *Caller { return &Caller{name: name, all: admin} }

// Name returns the name of the entry, which is the owner of idempotency keys, too; ""
// is nobody's: of who has sent nothing that tells who it is, or of a node without rights.
func (c *Caller) Name() string {
	if c == nil {
		return ""
	}
	return c.name
}

// nobody owns the leases of who has sent nothing that tells who it is. No entry has that name.
const nobody = "anonymous"

// Owner returns the owner of a caller's leases: the name, and for nobody known another than "",
// which those have that were made without rights. They are for who may do everything alone: the
// keys that go with them may be any.
func (c *Caller) Owner() string {
	if c != nil && c.name == "" {
		return nobody
	}
	return c.Name()
}

// Admin reports whether a caller may do everything, which it may on a node without rights.
func (c *Caller) Admin() bool { return c == nil || c.all }

// May returns nil if a caller may do all that is needed. Else the error says which right it
// lacks: problem.ErrForbidden, or, where it is not known who asks, problem.ErrUnauthenticated.
// It is decided from the needs alone.
func (c *Caller) May(needs ...Need) error {
	if c == nil || c.all {
		return nil
	}
	for i := range needs {
		if c.has(&needs[i]) {
			continue
		}
		if c.name == "" {
			return fmt.Errorf("%w: it takes the right %s", problem.ErrUnauthenticated, needs[i])
		}
		return fmt.Errorf("%w: %s lacks the right %s", problem.ErrForbidden, c.name, needs[i])
	}
	return nil
}

// has reports whether a caller that is no admin has what is needed.
func (c *Caller) has(n *Need) bool {
	if n.kind == nothing {
		return true
	}
	if n.kind == ofNode {
		return c.given[n.right] && !n.right.ofKeys()
	}
	if !n.right.ofKeys() {
		return false
	}
	s := &c.scopes[n.right]
	switch n.kind {
	case anything:
		return c.given[Read] || c.given[Write]
	case someKey:
		return c.given[n.right]
	case oneKey:
		if _, ok := s.keys[n.from]; ok {
			return true
		}
	}
	// No prefix begins with another, so only the highest one that is not above it can be one
	// with which the need begins.
	i, found := slices.BinarySearch(s.prefixes, n.from)
	if !found {
		i--
	}
	return i >= 0 && n.within(s.prefixes[i])
}

// give adds a right on some keys.
func (c *Caller) give(r Right, keys, prefixes []string) {
	c.given[r] = true
	if r == Admin {
		c.all = true
	}
	if !r.ofKeys() {
		return
	}
	s := &c.scopes[r]
	for _, k := range keys {
		if s.keys == nil {
			s.keys = make(map[string]struct{})
		}
		s.keys[k] = struct{}{}
	}
	all := slices.Sorted(slices.Values(append(s.prefixes, prefixes...)))
	s.prefixes = nil
	for _, p := range all { // a prefix stands before what begins with it
		if n := len(s.prefixes); n == 0 || !strings.HasPrefix(p, s.prefixes[n-1]) {
			s.prefixes = append(s.prefixes, p)
		}
	}
}

// admitted is what a context knows of who asks.
type admitted struct {
	caller *Caller
	// Where it is known by what the caller was recognized, it can be asked again.
	keeper *Keeper
	shown  Shown
}

type contextKey struct{}

// With returns a context of a request of a caller.
func With(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, contextKey{}, &admitted{caller: c})
}

// CallerOf returns who asks. It is nil where there are no rights: then all is allowed.
func CallerOf(ctx context.Context) *Caller {
	if a, ok := ctx.Value(contextKey{}).(*admitted); ok {
		return a.caller
	}
	return nil
}
