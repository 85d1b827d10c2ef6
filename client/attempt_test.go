package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a transport that answers each request as it is told, one after the other.
type scripted struct {
	t *testing.T

	mu       sync.Mutex
	answers  []reply // the last one answers all that follow
	requests []*http.Request
	at       []time.Time
}

// reply is one answer, or what comes in place of one.
type reply struct {
	status  int
	code    string // of a problem
	outcome string
	retry   bool
	header  http.Header
	body    string
	err     error         // in place of an answer
	cut     bool          // the body ends too soon
	takes   time.Duration // until the head comes
}

var (
	refused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	reset   = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
)

const hangs = time.Hour

func (s *scripted) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	at := s.answers[min(len(s.requests), len(s.answers)-1)]
	s.requests, s.at = append(s.requests, r), append(s.at, time.Now())
	s.mu.Unlock()
	if r.Body != nil {
		if n, err := io.Copy(io.Discard, r.Body); n != r.ContentLength || err != nil {
			s.t.Errorf("a body of %d bytes, announced are %d, %v", n, r.ContentLength, err)
		}
	}
	if at.takes > 0 {
		select {
		case <-time.After(at.takes):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if at.err != nil {
		return nil, at.err
	}
	h := at.header.Clone()
	if h == nil {
		h = http.Header{"Raftkv-Cluster-Id": {"c"}, "Raftkv-Revision": {"7"}, "Etag": {`"7"`}}
	}
	body := at.body
	if at.code != "" {
		h.Set("Content-Type", "application/problem+json")
		body = fmt.Sprintf(`{"code":%q,"outcome":%q,"retry":%v,"detail":"so it is"}`, at.code, at.outcome, at.retry)
	}
	var b io.Reader = strings.NewReader(body)
	if at.cut {
		b = io.MultiReader(b, failing{})
	}
	return &http.Response{StatusCode: at.status, Header: h, Body: io.NopCloser(b), ContentLength: -1, Request: r}, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// problemReply is an answer of a node that is an error.
func problemReply(status int, code Code, outcome string, retry bool) reply {
	return reply{status: status, code: string(code), outcome: outcome, retry: retry}
}

// after gives an answer a Retry-After.
func (r reply) after(seconds string) reply {
	r.header = http.Header{"Raftkv-Cluster-Id": {"c"}, "Retry-After": {seconds}}
	return r
}

var (
	noLeader  = problemReply(503, NoLeader, "not_applied", true).after("1")
	unknown   = problemReply(504, OutcomeUnknown, "unknown", true)
	forbidden = problemReply(403, Forbidden, "not_applied", false)
	badProxy  = reply{status: 502, header: http.Header{"Content-Type": {"text/html"}}, body: "<html>Bad Gateway"}
	done      = reply{status: 204}
)

// withScript returns a client of three endpoints that answer as they are told.
func withScript(t *testing.T, answers ...reply) (*Client, *scripted) {
	t.Helper()
	s := &scripted{t: t, answers: answers}
	c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"}, Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

// wantOutcome fails unless an error says exactly one of what may have become of a call.
func wantOutcome(t *testing.T, err error, unknown bool) {
	t.Helper()
	if errors.Is(err, ErrOutcomeUnknown) != unknown || errors.Is(err, ErrNotApplied) == unknown {
		t.Errorf("unknown must be %v: %v", unknown, err)
	}
}

// Guarantee: each write that fails says whether it may have happened, for each way to fail, and is
// tried again where that can help and nowhere else.
func TestWriteOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		answers  []reply
		want     error // nil: it succeeds
		unknown  bool
		attempts int           // 0: as many as there is time for
		within   time.Duration // at most; 0 is a second
	}{
		{"at once", []reply{done}, nil, false, 1, 0},
		{"refused, then done", []reply{{err: refused}, done}, nil, false, 2, 0},
		{"broken, then done", []reply{{err: reset}, done}, nil, false, 2, 0},
		{"unknown, then done", []reply{unknown, done}, nil, false, 2, 0},
		{"hangs, then done", []reply{{takes: hangs}, done}, nil, false, 2, attemptLimit + time.Millisecond},
		{"two hang", []reply{{takes: hangs}, {takes: hangs}, done}, nil, false, 3, 2*attemptLimit + 2*leastPause + time.Millisecond},
		{"no leader for a round", []reply{noLeader, noLeader, noLeader, done}, nil, false, 4, 2 * time.Second},
		{"overloaded, then done", []reply{problemReply(429, Overloaded, "not_applied", true), done}, nil, false, 2, 0},
		{"a broken node, then done", []reply{problemReply(503, Diverged, "not_applied", false), done}, nil, false, 2, 0},
		{"internal, then done", []reply{problemReply(500, Internal, "unknown", false), done}, nil, false, 2, 0},
		{"a proxy's error, then done", []reply{badProxy, done}, nil, false, 2, 0},
		{"the change of another, then done", []reply{problemReply(409, ChangeInProgress, "not_applied", true).after("1"), done}, nil, false, 2, 0},

		{"refused always", []reply{{err: refused}}, context.DeadlineExceeded, false, 0, DefaultTimeout},
		{"broken always", []reply{{err: reset}}, context.DeadlineExceeded, true, 0, DefaultTimeout},
		{"hangs always", []reply{{takes: hangs}}, context.DeadlineExceeded, true, 0, DefaultTimeout},
		{"no leader always", []reply{noLeader}, NoLeader, false, 0, DefaultTimeout},
		{"unknown, then no leader", []reply{unknown, noLeader}, NoLeader, true, 0, DefaultTimeout},
		{"broken, then refused", []reply{{err: reset}, {err: refused}}, syscall.ECONNREFUSED, true, 0, DefaultTimeout},

		{"forbidden", []reply{forbidden}, Forbidden, false, 1, 0},
		{"broken, then forbidden", []reply{{err: reset}, forbidden}, Forbidden, true, 2, 0},
		{"unknown, then no room", []reply{unknown, problemReply(507, QuotaExceeded, "not_applied", true)}, QuotaExceeded, true, 2, 0},
		{"unknown, then bad", []reply{unknown, problemReply(400, BadRequest, "not_applied", false)}, BadRequest, true, 2, 0},
		{"unknown, then unauthenticated", []reply{unknown, problemReply(401, Unauthenticated, "not_applied", false)}, Unauthenticated, true, 2, 0},
		{"unknown, then too large", []reply{unknown, problemReply(413, TooLarge, "not_applied", false)}, TooLarge, true, 2, 0},
		{"unknown, then another's key", []reply{unknown, problemReply(422, IdempotencyKeyReused, "not_applied", false)}, IdempotencyKeyReused, true, 2, 0},
		{"unknown, then no such path", []reply{unknown, problemReply(404, NoSuchPath, "not_applied", false)}, NoSuchPath, true, 2, 0},
		{"a proxy's error, then forbidden", []reply{badProxy, forbidden}, Forbidden, true, 2, 0},
		{"internal, then forbidden", []reply{problemReply(500, Internal, "unknown", false), forbidden}, Forbidden, true, 2, 0},

		{"the condition fails", []reply{problemReply(412, PreconditionFailed, "not_applied", false)}, PreconditionFailed, false, 1, 0},
		{"broken, then the condition fails", []reply{{err: reset}, problemReply(412, PreconditionFailed, "not_applied", false)}, PreconditionFailed, false, 2, 0},
		{"broken, then no such lease", []reply{{err: reset}, problemReply(409, NoSuchLease, "not_applied", false)}, NoSuchLease, false, 2, 0},
		{"hangs, then not found", []reply{{takes: hangs}, problemReply(404, NotFound, "not_applied", false)}, NotFound, false, 2, attemptLimit + time.Millisecond},

		{"all are broken", []reply{problemReply(503, Diverged, "not_applied", false)}, Diverged, false, 3, 0},
		{"a proxy refuses", []reply{{status: 403, header: http.Header{}, body: "no"}}, ErrStranger, false, 1, 0},
		{"a redirect", []reply{{status: 307, header: http.Header{"Location": {"http://127.0.0.1:9/"}}}}, ErrStranger, false, 1, 0},
		{"somebody's 200", []reply{{status: 200, header: http.Header{"Etag": {`"7"`}}, body: "<html>Please log in"}}, ErrStranger, true, 1, 0},
		{"an answer without revision", []reply{{status: 201, header: http.Header{"Raftkv-Cluster-Id": {"c"}}}}, ErrStranger, true, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := withScript(t, tt.answers...)
				begin := time.Now()
				_, err := c.Put(t.Context(), "k", []byte("v"))
				took := time.Since(begin)
				switch {
				case (tt.want == nil) != (err == nil):
					t.Fatal(err)
				case err != nil:
					wantOutcome(t, err, tt.unknown)
					if !errors.Is(err, tt.want) {
						t.Errorf("%v is not %v", err, tt.want)
					}
				}
				if n := len(s.requests); tt.attempts > 0 && n != tt.attempts || tt.attempts == 0 && n < 6 {
					t.Errorf("%d attempts", n)
				}
				if tt.within == 0 {
					tt.within = time.Second
				}
				if took > tt.within || tt.attempts == 0 && took != tt.within {
					t.Errorf("it took %v", took)
				}
				once, _, _ := strings.Cut(s.requests[0].Header.Get("Idempotency-Key"), ";")
				for i, r := range s.requests {
					keep := longKeep
					if i == 0 {
						keep = shortKeep
					}
					if got, want := r.Header.Get("Idempotency-Key"), fmt.Sprintf("%s;keep=%d", once, keep); got != want {
						t.Errorf("Idempotency-Key %s, want %s", got, want)
					}
				}
			})
		})
	}
}

