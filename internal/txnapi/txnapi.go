// Package txnapi answers: what do the HTTP resources about transactions, additions and
// prefixes ask and say? What such a command does is decided where it is applied, in
// packages txn and state; here requests are read strictly, and bounded before they are
// proposed.
package txnapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/lease"
	"raftkv/internal/limits"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/txn"
	"raftkv/internal/web"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Txns serves /v1/txn, /v1/add, and the writes of /v1/kv itself.
type Txns struct {
	Commands *api.Commands
	api.Owners
	Bodies   *limits.BodyBudget
	MaxValue int64 // bytes
}

// checkPrefix returns problem.ErrBadRequest if no key can have a prefix, or if there is no
// room behind it for so many bytes.
func checkPrefix(prefix string, room int) error {
	switch {
	case len(prefix) > config.MaxKeyBytes-room:
		return fmt.Errorf("%w: the prefix has %d bytes, %d are allowed", problem.ErrBadRequest, len(prefix), config.MaxKeyBytes-room)
	case !utf8.ValidString(prefix):
		return fmt.Errorf("%w: the prefix is not valid UTF-8", problem.ErrBadRequest)
	case strings.IndexByte(prefix, 0) >= 0:
		return fmt.Errorf("%w: the prefix has a NUL byte", problem.ErrBadRequest)
	}
	return nil
}

// checkAppend is checkPrefix for a prefix under which a key is to be named.
func checkAppend(prefix string) error {
	if prefix == "" {
		return fmt.Errorf("%w: prefix is missing or empty, as in prefix=jobs/", problem.ErrBadRequest)
	}
	return checkPrefix(prefix, txn.NameLength)
}

// costOf is what the lease counts for that a lifetime makes.
func costOf(life state.Lifetime) int {
	if life.Kind == state.ForTTL {
		return lease.Cost
	}
	return 0
}

// query reads the parameters of a request that can take no conditions.
func query(r *http.Request, names ...string) (url.Values, error) {
	if err := web.NoConditions(r); err != nil {
		return nil, err
	}
	return web.Query(r.URL.RawQuery, names...)
}

// ServeAppend serves POST /v1/kv?prefix=P.
func (a *Txns) ServeAppend(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "prefix", "ttl", "lease")
	if err != nil {
		return err
	}
	prefix := q.Get("prefix")
	if err := checkAppend(prefix); err != nil {
		return err
	}
	if err := rights.CallerOf(r.Context()).May(rights.OnPrefix(rights.Write, prefix)); err != nil {
		return err
	}
	life, err := api.LifetimeIn(q)
	if err != nil {
		return err
	}
	if r.Header["Content-Range"] != nil {
		return fmt.Errorf("%w: a part of a value cannot be written", problem.ErrBadRequest)
	}
	ownerless := state.AppendAppendHead(nil, life, prefix)
	if life.Kind == state.WithLease {
		if life.Owner, err = a.Of(r.Context(), life.Value); err != nil {
			return err
		}
	}
	head := state.AppendAppendHead(nil, life, prefix)
	begins := len(head)
	cmd, err := a.body(w, r, head, a.MaxValue)
	if err != nil {
		return err
	}
	like := cmd
	if life.Owner != "" {
		like = append(ownerless, cmd[begins:]...)
	}
	growth := len(prefix) + txn.NameLength + len(cmd) - begins + costOf(life)
	res, err := a.Commands.DoOnce(w, r, api.Change{Command: cmd, Like: like, Growth: growth, Level: state.TxnLevel, Numbers: 1})
	if err != nil {
		return err
	}
	tell(w, res.Revision)
	w.Header().Set("Etag", api.Etag(res.Revision))
	w.Header().Set("Location", "/v1/kv/"+url.PathEscape(res.Txn.Results[0].Key))
	w.WriteHeader(http.StatusCreated)
	return nil
}

// body appends the body of a request to buf, unless it is larger than is allowed or the
// disk hangs.
func (a *Txns) body(w http.ResponseWriter, r *http.Request, buf []byte, most int64) ([]byte, error) {
	if r.ContentLength > most {
		return nil, fmt.Errorf("%w: %d bytes, %d are allowed", problem.ErrTooLarge, r.ContentLength, most)
	}
	buf, err := a.Bodies.Read(w, r, buf, most)
	return buf, web.BodyError(err)
}

