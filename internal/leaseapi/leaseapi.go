// Package leaseapi answers: what do the HTTP resources about leases ask and say? A lease
// belongs to its owner: whoever made it, by the name that the rights of the cluster know
// them by. To others it is not there, but to those who may do everything. Whose a lease is
// stands in the command, and is decided where that is applied, in package lease.
package leaseapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"raftkv/internal/api"
	"raftkv/internal/config"
	"raftkv/internal/lease"
	"raftkv/internal/list"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/state"
	"raftkv/internal/web"
	"strconv"
	"time"
)

// Leases serves /v1/leases and what is below it.
type Leases struct {
	Commands *api.Commands
	api.Owners
}

// minTTL is the least time of a lease, which requests keep alive.
const minTTL = time.Second

// leaseJSON is a lease in an answer.
type leaseJSON struct {
	ID      uint64  `json:"id"`
	TTL     float64 `json:"ttl_seconds"`
	Expires float64 `json:"expires_in_seconds"`
	Keys    uint32  `json:"key_count"`
	Owner   string  `json:"owner,omitempty"` // for who sees those of others
}

// leaseOf tells a lease to a caller.
func leaseOf(caller *rights.Caller, l state.Leased) leaseJSON {
	out := leaseJSON{ID: l.ID, TTL: inSeconds(l.TTL), Expires: inSeconds(l.Remaining), Keys: l.Keys}
	if caller.Admin() {
		out.Owner = l.Owner
	}
	return out
}

// inSeconds is how durations stand in answers.
func inSeconds(ms uint64) float64 { return float64(ms) / 1000 }