// Guarantee: an answer that breaks off is none. A transaction that was carried out is asked for
// again, and happens once.
func TestAnswerBreaksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := withScript(t, reply{status: 200, body: `{"succeeded":tr`, cut: true}, reply{status: 200, body: `{"succeeded":true,"revision":7,"results":[{"put":{"key":"k","mod_revision":7}}]}`})
		res, err := c.Txn().Then(PutOp("k", nil)).Commit(t.Context())
		if err != nil || !res.Succeeded || len(s.requests) != 2 {
			t.Fatal(res, err, s.requests)
		}
		c, _ = withScript(t, reply{status: 200, body: `<html>`})
		_, err = c.Txn().Then(PutOp("k", nil)).Commit(t.Context())
		wantOutcome(t, err, true)
		if !errors.Is(err, ErrStranger) || !strings.Contains(err.Error(), "<html>") {
			t.Error(err)
		}
	})
}

// Guarantee: what ends a call tells what it waited for: the context, and what went wrong before.
func TestCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := withScript(t, reply{err: refused}, reply{takes: hangs})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := c.Put(ctx, "k", nil)
		cancel()
		wantOutcome(t, err, true)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
			t.Error(err)
		}

		c, s := withScript(t, done)
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		_, err = c.Put(ctx, "k", nil)
		wantOutcome(t, err, false)
		if !errors.Is(err, context.Canceled) || len(s.requests) != 0 {
			t.Error(err, len(s.requests))
		}

		c, _ = withScript(t, reply{takes: hangs})
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err = c.Put(ctx, "k", nil)
		wantOutcome(t, err, true)
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_, err = c.Get(ctx, "k")
		wantOutcome(t, err, false)

		c.Close()
		_, err = c.Put(t.Context(), "k", nil)
		wantOutcome(t, err, false)
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// Guarantee: a read that fails did not happen, whatever became of its attempts, and is tried
// again as a write is, without an Idempotency-Key.
func TestReadOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, answers := range [][]reply{{{err: reset}}, {unknown}, {{takes: hangs}}, {badProxy, forbidden}, {{status: 200, header: http.Header{}}}, {noLeader}} {
			c, s := withScript(t, answers...)
			_, err := c.Get(t.Context(), "k")
			wantOutcome(t, err, false)
			if len(s.requests) == 0 || s.requests[0].Header.Get("Idempotency-Key") != "" {
				t.Error(s.requests)
			}
		}
	})
}

