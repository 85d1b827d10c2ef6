package api

import (
	"errors"
	"net/http"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"strings"
	"testing"
)

// Guarantee: a condition means what RFC 9110 says, or is refused; none is half
// understood. Each case is decided for a key at revision 7 and for one that is
// not there.
func TestPreconditions(t *testing.T) {
	const (
		ok   = "holds"
		not  = "unchanged"
		fail = "fails"
		bad  = "bad"
	)
	at := func(rev uint64) state.Condition { return state.Condition{Kind: state.IfAtRevision, Revision: rev} }
	none, exists, missing := state.Condition{}, state.Condition{Kind: state.IfExists}, state.Condition{Kind: state.IfMissing}
	never, refused := state.Condition{Kind: 254}, state.Condition{Kind: 255}
	for _, tt := range []struct {
		headers  string // one a line
		there    string // what a read of the key comes to
		notThere string
		write    state.Condition
	}{
		{headers: "", there: ok, notThere: ok, write: none},
		{headers: "If-Match: *", there: ok, notThere: fail, write: exists},
		{headers: "If-None-Match: *", there: not, notThere: ok, write: missing},
		{headers: `If-Match: "7"`, there: ok, notThere: fail, write: at(7)},
		{headers: `If-Match: "8"`, there: fail, notThere: fail, write: at(8)},
		{headers: `If-Match: "0"`, there: fail, notThere: fail, write: at(0)},
		{headers: `If-Match: "18446744073709551615"`, there: fail, notThere: fail, write: at(1<<64 - 1)},
		{headers: `If-None-Match: "7"`, there: not, notThere: ok, write: refused},
		{headers: `If-None-Match: "8"`, there: ok, notThere: ok, write: refused},
		// Weak ones: good enough for a copy, not for a change.
		{headers: `If-Match: W/"7"`, there: fail, notThere: fail, write: never},
		{headers: `If-Match: W/"8"`, there: fail, notThere: fail, write: never},
		{headers: `If-None-Match: W/"7"`, there: not, notThere: ok, write: refused},
		{headers: `If-None-Match: W/"8"`, there: ok, notThere: ok, write: refused},
		// Tags of others, and ours as somebody changed them.
		{headers: `If-Match: ""`, there: fail, notThere: fail, write: never},
		{headers: `If-Match: "07"`, there: fail, notThere: fail, write: never},
		{headers: `If-Match: "+7"`, there: fail, notThere: fail, write: never},
		{headers: `If-Match: "7-gzip"`, there: fail, notThere: fail, write: never},
		{headers: `If-Match: "18446744073709551616"`, there: fail, notThere: fail, write: never},
		{headers: `If-None-Match: ""`, there: ok, notThere: ok, write: refused},
		{headers: `If-None-Match: "x,y"`, there: ok, notThere: ok, write: refused},
		{headers: `If-None-Match: "07"`, there: ok, notThere: ok, write: refused},
		{headers: "If-None-Match: \"\xc3\xa4\xff\"", there: ok, notThere: ok, write: refused},
		// Lists, in all their forms.
		{headers: `If-Match: "6", "7"`, there: ok, notThere: fail, write: refused},
		{headers: `If-Match: "6",W/"7"`, there: fail, notThere: fail, write: refused},
		{headers: `If-Match: "7",`, there: ok, notThere: fail, write: at(7)},
		{headers: "If-Match: \"6\"\nIf-Match: \"7\"", there: ok, notThere: fail, write: refused},
		{headers: "If-Match: \"7\"\nIf-Match: \"7\"", there: ok, notThere: fail, write: refused},
		{headers: `If-None-Match: "6", "7"`, there: not, notThere: ok, write: refused},
		{headers: `If-None-Match: "x,""7"`, there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: ,\t\"6\" ,, \"a,b\",W/\"7\" ,", there: not, notThere: ok, write: refused},
		{headers: "If-None-Match: \"6\"\nIf-None-Match: W/\"7\"", there: not, notThere: ok, write: refused},
		{headers: `If-None-Match: "6", W/"8"`, there: ok, notThere: ok, write: refused},
		// Both must hold, the first first (RFC 9110 §13.2.2).
		{headers: "If-Match: \"7\"\nIf-None-Match: *", there: not, notThere: fail, write: never},
		{headers: "If-Match: *\nIf-None-Match: *", there: not, notThere: fail, write: never},
		{headers: "If-Match: \"8\"\nIf-None-Match: \"7\"", there: fail, notThere: fail, write: refused},
		{headers: "If-Match: \"7\"\nIf-None-Match: \"8\"", there: ok, notThere: fail, write: refused},
		// What is no condition.
		{headers: "If-Match: ", there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: ", there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: , ,", there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: *\nIf-Match: ", there: bad, notThere: bad, write: refused},
		{headers: `If-Match: 7`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: "7`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: 7"`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: ""7""`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: " 7"`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: w/"7"`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: W/ "7"`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: W/7`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: *, "7"`, there: bad, notThere: bad, write: refused},
		{headers: `If-Match: "7" "8"`, there: bad, notThere: bad, write: refused},
		{headers: `If-None-Match: "7""8"`, there: bad, notThere: bad, write: refused},
		{headers: `If-None-Match: "`, there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: *\nIf-None-Match: *", there: bad, notThere: bad, write: refused},
		{headers: "If-None-Match: *\nIf-None-Match: \"7\"", there: bad, notThere: bad, write: refused},
	} {
		h := make(http.Header)
		for line := range strings.Lines(tt.headers) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			h.Add(name, value)
		}
		pre, perr := parsePreconditions(h["If-Match"], h["If-None-Match"])
		for it, want := range map[*state.Item]string{{ModRevision: 7}: tt.there, nil: tt.notThere} {
			unchanged, err := pre.OfRead(it)
			got := ok
			switch {
			case errors.Is(perr, problem.ErrBadRequest):
				got = bad
			case errors.Is(err, problem.ErrPrecondition):
				got = fail
			case unchanged:
				got = not
			}
			if got != want {
				t.Errorf("%q, key %v: a read comes to %s, want %s", tt.headers, it != nil, got, want)
			}
		}
		cond, err := pre.OfWrite()
		switch {
		case perr != nil || errors.Is(err, problem.ErrBadRequest):
			cond = refused
		case errors.Is(err, problem.ErrPrecondition):
			cond = never
		}
		if cond != tt.write {
			t.Errorf("%q: a write is %+v, %v; want %+v", tt.headers, cond, err, tt.write)
		}
	}
}
