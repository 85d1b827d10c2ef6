package api

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"raftkv/internal/contact"
	"raftkv/internal/meter"
	"raftkv/internal/problem"
	"raftkv/internal/rounds"
	"raftkv/internal/wait"
	"raftkv/internal/web"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Freshness makes sure that what this node has applied is as fresh as a request
// wants it.
type Freshness struct {
	// Confirm waits until this node has applied all that was acknowledged before.
	Confirm func(ctx context.Context) error
	// Start has w told what Confirm would return.
	Start func(w rounds.Waiter) error
	// Fault returns nil, or why this node must not serve.
	Fault    func() error
	Applied  *wait.Index // up to where this node has applied the log
	Contacts *contact.Contacts
}

// Now returns nil once this node has applied every write that was acknowledged
// before the call. A node that has just started may learn only by this what is
// wrong with it.
func (f *Freshness) Now(ctx context.Context) error {
	err := f.Confirm(ctx)
	return cmp.Or(f.Fault(), err) // what is wrong with this node says more
}

// Prepare makes sure that what this node has applied is as fresh as the request
// wants it, and says in the headers which it was.
func (f *Freshness) Prepare(h http.Header, r *http.Request, stale bool) error {
	if stale {
		return f.asOf(h.Set)
	}
	h.Set("Raftkv-Consistency", linearizable)
	return f.Now(r.Context())
}

// Values of Raftkv-Consistency.
const (
	linearizable = "linearizable"
	asItIs       = "stale"
)

// asOf says in the header of a stale read how old it may be. The error is
// problem.ErrNotReady where there is nothing to read yet.
func (f *Freshness) asOf(set func(name, value string)) error {
	if f.Applied.Get() == 0 {
		return problem.ErrNotReady // it joins, and has not got anything yet
	}
	set("Raftkv-Consistency", asItIs)
	if ms, ok := f.LeaderContact(); ok {
		set("Raftkv-Leader-Contact", strconv.FormatInt(ms, 10))
	}
	return nil
}

// LeaderContact returns how long ago, in milliseconds, this node last heard
// from a leader or, leading, from a majority that follows it. False: never.
func (f *Freshness) LeaderContact() (ms int64, ok bool) {
	at := f.Contacts.LeaderHeard()
	switch {
	case at == nil:
		return 0, false
	case at.IsZero():
		return 0, true
	}
	return time.Since(*at).Milliseconds(), true
}

// Register adds what there is to count.
func (f *Freshness) Register(reg prometheus.Registerer) {
	meter.Gauge(reg, "raftkv_leader_contact_seconds", "Time since the leader, or on the leader a majority, was last heard from; 0 on a lone node, NaN if never.",
		func() float64 {
			ms, ok := f.LeaderContact()
			if !ok {
				return math.NaN()
			}
			return float64(ms) / 1000
		})
}

// ParseQuery reads the query of a read; if it is none, there may be no parameters.
func ParseQuery(query string, read bool) (stale bool, err error) {
	switch {
	case query == "":
		return false, nil
	case !read:
		_, err := web.Query(query)
		return false, err
	case query == "consistency=stale": // what web.Query makes of it costs time
		return true, nil
	}
	q, err := web.Query(query, "consistency")
	if err != nil {
		return false, err
	}
	return Consistency(q)
}

// Consistency reads the parameter of this name.
func Consistency(q url.Values) (stale bool, err error) {
	switch c, ok := q["consistency"]; {
	case !ok || c[0] == linearizable:
		return false, nil
	case c[0] == asItIs:
		return true, nil
	default:
		return false, fmt.Errorf("%w: consistency is %q, not linearizable or stale", problem.ErrBadRequest, web.Clip(c[0]))
	}
}