// Guarantee: a call with a key ends before the cluster may have forgotten the key.
func TestKeepFitsTheCall(t *testing.T) {
	for _, tt := range []struct {
		limit time.Duration
		most  time.Duration
		keep  int
	}{
		{time.Millisecond, time.Millisecond, 60}, {55 * time.Second, 55 * time.Second, 60}, {55*time.Second + 1, 55*time.Second + 1, 600},
		{595 * time.Second, 595 * time.Second, 600}, {595*time.Second + 1, 595 * time.Second, 600}, {time.Hour, 595 * time.Second, 600},
	} {
		if most, keep := remembered(tt.limit); most != tt.most || keep != tt.keep {
			t.Errorf("%v: %v, %d", tt.limit, most, keep)
		}
	}
}

// Guarantee: a cluster that is slower than an attempt may be is heard in the end.
func TestSlowCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := withScript(t, reply{status: 204, takes: 3 * time.Second})
		if _, err := c.Put(t.Context(), "k", nil); err != nil || len(s.requests) != 4 {
			t.Error(err, len(s.requests))
		}
	})
}

// Guarantee: the endpoint in use stays in use; one that failed is asked last for a while. The
// first other one is asked at once, and no endpoint before its Retry-After.
func TestEndpointChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := withScript(t, reply{err: refused}, done)
		for range 5 {
			if _, err := c.Put(t.Context(), "k", nil); err != nil {
				t.Fatal(err)
			}
		}
		var hosts []string
		for _, r := range s.requests {
			hosts = append(hosts, r.URL.Port())
		}
		if got := strings.Join(hosts, ""); got != "122222" || s.at[1] != s.at[0] {
			t.Error(got, s.at)
		}

		c, s = withScript(t, reply{err: refused}, forbidden)
		for range 3 { // none of them succeeds, so it is the failure that moves them on
			_, err := c.Put(t.Context(), "k", nil)
			wantOutcome(t, err, false)
			if got := s.requests[len(s.requests)-1].URL.Port(); got != "2" {
				t.Errorf("endpoint %s was asked", got)
			}
			time.Sleep(mostRest)
		}

		c, s = withScript(t, noLeader)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := c.Put(ctx, "k", nil)
		wantOutcome(t, err, false)
		last := make(map[string]time.Time)
		for i, r := range s.requests {
			if before, ok := last[r.URL.Port()]; ok && s.at[i].Sub(before) < time.Second {
				t.Errorf("%s was asked again after %v", r.URL.Port(), s.at[i].Sub(before))
			}
			last[r.URL.Port()] = s.at[i]
		}
		if n := len(s.requests); n < 12 || n > 30 || len(last) != 3 {
			t.Errorf("%d attempts at %d endpoints in ten seconds", n, len(last))
		}
	})
}