// tell says which revision of the store an answer is of.
func tell(w http.ResponseWriter, revision uint64) {
	w.Header().Set("Raftkv-Revision", strconv.FormatUint(revision, 10))
}

// ServeDeletePrefix serves DELETE /v1/kv?prefix=P.
func (a *Txns) ServeDeletePrefix(w http.ResponseWriter, r *http.Request) error {
	q, err := query(r, "prefix", "all", "limit")
	if err != nil {
		return err
	}
	if q.Has("all") && q.Get("all") != "true" {
		return fmt.Errorf("%w: all is %q, not true", problem.ErrBadRequest, web.Clip(q.Get("all")))
	}
	prefix := q.Get("prefix")
	switch {
	case prefix == "" && !q.Has("all"):
		return fmt.Errorf("%w: no prefix is given; all=true deletes all keys", problem.ErrBadRequest)
	case prefix != "" && q.Has("all"):
		return fmt.Errorf("%w: all=true is for all keys, and there is a prefix", problem.ErrBadRequest)
	}
	if err := checkPrefix(prefix, 0); err != nil {
		return err
	}
	if err := rights.CallerOf(r.Context()).May(rights.OnPrefix(rights.Write, prefix)); err != nil {
		return err
	}
	limit := 0
	if q.Has("limit") {
		if limit, err = api.PageLimit(q); err != nil {
			return err
		}
	}
	res, err := a.Commands.DoOnce(w, r, api.Change{Command: state.EncodeDeletePrefix(prefix, uint64(limit), ""), Growth: api.NoGrowth, Level: state.TxnLevel})
	if err != nil {
		return err
	}
	tell(w, res.Deletion)
	web.WriteJSON(w, http.StatusOK, struct {
		Deleted  int    `json:"deleted"`
		Revision uint64 `json:"revision"`
		More     bool   `json:"more,omitempty"`
	}{res.Deleted, res.Deletion, res.More})
	return nil
}

// maxAddend is how long the body of an addition is at most.
const maxAddend = 64

// ServeAdd serves POST /v1/add?key=K.
func (a *Txns) ServeAdd(w http.ResponseWriter, r *http.Request) error {
	q, err := web.Query(r.URL.RawQuery, "key", "ttl")
	if err != nil {
		return err
	}
	key := q.Get("key")
	if err := api.CheckKey(key); err != nil {
		return err
	}
	// Its answer tells the value.
	if err := rights.CallerOf(r.Context()).May(rights.OnKey(rights.Read, key), rights.OnKey(rights.Write, key)); err != nil {
		return err
	}
	life, err := api.LifetimeIn(q)
	if err != nil {
		return err
	}
	body, err := a.body(w, r, nil, maxAddend)
	if err != nil {
		return err
	}
	delta, err := parseDelta(strings.TrimSuffix(string(body), "\n"))
	if err != nil {
		return err
	}
	cond, err := api.WriteCondition(r)
	if errors.Is(err, problem.ErrPrecondition) {
		return a.refuse(w, r, key, err)
	}
	if err != nil {
		return err
	}
	t := txn.Txn{Then: []txn.Op{{Kind: txn.Add, Key: key, Life: life}}}
	size, _, _ := t.Growth()
	res, err := a.Commands.DoOnce(w, r, api.Change{Command: state.EncodeAdd(cond, life, key, delta), Growth: size + costOf(life), Level: state.TxnLevel, Numbers: 1})
	if res.Revision != 0 {
		w.Header().Set("Etag", api.Etag(res.Revision))
	}
	if err != nil {
		return err
	}
	tell(w, res.Revision)
	number := strconv.FormatInt(res.Txn.Results[0].Number, 10)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, err = w.Write([]byte(number))
	return web.IgnoreWriteError(err)
}

// refuse answers where no state of the key can fulfil the condition.
func (a *Txns) refuse(w http.ResponseWriter, r *http.Request, key string, why error) error {
	if err := a.Fresh.Now(r.Context()); err != nil {
		return err
	}
	if err := a.Look(func(s *state.State) {
		if it := s.Get(key); it != nil {
			w.Header().Set("Etag", api.Etag(it.ModRevision))
		}
	}); err != nil {
		return err
	}
	return why
}

// parseDelta reads the number that is to be added.
func parseDelta(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is no decimal number of 64 bits with a sign", problem.ErrBadRequest, web.Clip(text))
	}
	return n, nil
}
