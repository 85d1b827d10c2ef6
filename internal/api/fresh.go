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
	"raftkv/internal/rights"
	"raftkv/internal/rounds"
	"raftkv/internal/state"
	"raftkv/internal/wait"
	"raftkv/internal/watch"
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
	Applied  *wait.Index   // up to where this node has applied the log
	Revision *wait.Level   // of the store, as this node has applied it
	Timeout  time.Duration // how long a read may wait for a revision
	Contacts *contact.Contacts
}

// Wanted is how fresh a read must be. The zero value wants a linearizable one.
type Wanted struct {
	// Local has this node answer with what it has, without asking the cluster.
	Local bool
	// ByRevision, with Local: not before it has applied Revision.
	ByRevision bool
	Revision   uint64
	// MaxAge, with Local, is how long ago the leader may have been heard; 0: however long.
	MaxAge time.Duration
}

// Now returns nil once this node has applied every write that was acknowledged
// before the call. A node that has just started may learn only by this what is
// wrong with it.
func (f *Freshness) Now(ctx context.Context) error {
	err := f.Confirm(ctx)
	return cmp.Or(f.Fault(), err) // what is wrong with this node says more
}

// Prepare makes sure that what this node has applied is as fresh as the request
// wants it, and says in the headers which it was. That may have taken a while, so the rights
// that the request needs are asked for once more.
func (f *Freshness) Prepare(h http.Header, r *http.Request, want Wanted, needs ...rights.Need) error {
	if err := f.prepare(h, r, want); err != nil {
		return err
	}
	err := rights.Still(r.Context(), needs...)
	if err != nil { // and there is nothing that it could be of
		h.Del("Raftkv-Consistency")
		h.Del("Raftkv-Leader-Contact")
	}
	return err
}

func (f *Freshness) prepare(h http.Header, r *http.Request, want Wanted) error {
	if !want.Local {
		h.Set("Raftkv-Consistency", linearizable)
		return f.Now(r.Context())
	}
	if want.ByRevision {
		done := make(waiter, 1)
		defer f.await(want.Revision, done)()
		select {
		case res := <-done:
			if err := cmp.Or(f.Fault(), res.Err); err != nil {
				return err
			}
		case <-r.Context().Done():
			return problem.ErrUnavailable
		}
	}
	return f.asOf(h.Set, want)
}

// waiter is where one goroutine is told.
type waiter chan state.Result

// Done implements rounds.Waiter.
func (w waiter) Done(res state.Result) { w <- res }

// await has w told once this node has applied a revision of the store, or in time that
// it has not. giveUp ends what is left of that: w may be told or not, then.
func (f *Freshness) await(revision uint64, w rounds.Waiter) (giveUp func()) {
	stop := f.Revision.Await(revision, func(ended bool) {
		if ended {
			w.Done(state.Result{Err: problem.ErrStopping})
			return
		}
		w.Done(state.Result{})
	})
	late := time.AfterFunc(f.Timeout, func() {
		if stop() {
			w.Done(state.Result{Err: fmt.Errorf("%w: it has not applied revision %d in time", problem.ErrTooStale, revision)})
		}
	})
	return func() {
		late.Stop()
		stop()
	}
}

// End has nobody wait for a revision any more.
func (f *Freshness) End() { f.Revision.End() }

// Values of Raftkv-Consistency.
const (
	linearizable = "linearizable"
	asItIs       = "stale"
	byRevision   = "min_revision"
)

// asOf says in the header of a local read how old it may be. The error is
// problem.ErrNotReady where there is nothing to read yet, and problem.ErrTooStale where
// the leader has been silent for too long.
func (f *Freshness) asOf(set func(name, value string), want Wanted) error {
	if f.Applied.Get() == 0 {
		return problem.ErrNotReady // it joins, and has not got anything yet
	}
	if want.ByRevision {
		set("Raftkv-Consistency", byRevision)
	} else {
		set("Raftkv-Consistency", asItIs)
	}
	ms, heard := f.LeaderContact()
	if heard {
		set("Raftkv-Leader-Contact", strconv.FormatInt(ms, 10))
	}
	switch {
	case want.MaxAge == 0 || heard && time.Duration(ms)*time.Millisecond <= want.MaxAge:
		return nil
	case !heard:
		return fmt.Errorf("%w: it has not heard from a leader yet", problem.ErrTooStale)
	}
	return fmt.Errorf("%w: it has not heard from the leader for %d ms", problem.ErrTooStale, ms)
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

// Told returns nil while this node hears of changes, or why it may not.
func (f *Freshness) Told() error {
	if err := f.Fault(); err != nil {
		return err
	}
	ms, heard := f.LeaderContact()
	if !heard || time.Duration(ms)*time.Millisecond > watch.Silence {
		return fmt.Errorf("%w: it has not heard from a leader for %v or longer, so that changes may have passed it by", problem.ErrNoLeader, watch.Silence)
	}
	return nil
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

// FreshnessParams are the query parameters that ParseFreshness reads.
var FreshnessParams = []string{"consistency", "min_revision", "max_age"}

// Bounds of max_age.
const (
	leastAge = time.Millisecond
	mostAge  = 365 * 24 * time.Hour
)

// ParseFreshness reads from a query that has no parameter twice how fresh a read must
// be.
func ParseFreshness(q url.Values) (want Wanted, err error) {
	level, given := q["consistency"]
	if given && level[0] != linearizable && level[0] != asItIs {
		return want, fmt.Errorf("%w: consistency is %q, not linearizable or stale", problem.ErrBadRequest, web.Clip(level[0]))
	}
	want.Local = given && level[0] == asItIs
	if text, ok := q["min_revision"]; ok {
		if want.Revision, err = strconv.ParseUint(text[0], 10, 64); err != nil {
			return want, fmt.Errorf("%w: min_revision is %q, not a revision such as 17", problem.ErrBadRequest, web.Clip(text[0]))
		}
		if given && !want.Local {
			return want, fmt.Errorf("%w: min_revision is for a read of what this node has; a linearizable one sees every revision there was", problem.ErrBadRequest)
		}
		want.Local, want.ByRevision = true, true
	}
	if text, ok := q["max_age"]; ok {
		if !want.Local {
			return want, fmt.Errorf("%w: max_age is for consistency=stale or min_revision", problem.ErrBadRequest)
		}
		want.MaxAge, err = web.Duration("max_age", text[0], leastAge, mostAge)
	}
	return want, err
}

// staleAlone is the query of most stale reads. What web.Query makes of it costs time.
const staleAlone = "consistency=stale"

// ParseQuery reads the query of a read that takes what ParseFreshness reads, and no
// other parameter.
func ParseQuery(query string) (Wanted, error) {
	switch query {
	case "":
		return Wanted{}, nil
	case staleAlone:
		return Wanted{Local: true}, nil
	}
	q, err := web.Query(query, FreshnessParams...)
	if err != nil {
		return Wanted{}, err
	}
	return ParseFreshness(q)
}

// WantsLocal reports whether a query, whatever else is in it, is of a read of what this
// node has.
func WantsLocal(query string) bool {
	q, err := url.ParseQuery(query)
	if err != nil {
		return false
	}
	want, err := ParseFreshness(q)
	return err == nil && want.Local
}