// ServeGrant serves POST /v1/leases.
func (a *Leases) ServeGrant(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		TTL *string `json:"ttl"`
	}
	if err := web.NoConditions(r); err != nil {
		return err
	}
	if err := web.ReadJSON(w, r, api.MaxMemberBytes, &body); err != nil {
		return err
	}
	if body.TTL == nil {
		return fmt.Errorf(`%w: ttl is missing, as in {"ttl":"10s"}`, problem.ErrBadRequest)
	}
	ttl, err := web.Duration("ttl", *body.TTL, minTTL, api.MaxTTL)
	if err != nil {
		return err
	}
	owner := rights.CallerOf(r.Context()).Owner()
	res, err := a.Commands.DoOnce(w, r, api.Change{
		Command: state.EncodeGrant(api.InMillis(ttl), owner), Like: state.EncodeGrant(api.InMillis(ttl), ""),
		Growth: lease.Cost + len(owner), Level: state.LeaseLevel,
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/v1/leases/%d", res.Lease))
	web.WriteJSON(w, http.StatusCreated, struct {
		ID  uint64  `json:"id"`
		TTL float64 `json:"ttl_seconds"`
	}{res.Lease, inSeconds(res.TTL)})
	return nil
}

// ServeLease serves GET, PUT and DELETE of /v1/leases/ID.
func (a *Leases) ServeLease(w http.ResponseWriter, r *http.Request, path string) error {
	id, ok := api.ParseLeaseID(path)
	if !ok {
		return fmt.Errorf("%w: /v1/leases/%s: expected the ID of a lease, a positive decimal number", problem.ErrBadRequest, web.Clip(path))
	}
	return web.Methods{
		"GET":    func(w http.ResponseWriter, r *http.Request) error { return a.show(w, r, id) },
		"PUT":    web.Bare(func(w http.ResponseWriter, r *http.Request) error { return a.keep(w, r, id) }),
		"DELETE": web.Bare(func(w http.ResponseWriter, r *http.Request) error { return a.revoke(w, r, id) }),
	}.Serve(w, r)
}

// keep gives a lease its whole time again, from when the request was sent at least.
func (a *Leases) keep(w http.ResponseWriter, r *http.Request, id uint64) error {
	if err := plain(r); err != nil {
		return err
	}
	if err := noBody(r); err != nil {
		return err
	}
	owner, err := a.Of(r.Context(), id)
	if err != nil {
		return err
	}
	res, err := a.Commands.Do(r.Context(), state.EncodeKeep(id, owner), api.NoGrowth, state.LeaseLevel)
	if err != nil {
		return err
	}
	web.WriteJSON(w, http.StatusOK, struct {
		ID      uint64  `json:"id"`
		TTL     float64 `json:"ttl_seconds"`
		Expires float64 `json:"expires_in_seconds"`
	}{id, inSeconds(res.TTL), inSeconds(res.TTL)})
	return nil
}

// plain refuses what a request about one lease does not take.
func plain(r *http.Request) error {
	if err := web.NoConditions(r); err != nil {
		return err
	}
	return web.NoIdempotencyKey(r)
}

// noBody refuses a body: who sends one believes that it changes the lease's time.
func noBody(r *http.Request) error {
	var first [1]byte
	n, err := io.ReadFull(r.Body, first[:])
	switch {
	case n > 0:
		return fmt.Errorf("%w: PUT /v1/leases/ID takes no body: a lease keeps the time that it was made with", problem.ErrBadRequest)
	case errors.Is(err, io.EOF):
		return nil
	}
	return web.BodyError(err)
}

func (a *Leases) revoke(w http.ResponseWriter, r *http.Request, id uint64) error {
	if err := plain(r); err != nil {
		return err
	}
	owner, err := a.Of(r.Context(), id)
	if err != nil {
		return err
	}
	res, err := a.Commands.Do(r.Context(), state.EncodeRevoke(id, owner), api.NoGrowth, state.LeaseLevel)
	if err != nil {
		return err
	}
	w.Header().Set("Raftkv-Revision", strconv.FormatUint(res.Deletion, 10))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// show answers with a lease and a page of its keys.
func (a *Leases) show(w http.ResponseWriter, r *http.Request, id uint64) error {
	after := ""
	limit, err := a.prepare(w, r, func(key string) error {
		if len(key) > config.MaxKeyBytes {
			return fmt.Errorf("%w: start_after is longer than a key can be", problem.ErrBadRequest)
		}
		after = key + "\x00" // no key has a NUL, so this is the next that could be
		return nil
	})
	if err != nil {
		return err
	}
	var body struct {
		leaseJSON
		KeyList []string `json:"keys"`
		Next    string   `json:"next,omitempty"`
	}
	found, caller := false, rights.CallerOf(r.Context())
	if err := a.Look(func(s *state.State) {
		w.Header().Set("Raftkv-Revision", strconv.FormatUint(s.Revision, 10))
		var l state.Leased
		if l, found = s.Lease(id, api.SeenBy(caller)); !found {
			return
		}
		body.leaseJSON = leaseOf(caller, l)
		body.KeyList, body.Next = pageOf(s.Leases.KeysOf(id, after, limit+1), limit)
	}); err != nil {
		return err
	}
	w.Header().Set("Cache-Control", web.CacheAsk)
	if !found {
		return fmt.Errorf("%w: %d", problem.ErrLeaseUnknown, id)
	}
	web.WriteJSON(w, http.StatusOK, body)
	return nil
}

// pageOf cuts keys to a page, and returns after which to go on.
func pageOf(keys []string, limit int) (page []string, next string) {
	page, size := keys[:min(limit, len(keys))], 0
	for i, key := range page {
		if size += len(key); size > list.MaxPageBytes && i > 0 {
			page = page[:i]
			break
		}
	}
	if len(page) < len(keys) {
		next = page[len(page)-1]
	}
	if page == nil {
		page = []string{}
	}
	return page, next
}

// ServeList serves GET /v1/leases.
func (a *Leases) ServeList(w http.ResponseWriter, r *http.Request) error {
	from := uint64(1)
	limit, err := a.prepare(w, r, func(text string) error {
		after, ok := api.ParseLeaseID(text)
		if from = after + 1; !ok || from == 0 {
			return fmt.Errorf("%w: start_after is %q; expected the ID of a lease", problem.ErrBadRequest, web.Clip(text))
		}
		return nil
	})
	if err != nil {
		return err
	}
	body := struct {
		Leases []leaseJSON `json:"leases"`
		Next   uint64      `json:"next,omitempty"`
	}{Leases: []leaseJSON{}}
	caller := rights.CallerOf(r.Context())
	for {
		var page []state.Leased
		var next uint64
		if err := a.Look(func(s *state.State) {
			page, next = s.ListLeases(from, limit-len(body.Leases), api.SeenBy(caller))
			w.Header().Set("Raftkv-Revision", strconv.FormatUint(s.Revision, 10))
		}); err != nil {
			return err
		}
		for _, l := range page {
			body.Leases = append(body.Leases, leaseOf(caller, l))
		}
		if from = next; next == 0 || len(body.Leases) == limit {
			if next != 0 {
				body.Next = body.Leases[limit-1].ID
			}
			break
		}
	}
	w.Header().Set("Cache-Control", web.CacheAsk)
	web.WriteJSON(w, http.StatusOK, body)
	return nil
}

// leaseParams are the parameters of reads of leases.
var leaseParams = append([]string{"limit", "start_after"}, api.FreshnessParams...)

// prepare reads what a read of a page asks for, start_after by a function, and makes sure
// that this node is as fresh as it wants it.
func (a *Leases) prepare(w http.ResponseWriter, r *http.Request, startAfter func(text string) error) (limit int, err error) {
	if err := web.NoIdempotencyKey(r); err != nil {
		return 0, err
	}
	q, err := web.Query(r.URL.RawQuery, leaseParams...)
	if err != nil {
		return 0, err
	}
	want, err := api.ParseFreshness(q)
	if err != nil {
		return 0, err
	}
	if limit, err = api.PageLimit(q); err != nil {
		return 0, err
	}
	if q.Has("start_after") {
		if err := startAfter(q.Get("start_after")); err != nil {
			return 0, err
		}
	}
	return limit, a.Fresh.Prepare(w.Header(), r, want)
}
