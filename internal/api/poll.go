package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"raftkv/internal/problem"
	"raftkv/internal/rights"
	"raftkv/internal/watch"
	"raftkv/internal/web"
	"strconv"
	"time"
)

// Reads that wait for a change (long polls). Each is a watcher for as long as it waits.

// Bounds of wait.
const (
	leastWait = time.Millisecond
	mostWait  = 5 * time.Minute
	// waitedAnswer is how long a client may take for an answer that it has waited for.
	waitedAnswer = time.Minute
)

// waitOf reads how long an answer may be delayed; 0: not at all.
func waitOf(params url.Values) (time.Duration, error) {
	text, ok := params["wait"]
	if !ok {
		return 0, nil
	}
	return web.Duration("wait", text[0], leastWait, mostWait)
}

// waiting lets a request last longer than the server lets others.
func waiting(w http.ResponseWriter, long time.Duration) {
	conn := http.NewResponseController(w)
	// Without these the client may be cut off, and asks again.
	_ = conn.SetReadDeadline(time.Time{})
	_ = conn.SetWriteDeadline(time.Now().Add(long + waitedAnswer))
}

// delayed reports whether the answer is one that a request with wait waits to get rid of.
func (q *KeyRequest) delayed() bool {
	return q.wait > 0 && (q.Answer.Status == http.StatusNotModified ||
		errors.Is(q.Answer.Err, problem.ErrNotFound) || errors.Is(q.Answer.Err, problem.ErrPrecondition))
}

// Await delays the answer of a read that asked for it until the key changes so that it is
// another, or its time is up. What this node has applied is as fresh as the read wanted it
// before, and only becomes fresher.
func (k *Keys) Await(w http.ResponseWriter, r *http.Request, q *KeyRequest) {
	if !q.delayed() {
		return
	}
	watcher, err := k.begin(w, r, q)
	if err != nil {
		q.again()
		q.fail(err)
		return
	}
	defer watcher.Close()
	defer rights.WhileMay(r.Context(), watcher.End, q.need())()
	late := time.NewTimer(q.wait)
	defer late.Stop()
	for {
		watcher.Settle() // before the look at the key: what comes behind that wakes
		q.again()
		if why := watcher.Why(); why != nil {
			q.fail(why)
			return
		}
		if k.found(q); !q.delayed() {
			return
		}
		select {
		case <-watcher.Wake():
		case <-late.C:
			return
		case <-web.Half(r):
			return // who sends nothing more may still read
		case <-watcher.Ended():
		}
	}
}

// begin begins to wait for a change of the key.
func (k *Keys) begin(w http.ResponseWriter, r *http.Request, q *KeyRequest) (*watch.Watcher, error) {
	if err := web.Drain(r); err != nil {
		return nil, err
	}
	waiting(w, q.wait)
	return k.Hub.Watch(watch.NewFilter([]string{q.Key}, nil), 0)
}

// again begins the answer of a read anew.
func (q *KeyRequest) again() {
	q.Answer = Answer{}
	if !q.want.Local {
		q.Answer.add("Raftkv-Consistency", linearizable)
	}
}

// sinceParams reads from which revision on a change counts, and how long to wait for one.
func (q *listRequest) sinceParams(params url.Values) (err error) {
	if q.wait, err = waitOf(params); err != nil {
		return err
	}
	text, ok := params["after_revision"]
	if !ok {
		if q.wait > 0 {
			return fmt.Errorf("%w: wait is for a list that tells by after_revision what its client has seen", problem.ErrBadRequest)
		}
		return nil
	}
	q.since = true
	if q.after, err = strconv.ParseUint(text[0], 10, 64); err != nil {
		return fmt.Errorf("%w: after_revision is %q, not a revision such as 17", problem.ErrBadRequest, web.Clip(text[0]))
	}
	return nil
}

// unchanged waits until something under the prefix has changed since the revision that the
// client has seen, or the time is up: then it returns true and up to which revision nothing
// has. Where the changes since then are not kept any more, or the revision is another
// history's, the client gets the list.
func (l *Lists) unchanged(w http.ResponseWriter, r *http.Request, q *listRequest) (upto uint64, same bool, err error) {
	if q.wait > 0 {
		if err := web.Drain(r); err != nil {
			return 0, false, err
		}
		waiting(w, q.wait)
	}
	now, err := l.revision()
	if err != nil {
		return 0, false, err
	}
	if q.after > now && !q.want.Local {
		return 0, false, nil
	}
	filter := watch.NewFilter(nil, []string{q.Prefix})
	watcher := l.Hub.Glance(filter, q.after)
	if q.wait > 0 {
		if watcher, err = l.Hub.Watch(filter, q.after); err != nil {
			return 0, false, err
		}
		defer watcher.Close()
		defer rights.WhileMay(r.Context(), watcher.End, q.need())()
	}
	late := time.NewTimer(q.wait)
	defer late.Stop()
	for over := q.wait == 0; ; {
		if why := watcher.Why(); why != nil {
			return 0, false, why
		}
		b, err := watcher.Take()
		var gone *watch.Gone
		switch {
		case errors.As(err, &gone) || len(b.Entries) > 0:
			return 0, false, nil
		case err != nil:
			return 0, false, err
		case b.More:
			continue
		case over:
			now, err := l.revision() // this node may not have got to where the client begins
			return min(b.Upto, now), true, err
		}
		select {
		case <-watcher.Wake():
		case <-late.C: // the client is to go on behind what was changed meanwhile
			over = true
		case <-web.Half(r):
			over = true
		case <-watcher.Ended():
		}
	}
}
