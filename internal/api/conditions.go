package api

import (
	"fmt"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strconv"
	"strings"
)

// Conditional requests (RFC 9110 §13). The entity tag of a key is the revision
// of its last change, in quotes. It is a strong one: two answers with the same
// tag and the same Content-Type are the same bytes.

// preconditions are what a request's If-Match and If-None-Match ask of the key.
type preconditions struct {
	match, noneMatch *tagList // nil: the request has no such header
}

// tagList is the value of one of these headers.
type tagList struct {
	any  bool // it is *, for whatever there is
	tags []entityTag
}

// entityTag is a tag of a request, of this store or not.
type entityTag struct {
	weak   bool
	opaque string // without the quotes
}

func (t entityTag) String() string {
	if t.weak {
		return `W/"` + t.opaque + `"`
	}
	return `"` + t.opaque + `"`
}

// revision returns the revision that the tag stands for, leaving aside that it
// may be weak. False: this store gives out no such tag.
func (t entityTag) revision() (uint64, bool) {
	rev, err := strconv.ParseUint(t.opaque, 10, 64)
	return rev, err == nil && strconv.FormatUint(rev, 10) == t.opaque
}

// parsePreconditions reads the lines of a request's If-Match and If-None-Match.
func parsePreconditions(match, noneMatch []string) (p preconditions, err error) {
	if p.match, err = parseTags("If-Match", match); err != nil {
		return p, err
	}
	p.noneMatch, err = parseTags("If-None-Match", noneMatch)
	return p, err
}

// parseTags reads a header that is * or a list of tags. Several lines of it are
// one list (RFC 9110 §5.3). A header that is empty is refused, although the RFC
// would let it pass: somebody's variable was empty, and what was to be
// conditional must not happen without its condition.
func parseTags(name string, lines []string) (*tagList, error) {
	if lines == nil {
		return nil, nil
	}
	rest := strings.Trim(strings.Join(lines, ","), " \t")
	if rest == "*" {
		return &tagList{any: true}, nil
	}
	list := &tagList{}
	for {
		if rest = strings.TrimLeft(rest, " \t,"); rest == "" {
			break
		}
		tag, behind, ok := cutEntityTag(rest)
		if rest = strings.TrimLeft(behind, " \t"); !ok || rest != "" && rest[0] != ',' {
			return nil, fmt.Errorf(`%w: %s: %s; expected *, or what an ETag was, with its quotes, as in "17"`,
				problem.ErrBadRequest, name, web.Clip(strings.Join(lines, ", ")))
		}
		list.tags = append(list.tags, tag)
	}
	if len(list.tags) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", problem.ErrBadRequest, name)
	}
	return list, nil
}

// cutEntityTag takes the tag off the beginning of s (RFC 9110 §8.8.3).
func cutEntityTag(s string) (tag entityTag, rest string, ok bool) {
	rest, tag.weak = strings.CutPrefix(s, "W/")
	rest, quoted := strings.CutPrefix(rest, `"`)
	tag.opaque, rest, ok = strings.Cut(rest, `"`)
	bad := strings.ContainsFunc(tag.opaque, func(c rune) bool { return c <= ' ' || c == 0x7f })
	return tag, rest, ok && quoted && !bad
}

// has reports whether the list names an item. Weak tags count for If-None-Match
// and not for If-Match (RFC 9110 §13.1): what the first asks is whether a copy is
// still good enough, and the second whether nothing at all has changed.
func (l *tagList) has(it *state.Item, weakly bool) bool {
	if it == nil {
		return false
	}
	if l.any {
		return true
	}
	for _, t := range l.tags {
		if rev, ok := t.revision(); ok && rev == it.ModRevision && (weakly || !t.weak) {
			return true
		}
	}
	return false
}

// OfRead decides the conditions of a read: problem.ErrPrecondition for 412, and whether
// the client has the value already.
func (p preconditions) OfRead(it *state.Item) (unchanged bool, err error) {
	if p.match != nil && !p.match.has(it, false) {
		return false, problem.ErrPrecondition
	}
	return p.noneMatch != nil && p.noneMatch.has(it, true), nil
}

// OfWrite puts the conditions of a write into the form in which they are decided
// in the log. An error that is problem.ErrPrecondition says that no state of the key can
// fulfil them.
func (p preconditions) OfWrite() (state.Condition, error) {
	switch {
	case p.noneMatch != nil && !p.noneMatch.any:
		return state.Condition{}, fmt.Errorf("%w: If-None-Match on a write takes only *", problem.ErrBadRequest)
	case p.match != nil && len(p.match.tags) > 1:
		return state.Condition{}, fmt.Errorf("%w: If-Match on a write takes one tag, not a list", problem.ErrBadRequest)
	case p.match != nil && p.noneMatch != nil:
		return state.Condition{}, fmt.Errorf("%w: If-Match wants the key to be there, If-None-Match wants it not to be", problem.ErrPrecondition)
	case p.noneMatch != nil:
		return state.Condition{Kind: state.IfMissing}, nil
	case p.match == nil:
		return state.Condition{}, nil
	case p.match.any:
		return state.Condition{Kind: state.IfExists}, nil
	}
	tag := p.match.tags[0]
	rev, ours := tag.revision()
	switch {
	case !ours:
		return state.Condition{}, fmt.Errorf("%w: this store gives out no tag like %s", problem.ErrPrecondition, web.Clip(tag.String()))
	case tag.weak:
		return state.Condition{}, fmt.Errorf(`%w: a weak tag never matches on a write. This store gave out "%d"; `+
			"what is between made %s of it, as proxies do that compress", problem.ErrPrecondition, rev, tag)
	}
	return state.Condition{Kind: state.IfAtRevision, Revision: rev}, nil
}

// WriteCondition reads what a request that writes a key asks of it, as preconditions.OfWrite
// has it.
func WriteCondition(r *http.Request) (state.Condition, error) {
	p, err := parsePreconditions(r.Header["If-Match"], r.Header["If-None-Match"])
	if err != nil {
		return state.Condition{}, err
	}
	return p.OfWrite()
}

// Etag returns the entity tag of a key at a revision: the number in quotes.
func Etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }
