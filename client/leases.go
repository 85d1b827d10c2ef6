package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// LeaseInfo is what the store knows of a lease.
type LeaseInfo struct {
	ID        uint64
	TTL       time.Duration // that it was made with, and has again when it is kept alive
	ExpiresIn time.Duration // when the answer was made
	KeyCount  int
	Keys      []string // of LeaseInfo alone; Leases leaves them out
	Owner     string   // for those who may see the leases of others
}

// wireLease is a lease as it travels.
type wireLease struct {
	ID        uint64   `json:"id"`
	TTL       float64  `json:"ttl_seconds"`
	ExpiresIn float64  `json:"expires_in_seconds"`
	KeyCount  int      `json:"key_count"`
	Keys      []string `json:"keys"`
	Owner     string   `json:"owner"`
	Next      string   `json:"next"`
}

func (w *wireLease) info() LeaseInfo {
	return LeaseInfo{ID: w.ID, TTL: seconds(w.TTL), ExpiresIn: seconds(w.ExpiresIn), KeyCount: w.KeyCount, Keys: w.Keys, Owner: w.Owner}
}

func leasePath(id uint64) string { return "/v1/leases/" + strconv.FormatUint(id, 10) }

// GrantLease makes a lease, of a second to a year, and returns its ID. Nobody keeps it alive:
// see Lease for one that is, and KeepLease. It is not made twice, however many attempts it takes.
func (c *Client) GrantLease(ctx context.Context, ttl time.Duration) (id uint64, err error) {
	body, err := json.Marshal(map[string]string{"ttl": ttl.String()})
	if err != nil {
		return 0, err
	}
	var got wireLease
	err = c.ask(ctx, &request{op: "lease grant", method: http.MethodPost, path: "/v1/leases", header: sendsJSON, body: body, effect: keyed}, &got)
	return got.ID, err
}

var sendsJSON = http.Header{"Content-Type": {"application/json"}}

// KeepLease gives a lease its whole time again, and returns how long that is; it counts from
// when the call was made. A lease that has ended is an error that matches NoSuchLease.
func (c *Client) KeepLease(ctx context.Context, id uint64) (expiresIn time.Duration, err error) {
	var got wireLease
	err = c.ask(ctx, &request{op: "lease keep", key: strconv.FormatUint(id, 10), method: http.MethodPut, path: leasePath(id), effect: repeatable}, &got)
	return seconds(got.ExpiresIn), err
}

// RevokeLease ends a lease: its keys are gone, in one revision. One that has ended already
// is an error that matches NoSuchLease, unless this call may have ended it.
func (c *Client) RevokeLease(ctx context.Context, id uint64) error {
	_, err := c.do(ctx, &request{op: "lease revoke", key: strconv.FormatUint(id, 10), method: http.MethodDelete, path: leasePath(id), effect: repeatable})
	if e := (*Error)(nil); errors.As(err, &e) && e.Code == NoSuchLease && e.earlier {
		return nil
	}
	return err
}

// LeaseInfo returns a lease with all its keys; one that has ended is an error that matches
// NoSuchLease.
func (c *Client) LeaseInfo(ctx context.Context, id uint64, opts ...ReadOption) (LeaseInfo, error) {
	q, name := make(url.Values), strconv.FormatUint(id, 10)
	if wrong := c.reads(opts, q); wrong != "" {
		return LeaseInfo{}, invalid("lease show", name, "%s", wrong)
	}
	var keys []string
	for {
		var got wireLease
		if err := c.ask(ctx, &request{op: "lease show", key: name, method: http.MethodGet, path: leasePath(id), query: q, bound: maxAnswer}, &got); err != nil {
			return LeaseInfo{}, err
		}
		keys = append(keys, got.Keys...)
		if got.Next == "" {
			got.Keys = keys
			return got.info(), nil
		}
		q.Set("start_after", got.Next)
	}
}

// Leases yields the leases that this client may see, in the order of their IDs, without
// their keys. An error ends it.
func (c *Client) Leases(ctx context.Context, opts ...ReadOption) iter.Seq2[LeaseInfo, error] {
	return func(yield func(LeaseInfo, error) bool) {
		q := make(url.Values)
		if wrong := c.reads(opts, q); wrong != "" {
			yield(LeaseInfo{}, invalid("lease list", "", "%s", wrong))
			return
		}
		for {
			var got struct {
				Leases []wireLease `json:"leases"`
				Next   uint64      `json:"next"`
			}
			if err := c.ask(ctx, &request{op: "lease list", method: http.MethodGet, path: "/v1/leases", query: q, bound: maxAnswer}, &got); err != nil {
				yield(LeaseInfo{}, err)
				return
			}
			for i := range got.Leases {
				if !yield(got.Leases[i].info(), nil) {
					return
				}
			}
			if got.Next == 0 {
				return
			}
			q.Set("start_after", strconv.FormatUint(got.Next, 10))
		}
	}
}