// Guarantee: an endpoint of another cluster is an error that says so, once, and is not asked again.
func TestOtherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := reply{status: 204, header: http.Header{"Raftkv-Cluster-Id": {"d"}, "Etag": {`"99"`}, "Raftkv-Revision": {"99"}}}
		c, s := withScript(t, done, reply{err: refused}, other, done)
		for i, want := range []error{nil, ErrOtherCluster, nil, nil} {
			_, err := c.Put(t.Context(), "k", nil)
			if (err == nil) != (want == nil) || want != nil && !errors.Is(err, want) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if c.Revision() != 7 {
			t.Error("a revision of another cluster was taken in:", c.Revision())
		}
		for _, r := range s.requests[3:] {
			if r.URL.Port() == s.requests[2].URL.Port() {
				t.Error("it was asked again")
			}
		}
	})
}

// Guarantee: a change of the members that may have happened is looked for, by its ID or URL.
func TestMemberChangeIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exists := problemReply(409, MemberExists, "not_applied", false)
		list := reply{status: 200, body: `{"members":[{"id":4,"peer_url":"http://n4:1","role":"learner"}],"removed":[]}`}
		c, s := withScript(t, reply{err: reset}, exists, list)
		m, err := c.AddMember(t.Context(), NewMember{PeerURL: "http://n4:1"})
		if err != nil || m.ID != 4 || len(s.requests) != 3 || s.requests[0].Header.Get("Idempotency-Key") != "" {
			t.Error(m, err, len(s.requests))
		}
		for _, n := range []NewMember{{PeerURL: "http://n5:1"}, {PeerURL: "http://n4:1", ID: 5}} {
			c, _ = withScript(t, reply{err: reset}, exists, list)
			_, err = c.AddMember(t.Context(), n)
			wantOutcome(t, err, true)
		}
		c, s = withScript(t, exists)
		_, err = c.AddMember(t.Context(), NewMember{PeerURL: "http://n4:1"})
		wantOutcome(t, err, false)
		if !errors.Is(err, MemberExists) || len(s.requests) != 1 {
			t.Error(err, len(s.requests))
		}
		c, _ = withScript(t, reply{err: reset}, forbidden, list)
		if m, err := c.ChangeMember(t.Context(), 4, MemberChange{Role: "learner"}); err != nil || m.ID != 4 {
			t.Error(m, err)
		}
		c, _ = withScript(t, reply{err: reset}, problemReply(404, NoSuchLease, "not_applied", false))
		if err := c.RevokeLease(t.Context(), 4); err != nil {
			t.Error(err)
		}
	})
}

