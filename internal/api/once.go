package api

import (
	"fmt"
	"net/http"
	"raftkv/internal/once"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strings"
)

// Requests with an Idempotency-Key: each happens once, however often it is sent, to
// whichever node.

// requestKey is what a request's Idempotency-Key says, and whose it is.
type requestKey struct {
	set    bool
	shared bool // there are others who have a right to the room for outcomes
	key    once.Key
	class  once.Class
}

// by makes the key that of a caller: the same key of another one is another key.
func (k *requestKey) by(caller *rights.Caller) {
	k.shared, k.key.Owner = caller != nil, caller.Name()
}

// CheckIdempotencyKey returns problem.ErrBadRequest for an Idempotency-Key that is none,
// where nothing is to be done once.
func CheckIdempotencyKey(r *http.Request) error {
	_, err := parseRequestKey(r.Header["Idempotency-Key"])
	return err
}

// keeps are the values of keep.
var keeps = map[string]once.Class{"10": once.TenSeconds, "60": once.Minute, "600": once.TenMinutes}

// parseRequestKey reads the lines of an Idempotency-Key: a string as RFC 9651 has it, with
// the parameter keep, or a word without quotes, which is the same key as the string of its
// characters.
func parseRequestKey(lines []string) (k requestKey, err error) {
	if lines == nil {
		return k, nil
	}
	bad := func(why string) (requestKey, error) {
		return k, fmt.Errorf(`%w: Idempotency-Key: %s: %s; expected 1 to %d visible characters, as in "KEY" or "KEY";keep=60`,
			problem.ErrBadRequest, why, web.Clip(strings.Join(lines, ", ")), once.MaxName)
	}
	if len(lines) > 1 {
		return bad("it is there more than once")
	}
	text, params := lines[0], ""
	if rest, quoted := strings.CutPrefix(text, `"`); quoted {
		ok := false
		if text, params, ok = cutString(rest); !ok {
			return bad("it is no string")
		}
	} else if strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`",;\`, c) }) {
		return bad("without quotes it has no spaces and none of \" , ; \\")
	}
	if text == "" || len(text) > once.MaxName {
		return bad(fmt.Sprintf("it has %d characters", len(text)))
	}
	k = requestKey{set: true, key: once.Key{Name: text}, class: once.TenMinutes}
	if params == "" {
		return k, nil
	}
	keep, ok := strings.CutPrefix(strings.TrimLeft(params[1:], " "), "keep=")
	class, known := keeps[keep]
	switch {
	case params[0] != ';' || !ok:
		return bad("the only parameter is keep")
	case !known:
		return bad("keep is 10, 60 or 600 seconds")
	}
	k.class = class
	return k, nil
}

// cutString takes the rest of a string off the beginning of s (RFC 9651 §4.2.5).
func cutString(s string) (text, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", "", false
			}
			b.WriteByte(s[i])
		case c < ' ' || c > '~':
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// begin begins a command with what makes it one that happens once, if it is to be.
func (k *requestKey) begin(b []byte) []byte {
	if !k.set {
		return b
	}
	return state.AppendOnceHead(b, k.key, k.class)
}

// overhead is how many bytes begin appends at most.
func (k *requestKey) overhead() int {
	if !k.set {
		return 0
	}
	return state.OnceOverhead + len(k.key.Owner) + len(k.key.Name)
}

const (
	// outcomeBytes is about what the outcome of a command takes.
	outcomeBytes = 48
	// numberBytes is what a number in it takes at most.
	numberBytes = 10
)

// growth returns by how much a request makes the store grow, nothing if it is a repeat:
// that must get its answer where nothing new is let in.
func (a *Admission) growth(k requestKey, first int) int {
	if k.set && a.Outcomes.Known(k.key) {
		return NoGrowth
	}
	return first
}

// admitOnce is Admit for a command that can be under an Idempotency-Key, and whose outcome
// has so many numbers beside those of every one.
func (a *Admission) admitOnce(k requestKey, key string, growth int, level uint64, numbers int) (release func(), err error) {
	if !k.set {
		return a.Admit(key, growth, level)
	}
	room, err := a.Admit(key, growth, max(level, state.OnceLevel))
	if err != nil {
		return nil, err
	}
	outcome, err := a.Outcomes.Reserve(k.key, outcomeBytes+numberBytes*numbers, k.shared)
	if err != nil {
		room()
		return nil, err
	}
	return func() { room(); outcome() }, nil
}

// Change is a command of a client on its way into the log.
type Change struct {
	Command []byte
	// Like is that which a repeat under the same Idempotency-Key has to have in common;
	// nil: the command. The owner of a lease is no part of it, since who may do everything
	// finds none any more once the lease has ended.
	Like    []byte
	Growth  int    // as Admit has it
	Level   uint64 // likewise
	Numbers int    // that its outcome has at most, beside those of every one
}

// DoOnce is Do for a request that may have an Idempotency-Key. Where it is a repeat the
// answer says so.
func (c *Commands) DoOnce(w http.ResponseWriter, r *http.Request, ch Change) (state.Result, error) {
	k, err := parseRequestKey(r.Header["Idempotency-Key"])
	if err != nil {
		return state.Result{}, err
	}
	k.by(rights.CallerOf(r.Context()))
	cmd := ch.Command
	if k.set {
		if ch.Like == nil {
			ch.Like = cmd
		}
		cmd = state.EncodeOnce(k.key, k.class, cmd, ch.Like)
		ch.Growth = c.growth(k, ch.Growth)
	}
	res, err := c.do(r.Context(), cmd, ch.Growth, func() (func(), error) {
		return c.admitOnce(k, "", ch.Growth, ch.Level, ch.Numbers)
	})
	if res.Replayed {
		w.Header().Set(replayed.Name, replayed.Value)
	}
	return res, err
}

// replayed says that an answer is that which the same request got before.
var replayed = web.Field{Name: "Idempotent-Replayed", Value: "true"}