// Guarantee: a call that has little time gives no more than half of it to one endpoint.
func TestLittleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := withScript(t, reply{takes: hangs}, reply{takes: hangs}, done)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Put(ctx, "k", nil); err != nil || len(s.requests) != 3 || s.at[1].Sub(s.at[0]) != time.Second/2 {
			t.Error(err, s.at)
		}
	})
}

// Guarantee: what a node asks for by Retry-After is kept, up to two seconds.
func TestRetryAfterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seconds, least := range map[string]time.Duration{"1": time.Second, "2": 2 * time.Second, "60": mostRetryAfter, "-1": 0, "x": 0} {
			s := &scripted{t: t, answers: []reply{problemReply(503, NoLeader, "not_applied", true).after(seconds), done}}
			c, err := New(Config{Endpoints: []string{"http://127.0.0.1:1"}, Transport: s})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Put(t.Context(), "k", nil); err != nil || s.at[1].Sub(s.at[0]) < least || s.at[1].Sub(s.at[0]) > least+2*leastPause {
				t.Error(seconds, err, s.at)
			}
		}
	})
}

// Guarantee: what can be told to be wrong is refused before anything is sent, and what is just
// right is not.
func TestWrongCalls(t *testing.T) {
	ctx := t.Context()
	c, s := withScript(t, reply{status: 200, body: `{}`})
	long := strings.Repeat("k", maxKey)
	ops := func(n int) (all []Op) {
		for range n {
			all = append(all, GetOp("k"))
		}
		return all
	}
	first := func(l func(func(Item, error) bool)) (err error) {
		l(func(_ Item, e error) bool { err = e; return false })
		return err
	}
	for i, err := range []error{
		second(c.Put(ctx, "", nil)), second(c.Put(ctx, long+"k", nil)), second(c.Put(ctx, "a\x00", nil)), second(c.Put(ctx, "a\xff", nil)),
		second(c.Put(ctx, "k", nil, IfAbsent(), IfPresent())), second(c.Put(ctx, "k", nil, IfAbsent(), IfRevision(1))), second(c.Put(ctx, "k", nil, TTL(0))),
		second(c.Put(ctx, "k", nil, TTL(time.Second), WithLease(1))), second(c.Put(ctx, "k", nil, WithLease(0))),
		second(c.Get(ctx, "")), second(c.Get(ctx, "k", Stale(), MinRevision(1))), second(c.Get(ctx, "k", MaxAge(time.Second))), second(c.Get(ctx, "k", Stale(), MaxAge(0))),
		second(c.Delete(ctx, "")), second(c.Delete(ctx, "k", TTL(time.Second))), second(c.DeletePrefix(ctx, "")), second(c.DeletePrefix(ctx, "\xff")),
		second(c.Add(ctx, "", 1)), second(c.Add(ctx, "k", 1, WithLease(1))), first(c.List(ctx, "\x00")), first(c.List(ctx, "", Limit(0))),
		second(c.Count(ctx, "", Limit(1))), second(c.Count(ctx, "", Reverse())),
		second(c.Txn().If(Key("a\xff").Missing()).Commit(ctx)), second(c.Txn().Then(PutOp("", nil)).Commit(ctx)), second(c.Txn().Then(PutOp("k", nil, IfAbsent())).Commit(ctx)),
		second(c.Txn().Then(ListOp("", Reverse())).Commit(ctx)), second(c.Txn().Then(DeleteOp("k")).Commit(ctx, Stale())), second(c.Txn().Then(ops(maxOps + 1)...).Commit(ctx)),
		second(c.Status(ctx, "http://127.0.0.1:9")), c.Ready(ctx, "http://127.0.0.1:9"),
	} {
		if !errors.Is(err, BadRequest) {
			t.Errorf("%d: %v", i, err)
		}
		wantOutcome(t, err, false)
	}
	if len(s.requests) > 0 {
		t.Error("it was sent:", s.requests[0].URL)
	}
	for i, err := range []error{second(c.Get(ctx, long)), second(c.Txn().Then(ops(maxOps)...).Commit(ctx)), second(c.Get(ctx, "k", ReadYourWrites(), MaxAge(time.Second)))} {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Guarantee: an error tells a person what was done, what went wrong, where, and what became of it.
func TestErrorText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := withScript(t, reply{err: reset}, noLeader, forbidden)
		_, err := c.Put(t.Context(), "k", nil)
		const want = `put "k": forbidden: so it is (http://127.0.0.1:3); before it: read tcp: connection reset by peer (http://127.0.0.1:1)` +
			`; before it: no_leader: so it is (http://127.0.0.1:2); it may have happened`
		if err == nil || err.Error() != want {
			t.Errorf("%v", err)
		}
	})
}

// Guarantee: of an answer no more is read than there can be of it.
func TestAnswersAreBounded(t *testing.T) {
	const body = `{"count":3}`
	for pad, ok := range map[int]bool{maxSmall - len(body): true, maxSmall - len(body) + 1: false} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := withScript(t, reply{status: 200, body: body + strings.Repeat(" ", pad)})
			if n, err := c.Count(t.Context(), ""); (err == nil && n == 3) != ok {
				t.Error(n, err)
			}
		})
	}
}

// Guarantee: a key goes into the path as it is, or, where something between could tidy it up,
// into the query.
func TestKeyTarget(t *testing.T) {
	for key, want := range map[string]string{
		"a": "/v1/kv/a?", "a/b": "/v1/kv/a/b?", "ä %?": "/v1/kv/%C3%A4%20%25%3F?", "...": "/v1/kv/...?", "a/.b": "/v1/kv/a/.b?",
		"a//b": "/v1/kv?key=a%2F%2Fb", "/a": "/v1/kv?key=%2Fa", "a/": "/v1/kv?key=a%2F", "a/../b": "/v1/kv?key=a%2F..%2Fb", ".": "/v1/kv?key=.", "a/. +": "/v1/kv/a/.%20+?",
		"..": "/v1/kv?key=..", "// +": "/v1/kv?key=%2F%2F%20%2B",
	} {
		path, q := keyTarget(key)
		if got := path + "?" + encode(q); got != want {
			t.Errorf("%q: %s, not %s", key, got, want)
		}
	}
}
